"""What a task is: its examples, how they become prompts, and how they are scored."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probes.errors import ProbesError
from probes.items import Item, Items

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

PUBLISHED_SEED: Final = 42
# What metrics need to know of a task besides their names.
_SCORING: Final = (
    *("preferred_score", "low_score", "high_score", "stop_string", "output_regex", "absolute_normalization"),
)


class TaskError(ProbesError, ValueError):
    """A task that cannot be found, read, rendered or scored."""


@dataclass(frozen=True)
class Example:
    """One question of a task.

    Attributes:
        number: Position in its file, from 0; it names the item.
        input: The question alone.
        prompt: The question as it is asked: with prefixes and the list of choices, up to where the answer starts.
        targets: Texts that count as right when text is generated.
        choices: What can be chosen, in the order of the file; empty where the answer is free text.
        choice_scores: What each choice is worth.
    """

    number: int
    input: str
    prompt: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()
    choice_scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Task(ABC):
    """A task of BIG-bench or of BIG-Bench Hard; one with subtasks has no examples of its own.

    Attributes:
        name: ``bbh/navigate``, ``bigbench/known_unknowns``, ``bigbench/conceptual_combinations/contradictions``.
        path: The file that it was read from.
        description: One or two sentences, as published.
        keywords: As published.
        metrics: Names of its metrics, those that follow from others included.
        preferred_score: The metric that stands for the task.
        low_score: Its value at chance, or of a poor answer.
        high_score: Its value for perfect answers.
        examples: In the order of the file, without repetitions.
        subtasks: Tasks that it consists of.
        notes: What differs from the expected: repeated examples, targets off format, fields that are not used.
        stop_string: Text that ends a generated answer; None for none.
        output_regex: What of a generated answer counts; None for all of it.
        absolute_normalization: Whether choices are compared by absolute log-probabilities; it changes ties only.
    """

    name: str
    path: Path
    description: str = ""
    keywords: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    preferred_score: str = ""
    low_score: float = 0.0
    high_score: float = 1.0
    examples: tuple[Example, ...] = field(default=(), repr=False)
    subtasks: tuple[Task, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    stop_string: str | None = None
    output_regex: str | None = None
    absolute_normalization: bool = False

    @property
    def suite(self) -> str:
        """``bbh`` or ``bigbench``."""
        return self.name.partition("/")[0]

    @property
    def leaves(self) -> tuple[Task, ...]:
        """The tasks that have examples: this one, or its subtasks."""
        return tuple(leaf for task in self.subtasks for leaf in task.leaves) if self.subtasks else (self,)

    @cached_property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Accepted texts of every example, by the id of its item."""
        return {f"{self.name}/{example.number}": example.targets for example in self.examples}

    @property
    def is_multiple_choice(self) -> bool:
        """Whether its items offer choices; free text otherwise."""
        return bool(self.examples) and all(example.choices for example in self.examples)

    def items(
        self,
        *,
        shots: int | None = None,
        chain_of_thought: bool = False,
        free_text: bool = False,
        seed: int = PUBLISHED_SEED,
        limit: int | None = None,
    ) -> Items:
        """The questions as items; those of subtasks one after the other, in the order of their files.

        Each item has the fields ``prompt`` (the complete text in front of the answer), ``input`` and ``task``; its
        criterion is the name of the task that the question is in.

        Args:
            shots: Worked examples in the prompt; as published if not given: none in BIG-bench, 3 in BIG-Bench Hard.
            chain_of_thought: Show and ask for reasoning; BIG-Bench Hard only.
            free_text: Of a task with choices, make the accepted texts the choices instead.
            seed: Draws the worked examples of BIG-bench, and the questions if there is a limit.
            limit: At most so many questions, drawn at random; of a task with subtasks, an equal number of each.

        Raises:
            TaskError: The task does not allow it.
        """
        if shots is not None and shots < 0:
            raise TaskError(f"{self.name}: {shots} shots were asked for; give 0 or more")
        if limit is not None and limit < 1:
            raise TaskError(f"{self.name}: a limit of {limit} questions was asked for; give 1 or more")
        leaves = self.leaves
        if limit is not None and len(leaves) > 1:
            if limit < len(leaves):
                raise TaskError(
                    f"{self.name}: a limit of {limit} questions is less than its {len(leaves)} subtasks; give at "
                    "least one question a subtask, or name one subtask"
                )
            limit //= len(leaves)
        for leaf in leaves:
            if limit is not None and limit < (total := len(leaf.examples)):
                logger.info("%s: %d of %d questions, drawn at random with seed %d", leaf.name, limit, total, seed)
        found = [
            leaf._item(example, prompt, free_text)
            for leaf in leaves
            for example, prompt in leaf._prompts(shots, chain_of_thought, seed, limit)
            if leaf._can_be_scored(example, free_text)
        ]
        return Items(found, source=self.name, about=self.about())

    def about(self) -> dict[str, Any]:
        """What its metrics need to know of each leaf, JSON-ready; it travels with the items into run files."""
        known = {
            leaf.name: {
                **{name: getattr(leaf, name) for name in _SCORING},
                "metrics": list(leaf.metrics),
                "within": self.name if leaf is not self else None,
            }
            for leaf in self.leaves
        }
        return {name: {key: value for key, value in one.items() if value is not None} for name, one in known.items()}

    @abstractmethod
    def _prompts(
        self, shots: int | None, chain_of_thought: bool, seed: int, limit: int | None
    ) -> list[tuple[Example, str]]:
        """The chosen examples in the order of the file, each with its complete prompt."""

    def _can_be_scored(self, example: Example, free_text: bool) -> bool:
        """Whether every choice has a token; an empty one would have probability 1 and win always."""
        return all(example.choices) if example.choices and not free_text else any(example.targets)

    def _item(self, example: Example, prompt: str, free_text: bool) -> Item:
        choosing = bool(example.choices) and not free_text
        # A text that is accepted twice counts once.
        texts = tuple(dict.fromkeys(text for text in example.targets if text))
        fields = {"prompt": prompt, "input": example.input}
        if self.description:
            fields["task"] = self.description
        return Item(
            id=f"{self.name}/{example.number}",
            fields=fields,
            criterion=self.name,
            choices=example.choices if choosing else texts,
            choice_scores=example.choice_scores if choosing else (1.0,) * len(texts),
        )

    def _draw(self, seed: int, limit: int | None) -> list[int]:
        """Rows of the examples that are asked: drawn as published, in the order of the file."""
        rng = np.random.RandomState(seed)  # the published generator
        rows = list(range(len(self.examples)))
        if limit is None or limit >= len(rows):
            return rows
        return sorted(rng.choice(len(rows), limit, replace=False).tolist())


def items_of(tasks: Sequence[Task], **options: Any) -> Items:
    """The items of several tasks, one after the other; ``criterion`` tells them apart.

    Args:
        tasks: As :func:`load_tasks` returns them.
        **options: As of :meth:`Task.items`; a limit holds for each task.
    """
    found = [item for task in tasks for item in task.items(**options)]
    about = {name: one for task in tasks for name, one in task.about().items()}
    return Items(found, source=", ".join(task.name for task in tasks) or "no task", about=about)


@dataclass(frozen=True)
class StoredTask(Task):
    """What the items of a run say of the task that they come from: how it is scored, without its questions."""

    def _prompts(
        self, shots: int | None, chain_of_thought: bool, seed: int, limit: int | None
    ) -> list[tuple[Example, str]]:
        del shots, chain_of_thought, seed, limit
        raise TaskError(f"{self.name}: a run keeps no prompts of its task; load the task from its file")


def stored_tasks(items: Items) -> tuple[Task, ...]:
    """The tasks that items come from, as far as the items know; none where they are of no published task."""
    leaves: dict[str | None, list[Task]] = {}
    for name, known in items.about.items():
        facts = {key: known[key] for key in _SCORING if key in known}
        leaf = StoredTask(name, Path(), metrics=tuple(known.get("metrics", ())), **facts)
        leaves.setdefault(known.get("within"), []).append(leaf)
    alone = leaves.pop(None, [])
    return (*alone, *(StoredTask(str(name), Path(), subtasks=tuple(of)) for name, of in leaves.items()))

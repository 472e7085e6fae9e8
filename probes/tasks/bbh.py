"""BIG-Bench Hard (arXiv 2210.09261): questions, published prompts with three worked examples, and choices."""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from probes.tasks.extraction import extract_answer
from probes.tasks.reading import Fields, kind_of, read_object
from probes.tasks.task import Example, Task, TaskError

if TYPE_CHECKING:
    from pathlib import Path

THINK: Final = "Let's think step by step."
PUBLISHED_SHOTS: Final = 3
# Without a list of options, so few different targets, each of them more than once, are a closed set.
_CLOSED_SET: Final = 6
_SHOWN: Final = 3

_OPTIONS = re.compile(r"^\s*Options:[ \t]*$", re.MULTILINE)
_LETTERED = re.compile(r"^\(([A-Z])\)(?=[ \t]|$)", re.MULTILINE)
_DASHED = re.compile(r"^-[ \t]+(.+?)[ \t]*$", re.MULTILINE)
_QUESTION = re.compile(r"^Q: ", re.MULTILINE)


@dataclass(frozen=True)
class Exemplar:
    """A worked example of a published prompt.

    Attributes:
        question: Its question.
        reasoning: The published answer, reasoning included, from "Let's think step by step." on.
        answer: What the reasoning ends in.
    """

    question: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class BbhTask(Task):
    """A file of BIG-Bench Hard.

    Attributes:
        exemplars: Worked examples of its published prompt.
        prompt_path: Where that prompt was looked for.
    """

    exemplars: tuple[Exemplar, ...] = field(default=(), repr=False)
    prompt_path: Path | None = None

    def _prompts(
        self, shots: int | None, chain_of_thought: bool, seed: int, limit: int | None
    ) -> list[tuple[Example, str]]:
        wanted = PUBLISHED_SHOTS if shots is None else shots
        if wanted > len(self.exemplars):
            if not self.exemplars:
                raise TaskError(
                    f"{self.name}: its worked examples are not in {self.prompt_path}; put the published "
                    "cot-prompts folder there, or ask for 0 shots"
                )
            raise TaskError(
                f"{self.name}: {wanted} shots were asked for, and {len(self.exemplars)} worked examples are published"
            )
        # The released answer-only prompts have the first paragraph alone, as far as there are several (snarks).
        head = self.description if chain_of_thought else self.description.partition("\n\n")[0]
        blocks = [head] if head else []
        for worked in self.exemplars[:wanted]:
            blocks.append(f"Q: {worked.question}\nA: {worked.reasoning if chain_of_thought else worked.answer}")
        start = "\n\n".join([*blocks, "Q: "])
        end = f"\nA: {THINK}" if chain_of_thought else "\nA:"
        asked = [self.examples[row] for row in self._draw(seed, limit)]
        return [(example, start + example.prompt + end) for example in asked]


def read_bbh(path: Path, name: str, prompt_path: Path | None = None) -> BbhTask:
    """A task from its JSON file and its published prompt.

    Args:
        path: ``bbh/<task>.json``.
        name: Name of the task, such as ``bbh/navigate``.
        prompt_path: ``cot-prompts/<task>.txt``; searched beside the file and one folder above if not given. Without
            it only prompts without worked examples can be made.

    Raises:
        TaskError: A file is not as published; the message names the file and the field.
    """
    rows, repeated = _rows(Fields(read_object(path), path))
    if prompt_path is None:
        near = [folder / "cot-prompts" / f"{path.stem}.txt" for folder in (path.parent.parent, path.parent)]
        prompt_path = next((found for found in near if found.is_file()), near[0])
    description, exemplars = _read_prompt(prompt_path) if prompt_path.is_file() else ("", ())
    examples, notes = _with_choices(rows)
    if repeated:
        notes.append(f"{repeated} questions are there more than once; all are kept, as published")
    if description and len(exemplars) != PUBLISHED_SHOTS:
        notes.append(f"{prompt_path} has {len(exemplars)} worked examples; {PUBLISHED_SHOTS} are published")
    return BbhTask(
        name=name,
        path=path,
        description=description,
        metrics=("exact_match",),
        preferred_score="exact_match",
        examples=examples,
        notes=tuple(notes),
        exemplars=exemplars,
        prompt_path=prompt_path,
    )


def _rows(fields: Fields) -> tuple[list[tuple[str, str]], int]:
    """Inputs and targets, and how many are repeated."""
    rows = []
    for number, raw in enumerate(fields.required("examples", list)):
        at = f"examples[{number}]"
        if not isinstance(raw, dict):
            raise fields.error(at, f"is {kind_of(raw)}; it must be an object")
        example = Fields(raw, fields.where, at)
        target = str(example.required("target", str)).strip()
        if not target:
            raise example.error("target", "is empty; give it a text")
        rows.append((str(example.required("input", str)), target))
    if not rows:
        raise fields.error("examples", "is empty; a task needs one example at least")
    return rows, len(rows) - len(set(rows))


def options_of(question: str) -> tuple[str, ...]:
    """The answers that a question lists behind "Options:": its letters such as "(A)", or texts behind dashes."""
    starts = list(_OPTIONS.finditer(question))
    if not starts:
        return ()
    listed = question[starts[-1].end() :]
    if letters := _LETTERED.findall(listed):
        return tuple(f"({letter})" for letter in dict.fromkeys(letters))
    return tuple(dict.fromkeys(_DASHED.findall(listed)))


def _with_choices(rows: list[tuple[str, str]]) -> tuple[tuple[Example, ...], list[str]]:
    """Examples with what can be chosen, and notes on targets that cannot."""
    listed = [options_of(question) for question, _ in rows]
    if any(listed):
        choices = listed
    else:
        counts = Counter(target for _, target in rows)
        closed = 1 < len(counts) <= _CLOSED_SET and min(counts.values()) > 1 and not any(map(_is_number, counts))
        choices = [tuple(sorted(counts)) if closed else ()] * len(rows)
    notes = []
    # A question that lists no options is no free text where others do, and one option (the file breaks off there) is
    # no choice: whatever the model says would be right.
    several = {choice for own in choices if len(own) > 1 for choice in own}
    for count, listing in ((0, "no options"), (1, "one option only")):
        if several and (short := sum(len(own) == count for own in choices)):
            notes.append(f"{short} questions list {listing}; they have those of the others")
    if several:
        choices = [own if len(own) > 1 else tuple(sorted({*several, *own})) for own in choices]
    gaps = sum(own[0] == "(A)" and own != _letters(len(own)) for own in choices if own)
    if gaps:
        notes.append(f"{gaps} questions list letters with gaps")
    examples = tuple(
        Example(
            number=number,
            input=question,
            prompt=question,
            targets=(target,),
            choices=own,
            choice_scores=tuple(float(choice == target) for choice in own),
        )
        for number, ((question, target), own) in enumerate(zip(rows, choices, strict=True))
    )
    off = [one.targets[0] for one in examples if one.choices and one.targets[0] not in one.choices]
    if off:
        texts = ", ".join(repr(text) for text in off[:_SHOWN]) + (", ..." if len(off) > _SHOWN else "")
        notes.append(
            f"{len(off)} of {len(examples)} targets are none of the options of their question ({texts}); no choice "
            "is right there, as under exact match"
        )
    return examples, notes


def _letters(count: int) -> tuple[str, ...]:
    return tuple(f"({letter})" for letter in string.ascii_uppercase[:count])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+([.,]\d+)*", text) is not None


def _read_prompt(path: Path) -> tuple[str, tuple[Exemplar, ...]]:
    """Description and worked examples of a published prompt; what stands above its line of dashes is left out."""
    try:
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read ({error}); put the published prompt there") from None
    head = re.search(r"^-----[ \t]*$", text, re.MULTILINE)
    body = text[head.end() :] if head else text
    starts = [found.start() for found in _QUESTION.finditer(body)]
    if not starts:
        raise TaskError(f"{path}: has no line that starts with 'Q: '; it is not a published prompt")
    blocks = [body[start:end] for start, end in zip(starts, [*starts[1:], len(body)], strict=True)]
    return body[: starts[0]].strip(), tuple(_exemplar(path, number, block) for number, block in enumerate(blocks, 1))


def _exemplar(path: Path, number: int, block: str) -> Exemplar:
    question, found, reasoning = block.strip().removeprefix("Q: ").partition("\nA: ")
    answer = extract_answer(reasoning)
    if not found or answer is None:
        lacks = "'the answer is'" if found else "a line that starts with 'A: '"
        raise TaskError(f"{path}: worked example {number} lacks {lacks}; it is not a published prompt")
    return Exemplar(question.strip(), reasoning, answer)

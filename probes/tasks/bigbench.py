"""JSON tasks of BIG-bench (arXiv 2206.04615), with the schema, defaults and random draws of its package 1.0.0."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probes.tasks.extraction import regex_fault
from probes.tasks.names import CALIBRATION, GENERATIVE, MULTIPLE_CHOICE, SCORE_RANGES, SCORING
from probes.tasks.reading import Fields, kind_of, read_object
from probes.tasks.task import PUBLISHED_SEED, Example, Task, TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_REGEX: Final = r"[^\.\?\!\;\n]+"
_KNOWN: Final = frozenset(
    [
        "canary",
        "name",
        "description",
        "keywords",
        "metrics",
        "examples",
        "preferred_score",
        "subtasks",
        "example_input_prefix",
        "example_output_prefix",
        "choice_prefix",
        "append_choices_to_input",
        "few_shot_example_separator",
        "task_prefix",
        "stop_string",
        "output_regex",
        "absolute_normalization",
    ]
)


@dataclass(frozen=True)
class BigBenchTask(Task):
    """A JSON task of BIG-bench.

    Attributes:
        task_prefix: Text in front of every prompt.
        separator: Text between worked examples.
        twins: For every example, the first one that reads the same once it is a prompt ``[example]``. A question is
            never shown among its own worked examples.
    """

    task_prefix: str = ""
    separator: str = "\n"
    twins: tuple[int, ...] = field(default=(), repr=False)

    def _prompts(
        self, shots: int | None, chain_of_thought: bool, seed: int, limit: int | None
    ) -> list[tuple[Example, str]]:
        if chain_of_thought:
            raise TaskError(f"{self.name}: BIG-bench publishes no chains of thought; leave chain_of_thought off")
        if not shots:
            asked = self._draw(seed, limit)
            return [(self.examples[row], self.task_prefix + self.examples[row].prompt) for row in asked]
        total = len(self.examples)
        if total < shots + 1:
            raise TaskError(f"{self.name}: {shots} shots need {shots + 1} different examples, and it has {total}")
        rng = np.random.RandomState(seed)  # the published generator
        # The published order of questions is drawn; it decides which worked examples each of them gets.
        drawn = rng.choice(total, min(limit or total, total), replace=False).tolist()
        twins = np.array(self.twins)
        prompts = {}
        for row in drawn:
            others = np.flatnonzero(twins != twins[row])
            if len(others) < shots:
                raise TaskError(f"{self.name}: {shots} shots for example {row}, and only {len(others)} others differ")
            shown = [self.examples[other] for other in others[rng.choice(len(others), shots, replace=False)]]
            worked = [example.prompt + example.targets[rng.choice(len(example.targets))] for example in shown]
            prompts[row] = self.task_prefix + self.separator.join([*worked, self.examples[row].prompt])
        return [(self.examples[row], prompts[row]) for row in sorted(prompts)]


def read_bigbench(path: Path, name: str) -> BigBenchTask:
    """A task from its ``task.json``; without examples of its own, its subtasks are the folders beside the file.

    Args:
        path: The file.
        name: Name of the task, such as ``bigbench/known_unknowns``.

    Raises:
        TaskError: The file is not a task; the message names the file and the field.
    """
    data = read_object(path)
    if "examples" in data:
        if data.get("subtasks"):
            raise TaskError(f"{path}: has both 'examples' and 'subtasks'; a task has one of them")
        return _leaf(Fields(data, path), name)
    fields = Fields(data, path)
    _header(fields)
    files = sorted(found for found in path.parent.glob("*/task.json") if found.is_file())
    if files:
        subtasks = [read_bigbench(found, f"{name}/{found.parent.name}") for found in files]
    else:
        if "subtasks" not in data:
            raise fields.error("examples", "is missing, and so are folders with subtasks; a task has one of them")
        subtasks = [
            _inline(value, fields, f"subtasks[{position}]", name)
            for position, value in enumerate(fields.required("subtasks", list))
        ]
    return _container(fields, name, subtasks)


def _inline(value: Any, parent: Fields, at: str, name: str) -> BigBenchTask:
    """A subtask that is written inside the file of its parent."""
    at = parent.name(at)
    if not isinstance(value, dict):
        raise TaskError(f"{parent.where}: the field {at!r} is {kind_of(value)}; it must be an object")
    fields = Fields(value, parent.where, at)
    title = str(fields.required("name", str))
    name = f"{name}/{re.sub(r'[^A-Za-z0-9_.-]+', '_', title).strip('_') or at}"
    if not value.get("subtasks"):
        return _leaf(fields, name)
    _header(fields)
    below = [_inline(one, fields, f"subtasks[{i}]", name) for i, one in enumerate(fields.required("subtasks", list))]
    return _container(fields, name, below)


def _container(fields: Fields, name: str, subtasks: list[BigBenchTask]) -> BigBenchTask:
    if not subtasks:
        raise fields.error("subtasks", "is empty; a task has examples or subtasks")
    names = [task.name for task in subtasks]
    if again := [one for one in names if names.count(one) > 1]:
        raise fields.error("subtasks", f"has {again[0]!r} twice; names of subtasks must differ")
    grade = all(task.preferred_score == "multiple_choice_grade" for task in subtasks)
    return BigBenchTask(
        name=name,
        path=fields.where,
        description=fields.required("description", str),
        keywords=fields.texts("keywords"),
        metrics=tuple(dict.fromkeys(metric for task in subtasks for metric in task.metrics)),
        preferred_score="multiple_choice_grade" if grade else "normalized_aggregate_score",
        low_score=fmean(task.low_score for task in subtasks) if grade else 0.0,
        high_score=1.0 if grade else 100.0,
        subtasks=tuple(subtasks),
    )


def _header(fields: Fields) -> None:
    for key in ("name", "description"):
        fields.required(key, str)
    fields.required("canary", object)
    fields.texts("keywords")


def _leaf(fields: Fields, name: str) -> BigBenchTask:
    _header(fields)
    metrics = tuple(dict.fromkeys(fields.texts("metrics")))
    for position, metric in enumerate(metrics):
        if metric not in (*GENERATIVE, *MULTIPLE_CHOICE, *SCORING):
            known = ", ".join((*MULTIPLE_CHOICE, *GENERATIVE, *SCORING))
            raise fields.error(f"metrics[{position}]", f"is {metric!r}, which is no metric of BIG-bench; use {known}")
    if "multiple_choice_grade" in metrics:
        metrics = tuple(dict.fromkeys((*metrics, *CALIBRATION)))
    rows, repeated = _distinct(fields)
    style = _Style(
        input_prefix=fields.text("example_input_prefix", "\nQ: "),
        output_prefix=fields.text("example_output_prefix", "\nA: "),
        choice_prefix=fields.text("choice_prefix", "\n  choice: "),
        listed=_lists_choices(fields),
        needs_choices=any(metric in MULTIPLE_CHOICE for metric in metrics),
        needs_target=any(metric in (*GENERATIVE, *SCORING) for metric in metrics),
    )
    examples = [
        _example(Fields(raw, fields.where, fields.name(f"examples[{number}]")), number, style) for number, raw in rows
    ]
    preferred, low, high = _range(fields, rows)
    regex, stop = fields.text_or_none("output_regex"), fields.text_or_none("stop_string")
    if regex is None and stop is None:
        regex = DEFAULT_REGEX
    if regex is not None:
        _check_regex(fields, regex)
    ignored = sorted(fields.data.keys() - _KNOWN)
    empty = sum("" in example.choices or not any(example.targets) for example in examples)
    alone = sum(len(example.choices) == 1 for example in examples)
    listed = fields.data.get("append_choices_to_input", True)
    notes = [
        f"{repeated} repeated examples are left out, as published" if repeated else "",
        f"{empty} examples have an empty choice or target, which no model can be asked for; items leave them out"
        if empty
        else "",
        f"{alone} examples have one choice, which is always right, as published" if alone else "",
        f"append_choices_to_input is the text {listed!r}; the published code takes every text as true"
        if isinstance(listed, str)
        else "",
        f"fields that BIG-bench does not use either: {', '.join(ignored)}" if ignored else "",
    ]
    return BigBenchTask(
        name=name,
        path=fields.where,
        description=fields.required("description", str),
        keywords=fields.texts("keywords"),
        metrics=metrics,
        preferred_score=preferred,
        low_score=low,
        high_score=high,
        examples=tuple(examples),
        notes=tuple(filter(None, notes)),
        stop_string=stop,
        output_regex=regex,
        absolute_normalization=fields.flag("absolute_normalization", False),
        task_prefix=str(fields.data.get("task_prefix", "")),
        separator=fields.text("few_shot_example_separator", "\n"),
        twins=_twins(examples, [raw for _, raw in rows]),
    )


def _lists_choices(fields: Fields) -> bool:
    """Whether prompts list the choices; six published tasks say "false", a text, which their code takes as true."""
    if fields.data.get("append_choices_to_input") in ("true", "false"):
        return True
    return fields.flag("append_choices_to_input", True)


def _check_regex(fields: Fields, regex: str) -> None:
    if (fault := regex_fault(regex)) is not None:
        raise fields.error("output_regex", fault)


def _distinct(fields: Fields) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Examples with their positions, those left out that were there before, and how many that are."""
    seen: set[str] = set()
    kept = []
    for number, raw in enumerate(listed := fields.required("examples", list)):
        if not isinstance(raw, dict):
            raise fields.error(f"examples[{number}]", f"is {kind_of(raw)}; it must be an object")
        if (text := json.dumps(raw)) not in seen:
            seen.add(text)
            kept.append((number, raw))
    if not kept:
        raise fields.error("examples", "is empty; a task needs one example at least")
    return kept, len(listed) - len(kept)


@dataclass(frozen=True)
class _Style:
    """How the examples of a task are written, and what they must have."""

    input_prefix: str
    output_prefix: str
    choice_prefix: str
    listed: bool
    needs_choices: bool
    needs_target: bool


def _example(fields: Fields, number: int, style: _Style) -> Example:
    """An example, checked and written as a prompt."""
    text = str(fields.required("input", str))
    scores = _scores(fields)
    if scores is None and style.needs_choices:
        raise fields.error("target_scores", "is missing; a metric of multiple choice requires it")
    if "target" not in fields.data and (scores is None or style.needs_target):
        needed = "an example has it or target_scores" if scores is None else "a metric of generated text requires it"
        raise fields.error("target", f"is missing; {needed}")
    targets = _targets(fields) if "target" in fields.data else [_best(fields, scores or {})]
    listing = ""
    if scores and style.listed:
        # One generator an example, so that examples with the same choices list them in the same order.
        rng = np.random.RandomState(PUBLISHED_SEED)  # the published generator
        ordered = sorted(scores)
        listing = "".join(style.choice_prefix + ordered[i] for i in rng.permutation(len(ordered)))
    prompt = style.input_prefix + text + listing + style.output_prefix
    return Example(
        number=number,
        input=text,
        prompt=prompt,
        targets=tuple(targets),
        choices=tuple(scores or ()) if style.needs_choices else (),
        choice_scores=tuple((scores or {}).values()) if style.needs_choices else (),
    )


def _targets(fields: Fields) -> list[str]:
    value = fields.data["target"]
    targets = value if isinstance(value, list) else [value]
    if not targets:
        raise fields.error("target", "is an empty list; name one accepted text at least")
    for target in targets:
        if not isinstance(target, str):
            raise fields.error("target", f"holds {kind_of(target)}; it must be a text or a list of texts")
    return targets


def _scores(fields: Fields) -> dict[str, float] | None:
    if "target_scores" not in fields.data:
        return None
    scores = fields.required("target_scores", dict)
    if not scores:
        raise fields.error("target_scores", "is empty; name the choices and their scores")
    for choice, score in scores.items():
        if isinstance(score, str) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise fields.error(f"target_scores[{choice!r}]", f"is {score!r}; it must be a finite number")
    return {choice: float(score) for choice, score in scores.items()}


def _best(fields: Fields, scores: Mapping[str, float]) -> str:
    """The first choice with the highest score."""
    high, low = max(scores.values()), min(scores.values())
    if (len(scores) == 1 and high == 0) or (len(scores) > 1 and high <= low):
        raise fields.error("target_scores", f"gives every choice the score {high:g}; one must be better than others")
    return next(choice for choice, score in scores.items() if score == high)


def _range(fields: Fields, rows: list[tuple[int, dict[str, Any]]]) -> tuple[str, float, float]:
    """The preferred score, its value at chance and its highest value."""
    preferred = str(fields.required("preferred_score", str))
    if preferred not in SCORE_RANGES:
        problem = f"is {preferred!r}; it must be one of {', '.join(SCORE_RANGES)}"
        raise fields.error("preferred_score", problem)
    low, high = SCORE_RANGES[preferred]
    if preferred == "multiple_choice_grade":
        for number, raw in rows:
            if "target_scores" not in raw:
                raise fields.error(f"examples[{number}].target_scores", "is missing; the preferred score requires it")
        low = fmean(fmean(raw["target_scores"].values()) for _, raw in rows)
    if high <= low:
        raise fields.error("preferred_score", f"ranges from {low:g} to {high:g}; the scores of choices are too high")
    return preferred, low, high


def _twins(examples: list[Example], raws: list[dict[str, Any]]) -> tuple[int, ...]:
    """For every example the first one that is equal to it once both are prompts."""
    times = Counter(example.prompt for example in examples)
    seen: dict[Any, int] = {}
    found = []
    for row, (example, raw) in enumerate(zip(examples, raws, strict=True)):
        # Only examples with one and the same prompt can be equal; few tasks have such.
        alone = times[example.prompt] == 1
        key = row if alone else _frozen({**raw, "input": example.prompt, "target": list(example.targets)})
        found.append(seen.setdefault(key, row))
    return tuple(found)


def _frozen(value: Any) -> Any:
    """A hashable copy of a JSON value, equal where the values are."""
    if isinstance(value, dict):
        return tuple((key, _frozen(one)) for key, one in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

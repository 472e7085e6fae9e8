"""Scores of a model on tasks, as tidy tables: from generated texts, or from the log-probabilities of choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from probes.tasks import metrics as choice_metrics
from probes.tasks.bigbench import DEFAULT_REGEX
from probes.tasks.extraction import Extract, answer_of, postprocess, regex_fault
from probes.tasks.names import BBH_FILES, SCORE_RANGES
from probes.tasks.results import TaskScore, aggregate, bbh_average, normalized
from probes.tasks.task import Task, TaskError
from probes.tasks.text_metrics import TEXT_METRICS, MissingLibrary

if TYPE_CHECKING:
    import pandas as pd

    from probes.items import Item, Items

_COLUMNS: Final = (
    "task", "metric", "value", "low", "high", "normalized", "preferred", "n_items", "n_missing", "n_tasks", "note"
)  # fmt: skip
_CHOICE: Final[Mapping[str, Callable[..., float]]] = {
    "multiple_choice_grade": choice_metrics.multiple_choice_grade,
    "calibration_multiple_choice_brier_score": choice_metrics.brier,
    "expected_calibration_error": choice_metrics.ece,
    "weighted_log_probabilities": choice_metrics.weighted_log_probabilities,
    "weighted_probabilities": choice_metrics.weighted_probabilities,
    "log_likelihood": choice_metrics.log_likelihood,
}
_CHOICE_DEFAULT: Final = (
    "multiple_choice_grade", "calibration_multiple_choice_brier_score", "expected_calibration_error"
)  # fmt: skip


def answers(
    items: Items,
    texts: Mapping[str, str] | Sequence[str],
    tasks: Task | Sequence[Task] = (),
    extract: Extract | None = None,
) -> dict[str, str]:
    """The answer in each generated text, by item id.

    Items of ``bbh/...`` are read by :func:`~probes.tasks.extraction.answer_of`, those of BIG-bench by the stop string
    and expression of their task, the published default if the task is not given.

    Args:
        items: The items that were asked.
        texts: What was generated, by item id, or one an item in their order.
        tasks: The tasks that they come from.
        extract: Instead of these rules, a regular expression, of which the first match counts, or its group if it has
            one, and nothing where there is no match; or a function from a text to its answer.

    Raises:
        TaskError: There is a text for no item, or another number of texts; the expression cannot be used.
    """
    leaves, answer = _leaves(tasks), _extractor(extract)
    given = _given(items, texts, "text")
    return {item.id: answer(item, text, leaves.get(item.criterion)) for item, text in given if text}


def score_texts(
    items: Items,
    texts: Mapping[str, str | None] | Sequence[str | None],
    metrics: Sequence[str] | None = None,
    tasks: Task | Sequence[Task] = (),
    extract: Extract | None = None,
) -> pd.DataFrame:
    """Scores of generated texts.

    Args:
        items: The items that were asked.
        texts: What was generated, by item id, or one an item in their order. Items without a text are left out and
            counted in ``n_missing``.
        metrics: Names of metrics; those of the tasks if not given, else exact match.
        tasks: The tasks that the items come from: they know accepted texts, metrics, stop string and ranges.
        extract: How answers are taken out of texts, instead of by the rules of the suite; see :func:`answers`.

    Returns:
        One row a task and metric, then rows of tasks with subtasks, of BIG-bench (mean of normalized preferred
        scores) and of BIG-Bench Hard (mean over its 23 tasks): ``task``, ``metric``, ``value``, ``low`` and ``high``
        (at chance, at best), ``normalized`` (0 to 100 between them), ``preferred``, ``n_items``, ``n_missing``,
        ``n_tasks``, ``note``.

    Raises:
        TaskError: A metric is unknown or refused, there is a text for no item, or the expression cannot be used.
    """
    for metric in metrics or ():
        if metric not in TEXT_METRICS:
            raise TaskError(f"no metric {metric!r} of generated text; there are {', '.join(TEXT_METRICS)}")
    leaves, answer = _leaves(tasks), _extractor(extract)
    scorer = _Table(leaves, tasks)
    given = {item.id: text for item, text in _given(items, texts, "text")}
    for name, own in _by_task(items).items():
        leaf = leaves.get(name)
        there = [item for item in own if given.get(item.id) is not None]
        wanted = metrics or [one for one in (leaf.metrics if leaf else ()) if one in TEXT_METRICS] or [_exact(name)]
        if not there:
            scorer.note(name, wanted, len(own), "no texts")
            continue
        accepted = [_accepted(item, leaf) for item in there]
        found = [answer(item, str(given[item.id]), leaf) for item in there]
        for metric in wanted:
            if metric == "bleurt" and not metrics:
                scorer.note(name, [metric], len(own), "not computed: a neural model")
                continue
            try:
                value = TEXT_METRICS[metric](accepted, found)
            except MissingLibrary as error:
                if metrics:
                    raise
                scorer.note(name, [metric], len(own), f"not computed: {error}")
                continue
            each = value if isinstance(value, dict) else {metric: value}
            for key, one in each.items():
                scorer.add(name, key, one, len(there), len(own) - len(there))
    return scorer.frame()


def score_choices(
    items: Items,
    log_probs: Float[np.ndarray, " choice"],
    metrics: Sequence[str] | None = None,
    tasks: Task | Sequence[Task] = (),
) -> pd.DataFrame:
    """Scores from the log-probabilities of choices.

    Args:
        items: Items with choices and their scores.
        log_probs: Log-probability of every choice, item by item; items with a NaN are left out and counted, and so
            are those whose answer is not known.
        metrics: Names of metrics; if not given, those of the tasks that are taken from choices, else grade, Brier
            score and calibration error, and ``log_likelihood`` where the answer is free text.
        tasks: The tasks that the items come from: they know metrics and ranges.

    Returns:
        A table as :func:`score_texts` returns it.

    Raises:
        TaskError: A metric is unknown, or the number of log-probabilities differs from that of choices.
    """
    counts = np.array([len(item.choices) for item in items])
    if counts.sum() != len(log_probs):
        raise TaskError(f"{len(log_probs)} log-probabilities for {counts.sum()} choices; give one a choice")
    for metric in metrics or ():
        if metric not in _CHOICE and metric != "macro_f1":
            raise TaskError(f"no metric {metric!r} of choices; there are {', '.join([*_CHOICE, 'macro_f1'])}")
    leaves = _leaves(tasks)
    scorer = _Table(leaves, tasks)
    values = dict(
        zip(items.ids, np.split(np.asarray(log_probs, dtype=np.float64), np.cumsum(counts)[:-1]), strict=True)
    )
    for name, own in _by_task(items).items():
        # Of an item whose answer nobody knows, nothing can be said.
        known = [item for item in own if item.choice_scores and not np.isnan(item.choice_scores).any()]
        there = [item for item in known if not np.isnan(values[item.id]).any()]
        free = all(item.is_free_text for item in own)
        named = [one for one in (leaves[name].metrics if name in leaves else ()) if one in (*_CHOICE, "macro_f1")]
        wanted = metrics or (["log_likelihood"] if free else [one for one in named if one != "log_likelihood"])
        wanted = wanted or list(_CHOICE_DEFAULT)
        if not there:
            scorer.note(name, wanted, len(own), "no log-probabilities")
            continue
        rows = np.concatenate([values[item.id] for item in there])
        worth = np.array([score for item in there for score in item.choice_scores])
        offsets = np.concatenate([[0], np.cumsum([len(item.choices) for item in there])])
        chance = None if free else fmean(fmean(item.choice_scores) for item in known)
        alone = 0 if free else sum(len(item.choices) == 1 for item in there)
        note = f"{alone} of {len(there)} items have one choice, which is always right" if alone else ""
        # What is hashed where choices are tied; see ``chosen``.
        absolute = name in leaves and leaves[name].absolute_normalization
        among = rows if absolute else choice_metrics.normalize(rows, offsets)
        for metric in wanted:
            if metric == "macro_f1":
                labels = [choice for item in there for choice in item.choices]
                value = choice_metrics.macro_f1(among, worth, offsets, labels)
            else:
                value = _CHOICE[metric](among if metric == "multiple_choice_grade" else rows, worth, offsets)
            scorer.add(name, metric, value, len(there), len(own) - len(there), chance, note)
    return scorer.frame()


class _Table:
    """Rows of a table of scores, and the averages below them."""

    def __init__(self, leaves: Mapping[str, Task], tasks: Task | Sequence[Task]) -> None:
        self.leaves = leaves
        self.titles = dict.fromkeys(task.name for task in _listed(tasks) if task.subtasks)
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        metric: str,
        value: float,
        n_items: int,
        n_missing: int,
        chance: float | None = None,
        note: str = "",
    ) -> None:
        leaf = self.leaves.get(name)
        low, high = SCORE_RANGES.get(metric, (0.0, 1.0))
        if leaf is not None and metric == leaf.preferred_score:
            low, high = leaf.low_score, leaf.high_score
        elif metric == "multiple_choice_grade" and chance is not None:
            low = chance
        preferred = metric == leaf.preferred_score if leaf else None
        if name.startswith("bbh/") and metric == "multiple_choice_grade":
            preferred = True  # accuracy, as exact match
        counts = {"n_items": n_items, "n_missing": n_missing}
        self._append(name, metric, value, low, high, preferred=preferred, note=note, **counts)

    def note(self, name: str, metrics: Iterable[str], n_missing: int, note: str) -> None:
        for metric in metrics:
            self._append(name, metric, np.nan, np.nan, np.nan, n_items=0, n_missing=n_missing, note=note)

    def frame(self) -> pd.DataFrame:
        import pandas as pd

        leaves = [row for row in self.rows if row["n_items"]]
        self._average_subtasks(leaves)
        self._average_bbh(leaves)
        self._average_bigbench()
        return pd.DataFrame(self.rows, columns=list(_COLUMNS))

    def _append(self, name: str, metric: str, value: float, low: float, high: float, **rest: Any) -> None:
        ranged = abs(high - low) > 0  # neither is known of an average
        row = {"n_tasks": 1, "note": "", "preferred": None, **rest}
        scaled = normalized(value, low, high) if ranged else np.nan
        self.rows.append(
            {"task": name, "metric": metric, "value": value, "low": low, "high": high, "normalized": scaled, **row}
        )

    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> list[TaskScore]:
        """Scores of the tasks whose preferred metric was computed."""
        found = []
        for name in dict.fromkeys(row["task"] for row in rows):
            own = [row for row in rows if row["task"] == name]
            best = next((row for row in own if row["preferred"]), None)
            if best is not None:
                values = {row["metric"]: row["value"] for row in own}
                found.append(TaskScore(name, values, best["metric"], best["low"], best["high"]))
        return found

    def _average_subtasks(self, leaves: Sequence[Mapping[str, Any]]) -> None:
        scores = self._scores(leaves)
        for title in self.titles:
            own = [score for score in scores if score.task.startswith(f"{title}/")]
            if not own:
                continue
            whole = aggregate(title, own)
            below = [row for row in leaves if row["task"].startswith(f"{title}/")]
            for metric, value in whole.values.items():
                preferred = metric == whole.preferred_score
                low, high = (whole.low_score, whole.high_score) if preferred else SCORE_RANGES.get(metric, (0.0, 100.0))
                n_items = sum({row["task"]: row["n_items"] for row in below}.values())
                n_missing = sum({row["task"]: row["n_missing"] for row in below}.values())
                self._append(
                    title, metric, value, low, high, preferred=preferred, n_items=n_items, n_missing=n_missing,
                    n_tasks=len(own), note="mean over subtasks",
                )  # fmt: skip

    def _average_bbh(self, leaves: Sequence[Mapping[str, Any]]) -> None:
        files = {f"bbh/{file}" for file in BBH_FILES}
        own = [row for row in leaves if row["task"] in files]
        for metric in dict.fromkeys(row["metric"] for row in own):
            rows = [row for row in own if row["metric"] == metric]
            found = bbh_average({row["task"]: row["value"] for row in rows})
            note = f"mean over {found.n_tasks} of 23 tasks ({found.n_files} of 27 files)"
            self._append(
                "bbh", metric, found.value, np.nan, np.nan, n_items=sum(row["n_items"] for row in rows),
                n_missing=sum(row["n_missing"] for row in rows), n_tasks=found.n_tasks, note=note,
            )  # fmt: skip

    def _average_bigbench(self) -> None:
        """Mean normalized preferred score over tasks, those with subtasks counting once."""
        own = [row for row in self.rows if row["task"].startswith("bigbench/") and row["preferred"]]
        top = [row for row in own if not any(row["task"].startswith(f"{title}/") for title in self.titles)]
        if len(top) > 1:
            self._append(
                "bigbench", "normalized_aggregate_score", fmean(row["normalized"] for row in top), 0.0, 100.0,
                n_items=sum(row["n_items"] for row in top), n_missing=sum(row["n_missing"] for row in top),
                n_tasks=len(top), note="mean over tasks",
            )  # fmt: skip


def _exact(name: str) -> str:
    return "exact_match" if name.startswith("bbh/") else "exact_str_match"


def _listed(tasks: Task | Sequence[Task]) -> list[Task]:
    return [tasks] if isinstance(tasks, Task) else list(tasks)


def _leaves(tasks: Task | Sequence[Task]) -> dict[str, Task]:
    return {leaf.name: leaf for task in _listed(tasks) for leaf in task.leaves}


def _by_task(items: Items) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.criterion, []).append(item)
    return found


def _given(items: Items, values: Mapping[str, Any] | Sequence[Any], what: str) -> list[tuple[Item, Any]]:
    if isinstance(values, Mapping):
        if unknown := [key for key in values if key not in set(items.ids)]:
            raise TaskError(f"there is a {what} for {unknown[0]!r}, which is none of the {len(items)} items")
        return [(item, values.get(item.id)) for item in items]
    if isinstance(values, str) or len(values) != len(items):
        raise TaskError(f"{len(values)} {what}s for {len(items)} items; give one an item, or a dictionary by item id")
    return list(zip(items, values, strict=True))


def _extractor(extract: Extract | None) -> Callable[[Item, str, Task | None], str]:
    """From an item, a text and its task to the answer in the text."""
    if extract is None:
        return _answer
    if not isinstance(extract, str):
        return lambda _item, text, _leaf: extract(text)
    if (fault := regex_fault(extract)) is not None:
        raise TaskError(f"extract: {extract!r} {fault}")
    return lambda _item, text, _leaf: postprocess(text, None, extract)


def _answer(item: Item, text: str, leaf: Task | None) -> str:
    if item.criterion.startswith("bbh/"):
        return answer_of(text)
    if leaf is None:
        return postprocess(text, None, DEFAULT_REGEX)
    return postprocess(text, leaf.stop_string, leaf.output_regex)


def _accepted(item: Item, leaf: Task | None) -> Sequence[str]:
    """Accepted texts: of the task if it is known, else the choices that are worth most."""
    if leaf is not None and leaf.examples:
        known = leaf.targets.get(item.id)
        if known is None:
            raise TaskError(f"item {item.id!r} is none of the task {leaf.name}; give the task that it comes from")
        return known
    best = max(item.choice_scores, default=0.0)
    return [choice for choice, score in zip(item.choices, item.choice_scores, strict=True) if score == best > 0] or [""]

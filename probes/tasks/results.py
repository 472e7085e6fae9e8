"""From scores of tasks to one score: published ranges, means over subtasks, and over the tasks of BIG-Bench Hard."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from probes.tasks.names import BBH_TASKS
from probes.tasks.task import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class TaskScore:
    """Scores of one task.

    Attributes:
        task: Its name.
        values: Value of each metric.
        preferred_score: The metric that stands for the task.
        low_score: Its value at chance.
        high_score: Its value for perfect answers.
    """

    task: str
    values: Mapping[str, float]
    preferred_score: str
    low_score: float
    high_score: float

    @property
    def normalized(self) -> float:
        """The preferred score, 0 at chance and 100 at best.

        Raises:
            TaskError: The preferred metric was not computed.
        """
        if self.preferred_score not in self.values:
            raise TaskError(f"{self.task}: its preferred score {self.preferred_score!r} was not computed")
        return normalized(self.values[self.preferred_score], self.low_score, self.high_score)


def normalized(raw: float, low: float, high: float) -> float:
    """100 (raw - low) / (high - low): 0 at chance, 100 at best, negative below chance; of errors high is below low."""
    if not abs(high - low) > 0:
        raise TaskError(f"a range from {low:g} to {high:g} is empty; the high score must differ from the low one")
    return 100 * (raw - low) / (high - low)


def aggregate(name: str, scores: Sequence[TaskScore]) -> TaskScore:
    """The score of a task from those of its subtasks (bigbench/api/results.py).

    Each metric is averaged over the subtasks that have it, and ``normalized_aggregate_score`` is the mean of the
    normalized preferred scores. If all subtasks prefer ``multiple_choice_grade``, so does the task, with the mean of
    their chance levels; otherwise it prefers the normalized score, 0 to 100. One subtask keeps its own preference if
    it bears the name of the task.

    Args:
        name: Name of the task.
        scores: Of its subtasks.

    Raises:
        TaskError: There are none, or one lacks its preferred score.
    """
    if not scores:
        raise TaskError(f"{name}: there are no scores of subtasks to average")
    metrics = dict.fromkeys(metric for score in scores for metric in score.values)
    values = {metric: fmean(one.values[metric] for one in scores if metric in one.values) for metric in metrics}
    values["normalized_aggregate_score"] = fmean(score.normalized for score in scores)
    if all(score.preferred_score == "multiple_choice_grade" for score in scores):
        return TaskScore(name, values, "multiple_choice_grade", fmean(one.low_score for one in scores), 1.0)
    if len(scores) == 1 and scores[0].task == name:
        return TaskScore(name, values, scores[0].preferred_score, scores[0].low_score, scores[0].high_score)
    return TaskScore(name, values, "normalized_aggregate_score", 0.0, 100.0)


class BbhAverage(NamedTuple):
    """Mean over tasks of BIG-Bench Hard: how many of the 23 tasks and of the 27 files it is over."""

    value: float
    n_tasks: int
    n_files: int


def bbh_average(values: Mapping[str, float]) -> BbhAverage:
    """Mean over the 23 tasks of BIG-Bench Hard, of which two are the mean over their three files each.

    Args:
        values: Value of each file by its name, with or without ``bbh/`` in front.

    Raises:
        TaskError: None is a task of BIG-Bench Hard, or one is not.
    """
    by_file = {name.removeprefix("bbh/"): value for name, value in values.items()}
    known = {file: task for task, files in BBH_TASKS.items() for file in files}
    if unknown := sorted(by_file.keys() - known.keys()):
        raise TaskError(f"{unknown[0]!r} is no file of BIG-Bench Hard; it has {', '.join(known)}")
    if not by_file:
        raise TaskError("there are no values to average")
    tasks: dict[str, list[float]] = {}
    for file, value in by_file.items():
        tasks.setdefault(known[file], []).append(value)
    return BbhAverage(fmean(map(fmean, tasks.values())), len(tasks), len(by_file))

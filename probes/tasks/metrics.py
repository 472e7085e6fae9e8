"""Metrics of multiple choice as BIG-bench computes them (bigbench/api/task_metrics.py, version 1.0.0).

Choices of items are ragged: those of item ``i`` are the values ``offsets[i]`` to ``offsets[i + 1]``. ``log_probs``
are natural logarithms of the probability of each choice, ``scores`` what each is worth in the task.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.tasks.task import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

ECE_BUCKETS: Final = 15
# A sum of probabilities whose logarithm is not further from 0 is 1.
_ROUNDING: Final = 1e-9

_Choices = Float[np.ndarray, " choice"]
_Offsets = Int[np.ndarray, " item+1"]
_Items = Float[np.ndarray, " item"]


def normalize(log_probs: _Choices, offsets: _Offsets) -> _Choices:
    """Log-probabilities among the choices of each item: they sum to 1, as a task without absolute_normalization has.

    What sums to 1 already stays as it is, to the last bit, and so does an item whose choices are all impossible.
    """
    log_probs, starts, counts = _ragged(log_probs, offsets)
    highest = np.maximum.reduceat(log_probs, starts)
    shift = np.where(np.isfinite(highest), highest, 0.0)
    total = np.add.reduceat(np.exp(log_probs - np.repeat(shift, counts)), starts)
    whole = shift + np.log(total, out=np.zeros(len(total)), where=total > 0)
    return np.asarray(log_probs - np.repeat(np.where(np.abs(whole) > _ROUNDING, whole, 0.0), counts))


def chosen(log_probs: _Choices, offsets: _Offsets) -> Int[np.ndarray, " item"]:
    """Row of the most probable choice of each item.

    A tie is broken as published: by the SHA-256 of the item's float64 values as they are passed, among those that are
    tied. The published code passes what ``normalize`` gives, and so does ``score_choices``.
    """
    log_probs, starts, counts = _ragged(log_probs, offsets)
    best = log_probs == np.repeat(np.maximum.reduceat(log_probs, starts), counts)
    ties = np.add.reduceat(best.astype(np.int64), starts)
    rows = _first(best, starts)
    for item in np.flatnonzero(ties > 1):
        own = slice(starts[item], starts[item] + counts[item])
        digest = int(hashlib.sha256(log_probs[own].tobytes()).hexdigest(), 16)
        rows[item] = starts[item] + np.flatnonzero(best[own])[digest % int(ties[item])]
    return rows


def grade_of_items(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> _Items:
    """What the most probable choice of each item is worth."""
    return np.asarray(np.asarray(scores, dtype=np.float64)[chosen(log_probs, offsets)])


def multiple_choice_grade(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> float:
    """Mean over items of the score of the most probable choice; soft labels count in part."""
    return float(grade_of_items(log_probs, scores, offsets).mean())


def brier_of_items(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> tuple[_Items, Int[np.ndarray, " item"]]:
    """Of each item the sum over choices of t (p - 1)^2 + (1 - t) p^2, and the number of its choices.

    p is the softmax of the log-probabilities, t the scores divided by their sum (all 0 where that is 0).
    """
    log_probs, starts, counts = _ragged(log_probs, offsets)
    probs, target = np.exp(normalize(log_probs, offsets)), _targets(scores, starts, counts)
    return np.add.reduceat(target * (probs - 1) ** 2 + (1 - target) * probs**2, starts), counts


def brier(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> float:
    """Brier score averaged over choices, so that it depends on how many there are (0 is best)."""
    sums, counts = brier_of_items(log_probs, scores, offsets)
    return float(sums.sum() / counts.sum())


def calibration_of_items(
    log_probs: _Choices, scores: _Choices, offsets: _Offsets
) -> tuple[_Items, Bool[np.ndarray, " item"]]:
    """Highest probability of each item, and whether it falls on the choice with the highest score; first one wins."""
    log_probs, starts, counts = _ragged(log_probs, offsets)
    probs, target = np.exp(normalize(log_probs, offsets)), _targets(scores, starts, counts)
    confidence = np.maximum.reduceat(probs, starts)
    predicted = _first(probs == np.repeat(confidence, counts), starts)
    right = _first(target == np.repeat(np.maximum.reduceat(target, starts), counts), starts)
    return confidence, predicted == right


def ece(log_probs: _Choices, scores: _Choices, offsets: _Offsets, buckets: int = ECE_BUCKETS) -> float:
    """Expected calibration error: sum over buckets of |accuracy - mean confidence|, weighted by their share of items.

    The buckets divide 0 to 1 evenly; an item is in the first whose upper end is above its confidence.
    """
    confidence, right = calibration_of_items(log_probs, scores, offsets)
    ends = np.arange(1, buckets + 1) / buckets
    bucket = np.minimum(np.searchsorted(ends, confidence, side="right"), buckets - 1)
    gaps = np.bincount(bucket, weights=right - confidence, minlength=buckets)
    return float(np.abs(gaps).sum() / len(confidence))


def weighted_log_probabilities(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> float:
    """Mean over items of the sum of score times absolute log-probability."""
    log_probs, starts, _ = _ragged(log_probs, offsets)
    return float(np.add.reduceat(np.asarray(scores, dtype=np.float64) * log_probs, starts).mean())


def weighted_probabilities(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> float:
    """Mean over items of the sum of score times absolute probability."""
    log_probs, starts, _ = _ragged(log_probs, offsets)
    return float(np.add.reduceat(np.asarray(scores, dtype=np.float64) * np.exp(log_probs), starts).mean())


def log_likelihood_of_items(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> _Items:
    """Logarithm of the probability of all accepted texts of each item together; -inf where none is accepted."""
    log_probs, starts, counts = _ragged(log_probs, offsets)
    accepted = np.where(np.asarray(scores) > 0, log_probs, -np.inf)
    highest = np.maximum.reduceat(accepted, starts)
    shift = np.where(np.isfinite(highest), highest, 0.0)
    total = np.add.reduceat(np.exp(accepted - np.repeat(shift, counts)), starts)
    logs = np.log(total, out=np.full(len(total), -np.inf), where=total > 0)
    return np.asarray(logs + shift)


def log_likelihood(log_probs: _Choices, scores: _Choices, offsets: _Offsets) -> float:
    """Mean over items of the log-probability of the accepted texts; those of one item are added up before."""
    return float(log_likelihood_of_items(log_probs, scores, offsets).mean())


def macro_f1(log_probs: _Choices, scores: _Choices, offsets: _Offsets, labels: Sequence[str]) -> float:
    """F1 of every choice text as a class of its own, averaged without weights.

    Args:
        log_probs: As above.
        scores: Exactly one choice of each item must have 1, and they must sum to 1.
        offsets: As above.
        labels: Text of each choice ``[choice]``.

    Raises:
        TaskError: The labels are soft.
    """
    from sklearn.metrics import f1_score

    values = np.asarray(scores, dtype=np.float64)
    _, starts, _ = _ragged(log_probs, offsets)
    single = np.add.reduceat((values == 1).astype(np.int64), starts) == 1
    hard = single & (np.add.reduceat(values, starts) == 1)
    if not hard.all():
        raise TaskError(f"macro_f1 needs one choice with score 1 and no others; item {int(np.argmin(hard))} differs")
    true = [labels[row] for row in np.flatnonzero(values == 1).tolist()]
    predicted = [labels[row] for row in chosen(log_probs, offsets).tolist()]
    return float(f1_score(true, predicted, average="macro", zero_division=0.0))


def _ragged(
    log_probs: _Choices, offsets: _Offsets
) -> tuple[_Choices, Int[np.ndarray, " item"], Int[np.ndarray, " item"]]:
    """Values as float64, and start and number of the choices of each item.

    Raises:
        TaskError: There are no items, or one has no choices; or a value is NaN.
    """
    values, ends = np.asarray(log_probs, dtype=np.float64), np.asarray(offsets, dtype=np.int64)
    counts = np.diff(ends)
    if not len(counts) or counts.min() < 1:
        raise TaskError("every item needs one choice at least, and there must be items")
    if ends[0] != 0 or ends[-1] != len(values):
        raise TaskError(f"the offsets run from {ends[0]} to {ends[-1]}, and there are {len(values)} choices")
    if np.isnan(values).any():
        item = int(np.searchsorted(ends, np.flatnonzero(np.isnan(values))[0], side="right")) - 1
        raise TaskError(f"item {item} has a choice without log-probability; leave the item out")
    return values, ends[:-1], counts


def _targets(scores: _Choices, starts: Int[np.ndarray, " item"], counts: Int[np.ndarray, " item"]) -> _Choices:
    """Scores divided by their sum over the item; 0 where that is 0."""
    values = np.asarray(scores, dtype=np.float64)
    total = np.repeat(np.add.reduceat(values, starts), counts)
    return np.asarray(np.divide(values, total, out=np.zeros(len(values)), where=total != 0))


def _first(marked: Bool[np.ndarray, " choice"], starts: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """Row of the first marked choice of each item."""
    rows = np.where(marked, np.arange(len(marked)), len(marked))
    return np.asarray(np.minimum.reduceat(rows, starts))

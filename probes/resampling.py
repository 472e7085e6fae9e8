"""All agreement metrics but Spearman on resamples, given by how often each item was drawn.

The metrics are those of ``probes.align``, as if every item were repeated as often as its group was drawn, at the cost
of a few matrix products. (``probes.align.weighted_spearman`` does it for ranks, which change with every resample.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from probes.align import MIN_PAIRS, nearest_label, tie_starts
from probes.fitting.threads import one_blas_thread
from probes.intervals import Interval, interval, positive_interval, share_interval
from probes.protocol import Folds, group_resamples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

METRICS: Final = ("pearson", "kendall", "pairwise_accuracy", "mae", "qwk")

_SCALES: Final[Mapping[str, Callable[[Float[np.ndarray, " resample"], int, float], Interval]]] = {
    "pairwise_accuracy": share_interval,
    "mae": positive_interval,
}
_BLOCK: Final = 3_000_000  # numbers that an array of items and resamples may hold (24 MB)
_SQUARE: Final = 256  # items of which all pairs are looked at in one matrix product
_EXACT: Final = 2**24  # whole numbers below this are exact in single precision
_CLOSE: Final = 1e-3  # share of the mean square below which a variance is better computed in two steps

_Weights = Float[np.ndarray, "item resample"]
_Resamples = Float[np.ndarray, " resample"]


def interval_of(metric: str, replicates: _Resamples, n_groups: int, level: float) -> Interval:
    """Interval of a metric on its scale: Fisher's for coefficients and QWK, log odds for shares, logarithms for MAE."""
    return _SCALES.get(metric, interval)(replicates, n_groups, level)


def within_fold_agreement(
    scores: Sequence[Float[np.ndarray, "repeat item"]],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    folds: Folds,
    values: Float[np.ndarray, " label"],
    resamples: int,
    seed: int,
) -> dict[str, Float[np.ndarray, "judge resample"]]:
    """Mean over the folds of every metric of ``METRICS``, on the sample (resample 0) and on resamples of its groups.

    The resamples are those of ``probes.protocol.within_fold_spearman`` with the same seed, the same for all judges and
    repeats. Folds where a metric is undefined are left out; NaN where it is so in all.

    Args:
        scores: Out-of-fold predictions of each judge.
        y: Human scores.
        groups: What is resampled: all items of a group together.
        folds: Folds of each repeat.
        values: What the labels are worth, for QWK.
        resamples: Number of resamples.
        seed: Of the resamples.
    """
    shape = len(scores), resamples + 1
    total = {metric: np.zeros(shape) for metric in METRICS}
    count = {metric: np.zeros(shape, dtype=np.int64) for metric in METRICS}
    if scores:
        drawn, code = group_resamples(groups, resamples, seed)
        for repeat, test in folds.tests():
            in_fold = np.stack([score[repeat, test] for score in scores])
            for metric, found in weighted_agreement(in_fold, y[test], drawn[:, code[test]], values).items():
                defined = np.isfinite(found)
                total[metric] += np.where(defined, found, 0.0)
                count[metric] += defined
    return {
        metric: np.where(count[metric] > 0, total[metric] / np.maximum(count[metric], 1), np.nan) for metric in METRICS
    }


def weighted_agreement(
    scores: Float[np.ndarray, "judge item"],
    y: Float[np.ndarray, " item"],
    weights: Int[np.ndarray, "resample item"],
    values: Float[np.ndarray, " label"],
) -> dict[str, Float[np.ndarray, "judge resample"]]:
    """Every metric of ``METRICS`` of many judges in many resamples.

    With ``n`` the total weight and means weighted: Pearson, MAE and QWK are ratios of weighted moments. For Kendall and
    pairwise accuracy, ``C - D = w' S w / 2`` with ``S[i, j] = sign(x_i - x_j) sign(y_i - y_j)``, and the pairs that a
    side tells apart are ``(n^2 - sum W_g^2) / 2`` with ``W_g`` the weight of a group of ties; copies of an item are
    ties. Items with a NaN are left out per judge. NaN where the metric is undefined on the expanded resample.

    Args:
        scores: One row a judge.
        y: Human scores.
        weights: How often each item was drawn, whole numbers.
        values: What the labels are worth, for QWK.
    """
    result = {metric: np.full((len(scores), len(weights)), np.nan) for metric in METRICS}
    valid = np.isfinite(scores) & np.isfinite(y)
    patterns, pattern_of = np.unique(valid, axis=0, return_inverse=True)
    for index, mask in enumerate(patterns):
        if not mask.any():
            continue
        judges = np.flatnonzero(pattern_of.ravel() == index)
        block = max(1, _BLOCK // int(mask.sum()))
        for start in range(0, len(weights), block):
            rows = slice(start, start + block)
            by_item = np.ascontiguousarray(weights[rows][:, mask].T, dtype=np.float64)
            with one_blas_thread():
                found = _agreement(scores[np.ix_(judges, np.flatnonzero(mask))], y[mask], by_item, values)
            for metric, of_metric in found.items():
                result[metric][judges, rows] = of_metric
    return result


def _agreement(
    scores: Float[np.ndarray, "judge item"],
    y: Float[np.ndarray, " item"],
    weights: _Weights,
    values: Float[np.ndarray, " label"],
) -> dict[str, Float[np.ndarray, "judge resample"]]:
    total = weights.sum(axis=0)
    shares = weights / np.maximum(total, 1)
    squares = np.einsum("ir,ir->r", weights, weights)
    of_y = _told_apart(y, weights, total, squares)
    of_scores = np.stack([_told_apart(score, weights, total, squares) for score in scores])
    # Whole numbers all the way, so single precision is exact as long as they are small.
    light = weights.astype(np.float32 if total.max() * weights.max() < _EXACT else np.float64)
    balance = np.stack([_concordance(score, y, light) for score in scores])
    varies = (of_scores > 0) & (of_y > 0) & (total >= MIN_PAIRS)
    decided = np.broadcast_to(of_y > 0, balance.shape)
    return {
        "pearson": _pearson(scores, y, shares, varies),
        "kendall": np.clip(_ratio(balance, np.sqrt(of_scores) * np.sqrt(of_y), varies), -1, 1),
        "pairwise_accuracy": (1 + _ratio(balance, np.broadcast_to(of_y, balance.shape), decided)) / 2,
        "mae": np.where(total > 0, np.abs(scores - y) @ shares, np.nan),
        "qwk": _qwk(nearest_label(scores, values), nearest_label(y, values), values, shares, total >= MIN_PAIRS),
    }


def _ratio(
    above: Float[np.ndarray, "judge resample"],
    below: Float[np.ndarray, "judge resample"],
    defined: Bool[np.ndarray, "judge resample"],
) -> Float[np.ndarray, "judge resample"]:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=defined))


def _pearson(
    scores: Float[np.ndarray, "judge item"],
    y: Float[np.ndarray, " item"],
    shares: _Weights,
    varies: Bool[np.ndarray, "judge resample"],
) -> Float[np.ndarray, "judge resample"]:
    x, z = (side - side.mean(axis=-1, keepdims=True) for side in (scores, y))
    mean, mean_z = x @ shares, z @ shares
    square, square_z = (x * x) @ shares, (z * z) @ shares
    spread, spread_z = square - mean**2, square_z - mean_z**2
    size = np.sqrt(np.where(varies, np.maximum(spread * spread_z, np.finfo(float).tiny), 1.0))
    result = _ratio((x * z) @ shares - mean * mean_z, size, varies)
    # What was drawn lies close together, far from the mean of all: once more, about its own mean.
    poor = varies & ((spread < _CLOSE * square) | (spread_z < _CLOSE * square_z))
    for judge in np.flatnonzero(poor.any(axis=1)):
        again = np.flatnonzero(poor[judge])
        of_x, of_z = x[judge][:, None] - mean[judge, again], z[:, None] - mean_z[again]
        cross, squares, squares_z = (
            np.einsum("ir,ir,ir->r", one, other, shares[:, again])
            for one, other in ((of_x, of_z), (of_x, of_x), (of_z, of_z))
        )
        result[judge, again] = cross / np.sqrt(squares * squares_z)
    return np.asarray(np.clip(result, -1, 1))


def _qwk(
    labels: Int[np.ndarray, "judge item"],
    human: Int[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    shares: _Weights,
    enough: Bool[np.ndarray, " resample"],
) -> Float[np.ndarray, "judge resample"]:
    centred = values - values.mean()
    a, b = centred[labels], centred[human]
    disagreement = ((a - b) ** 2) @ shares
    mean, mean_b = a @ shares, b @ shares
    spread = (a * a) @ shares - mean**2 + (b * b) @ shares - mean_b**2
    # Undefined where all that was drawn bears one label, of both sides. Then nothing disagrees, exactly.
    drawn = (shares > 0).astype(np.float32)
    n_drawn = drawn.sum(axis=0)
    alone = np.zeros(disagreement.shape, dtype=bool)
    for label in range(len(values)):
        alone |= ((labels == label) & (human == label)).astype(np.float32) @ drawn == n_drawn
    defined = enough & ~alone
    chance = np.where(defined, spread + (mean - mean_b) ** 2, 1.0)
    return 1 - _ratio(disagreement, chance, defined)


def _told_apart(
    values: Float[np.ndarray, " item"], weights: _Weights, total: _Resamples, squares: _Resamples
) -> _Resamples:
    """Pairs with different values."""
    order = np.argsort(values, kind="stable")
    starts = tie_starts(values[order])
    if len(starts) < len(order):
        of_ties = np.add.reduceat(weights[order], starts, axis=0)
        squares = np.einsum("gr,gr->r", of_ties, of_ties)
    return np.asarray((total**2 - squares) / 2)


def _concordance(x: Float[np.ndarray, " item"], y: Float[np.ndarray, " item"], weights: _Weights) -> _Resamples:
    """Pairs in the same order minus pairs in opposite order.

    All pairs at once take n^2 products a resample. Many items are therefore divided twice, into blocks of neighbours in
    x and into blocks of neighbours in y, none of which divides ties. Pairs that share a block are looked at one by
    one; those that share none are in an order that their blocks say, so that sums over blocks do for them.
    """
    of_x, of_y = _blocks(x), _blocks(y)
    result = np.zeros(weights.shape[1])
    for members in _members(of_x):
        result += _square(x[members], y[members], weights[members])
    if not of_x.any():
        return result
    for members in _members(of_y):
        result += _square(x[members], y[members], weights[members], apart=of_x[members])
    return np.asarray(result + _between(of_x, of_y, weights))


def _square(
    x: Float[np.ndarray, " item"],
    y: Float[np.ndarray, " item"],
    weights: _Weights,
    apart: Int[np.ndarray, " item"] | None = None,
) -> _Resamples:
    """The same for few items; only pairs with different ``apart``, if it is given."""
    if x.min() == x.max() or y.min() == y.max():
        return np.zeros(weights.shape[1])
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    if apart is not None:
        signs *= apart[:, None] != apart
    products = signs.astype(weights.dtype) @ weights
    products *= weights
    return np.asarray(products.sum(axis=0, dtype=np.float64) / 2)


def _between(of_x: Int[np.ndarray, " item"], of_y: Int[np.ndarray, " item"], weights: _Weights) -> _Resamples:
    """The same for pairs that differ in both blocks."""
    shape = int(of_x.max()) + 1, int(of_y.max()) + 1
    cell = of_x * shape[1] + of_y
    order = np.argsort(cell, kind="stable")
    starts = tie_starts(cell[order])
    held = np.zeros((shape[0] * shape[1], weights.shape[1]))
    held[cell[order][starts]] = np.add.reduceat(weights[order], starts, axis=0, dtype=np.float64)
    before = np.zeros((shape[1], weights.shape[1]))  # what earlier blocks of x hold, by block of y
    result = np.zeros(weights.shape[1])
    for row in held.reshape(*shape, -1):
        up_to = before.cumsum(axis=0)
        result += np.einsum("kr,kr->r", row, (up_to - before) - (up_to[-1] - up_to))
        before += row
    return result


def _blocks(values: Float[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
    """Block of every item, in ascending order of the values: at most ``_SQUARE`` items, or one value."""
    of_items = np.zeros(len(values), dtype=np.int64)
    if len(values) <= _SQUARE:
        return of_items
    order = np.argsort(values, kind="stable")
    starts = tie_starts(values[order])
    sizes = np.diff(np.append(starts, len(values)))
    block, held, of_ties = 0, 0, np.zeros(len(sizes), dtype=np.int64)
    for number, size in enumerate(sizes.tolist()):
        if held and held + size > _SQUARE:
            block, held = block + 1, 0
        held += size
        of_ties[number] = block
    of_items[order] = np.repeat(of_ties, sizes)
    return of_items


def _members(blocks: Int[np.ndarray, " item"]) -> Iterator[Int[np.ndarray, " member"]]:
    for block in range(int(blocks.max()) + 1):
        yield np.flatnonzero(blocks == block)

"""Alignment: how well a judge's scores agree with human scores.

Ties get average ranks throughout. A constant predictor, or fewer than three pairs, has no rank or linear
correlation: the value is NaN, never 0. Pairs with a NaN are left out, and how many were used is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.stats import kendalltau, rankdata

MIN_PAIRS: Final = 3
_BLOCK: Final = 24_000_000  # numbers that a block of resamples may hold per array (192 MB)

_Score = Float[np.ndarray, " item"]


class Agreement(NamedTuple):
    """A coefficient and the number of items behind it."""

    value: float
    n_used: int


Metric = Callable[[_Score, _Score], Agreement]


def _pairs(score: _Score, human: _Score) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    score, human = np.asarray(score, dtype=np.float64), np.asarray(human, dtype=np.float64)
    both = np.isfinite(score) & np.isfinite(human)
    return score[both], human[both]


def _correlation(x: _Score, y: _Score) -> float:
    if len(x) < MIN_PAIRS or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def pearson(score: _Score, human: _Score) -> Agreement:
    """Linear correlation."""
    x, y = _pairs(score, human)
    return Agreement(_correlation(x, y), len(x))


def spearman(score: _Score, human: _Score) -> Agreement:
    """Rank correlation: Pearson's of the average ranks."""
    x, y = _pairs(score, human)
    return Agreement(_correlation(rankdata(x), rankdata(y)), len(x))


def kendall(score: _Score, human: _Score) -> Agreement:
    """Kendall's tau-b."""
    x, y = _pairs(score, human)
    if len(x) < MIN_PAIRS or x.min() == x.max() or y.min() == y.max():
        return Agreement(float("nan"), len(x))
    return Agreement(float(kendalltau(x, y, method="asymptotic").statistic), len(x))


def mae(score: _Score, human: _Score) -> Agreement:
    """Mean absolute error, in the unit of the scores; NaN without pairs."""
    x, y = _pairs(score, human)
    return Agreement(float(np.abs(x - y).mean()) if len(x) else float("nan"), len(x))


def nearest_label(score: Float[np.ndarray, "*any"], values: Float[np.ndarray, " label"]) -> Int[np.ndarray, "*any"]:
    """Index of the nearest label, clipped to the scale; half-way goes to the higher one."""
    return np.asarray(np.searchsorted((values[1:] + values[:-1]) / 2, score, side="right"))


def qwk(score: _Score, human: _Score, values: Float[np.ndarray, " label"]) -> Agreement:
    """Quadratic weighted kappa of both scores rounded and clipped to the labels.

    Disagreement is weighted by the squared difference of the label *values*, which is the usual kappa on
    evenly spaced scales. NaN where both always give the same one label: there is nothing to agree on.
    """
    x, y = _pairs(score, human)
    values = np.asarray(values, dtype=np.float64)
    if len(x) < MIN_PAIRS:
        return Agreement(float("nan"), len(x))
    a, b = values[nearest_label(x, values)], values[nearest_label(y, values)]
    # Mean squared difference of independent draws from the two marginals, without building the table.
    chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    if a.min() == a.max() == b.min() == b.max():
        return Agreement(float("nan"), len(x))
    return Agreement(float(1 - ((a - b) ** 2).mean() / chance), len(x))


def pairwise_accuracy(score: _Score, human: _Score) -> Agreement:
    """Share of item pairs that the judge orders as humans do.

    Pairs that humans tie are skipped; pairs that only the judge ties count one half, so a constant judge has .5. NaN
    where humans tie all pairs. With C pairs in the same and D in the opposite order, of T that humans do not tie, it is
    ``(1 + (C - D) / T) / 2``, Somers' D (1962, American Sociological Review 27(6)) on the scale from 0 to 1.
    """
    x, y = _pairs(score, human)
    pairs = len(x) * (len(x) - 1) / 2
    decided = pairs - _tied_pairs(y)
    if not decided:
        return Agreement(float("nan"), len(x))
    told_apart = pairs - _tied_pairs(x)
    if not told_apart:
        return Agreement(0.5, len(x))
    # The method is one of finding p, which is not used; the fast one divides by the number of items beyond two.
    tau = float(kendalltau(x, y, method="exact" if len(x) == 2 else "asymptotic").statistic)
    return Agreement(float((1 + tau * np.sqrt(told_apart / decided)) / 2), len(x))


def _tied_pairs(values: _Score) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / 2)


def rounded(means: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Means that differ by rounding only, made equal: the same numbers summed in another order are a tie.

    In units of the largest; NaN stays NaN.
    """
    size = np.nanmax(np.abs(means), initial=0.0)
    return np.asarray(np.round(means / size, 10) if size > 0 else means)


METRICS: Final[dict[str, Metric]] = {
    "spearman": spearman,
    "pearson": pearson,
    "kendall": kendall,
    "mae": mae,
    "pairwise_accuracy": pairwise_accuracy,
}


def weighted_spearman(
    scores: Float[np.ndarray, "judge item"],
    y: _Score,
    weights: Float[np.ndarray, "resample item"] | Int[np.ndarray, "resample item"],
) -> Float[np.ndarray, "judge resample"]:
    """Spearman of many judges in many resamples, as if every item were repeated ``weight`` times.

    Equal to Spearman's coefficient on the expanded resample: copies of an item tie with each other. Items
    with a NaN are left out per judge. NaN where the expanded resample has fewer than three items or either
    side is constant in it.

    With ``W_g`` the weight of a group of ties, ``C_g`` the weight below it and ``n`` the total, the rank of
    the group is ``C_g + (W_g + 1) / 2``, and the sum of squares about the mean rank is
    ``(n^3 - n - sum(W_g^3 - W_g)) / 12 = (n^3 - sum W_g^3) / 12``. All resamples of a block advance together,
    item by item in the order of the score; a block is as large as memory allows.

    Args:
        scores: One row a judge.
        y: What they are compared with.
        weights: Non-negative whole numbers.
    """
    scores, y = np.atleast_2d(np.asarray(scores, dtype=np.float64)), np.asarray(y, dtype=np.float64)
    result = np.full((len(scores), len(weights)), np.nan)
    valid = np.isfinite(scores) & np.isfinite(y)
    patterns, pattern_of = np.unique(valid, axis=0, return_inverse=True)
    for index, mask in enumerate(patterns):
        if mask.sum() < 2:
            continue
        judges = np.flatnonzero(pattern_of.ravel() == index)
        block = max(1, _BLOCK // int(mask.sum()))
        for start in range(0, len(weights), block):
            rows = slice(start, start + block)
            by_item = np.ascontiguousarray(weights[rows][:, mask].T, dtype=np.float64)
            result[judges, rows] = _block(scores[np.ix_(judges, np.flatnonzero(mask))], y[mask], by_item)
    return result


def _block(
    scores: Float[np.ndarray, "judge item"], y: _Score, weights: Float[np.ndarray, "item resample"]
) -> Float[np.ndarray, "judge resample"]:
    total = weights.sum(axis=0)
    cubes = np.einsum("ir,ir,ir->r", weights, weights, weights)
    # What ranks of y contribute: every item's weight times its rank.
    loaded = weights * _ranks(y, weights)
    half = 0.5 * np.einsum("ir,ir->r", weights, loaded)
    loaded_total = loaded.sum(axis=0)
    y_spread = _spread(y, weights, total, cubes)
    centre = total * ((total + 1) / 2) ** 2
    result = np.empty((len(scores), weights.shape[1]))
    for judge, score in enumerate(scores):
        order = np.argsort(score, kind="stable")
        starts = tie_starts(score[order])
        if len(starts) == len(order):
            cross, tied_cubes = _cross(order, weights, loaded) + half, cubes
        else:
            cross, tied_cubes = _tied_cross(order, starts, weights, loaded)
        cross += 0.5 * loaded_total
        x_spread = (total**3 - tied_cubes) / 12
        result[judge] = _quotient(cross - centre, x_spread * y_spread, total)
    return result


def _cross(
    order: Int[np.ndarray, " item"],
    weights: Float[np.ndarray, "item resample"],
    loaded: Float[np.ndarray, "item resample"],
) -> Float[np.ndarray, " resample"]:
    """Sum of load times weight below, no two scores being equal."""
    below, cross, step = np.zeros((3, weights.shape[1]))
    for item in order.tolist():
        np.multiply(below, loaded[item], out=step)
        cross += step
        below += weights[item]
    return cross


def _tied_cross(
    order: Int[np.ndarray, " item"],
    starts: Int[np.ndarray, " group"],
    weights: Float[np.ndarray, "item resample"],
    loaded: Float[np.ndarray, "item resample"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """Sum of load times (weight below + half the group's own), and the sum of the groups' cubes."""
    below, cross, cubes, step, group_weight, group_load = np.zeros((6, weights.shape[1]))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        members = order[start:stop].tolist()
        group_weight[:], group_load[:] = weights[members[0]], loaded[members[0]]
        for item in members[1:]:
            group_weight += weights[item]
            group_load += loaded[item]
        np.multiply(group_weight, 0.5, out=step)
        step += below
        step *= group_load
        cross += step
        below += group_weight
        np.multiply(group_weight, group_weight, out=step)
        step *= group_weight
        cubes += step
    return cross, cubes


def _quotient(
    cross: Float[np.ndarray, " resample"],
    spread: Float[np.ndarray, " resample"],
    total: Float[np.ndarray, " resample"],
) -> Float[np.ndarray, " resample"]:
    defined = (spread > 0) & (total >= MIN_PAIRS)
    value = cross / np.sqrt(np.where(defined, spread, 1.0))
    return np.where(defined, np.clip(value, -1.0, 1.0), np.nan)


def tie_starts(ordered: Shaped[np.ndarray, " item"]) -> Int[np.ndarray, " group"]:
    """Where each group of equal values starts, among sorted values."""
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _spread(
    score: _Score,
    weights: Float[np.ndarray, "item resample"],
    total: Float[np.ndarray, " resample"],
    cubes: Float[np.ndarray, " resample"],
) -> Float[np.ndarray, " resample"]:
    order = np.argsort(score, kind="stable")
    starts = tie_starts(score[order])
    if len(starts) < len(order):
        group_weight = np.add.reduceat(weights[order], starts, axis=0)
        cubes = np.einsum("gr,gr,gr->r", group_weight, group_weight, group_weight)
    return np.asarray((total**3 - cubes) / 12)


def _ranks(score: _Score, weights: Float[np.ndarray, "item resample"]) -> Float[np.ndarray, "item resample"]:
    """Average rank of each item in each expanded resample."""
    order = np.argsort(score, kind="stable")
    starts = tie_starts(score[order])
    group_weight = np.add.reduceat(weights[order], starts, axis=0)
    rank = np.cumsum(group_weight, axis=0) - 0.5 * group_weight + 0.5
    ranks = np.empty_like(weights)
    ranks[order] = np.repeat(rank, np.diff(np.append(starts, len(order))), axis=0)
    return ranks

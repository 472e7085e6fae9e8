"""Reference lines drawn from the raters: how well one of them agrees with the others, and what a judge could attain.

Raters are exchangeable: which of an item's scores are compared is drawn anew for every item. Only ``rater_rows`` takes
column k for one person, and is for runs that say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from probes.align import METRICS, MIN_PAIRS, Metric, rounded
from probes.errors import FitError
from probes.intervals import Interval, interval, mean_over_folds
from probes.protocol import Folds, group_resamples, within_fold_spearman

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DRAWS: Final = 200
CORRELATIONS: Final = ("spearman", "pearson", "kendall")
RATER_COLUMNS: Final = (
    "criterion", "rater", "mean", "offset", "offset_lo", "offset_hi", "spearman", "spearman_lo", "spearman_hi",
    "n_used", "n_total",
)  # fmt: skip

_Human = Float[np.ndarray, "item rater"]


class HumanLine(NamedTuple):
    """A reference line drawn from the raters, and how many items had the two raters that it takes."""

    value: float
    n_used: int
    n_total: int


def attainable(human: _Human, metric: str = "spearman", n_splits: int = DRAWS, seed: int = 0) -> HumanLine:
    """The most that a judge could correlate with the mean of the raters, were it never wrong about the items.

    Square root of the reliability of the R-rater mean: the raters of every item are split at random into two
    halves of equal size (an odd one out sits out), the halves' means are correlated, the mean over the splits
    is stepped up from the size of a half to R (Spearman 1910, Brown 1910). Where items have different numbers of
    raters, R is their mean. 0 where the halves do not agree at all.

    Args:
        human: Scores of the raters; NaN is a missing rater.
        metric: ``spearman``, ``pearson`` or ``kendall``.
        n_splits: Random splits.
        seed: Of the splits.

    Raises:
        FitError: The metric is not a correlation.
    """
    coefficient = _coefficient(metric)
    used, total = _with_raters(human)
    if len(used) < MIN_PAIRS:
        return HumanLine(float("nan"), len(used), total)
    counts = np.isfinite(used).sum(axis=1)
    halves = counts // 2
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n_splits):
        place = _shuffled_place(used, rng)
        first = np.nanmean(np.where(place < halves[:, None], used, np.nan), axis=1)
        second_half = (place >= halves[:, None]) & (place < 2 * halves[:, None])
        second = np.nanmean(np.where(second_half, used, np.nan), axis=1)
        values.append(coefficient(rounded(first), rounded(second)).value)
    agreement = _mean(np.asarray(values))
    if not agreement > 0:
        return HumanLine(float("nan") if np.isnan(agreement) else 0.0, len(used), total)
    factor = counts.mean() / halves.mean()
    reliability = factor * agreement / (1 + (factor - 1) * agreement)
    return HumanLine(float(np.sqrt(reliability)), len(used), total)


def human_agreement(human: _Human, metric: str = "spearman", n_draws: int = DRAWS, seed: int = 0) -> HumanLine:
    """One rater of each item, drawn at random, against the mean of its other raters; mean over the draws.

    Args:
        human: Scores of the raters; NaN is a missing rater.
        metric: ``spearman``, ``pearson`` or ``kendall``.
        n_draws: Random draws.
        seed: Of the draws.

    Raises:
        FitError: The metric is not a correlation.
    """
    coefficient = _coefficient(metric)
    used, total = _with_raters(human)
    if len(used) < MIN_PAIRS:
        return HumanLine(float("nan"), len(used), total)
    values = [coefficient(one, others).value for one, others in _one_and_others(used, n_draws, seed)]
    return HumanLine(_mean(np.asarray(values)), len(used), total)


class BesideRaters(NamedTuple):
    """One rater and the judges, all against the same means of the other raters.

    Attributes:
        human: Spearman of one random rater with the mean of the others.
        judges: Spearman of each judge with these means ``[judge]``.
        n_used: Items with two raters or more.
    """

    human: float
    judges: Float[np.ndarray, " judge"]
    n_used: int


def beside_raters(
    scores: Sequence[Float[np.ndarray, "repeat item"]],
    human: _Human,
    folds: Folds,
    n_draws: int = DRAWS,
    seed: int = 0,
) -> BesideRaters:
    """The human line within folds, and judges measured as it is: against the same R - 1 raters.

    Against the mean of all R raters, which is less noisy, a judge would come out ahead of a rater who is as good.
    Every coefficient is Spearman's within a fold, averaged over the folds where it is defined, then over the draws.

    Args:
        scores: Out-of-fold scores of each judge.
        human: Scores of the raters; NaN is a missing rater.
        folds: Folds of each repeat.
        n_draws: How often a rater is drawn for every item.
        seed: Of the draws.
    """
    human = np.asarray(human, dtype=np.float64)
    enough = np.isfinite(human).sum(axis=1) >= 2
    n_used = int(enough.sum())
    one, others = np.full((2, n_draws, len(human)), np.nan)
    if n_used:
        for draw, (of_one, of_others) in enumerate(_one_and_others(human[enough], n_draws, seed)):
            one[draw, enough], others[draw, enough] = of_one, of_others
    line, judges = [], []
    for repeat, test in folds.tests():
        rated = test[enough[test]]
        if len(rated) < MIN_PAIRS:
            continue
        means = _unit_ranks(others[:, rated])
        line.append((_unit_ranks(one[:, rated]) * means).sum(axis=1))
        judges.append(_unit_ranks(np.stack([of[repeat, rated] for of in scores])) @ means.T if scores else means[:0])
    if not line:
        return BesideRaters(float("nan"), np.full(len(scores), np.nan), n_used)
    every = np.stack([np.vstack([of_line, of_judges]) for of_line, of_judges in zip(line, judges, strict=True)])
    defined = np.isfinite(every)
    of_draw = np.where(defined, every, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    found = [_mean(values) for values in np.where(defined.any(axis=0), of_draw, np.nan)]
    return BesideRaters(found[0], np.array(found[1:]), n_used)


def krippendorff(human: _Human, metric: str = "interval") -> HumanLine:
    """Krippendorff's alpha: agreement of all raters with each other, corrected for chance; raters may be missing.

    ``1 - D_o / D_e``, observed over expected disagreement (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability). With ``m_u`` scores of item u and n of all items, ``D_o = 1/n sum_u 1/(m_u - 1) sum_{i != j}
    d(v_ui, v_uj)`` and ``D_e`` is the mean of d over all pairs of the n scores. Unlike ``attainable`` it is about
    single scores, not about their mean, and raters who are severe or lenient lower it.

    Args:
        human: Scores of the raters; NaN is a missing rater.
        metric: d of two scores: ``interval``, the square of their difference; ``ordinal``, the square of the difference
            of their average ranks among all n; ``nominal``, whether they differ.

    Returns:
        NaN where no item has two scores or all scores are the same.

    Raises:
        FitError: There is no such metric.
    """
    used, total = _with_raters(human)
    there = np.isfinite(used)
    scores = used[there]
    if metric == "interval":
        places = scores[:, None]
    elif metric == "ordinal":
        places = np.asarray(rankdata(scores))[:, None]
    elif metric == "nominal":
        places = np.sqrt(0.5) * (scores[:, None] == np.unique(scores))
    else:
        raise FitError(f"no alpha for {metric!r}: choose one of interval, ordinal, nominal")
    if not len(scores) or scores.min() == scores.max():
        return HumanLine(float("nan"), len(used), total)
    item = np.nonzero(there)[0]
    counts = np.bincount(item)
    # Twice the sum of squares about the mean is the sum over pairs, divided by their number.
    means = np.stack([np.bincount(item, of) / counts for of in places.T], axis=1)
    within = ((places - means[item]) ** 2).sum(axis=1)
    observed = (within * (counts / (counts - 1))[item]).sum() / len(scores)
    expected = ((places - places.mean(axis=0)) ** 2).sum() / (len(scores) - 1)
    return HumanLine(float(1 - observed / expected), len(used), total)


def rater_rows(
    human: _Human,
    groups: Int[np.ndarray, " item"],
    folds: Folds,
    resamples: int,
    level: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every rater beside the others, where column k of the scores is the same person throughout.

    Over the items that both the rater and another one scored: Spearman with the mean of the others, within folds as for
    judges, and the offset, the mean difference to it.

    Args:
        human: Scores of the raters as given; NaN is a missing rater.
        groups: What is resampled.
        folds: Folds of each repeat.
        resamples: Number of resamples.
        level: Of the intervals.
        seed: Of the resamples.

    Returns:
        One row a rater: ``rater`` (from 1), ``mean`` (of all that it scored), ``offset, offset_lo, offset_hi, spearman,
        spearman_lo, spearman_hi, n_used``.
    """
    human = np.asarray(human, dtype=np.float64)
    there = np.isfinite(human)
    total, count = np.where(there, human, 0.0).sum(axis=1), there.sum(axis=1)
    drawn, code = group_resamples(groups, resamples, seed)
    weights = drawn[:, code]
    span = float(human[there].max() - human[there].min()) if there.any() else 0.0
    rows = []
    for rater, scored in enumerate(there.T):
        both = scored & (count >= 2)
        own = np.where(both, human[:, rater], np.nan)
        others = np.full(len(human), np.nan)
        others[both] = (total - human[:, rater])[both] / (count[both] - 1)
        in_folds = np.broadcast_to(own, folds.fold.shape)
        found = within_fold_spearman([in_folds], rounded(others), groups, folds, resamples, seed)[0]
        n_drawn = weights[:, both].sum(axis=1)
        apart = weights[:, both] @ (own - others)[both]
        offset = np.divide(apart, n_drawn, out=np.full(len(apart), np.nan), where=n_drawn > 0)
        n_groups = len(np.unique(code[both]))
        rows.append(
            {
                "rater": rater + 1,
                "mean": float(human[scored, rater].mean()) if scored.any() else float("nan"),
                **_named("offset", interval(offset, n_groups, level, limit=max(span, 1e-9))),
                **_named("spearman", interval(mean_over_folds(found), n_groups, level)),
                "n_used": int(both.sum()),
            }
        )
    return rows


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_lo": found.lo, f"{name}_hi": found.hi}


def _unit_ranks(rows: Float[np.ndarray, "row item"]) -> Float[np.ndarray, "row item"]:
    """Ranks of each row, centred and of length one, so that products are Spearman's; NaN for equal values and NaN."""
    ranks = rankdata(rows, axis=1, nan_policy="propagate")
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0))


def _coefficient(metric: str) -> Metric:
    if metric not in CORRELATIONS:
        raise FitError(f"no human line for {metric!r}: choose one of {', '.join(CORRELATIONS)}")
    return METRICS[metric]


def _with_raters(human: _Human) -> tuple[Float[np.ndarray, "used rater"], int]:
    human = np.asarray(human, dtype=np.float64)
    return human[np.isfinite(human).sum(axis=1) >= 2], len(human)


def _one_and_others(
    human: _Human, n_draws: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, " item"], Float[np.ndarray, " item"]]]:
    """A random rater of each item and the mean of its others, once a draw."""
    rng = np.random.default_rng(seed)
    there = np.isfinite(human)
    total, count = np.where(there, human, 0).sum(axis=1), there.sum(axis=1)
    for _ in range(n_draws):
        chosen = np.where(there, rng.random(human.shape), -1).argmax(axis=1)
        one = human[np.arange(len(human)), chosen]
        yield one, rounded((total - one) / (count - 1))


def _shuffled_place(human: _Human, rng: np.random.Generator) -> Int[np.ndarray, "item rater"]:
    """Random place of each rater within its item; missing raters come last."""
    missing: Bool[np.ndarray, "item rater"] = ~np.isfinite(human)
    keys = rng.random(human.shape) + missing
    place = np.argsort(np.argsort(keys, axis=1), axis=1)
    return np.asarray(np.where(missing, human.shape[1], place))


def _mean(values: Float[np.ndarray, " draw"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")

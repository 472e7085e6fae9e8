"""Agreement at three levels: of items, of the items of a group with each other, and of systems.

Meta-evaluations of text metrics call the second the summary level and the third the system level (Louis and Nenkova
2013, Computational Linguistics 39(2); Bhandari et al. 2020, EMNLP; Deutsch et al. 2021, TACL 9). A judge may be good at
one and bad at another: one that only knows which sources are easy ranks items, but neither responses nor systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata

from probes.align import MIN_PAIRS, rounded
from probes.fitting.ridge import is_constant
from probes.fitting.threads import one_blas_thread
from probes.intervals import DIFFERENCE, interval
from probes.protocol import group_codes, group_resamples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probes.evidence import Evidence

LEVELS: Final = ("item", "group", "system")


@dataclass(frozen=True, eq=False)
class _Level:
    """Coefficients of one level, by judge: of every fold and resample, or of every repeat and group.

    Of the latter ``drawn`` says how often each group counts in a resample.
    """

    coefficients: Mapping[str, Float[np.ndarray, "fold resample"] | Float[np.ndarray, "repeat group"]]
    n_units: Mapping[str, int]
    n_units_total: int
    n_used: Mapping[str, int]
    n_groups: int
    drawn: Float[np.ndarray, "resample group"] | None = None

    def mean(self, coefficients: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " resample"]:
        """Mean of the defined coefficients in every resample."""
        defined = np.isfinite(coefficients)
        total, count = np.where(defined, coefficients, 0.0).sum(axis=0), defined.sum(axis=0)
        if self.drawn is not None:
            total, count = self.drawn @ total, self.drawn @ count
        return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def level_rows(
    evidence: Evidence,
    judges: Sequence[str],
    sources: Shaped[np.ndarray, " item"],
    systems: Sequence[str | None],
    resamples: int,
    n_total: int,
) -> list[dict[str, Any]]:
    """Spearman of judges at every level that there is data for, and its difference to ``final``.

    - ``item``: all test items of a fold are ranked together; mean over the folds. What other tables say.
    - ``group``: the items of a group are ranked with each other; mean over the groups and repeats. A group takes part
      if it has three items or more whose human scores are not all equal and whose judge's scores are not either. Left
      out where no group has three items.
    - ``system``: mean score and mean human score of every system over the test items of a fold, ranked over the
      systems (three or more); mean over the folds. Left out where the items name fewer than three systems.

    Intervals resample groups, as everywhere. A group that is drawn twice counts twice at its own level. Systems are not
    resampled: the intervals are about these systems on other sources.

    Args:
        evidence: Out-of-fold scores of the judges, ``final`` among them; its groups are what is resampled.
        judges: Judges to give rows.
        sources: Group of each item as its run names it; these lie within the groups that are resampled.
        systems: What produced each item; None where it is not known.
        resamples: Number of resamples.
        n_total: Items, whether they can be used or not.

    Returns:
        One row a judge and level: ``judge, level, metric, value, lo, hi, gain_over_final, gain_over_final_lo,
        gain_over_final_hi, n_units, n_units_total, n_used, n_total``. ``n_units`` of ``n_units_total`` items, groups or
        systems have a rank or a coefficient of their own, with ``n_used`` items in them.
    """
    every = list(dict.fromkeys([*judges, "final"]))
    levels = {
        "item": _item_level(evidence, every, n_total),
        "group": _group_level(evidence, every, sources, resamples),
        "system": _system_level(evidence, every, systems, resamples),
    }
    rows = []
    for judge in judges:
        for name, level in levels.items():
            if level is None:
                continue
            of, final = level.coefficients[judge], level.coefficients["final"]
            found = interval(level.mean(of), level.n_groups, evidence.level)
            gain = interval(level.mean(of - final), level.n_groups, evidence.level, limit=DIFFERENCE)
            rows.append(
                {
                    "judge": judge,
                    "level": name,
                    "metric": "spearman",
                    "value": found.value,
                    "lo": found.lo,
                    "hi": found.hi,
                    "gain_over_final": gain.value,
                    "gain_over_final_lo": gain.lo,
                    "gain_over_final_hi": gain.hi,
                    "n_units": level.n_units[judge],
                    "n_units_total": level.n_units_total,
                    "n_used": level.n_used[judge],
                    "n_total": n_total,
                }
            )
    return rows


def _item_level(evidence: Evidence, judges: Sequence[str], n_total: int) -> _Level:
    n_used = dict.fromkeys(judges, len(evidence.y))
    coefficients = {judge: evidence.coefficients[judge] for judge in judges}
    return _Level(coefficients, n_used, n_total, n_used, evidence.n_groups)


def _group_level(
    evidence: Evidence, judges: Sequence[str], sources: Shaped[np.ndarray, " item"], resamples: int
) -> _Level | None:
    source = group_codes(sources)
    size = np.bincount(source)
    if size.max() < MIN_PAIRS:
        return None
    human, varies = _ranks_within(evidence.y, source)
    ranked = varies & (size >= MIN_PAIRS)
    coefficients = {}
    for judge in judges:
        of_repeats = []
        for scores in evidence.scores[judge]:
            ranks, told_apart = _ranks_within(scores, source)
            cross, spread, spread_y = (
                np.bincount(source, one * other) for one, other in ((ranks, human), (ranks, ranks), (human, human))
            )
            usable = ranked & told_apart & (spread > 0)
            quotient = cross / np.sqrt(np.where(usable, spread * spread_y, 1.0))
            of_repeats.append(np.where(usable, np.clip(quotient, -1, 1), np.nan))
        coefficients[judge] = np.stack(of_repeats)
    drawn, code = group_resamples(evidence.groups, resamples, evidence.seed)
    group_of_source = np.zeros(len(size), dtype=np.int64)
    group_of_source[source] = code
    found = {judge: np.isfinite(of).any(axis=0) for judge, of in coefficients.items()}
    return _Level(
        coefficients,
        {judge: int(of.sum()) for judge, of in found.items()},
        len(size),
        {judge: int(size[of].sum()) for judge, of in found.items()},
        len(np.unique(group_of_source[ranked])),
        drawn[:, group_of_source].astype(np.float64),
    )


def _ranks_within(
    values: Float[np.ndarray, " item"], source: Int[np.ndarray, " item"]
) -> tuple[Float[np.ndarray, " item"], Bool[np.ndarray, " group"]]:
    """Average ranks within the group about their mean, and which groups differ by more than rounding."""
    size = np.bincount(source)
    mean = np.bincount(source, values) / size
    spread = np.sqrt(np.bincount(source, (values - mean[source]) ** 2) / size)
    ranks = pd.Series(values).groupby(source).rank().to_numpy()
    return ranks - (size[source] + 1) / 2, ~np.asarray(is_constant(mean, spread)) & np.isfinite(spread)


def _system_level(
    evidence: Evidence, judges: Sequence[str], systems: Sequence[str | None], resamples: int
) -> _Level | None:
    names = np.array([name or "" for name in systems])
    known = names != ""
    if len(np.unique(names[known])) < MIN_PAIRS:
        return None
    number = np.full(len(names), -1)
    number[known] = np.unique(names[known], return_inverse=True)[1]
    drawn, code = group_resamples(evidence.groups, resamples, evidence.seed)
    coefficients: dict[str, list[Float[np.ndarray, " resample"]]] = {judge: [] for judge in judges}
    ranked = {judge: np.zeros(int(number.max()) + 1, dtype=bool) for judge in judges}
    for repeat, every in evidence.folds.tests():
        test = every[known[every]]
        belongs = (number[test] == np.arange(number.max() + 1)[:, None]).astype(np.float64)
        weights = drawn[:, code[test]].T.astype(np.float64)
        with one_blas_thread():
            count = belongs @ weights
            enough = (count > 0).sum(axis=0) >= MIN_PAIRS
            human = _mean_ranks(evidence.y[test], belongs, weights, count)
            for judge in judges:
                ranks = _mean_ranks(evidence.scores[judge][repeat, test], belongs, weights, count)
                found = np.where(enough, _cosine(ranks, human), np.nan)
                coefficients[judge].append(found)
                if np.isfinite(found[0]):
                    ranked[judge] |= count[:, 0] > 0
    return _Level(
        {judge: np.stack(of) for judge, of in coefficients.items()},
        {judge: int(of.sum()) for judge, of in ranked.items()},
        int(number.max()) + 1,
        {judge: int(of[number[known]].sum()) for judge, of in ranked.items()},
        len(np.unique(code[known])),
    )


def _mean_ranks(
    values: Float[np.ndarray, " item"],
    belongs: Float[np.ndarray, "system item"],
    weights: Float[np.ndarray, "item resample"],
    count: Float[np.ndarray, "system resample"],
) -> Float[np.ndarray, "system resample"]:
    """Ranks of the systems' means about the mean rank; 0 for systems that a resample lacks."""
    there = count > 0
    mean = rounded((belongs * values) @ weights / np.where(there, count, 1.0))
    ranks = rankdata(np.where(there, mean, np.inf), axis=0)
    middle = np.where(there, ranks, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    return np.where(there & np.isfinite(mean), ranks - middle, 0.0)


def _cosine(
    a: Float[np.ndarray, "system resample"], b: Float[np.ndarray, "system resample"]
) -> Float[np.ndarray, " resample"]:
    size = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    quotient = np.divide((a * b).sum(axis=0), size, out=np.full(size.shape, np.nan), where=size > 0)
    return np.asarray(np.clip(quotient, -1, 1))

"""Intervals from resampled groups: for one statistic, for a difference, and for many statistics at once.

Everything here starts from replicates: a statistic on the sample (the first one) and on resamples of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t

MIN_RESAMPLES: Final = 2
# Differences of two coefficients lie between -2 and 2.
DIFFERENCE: Final = 2.0


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; NaN where it is undefined."""

    value: float
    lo: float
    hi: float


UNDEFINED: Final = Interval(float("nan"), float("nan"), float("nan"))


def mean_over_folds(
    coefficients: Float[np.ndarray, "*any fold resample"],
) -> Float[np.ndarray, "*any resample"]:
    """Mean over the folds where the coefficient is defined; NaN where it is so in none."""
    defined = np.isfinite(coefficients)
    count = defined.sum(axis=-2)
    total = np.where(defined, coefficients, 0.0).sum(axis=-2)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def paired(
    first: Float[np.ndarray, "fold resample"], second: Float[np.ndarray, "fold resample"]
) -> Float[np.ndarray, " resample"]:
    """Difference of two judges' statistics in every resample, over the folds where both are defined."""
    return mean_over_folds(first - second)


def interval(
    replicates: Float[np.ndarray, " resample"], n_groups: int, level: float = 0.95, *, limit: float = 1.0
) -> Interval:
    """Estimate (resample 0) with a t interval on Fisher's scale; conditional on the fitted judges.

    The standard error is the standard deviation of the resamples times ``sqrt(G / (G - 1))``, with G the number of
    groups; it is carried to ``limit * artanh(value / limit)`` by the delta method, where the interval is plus or
    minus as many of them as the t distribution with G - 1 degrees of freedom says. Percentiles of the resamples
    would be too narrow where groups are few. The scale is Fisher's (1921, Metron 1), G - 1 degrees of freedom are
    usual for clustered data (Cameron, Gelbach and Miller 2008, Review of Economics and Statistics 90(3)).

    NaN throughout where the estimate is undefined. Resamples in which it is undefined are left out.

    Args:
        replicates: The statistic on the sample, then on the resamples.
        n_groups: Number of groups that were resampled.
        level: Coverage.
        limit: The statistic lies between minus and plus this; 1 for coefficients, 2 for their differences.
    """
    return _around(float(replicates[0]), _standard_error(replicates, n_groups), _quantile(1 - level, n_groups), limit)


def share_interval(replicates: Float[np.ndarray, " resample"], n_groups: int, level: float = 0.95) -> Interval:
    """As ``interval``, of a share ``p`` between 0 and 1: on the scale of its log odds, Fisher's of ``2p - 1``."""
    found = interval(2 * replicates - 1, n_groups, level)
    return Interval(float(replicates[0]), (1 + found.lo) / 2, (1 + found.hi) / 2)


def positive_interval(replicates: Float[np.ndarray, " resample"], n_groups: int, level: float = 0.95) -> Interval:
    """As ``interval``, of something that is never negative, such as a mean error: on the scale of its logarithm."""
    value, reach = float(replicates[0]), _quantile(1 - level, n_groups) * _standard_error(replicates, n_groups)
    if np.isnan(value):
        return UNDEFINED
    if value <= 0:  # where there is no logarithm
        return Interval(value, value if reach >= 0 else reach, value + reach)
    return Interval(value, float(value * np.exp(-reach / value)), float(value * np.exp(reach / value)))


def mean_interval(replicates: Float[np.ndarray, " resample"], n_groups: int, level: float = 0.95) -> Interval:
    """As ``interval``, of a number without limits, such as a mean of differences: on its own scale."""
    value, reach = float(replicates[0]), _quantile(1 - level, n_groups) * _standard_error(replicates, n_groups)
    return UNDEFINED if np.isnan(value) else Interval(value, value - reach, value + reach)


def simultaneous(
    replicates: Float[np.ndarray, "curve resample"], n_groups: int, level: float = 0.95, *, limit: float = 1.0
) -> list[Interval]:
    """Intervals that hold for all statistics at once, with probability ``level``: the max-T band.

    Montiel Olea and Plagborg-Moller 2019, Journal of Applied Econometrics 34(1), the sup-t band: the ``level``
    quantile over resamples of the largest standardised deviation takes the place of the normal quantile. It is
    turned into the pointwise level that it stands for, at which the intervals are those of ``interval``; so they are
    never narrower than pointwise ones, and the band of one statistic is its interval.

    Args:
        replicates: One row a statistic: on the sample, then on the same resamples of the groups.
        n_groups: Number of groups that were resampled.
        level: Coverage of all together.
        limit: As in ``interval``.
    """
    errors = [_standard_error(row, n_groups) for row in replicates]
    varying = [row[1:] for row, error in zip(replicates, errors, strict=True) if error > 0]
    tail = 1 - level
    if varying:
        drawn = np.stack(varying)
        defined = np.isfinite(drawn)
        mean = np.nanmean(drawn, axis=1, keepdims=True)
        spread = np.nanstd(drawn, axis=1, ddof=1, keepdims=True)
        largest = np.where(defined, np.abs(drawn - mean) / spread, 0.0).max(axis=0)[defined.any(axis=0)]
        tail = min(tail, 2 * float(norm.sf(np.quantile(largest, level))))
    quantile = _quantile(tail, n_groups)
    return [_around(float(row[0]), error, quantile, limit) for row, error in zip(replicates, errors, strict=True)]


def _standard_error(replicates: Float[np.ndarray, " resample"], n_groups: int) -> float:
    drawn = replicates[1:][np.isfinite(replicates[1:])]
    if len(drawn) < MIN_RESAMPLES or n_groups < 2:
        return float("nan")
    return float(drawn.std(ddof=1) * np.sqrt(n_groups / (n_groups - 1)))


def _quantile(tail: float, n_groups: int) -> float:
    return float(t.isf(tail / 2, max(1, n_groups - 1)))


def _around(value: float, error: float, quantile: float, limit: float) -> Interval:
    if np.isnan(value):
        return UNDEFINED
    share = value / limit
    slope = 1 - share**2
    if slope < 1e-9:  # at the limit itself, where the scale is infinite
        lo, hi = np.clip([value - quantile * error, value + quantile * error], -limit, limit)
        return Interval(value, float(lo), float(hi))
    reach = quantile * error / (limit * slope)
    lo, hi = limit * np.tanh(np.arctanh(share) + np.array([-reach, reach]))
    return Interval(value, float(lo), float(hi))

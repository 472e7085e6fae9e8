"""Calibration: do a judge's probabilities say how the raters' scores are spread?

The target of an item is the histogram of its raters over the labels, ``t``: a score that lies on a label counts for
that label, one between two labels for both, in inverse proportion to its distance. So a score at random from the
raters falls on label k with probability ``t_k``, and its mean is the mean score.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float

from probes.align import nearest_label

N_BINS: Final = 10
SMOOTHING: Final = 0.5

_Probs = Float[np.ndarray, "item label"]


class Targets(NamedTuple):
    """Raters' scores as histograms over the labels.

    Attributes:
        counts: Raters for each label, in parts where a score lies between two labels ``[item, label]``.
    """

    counts: _Probs

    @property
    def shares(self) -> _Probs:
        """Histogram of each item, summing to one; NaN without raters."""
        total = self.counts.sum(axis=1, keepdims=True)
        return np.asarray(np.divide(self.counts, total, out=np.full_like(self.counts, np.nan), where=total > 0))

    @property
    def smoothed(self) -> _Probs:
        """Histogram with one half added to every count, so that no share is zero; NaN without raters.

        The mean of the posterior under Jeffreys' prior (Krichevsky and Trofimov 1981, IEEE Transactions on Information
        Theory 27(2)).
        """
        total = self.counts.sum(axis=1, keepdims=True)
        smooth = (self.counts + SMOOTHING) / (total + SMOOTHING * self.counts.shape[1])
        return np.asarray(np.where(total > 0, smooth, np.nan))


def targets(human: Float[np.ndarray, "item rater"], values: Float[np.ndarray, " label"]) -> Targets:
    """Histograms of the raters over the labels.

    Args:
        human: Scores of the raters on the scale of the label values; NaN is a missing rater.
        values: What each label is worth, ascending.
    """
    there = np.isfinite(human)
    score = np.clip(np.where(there, human, values[0]), values[0], values[-1])
    upper = np.clip(np.searchsorted(values, score), 1, len(values) - 1)
    part = (score - values[upper - 1]) / (values[upper] - values[upper - 1])
    counts = np.zeros((len(human), len(values)))
    item = np.broadcast_to(np.arange(len(human))[:, None], human.shape)
    np.add.at(counts, (item[there], upper[there]), part[there])
    np.add.at(counts, (item[there], upper[there] - 1), 1 - part[there])
    return Targets(counts)


def brier(probs: _Probs, target: Targets) -> float:
    """Brier score of a rater's score drawn at random: mean of ``sum_k p_k^2 - 2 sum_k p_k t_k + 1``, from 0 to 2.

    Brier 1950 (Monthly Weather Review 78(1)) for each rater, averaged over the raters. Lowest at ``p = t``, where it is
    the raters' own spread, ``1 - sum_k t_k^2``.
    """
    return _mean((probs**2).sum(axis=1) - 2 * (probs * target.shares).sum(axis=1) + 1)


def nll(probs: _Probs, target: Targets) -> float:
    """Negative log-likelihood of a rater's score drawn at random, in nats: mean of ``-sum_k t_k log p_k``."""
    return _mean(-_times_log(target.shares, probs))


def kl(probs: _Probs, target: Targets) -> float:
    """Kullback-Leibler divergence of the judge from the raters, in nats: mean of ``sum_k h_k log(h_k / p_k)``.

    ``h`` is the smoothed histogram: with few raters an empty label is no proof that nobody would choose it.
    """
    human = target.smoothed
    return _mean(_times_log(human, human) - _times_log(human, probs))


def ece(probs: _Probs, target: Targets, n_bins: int = N_BINS) -> float:
    """Expected calibration error of the most probable label.

    Items are binned by the probability of that label, in bins of equal width; the mean over items of the distance
    between a bin's mean probability and its mean accuracy (Naeini, Cooper and Hauskrecht 2015, AAAI; arXiv 1706.04599,
    section 2). An item's accuracy is the share of raters at that label. Of equal probabilities the lower label counts.
    """
    shares = target.shares
    used = np.isfinite(probs).all(axis=1) & np.isfinite(shares).all(axis=1)
    probs, shares = probs[used], shares[used]
    if not len(probs):
        return float("nan")
    best = probs.argmax(axis=1)
    rows = np.arange(len(probs))
    gap = shares[rows, best] - probs[rows, best]
    bins = np.clip(np.ceil(probs[rows, best] * n_bins).astype(int) - 1, 0, n_bins - 1)
    return float(np.abs(np.bincount(bins, weights=gap, minlength=n_bins)).sum() / len(probs))


def scale_use(score: Float[np.ndarray, " item"], values: Float[np.ndarray, " label"]) -> float:
    """Entropy of the labels nearest to the scores, from 0 (one label for all items) to 1 (all equally often)."""
    score = score[np.isfinite(score)]
    if not len(score):
        return float("nan")
    share = np.bincount(nearest_label(score, values), minlength=len(values)) / len(score)
    return float(-_times_log(share[None], share[None])[0] / np.log(len(values))) + 0.0


def _times_log(weight: _Probs, of: _Probs) -> Float[np.ndarray, " item"]:
    """``sum_k weight_k log(of_k)``, nothing where the weight is 0; a probability of 0 counts as the smallest number."""
    return np.asarray((weight * np.log(np.maximum(of, np.finfo(np.float64).tiny))).sum(axis=1))


def _mean(of_items: Float[np.ndarray, " item"]) -> float:
    finite = of_items[np.isfinite(of_items)]
    return float(finite.mean()) if len(finite) else float("nan")

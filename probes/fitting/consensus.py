"""Weights of layers without any label: from how the layers' expected values go together over items.

A layer is taken for a voter. Both ways give a layer that says the same for every item weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from probes.fitting.ridge import is_constant

_Weigh = Callable[[Float[np.ndarray, "item layer"]], Float[np.ndarray, " layer"]]

# Added to the correlation matrix, which items in plain agreement would make singular.
_LOADING: Final = 1e-3


def whitened_weights(expected: Float[np.ndarray, "item layer"]) -> Float[np.ndarray, " layer"]:
    """Weights ``C^(-1/2) 1`` on the layers' standardised values: voters who repeat each other share one vote.

    RRD's whitened uniform weights (arXiv 2602.05125), which weigh correlated rubrics, applied to layers.
    There, votes are 0 or 1 and ``C`` their covariance plus ``1e-3 I``; layers differ in scale by orders of magnitude,
    so here ``C`` is the correlation matrix, and the weights are divided by the layers' standard deviations. They add
    up to one, so that the mixture keeps the scale of the label values; some may be negative.

    Args:
        expected: Expected value of every layer, without NaN.
    """
    return _on_raw_values(expected, _whiten)


def _whiten(standardised: Float[np.ndarray, "item layer"]) -> Float[np.ndarray, " layer"]:
    correlation = standardised.T @ standardised / len(standardised) + _LOADING * np.eye(standardised.shape[1])
    values, vectors = np.linalg.eigh(correlation)
    return np.asarray(vectors @ ((vectors.sum(axis=0)) / np.sqrt(values)))


def agreement_weights(expected: Float[np.ndarray, "item layer"]) -> Float[np.ndarray, " layer"]:
    """Weights by the mean rank correlation of a layer with all others, 0 where that is negative.

    Ours: a layer that ranks items as the others do is trusted, one that goes its own way is not.

    Args:
        expected: Expected value of every layer, without NaN.
    """

    def agree(standardised: Float[np.ndarray, "item layer"]) -> Float[np.ndarray, " layer"]:
        ranks = rankdata(standardised, axis=0)
        ranks = (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)
        correlation = ranks.T @ ranks / len(ranks)
        others = correlation.sum(axis=0) - 1
        return np.asarray(np.maximum(others / max(1, len(correlation) - 1), 0))

    return _on_raw_values(expected, agree)


def _on_raw_values(expected: Float[np.ndarray, "item layer"], weigh: _Weigh) -> Float[np.ndarray, " layer"]:
    mean, spread = expected.mean(axis=0), expected.std(axis=0)
    varying = ~is_constant(mean, spread)
    weights = np.zeros(expected.shape[1])
    if varying.any():
        found = weigh((expected[:, varying] - mean[varying]) / spread[varying])
        weights[varying] = found / spread[varying]
    total = weights.sum()
    if not varying.any() or not np.isfinite(total) or abs(total) < 1e-12 * np.abs(weights).sum() or total == 0:
        return np.full(expected.shape[1], 1 / expected.shape[1])
    return np.asarray(weights / total)

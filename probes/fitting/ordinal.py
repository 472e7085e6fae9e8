"""Ordinal regression on all layers: proportional odds, shrunk like the ridge between plain and whitened.

``P(Y <= k) = sigmoid(t_k - x b)`` with ascending thresholds ``t`` (McCullagh 1980, Journal of the Royal Statistical
Society B 42(2), eq. 2.4). The penalty is that of ``probes.fitting.spectral``: on the components ``U S V'`` of the
standardised columns, ``c/2 b' (X'X)^(1/2) b``. A fractional human score counts for its two neighbouring labels, as in
the other judges that aim at a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit, logit

from probes.fitting.simplex import interpolated_target
from probes.fitting.spectral import Components, fit_spectral

_STEPS: Final = 50
# Mean loss that one more step could gain, at which the minimum counts as reached.
_GAIN: Final = 1e-12
_HALVINGS: Final = 40
_LEAST: Final = 1e-300
# Each label counts as seen so often more by an average item: one that nobody gave keeps a probability.
_PRIOR: Final = 0.1


@dataclass(frozen=True, eq=False)
class OrdinalFit:
    """Proportional odds on standardised columns.

    Attributes:
        mean: Of each column over the fit items ``[column]``.
        spread: Their standard deviation; infinite where the column is constant ``[column]``.
        coef: One weight a standardised column; 0 where the column is constant ``[column]``.
        thresholds: Ascending, one between each two neighbouring labels ``[label - 1]``.
        penalty: What the inner cross-validation chose.
        constant: Columns that do not vary ``[column]``.
        converged: Whether the minimum was reached.
    """

    mean: Float[np.ndarray, " column"]
    spread: Float[np.ndarray, " column"]
    coef: Float[np.ndarray, " column"]
    thresholds: Float[np.ndarray, " threshold"]
    penalty: float
    constant: Shaped[np.ndarray, " column"]
    converged: bool


def label_probabilities(
    latent: Float[np.ndarray, " item"], thresholds: Float[np.ndarray, " threshold"]
) -> Float[np.ndarray, "item label"]:
    """Probability of each label where the latent score is ``x b``."""
    below = expit(thresholds - latent[:, None])
    above = expit(latent[:, None] - thresholds)
    # A difference of two numbers near 1 loses what a difference of two near 0 keeps: each label takes the better.
    inner = np.where(below[:, 1:] < 0.5, np.diff(below, axis=1), -np.diff(above, axis=1))
    return np.asarray(np.hstack([below[:, :1], inner, above[:, -1:]]))


def fit_ordinal(
    columns: Float[np.ndarray, "item column"],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
) -> OrdinalFit:
    """Fit; the shrinkage is that of the ridge on the same columns, which its inner cross-validation chose.

    The two penalties mean the same where each item informs its latent score equally: ``c`` of a least-squares fit is
    ``c w`` of this one, with ``w`` the information that an item has in it at ``b = 0``. Choosing by the ridge is ten
    times faster than by the likelihood, and ranked development sets no worse.

    Args:
        columns: What is weighed.
        y: Human scores on the scale of the label values.
        groups: Group of each item; inner folds do not divide groups.
        values: Value of each label.
    """
    target = interpolated_target(y, values)
    shrinkage = fit_spectral(columns, y, groups).penalty
    parts = Components.of(columns)
    # In these columns, U S^(1/2), the penalty is that of a plain ridge.
    scaling = parts.right / np.sqrt(parts.size)
    features = np.vstack([parts.standardised @ scaling, np.zeros(len(parts.size))])
    target = np.vstack([target, np.full(len(values), _PRIOR)])
    start = logit(np.cumsum(target.sum(axis=0) / target.sum())[:-1])
    information = _pieces(np.zeros(1), start)[2].sum()
    coef, thresholds, converged = _newton(features, target, start, shrinkage * parts.unit * float(information))
    constant = np.isinf(parts.spread)
    weights = np.where(constant, 0.0, scaling @ coef)
    return OrdinalFit(parts.mean, parts.spread, weights, thresholds, shrinkage, constant, converged)


def _pieces(
    latent: Float[np.ndarray, " item"], thresholds: Float[np.ndarray, " threshold"]
) -> tuple[
    Float[np.ndarray, "item label"],
    Float[np.ndarray, "item threshold"],
    Float[np.ndarray, "item threshold threshold"],
]:
    """Probabilities, density at each threshold, and Fisher's information about the thresholds."""
    probs = np.maximum(label_probabilities(latent, thresholds), _LEAST)
    below = expit(thresholds - latent[:, None])
    density = below * (1 - below)
    n_thresholds = len(thresholds)
    information = np.zeros((len(latent), n_thresholds, n_thresholds))
    place = np.arange(n_thresholds)
    information[:, place, place] = density**2 * (1 / probs[:, :-1] + 1 / probs[:, 1:])
    beside = -density[:, :-1] * density[:, 1:] / probs[:, 1:-1]
    information[:, place[:-1], place[1:]] = information[:, place[1:], place[:-1]] = beside
    return probs, density, information


def _newton(
    features: Float[np.ndarray, "item component"],
    target: Float[np.ndarray, "item label"],
    thresholds: Float[np.ndarray, " threshold"],
    penalty: float,
) -> tuple[Float[np.ndarray, " component"], Float[np.ndarray, " threshold"], bool]:
    """Fisher scoring with step halving; the loss is convex (Pratt 1981, JASA 76(373))."""
    n_items, n_components = features.shape
    seen = target.sum(axis=1)
    coef = np.zeros(n_components)

    def loss_at(coef: Float[np.ndarray, " component"], thresholds: Float[np.ndarray, " threshold"]) -> float:
        probs = np.maximum(label_probabilities(features @ coef, thresholds), _LEAST)
        return float(-(target * np.log(probs)).sum() + penalty / 2 * coef @ coef)

    loss = loss_at(coef, thresholds)
    for _ in range(_STEPS):
        probs, density, information = _pieces(features @ coef, thresholds)
        information *= seen[:, None, None]
        ratio = target / probs
        by_threshold = density * (ratio[:, :-1] - ratio[:, 1:])
        crossed = information.sum(axis=2)
        hessian = np.empty((n_components + len(thresholds),) * 2)
        hessian[:n_components, :n_components] = features.T @ (features * crossed.sum(axis=1)[:, None])
        hessian[:n_components, n_components:] = -features.T @ crossed
        hessian[n_components:, :n_components] = hessian[:n_components, n_components:].T
        hessian[n_components:, n_components:] = information.sum(axis=0)
        size = np.arange(len(hessian))
        hessian[size, size] += np.where(size < n_components, penalty, 0.0)
        gradient = np.concatenate([-features.T @ by_threshold.sum(axis=1) - penalty * coef, by_threshold.sum(axis=0)])
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < _GAIN * n_items:
            return coef, thresholds, True
        for halving in range(_HALVINGS):
            share = 0.5**halving
            moved, cuts = coef + share * step[:n_components], thresholds + share * step[n_components:]
            if (np.diff(cuts) > 0).all() and (lower := loss_at(moved, cuts)) < loss:
                coef, thresholds, loss = moved, cuts, lower
                break
        else:
            return coef, thresholds, False
    return coef, thresholds, False

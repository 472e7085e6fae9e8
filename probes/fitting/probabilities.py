"""Layer weights on the simplex for a mixture of distributions, LAGER's ablation "aggregate probabilities".

``p = sum_l w_l softmax(z_l)``, score and loss as for logits (``fitting.simplex``). Both terms are convex in the
weights, so that the minimum found is the minimum. The paper (arXiv 2508.03550, table 2) gives no recipe of its own.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import softmax

from probes.fitting.simplex import SimplexFit, interpolated_target

# Smoothing of |r| in units of the span of the labels; the minimum of each stage starts the next.
_SMOOTHING: Final = (1e-1, 1e-2, 1e-3)
_GAP: Final = 2e-3
_TINY: Final = 1e-12


def fit_probabilities(
    logits: Float[np.ndarray, "item layer label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
) -> SimplexFit:
    """Weights that minimise ``alpha CE + (1 - alpha) |s - y|`` of the mixture of the layers' distributions.

    Args:
        logits: Score logits of the fit items.
        y: Their human scores on the scale of the label values.
        values: Value of each label.
        alpha: Weight of the cross-entropy.
    """
    probs = np.ascontiguousarray(np.moveaxis(softmax(np.asarray(logits, dtype=np.float64), axis=-1), 1, 0))
    target, span = interpolated_target(y, values), float(values[-1] - values[0])
    a = np.zeros(len(probs))
    for share in _SMOOTHING:

        def objective(a: Float[np.ndarray, " layer"], eps: float = share * span) -> tuple[float, np.ndarray]:
            weights = softmax(a)
            loss, slope = _loss(probs, weights, target, y, values, alpha, eps)
            return loss, weights * (slope - weights @ slope)

        a = minimize(objective, a, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7}).x
        a -= a.max()
        # A weight of e^-40 has no gradient left.
        a = np.maximum(a, -12.0)
    weights = softmax(a)
    loss, slope = _loss(probs, weights, target, y, values, alpha, _SMOOTHING[-1] * span)
    gap = float(weights @ slope - slope.min())
    exact, _ = _loss(probs, weights, target, y, values, alpha, 0.0)
    return SimplexFit(weights, exact, gap <= _GAP * max(loss, 1.0), gap)


def _loss(
    probs: Float[np.ndarray, "layer item label"],
    weights: Float[np.ndarray, " layer"],
    target: Float[np.ndarray, "item label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
    eps: float,
) -> tuple[float, Float[np.ndarray, " layer"]]:
    """Mean loss and its gradient with respect to the weights."""
    n_layers, n_items, n_labels = probs.shape
    flat = probs.reshape(n_layers, -1)
    mixed = (weights @ flat).reshape(n_items, n_labels)
    safe = np.maximum(mixed, _TINY)
    residual = mixed @ values - y
    errors = np.sqrt(residual**2 + eps**2)
    pull = residual / np.where(errors > 0, errors, 1.0)
    loss = (-alpha * float(np.sum(target * np.log(safe))) + (1 - alpha) * float(errors.sum())) / n_items
    by_prob = -alpha * target / safe + (1 - alpha) * pull[:, None] * values
    return loss, flat @ by_prob.ravel() / n_items

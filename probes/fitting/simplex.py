"""Layer weights on the simplex: LAGER (arXiv 2508.03550, section 3.3) and the two recipes behind its numbers.

With ``w = softmax(a)`` the aggregate of an item is ``z = sum_l w_l z_l`` (logits, not probabilities), its
distribution ``p = softmax(z)`` over the labels, its score ``s = sum_k v_k p_k``. The loss is
``alpha CE(t, p) + (1 - alpha) |s - y|``, averaged over items.

The paper does not say what alpha is, nor which of the two terms it multiplies; here it multiplies the
cross-entropy, as in the authors' code. It does not say what a fractional score's class is either; here ``t``
is its linear interpolation onto the two neighbouring labels; a score on a label gives the usual target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import softmax

from probes.fitting.optim import Adam, Plateau

ScoreLoss = Literal["abs", "square"]

# Smoothing of |r| in units of the span of the labels, from coarse to fine: the minimum of each stage starts
# the next. The last one is the most by which the smoothed loss can differ from the absolute error.
_SMOOTHING: Final = (1e-1, 1e-2, 1e-3)
_GRADIENT_TOLERANCE: Final = 1e-6
_MAX_STEPS: Final = 300
_COARSE_ITEMS: Final = 1000
_LIFT: Final = 1e-3
_RETRIES: Final = 3
_PIN: Final = 1e-3
# Converged = by its tangent, no mixture can be better by more than this (in units of the loss, or relative).
_GAP: Final = 2e-3

# The paper's appendix E.5; min_lr is from the authors' code.
_LR: Final = 0.01
_BATCH: Final = 4
_SEED: Final = 42
_FACTOR, _PATIENCE, _MIN_LR = 0.5, 1, 1e-3


@dataclass(frozen=True, eq=False)
class SimplexFit:
    """Weights of the layers, and how they were found.

    Attributes:
        weights: Non-negative, adding up to one ``[layer]``.
        loss: Mean loss of the fit items at these weights (not smoothed).
        converged: Whether a stationary point was reached; a recipe with a fixed number of steps says False.
        gap: By how much the loss could fall at most if it were convex (Frank-Wolfe gap).
    """

    weights: Float[np.ndarray, " layer"]
    loss: float
    converged: bool
    gap: float


def interpolated_target(
    y: Float[np.ndarray, " item"], values: Float[np.ndarray, " label"]
) -> Float[np.ndarray, "item label"]:
    """Distribution over the two labels around each score, with the score as its mean, within the scale."""
    y = np.clip(y, values[0], values[-1])
    below = np.clip(np.searchsorted(values, y, side="right") - 1, 0, len(values) - 2)
    share = (y - values[below]) / (values[below + 1] - values[below])
    target = np.zeros((len(y), len(values)))
    rows = np.arange(len(y))
    target[rows, below] = 1 - share
    target[rows, below + 1] = share
    return target


def floor_label(y: Float[np.ndarray, " item"], values: Float[np.ndarray, " label"]) -> Int[np.ndarray, " item"]:
    """Index of the label at or below each score (the lowest one where there is none)."""
    return np.asarray(np.clip(np.searchsorted(values, y, side="right") - 1, 0, len(values) - 1))


def mixture_loss(
    logits: Float[np.ndarray, "layer item label"],
    raw_weights: Float[np.ndarray, " layer"],
    target: Float[np.ndarray, "item label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
    *,
    score_loss: ScoreLoss = "abs",
    smoothing: float = 0.0,
) -> tuple[float, Float[np.ndarray, " layer"]]:
    """Mean loss and its gradient with respect to ``a``, where the weights are ``softmax(a)``.

    Args:
        logits: Score logits, layer first: one matrix product then mixes all items.
        raw_weights: ``a``.
        target: Distribution that the cross-entropy aims at.
        y: Score that the expectation aims at, on the scale of the label values.
        values: Value of each label.
        alpha: Weight of the cross-entropy; the score term gets ``1 - alpha``.
        score_loss: ``abs`` or ``square``.
        smoothing: ``eps`` in ``sqrt(r^2 + eps^2)`` for ``abs``; 0 is the absolute error itself, with
            the subgradient 0 at its kink, as torch has it.
    """
    weights = softmax(raw_weights)
    loss, slope = _loss_of_weights(logits, weights, target, y, values, alpha, score_loss, smoothing)
    return loss, weights * (slope - weights @ slope)


def _loss_of_weights(
    logits: Float[np.ndarray, "layer item label"],
    weights: Float[np.ndarray, " layer"],
    target: Float[np.ndarray, "item label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
    score_loss: ScoreLoss,
    smoothing: float,
) -> tuple[float, Float[np.ndarray, " layer"]]:
    """Loss and its gradient with respect to the weights themselves."""
    n_layers, n_items, n_labels = logits.shape
    flat = logits.reshape(n_layers, n_items * n_labels)
    mixed = (weights @ flat).reshape(n_items, n_labels)
    # Raw logits reach several hundred: everything is taken relative to each item's largest.
    mixed -= mixed.max(axis=1, keepdims=True)
    probs = np.exp(mixed)
    total = probs.sum(axis=1, keepdims=True)
    probs /= total
    cross_entropy = float(np.sum(target * (np.log(total) - mixed)))
    residual = probs @ values - y
    if score_loss == "square":
        errors, pull = residual**2, 2 * residual
    elif smoothing > 0:
        errors = np.sqrt(residual**2 + smoothing**2)
        pull = residual / errors
    else:
        errors, pull = np.abs(residual), np.sign(residual)
    loss = (alpha * cross_entropy + (1 - alpha) * float(errors.sum())) / n_items
    expected = (residual + y)[:, None]
    by_logit = alpha * (probs - target) + (1 - alpha) * pull[:, None] * probs * (values - expected)
    return loss, flat @ by_logit.ravel() / n_items


def fit_converged(
    logits: Float[np.ndarray, "item layer label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
) -> SimplexFit:
    """Weights at a minimum of the loss, found from uniform weights; the same input gives the same output.

    Departure from the paper, which takes 250 Adam steps and stops: Newton steps in a trust region on ``a``,
    with ``|r|`` smoothed less and less. The Hessian is only ``[layer, layer]``, and its negative curvature
    brings back a layer whose weight an early step drove to almost nothing, where a gradient step would not.
    """
    stack = _layer_first(logits)
    target = interpolated_target(y, values)
    span = float(values[-1] - values[0])
    # The coarse stages only have to find the neighbourhood: a thousand or two items do.
    stride = max(1, len(y) // _COARSE_ITEMS)
    coarse = np.ascontiguousarray(stack[:, ::stride]), target[::stride], y[::stride]
    weights = np.full(len(stack), 1 / len(stack))
    gap, bound = np.inf, 0.0
    for stage, share in enumerate((*_SMOOTHING, *[_SMOOTHING[-1]] * _RETRIES)):
        if stage >= len(_SMOOTHING) and gap <= bound:
            break
        data = coarse if stage < len(_SMOOTHING) - 1 else (stack, target, y)
        # A weight of e^-40 has no gradient left in `a`; a little of every layer gives each stage all of them.
        start = np.log((1 - _LIFT) * weights + _LIFT / len(weights))
        problem = _Newton(*data, values, alpha, share * span)
        found = minimize(
            problem.value,
            start - start.mean(),
            jac=problem.gradient,
            hess=problem.hessian,
            method="trust-exact",
            options={"gtol": _GRADIENT_TOLERANCE, "maxiter": _MAX_STEPS, "max_trust_radius": 10.0},
        )
        weights = softmax(found.x)
        if stage >= len(_SMOOTHING) - 1:
            slope = _loss_of_weights(*data[:1], weights, *data[1:], values, alpha, "abs", share * span)[1]
            gap, bound = float(weights @ slope - slope.min()), _GAP * max(found.fun, 1.0)
    loss = _loss_of_weights(stack, weights, target, y, values, alpha, "abs", 0.0)[0]
    return SimplexFit(weights, loss, gap <= bound, gap)


class _Newton:
    """Value, gradient and Hessian in ``a`` of the smoothed loss; what they share is computed once a point."""

    def __init__(
        self,
        stack: Float[np.ndarray, "layer item label"],
        target: Float[np.ndarray, "item label"],
        y: Float[np.ndarray, " item"],
        values: Float[np.ndarray, " label"],
        alpha: float,
        eps: float,
    ) -> None:
        self._data = (stack, target, y, values, alpha, eps)
        self._item_first = np.ascontiguousarray(np.moveaxis(stack, 0, 2))
        self._at: Float[np.ndarray, " layer"] | None = None
        self._value = 0.0
        self._slope = np.zeros(len(stack))

    def _visit(self, a: Float[np.ndarray, " layer"]) -> None:
        if self._at is None or not np.array_equal(a, self._at):
            stack, target, y, values, alpha, eps = self._data
            self._at = a.copy()
            self._value, self._slope = _loss_of_weights(stack, softmax(a), target, y, values, alpha, "abs", eps)

    def value(self, a: Float[np.ndarray, " layer"]) -> float:
        """The loss; the last term pins the direction that softmax does not see, where the Hessian is 0."""
        self._visit(a)
        return self._value + 0.5 * _PIN * float(a.sum()) ** 2

    def gradient(self, a: Float[np.ndarray, " layer"]) -> Float[np.ndarray, " layer"]:
        """Slope in ``a``."""
        self._visit(a)
        weights = softmax(a)
        return np.asarray(weights * (self._slope - weights @ self._slope) + _PIN * a.sum())

    def hessian(self, a: Float[np.ndarray, " layer"]) -> Float[np.ndarray, "layer layer"]:
        """Curvature in ``a``."""
        self._visit(a)
        stack, _, y, values, alpha, eps = self._data
        n_layers, n_items, n_labels = stack.shape
        weights = softmax(a)
        probs = softmax((weights @ stack.reshape(n_layers, -1)).reshape(n_items, n_labels), axis=1)
        expected = probs @ values
        tilt = probs * (values - expected[:, None])  # d expected / d logit
        residual = expected - y
        root = np.sqrt(residual**2 + eps**2)
        push, bend = (1 - alpha) * residual / root, (1 - alpha) * eps**2 / root**3
        # Per item, [label, label]: curvature of the cross-entropy, of the smoothed |r|, of the expectation.
        curve = -alpha * probs[:, :, None] * probs[:, None, :]
        curve += bend[:, None, None] * tilt[:, :, None] * tilt[:, None, :]
        cross = push[:, None, None] * probs[:, :, None] * tilt[:, None, :]
        curve -= cross + np.swapaxes(cross, 1, 2)
        diagonal = np.arange(n_labels)
        curve[:, diagonal, diagonal] += alpha * probs + push[:, None] * tilt
        flat = self._item_first.reshape(-1, n_layers)
        by_weight = flat.T @ (curve @ self._item_first).reshape(-1, n_layers) / n_items
        # Through w = softmax(a): J H J plus the curvature of the softmax itself.
        jacobian = np.diag(weights) - np.outer(weights, weights)
        lean = weights * (self._slope - weights @ self._slope)
        hessian = jacobian @ by_weight @ jacobian + np.diag(lean)
        hessian -= np.outer(weights, lean) + np.outer(lean, weights)
        return np.asarray(0.5 * (hessian + hessian.T) + _PIN)


def fit_schedule(
    logits: Float[np.ndarray, "item layer label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
    alpha: float,
    *,
    epochs: int = 1,
    target: Float[np.ndarray, "item label"] | None = None,
    score_loss: ScoreLoss = "abs",
) -> SimplexFit:
    """Weights after the paper's recipe (appendix E.5): Adam .01, batch 4, seed 42, plateau schedule.

    The order of the items comes from numpy's generator with seed 42, a new one an epoch: the paper's came
    from torch's, which cannot be reproduced without torch, and means nothing for other items anyway.

    Args:
        logits: Score logits of the fit items.
        y: Their human scores on the scale of the label values.
        values: Value of each label.
        alpha: Weight of the cross-entropy.
        epochs: Passes over the items (the paper: 1, for Qwen2.5 2).
        target: Distribution for the cross-entropy; the interpolated one unless given.
        score_loss: ``abs`` (paper) or ``square`` (authors' code).
    """
    stack = _layer_first(logits)
    if target is None:
        target = interpolated_target(y, values)
    a = np.zeros(logits.shape[1])
    adam = Adam(len(a), _LR)
    plateau = Plateau(adam, _FACTOR, _PATIENCE, _MIN_LR)
    rng = np.random.default_rng(_SEED)
    for _ in range(epochs):
        order = rng.permutation(len(y))
        losses = []
        for start in range(0, len(y), _BATCH):
            batch = order[start : start + _BATCH]
            loss, gradient = mixture_loss(
                stack[:, batch], a, target[batch], y[batch], values, alpha, score_loss=score_loss
            )
            losses.append(loss)
            a = adam.step(a, gradient)
        plateau.step(float(np.mean(losses)))
    weights = softmax(a)
    loss, slope = _loss_of_weights(stack, weights, target, y, values, alpha, score_loss, 0.0)
    return SimplexFit(weights, loss, False, float(weights @ slope - slope.min()))


def _layer_first(logits: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, "layer item label"]:
    return np.ascontiguousarray(np.moveaxis(np.asarray(logits, dtype=np.float64), 1, 0))

"""Affine maps of a layer's label logits: the tuned lens in label-logit space, and temperature with label biases.

Both are softmax regressions, a layer at a time: ``p = softmax(M z + b)``. What they aim at differs.

- The tuned lens (Belrose et al. 2023, arXiv 2303.08112, section 3) aims at the last layer's own distribution and needs
  no human scores. Departure: the paper maps the residual state, ``d_model^2`` numbers a layer, fitted on millions of
  tokens. Here the map acts on the logits of the labels, is shrunk to the identity, and an inner cross-validation
  chooses how much, the identity itself among the choices. A few hundred items cannot overfit it.
- Calibration (Guo et al. 2017, arXiv 1706.04599, section 4.2: temperature and vector scaling) aims at the human scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import log_softmax, softmax

from probes.fitting.ridge import INNER_FOLDS, group_folds, is_constant
from probes.fitting.simplex import interpolated_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Pull towards the identity, beside a mean loss, descending; in front of all stands the identity itself.
PULLS: Final[Float[np.ndarray, " penalty"]] = np.logspace(0, -6, 7)
# Pull of a temperature and label biases towards 0, as if so many items had been seen that say nothing.
_PRIOR_ITEMS: Final = 1.0
# More items do not change which pull is best.
_CHOICE_ITEMS: Final = 2000
_STEPS: Final = 50
_GAIN: Final = 1e-10
_HALVINGS: Final = 30


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """One affine map a layer.

    Attributes:
        matrix: ``[layer, label, label]``; acts on the logits of an item as they are, whatever is common to them.
        bias: ``[layer, label]``.
    """

    matrix: Float[np.ndarray, "layer label label"]
    bias: Float[np.ndarray, "layer label"]

    def to_dict(self) -> dict[str, list[Any]]:
        """JSON-ready."""
        return {"matrix": self.matrix.tolist(), "bias": self.bias.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerMaps:
        """What ``to_dict`` gave."""
        return cls(np.asarray(data["matrix"], dtype=np.float64), np.asarray(data["bias"], dtype=np.float64))

    def after(self, first: LayerMaps) -> LayerMaps:
        """First one map, then this one."""
        bias = np.einsum("lkj,lj->lk", self.matrix, first.bias) + self.bias
        return LayerMaps(self.matrix @ first.matrix, bias)

    def apply(self, logits: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, "item layer label"]:
        """Mapped logits, float64."""
        mapped = np.einsum("lkj,ilj->ilk", self.matrix, np.asarray(logits, dtype=np.float64), optimize=True)
        return np.asarray(mapped + self.bias)


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Maps to the last layer's distribution, and how near they come to it.

    Attributes:
        maps: The maps.
        pulls: Pull towards the identity that was chosen; infinite where the identity itself was ``[layer]``.
        kl_before: Kullback-Leibler divergence of the layer's own distribution from the last layer's, in nats, mean
            over items ``[layer]``.
        kl_after: The same for the mapped one; both of items that the inner cross-validation held out ``[layer]``.
    """

    maps: LayerMaps
    pulls: Float[np.ndarray, " layer"]
    kl_before: Float[np.ndarray, " layer"]
    kl_after: Float[np.ndarray, " layer"]


def kl_to_last(logits: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, "item layer"]:
    """KL(last layer || layer) of the distributions over the labels, in nats."""
    return _kl(softmax(logits[:, -1:].astype(np.float64), axis=-1), logits.astype(np.float64))


def _kl(
    target: Float[np.ndarray, "item *#layer label"], logits: Float[np.ndarray, "item *layer label"]
) -> Float[np.ndarray, "item *layer"]:
    known = np.log(np.maximum(target, np.finfo(float).tiny))
    return np.asarray((target * (known - log_softmax(logits, axis=-1))).sum(axis=-1))


def fit_tuned(logits: Float[np.ndarray, "item layer label"], groups: Shaped[np.ndarray, " item"]) -> TunedLens:
    """Fit a map a layer, on the items' logits alone.

    Args:
        logits: Logits under the lens that is to be tuned.
        groups: Group of each item; inner folds do not divide groups.
    """
    n_items, n_layers, n_labels = logits.shape
    stack = np.moveaxis(logits, 1, 0).astype(np.float64)
    target = softmax(stack[-1], axis=-1)
    choice = np.arange(n_items)[:: -(-n_items // _CHOICE_ITEMS)]
    fold = group_folds(groups[choice], INNER_FOLDS)
    maps = np.empty((n_layers, n_labels, n_labels)), np.empty((n_layers, n_labels))
    pulls, before, after = np.full((3, n_layers), np.inf)
    maps[0][-1], maps[1][-1], before[-1], after[-1] = np.eye(n_labels), 0.0, 0.0, 0.0
    for layer, of_layer in enumerate(stack[:-1]):
        losses = _held_out(of_layer[choice], target[choice], fold)
        chosen = int(np.argmin(losses))
        before[layer], after[layer] = losses[0], losses[chosen]
        pulls[layer] = np.inf if chosen == 0 else PULLS[chosen - 1]
        maps[0][layer], maps[1][layer] = _map_of(of_layer, target, pulls[layer])
    return TunedLens(LayerMaps(*maps), pulls, before, after)


def _held_out(
    logits: Float[np.ndarray, "item label"], target: Float[np.ndarray, "item label"], fold: Int[np.ndarray, " item"]
) -> Float[np.ndarray, " choice"]:
    """Mean divergence of held-out items, for the identity and for every pull."""
    losses = np.zeros(len(PULLS) + 1)
    losses[0] = _kl(target, logits).mean()
    for held_out in range(fold.max() + 1 if fold.max() > 0 else 0):
        train, test = fold != held_out, fold == held_out
        start = None
        for place, pull in enumerate(PULLS, start=1):
            matrix, bias = _map_of(logits[train], target[train], pull, start)
            start = matrix, bias
            losses[place] += _kl(target[test], logits[test] @ matrix.T + bias).sum() / len(target)
    if fold.max() == 0:
        losses[1:] = np.inf  # a single group: nothing can be held out
    return losses


def _map_of(
    logits: Float[np.ndarray, "item label"],
    target: Float[np.ndarray, "item label"],
    pull: float,
    start: tuple[Float[np.ndarray, "label label"], Float[np.ndarray, " label"]] | None = None,
) -> tuple[Float[np.ndarray, "label label"], Float[np.ndarray, " label"]]:
    """Map that minimises the mean divergence plus ``pull / 2`` times the squared distance from the identity.

    Distances are counted in columns of unit spread, so that the pull means the same for layers of any size.
    """
    n_items, n_labels = logits.shape
    if np.isinf(pull):
        return np.eye(n_labels), np.zeros(n_labels)
    own = logits - logits.mean(axis=1, keepdims=True)
    centre = own.mean(axis=0)
    size = float(np.sqrt(((own - centre) ** 2).mean()))
    spread = np.inf if is_constant(np.asarray(np.abs(own).max()), np.asarray(size)) else size
    columns = np.hstack([(own - centre) / spread, np.ones((n_items, 1))])

    def look(raw: Float[np.ndarray, " parameter"]) -> tuple[float, _Vector, Callable[[], _Matrix]]:
        weights = raw.reshape(n_labels + 1, n_labels)
        mapped = own + columns @ weights
        probs = softmax(mapped, axis=1)
        loss = float(_kl(target, mapped).mean() + pull / 2 * raw @ raw)
        gradient = (columns.T @ (probs - target) / n_items).ravel() + pull * raw

        def hessian() -> _Matrix:
            between = probs[:, :, None] * (np.eye(n_labels) - probs[:, None, :])
            pairs = columns[:, :, None] * columns[:, None, :]
            whole = pairs.reshape(n_items, -1).T @ between.reshape(n_items, -1) / n_items
            whole = whole.reshape(n_labels + 1, n_labels + 1, n_labels, n_labels).transpose(0, 2, 1, 3)
            return np.asarray(whole.reshape(len(raw), len(raw)) + pull * np.eye(len(raw)))

        return loss, gradient, hessian

    first = np.zeros((n_labels + 1, n_labels))
    if start is not None and np.isfinite(spread):
        # M - I is the weights of unit columns over spread, transposed.
        first[:-1] = (start[0] - np.eye(n_labels)).T * spread
        first[-1] = start[1] + centre @ (start[0] - np.eye(n_labels)).T
    weights = _newton(look, first.ravel()).reshape(n_labels + 1, n_labels)
    change = weights[:-1] / spread
    return np.eye(n_labels) + change.T @ (np.eye(n_labels) - 1 / n_labels), weights[-1] - centre @ change


def fit_calibration(
    logits: Float[np.ndarray, "item layer label"],
    y: Float[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
) -> LayerMaps:
    """Inverse temperature and label biases of each layer, by the cross-entropy with the human scores.

    A temperature may be negative, where a layer ranks items backwards. Standardised parameters have a prior of one
    item's weight, so that ten labelled items are enough.

    Args:
        logits: Score logits.
        y: Human scores on the scale of the label values.
        values: Value of each label.
    """
    n_items, n_layers, n_labels = logits.shape
    target = interpolated_target(y, values)
    project = np.eye(n_labels) - 1 / n_labels
    matrix, bias = np.zeros((n_layers, n_labels, n_labels)), np.zeros((n_layers, n_labels))
    for layer in range(n_layers):
        own = logits[:, layer].astype(np.float64) @ project
        centre = own.mean(axis=0)
        size = float(np.sqrt(((own - centre) ** 2).mean()))
        spread = np.inf if is_constant(np.asarray(np.abs(own).max()), np.asarray(size)) else size
        # z' = scale * (z - centre) / spread + bias, linear in the scale and the biases.
        design = np.zeros((n_items, n_labels, n_labels + 1))
        design[:, :, 0] = (own - centre) / spread
        design[:, np.arange(n_labels), np.arange(n_labels) + 1] = 1.0

        def look(
            raw: Float[np.ndarray, " parameter"], design: Float[np.ndarray, "item label parameter"] = design
        ) -> tuple[float, _Vector, Callable[[], _Matrix]]:
            mapped = design @ raw
            probs = softmax(mapped, axis=1)
            loss = float(_kl(target, mapped).mean() + _PRIOR_ITEMS / n_items / 2 * raw @ raw)
            gradient = np.einsum("ik,ikp->p", probs - target, design) / n_items + _PRIOR_ITEMS / n_items * raw

            def hessian() -> _Matrix:
                mean = np.einsum("ik,ikp->ip", probs, design)
                deviating = np.sqrt(probs)[:, :, None] * (design - mean[:, None, :])
                flat = deviating.reshape(-1, len(raw))
                return np.asarray((flat.T @ flat + _PRIOR_ITEMS * np.eye(len(raw))) / n_items)

            return loss, gradient, hessian

        found = _newton(look, np.zeros(n_labels + 1))
        scale = found[0] / spread
        matrix[layer], bias[layer] = scale * project, found[1:] - scale * centre
    return LayerMaps(matrix, bias)


_Vector = Float[np.ndarray, " parameter"]
_Matrix = Float[np.ndarray, "parameter parameter"]


def _newton(look: Callable[[_Vector], tuple[float, _Vector, Callable[[], _Matrix]]], start: _Vector) -> _Vector:
    """Minimum of a strictly convex loss, by Newton steps with halving."""
    point = start
    loss, gradient, hessian = look(point)
    for _ in range(_STEPS):
        step = np.linalg.solve(hessian(), gradient)
        if gradient @ step < _GAIN:
            break
        for halving in range(_HALVINGS):
            moved = point - 0.5**halving * step
            lower, slope, curvature = look(moved)
            if lower < loss:
                point, loss, gradient, hessian = moved, lower, slope, curvature
                break
        else:
            break
    return point

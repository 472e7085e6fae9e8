"""The recipes that weigh columns: logits of labels and layers, slopes, residual states, or texts, by ridge and kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit

from probes.errors import FitError
from probes.fitted import Form, LayerLogits, fields_of, ridge_columns, slopes, states_of
from probes.fitting.lowrank import fit_rank_one
from probes.fitting.ordinal import fit_ordinal
from probes.fitting.ridge import RidgeFit, fit_ridge, is_constant
from probes.fitting.spectral import fit_spectral
from probes.fitting.text import fit_text
from probes.fitting.wide import WideFit, fit_wide

if TYPE_CHECKING:
    from probes.aggregate import Aggregator

Found = tuple[Form, dict[str, Any], dict[str, Any]]
Labels = Float[np.ndarray, " item"]
Groups = Shaped[np.ndarray, " item"]
Fit = Callable[["Aggregator", LayerLogits, Labels, Groups], Found]

# A layer is chosen on so many items at most; more would not change the choice, and cost their square.
_CHOICE_ITEMS: Final = 1000


def _ridge(logits: LayerLogits, found: RidgeFit, columns: Any) -> Found:
    """Pack a ridge, with the weight that each layer's tilt has in it."""
    spread_of_slope = slopes(logits.logits, logits.values).std(axis=0)
    centred = logits.values - logits.values.mean()
    weights = np.zeros(len(logits.layers))
    for (layer, label), coef, spread in zip(columns, found.coef, found.spread, strict=True):
        if label < 0:
            weights[layer] += coef
        elif np.isfinite(spread):
            weights[layer] += coef / spread * centred[label] * spread_of_slope[layer]
    names = [
        logits.layers[layer] + (f"/{label}" if label >= 0 else "")
        for (layer, label), constant in zip(columns, found.constant, strict=True)
        if constant
    ]
    params = {
        "columns": columns.tolist(),
        "mean": found.mean.tolist(),
        # Infinity is not JSON, and a weight of 0 makes the divisor of a constant column immaterial.
        "spread": np.where(np.isfinite(found.spread), found.spread, 1.0).tolist(),
        "coef": found.coef.tolist(),
        "intercept": found.intercept,
        "layer_weights": weights.tolist(),
    }
    return "ridge", params, {"penalty": found.penalty, "constant_columns": names}


def _grid(layers: list[int], n_labels: int) -> Any:
    return np.array([(layer, label) for layer in layers for label in range(n_labels)])


def _columns_ridge(logits: LayerLogits, y: Labels, groups: Groups, columns: Any) -> Found:
    return _ridge(logits, fit_ridge(ridge_columns(logits.logits, logits.values, columns)[None], y, groups), columns)


def final_ridge(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On the last layer alone: recalibration."""
    return _columns_ridge(logits, y, groups, _grid([len(logits.layers) - 1], len(logits.values)))


def slope_ridge(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On the tilt of each layer."""
    return _columns_ridge(logits, y, groups, np.array([(layer, -1) for layer in range(len(logits.layers))]))


def logit_ridge(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On every logit of every layer."""
    return _columns_ridge(logits, y, groups, _grid(list(range(len(logits.layers))), len(logits.values)))


def _centred(logits: LayerLogits) -> Float[np.ndarray, "item layer label"]:
    """Logits without each layer's mean over the labels, which no distribution depends on."""
    raw = logits.logits.astype(np.float64)
    return np.asarray(raw - raw.mean(axis=2, keepdims=True))


def _of_all_layers(
    logits: LayerLogits, weights: Float[np.ndarray, "layer label"], intercept: float, penalty: float, constant: Any
) -> Found:
    """Pack weights of centred logits as weights of the logits as they are."""
    n_layers, n_labels = weights.shape
    whole = RidgeFit(
        logits.logits.mean(axis=0, dtype=np.float64).ravel(),
        np.ones(n_layers * n_labels),
        (weights - weights.mean(axis=1, keepdims=True)).ravel(),
        intercept,
        penalty,
        constant,
    )
    return _ridge(logits, whole, _grid(list(range(n_layers)), n_labels))


def spectral_ridge(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """Shrunk between plain and whitened."""
    centred = _centred(logits)
    found = fit_spectral(centred.reshape(len(centred), -1), y, groups)
    weights = (found.coef / found.spread).reshape(centred.shape[1:])
    return _of_all_layers(logits, weights, found.intercept, found.penalty, found.constant)


def low_rank_ridge(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """A weight a layer times a weight a label."""
    centred = _centred(logits)
    weights, penalty = fit_rank_one(centred, y, groups, logits.values)
    columns = centred.reshape(len(centred), -1)
    constant = is_constant(columns.mean(axis=0), columns.std(axis=0))
    return _of_all_layers(logits, weights, float(y.mean()), penalty, constant)


def spectral_ordinal(_: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """Shrunk alike, with a distribution: the columns' weights come with the item's mean at 0."""
    centred = _centred(logits)
    found = fit_ordinal(centred.reshape(len(centred), -1), y, groups, logits.values)
    weights = (found.coef / found.spread).reshape(centred.shape[1:])
    _form, params, notes = _of_all_layers(logits, weights, 0.0, found.penalty, found.constant)
    del params["intercept"]  # that is what the thresholds are
    density = expit(found.thresholds) * expit(-found.thresholds)
    gain = float(density @ np.diff(logits.values))
    params["layer_weights"] = [gain * weight for weight in params["layer_weights"]]
    params["thresholds"] = found.thresholds.tolist()
    return "ordinal", params, {**notes, "converged": found.converged}


def best_layer_ridge(self: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On one layer, which the inner cross-validation chooses with the penalty."""
    by_layer = np.moveaxis(logits.logits, 1, 0).astype(np.float64)
    varying = np.asarray(~is_constant(by_layer.mean(axis=1), by_layer.std(axis=1)).all(axis=1))
    if not varying.any():
        raise FitError(f"{self.spec} cannot be fitted: every layer gives all {len(y)} items the same logits")
    found = fit_ridge(by_layer, y, groups, candidates=varying)
    form, params, notes = _ridge(logits, found, _grid([found.problem], len(logits.values)))
    return form, params, {"layer": logits.layers[found.problem], **notes}


def _packed(found: WideFit, mean: Float[np.ndarray, " column"], spread: Float[np.ndarray, " column"]) -> dict[str, Any]:
    return {
        "mean": mean.tolist(),
        "spread": spread.tolist(),
        "coef": found.coef.tolist(),
        "intercept": found.intercept,
    }


def residual_ridge(self: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On the residual state of the layer that left-out groups are predicted best from."""
    states = states_of(logits, self.spec)
    if len(np.unique(groups)) < 2:
        raise FitError(f"{self.spec} leaves out a group at a time to choose a layer, and all {len(y)} items are of one")
    # Of all groups alike: large ones are represented by some of their items, and still left out whole.
    chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:_CHOICE_ITEMS])
    chosen = chosen if len(np.unique(groups[chosen])) > 1 else np.arange(len(y))
    errors = {}
    for layer in range(len(logits.layers)):
        columns, _mean, spread = _standardised(states.layer(layer)[chosen])
        if np.isfinite(spread).any():
            errors[layer] = fit_wide(columns, y[chosen], groups[chosen]).error
    if not errors:
        raise FitError(f"{self.spec} cannot be fitted: every layer is in the same state for all {len(y)} items")
    best = min(errors, key=errors.__getitem__)
    columns, mean, spread = _standardised(states.layer(best))
    found = fit_wide(columns, y, groups)
    # What does not vary has the weight 0, whatever it is divided by.
    params = {"layer": best, **_packed(found, mean, np.where(np.isfinite(spread), spread, 1.0))}
    notes = {"layer": logits.layers[best], "penalty": found.penalty, "n_chosen_on": len(chosen)}
    return "state-ridge", params, notes


def _standardised(
    states: Float[np.ndarray, "item d_model"],
) -> tuple[
    Float[np.ndarray, "item d_model"],
    Float[np.ndarray, " d_model"],
    Float[np.ndarray, " d_model"],
]:
    mean, spread = states.mean(axis=0), states.std(axis=0)
    spread = np.where(is_constant(mean, spread), np.inf, spread)
    return (states - mean) / spread, mean, spread


def text_ridge(self: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
    """On what the items say, which no model has read."""
    found, recipe = fit_text(fields_of(logits, self.spec), y, groups)
    params = {"recipe": recipe, **_packed(found, found.mean, np.ones(len(found.mean)))}
    return "text-ridge", params, {"penalty": found.penalty, "fields": recipe["fields"]}

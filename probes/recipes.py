"""The recipes behind the aggregators: how each one finds its weights.

A recipe gets the aggregator with its settings, the score logits of the fit items, their human scores and groups, and
returns the form of what it found, its parameters and notes on the fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit
from scipy.stats import rankdata

from probes.errors import FitError
from probes.fitted import Form, LayerLogits, expected_values, ridge_columns, slopes
from probes.fitting.consensus import agreement_weights, whitened_weights
from probes.fitting.probabilities import fit_probabilities
from probes.fitting.ridge import RidgeFit, fit_ridge, is_constant
from probes.fitting.simplex import SimplexFit, fit_converged, fit_schedule, floor_label
from probes.fitting.spectral import fit_spectral

if TYPE_CHECKING:
    from probes.aggregate import Aggregator

_Found = tuple[Form, dict[str, Any], dict[str, Any]]
_Labels = Float[np.ndarray, " item"]
_Groups = Shaped[np.ndarray, " item"]
_Fit = Callable[["Aggregator", LayerLogits, _Labels, _Groups], _Found]


@dataclass(frozen=True)
class Kind:
    """What there is to know about an aggregator: its recipe, whether labels go in, its lens and settings."""

    fit: _Fit
    needs_labels: bool
    lens: str = "norm"
    multi_layer: bool = False
    argument: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


def constant_layers(expected: Float[np.ndarray, "item layer"]) -> Bool[np.ndarray, " layer"]:
    """Layers whose expected value is the same for every item, up to rounding: they cannot rank anything."""
    return is_constant(expected.mean(axis=0), expected.std(axis=0))


def _one_layer(logits: LayerLogits, index: int) -> dict[str, Any]:
    weights = np.zeros(len(logits.layers))
    weights[index] = 1.0
    return {"weights": weights.tolist()}


def _vscore(_: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
    return "mode", _one_layer(logits, len(logits.layers) - 1), {}


def _final(_: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
    return "mixture", _one_layer(logits, len(logits.layers) - 1), {}


def _layer(self: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
    return "mixture", _one_layer(logits, logits.layer_index(self.name.partition(":")[2])), {}


def _uniform(_: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
    n_layers = len(logits.layers)
    return "mixture", {"weights": [1 / n_layers] * n_layers}, {}


def _prob_uniform(self: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
    n_layers = len(logits.layers)
    return "prob-mixture", {"weights": [1 / n_layers] * n_layers, "again": self.options["again"]}, {}


def _prob_tuned(self: Aggregator, logits: LayerLogits, y: _Labels, _groups: _Groups) -> _Found:
    _, params, notes = _simplex(fit_probabilities(logits.logits, y, logits.values, self.options["alpha"]))
    return "prob-mixture", {**params, "again": self.options["again"]}, notes


def _max_of(fit: _Fit) -> _Fit:
    """The same weights, read out as the most probable label instead of the expectation."""

    def of_mode(self: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
        form, params, notes = fit(self, logits, y, groups)
        return ("mode" if form == "mixture" else "prob-mode"), params, notes

    return of_mode


def _by_consensus(weigh: Callable[[Any], Any]) -> _Fit:
    """A mixture of the layers' expected values, whose weights come from the items' logits alone."""

    def fit(_: Aggregator, logits: LayerLogits, _y: _Labels, _groups: _Groups) -> _Found:
        weights = weigh(expected_values(logits.logits[logits.usable], logits.values))
        return "prob-mixture", {"weights": weights.tolist(), "again": 0.0}, {"n_unlabelled": int(logits.usable.sum())}

    return fit


def _best_layer(self: Aggregator, logits: LayerLogits, y: _Labels, _groups: _Groups) -> _Found:
    expected = expected_values(logits.logits, logits.values)
    varying = ~constant_layers(expected)
    if not varying.any():
        raise FitError(f"{self.spec} cannot be fitted: every layer gives all {len(y)} items the same score")
    ranks, target = rankdata(expected, axis=0), rankdata(y)
    ranks -= ranks.mean(axis=0)
    target -= target.mean()
    spread = np.sqrt((ranks**2).sum(axis=0) * (target @ target))
    agreement = np.where(varying, (target @ ranks) / np.where(spread > 0, spread, 1.0), -np.inf)
    chosen = int(np.argmax(agreement))
    notes = {"layer": logits.layers[chosen], "fit_spearman": float(agreement[chosen])}
    return "mixture", _one_layer(logits, chosen), notes


def _simplex(found: SimplexFit) -> _Found:
    notes = {"converged": found.converged, "loss": found.loss, "gap": found.gap}
    return "mixture", {"weights": found.weights.tolist()}, notes


def _lager(self: Aggregator, logits: LayerLogits, y: _Labels, _groups: _Groups) -> _Found:
    return _simplex(fit_converged(logits.logits, y, logits.values, self.options["alpha"]))


def _lager_schedule(self: Aggregator, logits: LayerLogits, y: _Labels, _groups: _Groups) -> _Found:
    epochs = int(self.options["epochs"])
    return _simplex(fit_schedule(logits.logits, y, logits.values, self.options["alpha"], epochs=epochs))


def _lager_released(self: Aggregator, logits: LayerLogits, y: _Labels, _groups: _Groups) -> _Found:
    """LAGER as the authors' code has it, where that differs from the paper.

    The last row is dropped, so the final layer has no weight; the score term is squared; its share is a
    learnable sigmoid, but computed before the only epoch and therefore constant at sigmoid(.5) on the
    cross-entropy; human scores are cast to integers, which floors them, for both terms.
    """
    if len(logits.layers) < 2:
        raise FitError(f"{self.spec} drops the last layer and needs at least two, got {len(logits.layers)}")
    label = floor_label(y, logits.values)
    found = fit_schedule(
        logits.logits[:, :-1],
        logits.values[label],
        logits.values,
        float(expit(0.5)),
        epochs=int(self.options["epochs"]),
        target=np.eye(len(logits.values))[label],
        score_loss="square",
    )
    form, params, notes = _simplex(found)
    return form, {"weights": [*params["weights"], 0.0]}, notes


def _ridge(logits: LayerLogits, found: RidgeFit, columns: Any) -> _Found:
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


def _columns_ridge(logits: LayerLogits, y: _Labels, groups: _Groups, columns: Any) -> _Found:
    return _ridge(logits, fit_ridge(ridge_columns(logits.logits, logits.values, columns)[None], y, groups), columns)


def _final_ridge(_: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    return _columns_ridge(logits, y, groups, _grid([len(logits.layers) - 1], len(logits.values)))


def _slope_ridge(_: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    return _columns_ridge(logits, y, groups, np.array([(layer, -1) for layer in range(len(logits.layers))]))


def _logit_ridge(_: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    return _columns_ridge(logits, y, groups, _grid(list(range(len(logits.layers))), len(logits.values)))


def _spectral_ridge(_: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    """On logits without each layer's mean, which no distribution depends on."""
    n_layers, n_labels = len(logits.layers), len(logits.values)
    raw = logits.logits.astype(np.float64)
    found = fit_spectral((raw - raw.mean(axis=2, keepdims=True)).reshape(len(raw), -1), y, groups)
    slope = (found.coef / found.spread).reshape(n_layers, n_labels)
    # As weights of the logits as they are.
    whole = RidgeFit(
        raw.mean(axis=0).ravel(),
        np.ones(n_layers * n_labels),
        (slope - slope.mean(axis=1, keepdims=True)).ravel(),
        found.intercept,
        found.penalty,
        found.constant,
    )
    return _ridge(logits, whole, _grid(list(range(n_layers)), n_labels))


def _best_layer_ridge(self: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    by_layer = np.moveaxis(logits.logits, 1, 0).astype(np.float64)
    varying = np.asarray(~is_constant(by_layer.mean(axis=1), by_layer.std(axis=1)).all(axis=1))
    if not varying.any():
        raise FitError(f"{self.spec} cannot be fitted: every layer gives all {len(y)} items the same logits")
    found = fit_ridge(by_layer, y, groups, candidates=varying)
    form, params, notes = _ridge(logits, found, _grid([found.problem], len(logits.values)))
    return form, params, {"layer": logits.layers[found.problem], **notes}


AGGREGATORS: Final[Mapping[str, Kind]] = {
    "vscore": Kind(_vscore, False),
    "final": Kind(_final, False),
    "layer": Kind(_layer, False, argument=True),
    "uniform": Kind(_uniform, False, "raw", True),
    "uniform-max": Kind(_max_of(_uniform), False, "raw", True),
    "prob-uniform": Kind(_prob_uniform, False, "raw", True, options={"again": 0.0}),
    "prob-uniform-max": Kind(_max_of(_prob_uniform), False, "raw", True, options={"again": 0.0}),
    "whitened": Kind(_by_consensus(whitened_weights), False, "norm", True),
    "agreement": Kind(_by_consensus(agreement_weights), False, "norm", True),
    "best-layer": Kind(_best_layer, True),
    "lager": Kind(_lager, True, "raw", True, options={"alpha": 0.5}),
    "lager-max": Kind(_max_of(_lager), True, "raw", True, options={"alpha": 0.5}),
    "prob-tuned": Kind(_prob_tuned, True, "raw", True, options={"alpha": 0.5, "again": 0.0}),
    "prob-tuned-max": Kind(_max_of(_prob_tuned), True, "raw", True, options={"alpha": 0.5, "again": 0.0}),
    "lager-schedule": Kind(_lager_schedule, True, "raw", True, options={"alpha": 0.5, "epochs": 1.0}),
    "lager-released": Kind(_lager_released, True, "raw", True, options={"epochs": 1.0}),
    "final-ridge": Kind(_final_ridge, True),
    "best-layer-ridge": Kind(_best_layer_ridge, True),
    "slope-ridge": Kind(_slope_ridge, True, multi_layer=True),
    "logit-ridge": Kind(_logit_ridge, True, multi_layer=True),
    "spectral-ridge": Kind(_spectral_ridge, True, multi_layer=True),
}

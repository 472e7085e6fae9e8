"""The recipes behind the aggregators: how each one finds its weights.

A recipe gets the aggregator with its settings, the score logits of the fit items, their human scores and groups, and
returns the form of what it found, its parameters and notes on the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit
from scipy.stats import rankdata

from probes import ridge_recipes
from probes.errors import FitError
from probes.fitted import LayerLogits, expected_values
from probes.fitting.consensus import agreement_weights, whitened_weights
from probes.fitting.maps import fit_calibration
from probes.fitting.probabilities import fit_probabilities
from probes.fitting.ridge import is_constant
from probes.fitting.simplex import SimplexFit, fit_converged, fit_schedule, floor_label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from probes.aggregate import Aggregator
    from probes.ridge_recipes import Fit, Found, Groups, Labels


@dataclass(frozen=True)
class Kind:
    """What there is to know about an aggregator.

    Attributes:
        fit: Its recipe.
        needs_labels: Whether human scores go in.
        lens: Lens that it reads unless told otherwise.
        multi_layer: Whether it mixes several layers.
        argument: Whether its name takes one (``layer:12``).
        inputs: What it reads besides logits: ``states``, ``fields``.
        options: Its settings and their usual values.
    """

    fit: Fit
    needs_labels: bool
    lens: str = "norm"
    multi_layer: bool = False
    argument: bool = False
    inputs: tuple[str, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)


def constant_layers(expected: Float[np.ndarray, "item layer"]) -> Bool[np.ndarray, " layer"]:
    """Layers whose expected value is the same for every item, up to rounding: they cannot rank anything."""
    return is_constant(expected.mean(axis=0), expected.std(axis=0))


def _one_layer(logits: LayerLogits, index: int) -> dict[str, Any]:
    weights = np.zeros(len(logits.layers))
    weights[index] = 1.0
    return {"weights": weights.tolist()}


def _vscore(_: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
    return "mode", _one_layer(logits, len(logits.layers) - 1), {}


def _final(_: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
    return "mixture", _one_layer(logits, len(logits.layers) - 1), {}


def _layer(self: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
    return "mixture", _one_layer(logits, logits.layer_index(self.name.partition(":")[2])), {}


def _uniform(_: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
    n_layers = len(logits.layers)
    return "mixture", {"weights": [1 / n_layers] * n_layers}, {}


def _prob_uniform(self: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
    n_layers = len(logits.layers)
    return "prob-mixture", {"weights": [1 / n_layers] * n_layers, "again": self.options["again"]}, {}


def _prob_tuned(self: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
    _, params, notes = _simplex(fit_probabilities(logits.logits, y, logits.values, self.options["alpha"]))
    return "prob-mixture", {**params, "again": self.options["again"]}, notes


def _max_of(fit: Fit) -> Fit:
    """The same weights, read out as the most probable label instead of the expectation."""

    def of_mode(self: Aggregator, logits: LayerLogits, y: Labels, groups: Groups) -> Found:
        form, params, notes = fit(self, logits, y, groups)
        return ("mode" if form == "mixture" else "prob-mode"), params, notes

    return of_mode


def _by_consensus(weigh: Callable[[Any], Any]) -> Fit:
    """A mixture of the layers' expected values, whose weights come from the items' logits alone."""

    def fit(_: Aggregator, logits: LayerLogits, _y: Labels, _groups: Groups) -> Found:
        weights = weigh(expected_values(logits.logits[logits.usable], logits.values))
        return "prob-mixture", {"weights": weights.tolist(), "again": 0.0}, {"n_unlabelled": int(logits.usable.sum())}

    return fit


def _calibrated(_: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
    """The mean of the layers' distributions, each with its own temperature and label biases."""
    maps = fit_calibration(logits.logits, y, logits.values)
    n_layers = len(logits.layers)
    return "prob-mixture", {"weights": [1 / n_layers] * n_layers, "again": 0.0, "maps": maps.to_dict()}, {}


def _best_layer(self: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
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


def _simplex(found: SimplexFit) -> Found:
    notes = {"converged": found.converged, "loss": found.loss, "gap": found.gap}
    return "mixture", {"weights": found.weights.tolist()}, notes


def _lager(self: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
    return _simplex(fit_converged(logits.logits, y, logits.values, self.options["alpha"]))


def _lager_schedule(self: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
    epochs = int(self.options["epochs"])
    return _simplex(fit_schedule(logits.logits, y, logits.values, self.options["alpha"], epochs=epochs))


def _lager_released(self: Aggregator, logits: LayerLogits, y: Labels, _groups: Groups) -> Found:
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
    "calibrated": Kind(_calibrated, True, multi_layer=True),
    "final-ridge": Kind(ridge_recipes.final_ridge, True),
    "best-layer-ridge": Kind(ridge_recipes.best_layer_ridge, True),
    "slope-ridge": Kind(ridge_recipes.slope_ridge, True, multi_layer=True),
    "logit-ridge": Kind(ridge_recipes.logit_ridge, True, multi_layer=True),
    "low-rank-ridge": Kind(ridge_recipes.low_rank_ridge, True, multi_layer=True),
    "spectral-ridge": Kind(ridge_recipes.spectral_ridge, True, multi_layer=True),
    "spectral-ordinal": Kind(ridge_recipes.spectral_ordinal, True, multi_layer=True),
    "residual-ridge": Kind(ridge_recipes.residual_ridge, True, inputs=("states",)),
    "text-ridge": Kind(ridge_recipes.text_ridge, True, inputs=("fields",)),
}

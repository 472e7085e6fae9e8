"""Aggregators: from the score logits of all layers to one score an item.

``get_aggregator("lager")`` gives a recipe, its ``fit`` a ``FittedAggregator``. A name may carry a lens
(``lager@norm``), ``layer`` needs an argument (``layer:12``, ``layer:embed``), and settings may follow a colon
(``lager:alpha=0.3@norm``). LAGER and its untuned mean default to the ``raw`` lens, on which the paper defines
them; everything else defaults to ``norm``.

``needs_labels`` says whether human scores go into a judge: a judge that was fitted on them must be compared
with one that has seen as many (``final-ridge``, ``best-layer-ridge``), not with ``final`` alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit
from scipy.stats import rankdata

from probes.errors import FitError
from probes.fitted import (
    FittedAggregator,
    Form,
    LayerLogits,
    Scores,
    expected_values,
    ridge_columns,
    slopes,
)
from probes.fitting.ridge import RidgeFit, fit_ridge, is_constant
from probes.fitting.simplex import SimplexFit, fit_converged, fit_schedule, floor_label
from probes.fitting.threads import one_blas_thread

__all__ = [
    "AGGREGATORS",
    "MIN_FIT",
    "Aggregator",
    "FittedAggregator",
    "LayerLogits",
    "Scores",
    "constant_layers",
    "expected_values",
    "get_aggregator",
]

# Fewer labelled items than this say nothing about layers, whatever the method.
MIN_FIT: Final = 10

_Found = tuple[Form, dict[str, Any], dict[str, Any]]
_Labels = Float[np.ndarray, " item"]
_Groups = Shaped[np.ndarray, " item"]
_Fit = Callable[["Aggregator", LayerLogits, _Labels, _Groups], _Found]


@dataclass(frozen=True)
class _Kind:
    fit: _Fit
    needs_labels: bool
    lens: str = "norm"
    multi_layer: bool = False
    argument: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Aggregator:
    """A recipe for turning layers into a score.

    Attributes:
        name: Its name, with the argument (``layer:12``).
        lens: Lens whose logits it reads.
        needs_labels: Whether human scores go into it.
        multi_layer: Whether it mixes several layers, as opposed to choosing one.
        options: Settings such as ``alpha``.
    """

    name: str
    lens: str
    needs_labels: bool
    multi_layer: bool
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name without its argument."""
        return self.name.partition(":")[0]

    @property
    def label(self) -> str:
        """The name with the settings that are not the default ones, without the lens."""
        usual = AGGREGATORS[self.kind].options
        changed = [f"{name}={value:g}" for name, value in self.options.items() if value != usual[name]]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @property
    def spec(self) -> str:
        """What ``get_aggregator`` reads; the lens only where it is not the default one."""
        return self.label if self.lens == AGGREGATORS[self.kind].lens else f"{self.label}@{self.lens}"

    def fit(self, logits: LayerLogits, y: _Labels | None = None, groups: _Groups | None = None) -> FittedAggregator:
        """Fit on items; a judge that needs no labels ignores ``y`` and only takes note of the layers.

        Args:
            logits: Score logits of captured items under this aggregator's lens.
            y: Their human scores on the scale of the label values.
            groups: Source of each item, so that inner validation does not divide sources; each item is its
                own unless given.

        Raises:
            FitError: The lens is another one, the layer does not exist, or the labels are missing, too few,
                not finite or all equal.
        """
        if logits.lens != self.lens:
            raise FitError(f"{self.spec} reads the lens {self.lens!r}, but got logits of {logits.lens!r}")
        n_items = len(logits) if self.needs_labels else 0
        if self.needs_labels:
            y = self._checked(logits, y)
        with one_blas_thread():
            form, params, notes = AGGREGATORS[self.kind].fit(
                self,
                logits,
                np.zeros(len(logits)) if y is None else np.asarray(y, dtype=np.float64),
                np.arange(len(logits)) if groups is None else groups,
            )
        return FittedAggregator(
            self.label,
            self.lens,
            tuple(logits.layers),
            tuple(float(value) for value in logits.values),
            form,
            params,
            {"n_fit": n_items, **notes},
        )

    def _checked(self, logits: LayerLogits, y: _Labels | None) -> _Labels:
        if y is None:
            raise FitError(f"{self.spec} needs human scores to fit: pass them, or use a judge such as uniform")
        y = np.asarray(y, dtype=np.float64)
        if len(y) != len(logits):
            raise FitError(f"{self.spec} got {len(y)} human scores for {len(logits)} items: pass one an item")
        if not np.isfinite(y).all() or not logits.usable.all():
            raise FitError(f"{self.spec} can only be fitted on captured items with a human score: drop the others")
        if len(y) < MIN_FIT:
            raise FitError(
                f"{self.spec} needs at least {MIN_FIT} items with a human score to fit, got {len(y)}: "
                "label more items, or use a judge that needs none, such as uniform"
            )
        if y.min() == y.max():
            raise FitError(
                f"{self.spec} cannot be fitted: all {len(y)} human scores are {y[0]:g}; add items that differ"
            )
        return y


def get_aggregator(spec: str, **options: int | float) -> Aggregator:
    """An aggregator by name.

    Args:
        spec: ``name`` or ``name@lens``; ``layer:k`` names its layer, ``lager:alpha=0.3`` changes a setting.
        **options: Settings of that aggregator: ``alpha`` (``lager``, ``lager-schedule``), ``epochs``
            (``lager-schedule``, ``lager-released``).

    Raises:
        FitError: There is no such aggregator or setting, or a value is out of range.
    """
    name, _, lens = spec.partition("@")
    base, colon, argument = name.partition(":")
    kind = AGGREGATORS.get(base)
    if kind is None:
        close = difflib.get_close_matches(base, AGGREGATORS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        names = [f"{known}:LAYER" if AGGREGATORS[known].argument else known for known in AGGREGATORS]
        raise FitError(f"unknown judge {spec!r}{hint}: choose one of {', '.join(names)}")
    if kind.argument and not argument:
        raise FitError(f"{base} needs a layer: write {base}:12 or {base}:embed")
    if colon and not kind.argument:
        options = {**_settings(base, argument), **options}
        name = base
    if "@" in spec and not lens:
        raise FitError(f"the judge {spec!r} names no lens after @: write {name}@raw or {name}@norm")
    for option, value in options.items():
        if option not in kind.options:
            known_options = ", ".join(kind.options) or "none"
            raise FitError(f"{base} has no setting {option!r}: it has {known_options}")
        if option == "alpha" and not 0 <= value <= 1:
            raise FitError(f"alpha must lie between 0 and 1, got {value:g}")
        if option == "epochs" and (value < 1 or value != int(value)):
            raise FitError(f"epochs must be a whole number from 1, got {value:g}")
    return Aggregator(
        name,
        lens or kind.lens,
        kind.needs_labels,
        kind.multi_layer,
        {**kind.options, **{key: float(value) for key, value in options.items()}},
    )


def _settings(base: str, text: str) -> dict[str, float]:
    settings = {}
    for part in text.split(","):
        option, equals, value = part.partition("=")
        try:
            settings[option.strip()] = float(value)
        except ValueError:
            hint = f"write {base}:{option}=NUMBER" if equals else f"write {base}"
            raise FitError(f"{base} takes no argument {part!r}: {hint}") from None
    return settings


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


def _best_layer_ridge(self: Aggregator, logits: LayerLogits, y: _Labels, groups: _Groups) -> _Found:
    by_layer = np.moveaxis(logits.logits, 1, 0).astype(np.float64)
    varying = np.asarray(~is_constant(by_layer.mean(axis=1), by_layer.std(axis=1)).all(axis=1))
    if not varying.any():
        raise FitError(f"{self.spec} cannot be fitted: every layer gives all {len(y)} items the same logits")
    found = fit_ridge(by_layer, y, groups, candidates=varying)
    form, params, notes = _ridge(logits, found, _grid([found.problem], len(logits.values)))
    return form, params, {"layer": logits.layers[found.problem], **notes}


AGGREGATORS: Final[Mapping[str, _Kind]] = {
    "vscore": _Kind(_vscore, False),
    "final": _Kind(_final, False),
    "layer": _Kind(_layer, False, argument=True),
    "uniform": _Kind(_uniform, False, "raw", True),
    "best-layer": _Kind(_best_layer, True),
    "lager": _Kind(_lager, True, "raw", True, options={"alpha": 0.5}),
    "lager-schedule": _Kind(_lager_schedule, True, "raw", True, options={"alpha": 0.5, "epochs": 1.0}),
    "lager-released": _Kind(_lager_released, True, "raw", True, options={"epochs": 1.0}),
    "final-ridge": _Kind(_final_ridge, True),
    "best-layer-ridge": _Kind(_best_layer_ridge, True),
    "slope-ridge": _Kind(_slope_ridge, True, multi_layer=True),
    "logit-ridge": _Kind(_logit_ridge, True, multi_layer=True),
}

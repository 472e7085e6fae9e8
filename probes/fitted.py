"""What an aggregator reads, what it gives, and what is left of it once it is fitted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import softmax

from probes.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Mapping


Form = Literal["mode", "mixture", "prob-mode", "prob-mixture", "ridge"]


@dataclass(frozen=True, eq=False)
class LayerLogits:
    """Score logits of every layer under one lens.

    Attributes:
        logits: Score logits, float32 ``[item, layer, label]``; a row with a NaN was not captured.
        layers: Labels of the layer axis, ``embed, 1 .. L``.
        values: What each label is worth, ascending ``[label]``.
        lens: Name of the lens.
    """

    logits: Float[np.ndarray, "item layer label"]
    layers: tuple[str, ...]
    values: Float[np.ndarray, " label"]
    lens: str

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " item"]) -> LayerLogits:
        """The same for some items, by index or by mask."""
        return LayerLogits(self.logits[rows], self.layers, self.values, self.lens)

    @property
    def usable(self) -> Bool[np.ndarray, " item"]:
        """Which items were captured: every logit is finite."""
        return np.asarray(np.isfinite(self.logits).all(axis=(1, 2)))

    def layer_index(self, layer: str) -> int:
        """Position of a layer label on the layer axis.

        Raises:
            FitError: There is no such layer.
        """
        if layer not in self.layers:
            raise FitError(
                f"there is no layer {layer!r}: choose one of {self.layers[0]}, {self.layers[1]} .. {self.layers[-1]}"
            )
        return self.layers.index(layer)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of items.

    Attributes:
        value: On the scale of the label values, float64 ``[item]``; NaN where nothing was captured.
        probs: Probability of each label ``[item, label]``; None for judges that give a number only.
    """

    value: Float[np.ndarray, " item"]
    probs: Float[np.ndarray, "item label"] | None


def expected_values(
    logits: Float[np.ndarray, "*batch label"], values: Float[np.ndarray, " label"]
) -> Float[np.ndarray, "*batch"]:
    """Expected label value under the softmax of the logits, float64; NaN stays."""
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=-1) @ values)


@dataclass(frozen=True, eq=False)
class FittedAggregator:
    """An aggregator ready to score; nothing but data.

    Attributes:
        name: Name of the aggregator, with its argument (``lager``, ``layer:12``).
        lens: Lens of the logits that it was fitted on, and the only one that it accepts.
        layers: Their layer labels.
        values: Their label values.
        form: What ``params`` mean. ``mixture``: ``weights [layer]`` mix the logits, then softmax and
            expectation; ``mode``: the same, but the value of the most probable label; ``prob-mixture`` and
            ``prob-mode``: ``weights`` mix the layers' distributions instead, after which ``again``, if not 0, takes
            their softmax once more; ``ridge``: ``mean``,
            ``spread``, ``coef`` of standardised ``columns`` (``[layer index, label index]``, or
            ``[layer index, -1]`` for a layer's slope) and ``intercept``.
        params: Floats and lists of floats.
        notes: How the fit went: ``n_fit``, ``converged``, ``constant_columns`` ...
    """

    name: str
    lens: str
    layers: tuple[str, ...]
    values: tuple[float, ...]
    form: Form
    params: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, logits: LayerLogits) -> Scores:
        """Score items; a row with a NaN gives NaN.

        Raises:
            FitError: The logits have other layers, another lens or other labels.
        """
        self.check(logits.layers, logits.lens, logits.values)
        usable = logits.usable
        value = np.full(len(logits), np.nan)
        used = logits.logits[usable].astype(np.float64)
        if self.form == "ridge":
            value[usable] = self._ridge(used)
            return Scores(value, None)
        weights, values = np.asarray(self.params["weights"]), np.asarray(self.values)
        probs = np.full((len(logits), len(self.values)), np.nan)
        if self.form.startswith("prob-"):
            mixed = weights @ softmax(used, axis=-1)
            probs[usable] = softmax(mixed, axis=-1) if self.params.get("again") else mixed
        else:
            probs[usable] = softmax(weights @ used, axis=-1)
        of_mode = self.form.endswith("mode")
        value[usable] = values[probs[usable].argmax(axis=-1)] if of_mode else probs[usable] @ values
        # With negative weights, what adds up to one is no distribution.
        return Scores(value, probs if (weights >= 0).all() or not self.form.startswith("prob-") else None)

    def check(self, layers: tuple[str, ...], lens: str, values: Shaped[np.ndarray, " label"]) -> None:
        """Refuse logits that this aggregator was not fitted for.

        Raises:
            FitError: The logits have other layers, another lens or other labels.
        """
        if lens != self.lens:
            raise FitError(f"{self.name} was fitted on the lens {self.lens!r}, not {lens!r}: pass its logits")
        if tuple(layers) != self.layers:
            raise FitError(
                f"{self.name} was fitted on {len(self.layers)} layers "
                f"({self.layers[0]} .. {self.layers[-1]}), not on {len(layers)} ({layers[0]} .. "
                f"{layers[-1]}): it belongs to another model"
            )
        if len(values) != len(self.values) or not np.array_equal(values, self.values):
            raise FitError(
                f"{self.name} was fitted on labels worth {_numbers(self.values)}, not {_numbers(values)}: "
                "fit it on this scale"
            )

    def _ridge(self, used: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, " item"]:
        columns = ridge_columns(used, np.asarray(self.values), np.asarray(self.params["columns"], dtype=int))
        standardised = (columns - np.asarray(self.params["mean"])) / np.asarray(self.params["spread"])
        return np.asarray(self.params["intercept"] + standardised @ np.asarray(self.params["coef"]))

    def layer_weights(self) -> Float[np.ndarray, " layer"]:
        """One weight a layer.

        For mixtures the weights themselves. For ridges, signed: by how much the score moves, in label values,
        when the layer's logits are tilted towards the high labels by one standard deviation (over the fit
        items) of their slope on the label values. This makes the ridges comparable with each other, and a
        ridge on slopes gives its standardised coefficients.
        """
        key = "weights" if self.form != "ridge" else "layer_weights"
        return np.asarray(self.params[key], dtype=np.float64)


def slopes(
    logits: Float[np.ndarray, "*batch label"], values: Float[np.ndarray, " label"]
) -> Float[np.ndarray, "*batch"]:
    """Least-squares slope of the label logits on the label values."""
    centred = values - values.mean()
    return np.asarray(np.asarray(logits, dtype=np.float64) @ (centred / (centred @ centred)))


def ridge_columns(
    logits: Float[np.ndarray, "item layer label"],
    values: Float[np.ndarray, " label"],
    columns: Int[np.ndarray, "column 2"],
) -> Float[np.ndarray, "item column"]:
    """What a ridge sees: per column the logit of ``[layer, label]``, or the slope of ``[layer, -1]``."""
    layer, label = columns.T
    if (label < 0).all():
        return slopes(logits[:, layer], values)
    return np.asarray(logits[:, layer, label], dtype=np.float64)


def _numbers(values: tuple[float, ...] | Shaped[np.ndarray, " label"]) -> str:
    return ", ".join(f"{value:g}" for value in values)

"""What an aggregator reads, what it gives, and what is left of it once it is fitted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import softmax

from probes.errors import FitError
from probes.fitting.maps import LayerMaps
from probes.fitting.ordinal import label_probabilities
from probes.fitting.text import text_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


Form = Literal["mode", "mixture", "prob-mode", "prob-mixture", "ridge", "ordinal", "state-ridge", "text-ridge"]
# Forms that have columns of logits, and those that have no distribution.
TUNED: Final = "tuned"
LINEAR: Final = ("ridge", "ordinal")
NUMBERS: Final = ("ridge", "state-ridge", "text-ridge")


class States:
    """Residual states of some items, read a layer at a time.

    Args:
        read: Gives the states of one layer, of all items of a run ``[item, d_model]``.
        rows: The items that these are, by their place in the run; all unless given.
    """

    def __init__(
        self, read: Callable[[int], Float[np.ndarray, "item d_model"]], rows: Int[np.ndarray, " row"] | None = None
    ) -> None:
        self._read = read
        self._rows = rows

    def layer(self, index: int) -> Float[np.ndarray, "item d_model"]:
        """States of one layer, float64."""
        states = self._read(index)
        return np.asarray(states if self._rows is None else states[self._rows], dtype=np.float64)

    def select(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " item"]) -> States:
        """The same for some items, by index or by mask."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        return States(self._read, chosen if self._rows is None else self._rows[chosen])


@dataclass(frozen=True, eq=False)
class LayerLogits:
    """Score logits of every layer under one lens.

    Attributes:
        logits: Score logits, float32 ``[item, layer, label]``; a row with a NaN was not captured.
        layers: Labels of the layer axis, ``embed, 1 .. L``.
        values: What each label is worth, ascending ``[label]``.
        lens: Name of the lens.
        states: The residual states behind them, where the run holds them; for judges that read states.
        fields: Texts of every item, by name; for judges that read texts.
    """

    logits: Float[np.ndarray, "item layer label"]
    layers: tuple[str, ...]
    values: Float[np.ndarray, " label"]
    lens: str
    states: States | None = None
    fields: Sequence[Mapping[str, str]] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, rows: Int[np.ndarray, " row"] | Bool[np.ndarray, " item"]) -> LayerLogits:
        """The same for some items, by index or by mask."""
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            logits=self.logits[chosen],
            states=None if self.states is None else self.states.select(chosen),
            fields=None if self.fields is None else [self.fields[row] for row in chosen.tolist()],
        )

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
            their softmax once more. ``ridge``: ``mean``, ``spread``, ``coef`` of standardised ``columns`` (``[layer
            index, label index]``, or ``[layer index, -1]`` for a layer's slope) and ``intercept``; ``ordinal``: the
            same columns give a latent score, from which ``thresholds [label - 1]`` make a distribution, and its
            expectation is the score. ``state-ridge``: ``mean``, ``spread``, ``coef [d_model]`` of the residual state
            of ``layer``, and ``intercept``. ``text-ridge``: the same of the columns that ``recipe`` says
            (``probes.fitting.text``). In all but the last two, ``maps`` (``matrix [layer, label, label]``, ``bias
            [layer, label]``) change the logits first, if they are there.
        params: Floats and lists of floats, and what their form says.
        notes: How the fit went: ``n_fit``, ``converged``, ``constant_columns`` ...
    """

    name: str
    lens: str
    layers: tuple[str, ...]
    values: tuple[float, ...]
    form: Form
    params: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """Lens of the logits that it is given; see ``Aggregator.reads``."""
        return reads(self.lens)

    @property
    def layer_of_states(self) -> str | None:
        """The layer whose residual states it reads; None where it reads none."""
        return self.layers[int(self.params["layer"])] if self.form == "state-ridge" else None

    def predict(self, logits: LayerLogits) -> Scores:
        """Score items; a row with a NaN gives NaN.

        Raises:
            FitError: The logits have other layers, another lens or other labels.
        """
        self.check(logits.layers, logits.lens, logits.values)
        usable = logits.usable
        value = np.full(len(logits), np.nan)
        if self.form in NUMBERS:
            value[usable] = self._number(logits.select(usable))
            return Scores(value, None)
        probs = np.full((len(logits), len(self.values)), np.nan)
        probs[usable] = self._probabilities(self._mapped(logits.logits[usable]))
        values = np.asarray(self.values)
        of_mode = self.form.endswith("mode")
        value[usable] = values[probs[usable].argmax(axis=-1)] if of_mode else probs[usable] @ values
        # With negative weights, what adds up to one is no distribution.
        known = not self.form.startswith("prob-") or min(self.params["weights"]) >= 0
        return Scores(value, probs if known else None)

    def _mapped(self, logits: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, "item layer label"]:
        maps = self.params.get("maps")
        return logits.astype(np.float64) if maps is None else LayerMaps.from_dict(maps).apply(logits)

    def _probabilities(self, used: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, "item label"]:
        if self.form == "ordinal":
            return label_probabilities(self._weighed(used), np.asarray(self.params["thresholds"]))
        weights = np.asarray(self.params["weights"])
        if not self.form.startswith("prob-"):
            return np.asarray(softmax(weights @ used, axis=-1))
        mixed = weights @ softmax(used, axis=-1)
        return np.asarray(softmax(mixed, axis=-1) if self.params.get("again") else mixed)

    def _number(self, logits: LayerLogits) -> Float[np.ndarray, " item"]:
        intercept = float(self.params["intercept"])
        if self.form == "ridge":
            return intercept + self._weighed(self._mapped(logits.logits))
        if self.form == "text-ridge":
            columns = text_columns(fields_of(logits, self.name), self.params["recipe"])
        else:
            columns = states_of(logits, self.name).layer(int(self.params["layer"]))
        if columns.shape[1] != len(self.params["coef"]):
            raise FitError(
                f"{self.name} was fitted on {len(self.params['coef'])} numbers an item, not on {columns.shape[1]}: it "
                "belongs to another model"
            )
        return np.asarray(intercept + self._standardised(columns) @ np.asarray(self.params["coef"]))

    def _weighed(self, used: Float[np.ndarray, "item layer label"]) -> Float[np.ndarray, " item"]:
        columns = ridge_columns(used, np.asarray(self.values), np.asarray(self.params["columns"], dtype=int))
        return np.asarray(self._standardised(columns) @ np.asarray(self.params["coef"]))

    def _standardised(self, columns: Float[np.ndarray, "item column"]) -> Float[np.ndarray, "item column"]:
        return np.asarray((columns - np.asarray(self.params["mean"])) / np.asarray(self.params["spread"]))

    def check(self, layers: tuple[str, ...], lens: str, values: Shaped[np.ndarray, " label"]) -> None:
        """Refuse logits that this aggregator was not fitted for.

        Raises:
            FitError: The logits have other layers, another lens or other labels.
        """
        if lens != self.reads:
            raise FitError(f"{self.name} was fitted on the lens {self.reads!r}, not {lens!r}: pass its logits")
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

    def layer_weights(self) -> Float[np.ndarray, " layer"]:
        """One weight a layer.

        For mixtures the weights themselves. For judges that weigh logits, signed: by how much the score of an average
        item moves, in label values, when the layer's logits are tilted towards the high labels by one standard
        deviation (over the fit items) of their slope on the label values. This makes them comparable with each
        other, and a ridge on slopes gives its standardised coefficients. For a judge that reads the states of one
        layer, 1 there; for one that reads texts, 0 everywhere.
        """
        if self.form in LINEAR:
            return np.asarray(self.params["layer_weights"], dtype=np.float64)
        if "weights" in self.params:
            return np.asarray(self.params["weights"], dtype=np.float64)
        weights = np.zeros(len(self.layers))
        if self.form == "state-ridge":
            weights[int(self.params["layer"])] = 1.0
        return weights


def reads(lens: str) -> str:
    """Lens of the logits that a judge is given: those of ``norm`` where it learns the ``tuned`` lens from them."""
    return "norm" if lens == TUNED else lens


def states_of(logits: LayerLogits, name: str) -> States:
    """The residual states behind logits.

    Raises:
        FitError: The run holds none.
    """
    if logits.states is None:
        raise FitError(
            f"{name} reads residual states, which are not there: capture with residuals, one reading an item, and "
            "pass the run"
        )
    return logits.states


def fields_of(logits: LayerLogits, name: str) -> Sequence[Mapping[str, str]]:
    """The texts of the items.

    Raises:
        FitError: They are not there.
    """
    if logits.fields is None:
        raise FitError(f"{name} reads the texts of the items, which these logits come without: pass the run")
    return logits.fields


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

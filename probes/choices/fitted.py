"""What is left of a judge of choices once it is fitted: numbers that choose between the choices of any item."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from probes.choices.columns import logit_columns
from probes.choices.data import PERS, ChoiceData
from probes.choices.ragged import first_largest, largest, log_softmax
from probes.choices.text import n_columns_of, text_columns
from probes.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ChoiceForm = Literal["choice-mixture", "choice-prob-mixture", "choice-logit", "choice-text"]
FORMS: Final = get_args(ChoiceForm)


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """What a judge says of items.

    Attributes:
        value: Probability of the choice that is taken ``[item]``; NaN where nothing was captured.
        choice: Number of the most likely choice of each item, the first of equal ones; -1 where nothing was captured.
        logp: Log-probability of every choice among those of its item; NaN where nothing was captured.
        offsets: Where the choices of each item start.
    """

    value: Float[np.ndarray, " item"]
    choice: Int[np.ndarray, " item"]
    logp: Float[np.ndarray, " choice"]
    offsets: Int[np.ndarray, " edge"]

    @property
    def probs(self) -> Float[np.ndarray, " choice"]:
        """Probability of every choice among those of its item."""
        return np.asarray(np.exp(self.logp))


@dataclass(frozen=True, eq=False)
class FittedChoices:
    """A judge of choices ready to score; nothing but data.

    Attributes:
        name: Name of the judge, with its argument and settings.
        lens: Lens of the log-likelihoods that it was fitted on, and the only one that it accepts.
        layers: Their layer labels.
        form: What ``params`` mean. ``per`` is what log-likelihoods are divided by: nothing, ``token``, ``byte`` or
            ``char``.
            ``choice-mixture``: ``weights [layer]`` mix the log-likelihoods, then softmax over the choices;
            ``choice-prob-mixture``: ``weights`` mix the layers' distributions. ``choice-logit``: the utility of a
            choice is ``coef`` times the columns over their ``spread``: log-likelihoods of ``columns [layer index]``,
            the logarithm of the number of tokens, and a bias for each of ``labels``. ``choice-text``: ``coef`` times
            the columns that ``recipe`` says (``probes.choices.text``).
        params: Floats, texts and lists of them.
        notes: How the fit went: ``n_fit``, ``converged``, ``constant_columns`` ...
    """

    name: str
    lens: str
    layers: tuple[str, ...]
    form: ChoiceForm
    params: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """Lens of the log-likelihoods that it is given."""
        return self.lens

    @property
    def values(self) -> tuple[float, ...]:
        """Choices have no values in common."""
        return ()

    @property
    def layer_of_states(self) -> None:
        """It reads no states."""
        return

    def predict(self, data: ChoiceData) -> ChoiceScores:
        """Choose; an item with a NaN gives NaN.

        Raises:
            FitError: The log-likelihoods have other layers or another lens.
        """
        self.check(data.layers, data.lens)
        usable = np.flatnonzero(data.usable)
        known = data.select(usable)
        logp = np.full(len(data.logprob), np.nan)
        value, choice = np.full(len(data), np.nan), np.full(len(data), -1, dtype=np.int64)
        if len(usable):
            found = log_softmax(self._utility(known), known.offsets)
            logp[data.rows(usable)] = found
            value[usable] = np.exp(largest(found, known.offsets))
            choice[usable] = first_largest(found, known.offsets)
        return ChoiceScores(value, choice, logp, data.offsets)

    def _utility(self, data: ChoiceData) -> Float[np.ndarray, " choice"]:
        params = self.params
        if self.form == "choice-text":
            return np.asarray(text_columns(data, params["recipe"]) @ np.asarray(params["coef"]))
        logprob = data.divided(params["per"])
        if self.form == "choice-logit":
            columns = logit_columns(data, logprob[:, np.asarray(params["columns"], dtype=int)], params["labels"])
            return np.asarray((columns / np.asarray(params["spread"])) @ np.asarray(params["coef"]))
        weights = np.asarray(params["weights"])
        if self.form == "choice-mixture":
            return np.asarray(logprob @ weights)
        mixed = logsumexp(log_softmax(logprob, data.offsets), b=weights, axis=1)
        return np.asarray(mixed)

    def check(self, layers: Sequence[str], lens: str) -> None:
        """Refuse log-likelihoods that this judge was not fitted for.

        Raises:
            FitError: They have other layers or another lens.
        """
        if lens != self.lens:
            raise FitError(f"{self.name} was fitted on the lens {self.lens!r}, not {lens!r}: pass its log-likelihoods")
        if tuple(layers) != self.layers:
            raise FitError(
                f"{self.name} was fitted on {len(self.layers)} layers ({self.layers[0]} .. {self.layers[-1]}), not on "
                f"{len(layers)} ({layers[0]} .. {layers[-1]}): it belongs to another model"
            )

    def layer_weights(self) -> Float[np.ndarray, " layer"]:
        """One weight a layer.

        Of a mixture the weights themselves; of a logit the signed weight of the layer's log-likelihoods, divided by
        their spread within items; 0 everywhere for a judge that reads texts.
        """
        weights = np.zeros(len(self.layers))
        if "weights" in self.params:
            weights[:] = self.params["weights"]
        elif self.form == "choice-logit":
            columns = np.asarray(self.params["columns"], dtype=int)
            weights[columns] = np.asarray(self.params["coef"])[: len(columns)]
        return weights

    def check_params(self) -> None:
        """Refuse parameters of the wrong shape or size, which would fail later or score nonsense.

        Raises:
            KeyError: One is missing.
            ValueError: One is wrong.
        """
        params, n_layers = self.params, len(self.layers)
        shapes: dict[str, int]
        if self.form == "choice-text":
            shapes = {"coef": n_columns_of(params["recipe"])}
        else:
            if params["per"] not in PERS:
                raise ValueError("per is neither token nor byte nor char")
            shapes = {"weights": n_layers}
        if self.form == "choice-logit":
            columns, labels = np.asarray(params["columns"]), params["labels"]
            if columns.dtype.kind != "i" or columns.ndim != 1 or len(np.unique(columns)) < len(columns):
                raise ValueError("columns are no list of different layers")
            if (columns < 0).any() or (columns >= n_layers).any():
                raise ValueError("a column lies outside the layers")
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise ValueError("labels are no list of texts")
            shapes = dict.fromkeys(("coef", "spread"), len(columns) + 1 + len(labels))
        for name, size in shapes.items():
            array = np.asarray(params[name])
            if array.shape != (size,) or array.dtype.kind not in "fi":
                raise ValueError(f"{name} has the wrong shape or type")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite")
            if (name == "spread" and (array <= 0).any()) or (name == "weights" and (array < 0).any()):
                raise ValueError(f"a number of {name} is below what it can be")

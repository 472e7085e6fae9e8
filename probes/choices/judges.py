"""Judges of choices, by name: from the log-likelihoods of all layers to one answer an item.

They bear the names of the judges of scores (``probes.aggregate``) whose idea they share. ``per_token=1``,
``per_byte=1`` or ``per_char=1`` divides log-likelihoods by the length of the choice first. What evaluation harnesses
call ``acc`` is ``final``, ``acc_norm`` is ``final:per_char=1`` and ``acc_bytes`` is ``final:per_byte=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Shaped

from probes.aggregate import MIN_FIT, Aggregator
from probes.choices.columns import logit_columns, shared_labels
from probes.choices.data import PERS, ChoiceData, Per
from probes.choices.fitted import ChoiceForm, FittedChoices
from probes.choices.logit import LogitFit, fit_logit, within_spread
from probes.choices.metrics import grades, shares
from probes.choices.ragged import log_softmax, sums
from probes.choices.simplex import fit_simplex
from probes.choices.text import fit_text
from probes.errors import FitError, did_you_mean
from probes.fitting.threads import one_blas_thread
from probes.recipes import AGGREGATORS

DEFAULT_JUDGES: Final = (
    "final",
    "uniform",
    "prob-uniform",
    "lager",
    "best-layer",
    "final-ridge",
    "best-layer-ridge",
    "text-ridge",
    "slope-ridge",
)
# What mixes layers by default.
DEFAULT_JUDGE: Final = "slope-ridge"
# A layer among many is chosen on this many items at most.
_CHOICE_ITEMS: Final = 1000

_PER: Final[Mapping[str, Per]] = {f"per_{per}": per for per in PERS if per}

_Groups = Shaped[np.ndarray, " item"]
_Found = tuple[ChoiceForm, dict[str, Any], dict[str, Any]]
_Fit = Callable[["ChoiceJudge", ChoiceData, _Groups], _Found]


@dataclass(frozen=True)
class Kind:
    """What there is to know about a judge of choices.

    Attributes:
        fit: Its recipe.
        needs_labels: Whether the scores of choices go in.
        multi_layer: Whether it mixes several layers.
        argument: Whether its name takes one (``layer:12``).
        options: Its settings and their usual values.
    """

    fit: _Fit
    needs_labels: bool
    multi_layer: bool = False
    argument: bool = False
    options: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(_PER, 0.0))


@dataclass(frozen=True)
class ChoiceJudge:
    """A recipe for choosing between the choices of an item.

    Attributes:
        name: Its name, with the argument (``layer:12``).
        lens: Lens whose log-likelihoods it reads.
        needs_labels: Whether the scores of choices go into it.
        multi_layer: Whether it mixes several layers, as opposed to choosing one.
        options: Settings.
    """

    name: str
    lens: str
    needs_labels: bool
    multi_layer: bool
    options: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The name without its argument."""
        return self.name.partition(":")[0]

    @property
    def reads(self) -> str:
        """Lens of the log-likelihoods that it is given."""
        return self.lens

    @property
    def per(self) -> Per:
        """What log-likelihoods are divided by."""
        return next((per for option, per in _PER.items() if self.options.get(option)), "")

    @property
    def label(self) -> str:
        """The name with the settings that are not the usual ones, without the lens."""
        changed = ",".join(f"{name}={value:g}" for name, value in self.options.items() if value)
        if not changed:
            return self.name
        return f"{self.name}{',' if ':' in self.name else ':'}{changed}"

    @property
    def spec(self) -> str:
        """What ``get_choice_judge`` reads; the lens only where it is not ``norm``."""
        return self.label if self.lens == "norm" else f"{self.label}@{self.lens}"

    def fit(self, data: ChoiceData, groups: _Groups | None = None) -> FittedChoices:
        """Fit on items; a judge that needs no labels only takes note of the layers.

        Args:
            data: Choices of items; captured and labelled ones, for a judge that needs labels.
            groups: Source of each item, so that inner validation does not divide sources; each item is its own unless
                given.

        Raises:
            FitError: The lens is another one, the layer does not exist, or labels are missing or too few.
        """
        if data.lens != self.lens:
            raise FitError(f"{self.spec} reads the lens {self.lens!r}, but got log-likelihoods of {data.lens!r}")
        groups = np.arange(len(data)) if groups is None else groups
        if len(groups) != len(data):
            raise FitError(f"{self.spec} got {len(groups)} groups for {len(data)} items: pass one an item")
        if self.needs_labels:
            self._check(data)
        with one_blas_thread():
            form, params, notes = KINDS[self.kind].fit(self, data, groups)
        if form != "choice-text":
            params = {"per": self.per, **params}
        return FittedChoices(
            self.label, self.lens, data.layers, form, params, {"n_fit": len(data) if self.needs_labels else 0, **notes}
        )

    def _check(self, data: ChoiceData) -> None:
        if len(data) < MIN_FIT:
            raise FitError(
                f"{self.spec} needs at least {MIN_FIT} items with scores of their choices to fit, got {len(data)}: "
                "label more items, or use a judge that needs none, such as uniform"
            )
        if not np.isfinite(data.scores).all() or not (sums(data.scores, data.offsets) > 0).all():
            raise FitError(f"{self.spec} can only be fitted on items with a choice that is worth something")
        if not data.usable.all():
            raise FitError(f"{self.spec} can only be fitted on captured items: drop the others")


def _one_layer(data: ChoiceData, index: int) -> dict[str, Any]:
    weights = np.zeros(len(data.layers))
    weights[index] = 1.0
    return {"weights": weights.tolist()}


def _final(_: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    return "choice-mixture", _one_layer(data, len(data.layers) - 1), {}


def _layer(self: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    return "choice-mixture", _one_layer(data, data.layer_index(self.name.partition(":")[2])), {}


def _uniform(_: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    n_layers = len(data.layers)
    return "choice-mixture", {"weights": [1 / n_layers] * n_layers}, {}


def _prob_uniform(_: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    n_layers = len(data.layers)
    return "choice-prob-mixture", {"weights": [1 / n_layers] * n_layers}, {}


def _lager(self: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    found = fit_simplex(data.divided(self.per), shares(data.scores, data.offsets), data.offsets)
    notes = {"loss": found.loss, "converged": found.converged, "gap": found.gap}
    return "choice-mixture", {"weights": found.weights.tolist()}, notes


def _varying(self: ChoiceJudge, data: ChoiceData, logprob: Float[np.ndarray, "choice layer"]) -> Any:
    varying = ~within_spread(logprob, data.offsets)[1]
    if not varying.any():
        raise FitError(f"{self.spec} cannot be fitted: no layer tells the choices of any of {len(data)} items apart")
    return varying


def _best_layer(self: ChoiceJudge, data: ChoiceData, _groups: _Groups) -> _Found:
    logprob = data.divided(self.per)
    accuracy = grades(log_softmax(logprob, data.offsets), data.scores, data.offsets).mean(axis=0)
    accuracy = np.where(_varying(self, data, logprob), accuracy, -np.inf)
    # Of equally good layers the last: it is nearest to what the model says.
    best = len(accuracy) - 1 - int(np.argmax(accuracy[::-1]))
    return "choice-mixture", _one_layer(data, best), {"layer": data.layers[best], "fit_accuracy": float(accuracy[best])}


def _logit(data: ChoiceData, layers: Sequence[int], labels: list[str], found: LogitFit) -> _Found:
    names = [*(data.layers[layer] for layer in layers), "n_tokens", *(f"label {label}" for label in labels)]
    params = {
        "columns": [int(layer) for layer in layers],
        "labels": labels,
        "spread": found.spread.tolist(),
        "coef": found.coef.tolist(),
    }
    constant = [name for name, is_constant in zip(names, found.constant, strict=True) if is_constant]
    notes = {"penalty": found.penalty, "constant_columns": constant, "converged": found.converged}
    return "choice-logit", params, notes


def _final_ridge(self: ChoiceJudge, data: ChoiceData, groups: _Groups) -> _Found:
    return _on_layers(self, data, groups, [len(data.layers) - 1])


def _slope_ridge(self: ChoiceJudge, data: ChoiceData, groups: _Groups) -> _Found:
    return _on_layers(self, data, groups, range(len(data.layers)))


def _on_layers(self: ChoiceJudge, data: ChoiceData, groups: _Groups, layers: Sequence[int]) -> _Found:
    labels = shared_labels(data)
    columns = logit_columns(data, data.divided(self.per)[:, list(layers)], labels)
    found = fit_logit(columns[None], shares(data.scores, data.offsets), data.offsets, groups)
    return _logit(data, layers, labels, found)


def _best_layer_ridge(self: ChoiceJudge, data: ChoiceData, groups: _Groups) -> _Found:
    varying = _varying(self, data, data.divided(self.per))
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:_CHOICE_ITEMS])
    some = data.select(chosen)
    labels, logprob = shared_labels(some), some.divided(self.per)
    columns = np.stack([logit_columns(some, logprob[:, [layer]], labels) for layer in range(len(data.layers))])
    found = fit_logit(columns, shares(some.scores, some.offsets), some.offsets, groups[chosen], candidates=varying)
    if len(some) < len(data):
        form, params, notes = _on_layers(self, data, groups, [found.problem])
    else:
        form, params, notes = _logit(data, [found.problem], labels, found)
    return form, params, {"layer": data.layers[found.problem], "n_chosen_on": len(some), **notes}


def _text_ridge(_: ChoiceJudge, data: ChoiceData, groups: _Groups) -> _Found:
    found, recipe = fit_text(data, groups)
    notes = {"penalty": found.penalty, "fields": recipe["fields"], "converged": found.converged}
    return "choice-text", {"recipe": recipe, "coef": found.coef.tolist()}, notes


KINDS: Final[Mapping[str, Kind]] = {
    "final": Kind(_final, False),
    "layer": Kind(_layer, False, argument=True),
    "uniform": Kind(_uniform, False, True),
    "prob-uniform": Kind(_prob_uniform, False, True),
    "best-layer": Kind(_best_layer, True),
    "lager": Kind(_lager, True, True),
    "final-ridge": Kind(_final_ridge, True),
    "best-layer-ridge": Kind(_best_layer_ridge, True),
    "slope-ridge": Kind(_slope_ridge, True, True),
    "text-ridge": Kind(_text_ridge, True, options={}),
}


def get_choice_judge(spec: str | Aggregator | ChoiceJudge) -> ChoiceJudge:
    """A judge of choices by name.

    Args:
        spec: ``name`` or ``name@lens``; ``layer:k`` names its layer; ``final:per_byte=1`` and ``layer:12,per_token=1``
            divide log-likelihoods by the length of the choice.

    Raises:
        FitError: There is no such judge or setting for choices.
    """
    if isinstance(spec, ChoiceJudge):
        return spec
    if isinstance(spec, Aggregator):
        raise FitError(f"{spec.spec} is a judge of scores, and the run has choices: {_listed()}")
    name, at, lens = spec.partition("@")
    base, _, rest = name.partition(":")
    kind = KINDS.get(base)
    if kind is None:
        if base in AGGREGATORS:
            reason = "final, which takes the most likely choice, says the same" if base == "vscore" else _listed()
            raise FitError(f"the judge {base!r} needs the labels of a scale, and the run has choices: {reason}")
        raise FitError(f"unknown judge {spec!r}{did_you_mean(base, KINDS)}: {_listed()}")
    if at and not lens:
        raise FitError(f"the judge {spec!r} names no lens after @: write {name}@norm")
    parts = [part.strip() for part in rest.split(",")] if rest else []
    argument = ""
    if kind.argument:
        if not parts or "=" in parts[0]:
            raise FitError(f"{base} needs a layer: write {base}:12 or {base}:embed")
        argument = parts.pop(0)
    options = {**kind.options, **_settings(base, parts, kind)}
    if sum(bool(options.get(option)) for option in _PER) > 1:
        raise FitError(f"{base}: divide by tokens or by bytes or by characters, by one of them only")
    full = f"{base}:{argument}" if argument else base
    return ChoiceJudge(full, lens or "norm", kind.needs_labels, kind.multi_layer, options)


def _settings(base: str, parts: Sequence[str], kind: Kind) -> dict[str, float]:
    settings = {}
    for part in parts:
        option, _, value = part.partition("=")
        if option not in kind.options:
            raise FitError(f"{base} has no setting {option!r}: it has {', '.join(kind.options) or 'none'}")
        if value not in ("0", "1"):
            raise FitError(f"{option} must be 0 or 1, got {value!r}")
        settings[option] = float(value)
    return settings


def _listed() -> str:
    names = [f"{name}:LAYER" if kind.argument else name for name, kind in KINDS.items()]
    return f"choose one of {', '.join(names)}"

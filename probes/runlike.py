"""What the analysis needs of a run, and the items of it that take part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from probes.aggregate import Aggregator, LayerLogits, States
from probes.duplicates import join_groups
from probes.errors import FitError, did_you_mean
from probes.layer_order import model_order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from probes.choices.table import ChoiceTable
    from probes.items import Item


POOLED: Final = "all"
# The field that says how an item of a task is asked, made from its other fields and the task's examples.
PROMPT: Final = "prompt"


@runtime_checkable
class ScaleLike(Protocol):
    """A scale: labels in ascending order of value."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the judge may emit."""

    @property
    def values(self) -> tuple[float, ...]:
        """What each label is worth."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""

    def to_value(self, human: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Human scores mapped onto label values."""


@runtime_checkable
class RunLike(Protocol):
    """A capture that can be analysed. Everything per item is in the run's order of items."""

    @property
    def path(self) -> Path | None:
        """Where it lies, for messages."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layer labels, ``embed, 1 .. L``."""

    @property
    def n_layers(self) -> int:
        """Blocks L of the model, of which a selection may hold fewer."""

    @property
    def lenses(self) -> tuple[str, ...]:
        """Lenses whose logits it can give."""

    @property
    def scale(self) -> ScaleLike:
        """Labels and their values."""

    @property
    def ids(self) -> Sequence[str]:
        """Id of every item."""

    @property
    def criteria(self) -> Sequence[str]:
        """Criterion of every item."""

    @property
    def groups(self) -> Shaped[np.ndarray, " item"]:
        """Group of every item."""

    @property
    def items(self) -> Sequence[Item]:
        """The items."""

    @property
    def human(self) -> Float[np.ndarray, "item rater"]:
        """Scores of the raters on the human scale; NaN is missing."""

    @property
    def human_value(self) -> Float[np.ndarray, " item"]:
        """Mean of the raters on the scale of the label values; NaN is unlabelled."""

    @property
    def judge_hash(self) -> str:
        """Identity of model, prompt, scale and condition."""

    @property
    def model_hash(self) -> str:
        """Identity of the model."""

    @property
    def readout_hash(self) -> str:
        """Identity of everything between a residual and the score logits."""

    def item_logits(self, lens: str) -> Float[np.ndarray, "item layer label"]:
        """Score logits under a lens; NaN rows for items without a reading."""


@runtime_checkable
class HoldsStates(Protocol):
    """A run that can give the residual state of every item; not all do."""

    @property
    def has_item_residuals(self) -> bool:
        """Whether it holds one that an item can be said to have."""

    def item_residual(self, layer: str) -> Float[np.ndarray, "item d_model"]:
        """States of one layer before the final norm; NaN rows for items without a reading."""


@runtime_checkable
class HoldsChoices(Protocol):
    """A run whose items may have choices of their own, in place of the labels of a scale."""

    @property
    def choices(self) -> ChoiceTable | None:
        """The choices of all items; None where the labels of a scale are the answers."""

    def choice_logprob(self, lens: str = "norm") -> Float[np.ndarray, "choice layer"]:
        """Log-likelihood of every choice at every layer; NaN rows for items that were not captured."""


def has_choices(run: RunLike) -> bool:
    """Whether the items of a run have choices of their own."""
    return isinstance(run, HoldsChoices) and run.choices is not None


# States that are read once and kept, in bytes; above, each layer is read anew whenever it is asked for.
_KEPT: Final = 512 << 20


def layer_states(run: RunLike) -> States | None:
    """The residual states of all items of a run, read when they are asked for; None where it holds none."""
    if not isinstance(run, HoldsStates) or not run.has_item_residuals:
        return None
    kept: dict[int, Float[np.ndarray, "item d_model"]] = {}

    def read(index: int) -> Float[np.ndarray, "item d_model"]:
        if index in kept:
            return kept[index]
        states = run.item_residual(run.layers[index])
        if states.nbytes * len(run.layers) <= _KEPT:
            kept[index] = states
        return states

    return States(read)


def check_lens(run: RunLike, lens: str) -> None:
    """Refuse a run without a lens or without the model's last layer.

    Raises:
        FitError: The run has no such lens, lacks the model's last layer, or has its layers in another order.
    """
    if lens not in run.lenses:
        raise FitError(f"{where(run)} has no lens {lens!r}: it has {', '.join(run.lenses)}")
    if str(run.n_layers) not in run.layers:
        raise FitError(
            f"{where(run)} is a selection without the last layer ({run.n_layers}), so that it has no final judge: "
            "select that layer as well"
        )
    if list(run.layers) != model_order(run.layers):
        raise FitError(
            f"{where(run)} is a selection of the layers {', '.join(run.layers)}, which is not their order in the "
            "model, each once: select them in that order"
        )


def lacking(run: RunLike, aggregator: Aggregator) -> str | None:
    """What a run lacks that a judge reads, in words; None where it has everything."""
    spec, reads = aggregator.spec, aggregator.reads
    if reads not in run.lenses:
        return f"{spec} reads the lens {reads!r}, which {where(run)} lacks: it has {', '.join(run.lenses)}"
    if "states" in aggregator.inputs and layer_states(run) is None:
        return f"{spec} reads residual states, which {where(run)} lacks: capture with residuals, and no pairs"
    return None


def layer_logits(run: RunLike, lens: str) -> LayerLogits:
    """Score logits of all items of a run under one lens, with their texts, and their states where it holds them.

    Raises:
        FitError: As ``check_lens``.
    """
    check_lens(run, lens)
    values = np.asarray(run.scale.values, dtype=np.float64)
    fields = [item.fields for item in run.items]
    return LayerLogits(run.item_logits(lens), tuple(run.layers), values, lens, layer_states(run), fields)


def shown_texts(item: Item) -> Mapping[str, str]:
    """What makes an item the same as another: its fields, and its choices, as some tasks ask the same of all items."""
    return dict(item.fields) | {"\0choices": "\n".join(sorted(item.choices))} if item.choices else item.fields


def where(run: RunLike) -> str:
    """A run's name in messages."""
    return "the run" if run.path is None else str(run.path)


@dataclass(frozen=True, eq=False)
class Part:
    """The items of one criterion that have both a reading and a human score.

    Attributes:
        criterion: Name of the criterion; ``all`` when pooled.
        rows: Their positions in the run.
        y: Their human scores on the scale of the label values.
        groups: A number for the group of each; groups that share a text are one.
        logits: Their score logits, by lens.
        n_total: Items of the criterion, whether they can be used or not.
        n_unlabelled: Of these, how many have no human score.
        n_uncaptured: Of these, how many have no reading.
        repeated: What was done about texts that occur in several groups, in words; None where there are none.
    """

    criterion: str
    rows: Int[np.ndarray, " used"]
    y: Float[np.ndarray, " used"]
    groups: Int[np.ndarray, " used"]
    logits: dict[str, LayerLogits]
    n_total: int
    n_unlabelled: int
    n_uncaptured: int
    repeated: str | None = None

    @property
    def without(self) -> str:
        """How many items lack what, in words."""
        return (
            f"of {self.n_total}, {self.n_unlabelled} have no human score and {self.n_uncaptured} have no reading; "
            "capture items with human scores (--human names their columns)"
        )

    @property
    def n_groups(self) -> int:
        """Number of groups among the items."""
        return len(np.unique(self.groups))

    @property
    def labels(self) -> list[float]:
        """What a fit sees of each item: its human score."""
        return list(self.y.tolist())

    def __len__(self) -> int:
        return len(self.rows)

    def take(
        self, order: Int[np.ndarray, " taken"], criterion: str, groups: Int[np.ndarray, " taken"], repeated: str | None
    ) -> Part:
        """Some of the items, in another order, with other groups."""
        return replace(
            self,
            criterion=criterion,
            rows=self.rows[order],
            y=self.y[order],
            groups=groups,
            logits={lens: one.select(order) for lens, one in self.logits.items()},
            repeated=repeated,
        )


def chosen_criteria(
    run: RunLike, criterion: str | None = None, *, pool: bool = False
) -> list[tuple[str, Bool[np.ndarray, " item"]]]:
    """Which items belong to which criterion: every one of a run, one of them, or all pooled.

    Raises:
        FitError: There is no such criterion, or both a criterion and pooling are asked for.
    """
    names = np.asarray(list(run.criteria), dtype=object)
    known = list(dict.fromkeys(names.tolist()))
    if criterion is not None and pool:
        raise FitError("choose one criterion or pool them all, not both")
    if criterion is not None and criterion not in known:
        if known == [""]:
            raise FitError(f"{where(run)} has no criterion {criterion!r}: it has none; leave the criterion out")
        choices = ", ".join(repr(name) for name in known)
        raise FitError(f"{where(run)} has no criterion {criterion!r}{did_you_mean(criterion, known)}: it has {choices}")
    if pool:
        return [(POOLED if len(known) > 1 else known[0], np.ones(len(names), dtype=bool))]
    return [(name, names == name) for name in ([criterion] if criterion is not None else known)]


def parts(run: RunLike, criterion: str | None = None, *, pool: bool = False) -> list[Part]:
    """Split a run by criterion, or take one criterion, or pool them.

    An item takes part if it can be read under every lens of the run, so that judges of different lenses are
    compared on the same items.

    Raises:
        FitError: There is no such criterion, or both a criterion and pooling are asked for.
    """
    if has_choices(run):
        raise FitError(
            f"{where(run)} has choices of its items, and this reads the labels of a scale: use compare, by_layer, "
            "layer_tests, fit or score, which read both"
        )
    criteria = chosen_criteria(run, criterion, pool=pool)
    y = np.asarray(run.human_value, dtype=np.float64)
    groups = np.asarray(run.groups).astype(str)
    items = run.items
    logits = {lens: layer_logits(run, lens) for lens in run.lenses}
    states = layer_states(run)  # one for all lenses, so that none is read twice
    logits = {lens: replace(one, states=states) for lens, one in logits.items()}
    usable = np.ones(len(y), dtype=bool)
    for one in logits.values():
        usable &= one.usable

    def part(name: str, members: Bool[np.ndarray, " item"]) -> Part:
        rows = np.flatnonzero(members & usable & np.isfinite(y))
        joined = join_groups(groups[rows], [shown_texts(items[row]) for row in rows.tolist()])
        return Part(
            name,
            rows,
            y[rows],
            joined.groups,
            {lens: one.select(rows) for lens, one in logits.items()},
            int(members.sum()),
            int((members & ~np.isfinite(y)).sum()),
            int((members & ~usable).sum()),
            joined.note,
        )

    return [part(name, members) for name, members in criteria]

"""What a run says about itself: judge, items, layers, readings."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from probes.errors import RunFileError
from probes.lens import LENSES, Readout
from probes.scale import Scale
from probes.store.header import read_attr, read_choices, read_items, read_parts, read_readout
from probes.store.readings import Readings, Status
from probes.store.values import Selection, Values, damage_named
from probes.token_table import TokenTable

if TYPE_CHECKING:
    from pathlib import Path

    import h5py

    from probes.choices.table import ChoiceTable
    from probes.items import Items
    from probes.spanned import Span
    from probes.store.shards import ShardReader


class Description:
    """What a run is of: judge, items, layers and readings. ``Run`` adds the numbers."""

    def __init__(
        self, path: Path, file: h5py.File, shards: ShardReader | None = None, selection: Selection | None = None
    ) -> None:
        self.path = path
        self._file = file
        self._shards = shards
        self._selection = selection
        self._values = Values(file, shards, selection, str(path))

    def close(self) -> None:
        """Close the file; reading afterwards fails, also from what was selected from this run."""
        self._file.close()

    def __repr__(self) -> str:
        used = int((self.status == Status.OK).sum())
        return (
            f"Run({self.path.name}: {self.judge_name}, {used} of {len(self.status)} readings captured, "
            f"{len(self.layers)} layers, scale {self.scale}, lenses {', '.join(self.lenses)})"
        )

    def _repr_html_(self) -> str:
        from probes.reprs import of_run

        return of_run(self)

    @damage_named
    def attr(self, name: str) -> Any:
        """A root attribute; JSON is parsed."""
        if name not in self._file.attrs:
            raise RunFileError(
                f"{self.path} has no attribute {name!r}: it was not written by this version; capture it again, with "
                "overwrite=True (--overwrite) or to another path"
            )
        return read_attr(self._file, name)

    @property
    def is_complete(self) -> bool:
        """False while this is the unfinished folder of a capture."""
        return self._shards is None

    @property
    def judge_name(self) -> str:
        """Model as it was named at capture."""
        return str(self.attr("config")["model"])

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names along the layer axis: ``embed, 1, ..., L``."""
        names = self.attr("layers")
        chosen = None if self._selection is None else self._selection.layers
        return tuple(names if chosen is None else [names[layer] for layer in chosen])

    @property
    def n_layers(self) -> int:
        """Number of blocks L of the model; a selection may hold fewer layers."""
        return int(self.attr("n_layers"))

    @cached_property
    def lenses(self) -> tuple[str, ...]:
        """Lenses that can be read: those stored, and where residuals are stored all others (not of choices)."""
        if self.attr("residual_dtype") == "none" or self.has_choices:
            return tuple(self.attr("lenses"))
        return LENSES

    @cached_property
    @damage_named
    def scale(self) -> Scale:
        """The judge's scale."""
        return Scale.from_dict(self.attr("scale"))

    @cached_property
    @damage_named
    def readout(self) -> Readout:
        """Final norm and output rows of the score tokens."""
        return read_readout(self._file)

    @cached_property
    @damage_named
    def items(self) -> Items:
        """The items, in order."""
        items = read_items(self._file)
        return items if self._selection is None else items.select(self._selection.items, repeated=True)

    @property
    def has_choices(self) -> bool:
        """Whether items have choices of their own, instead of the labels of a scale."""
        return "choices" in self._file

    @cached_property
    @damage_named
    def choices(self) -> ChoiceTable | None:
        """The choices of all items; None where the labels of a scale are the answers."""
        table = read_choices(self._file)
        return table if table is None or self._selection is None else table.select(self._selection.items)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self._file["items/id"] if self._selection is None else self._selection.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """Item ids."""
        return self.items.ids

    @property
    def groups(self) -> Shaped[np.ndarray, " item"]:
        """Group of every item; an item without one is a group of its own."""
        return self.items.groups

    @property
    def criteria(self) -> list[str]:
        """Criterion of every item."""
        return self.items.column("criterion")

    @cached_property
    def human(self) -> Float[np.ndarray, "item rater"]:
        """Human scores as given; NaN where a rater is missing."""
        return self._values.items("human")

    @cached_property
    def human_value(self) -> Float[np.ndarray, " item"]:
        """Mean human score mapped onto label values; NaN where an item has none."""
        return self._values.items("human_value")

    @property
    def item_hashes(self) -> tuple[str, ...]:
        """SHA-256 of id and prompt tokens of every item."""
        return tuple(text.decode() for text in self._values.items("items_hash"))

    @property
    def pairwise(self) -> bool:
        """Whether the items are pairs of responses, each judged in both orders."""
        return bool(self.attr("pairwise"))

    @cached_property
    def readings(self) -> Readings:
        """Item, sample, order of responses and status of every reading."""
        return Readings(
            item=self._values.readings("item") if self._selection is None else self._selection.item.astype(np.int32),
            sample=self._values.readings("sample"),
            swapped=self._values.readings("swapped").astype(bool),
            status=self._values.readings("status"),
            n_items=self.n_items,
        )

    @property
    def status(self) -> UInt8[np.ndarray, " reading"]:
        """Why a reading has numbers or not; see ``Status``."""
        return self.readings.status

    @property
    def item_status(self) -> UInt8[np.ndarray, " item"]:
        """``OK`` where an item has numbers, else the status of its first reading that failed.

        An item has numbers if any of its samples was read; of a pair, in both orders.
        """
        return self.readings.item_status

    @cached_property
    def position(self) -> Int[np.ndarray, " reading"]:
        """Position, in the prompt and what was generated after it, of the token whose state was read."""
        return self._values.readings("position")

    @property
    @damage_named
    def token_ids(self) -> list[Int[np.ndarray, " position"]]:
        """Prompt tokens of every reading; readings of the same prompt share one array."""
        prompts = TokenTable(self._file["prompts/token_ids/values"][:], self._file["prompts/token_ids/offsets"][:])
        return [prompts[int(number)] for number in self._values.readings("prompt")]

    @property
    @damage_named
    def prompt_parts(self) -> list[tuple[Span, ...]]:
        """Which tokens of its prompt are which part of it, for every reading; empty where that is not known.

        Parts are ``system``, ``shots``, ``user``, ``field:NAME``, ``scale`` and ``prefill``; those within another stand
        in front of it. A field that is shown twice is there twice.
        """
        parts = read_parts(self._file)
        if parts is None:
            return [()] * len(self.status)
        return [parts[int(number)] for number in self._values.readings("prompt")]

    @cached_property
    @damage_named
    def n_tokens(self) -> Int[np.ndarray, " reading"]:
        """Prompt length of every reading."""
        lengths = np.diff(self._file["prompts/token_ids/offsets"][:])
        return np.asarray(lengths[self._values.readings("prompt")])

    @property
    def judge_hash(self) -> str:
        """Hash of model, tokenizer, template, scale, condition and dtype."""
        return str(self.attr("judge_hash"))

    @property
    def model_hash(self) -> str:
        """Hash of the model's config and weights."""
        return str(self.attr("model_hash"))

    @property
    def readout_hash(self) -> str:
        """Hash of the stored readout."""
        return str(self.attr("readout_hash"))

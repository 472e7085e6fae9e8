"""Where the arrays of a run come from: one file or many shards, all of it or a selection."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from jaxtyping import Int

from probes.errors import ProbesError, RunFileError
from probes.store.columns import read, read_ragged
from probes.store.format import EXTRAS, from_bfloat16_bits
from probes.store.safety import DAMAGE, one_line
from probes.token_table import ragged_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

    from probes.store.shards import ShardReader


_P = ParamSpec("_P")
_T = TypeVar("_T")


def damage_named(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn what h5py says about a file that makes no sense into one line.

    The first argument of ``read`` has the file's name as ``where`` or ``path``.
    """

    @wraps(read)
    def named(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except ProbesError:
            raise
        except DAMAGE as error:
            where = getattr(args[0], "where", None) or getattr(args[0], "path", args[0])
            raise RunFileError(
                f"{where} is damaged or closed ({type(error).__name__}: {one_line(error)}); `probes verify` names "
                "everything that is wrong with it"
            ) from error

    return named


@dataclass(frozen=True, eq=False)
class Selection:
    """Some items and layers of a file, in the order asked for and as often as asked for.

    Attributes:
        items: Item numbers in the file ``[item]``.
        readings: All their readings, by their numbers in the file ``[reading]``.
        item: Which of ``items`` each of these readings is of ``[reading]``.
        layers: Positions on the layer axis ``[layer]``; None for all.
    """

    items: Int[np.ndarray, " item"]
    readings: Int[np.ndarray, " reading"]
    item: Int[np.ndarray, " reading"]
    layers: Int[np.ndarray, " layer"] | None


@dataclass(frozen=True, eq=False)
class Values:
    """Arrays of a run by their path in the file, read when asked for.

    Attributes:
        file: The run file, or the header of an unfinished run.
        shards: Numbers of an unfinished run; None where they are in the file.
        selection: What to show; everything unless given.
        where: Name of the run in messages.
    """

    file: h5py.File
    shards: ShardReader | None
    selection: Selection | None
    where: str

    @cached_property
    def n_readings(self) -> int:
        """Readings shown."""
        return len(self.file["readings/item"] if self.selection is None else self.selection.readings)

    @damage_named
    def items(self, name: str) -> np.ndarray:
        """A dataset of ``/items`` with one row an item."""
        array = np.asarray(self.file[f"items/{name}"][:])
        return array if self.selection is None else array[self.selection.items]

    @damage_named
    def readings(self, name: str) -> np.ndarray:
        """A dataset of ``/readings``, which shards may know better than the header."""
        array = np.asarray(self.file[f"readings/{name}"][:])
        if self.shards is not None and name in self.shards:
            array = self.shards.merged(name, array)
        return array if self.selection is None else array[self.selection.readings]

    @damage_named
    def numbers(
        self, name: str, readings: np.ndarray | None = None, layer: int | None = None, *, decode: bool = False
    ) -> np.ndarray:
        """Rows of a dataset of ``/capture``, as they are stored or decoded.

        Args:
            name: Path below ``/capture``.
            readings: Numbers of readings, as they are shown; all unless given.
            layer: Position on the layer axis, as it is shown, which then drops out; all layers unless given.
            decode: Give bfloat16 bits as float32.
        """
        axis, rows = layer_axis(name), self._in_file(readings)
        chosen = None if self.selection is None else self.selection.layers
        if chosen is None or axis is None:
            return self._numbers(name, rows, axis, layer, decode)
        if layer is not None:
            return self._numbers(name, rows, axis, int(chosen[layer]), decode)
        each, place = np.unique(chosen, return_inverse=True)  # a layer that is shown twice is read once
        values = [self._numbers(name, rows, axis, int(number), decode) for number in each]
        return np.stack([values[number] for number in place], axis)

    @damage_named
    def lengths(self, name: str) -> Int[np.ndarray, " reading"]:
        """Length of every row of a dataset whose rows differ in length."""
        if self.shards is not None and f"{name}/values" in self.shards:
            lengths = self.shards.lengths(name)
        else:
            lengths = np.diff(self.file[f"{name}/offsets"][:])
        return lengths if self.selection is None else lengths[self.selection.readings]

    @damage_named
    def ragged(self, name: str, readings: Int[np.ndarray, " row"] | None = None) -> list[np.ndarray]:
        """Rows of a dataset whose rows differ in length; all unless ``readings`` are given, in the order asked for."""
        rows = self._in_file(readings)
        if rows is None:
            rows = np.arange(len(self.file["readings/item"]))
        if not len(rows):
            return []
        if self.shards is not None and f"{name}/values" in self.shards:
            return self._pieces(name, rows)
        first, last = int(rows.min()), int(rows.max()) + 1
        bounds = self.file[f"{name}/offsets"][first : last + 1]
        return read_ragged(self.file[f"{name}/values"], bounds, rows - first)

    @damage_named
    def choices(self, name: str, n_layers: int, items: Int[np.ndarray, " item"] | None = None) -> np.ndarray:
        """Rows of a dataset of ``/capture`` with one row a choice, item by item ``[choice, layer]``.

        Args:
            name: Path below ``/capture``.
            n_layers: Layers in the file.
            items: Item numbers, as they are shown, in the order asked for; all unless given.
        """
        offsets = self.file["choices/offsets"][:]
        chosen = np.arange(len(offsets) - 1) if self.selection is None else self.selection.items
        chosen = chosen if items is None else chosen[items]
        layers = slice(None) if self.selection is None or self.selection.layers is None else self.selection.layers
        rows = ragged_rows(offsets, chosen)
        if self.shards is None:
            if f"capture/{name}" not in self.file:
                raise RunFileError(f"{self.where} holds no numbers: none of its readings was captured")
            return np.asarray(read(self.file[f"capture/{name}"], rows)[:, layers])
        out = np.full((len(rows), n_layers), np.nan, dtype=np.float32)
        if f"{name}/values" in self.shards:
            ends = np.cumsum(np.diff(offsets)[chosen])
            reading = np.argsort(self.file["readings/item"][:], kind="stable")[chosen]  # every item has one
            for item, end, values in zip(chosen, ends, self._pieces(name, reading), strict=True):
                if len(values):
                    count = int(offsets[item + 1] - offsets[item])
                    out[end - count : end] = values.reshape(count, n_layers)
        return out[:, layers]

    def _pieces(self, name: str, rows: Int[np.ndarray, " row"]) -> list[np.ndarray]:
        """Rows of a ragged dataset of the shards, by their number in the file."""
        assert self.shards is not None
        if not len(rows):
            return []
        return np.split(self.shards.read_ragged(name, rows), np.cumsum(self.shards.lengths(name)[rows])[:-1])

    def __contains__(self, name: str) -> bool:
        """Whether there is a dataset or group, by its path below ``/capture`` or from the root."""
        if self.shards is not None and (name in self.shards or f"{name}/values" in self.shards):
            return True
        return f"capture/{name}" in self.file or name in self.file

    def _in_file(self, readings: np.ndarray | None) -> np.ndarray | None:
        if self.selection is None:
            return readings
        return self.selection.readings if readings is None else self.selection.readings[readings]

    def _numbers(
        self, name: str, rows: np.ndarray | None, axis: int | None, layer: int | None, decode: bool
    ) -> np.ndarray:
        columns = () if axis is None or layer is None else (*[slice(None)] * (axis - 1), layer)
        if self.shards is not None:
            every = np.arange(len(self.file["readings/item"]))
            values = self.shards.read(name, every if rows is None else rows, columns)
            return from_bfloat16_bits(values) if decode and values.dtype == np.uint16 else values
        if f"capture/{name}" not in self.file:
            raise RunFileError(f"{self.where} holds no numbers: none of its readings was captured")
        return read(self.file[f"capture/{name}"], rows, columns, decode=decode)


def layer_axis(name: str) -> int | None:
    """Which axis of a dataset of ``/capture`` counts the layers."""
    if name in EXTRAS:
        return EXTRAS[name].layer_axis
    return 1 if name == "residual" or name.startswith("score_logits/") else None

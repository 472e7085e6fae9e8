"""Reading the rows of many shards as if they were one file."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Int64, Shaped

from probes.errors import RunFileError
from probes.store.format import blank
from probes.store.safety import open_checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def partial_folder(path: Path) -> Path:
    """Where an unfinished run lies."""
    return path.with_name(f"{path.name}.partial")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


class _Array(NamedTuple):
    """Where a dataset lies in its file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class ShardReader:
    """Rows of many shards, addressed by reading number.

    Datasets of a shard are contiguous, so that after one look at where they lie, rows are read from the plain file:
    thousands of shards need neither open handles nor their caches.
    """

    def __init__(self, paths: Sequence[Path], n_readings: int) -> None:
        self._paths = list(paths)
        self._arrays: list[dict[str, _Array]] = []
        self.shard = np.full(n_readings, -1, dtype=np.int64)
        self.offset = np.zeros(n_readings, dtype=np.int64)
        for number, path in enumerate(self._paths):
            self._arrays.append(_layout(path))
            rows = self._rows(number, "rows", 0, None)
            self.shard[rows] = number
            self.offset[rows] = np.arange(len(rows))
        self._extents = cache(self._find_extents)

    def __contains__(self, name: str) -> bool:
        return bool(self._arrays) and name in self._arrays[0]

    def like(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape behind the row axis, and type, of a dataset."""
        array = self._arrays[0][name]
        return array.shape[1:], array.dtype

    def read(self, name: str, rows: np.ndarray, columns: tuple[Any, ...] = ()) -> np.ndarray:
        """Rows of a dataset, in the order asked for; rows that no shard holds are NaN.

        Args:
            name: Dataset, for example ``residual``.
            rows: Reading numbers ``[row]``.
            columns: Index behind the row axis, for example ``(layer,)``.
        """
        shape, dtype = self.like(name)
        out = np.empty((len(rows), *np.empty(shape, dtype)[columns].shape), dtype)
        out[self.shard[rows] < 0] = blank(dtype)
        for number, where in self._by_shard(rows):
            offsets = self.offset[rows[where]]
            # Rows of a shard ascend, so that for a block of readings this span is just what is wanted.
            low, high = int(offsets.min()), int(offsets.max()) + 1
            out[where] = self._rows(number, name, low, high)[(offsets - low, *columns)]
        return out

    def merged(self, name: str, known: Shaped[np.ndarray, " reading"]) -> Shaped[np.ndarray, " reading"]:
        """A whole number for every reading: what its shard says, or what was known before."""
        out = known.copy()
        for number in range(len(self._paths)):
            out[self._rows(number, "rows", 0, None)] = self._rows(number, name, 0, None)
        return out

    def lengths(self, name: str) -> Int64[np.ndarray, " reading"]:
        """Length of every row of a ragged dataset; 0 for rows that no shard holds."""
        return self._extents(name)[1]

    def read_ragged(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a ragged dataset, one after the other in the order asked for."""
        first, lengths = self._extents(name)
        ends = np.cumsum(lengths[rows])
        out = np.empty(int(ends[-1]) if len(ends) else 0, self._arrays[0][f"{name}/values"].dtype)
        for number, where in self._by_shard(rows):
            low = first[rows[where]]
            start, stop = int(low.min()), int((low + lengths[rows[where]]).max())
            values = self._rows(number, f"{name}/values", start, stop)
            for row, begin in zip(where, low - start, strict=True):
                length = lengths[rows[row]]
                out[ends[row] - length : ends[row]] = values[begin : begin + length]
        return out

    def _find_extents(self, name: str) -> tuple[Int64[np.ndarray, " reading"], Int64[np.ndarray, " reading"]]:
        first, lengths = np.zeros((2, len(self.shard)), dtype=np.int64)
        for number in range(len(self._paths)):
            rows = self._rows(number, "rows", 0, None)
            bounds = self._rows(number, f"{name}/offsets", 0, None)
            first[rows], lengths[rows] = bounds[:-1], np.diff(bounds)
        return first, lengths

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Shards that hold some of the rows, each with the positions of these rows."""
        shard = self.shard[rows]
        order = np.argsort(shard, kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            if len(where) and shard[where[0]] >= 0:
                yield int(shard[where[0]]), where

    def _rows(self, number: int, name: str, start: int, stop: int | None) -> np.ndarray:
        """A stretch of the rows of a dataset of one shard."""
        offset, (n_rows, *shape), dtype = self._arrays[number][name]
        stop = n_rows if stop is None else stop
        size = int(np.prod(shape, dtype=np.int64))
        count = (stop - start) * size
        try:
            flat = np.fromfile(self._paths[number], dtype, count, offset=offset + start * size * dtype.itemsize)
        except OSError as error:
            raise _unreadable(self._paths[number], str(error)) from None
        if len(flat) != count:
            raise _unreadable(self._paths[number], "it is cut short")
        return flat.reshape(stop - start, *shape)


def _layout(path: Path) -> dict[str, _Array]:
    arrays: dict[str, _Array] = {}

    def note(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            offset = node.id.get_offset()
            if offset is None and node.size:
                raise _unreadable(path, f"{name} is stored in chunks")
            arrays[name] = _Array(offset or 0, node.shape, node.dtype)

    with open_checked(path) as file:
        file.visititems(note)
    return arrays


def _unreadable(path: Path, reason: str) -> RunFileError:
    if not path.parent.exists():
        whole = path.parent.with_name(path.parent.name.removesuffix(".partial"))
        return RunFileError(f"{path.parent} is gone: the capture has finished; open {whole}")
    return RunFileError(f"cannot read {path} ({reason}); resume the capture")

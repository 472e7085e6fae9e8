"""Reading layers and rows of ``[reading, layer, ...]`` datasets, a stretch of chunks at a time.

HDF5 copies whole stretches at the speed of memory but picks single rows some fifty times slower, so stretches are
what it is asked for, and rows are picked from them here. A stretch fits into the processor's cache, which makes
turning bfloat16 bits into float32 on the way nearly free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int, Shaped

from probes.errors import RunFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

_STRETCH_BYTES: Final = 1 << 20


def read(
    dataset: h5py.Dataset,
    rows: Shaped[np.ndarray, " row"] | None = None,
    columns: tuple[Any, ...] = (),
    *,
    decode: bool = False,
) -> Shaped[np.ndarray, "row ..."]:
    """Rows of a dataset, in the order asked for.

    Only the chunks that hold a row asked for are read, each once, and HDF5 checks the checksum of each.

    Args:
        dataset: Rows along its first axis, at least one axis.
        rows: Row numbers, in any order and as often as wanted; all rows unless given.
        columns: Whole numbers and slices for the axes behind the first, for example ``(layer,)``.
        decode: Give bfloat16, which is stored as the bits of a uint16, as float32; no other type is changed.

    Raises:
        RunFileError: The stored bytes are damaged, or there is no such row.
    """
    decode = decode and dataset.dtype == np.uint16
    if rows is None and not decode:
        return _stretch(dataset, 0, len(dataset), columns)
    shape = np.broadcast_to(np.empty((), bool), dataset.shape[1:])[columns].shape
    row_bytes = max(1, int(np.prod(shape, dtype=np.int64)) * dataset.dtype.itemsize)
    if rows is None:
        n_rows, pieces = len(dataset), _whole(dataset, row_bytes)
    else:
        rows = _checked(dataset, rows)
        n_rows, pieces = len(rows), _picked(dataset, row_bytes, rows)
    out = np.empty((n_rows, *shape), np.uint32 if decode else dataset.dtype)
    for low, high, target, picks in pieces:
        values = _stretch(dataset, low, high, columns)[picks]
        if not decode:
            out[target] = values
        elif isinstance(target, slice):
            np.left_shift(values, np.uint32(16), out=out[target], dtype=np.uint32)
        else:
            out[target] = np.left_shift(values, np.uint32(16), dtype=np.uint32)
    return out.view(np.float32) if decode else out


def read_ragged(
    values: h5py.Dataset, offsets: Int[np.ndarray, " bound"], rows: Int[np.ndarray, " row"]
) -> list[Shaped[np.ndarray, " value"]]:
    """Rows that differ in length, in the order asked for.

    Args:
        values: The values of all rows, one after the other.
        offsets: Where each row starts, and the end of the last one.
        rows: Row numbers from 0, in any order and as often as wanted.

    Raises:
        RunFileError: The stored bytes are damaged.
    """
    each, place = np.unique(rows, return_inverse=True)
    starts, ends = offsets[each], offsets[each + 1]
    step = int(values.chunks[0]) if values.chunks else _STRETCH_BYTES
    # What lies between two rows is read with them unless a whole chunk of it can be left out.
    cuts = np.flatnonzero(starts[1:] // step > ends[:-1] // step + 1) + 1
    found: list[np.ndarray] = []
    for some in np.split(np.arange(len(each)), cuts) if len(each) else ():
        low = int(starts[some[0]])
        stretch = _stretch(values, low, int(ends[some[-1]]), ())
        bounds = zip((starts[some] - low).tolist(), (ends[some] - low).tolist(), strict=True)
        found += [stretch[start:end] for start, end in bounds]
    return [found[number] for number in place.tolist()]


_Piece = tuple[int, int, slice | np.ndarray, slice | np.ndarray]


def _whole(dataset: h5py.Dataset, row_bytes: int) -> Iterator[_Piece]:
    """Stretches of all rows: from, to, where they go, and which of the stretch to take."""
    n_rows, in_a_chunk = len(dataset), _rows_in_a_chunk(dataset)
    step = in_a_chunk * max(1, _STRETCH_BYTES // (row_bytes * in_a_chunk))
    for low in range(0, n_rows, step):
        high = min(low + step, n_rows)
        yield low, high, slice(low, high), slice(None)


def _picked(dataset: h5py.Dataset, row_bytes: int, rows: Int[np.ndarray, " row"]) -> Iterator[_Piece]:
    """The same for some rows: at most one chunk a stretch, and no longer than what is wanted of it."""
    if not len(rows):
        return
    step = _rows_in_a_chunk(dataset) if dataset.chunks else max(1, _STRETCH_BYTES // row_bytes)
    order = None if (np.diff(rows) >= 0).all() else np.argsort(rows, kind="stable")
    ascending = rows if order is None else rows[order]
    start = 0
    for end in [*(np.flatnonzero(np.diff(ascending // step)) + 1).tolist(), len(rows)]:
        piece = ascending[start:end]
        low, high = int(piece[0]), int(piece[-1]) + 1
        target = slice(start, end) if order is None else order[start:end]
        is_run = high - low == end - start and bool((np.diff(piece) == 1).all())
        yield low, high, target, slice(None) if is_run else piece - low
        start = end


def _rows_in_a_chunk(dataset: h5py.Dataset) -> int:
    return int(dataset.chunks[0]) if dataset.chunks else 1


def _checked(dataset: h5py.Dataset, rows: Shaped[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """Row numbers counted from the start, where negative ones were counted from the end."""
    if not len(rows):
        return np.empty(0, np.int64)  # an empty list has no whole numbers
    rows, n_rows = rows.astype(np.int64, casting="same_kind"), len(dataset)
    wrong = rows[(rows < -n_rows) | (rows >= n_rows)]
    if len(wrong):
        raise RunFileError(
            f"{dataset.file.filename}: there is no reading {wrong[0]}, it has {n_rows} and 0 is the first"
        )
    return np.where(rows < 0, rows + n_rows, rows)


def _stretch(dataset: h5py.Dataset, low: int, high: int, columns: tuple[Any, ...]) -> np.ndarray:
    try:
        return np.asarray(dataset[(slice(low, high), *columns)])
    except OSError as error:
        step = _rows_in_a_chunk(dataset)
        if dataset.chunks and high - low > step:
            for start in range(low - low % step, high, step):  # the chunk that fails says where it is
                _stretch(dataset, max(low, start), min(high, start + step), columns)
        reason = str(error).partition("(")[2].rstrip(")") or error
        raise RunFileError(
            f"{dataset.file.filename}: {dataset.name} is damaged in {_noun(dataset)}s {low} to {high - 1} ({reason}); "
            "restore a copy or capture it again"
        ) from None


def _noun(dataset: h5py.Dataset) -> str:
    """What a row of a dataset is."""
    name = str(dataset.name)
    return "choice" if "/choice_logprob/" in name else "value" if name.endswith("/values") else "reading"

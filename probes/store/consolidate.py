"""From shards to one file that is fast to read by layer, in bounded memory."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from probes.errors import RunFileError
from probes.store.format import CHUNK_BYTES, Status, write_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Readings are copied in blocks of about this many bytes.
_BLOCK_BYTES = 256 << 20
# Shards held open at once; the system's usual limit on open files is 1,024.
_OPEN_SHARDS = 200


class ShardReader:
    """Rows of many shards, addressed by reading number."""

    def __init__(self, paths: Sequence[Path], n_readings: int) -> None:
        self._paths = list(paths)
        self._stack = ExitStack()
        self._open: dict[int, h5py.File] = {}
        self.shard = np.full(n_readings, -1, dtype=np.int64)
        self.offset = np.zeros(n_readings, dtype=np.int64)
        for number in range(len(self._paths)):
            rows = self._file(number)["rows"][:]
            self.shard[rows] = number
            self.offset[rows] = np.arange(len(rows))

    def close(self) -> None:
        """Close every shard."""
        self._stack.close()
        self._open.clear()

    def _file(self, number: int) -> h5py.File:
        if number not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                self.close()
                self._stack = ExitStack()
            try:
                self._open[number] = self._stack.enter_context(h5py.File(self._paths[number], "r"))
            except OSError as error:
                raise RunFileError(f"cannot read {self._paths[number]} ({error}); resume the capture") from None
        return self._open[number]

    def like(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape behind the row axis, and type, of a dataset."""
        dataset = self._file(0)[name]
        return dataset.shape[1:], dataset.dtype

    def read(self, name: str, rows: np.ndarray, columns: tuple[Any, ...] = ()) -> np.ndarray:
        """Rows of a dataset, in the order asked for; rows that no shard holds are NaN (zero bits for integers).

        Args:
            name: Dataset, for example ``residual``.
            rows: Reading numbers ``[row]``.
            columns: Index behind the row axis, for example ``(layer,)``.
        """
        shape, dtype = self.like(name)
        shape = np.empty(shape)[columns].shape if columns else shape
        out = np.full((len(rows), *shape), blank(name, dtype), dtype=dtype)
        for number in np.unique(self.shard[rows]):
            if number < 0:
                continue
            where = np.flatnonzero(self.shard[rows] == number)
            offsets = self.offset[rows[where]]
            # HDF5 wants ascending indices; reading the span and picking in memory is faster than either way.
            low, high = int(offsets.min()), int(offsets.max()) + 1
            out[where] = self._file(int(number))[name][(slice(low, high), *columns)][offsets - low]
        return out


def blank(name: str, dtype: np.dtype) -> Any:
    """What a row without numbers holds: NaN, as bits where bfloat16 is stored as uint16."""
    if name == "status":
        return Status.NOT_CAPTURED
    return np.uint16(0x7FC0) if dtype == np.uint16 else np.nan


def consolidate(header: Path, shards: Sequence[Path], target: Path, attrs: Mapping[str, Any]) -> None:
    """Write the run file from its header and shards.

    Args:
        header: File with items, readings and readout.
        shards: Shard files, whole passes each.
        target: Where to write; the caller renames it into place.
        attrs: Root attributes to add.
    """
    with h5py.File(target, "w") as out, h5py.File(header, "r") as head:
        for name, value in head.attrs.items():
            out.attrs[name] = value
        for name, value in attrs.items():
            out.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
        for name in head:
            head.copy(name, out)
        status = head["readings/status"][:]
        if shards:
            reader = ShardReader(shards, len(status))
            try:
                captured = reader.read("status", np.arange(len(status)))
                status = np.where(reader.shard >= 0, captured, status).astype(np.uint8)
                capture = out.create_group("capture")
                lenses = [f"score_logits/{lens}" for lens in json.loads(head.attrs["lenses"])]
                residual = ["residual"] if head.attrs["residual_dtype"] != "none" else []
                for name in [*residual, *lenses, "scale_mass"]:
                    dataset = _copy_rows(reader, name, capture, len(status))
                    if name == "residual":
                        dataset.attrs["dtype"] = head.attrs["residual_dtype"]
            finally:
                reader.close()
        del out["readings/status"]
        write_array(out["readings"], "status", status)
        out.flush()


def _copy_rows(reader: ShardReader, name: str, group: h5py.Group, n_rows: int) -> h5py.Dataset:
    shape, dtype = reader.like(name)
    row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # A chunk holds one layer of many readings, since analyses read layer by layer.
    layer_bytes = row_bytes // shape[0] if len(shape) > 1 else dtype.itemsize
    rows_a_chunk = max(1, min(n_rows, CHUNK_BYTES // max(1, layer_bytes)))
    chunks = (rows_a_chunk, 1, *shape[1:]) if len(shape) > 1 else (rows_a_chunk,)
    dataset = group.create_dataset(name, (n_rows, *shape), dtype, chunks=chunks, fletcher32=True, track_times=False)
    # Whole chunks a block, so that no chunk is written twice.
    rows_a_block = rows_a_chunk * max(1, _BLOCK_BYTES // max(1, row_bytes * rows_a_chunk))
    sha = hashlib.sha256()
    for start in range(0, n_rows, rows_a_block):
        block = reader.read(name, np.arange(start, min(start + rows_a_block, n_rows)))
        dataset[start : start + len(block)] = block
        sha.update(block.tobytes())
    dataset.attrs["sha256"] = sha.hexdigest()
    return dataset

"""From shards to one file that is fast to read by layer, in bounded memory."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from probes.store.format import CHUNK_BYTES, EXTRAS, raw_bytes, write_array
from probes.store.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# Readings are copied in blocks of at most so many bytes.
_BLOCK_BYTES = 32 << 20
_RAGGED = ("generation/token_ids", "generation/text")


def consolidate(header: Path, shards: Sequence[Path], target: Path, attrs: Mapping[str, Any]) -> None:
    """Write the run file from its header and shards.

    Args:
        header: File with items, prompts, readings and readout.
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
        if not shards:
            return
        n_rows = len(head["readings/status"])
        reader = ShardReader(shards, n_rows)
        for name in ("status", "position"):
            if name in reader:
                merged = reader.merged(name, head[f"readings/{name}"][:])
                del out[f"readings/{name}"]
                write_array(out["readings"], name, merged)
        lenses = [f"score_logits/{lens}" for lens in json.loads(head.attrs["lenses"])]
        residual = ["residual"] if head.attrs["residual_dtype"] != "none" else []
        for name in [*residual, *lenses, "final_mass", *json.loads(head.attrs["extras"])]:
            _copy_rows(reader, name, out, n_rows)
        for name in _RAGGED:
            if f"{name}/values" in reader:
                _copy_ragged(reader, name, out)


def _copy_rows(reader: ShardReader, name: str, out: h5py.File, n_rows: int) -> None:
    shape, dtype = reader.like(name)
    row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    # A chunk holds one layer of many readings, since analyses read layer by layer.
    axis = EXTRAS[name].layer_axis if name in EXTRAS else 1
    layers = shape[axis - 1] if shape else 1
    fit = min(n_rows, CHUNK_BYTES * layers // row_bytes, _BLOCK_BYTES // row_bytes)
    chunks = [max(1, fit), *shape]
    if shape:
        chunks[axis] = 1
    # Whole chunks a block, so that no chunk is written twice.
    n_block = chunks[0] * max(1, _BLOCK_BYTES // (row_bytes * chunks[0]))
    blocks = (reader.read(name, np.arange(start, min(start + n_block, n_rows))) for start in range(0, n_rows, n_block))
    dataset = _write_blocks(out, f"capture/{name}", (n_rows, *shape), dtype, tuple(chunks), blocks)
    if name in ("residual", "last_positions"):
        dataset.attrs["dtype"] = "bfloat16" if dtype == np.uint16 else "float32"


def _copy_ragged(reader: ShardReader, name: str, out: h5py.File) -> None:
    offsets = np.concatenate([[0], np.cumsum(reader.lengths(name))])
    (_, dtype), total = reader.like(f"{name}/values"), int(offsets[-1])
    # Readings at which a block is full.
    cuts = np.searchsorted(offsets, np.arange(0, total, _BLOCK_BYTES // dtype.itemsize)[1:])
    bounds = np.unique([0, *cuts, len(offsets) - 1])
    blocks = (reader.read_ragged(name, int(a), int(b)) for a, b in pairwise(bounds))
    chunks = (min(total, CHUNK_BYTES // dtype.itemsize),)
    _write_blocks(out, f"{name}/values", (total,), dtype, chunks, blocks)
    write_array(out, f"{name}/offsets", offsets)


def _write_blocks(
    out: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: tuple[int, ...],
    blocks: Iterable[np.ndarray],
) -> h5py.Dataset:
    """Write a dataset block by block along its first axis, with fletcher32 and the SHA-256 of its bytes."""
    options: dict[str, Any] = {"chunks": chunks, "fletcher32": True} if all(shape) else {}
    dataset = out.create_dataset(name, shape, dtype, track_times=False, **options)
    sha, start = hashlib.sha256(), 0
    for block in blocks:
        dataset[start : start + len(block)] = block
        sha.update(raw_bytes(block))
        start += len(block)
        del block  # before the next one is read
    dataset.attrs["sha256"] = sha.hexdigest()
    return dataset

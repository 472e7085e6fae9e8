"""What a run file is made of: names, data types, checksums, and the checks before a foreign file is read."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from jaxtyping import Float, Shaped, UInt16

from probes.errors import RunFileError
from probes.items import Item, Items
from probes.lens import READOUT_ORDER, Readout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


FORMAT: Final = "probes-run"
FORMAT_VERSION: Final = 1
SHARD_FORMAT: Final = "probes-shard"
# Tokens of the shape (reading, layer, ...) that one chunk of a consolidated dataset spans along readings.
CHUNK_BYTES: Final = 1 << 20
TEXT_COLUMNS: Final = ("id", "criterion", "group", "system", "split")


class Status(enum.IntEnum):
    """Why a reading has numbers or not; rows of every status but ``OK`` are NaN."""

    OK = 0
    NO_SCORE = 1
    TOO_LONG = 2
    NON_FINITE = 3
    NOT_CAPTURED = 4
    ERROR = 5


@dataclass(frozen=True, eq=False)
class Header:
    """Everything of a run that is known before the first pass.

    Attributes:
        items: The items with their human scores.
        token_ids: Prompt tokens of every item.
        item_hashes: SHA-256 of id and prompt tokens, one an item.
        human_value: Mean human score mapped onto label values ``[item]``; NaN where there is none.
        readout: Final norm and output rows.
        layers: Names along the layer axis.
        lenses: Lenses whose score logits are stored.
        residual_dtype: ``float32``, ``bfloat16``, or None when residuals are not stored.
        status: What is known of each reading beforehand ``[reading]``: ``NOT_CAPTURED`` or ``TOO_LONG``.
        attrs: Root attributes; dictionaries and lists are stored as JSON.
    """

    items: Items
    token_ids: Sequence[Sequence[int]]
    item_hashes: Sequence[str]
    human_value: Float[np.ndarray, " item"]
    readout: Readout
    layers: Sequence[str]
    lenses: Sequence[str]
    residual_dtype: str | None
    status: Shaped[np.ndarray, " reading"]
    attrs: dict[str, Any]


def write_header(file: h5py.File, header: Header) -> None:
    """Write root attributes, ``/items``, ``/readings`` without numbers, and ``/readout``."""
    for name, value in header.attrs.items():
        file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, (dict, list, tuple)) else value
    file.attrs["layers"] = json.dumps(list(header.layers))
    file.attrs["lenses"] = json.dumps(list(header.lenses))
    file.attrs["residual_dtype"] = header.residual_dtype or "none"
    _write_items(file.create_group("items"), header)
    n_readings = len(header.status)
    readings = file.create_group("readings")
    write_array(readings, "item", np.arange(n_readings, dtype=np.int32))
    write_array(readings, "sample", np.zeros(n_readings, dtype=np.int32))
    write_array(readings, "position", np.array([len(ids) - 1 for ids in header.token_ids], dtype=np.int32))
    write_array(readings, "status", header.status.astype(np.uint8))
    _write_readout(file.create_group("readout"), header.readout)


def _write_items(group: h5py.Group, header: Header) -> None:
    items = header.items
    for name in TEXT_COLUMNS:
        write_array(group, name, to_text([getattr(item, name) for item in items]))
    human = items.human if items.n_raters else np.full((len(items), 1), np.nan, dtype=np.float32)
    write_array(group, "human", human)
    group["human"].attrs["raters"] = items.raters
    write_array(group, "human_value", header.human_value.astype(np.float64))
    write_array(group, "items_hash", np.array(header.item_hashes, dtype="S64"))
    write_array(group, "n_tokens", np.array([len(ids) for ids in header.token_ids], dtype=np.int32))
    write_ragged(group, "token_ids", [np.array(ids, dtype=np.int32) for ids in header.token_ids])
    records = [json.dumps(dict(item.fields), ensure_ascii=False, sort_keys=True).encode() for item in items]
    write_ragged(group, "fields", [np.frombuffer(record, dtype=np.uint8) for record in records])


def _write_readout(group: h5py.Group, readout: Readout) -> None:
    for name in ("token_ids", "label_index", "unembed_rows", "unembed_bias", "norm_weight", "norm_bias"):
        write_array(group, name, getattr(readout, name))
    group.attrs["norm_type"] = readout.norm_type
    group.attrs["eps"] = readout.eps
    group.attrs["logit_scale"] = readout.logit_scale
    group.attrs["softcap"] = np.nan if readout.softcap is None else readout.softcap
    group.attrs["order"] = READOUT_ORDER


def read_items(file: h5py.File) -> Items:
    """Items of a run, in order."""
    group = file["items"]
    columns = {name: [text.decode() for text in group[name][:]] for name in TEXT_COLUMNS}
    human = group["human"][:]
    records = read_ragged(group, "fields")
    items = [
        Item(
            fields=json.loads(bytes(record)),
            human=tuple(row) if not np.isnan(row).all() else (),
            **{name: columns[name][number] for name in TEXT_COLUMNS},
        )
        for number, (record, row) in enumerate(zip(records, human.tolist(), strict=True))
    ]
    return Items(items, raters=group["human"].attrs["raters"], source=file.filename)


def read_readout(file: h5py.File) -> Readout:
    """The readout of a run."""
    group = file["readout"]
    softcap = float(group.attrs["softcap"])
    return Readout(
        **{
            name: group[name][:]
            for name in ("token_ids", "label_index", "unembed_rows", "unembed_bias", "norm_weight", "norm_bias")
        },
        norm_type=group.attrs["norm_type"],
        eps=float(group.attrs["eps"]),
        logit_scale=float(group.attrs["logit_scale"]),
        softcap=None if np.isnan(softcap) else softcap,
    )


def write_array(group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    """Write a whole dataset with fletcher32 and the SHA-256 of its bytes."""
    array = np.ascontiguousarray(array)
    options: dict[str, Any] = {"fletcher32": True, "chunks": True} if array.size else {}
    dataset = group.create_dataset(name, data=array, track_times=False, **options)
    dataset.attrs["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    return dataset


def write_ragged(group: h5py.Group, name: str, rows: Sequence[np.ndarray]) -> None:
    """Write rows of different lengths as flat ``values`` and ``offsets`` (one more than rows)."""
    ragged = group.create_group(name)
    write_array(ragged, "values", np.concatenate(rows))
    write_array(ragged, "offsets", np.cumsum([0, *map(len, rows)], dtype=np.int64))


def read_ragged(group: h5py.Group, name: str) -> list[np.ndarray]:
    """Rows written by ``write_ragged``."""
    values, offsets = group[name]["values"][:], group[name]["offsets"][:]
    return [values[start:stop] for start, stop in pairwise(offsets)]


def to_text(texts: Iterable[str]) -> np.ndarray:
    """Fixed-length UTF-8, because variable-length HDF5 strings live in a heap that a crash can tear."""
    encoded = [text.encode() for text in texts]
    length = max(1, max(map(len, encoded)))
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def bfloat16_bits(array: Float[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Bits of bfloat16 values held in float32: the upper half of each word, exact for such values."""
    words = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return np.asarray(words >> 16, dtype=np.uint16)


def from_bfloat16_bits(bits: UInt16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Float32 values of bfloat16 bits, exact."""
    return np.asarray((np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32))


def safe_open(path: Path) -> h5py.File:
    """Open a file for reading, refusing what a run never holds before any data is read.

    Raises:
        RunFileError: Not an HDF5 file, or it has links, virtual or external storage, references,
            variable-length types or unknown filters.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise RunFileError(f"no such file: {path}; give the path of a run that `probes capture` wrote") from None
    except OSError as error:
        raise RunFileError(
            f"{path} cannot be read as HDF5 ({error}); it may be cut short: capture it again or restore a copy"
        ) from None
    try:
        _refuse_unsafe(file, path)
    except BaseException:
        file.close()
        raise
    return file


_KNOWN_FILTERS = {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE}


# Groups of a run nest this deep at most; a hard link to a parent would nest for ever.
_DEPTH = 4


def _refuse_unsafe(group: h5py.Group, path: Path, depth: int = 0) -> None:
    if depth > _DEPTH:
        raise RunFileError(f"{path}: {group.name} nests deeper than a run ever does; do not trust this file")
    for name in group:
        where = f"{path}: {group.name.rstrip('/')}/{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise RunFileError(f"{where} is a link to elsewhere, which a run never holds; do not trust this file")
        node = group[name]
        if isinstance(node, h5py.Group):
            _refuse_unsafe(node, path, depth + 1)
            continue
        if not isinstance(node, h5py.Dataset):
            raise RunFileError(f"{where} is neither group nor dataset; do not trust this file")
        if node.is_virtual or node.external:
            raise RunFileError(f"{where} keeps its data elsewhere, which a run never does; do not trust this file")
        if node.dtype.kind not in "iufS":
            raise RunFileError(f"{where} has the data type {node.dtype}, which a run never holds; do not trust it")
        filters = node.id.get_create_plist()
        for index in range(filters.get_nfilters()):
            if filters.get_filter(index)[0] not in _KNOWN_FILTERS:
                raise RunFileError(f"{where} uses an unknown filter; do not trust this file")

"""What a run file is made of: names, data types, checksums, and the checks before a foreign file is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt16

from probes.errors import RunFileError
from probes.items import Item, Items
from probes.lens import READOUT_ORDER, Readout
from probes.store.readings import Readings
from probes.store.readings import Status as Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from probes.token_table import TokenTable


FORMAT: Final = "probes-run"
FORMAT_VERSION: Final = 1
SHARD_FORMAT: Final = "probes-shard"
# Tokens of the shape (reading, layer, ...) that one chunk of a consolidated dataset spans along readings.
CHUNK_BYTES: Final = 1 << 20
TEXT_COLUMNS: Final = ("id", "criterion", "group", "system", "split")


@dataclass(frozen=True)
class Extra:
    """A reading that is taken only if asked for.

    Attributes:
        layer_axis: Which axis of ``[reading, ...]`` counts the layers.
        option: Argument of ``capture`` that asks for it.
    """

    layer_axis: int
    option: str


EXTRAS: Final = {
    "scale_mass": Extra(1, "mass=True"),
    "entropy": Extra(1, "entropy=True"),
    "last_positions": Extra(2, "last_positions=4"),
    "response_mean": Extra(1, "response_mean=True"),
}


@dataclass(frozen=True, eq=False)
class Header:
    """Everything of a run that is known before the first pass.

    Attributes:
        items: The items with their human scores.
        token_ids: The prompts: one an item, or for pairs the one in the given and the one in the swapped order, in
            order of items. Samples share their prompt.
        human_value: Mean human score mapped onto label values ``[item]``; NaN where there is none.
        readout: Final norm and output rows.
        layers: Names along the layer axis.
        lenses: Lenses whose score logits are stored.
        residual_dtype: ``float32``, ``bfloat16``, or None when residuals are not stored.
        status: What is known of each reading beforehand ``[reading]``: ``NOT_CAPTURED`` or ``TOO_LONG``.
        attrs: Root attributes; dictionaries and lists are stored as JSON. A pairwise run needs ``pairwise`` (true)
            and ``first_label``, the label which says that the response shown first is better.
        reading_item: Item of each reading ``[reading]``; one reading an item unless given.
        reading_sample: Sample number of each reading ``[reading]``; 0 unless given.
        reading_swapped: Whether the two responses of a pair are shown in swapped order ``[reading]``; False unless
            given.
        extras: Names of the optional readings that are stored, of ``EXTRAS``.

    Raises:
        ValueError: The parts do not fit together.
    """

    items: Items
    token_ids: TokenTable
    human_value: Float[np.ndarray, " item"]
    readout: Readout
    layers: Sequence[str]
    lenses: Sequence[str]
    residual_dtype: str | None
    status: Shaped[np.ndarray, " reading"]
    attrs: dict[str, Any]
    reading_item: Int[np.ndarray, " reading"] | None = None
    reading_sample: Int[np.ndarray, " reading"] | None = None
    reading_swapped: Shaped[np.ndarray, " reading"] | None = None
    extras: Sequence[str] = ()

    def __post_init__(self) -> None:
        if unknown := [name for name in self.extras if name not in EXTRAS]:
            raise ValueError(f"unknown extra {unknown[0]!r}: choose among {', '.join(EXTRAS)}")
        n_prompts = len(self._prompts[0])
        if len(self.token_ids) != n_prompts:
            raise ValueError(f"{len(self.token_ids)} prompts, but the readings name {n_prompts}: pass one for each")

    @cached_property
    def readings(self) -> Readings:
        """What every reading is of."""
        n = len(self.status)

        def column(given: np.ndarray | None, default: np.ndarray, dtype: type) -> np.ndarray:
            return (default if given is None else given).astype(dtype)

        return Readings(
            item=column(self.reading_item, np.arange(n), np.int32),
            sample=column(self.reading_sample, np.zeros(n), np.int32),
            swapped=column(self.reading_swapped, np.zeros(n), np.bool_),
            status=self.status.astype(np.uint8),
            n_items=len(self.items),
        )

    @cached_property
    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """For every prompt twice its item, plus one if swapped; and the prompt of every reading."""
        prompts, of = np.unique(2 * self.readings.item + self.readings.swapped, return_inverse=True)
        return prompts, of.astype(np.int32)

    @property
    def reading_prompt(self) -> Int[np.ndarray, " reading"]:
        """Prompt of each reading, as a position in ``token_ids``."""
        return self._prompts[1]

    @cached_property
    def item_hashes(self) -> tuple[str, ...]:
        """SHA-256 of id and prompt tokens, one an item."""
        bounds = np.searchsorted(self._prompts[0], 2 * np.arange(len(self.items) + 1))
        lengths, starts = self.token_ids.lengths, self.token_ids.offsets[bounds]
        hashes = []
        for number, item in enumerate(self.items):
            # The lengths tell where one prompt ends and the next begins.
            counts = lengths[bounds[number] : bounds[number + 1]].tolist()
            sha = hashlib.sha256(json.dumps([item.id, counts]).encode())
            sha.update(raw_bytes(self.token_ids.values[starts[number] : starts[number + 1]]))
            hashes.append(sha.hexdigest())
        return tuple(hashes)


def write_header(file: h5py.File, header: Header) -> None:
    """Write root attributes, ``/items``, ``/prompts``, ``/readings`` without numbers, and ``/readout``."""
    for name, value in header.attrs.items():
        file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, (dict, list, tuple)) else value
    file.attrs["pairwise"] = bool(header.attrs.get("pairwise", False))
    file.attrs["layers"] = json.dumps(list(header.layers))
    file.attrs["lenses"] = json.dumps(list(header.lenses))
    file.attrs["extras"] = json.dumps(list(header.extras))
    file.attrs["residual_dtype"] = header.residual_dtype or "none"
    _write_items(file.create_group("items"), header)
    prompts = file.create_group("prompts/token_ids")
    write_array(prompts, "values", header.token_ids.values)
    write_array(prompts, "offsets", header.token_ids.offsets)
    readings = file.create_group("readings")
    write_array(readings, "item", header.readings.item)
    write_array(readings, "sample", header.readings.sample)
    write_array(readings, "swapped", header.readings.swapped.astype(np.uint8))
    write_array(readings, "prompt", header.reading_prompt)
    write_array(readings, "position", (header.token_ids.lengths[header.reading_prompt] - 1).astype(np.int32))
    write_array(readings, "status", header.readings.status)
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
    write_texts(group, "fields", [json.dumps(dict(i.fields), ensure_ascii=False, sort_keys=True) for i in items])


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
    dataset.attrs["sha256"] = hashlib.sha256(raw_bytes(array)).hexdigest()
    return dataset


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-ordered array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def joined(rows: Sequence[np.ndarray], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as flat ``values`` and ``offsets`` (one more than rows)."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return np.concatenate([np.empty(0, dtype), *rows]).astype(dtype, copy=False), offsets


def encoded(texts: Iterable[str]) -> list[np.ndarray]:
    """UTF-8 bytes of texts."""
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def write_texts(group: h5py.Group, name: str, texts: Iterable[str]) -> None:
    """Write texts of any length as the flat bytes ``values`` and the ``offsets`` between them."""
    values, offsets = joined(encoded(texts), np.uint8)
    write_array(group, f"{name}/values", values)
    write_array(group, f"{name}/offsets", offsets)


def read_ragged(group: h5py.Group, name: str) -> list[np.ndarray]:
    """Rows that are stored as flat ``values`` and ``offsets``."""
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


def check_format(file: h5py.File, path: Path) -> None:
    """Refuse a file that is no run, or a run that only a later version reads."""
    if file.attrs.get("format") != FORMAT:
        raise RunFileError(f"{path} is an HDF5 file but not a run; give a file that `probes capture` wrote")
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}, this package reads up to {FORMAT_VERSION}; upgrade probes"
        )

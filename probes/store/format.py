"""What a run file is made of: names, data types, checksums, and the checks before a foreign file is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from jaxtyping import Float, UInt16

from probes.errors import RunFileError
from probes.store.readings import Status as Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


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


def blank(dtype: np.dtype) -> Any:
    """What a row without numbers holds: NaN, as bits where bfloat16 is stored as uint16."""
    return np.uint16(0x7FC0) if dtype == np.uint16 else np.nan


def check_format(file: h5py.File, path: Path) -> None:
    """Refuse a file that is no run, or a run that only a later version reads."""
    if file.attrs.get("format") != FORMAT:
        raise RunFileError(f"{path} is an HDF5 file but not a run; give a file that `probes capture` wrote")
    version = file.attrs.get("format_version")
    if not isinstance(version, np.integer):
        raise RunFileError(f"{path} is damaged: its format_version is no number; `probes verify` names what is wrong")
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}, this package reads up to {FORMAT_VERSION}; upgrade probes"
        )

"""Reading a run: items, layers, score logits and residuals, without the model."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from probes.errors import RunFileError
from probes.lens import LENSES, Readout
from probes.scale import Scale
from probes.store.consolidate import ShardReader
from probes.store.format import (
    FORMAT,
    FORMAT_VERSION,
    Status,
    from_bfloat16_bits,
    read_items,
    read_ragged,
    read_readout,
    safe_open,
)
from probes.store.writer import partial_folder, shard_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py

    from probes.items import Items


class Run:
    """One capture, read lazily from its file. Use ``open_run``.

    Axes: ``item`` (or ``reading``; one reading an item in the direct condition), ``layer`` (``embed, 1 .. L``),
    ``label``, ``d_model``, ``rater``.
    """

    def __init__(self, path: Path, file: h5py.File, shards: ShardReader | None = None) -> None:
        self.path = path
        self._file = file
        self._shards = shards

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        self._file.close()
        if self._shards is not None:
            self._shards.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        used = int((self.status == Status.OK).sum())
        return (
            f"Run({self.path.name}: {self.judge_name}, {used} of {len(self.status)} readings captured, "
            f"{len(self.layers)} layers, scale {self.scale}, lenses {', '.join(self.lenses)})"
        )

    def attr(self, name: str) -> Any:
        """A root attribute; JSON is parsed."""
        value = self._file.attrs[name]
        if isinstance(value, str) and value[:1] in "{[":
            return json.loads(value)
        return value

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
        return tuple(self.attr("layers"))

    @cached_property
    def lenses(self) -> tuple[str, ...]:
        """Lenses that can be read: those stored, and where residuals are stored all others."""
        if self.attr("residual_dtype") == "none":
            return tuple(self.attr("lenses"))
        return LENSES

    @cached_property
    def scale(self) -> Scale:
        """The judge's scale."""
        return Scale.from_dict(self.attr("scale"))

    @cached_property
    def readout(self) -> Readout:
        """Final norm and output rows of the score tokens."""
        return read_readout(self._file)

    @cached_property
    def items(self) -> Items:
        """The items, in order."""
        return read_items(self._file)

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
        return np.asarray(self._file["items/human"][:])

    @cached_property
    def human_value(self) -> Float[np.ndarray, " item"]:
        """Mean human score mapped onto label values; NaN where an item has none."""
        return np.asarray(self._file["items/human_value"][:])

    @cached_property
    def n_tokens(self) -> Int[np.ndarray, " item"]:
        """Prompt length of every item."""
        return np.asarray(self._file["items/n_tokens"][:])

    @property
    def item_hashes(self) -> tuple[str, ...]:
        """SHA-256 of id and prompt tokens of every item."""
        return tuple(text.decode() for text in self._file["items/items_hash"][:])

    @property
    def token_ids(self) -> list[Int[np.ndarray, " position"]]:
        """Prompt tokens of every item."""
        return read_ragged(self._file["items"], "token_ids")

    @cached_property
    def status(self) -> UInt8[np.ndarray, " reading"]:
        """Why a reading has numbers or not; see ``Status``."""
        stored = np.asarray(self._file["readings/status"][:])
        if self._shards is None:
            return stored
        captured = self._shards.read("status", np.arange(len(stored)))
        return np.where(self._shards.shard >= 0, captured, stored).astype(np.uint8)

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

    @cached_property
    def scale_mass(self) -> Float[np.ndarray, " reading"]:
        """Share of the full vocabulary's probability on the scale at the last layer."""
        return self._read("scale_mass", None)

    def score_logits(
        self, lens: str = "norm", readings: Sequence[int] | np.ndarray | None = None
    ) -> Float[np.ndarray, "reading layer label"]:
        """Score logits under a lens, NaN in rows without numbers.

        A lens that was not stored is computed from the residuals.

        Raises:
            RunFileError: The lens is unknown, or it was not stored and neither were residuals.
        """
        if lens not in LENSES:
            raise RunFileError(f"{self.path}: unknown lens {lens!r}; it has {', '.join(self.lenses)}")
        if lens in self.attr("lenses"):
            return self._read(f"score_logits/{lens}", readings)
        return self.readout.score_logits(self.residual(readings=readings), lens)

    def item_logits(self, lens: str = "norm") -> Float[np.ndarray, "item layer label"]:
        """Score logits of every item: in the direct condition, those of its one reading."""
        return self.score_logits(lens)

    def residual(
        self, layer: str | int | None = None, readings: Sequence[int] | np.ndarray | None = None
    ) -> Float[np.ndarray, "reading *layer d_model"]:
        """Residual states before the final norm, float32, NaN in rows without numbers.

        Args:
            layer: Name on the layer axis (``"embed"``, ``"12"`` or 12); all layers unless given.
            readings: Reading numbers or a boolean mask; all unless given.

        Raises:
            RunFileError: Residuals were not stored, or there is no such layer.
        """
        if self.attr("residual_dtype") == "none":
            raise RunFileError(f"{self.path} holds no residuals; capture again with residuals=True")
        columns: tuple[Any, ...] = ()
        if layer is not None:
            if str(layer) not in self.layers:
                raise RunFileError(f"{self.path} has no layer {layer!r}; its layers are embed, 1 .. {self.layers[-1]}")
            columns = (self.layers.index(str(layer)),)
        values = self._read("residual", readings, columns)
        return from_bfloat16_bits(values) if values.dtype == np.uint16 else values

    def _read(
        self, name: str, readings: Sequence[int] | np.ndarray | None, columns: tuple[Any, ...] = ()
    ) -> np.ndarray:
        if readings is not None and np.asarray(readings).dtype == bool:
            readings = np.flatnonzero(readings)
        if self._shards is not None:
            rows = np.arange(len(self._shards.shard)) if readings is None else np.asarray(readings)
            return self._shards.read(name, rows, columns)
        if f"capture/{name}" not in self._file:
            raise RunFileError(f"{self.path} holds no numbers: none of its readings was captured")
        dataset = self._file[f"capture/{name}"]
        if readings is None:
            return np.asarray(dataset[(slice(None), *columns)])
        rows = np.asarray(readings)
        wanted, inverse = np.unique(rows, return_inverse=True)
        return np.asarray(dataset[(wanted, *columns)][inverse])


def open_run(path: str | Path) -> Run:
    """Open a run file, or the ``.partial`` folder of a capture that is running or was cut short.

    Args:
        path: ``run.h5``, ``run.h5.partial``, or ``run.h5`` of which only the partial folder exists yet.

    Raises:
        RunFileError: There is no such run, it is damaged, or it is of a later format version.
    """
    path = Path(path)
    if not path.exists() and partial_folder(path).is_dir():
        path = partial_folder(path)
    if path.is_dir():
        return _open_partial(path)
    file = safe_open(path)
    try:
        _check_format(file, path)
    except BaseException:
        file.close()
        raise
    return Run(path, file)


def _open_partial(folder: Path) -> Run:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise RunFileError(f"{folder} is not a run: it has no manifest.json; give a run.h5 or its .partial folder")
    finished = sorted(int(number) for number in json.loads(manifest.read_text(encoding="utf-8"))["shards"])
    file = safe_open(folder / "header.h5")
    try:
        _check_format(file, folder)
        if not finished:
            raise RunFileError(f"{folder} has no finished shard yet; wait for the first one, or resume the capture")
        shards = ShardReader([folder / shard_name(n) for n in finished], len(file["readings/status"]))
    except BaseException:
        file.close()
        raise
    return Run(folder, file, shards)


def _check_format(file: h5py.File, path: Path) -> None:
    if file.attrs.get("format") != FORMAT:
        raise RunFileError(f"{path} is an HDF5 file but not a run; give a file that `probes capture` wrote")
    version = int(file.attrs["format_version"])
    if version > FORMAT_VERSION:
        raise RunFileError(
            f"{path} has format version {version}, this package reads up to {FORMAT_VERSION}; upgrade probes"
        )

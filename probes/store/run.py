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
from probes.store.format import (
    EXTRAS,
    check_format,
    from_bfloat16_bits,
    read_items,
    read_ragged,
    read_readout,
    safe_open,
)
from probes.store.readings import Readings, Status
from probes.store.shards import ShardReader
from probes.store.writer import partial_folder, shard_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py
    import pandas as pd

    from probes.items import Items


class Run:
    """One capture, read lazily from its file. Use ``open_run``.

    Axes: ``item``, ``reading`` (one an item in the direct condition, one a sample where answers are sampled, two a
    sample for pairs), ``layer`` (``embed, 1 .. L``), ``label``, ``d_model``, ``rater``.
    """

    def __init__(self, path: Path, file: h5py.File, shards: ShardReader | None = None) -> None:
        self.path = path
        self._file = file
        self._shards = shards

    def close(self) -> None:
        """Close the file; reading afterwards fails."""
        self._file.close()

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
        if name not in self._file.attrs:
            raise RunFileError(
                f"{self.path} has no attribute {name!r}: it was not written by this version; capture it again, with "
                "overwrite=True (--overwrite) or to another path"
            )
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

    @property
    def item_hashes(self) -> tuple[str, ...]:
        """SHA-256 of id and prompt tokens of every item."""
        return tuple(text.decode() for text in self._file["items/items_hash"][:])

    @property
    def pairwise(self) -> bool:
        """Whether the items are pairs of responses, each judged in both orders."""
        return bool(self.attr("pairwise"))

    @cached_property
    def readings(self) -> Readings:
        """Item, sample, order of responses and status of every reading."""
        group = self._file["readings"]
        return Readings(
            item=group["item"][:],
            sample=group["sample"][:],
            swapped=group["swapped"][:].astype(bool),
            status=self._merged("status"),
            n_items=len(self._file["items/id"]),
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
        return self._merged("position")

    @property
    def token_ids(self) -> list[Int[np.ndarray, " position"]]:
        """Prompt tokens of every reading; readings of the same prompt share one array."""
        prompts = read_ragged(self._file["prompts"], "token_ids")
        return [prompts[number] for number in self._file["readings/prompt"][:]]

    @cached_property
    def n_tokens(self) -> Int[np.ndarray, " reading"]:
        """Prompt length of every reading."""
        lengths = np.diff(self._file["prompts/token_ids/offsets"][:])
        return np.asarray(lengths[self._file["readings/prompt"][:]])

    @property
    def generated_ids(self) -> list[Int[np.ndarray, " token"]]:
        """Generated token ids of every reading, empty where nothing was captured.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        return self._generation("token_ids")

    @property
    def generated_text(self) -> list[str]:
        """Generated text of every reading, empty where nothing was captured.

        Raises:
            RunFileError: Nothing was generated for this run.
        """
        return [bytes(text).decode() for text in self._generation("text")]

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
    def final_mass(self) -> Float[np.ndarray, " reading"]:
        """Share of the full vocabulary's probability on the scale at the last layer."""
        return self._read("final_mass", None)

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the optional readings that ``extra`` gives."""
        return tuple(self.attr("extras"))

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
        """Score logits of every item under a lens; NaN rows where ``item_status`` is not ``OK``.

        In the direct condition those of its one reading; of sampled answers the mean over the samples that were
        read; of a pair the mean over both orders, with the labels of the swapped one reversed, so that the log-odds
        of the two responses are the mean of the log-odds of the two orders.

        Raises:
            RunFileError: As ``score_logits``.
        """
        return self.readings.item_logits(self.score_logits(lens))

    def position_bias(self, lens: str = "norm") -> pd.DataFrame:
        """How much a pairwise judge leans to the response that it is shown first, per layer.

        Returns:
            One row a layer: ``layer, n, bias, sd, flipped``. ``bias`` is in log-odds and positive where the judge
            prefers the response shown first; ``flipped`` is the share of items whose preferred response changes
            with the order. See ``Readings.position_bias``.

        Raises:
            RunFileError: The run is not pairwise, or as ``score_logits``.
        """
        if not self.pairwise:
            raise RunFileError(f"{self.path} judges single responses; only a pairwise run has a position bias")
        logits = self.score_logits(lens).astype(np.float64)
        first = self.scale.labels.index(self.attr("first_label"))
        return self.readings.position_bias(logits[..., first] - logits[..., -1 - first], self.layers)

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
        return self._read("residual", readings, self._layer(layer))

    def extra(
        self, name: str, readings: Sequence[int] | np.ndarray | None = None, layer: str | int | None = None
    ) -> Float[np.ndarray, "reading ..."]:
        """An optional reading, float32, NaN in rows without numbers.

        Args:
            name: ``scale_mass``, the share of the full vocabulary's probability on the scale ``[reading, layer]``;
                ``entropy``, of the full vocabulary, in nats ``[reading, layer]``; ``last_positions``, residuals of
                the last positions up to the one read, earliest first ``[reading, back, layer, d_model]``;
                ``response_mean``, mean residual over the tokens of the response ``[reading, layer, d_model]``.
            readings: Reading numbers or a boolean mask; all unless given.
            layer: Name on the layer axis, which then drops out; all layers unless given.

        Raises:
            RunFileError: It was not captured, or there is no such reading or layer.
        """
        if name not in EXTRAS:
            raise RunFileError(f"{self.path}: unknown extra reading {name!r}; there are {', '.join(EXTRAS)}")
        if name not in self.extras:
            raise RunFileError(f"{self.path} holds no {name}; capture again with {EXTRAS[name].option}")
        return self._read(name, readings, self._layer(layer, EXTRAS[name].layer_axis))

    def _layer(self, layer: str | int | None, axis: int = 1) -> tuple[Any, ...]:
        """Index behind the reading axis that picks a layer."""
        if layer is None:
            return ()
        if str(layer) not in self.layers:
            raise RunFileError(f"{self.path} has no layer {layer!r}; its layers are embed, 1 .. {self.layers[-1]}")
        return (*[slice(None)] * (axis - 1), self.layers.index(str(layer)))

    def _read(
        self, name: str, readings: Sequence[int] | np.ndarray | None, columns: tuple[Any, ...] = ()
    ) -> np.ndarray:
        rows = None if readings is None else np.asarray(readings)
        if rows is not None and rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if self._shards is not None:
            values = self._shards.read(name, np.arange(len(self.status)) if rows is None else rows, columns)
        elif f"capture/{name}" not in self._file:
            raise RunFileError(f"{self.path} holds no numbers: none of its readings was captured")
        else:
            dataset = self._file[f"capture/{name}"]
            wanted, inverse = (slice(None), ...) if rows is None else np.unique(rows, return_inverse=True)
            values = np.asarray(dataset[(wanted, *columns)][inverse])
        return from_bfloat16_bits(values) if values.dtype == np.uint16 else values

    def _merged(self, name: str) -> np.ndarray:
        """A whole number for every reading, which shards may know better than the header."""
        known = np.asarray(self._file[f"readings/{name}"][:])
        return self._shards.merged(name, known) if self._shards is not None and name in self._shards else known

    def _generation(self, name: str) -> list[np.ndarray]:
        path = f"generation/{name}"
        if self._shards is not None and f"{path}/values" in self._shards:
            n_readings = len(self.status)
            values = self._shards.read_ragged(path, 0, n_readings)
            return np.split(values, np.cumsum(self._shards.lengths(path))[:-1])
        if path not in self._file:
            raise RunFileError(f"{self.path} holds nothing generated: its judge was read at the end of the prompt")
        return read_ragged(self._file["generation"], name)


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
        check_format(file, path)
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
        check_format(file, folder)
        if not finished:
            raise RunFileError(f"{folder} has no finished shard yet; wait for the first one, or resume the capture")
        shards = ShardReader([folder / shard_name(n) for n in finished], len(file["readings/status"]))
    except BaseException:
        file.close()
        raise
    return Run(folder, file, shards)

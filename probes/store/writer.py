"""Writing a run: closed shards that are renamed into place, a manifest, and one consolidated file at the end.

While a capture runs, ``run.h5.partial/`` holds::

    lock             held by the writing process
    header.h5        items, readings, readout
    shard-00000.h5   whole passes, never touched again
    manifest.json    which shards are finished, with their checksums

At the end the shards become ``run.h5`` and the folder is removed. A file that is not renamed yet is never
looked at, so a killed process loses at most the shard it was working on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import filelock
import h5py
import numpy as np
from jaxtyping import Float, Int, Shaped

from probes.errors import RunFileError
from probes.store.consolidate import consolidate
from probes.store.format import FORMAT_VERSION, SHARD_FORMAT, Header, bfloat16_bits, encoded, joined, write_header
from probes.store.readings import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ShardData:
    """The numbers of some readings. Rows of a status other than ``OK`` are stored as NaN, whatever they hold.

    Attributes:
        rows: Reading numbers ``[row]``, in any order.
        status: One ``Status`` a row.
        residual: States before the final norm ``[row, layer, d_model]``; None when not stored.
        score_logits: Per lens ``[row, layer, label]``.
        final_mass: Share of the full vocabulary's probability on the scale at the last layer ``[row]``.
        deviation: Largest deviation of the ``norm`` lens at the last layer from the model's own logits.
        extras: Optional readings by name, rows first: ``scale_mass`` and ``entropy`` (nats) ``[row, layer]``,
            ``last_positions`` ``[row, back, layer, d_model]``, ``response_mean`` ``[row, layer, d_model]``.
        position: Position in prompt and generation of the token whose state was read ``[row]``; the last of the
            prompt unless given.
        generated: Generated token ids, one array a row; None where nothing was generated.
        texts: Generated text, one a row; None where nothing was generated.
    """

    rows: Int[np.ndarray, " row"]
    status: Shaped[np.ndarray, " row"]
    residual: Float[np.ndarray, "row layer d_model"] | None
    score_logits: Mapping[str, Float[np.ndarray, "row layer label"]]
    final_mass: Float[np.ndarray, " row"]
    deviation: float
    extras: Mapping[str, Float[np.ndarray, "row ..."]] = field(default_factory=dict)
    position: Int[np.ndarray, " row"] | None = None
    generated: Sequence[Int[np.ndarray, " token"]] | None = None
    texts: Sequence[str] | None = None


class RunWriter:
    """Writes one run; use ``RunWriter.open`` as a context manager."""

    def __init__(self, path: Path, header: Header, plan_digest: str, *, restart: bool = False) -> None:
        self.path = path
        self.folder = partial_folder(path)
        self._header = header
        self._plan_digest = plan_digest
        self._restart = restart
        self._manifest: dict[str, Any] = {}
        self._manifest_lock = threading.Lock()  # shards may be written from a thread of their own
        self._consolidated = False

    @classmethod
    @contextmanager
    def open(cls, path: Path, header: Header, plan_digest: str, *, restart: bool = False) -> Iterator[RunWriter]:
        """Start a run or resume it.

        Args:
            path: Where the run file will be.
            header: What is known beforehand.
            plan_digest: Hash of the plan; a run resumes only under the plan that it was started with.
            restart: Drop an unfinished run that differs, instead of refusing.

        Raises:
            RunFileError: Another process writes this run, or the partial run is of another judge, of other
                items or of another plan.
        """
        writer = cls(path, header, plan_digest, restart=restart)
        try:
            writer.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFileError(f"cannot write to {path.parent}: {error.strerror}; choose another output path") from None
        lock = filelock.FileLock(writer.folder / "lock", blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunFileError(
                f"another process is writing {path}; wait for it, or choose another output path"
            ) from None
        try:
            writer._start()
            yield writer
            # Still under the lock, so that nobody starts to write into a folder that is about to go.
            if writer._consolidated:
                shutil.rmtree(writer.folder, ignore_errors=True)
        finally:
            lock.release()

    @property
    def finished(self) -> dict[int, dict[str, Any]]:
        """Shard number to its manifest entry."""
        with self._manifest_lock:
            return {int(number): entry for number, entry in self._manifest["shards"].items()}

    @property
    def notes(self) -> dict[str, Any]:
        """What the capture decided at its first pass; a resumed run keeps to it."""
        return dict(self._manifest["notes"])

    def write_notes(self, notes: dict[str, Any]) -> None:
        """Record decisions that a resumed run must keep to."""
        with self._manifest_lock:
            self._manifest["notes"] = notes
            self._write_manifest()

    def write_shard(self, number: int, data: ShardData) -> None:
        """Write one shard, close it, and only then name it. One thread at a time, which need not be the main one."""
        name = shard_name(number)
        temporary = self.folder / f"{name}.writing"
        with h5py.File(temporary, "w") as file:
            file.attrs["format"] = SHARD_FORMAT
            file.attrs["format_version"] = FORMAT_VERSION
            # No checksums in here: the digest of the whole file is in the manifest, and the run file gets its own.
            for dataset, array in self._arrays(data):
                file.create_dataset(dataset, data=array, track_times=False)
        _publish(temporary, self.folder / name)
        entry = {"rows": len(data.rows), "sha256": file_digest(self.folder / name), "deviation": data.deviation}
        with self._manifest_lock:
            self._manifest["shards"][str(number)] = entry
            self._write_manifest()

    def _arrays(self, data: ShardData) -> Iterator[tuple[str, np.ndarray]]:
        """Datasets of a shard, rows in ascending order so that consolidating reads every shard in one direction."""
        order, header = np.argsort(data.rows, kind="stable"), self._header
        status = data.status[order].astype(np.uint8)
        blank = status != Status.OK
        # Without residuals there is no type of theirs; that of the weights is the same.
        bits = (header.residual_dtype or header.attrs.get("dtype")) == "bfloat16"

        def numbers(values: np.ndarray) -> np.ndarray:
            picked = values[order].astype(np.float32, copy=False)
            picked[blank] = np.nan
            return picked

        def states(values: np.ndarray) -> np.ndarray:
            return bfloat16_bits(numbers(values)) if bits else numbers(values)

        yield "rows", data.rows[order].astype(np.int64)
        yield "status", status
        yield "final_mass", numbers(data.final_mass)
        for lens in header.lenses:
            yield f"score_logits/{lens}", numbers(data.score_logits[lens])
        if header.residual_dtype is not None and data.residual is not None:
            yield "residual", states(data.residual)
        for name in header.extras:
            yield name, (states if name == "last_positions" else numbers)(data.extras[name])
        if data.position is not None:
            yield "position", data.position[order].astype(np.int32)
        if data.generated is not None:
            yield from _ragged("generation/token_ids", [data.generated[row] for row in order], np.int32)
        if data.texts is not None:
            yield from _ragged("generation/text", encoded(data.texts[row] for row in order), np.uint8)

    def consolidate(self, attrs: Mapping[str, Any]) -> Path:
        """Merge the shards into the run file, named only when it is whole.

        Args:
            attrs: Root attributes that are known at the end.
        """
        shards = [self.folder / shard_name(number) for number in sorted(self.finished)]
        temporary = self.path.with_name(f"{self.path.name}.writing")
        consolidate(self.folder / "header.h5", shards, temporary, attrs)
        _publish(temporary, self.path)
        self._consolidated = True
        return self.path

    def _start(self) -> None:
        header_path, manifest_path = self.folder / "header.h5", self.folder / "manifest.json"
        expected = {
            "judge_hash": self._header.attrs["judge_hash"],
            "items_digest": _items_digest(self._header.item_hashes),
            "plan_digest": self._plan_digest,
            "lenses": list(self._header.lenses),
            "extras": list(self._header.extras),
            "residual_dtype": self._header.residual_dtype or "none",
        }
        if header_path.is_file() and manifest_path.is_file():
            self._manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            differ = self._differences(expected)
            if not differ:
                # Human scores, groups and texts may have been corrected since; the states do not depend on them.
                self._write_header()
                self._discard_damaged_shards()
                return
            if self._manifest["shards"] and not self._restart:
                raise RunFileError(
                    f"{self.folder} holds an unfinished run that differs in {', '.join(differ)}; resume it with the "
                    "settings it was started with, or start again with overwrite=True (--overwrite)"
                )
        # Without a manifest a folder is no run, so what is half replaced after a crash is started afresh.
        manifest_path.unlink(missing_ok=True)
        for shard in self.folder.glob("shard-*.h5"):
            shard.unlink()
        self._write_header()
        self._manifest = {"run": expected, "notes": {}, "shards": {}}
        self._write_manifest()

    def _write_header(self) -> None:
        temporary = self.folder / "header.h5.writing"
        with h5py.File(temporary, "w") as file:
            write_header(file, self._header)
        _publish(temporary, self.folder / "header.h5")

    def _differences(self, expected: dict[str, Any]) -> list[str]:
        names = {
            "judge_hash": "the judge (model, template, scale or dtype)",
            "items_digest": "the items or their prompts",
            "plan_digest": "the batching (batch tokens, prefix sharing or length limit)",
            "lenses": "the lenses",
            "extras": "the extra readings",
            "residual_dtype": "the type of the residuals",
        }
        return [names[key] for key, value in expected.items() if self._manifest["run"].get(key) != value]

    def _discard_damaged_shards(self) -> None:
        for number, entry in list(self._manifest["shards"].items()):
            path = self.folder / shard_name(int(number))
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                logger.warning("%s is missing or damaged; its passes run again", path.name)
                del self._manifest["shards"][number]

    def _write_manifest(self) -> None:
        temporary = self.folder / "manifest.json.writing"
        temporary.write_text(json.dumps(self._manifest, indent=1, sort_keys=True), encoding="utf-8")
        _publish(temporary, self.folder / "manifest.json")


def _ragged(name: str, rows: Sequence[np.ndarray], dtype: type) -> Iterator[tuple[str, np.ndarray]]:
    values, offsets = joined(rows, dtype)
    yield f"{name}/values", values
    yield f"{name}/offsets", offsets


def partial_folder(path: Path) -> Path:
    """Where an unfinished run lies."""
    return path.with_name(f"{path.name}.partial")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.h5"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _items_digest(item_hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(item_hashes).encode()).hexdigest()


def _publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name so that a crash leaves the old state or the new one, never half of it."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

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
from typing import TYPE_CHECKING, Any

import filelock
import h5py
import numpy as np
from jaxtyping import Int

from probes.errors import RunFileError
from probes.store.consolidate import consolidate
from probes.store.format import Header, write_header
from probes.store.shard_writer import ShardData, ShardWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


logger = logging.getLogger(__name__)


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

    def open_shard(self, number: int, rows: Int[np.ndarray, " row"]) -> ShardWriter:
        """Start a shard.

        Args:
            number: Number of the shard.
            rows: All its reading numbers.
        """
        return ShardWriter(self.folder / f"{shard_name(number)}.writing", self._header, rows)

    def close_shard(self, number: int, shard: ShardWriter) -> None:
        """Close a shard, and only then name it."""
        shard.close()
        final = self.folder / shard_name(number)
        _publish(shard.path, final)
        entry = {"rows": len(shard.rows), "sha256": file_digest(final), "deviation": shard.deviation}
        with self._manifest_lock:
            self._manifest["shards"][str(number)] = entry
            self._write_manifest()

    def write_shard(self, number: int, data: ShardData) -> None:
        """Write a shard whose rows are all at hand."""
        shard = self.open_shard(number, data.rows)
        shard.add(data)
        self.close_shard(number, shard)

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

"""Writing a run: closed shards that are renamed into place, a manifest, and one file at the end.

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
import platform
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxtyping import Int

from probes.differences import differences
from probes.errors import RunFileError
from probes.same_model import named_like
from probes.store import disk
from probes.store.header import Header, write_header
from probes.store.lock import locked, remove_folder
from probes.store.merge import write_run
from probes.store.opening import open_partial, read_manifest
from probes.store.shard_writer import ShardData, ShardWriter
from probes.store.shards import partial_folder, shard_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from probes.store.run import Run


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
        self._is_written = False

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
            RunFileError: Another process writes this run, the partial run is of another judge, of other items or of
                another plan, or the disk is full or read-only.
        """
        writer = cls(path, header, plan_digest, restart=restart)
        with locked(path):
            with disk.failures_named(writer.folder):
                writer._start()
            yield writer
            # Still under the lock, so that nobody starts to write into a folder that is about to go.
            if writer._is_written:
                remove_folder(writer.folder)

    @property
    def finished(self) -> dict[int, dict[str, Any]]:
        """Shard number to its manifest entry."""
        with self._manifest_lock:
            return {int(number): entry for number, entry in self._manifest["shards"].items()}

    @property
    def kept(self) -> str:
        """What is left if the capture stops now, for messages."""
        done = sum(entry["rows"] for entry in self.finished.values())
        total = len(self._header.status)
        return f"{done} of {total} readings are kept in {self.folder}, and the same command goes on from there"

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
        """Close a shard, name it, and only then count it as finished."""
        final = self.folder / shard_name(number)
        with disk.failures_named(final):
            shard.close()
            disk.publish(shard.path, final)
        entry = {"rows": len(shard.rows), "sha256": file_digest(final), "deviation": shard.deviation}
        with self._manifest_lock:
            self._manifest["shards"][str(number)] = entry
            self._write_manifest()

    def write_shard(self, number: int, data: ShardData) -> None:
        """Write a shard whose rows are all at hand."""
        shard = self.open_shard(number, data.rows)
        shard.add(data)
        self.close_shard(number, shard)

    def write_run(self, attrs: Mapping[str, Any], *, base: Run | None = None, compress: bool = False) -> Path:
        """Write the run file, which replaces what is there when it is whole.

        Args:
            attrs: Root attributes that are known at the end.
            base: A run whose items come first; those of the shards follow.
            compress: Compress the numbers without loss.
        """
        with open_partial(self.folder) as captured:
            runs = [captured] if base is None else [base, captured]
            write_run(runs, self.path, lenses=self._header.lenses, compress=compress, attrs=attrs)
        self._is_written = True
        return self.path

    def _start(self) -> None:
        header_path, manifest_path = self.folder / "header.h5", self.folder / "manifest.json"
        expected = {
            "judge": self._header.attrs.get("judge") or self._header.attrs["judge_hash"],
            "the items or their prompts": _items_digest(self._header.item_hashes),
            "the batching (batch tokens, prefix sharing or length limit)": self._plan_digest,
            "lenses": list(self._header.lenses),
            "extra readings": list(self._header.extras),
            "last positions": self._header.attrs.get("config", {}).get("extras", {}).get("last_positions", 0),
            "type of the residuals": self._header.residual_dtype or "none",
        }
        device = self._header.attrs.get("config", {}).get("device")
        made_with = {"versions": self._header.attrs.get("versions"), "machine": platform.machine(), "device": device}
        for left in self.folder.glob("*.writing"):
            disk.remove(left)
        if header_path.is_file() and manifest_path.is_file() and (manifest := self._read_manifest()) is not None:
            self._manifest = manifest
            begun = manifest["run"].get("judge")
            if isinstance(begun, dict):
                named = named_like(self._header.attrs, {"model_hash": begun.get("weights")})
                expected["judge"] = named.get("judge") or expected["judge"]
            differ = differences(manifest["run"], expected)
            if not differ:
                # Human scores, groups and texts may have been corrected since; the states do not depend on them.
                self._write_header()
                self._discard_damaged_shards()
                self._warn_of_changes(made_with)
                return
            if self._manifest["shards"] and not self._restart:
                raise RunFileError(
                    f"{self.folder} holds an unfinished run that differs in {', '.join(differ)}; resume it with the "
                    f"settings it was started with, or remove {self.folder} to start again"
                )
        # Without a manifest a folder is no run, so what is half replaced after a crash is started afresh.
        disk.remove(manifest_path)
        for shard in self.folder.glob("shard-*.h5"):
            disk.remove(shard)
        self._write_header()
        self._manifest = {"run": expected, "made_with": made_with, "notes": {}, "shards": {}}
        self._write_manifest()

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            return read_manifest(self.folder)
        except RunFileError as error:
            logger.warning("%s; nothing can be resumed, and all passes run again", error)
            return None

    def _write_header(self) -> None:
        temporary = self.folder / "header.h5.writing"
        with disk.h5_file(temporary, "w") as file:
            write_header(file, self._header)
        disk.publish(temporary, self.folder / "header.h5")

    def _discard_damaged_shards(self) -> None:
        for number, entry in list(self._manifest["shards"].items()):
            path = self.folder / shard_name(int(number))
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                logger.warning("%s is missing or damaged; its passes run again", path.name)
                del self._manifest["shards"][number]

    def _warn_of_changes(self, made_with: dict[str, Any]) -> None:
        if changed := differences(self._manifest.get("made_with", {}), made_with):
            logger.warning(
                "this run was begun with other software or on another machine: %s; numbers may differ in their last "
                "bits from those that are there",
                ", ".join(changed),
            )

    def _write_manifest(self) -> None:
        path = self.folder / "manifest.json"
        with disk.failures_named(path):
            disk.write_text(path, json.dumps(self._manifest, indent=1, sort_keys=True))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _items_digest(item_hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(item_hashes).encode()).hexdigest()

"""Opening a run: a file, or the folder of a capture that is not finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from probes.errors import RunFileError
from probes.kinds import require_path
from probes.store.format import check_format
from probes.store.run import Run
from probes.store.safety import DAMAGE, one_line, open_checked
from probes.store.shards import ShardReader, partial_folder, shard_name
from probes.store.untrusted import check_untrusted


def open_run(path: str | Path, *, trusted: bool = True) -> Run:
    """Open a run file, or the ``.partial`` folder of a capture that is running or was cut short.

    Args:
        path: ``run.h5``, ``run.h5.partial``, or ``run.h5`` of which only the partial folder exists yet.
        trusted: Whether you know where it comes from. A file that somebody else made is first read and verified by a
            process of its own, since a file that is made for it can crash the library that reads it.

    Raises:
        RunFileError: There is no such run, it is damaged, it is of a later format version, or it cannot be trusted.
    """
    require_path(path, "run")
    if not str(path):
        raise RunFileError("an empty path names no run: write the path of one")
    path = Path(path)
    if not path.exists():
        path = _unfinished_or_whole(path)
    if path.is_dir() and trusted:
        try:
            return open_partial(path, some=True)
        except RunFileError:
            # A capture that finishes puts the file in its place and then takes the folder away; a damaged folder stays.
            if (path / "manifest.json").exists() or not _whole(path).is_file():
                raise
            path = _whole(path)
    elif not path.exists() and _whole(path).is_file():
        path = _whole(path)
    if not trusted:
        check_untrusted(path)
    file = open_checked(path)
    try:
        check_format(file, path)
    except BaseException:
        file.close()
        raise
    return Run(path, file)


def _unfinished_or_whole(path: Path) -> Path:
    """The folder of an unfinished capture in place of its file, or the file where the folder is not there any more."""
    if partial_folder(path).is_dir():
        return partial_folder(path)
    return _whole(path) if _whole(path).is_file() else path


def _whole(folder: Path) -> Path:
    """The file that the folder of an unfinished capture becomes."""
    return folder.with_name(folder.name.removesuffix(".partial"))


def open_partial(folder: Path, *, some: bool = False) -> Run:
    """Open the folder of an unfinished capture.

    Args:
        folder: ``run.h5.partial``.
        some: Refuse a folder without a finished shard.

    Raises:
        RunFileError: It is no such folder, or damaged.
    """
    finished = sorted(int(number) for number in read_manifest(folder)["shards"])
    file = open_checked(folder / "header.h5")
    try:
        check_format(file, folder)
        if some and not finished:
            raise RunFileError(f"{folder} has no finished shard yet; wait for the first one, or resume the capture")
        shards = ShardReader([folder / shard_name(n) for n in finished], len(file["readings/status"]))
    except BaseException:
        file.close()
        raise
    return Run(folder, file, shards)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an unfinished run.

    Raises:
        RunFileError: It is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(manifest[name], dict) for name in ("run", "notes", "shards")):
            raise ValueError("it does not say what was begun")
        for number, entry in manifest["shards"].items():
            int(number), int(entry["rows"]), str(entry["sha256"])
    except FileNotFoundError:
        raise RunFileError(
            f"{folder} is not a run: it has no manifest.json; give a run.h5 or its .partial folder"
        ) from None
    except (OSError, *DAMAGE) as error:
        raise RunFileError(f"{path} is damaged ({one_line(error)}); resume the capture") from None
    return dict(manifest)

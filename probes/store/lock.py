"""One writer a run, and what is left behind when it has gone."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import filelock

from probes.errors import RunFileError
from probes.same_model import named_alike
from probes.store import disk
from probes.store.opening import open_partial
from probes.store.shards import partial_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from probes.store.run import Run

logger = logging.getLogger(__name__)

_REMOVED: Final = ".removed"


@contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Be the only one who writes a run; a lock that a dead process held is free.

    Yields:
        The folder of the unfinished run, where the lock is.

    Raises:
        RunFileError: Another process writes this run, or nothing can be written there.
    """
    folder = partial_folder(path)
    lock = filelock.FileLock(folder / "lock", blocking=False)
    with disk.failures_named(folder):
        while not (folder / "lock").exists() or not lock.is_locked:
            lock.release()  # of a folder whose last writer has just removed it
            disk.make_folder(folder)
            try:
                lock.acquire()
            except filelock.Timeout:
                raise RunFileError(
                    f"another process is writing {path}; wait for it, or choose another output path"
                ) from None
            except NotImplementedError:
                raise RunFileError(f"the file system of {folder} has no locks; choose a path on another one") from None
    try:
        yield folder
    finally:
        lock.release()


def remove_folder(folder: Path) -> None:
    """Remove what a run needs no more; the run is whole, so a failure is no more than a nuisance."""
    try:
        # Renamed first, so that nobody finds half of it, or its lock without the rest.
        _remove_removed(folder)
        folder.replace(folder.with_name(f"{folder.name}{_REMOVED}"))
    except OSError as error:
        logger.warning("%s cannot be removed (%s), and is not needed any more", folder, error.strerror)
    _remove_removed(folder)


def _remove_removed(folder: Path) -> None:
    doomed = folder.with_name(f"{folder.name}{_REMOVED}")
    try:
        if doomed.exists():
            disk.remove(doomed)
    except OSError as error:
        logger.warning("%s cannot be removed (%s), and is not needed any more", doomed, error.strerror)


def remove_leftover(run: Run) -> None:
    """Remove the folder that a process left which was killed just after it had written a run.

    An unfinished extension, or a capture of another judge that was to replace this run, stays.
    """
    folder = partial_folder(run.path)
    _remove_removed(folder)
    if not folder.is_dir():
        return
    try:
        with locked(run.path):
            header = folder / "header.h5"
            if header.is_file():
                with open_partial(folder) as partial:
                    judge, its = named_alike([run, partial])
                    mine = judge["judge_hash"] == its["judge_hash"] and set(partial.ids) <= set(run.ids)
                if not mine:
                    logger.warning("%s holds an unfinished capture of other items or another judge; it stays", folder)
                    return
            remove_folder(folder)
    except RunFileError as error:
        logger.warning("%s stays: %s", folder, error)

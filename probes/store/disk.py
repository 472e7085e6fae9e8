"""What touches the disk while a run is written: every write, flush and rename goes through here.

Two things are guarded. A name is only given to a file whose bytes have reached the disk, so that neither a killed
process nor a power cut leaves half a file under a final name. And libhdf5 never sees a failed write: after one, it
crashes the whole process when it closes the file, so ``h5_file`` keeps the error to itself until the file is closed.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import h5py

from probes.errors import RunFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

Action = Literal["write", "flush", "rename", "flush folder", "remove"]

# Called before and after every action with ``"before"`` or ``"after"``, the action and the file; for tests, which
# kill the process there, or raise what a full disk raises.
watch: Callable[[str, Action, Path], None] | None = None


@contextmanager
def _step(action: Action, path: Path) -> Iterator[None]:
    if watch is not None:
        watch("before", action, path)
    yield
    if watch is not None:
        watch("after", action, path)


class WriteFailed(RunFileError):
    """The disk is full, gone or read-only."""


@contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into one line.

    Args:
        path: What is being written, where the error does not say.

    Raises:
        WriteFailed: The disk is full, gone or read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # what h5py says about a file that it reads
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "check the disk and its permissions"
        name = str(error.filename or path).removesuffix(".writing")
        raise WriteFailed(f"cannot write {name}: {error.strerror or error}; {advice}") from error


class _File:
    """A file for libhdf5 that never fails: the first error is kept, and what follows it is not written.

    It has what h5py asks of a Python file object.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file
        self._at = 0
        self._size = file.seek(0, os.SEEK_END)
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        buffer = bytearray(size if size >= 0 else self._size - self._at)
        self.readinto(buffer)
        return bytes(buffer)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        n_read = self._file.readinto(view) or 0
        view[n_read:] = bytes(len(view) - n_read)  # what could not be written, or has never been
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._kept(lambda: write_at(self._file, self._path, view, self._at))
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int) -> int:
        self._size = size
        self._kept(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def _kept(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                work()
            except OSError as error:
                self.error = error


@contextmanager
def h5_file(path: Path, mode: Literal["w", "r+"]) -> Iterator[h5py.File]:
    """Open an HDF5 file for writing.

    What goes wrong on the way, an ``OSError`` of the disk or Ctrl-C, is raised when the file is closed: libhdf5 calls
    back into Python for every write, and does not survive an exception there.
    """
    with _held_interrupts(), path.open("w+b" if mode == "w" else "r+b", buffering=0) as file:
        raw = _File(path, file)
        with h5py.File(raw, mode) as opened:
            yield opened
        if raw.error is not None:
            raise raw.error


_pressed: list[bool] = []


@contextmanager
def _held_interrupts() -> Iterator[None]:
    """Keep Ctrl-C until the end of a block. Signals reach the main thread only, so elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: _pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if _pressed:
            _pressed.clear()
            signal.raise_signal(signal.SIGINT)


def stop_if_interrupted() -> None:
    """Let a long write end where libhdf5 is not in the midst of anything."""
    if _pressed:
        _pressed.clear()
        raise KeyboardInterrupt


def write_at(file: FileIO, path: Path, data: memoryview, offset: int) -> None:
    """Write bytes at a place of an unbuffered file; a system call may write a part only."""
    try:
        with _step("write", path):
            file.seek(offset)
            while data:
                data = data[file.write(data) :]
    except OSError as error:
        error.filename = str(path)  # the system does not know it
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, and only then give it its name."""
    temporary = path.with_name(f"{path.name}.writing")
    with temporary.open("wb", buffering=0) as file:
        write_at(file, temporary, memoryview(text.encode()), 0)
    publish(temporary, path)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name so that a crash leaves the old state or the new one, never half of it."""
    with _step("flush", temporary):
        flush(temporary)
    with _step("rename", final):
        temporary.replace(final)
    with _step("flush folder", final.parent):
        flush(final.parent)


def make_folder(path: Path) -> None:
    """Make a folder that a power cut does not take away again; one that is there already is no error."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        with _step("flush folder", path.parent):
            flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if path.is_dir() and os.name == "nt":
        return  # there a folder cannot be opened, and renaming waits for the disk by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; what is not there is no error."""
    with _step("remove", path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


State = tuple[int, int, int] | None


def state_of(path: Path) -> State:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, before: State) -> None:
    """Refuse to replace a file that is not the one that was looked at.

    Raises:
        RunFileError: Somebody else wrote it meanwhile.
    """
    if state_of(path) != before:
        raise RunFileError(f"another process wrote {path} meanwhile; give the same command again")


def check_space(path: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        WriteFailed: Fewer than ``n_bytes`` are free where ``path`` will lie.
    """
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise WriteFailed(
            f"cannot write {path}: it takes {n_bytes / 1e9:,.2f} GB and {free / 1e9:,.2f} GB are free; free some space"
        )

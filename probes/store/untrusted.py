"""Checking a file that somebody else made, in a process of its own.

libhdf5 trusts what it reads: a file that was made or damaged just so can crash it, send it round in circles, or make
it ask for all memory. So such a file is first read, all of it, by a child process with little time and memory that
may write nothing. If the child dies, this process lives on and says so in one line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from probes.errors import RunFileError
from probes.store.faults import Fault
from probes.store.safety import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

_ADVICE: Final = "do not open it; restore a copy, or ask whoever made it"
_READY: Final = b"ready\n"
# More than any list of faults takes.
_MAX_ANSWER: Final = 1 << 20
# What the system needs to start a process and to find its libraries; nothing else is handed down.
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HDF5_PLUGIN_PRELOAD": "::",  # load no filters from anywhere
}
_START: Final = (
    "import json, sys; asked = json.loads(sys.argv[1]); sys.path[:] = asked['path']; "
    "from probes.store.untrusted import _child; _child(asked)"
)


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        cpu_seconds: Processor time.
        wall_seconds: Time by the clock.
        memory_bytes: Address space, beyond what it has when it starts to read.
    """

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int

    @classmethod
    def for_size(cls, n_bytes: int) -> Limits:
        """Ten times what a run of this size takes on an old machine, from a slow disk."""
        gigabytes = n_bytes / 1e9
        return cls(int(20 + 20 * gigabytes), 60 + 200 * gigabytes, (1 << 30) + min(n_bytes, 4 << 30))


def check_untrusted(path: Path, limits: Limits | None = None) -> None:
    """Refuse a run file that is not all that it should be, without reading it in this process.

    Nothing keeps others from changing the file after it has been checked. What can be seen of that is: the file must
    be the same one, of the same size and time of change, before and after. Who shares a folder with somebody whom
    they do not trust makes a copy first.

    Args:
        path: A run file.
        limits: What the check may use; by the size of the file unless given.

    Raises:
        RunFileError: It is missing, unfinished, damaged, not as the format says, or crashes its reader.
    """
    if path.is_dir():
        raise RunFileError(f"{path} is an unfinished run; of others, open finished run files only")
    faults = verify_apart(path, limits)
    if faults:
        more = f" and {len(faults) - 1} more faults, which `probes verify --untrusted` lists" if len(faults) > 1 else ""
        advice = "" if faults[0].what.endswith(_ADVICE) else f"; {_ADVICE}"
        raise RunFileError(f"{path} is damaged or foreign: {faults[0]}{more}{advice}")


def verify_apart(path: Path, limits: Limits | None = None) -> list[Fault]:
    """What ``verify`` finds, or one fault that says how the child died.

    Raises:
        RunFileError: There is no such file, it changed meanwhile, or no child can be started.
    """
    before = _state(path)
    n_bytes = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else before[2]
    answer = _ask(path.absolute(), limits or Limits.for_size(n_bytes))
    if _state(path) != before:
        raise RunFileError(f"{path} changed while it was checked; wait until nobody writes it, and try again")
    return answer


def _state(path: Path) -> tuple[int, int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror}; give the path of a run file") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _ask(path: Path, limits: Limits) -> list[Fault]:
    """Start a child, wait for its answer, and say what happened if there is none."""
    root = str(Path(__file__).parents[2])
    # What this process imports from, the same for the child, but for the current folder.
    places = [root, *(place for place in sys.path if place and Path(place).is_absolute() and place != root)]
    asked = {
        "file": str(path),
        "path": places,
        "cpu": limits.cpu_seconds,
        "memory": limits.memory_bytes,
    }
    timed_out = threading.Event()
    try:
        child = subprocess.Popen(
            # No site packages of its own, no user folder, no variables of Python: only what is named above.
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START, json.dumps(asked)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ} | _ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise RunFileError(f"cannot check {path}: no process can be started ({error.strerror}); try again") from None

    def stop() -> None:
        timed_out.set()
        child.kill()

    timer = threading.Timer(limits.wall_seconds, stop)
    timer.start()
    try:
        with child:
            assert child.stdout is not None
            answer = child.stdout.read(_MAX_ANSWER + 1)
            if len(answer) > _MAX_ANSWER:
                child.kill()
            status = child.wait()
    finally:
        timer.cancel()
        child.kill()
    if not answer.startswith(_READY):
        if timed_out.is_set():
            raise RunFileError(
                f"cannot check {path}: its process did not start within {limits.wall_seconds:g} s; try again"
            )
        raise RunFileError(
            f"cannot check {path}: its process did not start ({_ending(status)}); see whether "
            "`python -c 'import probes.store.verify'` works"
        )
    faults = _parsed(answer[len(_READY) :])
    if faults is not None:
        return faults
    if timed_out.is_set():
        what = f"took more than {limits.wall_seconds:g} s"
    elif hasattr(signal, "SIGXCPU") and status == -signal.SIGXCPU:
        what = f"took more than {limits.cpu_seconds} s of processor time"
    else:
        what = _ending(status)
    return [Fault("/", f"is corrupt: a process that read it {what}; {_ADVICE}")]


def _ending(status: int) -> str:
    if status == 0:
        return "gave an answer that makes no sense"
    if status > 0:
        return f"ended with exit code {status}"
    try:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was ended by signal {-status}"


def _parsed(answer: bytes) -> list[Fault] | None:
    """The faults that a child names; None where its answer is none."""
    try:
        found: Any = json.loads(answer)
        return [Fault(one_line(where), one_line(what)) for where, what in found]
    except (ValueError, TypeError, RecursionError):
        return None


class _Limiter(Protocol):
    """The part of ``resource`` that is used, which not every system has."""

    RLIMIT_CPU: int
    RLIMIT_FSIZE: int
    RLIMIT_CORE: int
    RLIMIT_AS: int

    def getrlimit(self, which: int, /) -> tuple[int, int]:
        """Soft and hard limit of this process."""

    def setrlimit(self, which: int, limits: tuple[int, int], /) -> None:
        """Set a limit of this process."""


def _child(asked: Mapping[str, Any]) -> None:
    """What the child does: limit itself, read, answer."""
    from probes.store.verify import verify

    out = sys.stdout.buffer
    out.write(_READY)
    out.flush()
    _limit(asked["cpu"], asked["memory"])
    faults = verify(asked["file"])
    out.write(json.dumps([[fault.where, fault.what] for fault in faults]).encode())
    out.flush()
    # What libhdf5 still holds of a damaged file had better not be taken apart.
    os._exit(0)


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the clock is the only limit there
    limiter: _Limiter = resource
    most = _address_space() + memory_bytes
    for which, soft, hard in (
        (limiter.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (limiter.RLIMIT_FSIZE, 0, 0),
        (limiter.RLIMIT_CORE, 0, 0),
        (limiter.RLIMIT_AS, most, most),
    ):
        allowed = limiter.getrlimit(which)[1]
        if allowed >= 0:  # minus one is no limit
            soft, hard = min(soft, allowed), min(hard, allowed)
        with suppress(ValueError, OSError):  # macOS takes no limit on address space
            limiter.setrlimit(which, (soft, hard))


def _address_space() -> int:
    """Bytes of address space in use; what libraries take of it differs widely between systems."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 4 << 30

"""Progress bars: on a terminal or in a notebook, on standard error, nowhere else."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EVERY: Final = 0.2  # seconds between two drawings in a notebook


@contextmanager
def progress(label: str, total: int, unit: str, *, enabled: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Show progress while a block runs; yields a function that advances the bar.

    Args:
        label: What is being done.
        total: Number of units of work.
        unit: What a unit is called, plural.
        enabled: On or off; on when standard error is a terminal or this is a notebook, unless given.
    """
    notebook = in_notebook()
    if enabled is None:
        enabled = sys.stderr.isatty() or notebook
    if not enabled:
        yield lambda _: None
        return
    if notebook:
        bar = NotebookBar(label, total, unit)
        try:
            yield bar.advance
        finally:
            bar.draw()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total)
        yield lambda amount: shown.advance(task, amount)


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook; a process that has only imported one of its packages does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A bar in the output of a cell, drawn by the browser itself.

    It is one display that is updated, and no widget: it needs no extension, and what is left of it when the notebook is
    saved is the finished bar, which every viewer can show.

    Args:
        label: What is being done.
        total: Number of units of work.
        unit: What a unit is called, plural.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done, self._drawn = 0, time.monotonic()
        self._start = self._drawn
        from IPython import display

        show: Any = display.display
        self._handle = show(self, display_id=True)

    def advance(self, amount: int) -> None:
        """Count units; the bar is drawn anew if it has not been for a while."""
        self._done += amount
        if time.monotonic() - self._drawn >= _EVERY:
            self.draw()

    def draw(self) -> None:
        """Show how far it is."""
        self._drawn = time.monotonic()
        if self._handle is not None:
            self._handle.update(self)

    def __repr__(self) -> str:
        passed = self._drawn - self._start
        left = ""
        if 0 < self._done < self._total and passed > 1:
            left = f", {_clock(passed / self._done * (self._total - self._done))} left"
        return f"{self._label}: {self._done:,} of {self._total:,} {self._unit} in {_clock(passed)}{left}"

    def _repr_html_(self) -> str:
        # Labels are ours, not those of items.
        return f'<progress value="{self._done}" max="{self._total}"></progress> {self!r}'


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

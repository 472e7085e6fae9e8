"""Progress bars: on a terminal or in a notebook, on standard error, nowhere else."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress(label: str, total: int, unit: str, *, enabled: bool | None = None) -> Iterator[Callable[[int], None]]:
    """Show progress while a block runs; yields a function that advances the bar.

    Args:
        label: What is being done.
        total: Number of units of work.
        unit: What a unit is called, plural.
        enabled: On or off; on when standard error is a terminal or this is a notebook, unless given.
    """
    if enabled is None:
        enabled = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not enabled:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    # The console finds out about notebooks itself.
    console = Console(stderr="ipykernel" not in sys.modules)
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)

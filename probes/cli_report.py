"""The command that reports: one HTML file about one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.cli_options import Config, Judges, Per, RunPath


def report(
    run: RunPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    judge: Judges = None,
    criterion: Annotated[str | None, typer.Option(help="Only items of this criterion.")] = None,
    max_items: Annotated[int, typer.Option(min=1, help="Items in the explorer; of more, a sample is shown.")] = 2000,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of folds, resamples and the sample of items.")] = 0,
    per: Per = None,
    config: Config = None,
) -> None:
    """Write one HTML file that opens with the answer and shows figures, tables and every item."""
    del config
    from probes.reporting import report as run_report
    from probes.store import open_run

    with open_run(run) as opened:
        written = run_report(
            opened,
            out,
            judge or None,
            criterion=criterion,
            max_items=max_items,
            resamples=resamples,
            level=level,
            seed=seed,
            per=per,
        )
    typer.echo(str(written))


def add_to(app: typer.Typer) -> None:
    """Give an application this command."""
    app.command()(report)

"""The command that draws: figures of one run or several, into a folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from probes.cli_options import Config, Judges, Per
from probes.errors import ProbesError

_RUNS = typer.Argument(metavar="[NAME=]RUN", help="Runs that `probes capture` wrote; several share their figures.")
_FIGURES = typer.Option(
    help="alignment, weights, forest, score-map, distributions, reliability, similarity, learning-curve, transfer, "
    "mass, item, or all that the run allows. Repeat for several; alignment and weights unless given."
)


def plot(
    run: Annotated[list[str], _RUNS],
    figure: Annotated[list[str] | None, _FIGURES] = None,
    judge: Judges = None,
    item: Annotated[
        list[str] | None, typer.Option(help="Id of an item for the figure item; the first captured one unless given.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures.")] = Path("figures"),
    fmt: Annotated[list[str] | None, typer.Option("--format", help="png, pdf, svg; png and pdf unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and resamples.")] = 0,
    criterion: Annotated[str | None, typer.Option(help="Only items of this criterion.")] = None,
    per: Per = None,
    config: Config = None,
) -> None:
    """Draw figures from a run, or from several."""
    del config
    from probes.figures.drawing import FIGURES, Material, draw
    from probes.matching import named_paths
    from probes.store import open_run

    names = figure or (["alignment", "weights"] if len(run) == 1 else ["alignment", "forest"])
    every = "all" in names
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_run(path)) for name, path in named_paths(run).items()}
        material = Material(opened, judge or None, item or (), criterion, seed, per)
        n_drawn, note = 0, material.divided[1]
        for drawn in draw(material, list(FIGURES) if every else names, out, tuple(fmt or ("png", "pdf")), skip=every):
            n_drawn += len(drawn.paths)
            for path in drawn.paths:
                typer.echo(str(path))
            if drawn.reason:
                typer.echo(f"skipped {drawn.name}: {drawn.reason}", err=True)
        if n_drawn and note:
            typer.echo(f"note: {note}", err=True)
    if not n_drawn:
        raise ProbesError("nothing could be drawn from this run, for the reasons above")


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(plot)

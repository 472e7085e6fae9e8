"""The command that compares: one run or several, and the tables that come of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path  # noqa: TC003 - typer looks the types up
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from probes.cli_options import AsJson, Config, Judges, Per
from probes.errors import ProbesError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from probes.runlike import RunLike

# Tables of a comparison, by the attribute that holds them; the two of layers take no judges.
_TABLES: Final = {
    "judges": "table",
    "weights": "weights",
    "calibration": "calibration",
    "levels": "levels",
    "human-lines": "human_lines",
    "raters": "raters",
    "runs": "runs",
    "prompts": "prompts",
    "stability": "stability",
    "shape": "shape",
    "published": "published",
}
_OF_LAYERS: Final = ("layers", "layer-tests")
# Tables that are about layers, though judges are compared as well.
_ABOUT_LAYERS: Final = ("stability", "shape")

_RUNS = typer.Argument(metavar="[NAME=]RUN", help="Runs that `probes capture` wrote, of the same scored items.")
_TABLE = typer.Option(help=f"Which table to show and write: {', '.join((*_TABLES, *_OF_LAYERS))}.")


def compare(
    run: Annotated[list[str], _RUNS],
    judge: Judges = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What all are set against: JUDGE (of the same run) or RUN:JUDGE; final of the first run."),
    ] = None,
    table: Annotated[str, _TABLE] = "judges",
    out: Annotated[
        list[Path] | None, typer.Option("--out", "-o", help="Write the table: .csv, .md or .tex. Repeatable.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Show this column (.csv holds all). Repeat for several.")
    ] = None,
    caption: Annotated[str, typer.Option(help="Caption in .md and .tex.")] = "",
    label: Annotated[str, typer.Option(help="Label in .tex.")] = "",
    band: Annotated[
        str | None, typer.Option(help="Intervals of --table layers: pointwise, or simultaneous over the layers.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Group folds.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of the folds.")] = 5,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 2000,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of folds and resamples.")] = 0,
    criterion: Annotated[str | None, typer.Option(help="Only items of this criterion.")] = None,
    pool: Annotated[bool, typer.Option("--pool", help="Treat all criteria as one.")] = False,
    extract: Annotated[
        str | None,
        typer.Option(help="Of generated answers to tasks, score the first match of this expression, or its group."),
    ] = None,
    per: Per = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Compare judges of one run or several with human raters, on held-out items, with intervals."""
    del config
    from probes.matching import named_paths
    from probes.store import open_run
    from probes.tables import check_columns, check_suffix, format_table, write_table

    if table not in (*_TABLES, *_OF_LAYERS):
        raise ProbesError(f"no table {table!r}: choose one of {', '.join((*_TABLES, *_OF_LAYERS))} (--table)")
    if band is not None and table != "layers":
        raise ProbesError("a band goes with the layers: leave out --band, or add --table layers")
    if table in _OF_LAYERS and (judge or baseline):
        raise ProbesError(f"the table {table} is about layers, not judges: leave out --judge and --baseline")
    for path in out or ():
        check_suffix(path)
    settings: dict[str, Any] = {
        "folds": folds,
        "repeats": repeats,
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "criterion": criterion,
        "pool": pool,
        "per": per,
    }
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_run(path)) for name, path in named_paths(run).items()}
        if table in _OF_LAYERS:
            if extract is not None:
                raise ProbesError(f"the table {table} has no generated texts in it: leave out --extract")
            rows, said = _layers(opened, table, band or "pointwise", settings)
            note = said
        else:
            rows, note, said = _judges(opened, table, judge, baseline, settings | {"extract": extract})
    if rows.empty:
        raise ProbesError(_nothing(table))
    check_columns(rows, column)
    for path in out or ():
        write_table(rows, path, columns=column, note=note, caption=caption, label=label)
    if as_json:
        typer.echo(rows.to_json(orient="records", indent=1))
        return
    typer.echo(format_table(rows, column))
    typer.echo("\n" + said)


def _judges(
    runs: dict[str, Any], table: str, judge: list[str] | None, baseline: str | None, settings: dict[str, Any]
) -> tuple[pd.DataFrame, str, str]:
    """A table of a comparison, what goes under it in print, and what is said about it here."""
    from probes.comparing import compare as run_compare

    found = run_compare(runs, judge or None, baseline=baseline, **settings)
    rows: pd.DataFrame = getattr(found, _TABLES[table])
    if rows.empty and table == "judges":
        rows = found.published  # free text: there is nothing to choose, and so no judge
    if table == "judges":
        return rows, found.footnote, found.summary()
    said = found.footnote
    if table in _ABOUT_LAYERS and len(rows):
        per = rows["per"].iloc[0] if "per" in rows else ""
        said = "\n".join([said, *_notes(runs, settings | {"per": per})])
    return rows, found.footnote, said


def _layers(runs: Mapping[str, RunLike], table: str, band: str, settings: dict[str, Any]) -> tuple[pd.DataFrame, str]:
    """A table of layers, and what goes under it."""
    from probes.comparing import by_layer, layer_tests
    from probes.comparison_text import protocol_line
    from probes.runlike import has_choices

    metric = "accuracy" if any(map(has_choices, runs.values())) else "spearman"
    said = protocol_line(settings["folds"], settings["repeats"], settings["resamples"], settings["level"], metric)
    if table == "layers":
        rows = by_layer(runs, band=band, **settings)
        said += "" if band == "pointwise" else " The band holds for all layers of a lens at once."
    else:
        rows = layer_tests(runs, **settings)
        said += (
            " Difference: paired, to the last layer under the norm lens; two-sided p by paired permutation, Holm's "
            "correction over the layers of a lens."
        )
    return rows, "\n".join([said, *_notes(runs, settings)])


def _notes(runs: Mapping[str, RunLike], settings: Mapping[str, Any]) -> list[str]:
    """What must be known about the layers of runs of choices."""
    from probes.choices.comparing import notes_on_layers
    from probes.choices.data import read_per
    from probes.runlike import has_choices

    if not all(map(has_choices, runs.values())):
        return []
    return notes_on_layers(runs, settings["criterion"], read_per(settings["per"]) or "", pool=settings["pool"])


def _nothing(table: str) -> str:
    if table == "prompts":
        return "there are no prompts to compare: pass runs of one model that differ in nothing but their template"
    return f"the table {table} is empty: no judge here has any"


def add_to(app: typer.Typer) -> None:
    """Give an application this command."""
    app.command()(compare)

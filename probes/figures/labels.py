"""How far labels go: agreement by the number of them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import NullLocator

from probes.errors import FigureError
from probes.figures.lettering import distinct
from probes.figures.style import (
    COLUMN_WIDTH,
    NotebookFigure,
    check_one_row_each,
    check_table,
    dress,
    house_style,
    legend_above,
    root,
    span,
    take_looks,
    write_caption,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curve(table: pd.DataFrame, *, ax: Axes | None = None, caption: bool = True) -> Figure:
    """Draw agreement by the number of labels, one line a judge, on a logarithmic axis.

    Judges stand side by side at each number, so that their intervals do not hide one another.

    Args:
        table: One row a judge and number with the columns ``judge``, ``n_labels``, ``value``, ``lo``, ``hi``,
            ``n_test``, as ``probes.learning_curve`` gives it; with ``lens`` where a judge is drawn on several. NaN is
            a gap.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write under the axes what is drawn, of how many items.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite value, several rows for a judge and number, or more
            judges than can be told apart.
    """
    check_table(table, ("judge", "n_labels", "value", "lo", "hi", "n_test"), "learning-curve")
    keys = ["judge", "lens"] if "lens" in table else ["judge"]
    check_one_row_each(table, [*keys, "n_labels"], "learning-curve", layers=False)
    if not np.isfinite(table["value"].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        raise FigureError("the learning-curve figure found no finite value to draw")
    series = {key if isinstance(key, tuple) else (key,): rows for key, rows in table.groupby(keys, sort=False)}
    judges = [str(key[0]) for key in series]
    names = [
        name if judges.count(judge) == 1 else f"{name} ({key[1]} lens)"
        for name, judge, key in zip(distinct(judges, 30, 2.0), judges, series, strict=True)
    ]
    looks = take_looks(names, "learning-curve")
    sizes = sorted(int(size) for size in table["n_labels"].unique())
    # As wide as a group may be: a third of the smallest step on the logarithmic axis.
    step = min((np.log(b / a) for a, b in pairwise(sizes)), default=0.5)
    shifts = np.exp((np.arange(len(series)) - (len(series) - 1) / 2) * min(0.05, step / 3 / len(series)))
    with house_style(table):
        own = ax is None
        if ax is None:
            legend = 0.13 * -(-len(series) // 2)
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, 2.3 + legend + 0.25 * caption)).subplots()
        dress(ax)
        for (name, look), rows, shift in zip(looks.items(), series.values(), shifts, strict=True):
            rows = rows.sort_values("n_labels")
            x = rows["n_labels"].to_numpy(dtype=np.float64) * shift
            value, lo, hi = (rows[column].to_numpy(dtype=np.float64) for column in ("value", "lo", "hi"))
            ax.vlines(x, lo, hi, color=look.color, alpha=0.55, linewidth=0.9, zorder=2)
            ax.plot(x, value, color=look.color, linestyle=look.line, marker=look.marker, label=name, zorder=3)
        ax.set_xscale("log")
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(sizes[0] * 0.85, sizes[-1] * 1.18)
        ax.set_xlabel("labels that a judge is fitted on")
        ax.set_ylabel("Spearman ρ with human ratings")  # noqa: RUF001
        legend_above(ax, columns=2)
        if caption:
            said = f"tested on n = {span(table['n_test'])} other items; means over label draws, 95 % intervals over "
            write_caption(ax, said + "draws and test groups", own, table)
    return root(ax)

"""Judges against one of them: paired differences with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from probes.errors import FigureError
from probes.figures.lettering import distinct, letters
from probes.figures.style import (
    COLUMN_WIDTH,
    NotebookFigure,
    check_one_row_each,
    check_table,
    dress,
    house_style,
    legend_above,
    root,
    short_list,
    span,
    write_caption,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHOICES: Final = ("difference", "gain_over_final", "gain_over_baseline")


class _Kind(NamedTuple):
    label: str
    color: str
    marker: str
    filled: bool
    line: str


_ABOVE = _Kind("above 0", "#0072B2", "o", True, "-")
_BELOW = _Kind("below 0", "#D55E00", "s", True, "-")
_NEAR = _Kind("holds 0, inside ±{margin}", "#333333", "D", False, "-")
_UNSURE = _Kind("inconclusive: to ±{margin} or beyond", "#777777", "D", False, "--")


def forest(
    table: pd.DataFrame,
    *,
    of: str | None = None,
    margin: float = 0.1,
    ax: Axes | None = None,
    caption: bool = True,
) -> Figure:
    """Draw what each judge gains over another one, the largest gain at the top: a forest plot.

    An interval that holds zero and reaches to ``margin`` or beyond on either side is inconclusive: these items leave
    open whether there is a difference that would matter.

    Args:
        table: One row a judge with the columns ``judge``, ``labels_used``, ``n_used``, ``n_total`` and those of a
            difference with its interval, as ``Comparison.table`` has them; with ``run`` where there are several.
            Judges without a difference, such as the one that the others are set against, are named under the axes.
        of: Column of the difference; its interval is in ``<of>_lo`` and ``<of>_hi``. The first that the table has of
            ``difference``, ``gain_over_final`` and ``gain_over_baseline`` unless given.
        margin: The smallest difference that matters, in units of the metric.
        ax: Axes to draw into; a new figure that grows with the number of judges unless given.
        caption: Write under the axes what is drawn, of how many items.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite difference, or several rows for a judge.
    """
    of = of or next((name for name in _CHOICES if name in table), _CHOICES[0])
    check_table(table, ("judge", "labels_used", "n_used", "n_total", of, f"{of}_lo", f"{of}_hi"), "forest")
    keys = ["run", "judge"] if "run" in table else ["judge"]
    check_one_row_each(table, keys, "forest", layers=False)
    names = distinct(list(table["judge"]), 30, 1.6)
    if "run" in table:
        names = [f"{run}:{judge}" for run, judge in zip(distinct(list(table["run"]), 18, 1.0), names, strict=True)]
    rows = table.assign(name=names)
    bounds = rows[[of, f"{of}_lo", f"{of}_hi"]].to_numpy(dtype=np.float64, na_value=np.nan)
    # A judge set against itself differs by nothing, for sure.
    there = np.isfinite(bounds).all(axis=1) & (bounds != 0).any(axis=1)
    if not there.any():
        raise FigureError(f"the forest figure found no finite {of} to draw")
    drawn = rows[there].sort_values(of, kind="stable")
    with house_style(table):
        own = ax is None
        if ax is None:
            longer = 0.055 * max(0, max(map(len, drawn["name"])) - 20)
            size = (COLUMN_WIDTH + longer, 1.0 + 0.3 * caption + 0.155 * max(3, len(drawn)))
            ax = NotebookFigure(figsize=size).subplots()
        dress(ax)
        ax.axvline(0, color="#000000", linewidth=0.8, zorder=1)
        for kind in (_ABOVE, _BELOW, _NEAR, _UNSURE):
            members = [place for place, row in enumerate(drawn.to_dict("records")) if _kind(row, of, margin) is kind]
            some = drawn.iloc[members]
            if members:
                ax.hlines(members, some[f"{of}_lo"], some[f"{of}_hi"], color=kind.color, linestyle=kind.line, lw=1.1)
                ax.plot(
                    some[of],
                    members,
                    color=kind.color,
                    marker=kind.marker,
                    markerfacecolor=kind.color if kind.filled else "#ffffff",
                    linestyle="none",
                    markersize=4,
                    label=kind.label.format(margin=f"{margin:g}".removeprefix("0")),
                    zorder=3,
                )
        ax.set_yticks(range(len(drawn)), list(drawn["name"]))
        ax.set_ylim(-0.6, len(drawn) - 0.4)
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=6)
        low, high = np.minimum(0, bounds[there].min()), np.maximum(0, bounds[there].max())
        ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_xlabel(_axis_label(rows, of))
        for place, labels in enumerate(drawn["labels_used"]):
            _beside(ax, place, f"{int(labels):,}" if np.isfinite(labels) else "")
        _beside(ax, len(drawn) - 0.35, "labels", va="center_baseline")
        legend_above(ax, columns=2, right=True)
        if caption:
            parts = [f"n = {span(drawn['n_used'])} of {span(drawn['n_total'])} items"]
            labels = "items" if "accuracy" in table else "human scores"
            parts.append(f"paired 95 % intervals, conditional on the fitted judges; labels: {labels} in a fit")
            if left := list(rows[~there]["name"]):
                parts.append(f"without a difference: {short_list(left, 'judges')}")
            write_caption(ax, "; ".join(parts), own, table)
    return root(ax)


def _kind(row: dict[str, float], of: str, margin: float) -> _Kind:
    low, high = row[f"{of}_lo"], row[f"{of}_hi"]
    if low > 0 or high < 0:
        return _ABOVE if low > 0 else _BELOW
    return _NEAR if -margin < low and high < margin else _UNSURE


def _axis_label(rows: pd.DataFrame, of: str) -> str:
    metric = "accuracy" if "accuracy" in rows else "Spearman ρ"  # noqa: RUF001
    if of == "gain_over_final":
        return f"{metric} minus that of final"
    if of == "gain_over_baseline":
        return f"{metric} minus that of the equal-label baseline"
    references: Any = rows["difference_to"].dropna().unique() if "difference_to" in rows else []
    if len(references) == 1:
        return f"{metric} minus that of {letters(references[0], 30, 1.2)}"
    return f"difference in {metric}" if of == "difference" else letters(of, 40, 2.4)


def _beside(ax: Axes, y: float, text: str, va: str = "center_baseline") -> None:
    at = ax.get_yaxis_transform()
    ax.text(1.015, y, text, transform=at, ha="left", va=va, fontsize=6.5, color="#333333")

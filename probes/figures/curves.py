"""Agreement with human raters over the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from probes.errors import FigureError
from probes.figures.style import (
    COLUMN_WIDTH,
    NotebookFigure,
    check_one_row_each,
    check_table,
    dress,
    house_style,
    label_layers,
    layer_names,
    on_layers,
    root,
    short_number,
    write_caption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = ("lens", "layer", "layer_index", "metric", "value", "lo", "hi", "n_used", "n_total")

_METRIC_LABELS = {
    "spearman": "Spearman ρ with human ratings",  # noqa: RUF001
    "pearson": "Pearson r with human ratings",
    "kendall": "Kendall τ-b with human ratings",
    "qwk": "quadratic weighted κ with humans",
    "mae": "mean absolute error (label values)",
    "pairwise": "pairwise accuracy",
}


class _Look(NamedTuple):
    color: str
    line: Any
    marker: str


# Okabe and Ito's colours, ordered so that neighbours also differ in lightness; line and marker tell them
# apart without any colour. A lens looks the same in every figure.
_KNOWN = {
    "norm": _Look("#0072B2", "-", "o"),
    "raw": _Look("#E69F00", (0, (4, 1.5)), "s"),
    "tuned": _Look("#7A1F5C", (0, (5, 1.2, 1, 1.2)), "^"),
}
_OTHERS = (
    _Look("#009E73", (0, (1, 1)), "D"),
    _Look("#D55E00", (0, (7, 2)), "v"),
    _Look("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
    _Look("#000000", (0, (2, 1)), "X"),
    _Look("#CC79A7", (0, (6, 1, 2, 1)), "*"),
)


def alignment(
    table: pd.DataFrame,
    *,
    final: float | None = None,
    attainable: float | None = None,
    human: float | None = None,
    metric: str = "spearman",
    ax: Axes | None = None,
    caption: bool = True,
) -> Figure:
    """Draw one curve a lens: how well each layer's score agrees with the human ratings.

    Args:
        table: One row per lens and layer with the columns ``lens``, ``layer``, ``layer_index``, ``metric``,
            ``value``, ``lo``, ``hi``, ``n_used``, ``n_total``. A NaN value, or a missing row, is a gap.
        final: The judge read from the last layer, drawn as a horizontal line.
        attainable: The agreement that the raters' noise leaves possible, drawn as a horizontal line.
        human: One random rater against the mean of the others, drawn as a horizontal line.
        metric: Which rows of the table to draw.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write the number of items and the kind of interval under the axes.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite value of this metric, or several rows for
            one lens and layer.
    """
    check_table(table, _COLUMNS, "alignment")
    rows = table[table["metric"] == metric]
    if len(rows) == 0:
        have = ", ".join(sorted(map(str, table["metric"].unique())))
        raise FigureError(f"the alignment figure found no rows of the metric {metric!r}; the table has {have}")
    check_one_row_each(rows, ["lens"], "alignment")
    if not np.isfinite(rows["value"].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        raise FigureError(f"the alignment figure found no finite {metric} value to draw")
    names = layer_names(rows)
    looks = _looks([str(lens) for lens in rows["lens"].unique()])
    with house_style():
        own = ax is None
        if ax is None:
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, 2.7 if caption else 2.5)).subplots()
        dress(ax)
        lowest, highest = np.inf, -np.inf
        for lens, look in looks.items():
            value, lo, hi = on_layers(rows[rows["lens"] == lens], list(names), ("value", "lo", "hi"))
            _draw_curve(ax, np.array(list(names), dtype=np.float64), value, lo, hi, f"{lens} lens", look)
            seen = np.concatenate([value, lo, hi])
            seen = seen[np.isfinite(seen)]
            if seen.size:
                lowest, highest = min(lowest, seen.min()), max(highest, seen.max())
        label_layers(ax, names)
        ax.set_ylabel(_METRIC_LABELS.get(metric, metric))
        lines = {"attainable": attainable, "one rater": human, "final layer": final}
        given = {name: y for name, y in lines.items() if y is not None and np.isfinite(y)}
        _draw_references(ax, given, lowest, highest)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=min(3, len(looks)))
        if caption:
            write_caption(ax, _caption(rows, names), own)
    return root(ax)


def _looks(lenses: Sequence[str]) -> dict[str, _Look]:
    others = [lens for lens in lenses if lens not in _KNOWN]
    if len(others) > len(_OTHERS):
        raise FigureError(f"the alignment figure can tell {len(_OTHERS)} further lenses apart, not {len(others)}")
    return {lens: _KNOWN[lens] if lens in _KNOWN else _OTHERS[others.index(lens)] for lens in lenses}


def _draw_curve(
    ax: Axes,
    x: Float[np.ndarray, " layer"],
    value: Float[np.ndarray, " layer"],
    lo: Float[np.ndarray, " layer"],
    hi: Float[np.ndarray, " layer"],
    label: str,
    look: _Look,
) -> None:
    alone = _isolated(np.isfinite(value))
    # Markers on some layers only, so that eighty of them do not hide the line, but on every point that has no
    # neighbour to draw a line to.
    every = max(1, round(len(x) / 10))
    marked = [i for i in range(len(x)) if np.isfinite(value[i]) and (i % every == 0 or alone[i])]
    ax.fill_between(x, lo, hi, color=look.color, alpha=0.16, linewidth=0)
    if alone.any():
        ax.vlines(x[alone], lo[alone], hi[alone], color=look.color, alpha=0.5, linewidth=1.0)
    ax.plot(x, value, color=look.color, linestyle=look.line, marker=look.marker, markevery=marked, label=label)


def _isolated(finite: Bool[np.ndarray, " layer"]) -> Bool[np.ndarray, " layer"]:
    padded = np.concatenate([[False], finite, [False]])
    return np.asarray(finite & ~padded[:-2] & ~padded[2:])


def _draw_references(ax: Axes, lines: Mapping[str, float], lowest: float, highest: float) -> None:
    """Horizontal lines, each named at its right end; names that would overlap are moved apart."""
    styles = {
        "attainable": ("#555555", (0, (1, 1.5))),
        "one rater": ("#555555", (0, (4, 2, 1, 2))),
        "final layer": ("#000000", (0, (6, 2))),
    }
    low, high = min([lowest, *lines.values()]), max([highest, *lines.values()])
    pad = 0.05 * (high - low) or 0.05
    low, high = low - pad, high + pad
    ax.set_ylim(low, high)
    height = root(ax).get_size_inches()[1] * ax.get_position().height * 72  # of the axes, in points
    gap = 19.0 / height  # two lines of text at 6.5 points, as a part of the height
    places = _spread([(y - low) / (high - low) for y in lines.values()], gap)
    for (name, value), place in zip(lines.items(), places, strict=True):
        color, line = styles[name]
        ax.axhline(value, color=color, linestyle=line, linewidth=0.9, zorder=1.5, label=f"_{name}")
        ax.text(
            1.015,
            place,
            f"{name}\n{short_number(value)}",
            transform=ax.transAxes,
            color=color,
            fontsize=6.5,
            va="center",
            linespacing=1.05,
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places apart to at least ``gap``, keeping their order and, where there is room, within 0..1."""
    order = np.argsort(places, kind="stable")
    spread = [float(places[i]) for i in order]
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + gap)
    top = max(1.0, max(places, default=0.0))
    for i in reversed(range(len(spread))):
        spread[i] = min(spread[i], top - (len(spread) - 1 - i) * gap)
    result = [0.0] * len(spread)
    for i, place in zip(order, spread, strict=True):
        result[i] = place
    return result


def _caption(rows: pd.DataFrame, names: Mapping[int, str]) -> str:
    value = rows["value"].to_numpy(dtype=np.float64, na_value=np.nan)
    drawn = rows[np.isfinite(value)]
    used, total = _span(drawn["n_used"]), _span(drawn["n_total"])
    parts = [f"n = {used} of {total} items"]
    if np.isfinite(drawn[["lo", "hi"]].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        simultaneous = "band" in drawn and set(drawn["band"]) == {"simultaneous"}
        held = "simultaneous 95 % bands over the layers" if simultaneous else "pointwise 95 % intervals"
        parts.append(f"bands: {held}, conditional on the fitted judges")
    gaps = {}
    for lens in rows["lens"].unique():
        there = set(drawn.loc[drawn["lens"] == lens, "layer_index"])
        gaps[str(lens)] = [index for index in names if index not in there]
    shared = [index for index in names if all(index in gap for gap in gaps.values())]
    if shared:
        parts.append(f"no value at {_short_list([names[i] for i in shared])}")
    for lens, gap in gaps.items():
        if more := [names[i] for i in gap if i not in shared]:
            parts.append(f"{lens}: no value at {_short_list(more)}")
    return "; ".join(parts)


def _span(counts: pd.Series) -> str:
    if counts.isna().all():
        return "an unknown number"
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _short_list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more layers"

"""Agreement with human raters over the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from probes.choices.data import PER_WORDS
from probes.errors import FigureError
from probes.figures.lettering import distinct, letters
from probes.figures.style import (
    COLUMN_WIDTH,
    LOOKS,
    Look,
    NotebookFigure,
    check_one_row_each,
    check_table,
    dress,
    house_style,
    label_layers,
    layer_names,
    legend_above,
    on_layers,
    root,
    short_list,
    short_number,
    span,
    take_looks,
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
    "accuracy": "accuracy of the likeliest choice",
    "brier": "Brier score a choice",
    "ece": "expected calibration error",
    "nll": "cross-entropy (nats)",
    "stable": "share of items with their final answer",
    "log_likelihood": "log-likelihood of the answer (nats)",
}


# A lens looks the same in every figure.
_KNOWN = dict(zip(("norm", "raw", "tuned"), LOOKS[:3], strict=True))
_OTHERS = LOOKS[3:]


def alignment(
    table: pd.DataFrame,
    *,
    final: float | None = None,
    attainable: float | None = None,
    human: float | None = None,
    chance: float | None = None,
    metric: str = "spearman",
    depth: bool | None = None,
    ax: Axes | None = None,
    caption: bool = True,
) -> Figure:
    """Draw one curve a lens, or a run and lens: how well each layer agrees with the human ratings, or is right.

    Args:
        table: One row per lens and layer with the columns ``lens``, ``layer``, ``layer_index``, ``metric``,
            ``value``, ``lo``, ``hi``, ``n_used``, ``n_total``. A NaN value, or a missing row, is a gap. With a
            column ``run`` it may hold several runs, also of models with other numbers of layers.
        final: The judge read from the last layer, drawn as a horizontal line.
        attainable: The agreement that the raters' noise leaves possible, drawn as a horizontal line.
        human: One random rater against the mean of the others, drawn as a horizontal line.
        chance: The accuracy of choosing at random, drawn as a horizontal line.
        metric: Which rows of the table to draw.
        depth: Put layers at their share of the model's depth, 0 the embedding and 1 the last block, rather than at
            their number; where there are several runs, unless given.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write the number of items and the kind of interval under the axes.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite value of this metric, several rows for
            one lens and layer, more curves than can be told apart, or several runs that are to share layer numbers.
    """
    check_table(table, _COLUMNS, "alignment")
    rows = table[table["metric"] == metric]
    if len(rows) == 0:
        have = ", ".join(sorted(map(str, table["metric"].unique())))
        raise FigureError(f"the alignment figure found no rows of the metric {metric!r}; the table has {have}")
    keys = ["run", "lens"] if "run" in rows else ["lens"]
    check_one_row_each(rows, keys, "alignment")
    if not np.isfinite(rows["value"].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        raise FigureError(f"the alignment figure found no finite {metric} value to draw")
    series = _series(rows)
    depth = "run" in rows and rows["run"].nunique() > 1 if depth is None else depth
    names = {
        name: layer_names(rows if "run" not in rows else rows[rows["run"] == one.run]) for name, one in series.items()
    }
    longest = max(names.values(), key=len)
    if not depth and any(one[index] != longest.get(index) for one in names.values() for index in one):
        raise FigureError("the alignment figure cannot share layer numbers between these runs; draw it with depth=True")
    with house_style(table):
        own, legend = ax is None, 0.0
        if ax is None:
            legend = 0.13 * (len(series) - 1) if "run" in rows and rows["run"].nunique() > 1 else 0.0
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, (2.7 if caption else 2.5) + legend)).subplots()
        dress(ax)
        lowest, highest = np.inf, -np.inf
        for name, one in series.items():
            value, lo, hi = on_layers(one.rows, list(names[name]), ("value", "lo", "hi"))
            _draw_curve(ax, _places(names[name], depth), value, lo, hi, name, one.look)
            seen = np.concatenate([value, lo, hi])
            seen = seen[np.isfinite(seen)]
            if seen.size:
                lowest, highest = min(lowest, seen.min()), max(highest, seen.max())
        if depth:
            ax.set_xlim(-0.02, 1.02)
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
            ax.set_xlabel("relative depth (0 = embedding, 1 = last block)")
        else:
            label_layers(ax, longest)
        ax.set_ylabel(_METRIC_LABELS.get(metric, metric))
        lines = {"attainable": attainable, "one rater": human, "final layer": final, "chance": chance}
        given = {name: y for name, y in lines.items() if y is not None and np.isfinite(y)}
        _draw_references(ax, given, lowest, highest, legend)
        legend_above(ax)
        if caption:
            write_caption(ax, _caption(rows, series, names), own, rows)
    return root(ax)


class _Series(NamedTuple):
    """One curve."""

    run: str
    short: str  # in the caption
    rows: pd.DataFrame
    look: Look


def _series(rows: pd.DataFrame) -> dict[str, _Series]:
    """Curves by the name that the legend gives them: lenses, or runs, or both where there are several of both."""
    if "run" not in rows or rows["run"].nunique() == 1:
        lenses = [str(lens) for lens in rows["lens"].unique()]
        looks = _looks(lenses)
        run = rows["run"].iloc[0] if "run" in rows else ""
        return {
            f"{letters(lens, 24, 1.5)} lens": _Series(run, lens, rows[rows["lens"] == lens], looks[lens])
            for lens in lenses
        }
    pairs = list(rows[["run", "lens"]].drop_duplicates().itertuples(index=False, name=None))
    several = rows["lens"].nunique() > 1
    found = [f"{run}, {lens} lens" if several else str(run) for run, lens in pairs]
    shorts = distinct(found, 40, 2.2)
    looks = take_looks(shorts, "alignment")
    return {
        name: _Series(run, name, rows[(rows["run"] == run) & (rows["lens"] == lens)], looks[name])
        for name, (run, lens) in zip(shorts, pairs, strict=True)
    }


def _places(names: Mapping[int, str], depth: bool) -> Float[np.ndarray, " layer"]:
    """Where layers are along the axis; a layer's depth is its own number over that of the last one."""
    if not depth:
        return np.array(list(names), dtype=np.float64)
    blocks = [0 if name == "embed" else int(name) if name.isdigit() else index for index, name in names.items()]
    return np.array(blocks, dtype=np.float64) / max(1, *blocks)


def _looks(lenses: Sequence[str]) -> dict[str, Look]:
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
    look: Look,
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


def _draw_references(ax: Axes, lines: Mapping[str, float], lowest: float, highest: float, legend: float) -> None:
    """Horizontal lines, each named at its right end; names that would overlap are moved apart."""
    styles = {
        "attainable": ("#555555", (0, (1, 1.5))),
        "one rater": ("#555555", (0, (4, 2, 1, 2))),
        "final layer": ("#000000", (0, (6, 2))),
        "chance": ("#555555", (0, (3, 3))),
    }
    low, high = min([lowest, *lines.values()]), max([highest, *lines.values()])
    pad = 0.05 * (high - low) or 0.05
    low, high = low - pad, high + pad
    ax.set_ylim(low, high)
    # Of the axes, in points, once the legend has taken its inches.
    height = (root(ax).get_size_inches()[1] * ax.get_position().height - legend) * 72
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


def _caption(rows: pd.DataFrame, series: Mapping[str, _Series], names: Mapping[str, Mapping[int, str]]) -> str:
    value = rows["value"].to_numpy(dtype=np.float64, na_value=np.nan)
    drawn = rows[np.isfinite(value)]
    used, total = span(drawn["n_used"]), span(drawn["n_total"])
    parts = [f"n = {used} of {total} items"]
    if "per" in drawn and (per := next(filter(None, drawn["per"]), "")):
        parts.append(f"log-likelihoods per {PER_WORDS[per]}")
    if "run" in rows and rows["run"].nunique() > 1 and rows["lens"].nunique() == 1:
        parts.append(f"{rows['lens'].iloc[0]} lens")
    if np.isfinite(drawn[["lo", "hi"]].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        simultaneous = "band" in drawn and set(drawn["band"]) == {"simultaneous"}
        held = "simultaneous 95 % bands over the layers" if simultaneous else "pointwise 95 % intervals"
        parts.append(f"bands: {held}, conditional on the fitted judges")
    gaps = []
    for name, one in series.items():
        finite = np.isfinite(one.rows["value"].to_numpy(dtype=np.float64, na_value=np.nan))
        there = set(one.rows["layer_index"].to_numpy()[finite].tolist())
        gaps.append([layer for index, layer in names[name].items() if index not in there])
    shared = [layer for layer in gaps[0] if all(layer in gap for gap in gaps)]
    if shared:
        parts.append(f"no value at {short_list(shared)}")
    for one, gap in zip(series.values(), gaps, strict=True):
        if more := [layer for layer in gap if layer not in shared]:
            parts.append(f"{one.short}: no value at {short_list(more)}")
    return "; ".join(parts)

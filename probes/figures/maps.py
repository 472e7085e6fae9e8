"""Maps: items by layers, layers by layers, sets by sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib
import numpy as np
from jaxtyping import Float

from probes.errors import FigureError
from probes.figures.lettering import distinct
from probes.figures.style import (
    COLUMN_WIDTH,
    NotebookFigure,
    check_one_row_each,
    check_table,
    color_bar,
    dress,
    hatch_missing,
    house_style,
    label_layers,
    label_values,
    layer_names,
    root,
    short_number,
    span,
    write_caption,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Final = "cividis"  # the same to the colour-blind, and its lightness rises all the way
_NAMED_ITEMS: Final = 30


def score_map(
    table: pd.DataFrame,
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
    caption: bool = True,
) -> Figure:
    """Map every layer's score of every item, items by their human score, which is a strip at the left.

    Args:
        table: One row an item and layer with the columns ``item``, ``layer``, ``layer_index``, ``score``, ``human``,
            as ``probes.figures.tables.layer_scores`` gives it. NaN is hatched; items without a human score are below
            all others.
        limits: Layers' scores of the darkest and the lightest colour; those of the table unless given. Pointed ends of
            the colour bar say that some scores lie beyond. The strip has the same colours, unless raters go beyond
            the limits: then it has its own, from their lowest to their highest score, which the caption says.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write the number of items under the axes.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite score, or several rows for an item and layer.
    """
    check_table(table, ("item", "layer", "layer_index", "score", "human"), "score-map")
    check_one_row_each(table, ["item"], "score-map")
    names = layer_names(table)
    scores = table.pivot(index="item", columns="layer_index", values="score").reindex(columns=list(names))
    human = table.drop_duplicates("item").set_index("item")["human"].astype(float)
    # Ties in the order of the table, the unrated first: row 0 is at the bottom.
    ids = human.sort_values(kind="stable", na_position="first").index
    shown = scores.reindex(ids).to_numpy(dtype=np.float64)
    strip = human.reindex(ids).to_numpy(dtype=np.float64)
    if not np.isfinite(shown).any():
        raise FigureError("the score-map figure found no finite score to draw")
    seen = np.concatenate([shown[np.isfinite(shown)], strip[np.isfinite(strip)]])
    low, high = limits or (float(seen.min()), float(seen.max()))
    rated = np.isfinite(strip)
    own_low, own_high = (float(strip[rated].min()), float(strip[rated].max())) if rated.any() else (low, high)
    slack = 1e-6 * (high - low)  # what is on a limit is not beyond it, however it was rounded
    shared = low - slack <= own_low and own_high <= high + slack
    with house_style(table):
        own = ax is None
        if ax is None:
            few = len(ids) <= _NAMED_ITEMS
            height = 0.8 + max(0.9, 0.13 * len(ids)) if few else 3.3
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, height + 0.2 * caption)).subplots()
        dress(ax)
        image = _map(ax, shown, low, high)
        _label_positions(ax, names)
        beside: Any = ax
        if rated.any():
            beside = ax.inset_axes((-0.09, 0, 0.06, 1))
            dress(beside)
            _map(beside, strip[:, None], *((low, high) if shared else (own_low, own_high)))
            beside.xaxis.tick_top()
            beside.set_xticks([0], ["raters"])
            beside.tick_params(axis="x", length=0, pad=1)
            ax.set_yticks([])
        ordered = rated.any() and len(ids) > 5
        _label_items(beside, [str(name) for name in ids], "item, by human score" if ordered else "item")
        with np.errstate(invalid="ignore"):
            below, above = bool((shown < low - slack).any()), bool((shown > high + slack).any())
        color_bar(ax, image, "expected score", beyond=(below, above))
        if caption:
            used = int(np.isfinite(shown).any(axis=1).sum())
            parts = [f"n = {used:,} of {len(ids):,} items"]
            if not rated.any():
                parts.append("no human scores: in the table's order")
            elif not rated.all():
                parts.append(f"{int((~rated).sum()):,} without a human score at the bottom")
            if not shared:
                parts.append(f"the strip has colours of its own, from {own_low:g} (dark) to {own_high:g}")
            if not (np.isfinite(shown).all() and (rated.all() or not rated.any())):
                parts.append("hatched: no value")
            write_caption(ax, "; ".join(parts), own, table)
    return root(ax)


def similarity(table: pd.DataFrame, *, ax: Axes | None = None, caption: bool = True) -> Figure:
    """Map how alike the residual states of every two layers are.

    Args:
        table: One row a pair of layers with the columns ``layer``, ``layer_index``, ``other``, ``other_index``,
            ``cosine``, ``centred``, ``n_used``, ``n_total``, as ``probes.figures.tables.layer_similarity`` gives it.
            NaN, and pairs without a row, are hatched.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write under the axes what is averaged over how many items.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite cosine, several rows for a pair of layers, or both
            centred and uncentred cosines.
    """
    columns = ("layer", "layer_index", "other", "other_index", "cosine", "centred", "n_used", "n_total")
    check_table(table, columns, "similarity")
    if table["centred"].nunique() > 1:
        raise FigureError("the similarity figure found both centred and uncentred cosines; select one kind first")
    check_one_row_each(table, ["layer_index", "other_index"], "similarity", layers=False)
    other = table[["other", "other_index"]].set_axis(["layer", "layer_index"], axis=1)
    names = layer_names(table) | layer_names(other)
    names = dict(sorted(names.items()))
    square = table.pivot(index="layer_index", columns="other_index", values="cosine")
    shown = square.reindex(index=list(names), columns=list(names)).to_numpy(dtype=np.float64)
    if not np.isfinite(shown).any():
        raise FigureError("the similarity figure found no finite cosine to draw")
    low = min(float(np.floor(np.nanmin(shown) * 10) / 10), 0.9)
    with house_style(table):
        own = ax is None
        if ax is None:
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, 2.65 + 0.2 * caption)).subplots()
        dress(ax)
        image = _map(ax, shown, low, 1.0)
        _label_positions(ax, names)
        ax.set_yticks(ax.get_xticks(), [text.get_text() for text in ax.get_xticklabels()])
        ax.set_ylabel("layer")
        color_bar(ax, image, "cosine of residual states")
        if caption:
            what = "after taking each layer's mean over items" if bool(table["centred"].iloc[0]) else "not centred"
            parts = [f"mean over n = {span(table['n_used'])} of {span(table['n_total'])} items, {what}"]
            if not np.isfinite(shown).all():
                parts.append("hatched: undefined, the same state for all items")
            write_caption(ax, "; ".join(parts), own)
    return root(ax)


def transfer(table: pd.DataFrame, *, ax: Axes | None = None, caption: bool = True) -> Figure:
    """Map the agreement of a judge fitted on one set and tested on another, with the numbers in the cells.

    Args:
        table: One row a pair of sets with the columns ``fitted_on``, ``tested_on``, ``value``, ``n_test``, as
            ``probes.transfer`` gives it; with a column ``final``, the judge without labels is the top row. NaN is
            hatched.
        ax: Axes to draw into; a new figure that grows with the number of sets unless given.
        caption: Write under the axes what the numbers and the frames are.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite value, or several rows for a pair of sets.
    """
    check_table(table, ("fitted_on", "tested_on", "value", "n_test"), "transfer")
    check_one_row_each(table, ["fitted_on", "tested_on"], "transfer", layers=False)
    tested = list(table["tested_on"].drop_duplicates())
    # Sets that are both come in one order, so that the diagonal is one.
    fitted = [name for name in tested if name in set(table["fitted_on"])]
    fitted += [name for name in table["fitted_on"].drop_duplicates() if name not in fitted]
    cells = table.pivot(index="fitted_on", columns="tested_on", values="value").reindex(index=fitted, columns=tested)
    shown = cells.to_numpy(dtype=np.float64)
    if not np.isfinite(shown).any():
        raise FigureError("the transfer figure found no finite value to draw")
    rows = distinct(fitted, 22, 1.2)
    has_final = "final" in table
    if has_final:
        plain = table.drop_duplicates("tested_on").set_index("tested_on")["final"].reindex(tested)
        shown = np.concatenate([plain.to_numpy(dtype=np.float64)[None], shown])
        rows = ["final (no labels)", *rows]
    side = max(0.24, min(0.42, 2.3 / len(tested)))
    with house_style(table):
        own = ax is None
        if ax is None:
            size = max(COLUMN_WIDTH, 1.5 + side * len(tested)), 1.5 + 0.26 * len(rows) + 0.2 * caption
            ax = NotebookFigure(figsize=size).subplots()
        dress(ax)
        image = _map(ax, shown[::-1], min(0.0, float(np.nanmin(shown))), max(0.1, float(np.nanmax(shown))))
        ax.set_xticks(range(len(tested)), distinct(tested, 22, 1.2), rotation=40, ha="right")
        for label in ax.get_xticklabels():
            label.set_rotation_mode("anchor")
        ax.set_yticks(range(len(rows)), rows[::-1])
        ax.set_xlabel("tested on")
        ax.set_ylabel("fitted on")
        if has_final:
            ax.axhline(len(rows) - 1.5, color="#ffffff", linewidth=3, zorder=2)
        _print_cells(ax, image, shown[::-1], 6.5 if side >= 0.3 else 5)
        for column, name in enumerate(tested):
            if name in fitted:
                row = len(rows) - 1 - (fitted.index(name) + has_final)
                frame = matplotlib.patches.Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#000000", linewidth=1.2, zorder=3
                )
                frame.set_clip_on(False)
                ax.add_patch(frame)
        if caption:
            said = f"Spearman ρ with human ratings of {span(table['n_test'])} items; framed: cross-validated on its own set"  # noqa: E501, RUF001
            write_caption(ax, said + ("" if np.isfinite(shown).all() else "; hatched: no value"), own)
    return root(ax)


def _map(ax: Axes, shown: Float[np.ndarray, "row column"], low: float, high: float) -> Any:
    """Draw values as colours, row 0 at the bottom; where there is none the hatched ground shows."""
    if not low < high:
        low, high = low - 0.5, high + 0.5
    image = ax.imshow(
        np.ma.masked_invalid(shown), cmap=COLORS, vmin=low, vmax=high, origin="lower", aspect="auto", rasterized=True
    )
    hatch_missing(ax)
    return image


def _label_positions(ax: Axes, names: dict[int, str]) -> None:
    """Name layers on the axis of a map, whose columns are numbered from 0 whatever the layers' numbers are."""
    label_layers(ax, dict(enumerate(names.values())))
    ax.set_xlim(-0.5, len(names) - 0.5)


def _label_items(ax: Axes, ids: list[str], what: str) -> None:
    if len(ids) <= _NAMED_ITEMS:
        label_values(ax.yaxis, range(len(ids)), ids, most=_NAMED_ITEMS)
    else:
        ax.set_yticks([0, len(ids) - 1], ["1", f"{len(ids):,}"])
    ax.set_ylabel(what)


def _print_cells(ax: Axes, image: Any, shown: Float[np.ndarray, "row column"], size: float) -> None:
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            color = "#ffffff" if dark else "#000000"
            ax.text(column, row, short_number(value), ha="center", va="center", fontsize=size, color=color)

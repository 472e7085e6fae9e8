"""One item: how the judgement forms from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import patheffects

from probes.choices.data import PER_WORDS
from probes.errors import FigureError
from probes.figures.lettering import letters
from probes.figures.maps import COLORS
from probes.figures.style import (
    COLUMN_WIDTH,
    NotebookFigure,
    caption_lines,
    check_one_row_each,
    check_table,
    color_bar,
    dress,
    hatch_missing,
    house_style,
    label_layers,
    label_values,
    layer_names,
    legend_above,
    noted,
    on_layers,
    root,
    write_caption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS: Final = 480  # of a prompt, that are shown


def item(
    table: pd.DataFrame,
    *,
    prompt: str = "",
    human: Sequence[float] | np.ndarray = (),
    ax: Axes | None = None,
    caption: bool = True,
) -> Figure:
    """Map one item's distribution over the labels from layer to layer, its expected score as a line.

    Args:
        table: One row a layer and label with the columns ``item``, ``layer``, ``layer_index``, ``label``,
            ``label_value``, ``prob``, ``score``, as ``probes.figures.tables.item_distributions`` gives it.
        prompt: What the judge was asked, written below; the first 480 letters, with how many are left out.
        human: The raters' scores in label values, as triangles at the right; NaN is left out.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write the prompt and what the marks are under the axes.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, is about several items, has no finite probability, or several
            rows for a layer and label.
    """
    columns = ("item", "layer", "layer_index", "label", "label_value", "prob", "score")
    check_table(table, columns, "item")
    if table["item"].nunique() > 1:
        raise FigureError(f"the item figure needs one item, and the table has {table['item'].nunique()}; select one")
    check_one_row_each(table, ["label"], "item")
    names = layer_names(table)
    labels = table.drop_duplicates("label").sort_values("label_value")
    order, values = list(labels["label"]), labels["label_value"].to_numpy(dtype=np.float64)
    shown = table.pivot(index="label", columns="layer_index", values="prob").reindex(index=order, columns=list(names))
    probs = shown.to_numpy(dtype=np.float64)
    if not np.isfinite(probs).any():
        raise FigureError("the item figure found no finite probability to draw")
    (score,) = on_layers(table.drop_duplicates("layer_index"), list(names), ("score",))
    raters = np.asarray(list(human), dtype=np.float64)
    raters = raters[np.isfinite(raters)]
    text = _prompt(prompt)
    said = noted(_marks(table, raters, score, names), text, *map(letters, order))
    with house_style(table, prompt):
        own = ax is None
        if ax is None:
            lines = caption_lines(f"{said}\n{text}", COLUMN_WIDTH) if caption else 0
            height = 1.15 + max(1.1, 0.17 * len(order)) + 0.11 * lines
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, height)).subplots()
        dress(ax)
        image = ax.imshow(
            np.ma.masked_invalid(probs), cmap=COLORS, vmin=0, vmax=1, origin="lower", aspect="auto", rasterized=True
        )
        hatch_missing(ax)
        expected = bool(np.isfinite(score).any())  # choices of an item have no values to take a mean of
        if expected:
            ax.plot(
                np.arange(len(names)),
                _at(score, values),
                color="#ffffff",
                linewidth=1.4,
                marker="o" if len(names) <= 12 else None,
                markersize=2.5,
                path_effects=[patheffects.withStroke(linewidth=2.6, foreground="#000000")],
                label="expected",
                zorder=3,
            )
        last = len(names) - 1
        ax.set_ylim(-0.5, len(order) - 0.5)
        if np.isfinite(score[-1]):
            ax.plot(
                [last],
                _at(score[-1:], values),
                linestyle="none",
                marker="o",
                markersize=5,
                markerfacecolor="#ffffff",
                markeredgecolor="#000000",
                label="final",
                clip_on=False,
                zorder=5,
            )
        if len(raters):
            ax.plot(
                np.full(len(raters), last + 0.5 + 0.02 * (last + 1)),
                _at(np.sort(raters), values),
                linestyle="none",
                marker="<",
                markersize=5,
                markerfacecolor="#D55E00",
                markeredgecolor="#000000",
                markeredgewidth=0.4,
                alpha=0.8,
                label="raters",
                clip_on=False,
                zorder=4,
            )
        label_layers(ax, dict(enumerate(names.values())))
        ax.set_xlim(-0.5, last + 0.5)
        label_values(ax.yaxis, range(len(order)), order)
        ax.set_ylabel("label" if expected else "choice")
        color_bar(ax, image, "probability", gap=0.06)
        legend_above(ax, right=True)
        if caption:
            write_caption(ax, f"{said}\n{text}" if text else said, own)
    return root(ax)


def _at(value: Any, values: np.ndarray) -> np.ndarray:
    """Where a score is among the labels, which stand at equal distances whatever they are worth."""
    return np.asarray(np.interp(value, values, np.arange(len(values))))


def _prompt(prompt: str) -> str:
    """The prompt as far as it fits."""
    whole = " ".join(prompt.split())
    if not whole:
        return ""
    if len(whole) <= _LETTERS:
        return f"Prompt: {letters(whole)}"
    kept = whole[:_LETTERS].rsplit(" ", 1)[0]
    return f"Prompt: {letters(kept)} … (first {len(kept):,} of {len(whole):,} letters)"


def _marks(table: pd.DataFrame, raters: np.ndarray, score: np.ndarray, names: dict[int, str]) -> str:
    parts = [f"item {letters(table['item'].iloc[0], 36)}"]
    if "lens" in table:
        parts.append(f"{letters(table['lens'].iloc[0], 16)} lens")
    if "per" in table:
        parts.append(f"log-likelihoods per {PER_WORDS[table['per'].iloc[0]]}")
    if np.isfinite(score[-1]):
        parts.append(f"layer {list(names.values())[-1]}: {score[-1]:.2f}")
    if len(raters):
        parts.append(f"raters' mean {raters.mean():.2f} (n = {len(raters)})")
    elif np.isfinite(score).any():  # choices have no expected value, and no raters
        parts.append("no human scores")
    return "; ".join(parts)

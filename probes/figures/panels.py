"""The weights that judges give to the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from probes.errors import FigureError
from probes.figures.lettering import letters
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
    write_caption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.figure import Figure

_COLUMNS = ("judge", "lens", "layer", "layer_index", "weight", "lo", "hi")
_SIMPLEX = "simplex: no weight below 0, sum 1"
_SIGNED = "signed: weights of standardised logits"
_WHISKERS = "whiskers: range over folds"
_POSITIVE, _NEGATIVE = "#56B4E9", "#D55E00"


def weights(
    table: pd.DataFrame, *, ax: Axes | Sequence[Axes] | np.ndarray | None = None, caption: bool = True
) -> Figure:
    """Draw the weight of every layer, one panel a judge, stacked over a shared axis of layers.

    A panel's title says what its weights are: a simplex (none negative, sum 1), or signed, in which case they
    multiply standardised logits. Whiskers are the range over folds; negative bars are hatched.

    Args:
        table: One row per judge and layer with the columns ``judge``, ``lens``, ``layer``, ``layer_index``,
            ``weight``, ``lo``, ``hi`` (the range over folds, NaN if there is none).
        ax: Axes to draw into, as many as there are judges; a new figure of one column's width unless given.
        caption: Say under the lowest panel what the two kinds of weights and the whiskers are.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite weight for a judge, several rows for one
            judge and layer, or another number of judges than axes were given.
    """
    check_table(table, _COLUMNS, "weights")
    check_one_row_each(table, ["judge", "lens"], "weights")
    names = layer_names(table)
    pairs = list(table[["judge", "lens"]].drop_duplicates().itertuples(index=False, name=None))
    with house_style(table):
        axes = _axes(ax, len(pairs))
        notes: dict[str, None] = {}
        for (judge, lens), panel in zip(pairs, axes, strict=True):
            rows = table[(table["judge"] == judge) & (table["lens"] == lens)]
            weight, lo, hi = on_layers(rows, list(names), ("weight", "lo", "hi"))
            finite = np.isfinite(weight)
            if not finite.any():
                raise FigureError(f"the weights figure found no finite weight of the judge {judge!r}")
            _draw_panel(panel, np.array(list(names), dtype=np.float64), weight, lo, hi)
            simplex = weight[finite].min() >= -1e-9 and abs(weight[finite].sum() - 1) < 1e-3
            notes[_SIMPLEX if simplex else _SIGNED] = None
            dress(panel)
            panel.set_title(
                f"{letters(judge, 34, 1.7)} ({letters(lens, 16, 0.6)} lens): {'simplex' if simplex else 'signed'}",
                fontsize=matplotlib.rcParams["axes.titlesize"],
            )
            if (np.isfinite(lo) & (hi > lo)).any():
                notes[_WHISKERS] = None
            panel.set_ylabel("weight")
            label_layers(panel, names)
        for panel in axes[:-1]:
            panel.set_xlabel("")
            if ax is None:
                panel.tick_params(labelbottom=False)
        if caption:
            order = (_SIMPLEX, _SIGNED, _WHISKERS)
            write_caption(axes[-1], "; ".join(note for note in order if note in notes), ax is None, table)
    return root(axes[0])


def _axes(ax: Axes | Sequence[Axes] | np.ndarray | None, count: int) -> list[Axes]:
    if ax is None:
        fig = NotebookFigure(figsize=(COLUMN_WIDTH, 0.65 + 1.0 * count))
        return list(fig.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != count:
        raise FigureError(f"the weights figure needs one axes a judge: {count} judges, {len(axes)} axes given")
    return axes


def _draw_panel(
    ax: Axes,
    x: Float[np.ndarray, " layer"],
    weight: Float[np.ndarray, " layer"],
    lo: Float[np.ndarray, " layer"],
    hi: Float[np.ndarray, " layer"],
) -> None:
    for sign, color, hatch in ((weight >= 0, _POSITIVE, ""), (weight < 0, _NEGATIVE, "/////")):
        ax.bar(
            x[sign],
            weight[sign],
            width=0.72,
            color=color,
            edgecolor="#333333",
            linewidth=0.3,
            hatch=hatch,
            zorder=2,
        )
    ranged = np.isfinite(lo) & np.isfinite(hi) & np.isfinite(weight)
    ax.vlines(x[ranged], lo[ranged], hi[ranged], color="#000000", linewidth=0.8, zorder=3)
    ax.axhline(0, color="#000000", linewidth=0.6, zorder=2.5)

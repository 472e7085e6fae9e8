"""What all figures share: the style sheet, the axis of layers, the caption, and checks of their tables."""

from __future__ import annotations

import io
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from probes.errors import FigureError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

COLUMN_WIDTH = 3.4  # inches, one column of the usual two-column paper
_CAPTION_SIZE = 6.0
_STYLE_SHEET = Path(__file__).with_name("probes.mplstyle")


class NotebookFigure(Figure):
    """A figure that a notebook shows even if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def house_style() -> Iterator[None]:
    """Use the style sheet over matplotlib's defaults, whatever the caller's settings; restore them after."""
    with matplotlib.rc_context(fname=_STYLE_SHEET):
        yield


def check_table(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that lacks columns or rows.

    Raises:
        FigureError: It does.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise FigureError(
            f"the {what} figure needs a column {missing[0]!r}; the table has "
            f"{', '.join(map(str, table.columns)) or 'no columns'}"
        )
    if len(table) == 0:
        raise FigureError(f"the {what} figure needs at least one row, and the table is empty")


def check_one_row_each(table: pd.DataFrame, keys: Sequence[str], what: str) -> None:
    """Refuse a table with several rows for one point of the figure.

    Raises:
        FigureError: It has; the text names the first such point.
    """
    doubled = table[table.duplicated([*keys, "layer_index"])]
    if len(doubled):
        point = ", ".join(f"{key} {doubled.iloc[0][key]}" for key in [*keys, "layer"])
        raise FigureError(
            f"the {what} figure found several rows for {point}; select one criterion, split and metric first"
        )


def layer_names(table: pd.DataFrame) -> dict[int, str]:
    """Layer index -> name, ascending."""
    pairs = table[["layer_index", "layer"]].drop_duplicates("layer_index").sort_values("layer_index")
    return {int(index): str(name) for index, name in pairs.itertuples(index=False)}


def on_layers(
    rows: pd.DataFrame, layers: Sequence[int], columns: Sequence[str]
) -> tuple[Float[np.ndarray, " layer"], ...]:
    """Columns as arrays over the layers; NaN where the table has no row."""
    aligned = rows.set_index("layer_index")[list(columns)].reindex(list(layers))
    return tuple(aligned[column].to_numpy(dtype=np.float64, na_value=np.nan) for column in columns)


def label_layers(ax: Axes, names: Mapping[int, str]) -> None:
    """Ticks on the axis of layers: the first and the last one, and round numbers that leave room between."""
    indices = list(names)
    first, last = indices[0], indices[-1]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if (last - first) / step <= 8)
    inner = [i for i in indices if i % step == 0 and first < i and first + 0.6 * step <= i <= last - 0.6 * step]
    ticks = list(dict.fromkeys([first, *inner, last]))
    ax.set_xticks(ticks, [names[i] for i in ticks])
    margin = max(0.5, 0.015 * (last - first))
    ax.set_xlim(first - margin, last + margin)
    ax.set_xlabel("layer (residual state after this block)")


def dress(ax: Axes) -> None:
    """Give axes that the caller made the sizes and spines of the style sheet; call it in `house_style`."""
    ax.tick_params(labelsize=matplotlib.rcParams["xtick.labelsize"])
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(matplotlib.rcParams["axes.labelsize"])
    ax.spines[["top", "right"]].set_visible(False)


def write_caption(ax: Axes, text: str, own: bool) -> None:
    """Small print under the axes, wrapped to the figure's width, or to the axes' if the caller made them."""
    fig = root(ax)
    inches = float(fig.get_size_inches()[0]) * (1.0 if own else float(ax.get_position().width))
    wrapped = textwrap.fill(text, max(20, int(inches * 72 / (0.53 * _CAPTION_SIZE))))
    if own:
        fig.supxlabel(wrapped, x=0.01, ha="left", fontsize=_CAPTION_SIZE, linespacing=1.25)
        return
    ax.annotate(
        wrapped,
        xy=(0, 0),
        xycoords=("axes fraction", ax.xaxis.label),
        xytext=(0, -4),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=_CAPTION_SIZE,
        linespacing=1.25,
        annotation_clip=False,
    )


def root(ax: Axes) -> Figure:
    """The figure that holds the axes, also when they sit in a subfigure."""
    fig: Any = ax.figure
    return cast("Figure", fig.figure)


def short_number(value: float) -> str:
    """Two decimals, as papers print coefficients: ``.43``, ``-.08``, ``1.00``."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"

"""What all figures share: the style sheet, the axis of layers, the caption, and checks of their tables."""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.text import Text

from probes.errors import FigureError
from probes.figures.lettering import CAPTION_SIZE, MISSING_LETTER, MISSING_NOTE, families, letters, width, wrap_small

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

COLUMN_WIDTH = 3.4  # inches, one column of the usual two-column paper
_CAPTION_WIDTH = 0.98  # of the figure's
_STYLE_SHEET = Path(__file__).with_name("probes.mplstyle")


class Look(NamedTuple):
    """How a series is drawn."""

    color: str
    line: Any
    marker: str


# Okabe and Ito's colours, ordered so that neighbours also differ in lightness; line and marker tell them
# apart without any colour.
LOOKS = (
    Look("#0072B2", "-", "o"),
    Look("#E69F00", (0, (4, 1.5)), "s"),
    Look("#7A1F5C", (0, (5, 1.2, 1, 1.2)), "^"),
    Look("#009E73", (0, (1, 1)), "D"),
    Look("#D55E00", (0, (7, 2)), "v"),
    Look("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
    Look("#000000", (0, (2, 1)), "X"),
    Look("#CC79A7", (0, (6, 1, 2, 1)), "*"),
)


class NotebookFigure(Figure):
    """A figure that a notebook shows even if pyplot was never imported, laid out as ``probes.figures.save`` does."""

    def savefig(self, fname: Any, **settings: Any) -> None:
        """As ``Figure.savefig``, once the layout stands still."""
        with settled(self):
            super().savefig(fname, **settings)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def settled(fig: Figure) -> Iterator[None]:
    """Let the layout come to rest, and keep it there.

    A layout engine starts from where the last drawing left the axes and creeps towards its fixed point, a little
    further with every drawing.
    """
    engine = fig.get_layout_engine()
    if engine is None:
        yield
        return
    before = np.zeros(0)
    for _ in range(10):
        fig.draw_without_rendering()
        places = np.array([ax.get_position().bounds for ax in fig.axes]).ravel()
        if places.size == before.size and np.allclose(places, before, rtol=0, atol=1e-13):
            break
        before = places
    fig.set_layout_engine("none")
    try:
        yield
    finally:
        fig.set_layout_engine(engine)


@contextmanager
def house_style(*told: object) -> Iterator[None]:
    """Use the style sheet over matplotlib's defaults, whatever the caller's settings; restore them after.

    Args:
        told: Tables and texts that the figure shows, so that there are fonts for their letters.
    """
    with matplotlib.rc_context(fname=_STYLE_SHEET):
        matplotlib.rcParams["font.family"] = families(told)
        yield


def check_table(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that lacks columns or rows.

    Raises:
        FigureError: It does.
    """
    if not hasattr(table, "columns"):
        raise FigureError(
            f"the {what} figure draws a table, got {type(table).__name__}; pass one that probes.compare or "
            "probes.figures.tables gave"
        )
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise FigureError(
            f"the {what} figure needs a column {missing[0]!r}; the table has "
            f"{', '.join(map(str, table.columns)) or 'no columns'}"
        )
    if len(table) == 0:
        raise FigureError(f"the {what} figure needs at least one row, and the table is empty")


def check_one_row_each(table: pd.DataFrame, keys: Sequence[str], what: str, *, layers: bool = True) -> None:
    """Refuse a table with several rows for one point of the figure, where that is one of some layer.

    Raises:
        FigureError: It has; the text names the first such point.
    """
    doubled = table[table.duplicated([*keys, "layer_index"] if layers else list(keys))]
    if len(doubled):
        point = ", ".join(f"{key} {doubled.iloc[0][key]}" for key in ([*keys, "layer"] if layers else keys))
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


def write_caption(ax: Axes, text: str, own: bool, of: pd.DataFrame | None = None) -> None:
    """Small print under the axes, wrapped to the figure's width, or to the axes' if the caller made them.

    Args:
        ax: The axes.
        text: What is drawn.
        own: Whether the figure has no other axes than these.
        of: The table that is drawn; the criterion or task that it is about, if it has one, stands in front.
    """
    if of is not None and "criterion" in of:
        names = [letters(str(name), 40, 2.2) for name in of["criterion"].dropna().unique() if name]
        text = f"{short_list(names, 'criteria')}: {text}" if names else text
    fig: Any = root(ax)
    drawn = (fig if own else ax).findobj(Text)
    text = noted(text, *(one.get_text() for one in drawn))
    inches = float(fig.get_size_inches()[0]) * (_CAPTION_WIDTH if own else float(ax.get_position().width))
    wrapped = "\n".join(wrap_small(paragraph, inches) for paragraph in text.splitlines())
    if own:
        fig.supxlabel(wrapped, x=0.01, ha="left", fontsize=CAPTION_SIZE, linespacing=1.25)
        return
    ax.annotate(
        wrapped,
        xy=(0, 0),
        xycoords=("axes fraction", ax.xaxis.label),
        xytext=(0, -4),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=CAPTION_SIZE,
        linespacing=1.25,
        annotation_clip=False,
    )


def noted(caption: str, *texts: str) -> str:
    """A caption that says so where a letter could not be drawn, in it or in other texts of the figure."""
    if MISSING_NOTE in caption or not any(MISSING_LETTER in text for text in (caption, *texts)):
        return caption
    first, *others = caption.split("\n")
    return "\n".join([f"{first}; {MISSING_NOTE}" if first else MISSING_NOTE, *others])


def caption_lines(text: str, inches: float) -> int:
    """Lines that a caption takes under a figure so wide."""
    return sum(wrap_small(part, _CAPTION_WIDTH * inches).count("\n") + 1 for part in text.splitlines())


def take_looks(names: Sequence[str], what: str) -> dict[str, Look]:
    """A look for every name, in their order.

    Raises:
        FigureError: There are more names than looks.
    """
    if len(names) > len(LOOKS):
        raise FigureError(f"the {what} figure can tell {len(LOOKS)} lines apart, not {len(names)}; select some first")
    return dict(zip(names, LOOKS, strict=False))


def legend_above(ax: Axes, *, top: float = 1.01, columns: int = 3, right: bool = False) -> None:
    """A legend above the axes, from their left or ``right`` end, in as many columns as its names leave room for."""
    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    # In points: what the axes have, and what a handle, the gaps and the longest name take.
    there = 80 * float(root(ax).get_size_inches()[0]) * (1.0 if right else float(ax.get_position().width))
    room = int((there + 8) / (32 + 72 * max(map(width, names))))  # there is no gap after the last
    where = {"loc": "lower right" if right else "lower left", "bbox_to_anchor": (int(right), top)}
    ax.legend(handles, names, ncols=max(1, min(columns, room, len(names))), **where)


def color_bar(
    ax: Axes, image: Any, label: str, *, gap: float = 0.03, beyond: tuple[bool, bool] = (False, False)
) -> None:
    """The colours of a map, named, to the right of the axes and as high; pointed where values lie beyond."""
    fig: Any = ax.figure
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = fig.colorbar(image, cax=ax.inset_axes((1 + gap, 0, 0.045, 1)), extend=ends)
    bar.set_label(label, fontsize=matplotlib.rcParams["axes.labelsize"])
    bar.ax.tick_params(labelsize=matplotlib.rcParams["ytick.labelsize"], width=0.6, length=2.5)
    bar.ax.locator_params(axis="y", nbins=6)
    bar.outline.set_linewidth(0.6)


def hatch_missing(ax: Axes) -> None:
    """Hatch the ground of a map, which shows where it has no value."""
    ax.patch.set(facecolor="#ffffff", edgecolor="#777777", hatch="//////")
    ax.spines[["top", "right"]].set_visible(True)


def span(counts: pd.Series) -> str:
    """Counts in words: one number, or the lowest and the highest."""
    if counts.isna().all():
        return "an unknown number"
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def short_list(names: Sequence[str], of: str = "layers") -> str:
    """A few names, and how many more there are."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more {of}"


def label_values(ax: Any, positions: Sequence[float], names: Sequence[str], *, most: int = 12) -> None:
    """Name positions along an axis (``ax.xaxis`` or ``ax.yaxis``), every so-and-so-many where they are many."""
    step = max(1, -(-len(names) // most))
    ax.set_ticks(list(positions)[::step], labels=[letters(name, 18, 1.0) for name in list(names)[::step]])


def root(ax: Axes) -> Figure:
    """The figure that holds the axes, also when they sit in a subfigure."""
    fig: Any = ax.figure
    return cast("Figure", fig.figure)


def short_number(value: float) -> str:
    """Two decimals, as papers print coefficients: ``.43``, ``-.08``, ``1.00``."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"

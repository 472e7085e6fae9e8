"""Do a judge's probabilities look like the raters' scores: distributions, reliability, and mass on the scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from probes.errors import FigureError
from probes.figures.lettering import distinct, letters
from probes.figures.style import (
    COLUMN_WIDTH,
    LOOKS,
    NotebookFigure,
    check_one_row_each,
    check_table,
    dress,
    house_style,
    label_layers,
    label_values,
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
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.figure import Figure

_PANELS = 6


def distributions(
    table: pd.DataFrame,
    *,
    layers: Sequence[str | int] | None = None,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    caption: bool = True,
) -> Figure:
    """Draw how often some layers would give each label, over the raters' histogram, one panel a layer.

    Args:
        table: One row a layer and label with the columns ``layer``, ``layer_index``, ``label``, ``label_value``,
            ``share``, ``raters``, ``kl``, ``n_used``, ``n_total``, as ``probes.figures.tables.score_distributions``
            gives it.
        layers: Names of the layers to draw; six from the first to the last unless given.
        ax: Axes to draw into, as many as there are layers; a new figure of one column's width unless given.
        caption: Write under the axes what the bars and numbers are.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite share, several rows for a layer and label, no such
            layer, or another number of layers than axes were given.
    """
    columns = ("layer", "layer_index", "label", "label_value", "share", "raters", "kl", "n_used", "n_total")
    check_table(table, columns, "distributions")
    check_one_row_each(table, ["label"], "distributions")
    if not np.isfinite(table["share"].to_numpy(dtype=np.float64, na_value=np.nan)).any():
        raise FigureError("the distributions figure found no finite share to draw")
    names = layer_names(table)
    if layers is None:
        places = np.unique(np.linspace(0, len(names) - 1, min(_PANELS, len(names))).round().astype(int))
        chosen = [list(names)[place] for place in places]
    else:
        by_name = {name: index for index, name in names.items()}
        if unknown := [str(layer) for layer in layers if str(layer) not in by_name]:
            raise FigureError(f"the distributions figure found no layer {unknown[0]!r}; the table has {_ends(names)}")
        chosen = [by_name[str(layer)] for layer in layers]
    labels = table.drop_duplicates("label").sort_values("label_value")
    order, shown = list(labels["label"]), [letters(label, 12) for label in labels["label"]]
    longest = max(map(len, shown))
    long = longest > 3
    has_raters = np.isfinite(table["raters"].to_numpy(dtype=np.float64, na_value=np.nan)).any()
    finite = table[["share", "raters"]].to_numpy(dtype=np.float64, na_value=np.nan)
    top = float(np.nanmax(finite)) * 1.08
    with house_style(table):
        axes = _axes(ax, len(chosen), 0.07 * longest if long else 0.0, caption)
        for place, (panel, index) in enumerate(zip(axes, chosen, strict=True)):
            rows = table[table["layer_index"] == index].set_index("label").reindex(order)
            dress(panel)
            x = np.arange(len(order))
            share = rows["share"].to_numpy(dtype=np.float64, na_value=np.nan)
            panel.bar(x, share, width=0.8, color="#56B4E9", edgecolor="#333333", linewidth=0.3, label="layer", zorder=2)
            if has_raters:
                raters = rows["raters"].to_numpy(dtype=np.float64, na_value=np.nan)
                edges = np.arange(len(order) + 1) - 0.5
                panel.stairs(raters, edges, color="#000000", linewidth=1.2, label="raters", zorder=3)
            panel.set_ylim(0, top)
            panel.locator_params(axis="y", nbins=3)
            panel.set_xlim(-0.6, len(order) - 0.4)
            label_values(panel.xaxis, x.tolist(), order, most=6 if not long else 12)
            if long:
                panel.tick_params(axis="x", rotation=90)
            divergence = float(rows["kl"].iloc[0])
            said = f"layer {names[index]}" if names[index] != "embed" else "embed"
            known = f", KL {short_number(divergence)}" if np.isfinite(divergence) else ""
            panel.set_title(said + known, fontsize=matplotlib.rcParams["axes.titlesize"])
            if ax is None and place % 3:
                panel.tick_params(labelleft=False)
            elif ax is None or place == 0:
                panel.set_ylabel("share")
        if caption:
            used = table[table["layer_index"].isin(chosen)]
            parts = [
                f"n = {span(used['n_used'])} of {span(used['n_total'])} items",
                "bars: mean probability of a label",
            ]
            if has_raters:
                parts.append("black outline: raters' histogram")
                parts.append("KL(raters || layer), mean over items, nats")
            else:
                parts.append("no human scores")
            write_caption(axes[-1], "; ".join(parts), ax is None, table)
    return root(axes[0])


def _ends(names: dict[int, str]) -> str:
    listed = list(names.values())
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]}, {listed[1]} .. {listed[-1]}"


def _axes(ax: Axes | Sequence[Axes] | np.ndarray | None, count: int, more: float, caption: bool) -> list[Axes]:
    if ax is None:
        rows = -(-count // 3)
        fig = NotebookFigure(figsize=(COLUMN_WIDTH, 0.35 + 0.25 * caption + (1.05 + more) * rows))
        grid = fig.subplots(rows, min(3, count), squeeze=False).ravel()
        for spare in grid[count:]:
            spare.remove()
        return list(grid[:count])
    axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != count:
        raise FigureError(f"the distributions figure needs one axes a layer: {count} layers, {len(axes)} axes given")
    return axes


def reliability(table: pd.DataFrame, *, answers: bool = False, ax: Axes | None = None, caption: bool = True) -> Figure:
    """Draw how often raters choose the label that a judge finds most probable, by that probability.

    On the diagonal a judge is as sure as it is right. Above the axes, how many items each bin holds.

    Args:
        table: One row a judge and bin with the columns ``judge``, ``bin_lo``, ``bin_hi``, ``confidence``,
            ``accuracy``, ``count``, ``ece``, ``n_used``, ``n_total``, as ``probes.figures.tables.reliability_bins``
            gives it, or the table ``calibration`` of a comparison of runs of choices.
        answers: It is about answers to tasks: how often the most probable choice is the right one.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write under the axes what is drawn, of how many items.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no finite point, several rows for a judge and bin, or more
            judges than can be told apart.
    """
    columns = ("judge", "bin_lo", "bin_hi", "confidence", "accuracy", "count", "ece", "n_used", "n_total")
    check_table(table, columns, "reliability")
    check_one_row_each(table, ["judge", "bin_lo"], "reliability", layers=False)
    if not np.isfinite(table[["confidence", "accuracy"]].to_numpy(dtype=np.float64, na_value=np.nan)).all(axis=1).any():
        raise FigureError("the reliability figure found no finite point to draw")
    judges = list(table["judge"].drop_duplicates())
    names = distinct(judges, 30, 1.8)
    looks = take_looks(names, "reliability")
    with house_style(table):
        own = ax is None
        if ax is None:
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, 3.3 + 0.3 * caption + 0.12 * max(0, len(judges) - 2))).subplots()
        dress(ax)
        ax.plot([0, 1], [0, 1], color="#777777", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        above = ax.inset_axes((0, 1.05, 1, 0.2), sharex=ax)
        dress(above)
        for judge, (name, look) in zip(judges, looks.items(), strict=True):
            rows = table[table["judge"] == judge].sort_values("bin_lo")
            error = float(rows["ece"].iloc[0])
            known = f", ECE {short_number(error)}" if np.isfinite(error) else ""
            ax.plot(
                rows["confidence"],
                rows["accuracy"],
                color=look.color,
                linestyle=look.line,
                marker=look.marker,
                markersize=4,
                label=name + known,
                clip_on=False,
                zorder=3,
            )
            every = np.unique(np.concatenate([table["bin_lo"], table["bin_hi"]]).round(9))
            counts = rows.set_index(rows["bin_lo"].round(9))["count"].reindex(every[:-1], fill_value=0)
            above.stairs(counts.to_numpy(), every, color=look.color, linestyle=look.line, linewidth=1.0)
        above.tick_params(labelbottom=False)
        above.set_ylabel("items")
        above.set_ylim(0, None)
        above.set_yticks([round(float(table["count"].max()))])
        ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
        ax.set_xticks(ticks, ["0", ".2", ".4", ".6", ".8", "1"])
        ax.set_yticks(ticks, ["0", ".2", ".4", ".6", ".8", "1"])
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_xlabel(f"probability of the most probable {'choice' if answers else 'label'}")
        ax.set_ylabel("share of right answers" if answers else "share of raters who chose it")
        legend_above(ax, top=1.27, columns=2)
        if caption:
            parts = [f"n = {span(table['n_used'])} of {span(table['n_total'])} items, held out where labels are used"]
            parts.append("dotted: as sure as right; lines above: items in each bin")
            write_caption(ax, "; ".join(parts), own, table)
    return root(ax)


def mass(table: pd.DataFrame, *, ax: Axes | None = None, caption: bool = True) -> Figure:
    """Draw the share of the full vocabulary's probability that is on the scale, by layer.

    Args:
        table: One row a layer with the columns ``layer``, ``layer_index``, ``value``, ``lo``, ``hi``, ``n_used``,
            ``n_total`` (median and quartiles over items), as ``probes.figures.tables.scale_mass`` gives it.
        ax: Axes to draw into; a new figure of one column's width unless given.
        caption: Write under the axes what is drawn, and where there is nothing.

    Returns:
        The figure that holds the axes.

    Raises:
        FigureError: The table lacks columns or rows, has no value or one alone, or several rows for a layer.
    """
    check_table(table, ("layer", "layer_index", "value", "lo", "hi", "n_used", "n_total"), "mass")
    check_one_row_each(table, [], "mass")
    names = layer_names(table)
    value, lo, hi = on_layers(table, list(names), ("value", "lo", "hi"))
    finite = np.isfinite(value)
    if not finite.any():
        raise FigureError("the mass figure found no finite value to draw")
    if finite.sum() == 1:
        (only,) = [names[index] for index, there in zip(names, finite, strict=True) if there]
        raise FigureError(
            f"only the mass of layer {only} is known, which is no curve: capture with mass=True (--mass) for all layers"
        )
    look = LOOKS[0]
    with house_style(table):
        own = ax is None
        if ax is None:
            ax = NotebookFigure(figsize=(COLUMN_WIDTH, 2.0 + 0.2 * caption)).subplots()
        dress(ax)
        x = np.array(list(names), dtype=np.float64)
        ax.fill_between(x, lo, hi, color=look.color, alpha=0.25, linewidth=0)
        if finite.sum() < 3:
            ax.vlines(x[finite], lo[finite], hi[finite], color=look.color, alpha=0.5, linewidth=1.5)
        every = max(1, round(len(x) / 10))
        marked = [i for i in range(len(x)) if finite[i] and (i % every == 0 or finite.sum() < 3)]
        ax.plot(x, value, color=look.color, linestyle=look.line, marker=look.marker, markevery=marked)
        # Room for the markers of layers that say nothing of the scale, and of those that say nothing else.
        ax.set_ylim(-0.04, 1.04)
        label_layers(ax, names)
        ax.set_ylabel("probability on the scale")
        if caption:
            drawn = table[np.isfinite(table["value"].to_numpy(dtype=np.float64, na_value=np.nan))]
            parts = [f"n = {span(drawn['n_used'])} of {span(drawn['n_total'])} items; median and quartiles over items"]
            gaps = [names[index] for index, there in zip(names, finite, strict=True) if not there]
            if gaps:
                parts.append(f"no value at {short_list(gaps)}")
            write_caption(ax, "; ".join(parts), own)
    return root(ax)

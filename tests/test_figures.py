from __future__ import annotations

import io
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from probes.errors import FigureError, ProbesError
from probes.figures import alignment, save, weights
from probes.figures.curves import _spread
from probes.figures.style import short_number

if TYPE_CHECKING:
    from pathlib import Path

NAN = float("nan")
LENSES = ("norm", "raw", "tuned", "a", "b", "c", "d", "e")


def curves(lenses: tuple[str, ...] = ("norm", "raw"), layers: int = 30, **changes: Any) -> pd.DataFrame:
    """A table as the statistics give it, with a constant embedding layer."""
    rows = []
    for number, lens in enumerate(lenses):
        for index in range(layers + 1):
            value = NAN if index == 0 else 0.1 * number + 0.5 * np.sin(3 * index / layers)
            rows.append(
                {
                    "lens": lens,
                    "layer": str(index) if index else "embed",
                    "layer_index": index,
                    "metric": "spearman",
                    "value": value,
                    "lo": value - 0.05,
                    "hi": value + 0.07,
                    "n_used": 450,
                    "n_total": 450,
                }
            )
    return pd.DataFrame(rows).assign(**changes)


def weighing(**judges: list[float]) -> pd.DataFrame:
    rows = [
        {
            "judge": judge,
            "lens": "norm",
            "layer": str(index) if index else "embed",
            "layer_index": index,
            "weight": weight,
            "lo": weight - 0.01,
            "hi": weight + 0.02,
        }
        for judge, values in judges.items()
        for index, weight in enumerate(values)
    ]
    return pd.DataFrame(rows)


def named(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in ax.get_lines()}


def words(fig: Figure) -> str:
    """All small print of a figure, unwrapped."""
    texts = [fig._supxlabel.get_text()] if getattr(fig, "_supxlabel", None) else []
    texts += [text.get_text() for ax in fig.axes for text in ax.texts]
    return " | ".join(texts).replace("\n", " ")


def overlaps(fig: Figure, texts: list[Any]) -> list[tuple[str, str]]:
    fig.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


# ---- alignment


def test_one_line_a_lens_with_the_values_of_the_table() -> None:
    table = curves()
    ax = alignment(table).axes[0]
    lines = named(ax)
    assert list(lines) == ["norm lens", "raw lens"]
    for lens in ("norm", "raw"):
        np.testing.assert_array_equal(lines[f"{lens} lens"].get_xdata(), range(31))
        np.testing.assert_array_equal(lines[f"{lens} lens"].get_ydata(), table[table.lens == lens].value)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["norm lens", "raw lens"]


def test_the_table_may_come_in_any_order() -> None:
    table = curves()
    shuffled = table.sample(frac=1, random_state=0)
    left, right = named(alignment(table).axes[0]), named(alignment(shuffled).axes[0])
    for name, line in left.items():
        np.testing.assert_array_equal(line.get_ydata(), right[name].get_ydata())


def test_the_band_lies_between_lo_and_hi_and_has_the_same_gaps() -> None:
    table = curves(("norm",), layers=6)
    table.loc[3, ["value", "lo", "hi"]] = NAN
    band = alignment(table).axes[0].collections[0]
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert set(corners[:, 0]) == {1, 2, 4, 5, 6}
    assert len(band.get_paths()) == 2
    for index in (1, 2, 4, 5, 6):
        heights = corners[corners[:, 0] == index, 1]
        assert heights.min() == pytest.approx(table.lo[index])
        assert heights.max() == pytest.approx(table.hi[index])


def test_a_missing_row_is_a_gap_as_a_nan_is() -> None:
    table = curves(layers=6)
    without = table[~((table.lens == "raw") & table.layer_index.isin([0, 3]))]
    line = named(alignment(without).axes[0])["raw lens"]
    assert np.isnan(line.get_ydata()).tolist() == [True, False, False, True, False, False, False]


def test_a_point_between_gaps_has_a_marker_and_its_own_interval() -> None:
    table = curves(("norm",), layers=80)
    table.loc[[16, 18], ["value", "lo", "hi"]] = NAN
    ax = alignment(table).axes[0]
    assert 17 in named(ax)["norm lens"].get_markevery()
    (segment,) = ax.collections[1].get_segments()
    np.testing.assert_allclose(segment, [[17, table.lo[17]], [17, table.hi[17]]])


def test_eighty_one_layers_have_few_markers_and_few_ticks() -> None:
    ax = alignment(curves(layers=80)).axes[0]
    assert len(named(ax)["norm lens"].get_markevery()) <= 11
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        *("embed", "10", "20", "30", "40", "50", "60", "70", "80")
    ]
    assert not overlaps(ax.figure, ax.get_xticklabels())


@pytest.mark.parametrize("layers", [1, 2, 4, 8, 9, 11, 12, 16, 24, 30, 31, 32, 48, 61, 80, 126])
def test_tick_labels_never_touch_and_name_both_ends(layers: int) -> None:
    fig = alignment(curves(("norm",), layers=layers))
    labels = fig.axes[0].get_xticklabels()
    assert (labels[0].get_text(), labels[-1].get_text()) == ("embed", str(layers))
    assert not overlaps(fig, labels)


def test_tick_labels_of_some_of_the_layers_do_not_touch_either() -> None:
    table = curves(("norm",), layers=40)
    fig = alignment(table[table.layer_index >= 9])
    labels = fig.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["9", "15", "20", "25", "30", "35", "40"]
    assert not overlaps(fig, labels)


def test_lenses_differ_in_colour_line_and_marker() -> None:
    lines = list(named(alignment(curves(LENSES)).axes[0]).values())
    assert len({to_hex(line.get_color()) for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == 8


def test_a_lens_looks_the_same_whatever_stands_beside_it() -> None:
    alone = named(alignment(curves(("raw",))).axes[0])["raw lens"]
    beside = named(alignment(curves(("norm", "other", "raw"))).axes[0])["raw lens"]
    assert (alone.get_color(), alone.get_marker()) == (beside.get_color(), beside.get_marker())


def test_horizontal_lines_are_named_and_inside_the_axes() -> None:
    ax = alignment(curves(), final=0.43, attainable=0.96, human=0.82).axes[0]
    lines = named(ax)
    assert set(lines["_final layer"].get_ydata()) == {0.43}
    assert set(lines["_attainable"].get_ydata()) == {0.96}
    assert set(lines["_one rater"].get_ydata()) == {0.82}
    assert [text.get_text() for text in ax.texts] == ["attainable\n.96", "one rater\n.82", "final layer\n.43"]
    low, high = ax.get_ylim()
    assert low < curves().lo.min()
    assert high > 0.96
    assert len({str(line._unscaled_dash_pattern) for name, line in lines.items() if name[0] == "_"}) == 3


def test_names_of_lines_far_apart_stand_at_their_lines() -> None:
    ax = alignment(curves(), final=0.2, attainable=0.9).axes[0]
    low, high = ax.get_ylim()
    assert [low + text.get_position()[1] * (high - low) for text in ax.texts] == pytest.approx([0.9, 0.2])


def test_a_horizontal_line_without_a_value_is_left_out() -> None:
    ax = alignment(curves(), final=NAN, attainable=None, human=0.5).axes[0]
    assert [name for name in named(ax) if name[0] == "_"] == ["_one rater"]


@pytest.mark.parametrize("lines", [(0.43, 0.45, 0.44), (0.9, 0.91, 0.92), (-0.01, 0.0, 0.01), (0.2, 0.8, 0.21)])
@pytest.mark.parametrize("lenses", [1, 3, 8])
def test_names_of_close_lines_do_not_overlap(lines, lenses: int) -> None:
    final, attainable, human = lines
    fig = alignment(curves(LENSES[:lenses]), final=final, attainable=attainable, human=human)
    assert not overlaps(fig, fig.axes[0].texts)


@pytest.mark.parametrize("lenses", [1, 3, 8])
def test_everything_is_within_the_figure(lenses: int) -> None:
    table = curves(LENSES[:lenses], n_used=[*range(1001, 1032)] * lenses)
    fig = alignment(table, final=0.43, attainable=0.96)
    fig.draw_without_rendering()
    width, height = fig.get_size_inches() * fig.dpi
    parts = [fig._supxlabel, *fig.axes[0].texts, fig.axes[0].get_legend(), fig.axes[0].yaxis.label]
    for box in [part.get_window_extent() for part in parts]:
        assert box.x0 >= -0.5
        assert box.y0 >= -0.5
        assert box.x1 <= width + 0.5
        assert box.y1 <= height + 0.5
    assert fig._supxlabel.get_window_extent().y1 < fig.axes[0].xaxis.label.get_window_extent().y0 + 1
    assert width / fig.dpi == 3.4


def test_axes_have_names_and_units() -> None:
    ax = alignment(curves()).axes[0]
    assert ax.get_xlabel() == "layer (residual state after this block)"
    assert ax.get_ylabel() == "Spearman ρ with human ratings"  # noqa: RUF001
    ax = alignment(curves(metric="mae"), metric="mae").axes[0]
    assert ax.get_ylabel() == "mean absolute error (label values)"
    ax = alignment(curves(metric="own"), metric="own").axes[0]
    assert ax.get_ylabel() == "own"


def test_other_metrics_in_the_table_are_not_drawn() -> None:
    table = pd.concat([curves(), curves(metric="mae", value=9.0)])
    assert alignment(table).axes[0].get_ylim()[1] < 1
    assert alignment(table, metric="mae").axes[0].get_ylim()[1] > 8


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        pytest.param(
            {},
            "n = 450 of 450 items; bands: pointwise 95 % intervals, conditional on the fitted judges; "
            "no value at embed",
            id="plain",
        ),
        pytest.param(
            {"band": "simultaneous"},
            "n = 450 of 450 items; bands: simultaneous 95 % bands over the layers, conditional on the fitted judges; "
            "no value at embed",
            id="simultaneous",
        ),
        pytest.param({"lo": NAN, "hi": NAN}, "n = 450 of 450 items; no value at embed", id="no_bands"),
        pytest.param(
            {"n_used": [0, *range(1399, 1405)] * 2, "n_total": 1440, "lo": NAN},
            "n = 1,399 to 1,404 of 1,440 items; no value at embed",
            id="counts_that_vary",
        ),
        pytest.param(
            {"value": [NAN] * 6 + [0.5, NAN] + [0.5] * 6, "lo": NAN, "hi": NAN},
            "n = 450 of 450 items; no value at embed; norm: no value at 1, 2, 3 and 2 more layers",
            id="gaps_that_differ",
        ),
        pytest.param({"value": 0.5, "lo": NAN, "hi": NAN}, "n = 450 of 450 items", id="no_gaps"),
    ],
)
def test_the_caption_says_what_was_used(changes, text: str) -> None:
    table = curves(layers=6, **changes)
    if "lo" in changes:
        table["hi"] = NAN
    assert words(alignment(table)) == text
    assert words(alignment(table, caption=False)) == ""


def test_one_flat_curve_can_be_drawn() -> None:
    low, high = alignment(curves(("norm",), layers=2, value=0.5, lo=NAN, hi=NAN)).axes[0].get_ylim()
    assert low < 0.5 < high


def test_axes_of_the_caller_are_used() -> None:
    fig = Figure(figsize=(7, 3), layout="constrained")
    left, right = fig.subplots(1, 2)
    assert alignment(curves(), final=0.4, ax=left) is fig
    assert left.get_lines()
    assert not right.get_lines()
    caption = left.texts[-1]
    assert caption.get_text().startswith("n = 450 of 450 items;")
    fig.draw_without_rendering()
    assert caption.get_window_extent().y1 < left.xaxis.label.get_window_extent().y0
    assert caption.get_window_extent().y0 >= 0
    assert caption.get_window_extent().x1 < right.get_window_extent().x0
    inner = Figure().subfigures(1, 2)[0]
    assert alignment(curves(), ax=inner.subplots()) is inner.figure


def test_settings_of_the_caller_neither_matter_nor_change() -> None:
    plain = io.BytesIO()
    alignment(curves()).savefig(plain, format="png")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        fig = alignment(curves())
        assert dict(matplotlib.rcParams) == before
        assert fig.axes[0].xaxis.label.get_fontsize() == 7.5
        assert to_hex(fig.axes[0].get_facecolor()) == "#ffffff"
        assert named(fig.axes[0])["norm lens"].get_linewidth() == 1.3


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        pytest.param(
            pd.DataFrame(columns=["lens"]),
            {},
            "the alignment figure needs a column 'layer'; the table has lens",
            id="missing_column",
        ),
        pytest.param(
            pd.DataFrame(),
            {},
            "the alignment figure needs a column 'lens'; the table has no columns",
            id="nothing",
        ),
        pytest.param(
            curves().iloc[:0],
            {},
            "the alignment figure needs at least one row, and the table is empty",
            id="empty",
        ),
        pytest.param(
            curves(),
            {"metric": "qwk"},
            "the alignment figure found no rows of the metric 'qwk'; the table has spearman",
            id="metric",
        ),
        pytest.param(
            curves(value=NAN),
            {},
            "the alignment figure found no finite spearman value to draw",
            id="all_nan",
        ),
        pytest.param(
            pd.concat([curves(), curves()]),
            {},
            "the alignment figure found several rows for lens norm, layer embed; "
            "select one criterion, split and metric first",
            id="doubled",
        ),
        pytest.param(
            curves(tuple("abcdef")),
            {},
            "the alignment figure can tell 5 further lenses apart, not 6",
            id="many_lenses",
        ),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(table, options, message: str) -> None:
    with pytest.raises(FigureError, match=f"^{re.escape(message)}$") as caught:
        alignment(table, **options)
    assert isinstance(caught.value, ProbesError)


@given(st.lists(st.floats(0, 1), max_size=3), st.floats(0.01, 0.3))
def test_names_are_moved_apart_in_order_and_only_where_needed(places: list[float], gap: float) -> None:
    spread = _spread(places, gap)
    order = np.argsort(places, kind="stable")
    moved = [spread[i] for i in order]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in spread)
    sparse = sorted(places)
    if all(b - a >= gap for a, b in pairwise(sparse)):
        assert spread == pytest.approx(places)


def test_numbers_are_short() -> None:
    assert [short_number(x) for x in (0.43, -0.08, 0, 1, 0.999, -0.996, 2.5)] == [
        *(".43", "-.08", ".00", "1.00", "1.00", "-1.00", "2.50")
    ]


# ---- weights


def test_one_panel_a_judge_with_bars_of_the_weights() -> None:
    table = weighing(lager=[0.2, 0.5, 0.3], ridge=[0.4, -0.7, NAN])
    fig = weights(table)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "lager (norm lens): simplex",
        "ridge (norm lens): signed",
    ]
    bars = [{round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches} for ax in fig.axes]
    assert bars == [{0: 0.2, 1: 0.5, 2: 0.3}, {0: 0.4, 1: -0.7}]


def test_whiskers_are_the_range_over_folds() -> None:
    table = weighing(ridge=[0.4, -0.7, 0.1])
    table.loc[2, ["lo", "hi"]] = NAN
    (whiskers,) = weights(table).axes[0].collections
    np.testing.assert_allclose(whiskers.get_segments(), [[[0, 0.39], [0, 0.42]], [[1, -0.71], [1, -0.68]]])


def test_negative_weights_are_told_by_hatching_as_well() -> None:
    bars = weights(weighing(ridge=[0.4, -0.7])).axes[0].patches
    assert [(bar.get_height() < 0, bool(bar.get_hatch())) for bar in bars] == [(False, False), (True, True)]


def test_every_panel_has_a_zero_line_and_the_last_one_the_axis_of_layers() -> None:
    fig = weights(weighing(a=[0.5, 0.5], b=[1, -1], c=[2, 3]))
    assert all(list(ax.get_lines()[0].get_ydata()) == [0, 0] for ax in fig.axes)
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "", "layer (residual state after this block)"]
    assert len({ax.get_xlim() for ax in fig.axes}) == 1
    assert [ax.get_ylabel() for ax in fig.axes] == ["weight"] * 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, 0.0], "simplex"),
        ([0.50004, 0.5], "simplex"),
        ([0.5, 0.6], "signed"),
        ([1.5, -0.5], "signed"),
    ],
)
def test_simplex_weights_are_told_from_signed_ones(values: list[float], kind: str) -> None:
    assert weights(weighing(j=values)).axes[0].get_title(loc="left") == f"j (norm lens): {kind}"


def test_the_caption_explains_what_is_there() -> None:
    simplex, signed = "simplex: no weight below 0, sum 1", "signed: weights of standardised logits"
    whiskers = "whiskers: range over folds"
    table = weighing(ridge=[1, -1], lager=[0.5, 0.5])
    assert words(weights(table)) == f"{simplex}; {signed}; {whiskers}"
    assert words(weights(table.assign(lo=table.weight, hi=table.weight))) == f"{simplex}; {signed}"
    assert words(weights(weighing(ridge=[1, -1]))) == f"{signed}; {whiskers}"
    assert words(weights(table, caption=False)) == ""


def test_one_judge_on_two_lenses_has_two_panels() -> None:
    table = pd.concat([weighing(ridge=[1, -1]), weighing(ridge=[2, -1]).assign(lens="raw")])
    assert [ax.get_title(loc="left") for ax in weights(table).axes] == [
        *("ridge (norm lens): signed", "ridge (raw lens): signed")
    ]


def test_titles_and_labels_of_many_panels_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    fig = weights(weighing(**{f"judge-{i}": list(rng.normal(size=81)) for i in range(6)}))
    texts = [text for ax in fig.axes for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label)]
    assert not overlaps(fig, [*texts, *fig.axes[-1].get_xticklabels(), fig._supxlabel])


def test_axes_of_the_caller_are_used_one_a_judge() -> None:
    fig = Figure(layout="constrained")
    axes = fig.subplots(2, 1)
    table = weighing(a=[0.5, 0.5], b=[1, -1])
    assert weights(table, ax=axes) is fig
    assert all(ax.patches for ax in axes)
    assert weights(table[table.judge == "a"], ax=Figure().subplots()).axes
    message = "the weights figure needs one axes a judge: 2 judges, 1 axes given"
    with pytest.raises(FigureError, match=f"^{message}$"):
        weights(table, ax=Figure().subplots())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(
            weighing(a=[1, 2]).drop(columns="hi"),
            "the weights figure needs a column 'hi'; the table has judge, lens, layer, layer_index, weight, lo",
            id="missing_column",
        ),
        pytest.param(
            weighing(a=[1]).iloc[:0],
            "the weights figure needs at least one row, and the table is empty",
            id="empty",
        ),
        pytest.param(
            weighing(a=[1, 2], b=[NAN, NAN]),
            "the weights figure found no finite weight of the judge 'b'",
            id="all_nan",
        ),
        pytest.param(
            pd.concat([weighing(a=[1, 2]), weighing(a=[1, 2])]),
            "the weights figure found several rows for judge a, lens norm, layer embed; "
            "select one criterion, split and metric first",
            id="doubled",
        ),
    ],
)
def test_weights_that_cannot_be_drawn_are_refused(table, message: str) -> None:
    with pytest.raises(FigureError, match=f"^{re.escape(message)}$"):
        weights(table)


# ---- files


def test_save_writes_every_format_and_makes_the_folder(tmp_path: Path) -> None:
    paths = save(alignment(curves()), tmp_path / "new" / "fig.v1")
    assert paths == tuple(tmp_path / "new" / f"fig.v1.{name}" for name in ("png", "pdf", "svg"))
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert b"<svg" in paths[2].read_bytes()
    assert matplotlib.image.imread(paths[0]).shape[1] == 680  # 3.4 inches at 200 dots


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    def bytes_of(fig: Figure, name: str) -> list[bytes]:
        return [path.read_bytes() for path in save(fig, tmp_path / name)]

    fig = alignment(curves(), final=0.4)
    first = bytes_of(fig, "first")
    assert bytes_of(fig, "again") == first
    with matplotlib.rc_context({"svg.hashsalt": None, "pdf.fonttype": 3, "font.size": 20, "savefig.dpi": 50}):
        assert bytes_of(alignment(curves(), final=0.4), "made_anew") == first
    bars = weights(weighing(a=[0.5, -0.5]))
    assert bytes_of(bars, "bars") == bytes_of(weights(weighing(a=[0.5, -0.5])), "bars_again")


def test_files_hold_their_fonts_and_no_date(tmp_path: Path) -> None:
    png, pdf, svg = (path.read_bytes() for path in save(alignment(curves()), tmp_path / "fig"))
    assert b"/FontFile2" in pdf  # TrueType, not the Type 3 that journals refuse
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert b"<text" not in svg  # letters are outlines, so that no font is needed
    assert b"dc:date" not in svg
    assert b"Software" not in png


def test_an_ending_that_names_a_format_is_taken_off(tmp_path: Path) -> None:
    fig = weights(weighing(a=[0.5, 0.5]))
    assert save(fig, str(tmp_path / "fig.png"), "png") == (tmp_path / "fig.png",)
    assert save(fig, tmp_path / "fig.pdf", ["svg"]) == (tmp_path / "fig.svg",)


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["png", "gif"], "cannot write a figure as 'gif'; use png, pdf or svg"),
        ([], "cannot write a figure as 'nothing'; use png, pdf or svg"),
    ],
)
def test_other_formats_are_refused_before_anything_is_written(formats, message: str, tmp_path: Path) -> None:
    with pytest.raises(FigureError, match=f"^{message}$"):
        save(weights(weighing(a=[0.5, 0.5])), tmp_path / "fig", formats)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "fig"
    with pytest.raises(FigureError) as caught:
        save(weights(weighing(a=[0.5, 0.5])), path, "png")
    assert str(caught.value).startswith(f"cannot write the figure {path}.png: ")
    assert "\n" not in str(caught.value)


def test_a_notebook_can_show_a_figure_without_pyplot() -> None:
    fig = alignment(curves())
    assert fig._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert fig.canvas.manager is None

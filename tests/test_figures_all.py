"""What holds for every figure: sizes, odd names, gaps, given axes, files; and what each one shows."""

from __future__ import annotations

import re
from functools import cache
from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from probes import figures
from probes.errors import FigureError
from probes.figures import tables
from probes.figures.lettering import _letters_of, _width, distinct, families, letters, wrap_small
from probes.figures.style import settled
from tests.fake_run import FakeRun

NAN = float("nan")
ODD = "判断 $x_{1}$ naïve\nwith a very, very long name of many words"
WORDS = "strongly disagree=1,disagree=2,neither agree nor disagree=3,agree=4,strongly agree=5"


def judges(n: int = 4, name: str = "judge") -> pd.DataFrame:
    gain = np.linspace(-0.3, 0.4, n) if n > 1 else np.array([0.2])
    return pd.DataFrame(
        {
            "judge": [f"{name} {k}" for k in range(n)],
            "labels_used": 360,
            "n_used": 440,
            "n_total": 450,
            "gain_over_final": gain,
            "gain_over_final_lo": gain - 0.12,
            "gain_over_final_hi": gain + 0.12,
        }
    )


def growing(n: int = 3, name: str = "judge", sizes=(10, 20, 50, 100, 300)) -> pd.DataFrame:
    rows = [(f"{name} {k}", size, 0.1 * k + size / 1000) for k in range(n) for size in sizes]
    table = pd.DataFrame(rows, columns=["judge", "n_labels", "value"])
    return table.assign(lo=table["value"] - 0.1, hi=table["value"] + 0.1, n_test=200)


def matrix(n: int = 3, name: str = "set") -> pd.DataFrame:
    rows = [(f"{name} {a}", f"{name} {b}", np.cos(a + 2 * b)) for a in range(n) for b in range(n)]
    return pd.DataFrame(rows, columns=["fitted_on", "tested_on", "value"]).assign(n_test=99, final=0.1)


def curves(n: int = 2, layers: int = 6, name: str = "model") -> pd.DataFrame:
    rows = []
    for k in range(n):
        for index in range(layers + k + 1):
            value = NAN if index == 0 else 0.1 * k + index / 100
            layer = str(index) if index else "embed"
            rows.append((f"{name} {k}", "norm", layer, index, "spearman", value, value - 0.1, value + 0.1, 90, 100))
    columns = ["run", "lens", "layer", "layer_index", "metric", "value", "lo", "hi", "n_used", "n_total"]
    return pd.DataFrame(rows, columns=columns)


def renamed(run: FakeRun) -> FakeRun:
    run.ids = [f"{k} {ODD}" for k in range(len(run.ids))]
    return run


def mass(layers: int) -> pd.DataFrame:
    value = np.linspace(0, 1, layers + 1)
    frame = {"layer": ["embed", *map(str, range(1, layers + 1))], "layer_index": range(layers + 1), "value": value}
    return pd.DataFrame(frame).assign(lo=value / 2, hi=value, n_used=9, n_total=10)


@cache
def cases() -> dict:
    """Figures by name: one function and the tables that it must draw, by what is odd about them."""
    usual, deep, words, two = FakeRun(40, 6), renamed(FakeRun(31, 80, scale="0..10")), FakeRun(12, 2, scale=WORDS), None
    two, lone, bare = FakeRun(60, 3, scale="yes/no"), renamed(FakeRun(1, 2)), FakeRun(7, 4)
    bare.human_value[:], bare.human[:] = NAN, NAN
    bare.logits["norm"][2] = NAN
    runs = {"usual": usual, "deep": deep, "words": words, "two": two, "lone": lone, "bare": bare}
    gaps = judges(5)
    gaps.loc[0, "gain_over_final"], gaps.loc[1, "gain_over_final_lo"] = NAN, NAN
    holes = matrix(4)
    holes.loc[3, "value"] = NAN
    return {
        "alignment": (
            figures.alignment,
            {"usual": curves(), "odd": curves(8, name=ODD), "deep": curves(3, 80), "small": curves(2, 2)},
        ),
        "score_map": (figures.score_map, {name: tables.layer_scores(run) for name, run in runs.items()}),
        "distributions": (
            figures.distributions,
            {name: tables.score_distributions(run) for name, run in runs.items()},
        ),
        "reliability": (
            figures.reliability,
            {
                "usual": tables.reliability_bins(usual, ["final", "uniform@norm", "spectral-ordinal"]),
                "two": tables.reliability_bins(two, ["final"]),
                "odd": tables.reliability_bins(two, ["final"]).assign(judge=ODD),
            },
        ),
        "forest": (
            figures.forest,
            {"usual": judges(), "one": judges(1), "many": judges(40), "gaps": gaps}
            | {"odd": pd.concat([judges(3, ODD).assign(run=ODD + k) for k in "ab"])},
        ),
        "similarity": (
            figures.similarity,
            {name: tables.layer_similarity(run, centred=True) for name, run in runs.items() if name != "lone"}
            | {"plain": tables.layer_similarity(lone)},
        ),
        "learning_curve": (
            figures.learning_curve,
            {"usual": growing(), "one": growing(1, sizes=(10,)), "odd": growing(8, ODD)}
            | {"gaps": growing().assign(value=lambda t: t["value"].where(t["n_labels"] > 10))},
        ),
        "transfer": (
            figures.transfer,
            {"usual": matrix(), "one": matrix(1), "many": matrix(14, ODD), "gaps": holes},
        ),
        "mass": (
            figures.mass,
            {"usual": mass(6), "deep": mass(80), "last": mass(6).assign(value=[NAN] * 5 + [0.2, 0.3])},
        ),
        "item": (
            figures.item,
            {name: tables.item_distributions(run, run.ids[0]) for name, run in runs.items()},
        ),
    }


NAMES = "alignment score_map distributions reliability forest similarity learning_curve transfer mass item".split()
EVERY = [(name, case) for name in NAMES for case in cases()[name][1]]


def texts(fig: Figure) -> list[Text]:
    """Everything written in a figure that is seen."""
    fig.draw_without_rendering()
    found = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    spare = set()
    for ax in fig.findobj(matplotlib.axes.Axes):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    spare |= {tick.label1, tick.label2}
    return [text for text in found if text not in spare]


def shrunk(text: Text):
    """Corners of a text's box, which is not upright where the text is turned."""
    angle = text.get_rotation() % 180
    box = text.get_window_extent()
    return None if angle not in (0, 90) else box.padded(-1)


@pytest.mark.parametrize(("name", "case"), EVERY)
def test_nothing_that_is_written_overlaps_or_leaves_the_figure(name, case):
    draw, of = cases()[name]
    fig = draw(of[case])
    boxes = [(text.get_text(), box) for text in texts(fig) if (box := shrunk(text)) is not None]
    width, height = fig.get_size_inches() * fig.dpi
    for text, box in boxes:
        assert box.x0 >= -2, text
        assert box.y0 >= -2, text
        assert box.x1 <= width + 2, text
        assert box.y1 <= height + 2, text
    clashes = [(a, b) for (a, one), (b, two) in combinations(boxes, 2) if one.overlaps(two)]
    assert not clashes


def long_names() -> dict:
    """Every figure with texts that are longer than it is wide."""
    run = FakeRun(60, 30, scale=WORDS.replace("agree", "agree-with-a-word-that-has-no-end"))
    run.ids = [f"{k}-{'x' * 70}" for k in range(60)]
    prompt = "Summarise: 'wwwwwwwwww' " + "WWWW mmmm (illi) naïve judgement, " * 40 + "y" * 300
    table = cases()
    weighed = pd.DataFrame({"judge": "J" * 60, "lens": "lens" * 9, "layer_index": range(31), "weight": 1 / 31})
    weighed = weighed.assign(layer=weighed["layer_index"].astype(str), lo=0.0, hi=0.1)
    reference = judges(9, "J" * 60).rename(columns=lambda name: name.replace("gain_over_final", "difference"))
    layers = curves(1, 30).drop(columns="run").assign(lens="L" * 60, n_used=range(1000, 1031), n_total=123456)
    return {
        "alignment": figures.alignment(curves(8, 30, name="M" * 60), final=0.2, human=0.21, attainable=0.22),
        "one-alignment": figures.alignment(layers, final=0.2, human=0.21, attainable=0.22, metric="spearman"),
        "weights": figures.weights(weighed),
        "forest": figures.forest(reference.assign(difference_to="R" * 60, run="M" * 60)),
        "score-map": figures.score_map(tables.layer_scores(run), limits=(2.9, 3.1)),
        "few-items": figures.score_map(tables.layer_scores(run).iloc[: 31 * 9]),
        "distributions": figures.distributions(tables.score_distributions(run)),
        "reliability": figures.reliability(
            pd.concat([tables.reliability_bins(run, ["final"]).assign(judge=str(k) + "J" * 60) for k in range(8)])
        ),
        "similarity": figures.similarity(tables.layer_similarity(run, centred=True)),
        "learning-curve": figures.learning_curve(growing(8, "J" * 60)),
        "transfer": figures.transfer(matrix(5, "S" * 60)),
        "mass": figures.mass(table["mass"][1]["last"]),
        "item": figures.item(tables.item_distributions(run, run.ids[0]), prompt=prompt, human=[1, 2, 5]),
    }


@pytest.mark.parametrize("dpi", [100, 150, 200])
def test_no_text_leaves_the_canvas_however_long_it_is(dpi):
    for name, fig in long_names().items():
        fig.set_dpi(dpi)
        with settled(fig):
            width, height = fig.get_size_inches() * dpi
            for text in texts(fig):
                box = text.get_window_extent()
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
                assert inside, (name, text.get_text(), box, width, height)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_is_saved(name, tmp_path):
    draw, of = cases()[name]
    shown, saved = draw(of["usual"]), draw(of["usual"])
    for fig in (shown, saved):
        fig.set_dpi(200)
    assert shown._repr_png_() == figures.save(saved, tmp_path / "saved", "png")[0].read_bytes()
    places = [ax.get_position().bounds for ax in draw(of["usual"]).axes]
    assert places != [ax.get_position().bounds for ax in shown.axes]  # there was something to settle
    shown.savefig(tmp_path / "own.png", dpi=200, metadata={"Software": None})
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "saved.png").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_given_axes_are_drawn_into_and_nothing_else_changes(name):
    draw, of = cases()[name]
    table = of["usual"]
    needed = 6 if name == "distributions" else 1
    fig = Figure(figsize=(9, 4), layout="constrained")
    grid = fig.subplots(1, needed + 1)
    before = dict(matplotlib.rcParams)
    assert draw(table, ax=grid[:needed] if needed > 1 else grid[0]) is fig
    assert dict(matplotlib.rcParams) == before
    assert all(ax.has_data() for ax in grid[:needed])
    assert not grid[-1].has_data()
    assert plt.get_fignums() == []
    assert len(fig.axes) == needed + 1  # colour bars and strips are inside
    fig.draw_without_rendering()
    plain = Figure().subplots()
    assert draw(table, ax=plain if needed == 1 else Figure().subplots(2, 3), caption=False) is not None


@pytest.mark.parametrize("name", NAMES)
def test_the_caller_s_table_and_settings_do_not_matter_and_bytes_are_the_same(name, tmp_path):
    draw, of = cases()[name]
    table = of["usual"]
    kept = table.copy(deep=True)
    first = [path.read_bytes() for path in figures.save(draw(table), tmp_path / "a")]
    pd.testing.assert_frame_equal(table, kept)
    with matplotlib.rc_context({"font.size": 30, "image.cmap": "jet", "svg.hashsalt": None, "axes.grid": True}):
        again = figures.save(draw(table), tmp_path / "b")
    assert [path.read_bytes() for path in again] == first
    assert b"/Type3" not in first[1]
    assert b"<text" not in first[2]


@pytest.mark.parametrize("name", NAMES)
def test_tables_without_columns_rows_or_numbers_are_refused(name):
    draw, of = cases()[name]
    table, title = of["usual"], name.replace("_", "-")
    with pytest.raises(FigureError, match=f"^the {title} figure needs a column "):
        draw(table[[]])
    with pytest.raises(FigureError, match=f"^the {title} figure needs at least one row"):
        draw(table.iloc[:0])
    with pytest.raises(FigureError, match=f"^the {title} figure found several rows for "):
        draw(pd.concat([table, table]))
    numbers = [c for c in ("value", "score", "share", "confidence", "cosine", "prob", "gain_over_final") if c in table]
    with pytest.raises(FigureError, match=f"^the {title} figure found no finite "):
        draw(table.assign(**dict.fromkeys(numbers, NAN)))


@pytest.mark.parametrize(("draw", "table"), [(figures.learning_curve, growing(9)), (figures.alignment, curves(9))])
def test_more_lines_than_can_be_told_apart_are_refused(draw, table):
    with pytest.raises(FigureError, match="can tell 8 lines apart, not 9; select some first"):
        draw(table)


# ---- what each shows


def said(fig: Figure) -> str:
    return fig._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]


def test_models_share_an_axis_of_relative_depth():
    ax = figures.alignment(curves(2, 4)).axes[0]
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), np.arange(5) / 4)
    np.testing.assert_allclose(ax.get_lines()[1].get_xdata(), np.arange(6) / 5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["model 0", "model 1"]
    assert said(figures.alignment(curves(2, 4))).startswith("n = 90 of 100 items; norm lens; bands: ")
    with pytest.raises(FigureError, match="cannot share layer numbers between these runs; draw it with depth=True"):
        figures.alignment(
            curves(2, 4)
            .replace({"layer": {"2": "3"}})
            .query("run == 'model 1' or layer != 'x'")
            .assign(layer=lambda t: t["layer"] + t["run"].str[-1]),
            depth=False,
        )
    some = curves(1, 10).query("layer_index in (0, 5, 10)").assign(layer_index=[0, 1, 2])  # a selection of layers
    np.testing.assert_allclose(figures.alignment(some, depth=True).axes[0].get_lines()[0].get_xdata(), [0, 0.5, 1])


def test_items_are_ordered_by_human_score_and_the_unrated_are_below():
    run = FakeRun(5, 2)
    run.human_value[:] = [3, 1, NAN, 5, 1]
    fig = figures.score_map(tables.layer_scores(run))
    (main,) = fig.axes
    strip = main.child_axes[0]
    assert [text.get_text() for text in strip.get_yticklabels()] == ["i2", "i1", "i4", "i0", "i3"]
    np.testing.assert_array_equal(strip.images[0].get_array().filled(NAN)[:, 0], [NAN, 1, 1, 3, 5])
    shown = main.images[0].get_array()
    table = tables.layer_scores(run).pivot(index="item", columns="layer_index", values="score")
    np.testing.assert_allclose(shown, table.loc[["i2", "i1", "i4", "i0", "i3"]])
    assert main.images[0].get_clim() == strip.images[0].get_clim()
    assert said(fig) == "n = 5 of 5 items; 1 without a human score at the bottom; hatched: no value"


def test_limits_are_of_the_layers_and_the_raters_keep_what_they_say():
    run = FakeRun(40, 3)
    table = tables.layer_scores(run)
    fig = figures.score_map(table, limits=(2.5, 3.5))
    main, strip = fig.axes[0].images[0], fig.axes[0].child_axes[0].images[0]
    assert main.get_clim() == (2.5, 3.5)
    assert strip.get_clim() == (run.human_value.min(), run.human_value.max())
    assert main.colorbar.extend == "both"
    low, high = run.human_value.min(), run.human_value.max()
    assert f"the strip has colours of its own, from {low:g} (dark) to {high:g}" in said(fig)
    fig = figures.score_map(table, limits=(1, 5))
    main, strip = fig.axes[0].images[0], fig.axes[0].child_axes[0].images[0]
    assert main.get_clim() == strip.get_clim() == (1, 5)
    assert main.colorbar.extend == "neither"
    assert "strip" not in said(fig)
    assert figures.score_map(table, limits=(0, 3)).axes[0].images[0].colorbar.extend == "max"


def test_a_panel_has_the_layers_bars_and_the_raters_outline():
    table = tables.score_distributions(FakeRun(30, 4))
    fig = figures.distributions(table, layers=["embed", 3])
    rows = table[table["layer"] == "3"]
    assert [ax.get_title(loc="left").split(",")[0] for ax in fig.axes] == ["embed", "layer 3"]
    bars, outline = fig.axes[1].patches[:5], fig.axes[1].patches[5]
    np.testing.assert_allclose([bar.get_height() for bar in bars], rows["share"])
    np.testing.assert_allclose(outline.get_data().values, rows["raters"])
    assert f"KL {rows['kl'].iloc[0]:.2f}".replace("0.", ".") in fig.axes[1].get_title(loc="left")
    with pytest.raises(FigureError, match="found no layer '9'; the table has embed, 1 .. 4"):
        figures.distributions(table, layers=[9])
    with pytest.raises(FigureError, match="needs one axes a layer: 1 layers, 2 axes given"):
        figures.distributions(table, layers=[1], ax=Figure().subplots(1, 2))


def test_points_of_the_reliability_are_those_of_the_table():
    table = tables.reliability_bins(FakeRun(60, 3), ["final"])
    ax = figures.reliability(table).axes[0]
    np.testing.assert_allclose(ax.get_lines()[1].get_xydata(), table[["confidence", "accuracy"]])
    counts = ax.child_axes[0].patches[0].get_data().values
    np.testing.assert_array_equal(counts[counts > 0], table["count"])
    assert ax.get_legend().get_texts()[0].get_text().startswith("final, ECE .")


def test_the_forest_says_what_is_sure_and_what_is_not():
    table = pd.DataFrame(
        [
            *(("a", 0.3, 0.1, 0.5), ("b", -0.3, -0.5, -0.1), ("c", 0.01, -0.05, 0.07), ("d", 0.1, -0.05, 0.25)),
            *(("e", 0.0, 0.0, 0.0), ("f", NAN, NAN, NAN)),
        ],
        columns=["judge", "difference", "difference_lo", "difference_hi"],
    ).assign(labels_used=5, n_used=9, n_total=9, difference_to="m:final")
    fig = figures.forest(table)
    ax = fig.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "c", "d", "a"]
    of = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert of["above 0"] == [[0.3, 3]]
    assert of["below 0"] == [[-0.3, 0]]
    assert of["holds 0, inside ±.1"] == [[0.01, 1]]
    assert of["inconclusive: to ±.1 or beyond"] == [[0.1, 2]]
    assert "without a difference: e, f" in said(fig)
    assert ax.get_xlabel().endswith("minus that of m:final")
    wider = figures.forest(table, margin=0.3).axes[0]
    assert not any(line.get_label().startswith("inconclusive") for line in wider.get_lines())
    assert [text.get_text() for text in ax.texts] == ["5"] * 4 + ["labels"]


def test_the_map_of_layers_is_the_table_whatever_its_order():
    table = tables.layer_similarity(FakeRun(9, 3))
    shown = figures.similarity(table.sample(frac=1, random_state=0)).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, table.pivot(index="layer_index", columns="other_index", values="cosine"))
    both = pd.concat([table, tables.layer_similarity(FakeRun(9, 3), centred=True)])
    with pytest.raises(FigureError, match="found both centred and uncentred cosines"):
        figures.similarity(both)


def test_judges_stand_side_by_side_in_a_learning_curve():
    ax = figures.learning_curve(growing(2)).axes[0]
    first, second = (line.get_xydata() for line in ax.get_lines())
    np.testing.assert_allclose(second[:, 1], growing(2).query("judge == 'judge 1'")["value"])
    assert (first[:, 0] < second[:, 0]).all()
    assert (second[:-1, 0] < first[1:, 0]).all()
    np.testing.assert_allclose(np.sqrt(first[:, 0] * second[:, 0]), [10, 20, 50, 100, 300])


def test_cells_of_the_transfer_hold_their_numbers_and_own_sets_a_frame():
    fig = figures.transfer(matrix(3))
    ax = fig.axes[0]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells[1, 3] == ".10"  # the judge without labels, on top
    assert cells[0, 2] == "1.00"
    assert cells[1, 0] == f"{np.cos(4):.2f}".replace("-0.", "-.")
    frames = [patch.get_xy() for patch in ax.patches]
    assert frames == [(-0.5, 1.5), (0.5, 0.5), (1.5, -0.5)]


def test_the_mass_of_one_layer_is_no_figure_and_gaps_are_said():
    with pytest.raises(FigureError) as error:
        figures.mass(mass(6).assign(value=[NAN] * 6 + [0.3]))
    assert str(error.value) == (
        "only the mass of layer 6 is known, which is no curve: capture with mass=True (--mass) for all layers"
    )
    assert said(figures.mass(mass(6).assign(value=[NAN, *[0.2] * 6]))).endswith("no value at embed")


def test_the_item_figure_marks_scores_and_says_what_it_cut():
    run = FakeRun(5, 3)
    table = tables.item_distributions(run, "i2")
    fig = figures.item(table, prompt="word " * 200, human=[1, NAN, 3.5])
    ax = fig.axes[0]
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(lines["expected"].get_ydata(), table["score"].to_numpy()[::5] - 1)
    np.testing.assert_allclose(lines["raters"].get_ydata(), [0, 2.5])
    assert lines["final"].get_ydata()[0] == pytest.approx(table["score"].iloc[-1] - 1)
    np.testing.assert_allclose(ax.images[0].get_array().T.ravel(), table["prob"])
    assert "raters' mean 2.25 (n = 2) Prompt: word word" in said(fig)
    assert said(fig).endswith("word … (first 479 of 999 letters)")
    with pytest.raises(FigureError, match="needs one item, and the table has 2"):
        figures.item(pd.concat([table, tables.item_distributions(run, "i3")]))


# ---- text


def test_letters_are_drawn_as_they_are_cut_or_replaced():
    assert letters("a $x$\n b") == r"a \$x\$ b"
    assert letters("naïve 𓀀𓀁") == "naïve □□"  # hieroglyphs, which hardly any machine has a font for
    assert letters("abcdefgh", 5) == "abcd…"
    assert distinct(["long name a", "long name b", "c", "long name a"], 6) == [
        *("long… (1)", "long… (2)", "c", "long… (1)")
    ]


@pytest.fixture
def squares(tmp_path):
    """A font that has squares for two Chinese letters and a smiley, which this machine gets for a while."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    font, pen = FontBuilder(1000), TTGlyphPen(None)
    names = {ord(letter): f"u{ord(letter):X}" for letter in "判断🙂"}
    for draw, corner in zip([pen.moveTo, *[pen.lineTo] * 3], [(0, 0), (0, 900), (900, 900), (900, 0)], strict=True):
        draw(corner)
    pen.closePath()
    square = pen.glyph()
    font.setupGlyphOrder([".notdef", *names.values()])
    font.setupCharacterMap(names)
    font.setupGlyf(dict.fromkeys([".notdef", *names.values()], square))
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Aaa Squares", "styleName": "Regular", "psName": "Squares"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(tmp_path / "squares.ttf")
    known = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(str(tmp_path / "squares.ttf"))
    yield "Aaa Squares"
    font_manager.fontManager.ttflist[:] = known
    _letters_of.cache_clear()


def test_letters_that_another_font_has_are_drawn_in_it(squares, tmp_path):
    judge = "判断 🙂 naïve ☃\U000e0100 𓀀"
    assert letters(judge) == "判断 🙂 naïve ☃ □"
    assert families([judges()]) == ["DejaVu Sans"]
    table = judges(2).assign(judge=[judge, "plain"])
    assert families([table]) == ["DejaVu Sans", squares]
    fig = figures.forest(table)
    assert fig.axes[0].get_yticklabels()[0].get_text() == "判断 🙂 naïve ☃ □"
    assert "; □: a letter that no font on this machine has" in said(fig)
    first = [path.read_bytes() for path in figures.save(fig, tmp_path / "a")]
    again = [path.read_bytes() for path in figures.save(figures.forest(table), tmp_path / "b")]
    assert first == again
    assert b"Squares" in first[1]  # the font is in the PDF
    prompt = "判断" * 300
    fig = figures.item(tables.item_distributions(FakeRun(5, 3), "i2"), prompt=prompt)
    with settled(fig):
        box = fig._supxlabel.get_window_extent()
    assert "判断判断" in said(fig)
    assert "□" not in said(fig)
    assert box.x1 <= fig.get_size_inches()[0] * fig.dpi


def test_without_such_a_font_there_is_one_note_and_no_warning(tmp_path):
    fig = figures.forest(judges(2, "𓀀 𓀁"))
    figures.save(fig, tmp_path / "fig")
    assert fig.axes[0].get_yticklabels()[0].get_text() == "□ □ 0"
    assert said(fig).count("□: a letter that no font on this machine has") == 1
    assert "□" not in said(figures.forest(judges(2)))
    fig = figures.item(tables.item_distributions(FakeRun(5, 3), "i2"), prompt="𓀀")
    assert said(fig).split("Prompt")[0].endswith("; □: a letter that no font on this machine has ")


def test_small_print_is_wrapped_by_what_its_letters_take():
    for text in ("W" * 300, "i" * 300, "some words of a prompt " * 20, "□ x " * 90):
        lines = wrap_small(text, 3.4).split("\n")
        assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
        widths = [_width(line, ("DejaVu Sans",)) for line in lines]
        assert all(width <= 3.4 for width in widths)
        assert all(width > 3.4 * 0.75 for width in widths[:-1])

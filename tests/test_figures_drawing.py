"""``probes plot``: every figure that a run allows, the others with the reason why not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.text import Text

import probes
from probes import figures
from probes.cli import main
from probes.errors import FigureError
from probes.figures.drawing import FIGURES, Material, draw, of_comparison
from probes.items import Item, Items
from tests.fake_run import FakeRun
from tests.valid_run import choice_table, write_valid

FAST = ["--judge", "final", "--judge", "slope-ridge"]
DEPTH = ["--criterion", "depth"]


def run(*arguments) -> int:
    try:
        main(["--quiet", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run of two criteria, with residuals and the mass of all layers."""
    return write_valid(tmp_path_factory.mktemp("drawing") / "run.h5", n_items=60)


@pytest.fixture(scope="module")
def drawn(path):
    """The folder in which everything is drawn from it."""
    out = path.parent / "all"
    assert run("plot", path, "--figure", "all", *FAST, *DEPTH, "--out", out, "--format", "png") == 0
    return out


def test_all_draws_every_figure(drawn):
    names = [*FIGURES, "similarity-centred"]  # transfer is between the criteria, whichever is looked at
    assert sorted(file.name for file in drawn.iterdir()) == sorted(f"{name}.png" for name in names)


def test_the_same_command_writes_the_same_bytes(path, drawn):
    some = [*("--figure", "forest", "--figure", "score-map"), *("--figure", "mass", "--figure", "item")]
    out = path.parent / "again"
    assert run("plot", path, *some, *FAST, *DEPTH, "--out", out, "--format", "png") == 0
    assert len(list(out.iterdir())) == 4
    for file in out.iterdir():
        assert file.read_bytes() == (drawn / file.name).read_bytes(), file.name


def test_what_cannot_be_drawn_is_skipped_with_one_line_each(tmp_path, capsys):
    bare = write_valid(tmp_path / "bare.h5", n_items=4, extras=(), residual_dtype="none")
    assert run("plot", bare, "--figure", "all", "--out", tmp_path / "out", "--format", "png") == 0
    out, err = capsys.readouterr()
    skipped = dict(line.removeprefix("skipped ").split(": ", 1) for line in err.splitlines())
    assert set(skipped) == {
        *("alignment", "weights", "forest", "reliability", "similarity", "learning-curve", "transfer", "mass")
    }
    assert skipped["mass"].startswith("only the mass of layer 3 is known, which is no curve: capture with")
    assert skipped["similarity"].endswith("holds no residual states of items: capture with residuals, and no pairs")
    assert [name.rsplit("/", 1)[1] for name in out.split()] == [
        *("score-map-clarity.png", "score-map-depth.png", "distributions-clarity.png", "distributions-depth.png"),
        "item.png",
    ]


def test_of_free_text_every_figure_is_drawn_or_has_a_reason(tmp_path, capsys):
    items = [Item(id=f"i{k}", fields={"response": "x"}, choices=("4", "four"), choice_scores=(1, 1)) for k in range(6)]
    free = write_valid(tmp_path / "free.h5", "choices", items=Items(items), choices=choice_table(Items(items)))
    assert run("plot", free, "--figure", "all", "--out", tmp_path / "out", "--format", "png") == 0
    out, err = capsys.readouterr()
    drawn = {line.rsplit("/", 1)[1].removesuffix(".png") for line in out.split()} - {"similarity-centred"}
    skipped = dict(line.removeprefix("skipped ").split(": ", 1) for line in err.splitlines())
    assert drawn | set(skipped) == set(FIGURES)
    assert not drawn & set(skipped)
    for name in ("alignment", "weights", "forest", "reliability"):
        assert skipped[name].startswith("there is nothing to choose between: answers are free text, which `probes comp")
    assert run("plot", free, "--out", tmp_path / "out") == 2
    assert "error: cannot draw alignment: there is nothing to choose between" in capsys.readouterr().err


def test_captions_name_the_criterion_or_task(path):
    with probes.open_run(path) as opened:
        found = probes.compare(opened, ["final", "uniform", "slope-ridge"], criterion="depth", repeats=1, resamples=100)
        material = Material({"run": opened}, ["final", "uniform", "slope-ridge"], criterion="depth")
        made = {name: of_comparison(found, name, "depth") for name in ("alignment", "weights", "forest")}
        made |= {name: next(FIGURES[name](material))[1] for name in ("score-map", "distributions", "reliability")}
        made["learning-curve"] = figures.learning_curve(
            probes.learning_curve(opened, ["final"], sizes=[10], draws=2, criterion="depth", resamples=100)
        )
    for name, figure in made.items():
        (caption,) = [text.get_text() for text in figure.findobj(Text) if text.get_text().startswith("depth: ")]
        assert caption.count("depth") == 1, name


def test_a_figure_that_was_asked_for_by_name_must_be_drawn(path, tmp_path, capsys):
    bare = write_valid(tmp_path / "bare.h5", n_items=4, residual_dtype="none")
    assert run("plot", bare, "--figure", "similarity", "--out", tmp_path) == 2
    expected = f"error: cannot draw similarity: {bare} holds no residual states of items: capture with residuals"
    assert capsys.readouterr().err.startswith(expected)
    assert run("plot", path, path.parent / "again.h5", "--figure", "mass", "--out", tmp_path) == 2
    assert run("plot", path, "--figure", "item", "--item", "nobody", "--out", tmp_path) == 2
    assert "cannot draw item" in capsys.readouterr().err


def test_figures_of_one_run_are_not_drawn_of_several(path, tmp_path, capsys):
    other = write_valid(tmp_path / "other.h5", n_items=4)
    assert run("plot", path, other, "--figure", "mass", "--out", tmp_path / "out") == 2
    assert "cannot draw mass: it is about one run: draw it from each on its own" in capsys.readouterr().err


def test_items_are_drawn_by_name_whatever_the_name_is(tmp_path):
    fake = FakeRun(3, 2)
    fake.ids = ["a/b: c", "a/b? c", "../.."]
    found = list(draw(Material({"run": fake}, items=fake.ids), ["item"], tmp_path, ["png"]))
    names = [file.name for one in found for file in one.paths]
    assert names == ["item-a-b-c.png", "item-a-b-c-2.png", "item.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)


def test_runs_without_scores_say_so_at_once(tmp_path):
    fake = FakeRun(30, 2)
    fake.human[:], fake.human_value[:] = np.nan, np.nan
    reasons = {
        one.name: one.reason for one in draw(Material({"run": fake}), list(FIGURES), tmp_path, ("png",), skip=True)
    }
    assert {name for name, reason in reasons.items() if reason == "the run has no human scores"} == {
        *("alignment", "weights", "forest", "distributions", "reliability", "learning-curve", "transfer")
    }
    with pytest.raises(FigureError, match="^no figure 'pie': choose one of alignment, .*, item, or all$"):
        list(draw(Material({"run": fake}), ["pie"], tmp_path))


def test_drawing_needs_neither_torch_nor_pyplot(path, tmp_path):
    import subprocess

    code = (
        "import sys; from probes.cli import main\n"
        f"main(['plot', {str(path)!r}, '--figure', 'similarity', '--figure', 'item', '--out', {str(tmp_path)!r}])\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

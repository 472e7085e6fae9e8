"""What objects look like in a notebook: short, right, and harmless whatever the text of an item is."""

from __future__ import annotations

import html
import importlib
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import probes
from probes import reprs
from probes.comparing import compare
from probes.items import Item, Items
from probes.progress import progress
from probes.scale import Scale
from tests.fake_run import FakeRun
from tests.valid_run import write_valid

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


class Tags(HTMLParser):
    """Every tag with its attributes, and the texts of the cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attributes)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def checked(page: str) -> list[str]:
    """Texts of a page that holds nothing but tables, and is small."""
    found = Tags(page)
    assert found.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert found.attributes <= {"style"}
    assert len(page) < 20_000
    return found.texts


@pytest.fixture(scope="module")
def found():
    return compare(FakeRun(), ["final", "slope-ridge"], folds=3, repeats=1, resamples=50)


def test_items_show_their_texts_and_scores():
    items = Items([Item(f"i{k}", {"response": f"text {k}"}, group="g", human=(1, 2, np.nan)) for k in range(7)])
    texts = checked(items._repr_html_())
    assert texts[:2] == ["7 items in 1 groups, 7 with human scores, from items", "id"]
    assert texts[5:11] == ["raters", "i0", "text 0", "g", "1.50", "2"]
    assert texts[-1] == "and 2 more"


def test_items_without_scores_say_so():
    texts = checked(Items([Item("a", {"response": "x"})])._repr_html_())
    assert texts[-2:] == ["--", "0"]


@pytest.mark.parametrize("place", ["id", "field", "name", "group", "criterion", "source"])
def test_hostile_text_stays_text(place):
    item = Item(
        id=HOSTILE if place == "id" else "i",
        fields={HOSTILE if place == "name" else "response": HOSTILE if place == "field" else "x"},
        group=HOSTILE if place == "group" else "",
        criterion=HOSTILE if place == "criterion" else "",
    )
    page = Items([item], source=HOSTILE if place == "source" else "items")._repr_html_()
    assert any(HOSTILE in text for text in checked(page))


def test_long_texts_are_cut_and_stay_on_one_line():
    assert reprs.short("a\n b\t c") == "a b c"
    assert reprs.short("x" * 80) == "x" * 80
    assert reprs.short("x" * 81) == "x" * 77 + "..."
    # Cut even where what is left of its first part is short.
    assert reprs.short("a" + " " * 1000 + "b") == "a..."
    page = Items([Item("i", {"response": "y" * 100_000})])._repr_html_()
    assert len(page) < 2_000


def test_a_run_says_what_it_holds(tmp_path):
    write_valid(tmp_path / "run.h5")
    with probes.open_run(tmp_path / "run.h5") as run:
        texts = checked(run._repr_html_())
        known = dict(zip(texts[1::2], texts[2::2], strict=True))
        assert texts[0] == "Run run.h5"
        assert known["judge"] == run.judge_name
        assert known["layers"] == "4: embed .. 3"
        assert known["residuals"].endswith("8 wide")
        used = int((run.status == 0).sum())
        assert known["readings"].startswith(f"{used} of {len(run.status)} captured")
        assert "state" not in known
        late = checked(run.select(layers=["2", "3"])._repr_html_())
        assert dict(zip(late[1::2], late[2::2], strict=True))["layers"] == "2: 2 .. 3"


def test_a_comparison_is_its_table_with_the_protocol_below(found):
    texts = checked(found._repr_html_())
    assert texts[0] == "Comparison of 2 judges"
    cell = "{spearman:.2f} [{spearman_lo:.2f}, {spearman_hi:.2f}]".format(**found.table.iloc[1]).replace("0.", ".")
    assert cell in texts
    assert found.footnote in texts
    assert repr(found) == f"Comparison(2 rows, 120 items, criteria: (none); {len(found.warnings)} notes)"


def test_notes_of_a_comparison_are_shown_whole_and_escaped(found):
    note = HOSTILE + " and so on" * 40
    page = replace(found, warnings=[note])._repr_html_()
    assert f"Note: {note}" in checked(page)


def test_a_fitted_judge_shows_what_it_is(found):
    judge = found.judges["slope-ridge"]
    texts = checked(judge._repr_html_())
    known = dict(zip(texts[1:-1:2], texts[2:-1:2], strict=True))
    assert texts[0] == "Fitted judge slope-ridge"
    assert known["fitted on"] == "120 labelled items"
    assert known["spearman"] == "{spearman:.2f} [{spearman_lo:.2f}, {spearman_hi:.2f}]".format(**judge.metrics)
    assert "held-out" in texts[-1]
    assert repr(judge) == "FittedJudge(slope-ridge@norm: fitted on 120 items, model model)"
    assert "needs no labels" in repr(found.judges["final"])


def test_a_judge_that_was_fit_alone_does_not_claim_held_out_items():
    judge = probes.fit(FakeRun(), "slope-ridge")
    page = judge._repr_html_()
    checked(page)
    assert "in sample spearman" in page
    assert "held-out" not in page


def test_hostile_names_in_a_fitted_judge(found):
    judge = replace(found.judges["slope-ridge"], origin={"model": HOSTILE}, criterion=HOSTILE)
    assert checked(judge._repr_html_()).count(HOSTILE) == 2


def test_a_scale_shows_labels_and_values():
    texts = checked(Scale.parse("bad=1,good=3", human_range="0..10")._repr_html_())
    assert texts == ["Scale bad=1,good=3", "label bad", "1", "label good", "3", "human scores", "0 to 10"]
    assert html.escape("<b>") in Scale.parse("<b>=1,c=2")._repr_html_()


def test_a_judge_is_one_line_and_a_table(booted):
    from probes.judge import Judge

    loaded = booted("llama")
    judge = Judge(loaded.bridge, loaded.tokenizer, probes.load_template("words"), Scale.parse("1..5"), HOSTILE, "hash")
    assert repr(judge) == (f"Judge({HOSTILE}: 3 layers of 48, float32, template words, scale 1..5, direct)")
    texts = checked(judge._repr_html_())
    known = dict(zip(texts[1::2], texts[2::2], strict=True))
    assert texts[0] == f"Judge {HOSTILE}"
    assert known["template"] == "words, 5 worked examples"
    assert known["longest prompt"] == "512 tokens"


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show: every state of every bar, in order."""
    import IPython
    import IPython.display

    states: list[tuple[str, str]] = []

    class Handle:
        def update(self, bar):
            states.append((repr(bar), bar._repr_html_()))

    def display(bar, display_id):
        states.append((repr(bar), bar._repr_html_()))
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr("probes.progress._EVERY", 0.0)
    return states


def test_in_a_notebook_the_bar_is_one_display_without_widgets(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # not installed
    with progress("capturing", 1200, "prompts") as advance:
        advance(200)
        advance(1000)
    assert [text for text, _ in shown] == [
        f"capturing: {done} of 1,200 prompts in 0:00" for done in ("0", "200", "1,200", "1,200")
    ]
    assert shown[-1][1] == '<progress value="1200" max="1200"></progress> capturing: 1,200 of 1,200 prompts in 0:00'


def test_a_bar_that_is_cut_short_says_how_far_it_came(shown):
    def work():
        with progress("capturing", 4, "prompts") as advance:
            advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert shown[-1][0] == "capturing: 1 of 4 prompts in 0:00"


def test_time_left_is_estimated_from_what_is_done(shown, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("probes.progress.time.monotonic", lambda: now[0])
    with progress("capturing", 4, "prompts") as advance:
        now[0] = 60.0
        advance(1)
    assert shown[1][0] == "capturing: 1 of 4 prompts in 1:00, 3:00 left"


@pytest.mark.parametrize("package", ["IPython", "ipykernel"])
def test_elsewhere_nothing_is_shown(capsys, package):
    importlib.import_module(package)  # which does not make this a notebook
    with progress("capturing", 4, "prompts") as advance:
        advance(4)
    assert capsys.readouterr() == ("", "")

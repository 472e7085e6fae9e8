"""The report as a file: what it says, what it holds, and what nobody can make it do."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.special import softmax

import probes
from probes.cli import main
from probes.comparing import compare
from probes.errors import FitError
from probes.reporting.answer import answer, headline_judge
from probes.reporting.build import JUDGES
from probes.reporting.counts import tally
from probes.reporting.explorer import STEPS, as_json, choose
from probes.reporting.texts import Texts, _split
from probes.store.readings import Status
from tests.fake_run import FakeRun
from tests.reported import HOSTILE, hostile_run, written_run

FEW = ["final", "final-ridge", "spectral-ordinal"]


class _Page(HTMLParser):
    """Elements of a page, its text, and what stands in its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, _):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


def read(path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with dropped items, and its report."""
    folder = tmp_path_factory.mktemp("report")
    status = np.zeros(60, dtype=np.uint8)
    status[[3, 4]], status[9] = Status.TOO_LONG, Status.NO_SCORE
    run = written_run(folder / "run.h5", labelled=np.arange(60) % 10 != 4, status=status)
    with run:
        yield run, probes.report(run, folder / "report.html", FEW, resamples=200)


# ---- the answer ----


@pytest.mark.parametrize(
    ("signal", "texts", "verdict", "headline"),
    [
        ([0, 1, 1, 1, 1, 1, 1], False, "gain", "The other layers help: use spectral-ordinal."),
        ([0, 0, 0, 0, 0, 0, 1], False, "unclear", "Whether the other layers help cannot be told from these items"),
        ([0, 0, 0, 0, 0, 0, 0], True, "loss", "The other layers do not help here: use text-ridge."),
    ],
)
def test_the_answer_says_what_the_intervals_say(signal, texts, verdict, headline):
    run = FakeRun(120 if verdict != "unclear" else 60, signal=signal, seed=verdict == "unclear")
    if texts:
        run.texts = {name: f"{'good ' * int(20 * y)}{name}" for name, y in zip(run.ids, run.human_value, strict=True)}
    found = compare(run, list(JUDGES), resamples=300, repeats=2)
    said = answer(found, "")
    assert said.verdict == verdict
    assert said.headline.startswith(headline)
    estimates = found.evidence[""].estimates
    rival = max(
        ("final", "final-ridge", "best-layer", "best-layer-ridge", "text-ridge"), key=lambda j: estimates[j].value
    )
    gain = found.difference("spectral-ordinal", rival)
    assert {"gain": gain.lo > 0, "loss": gain.hi < 0, "unclear": gain.lo <= 0 <= gain.hi}[verdict]
    over = found.difference("spectral-ordinal", "final-ridge")
    assert (
        f"(final-ridge, {found.evidence[''].estimates['final-ridge'].value:.2f}) it gains {over.value:+.2f}"
        in "".join(said.sentences)
    )
    if rival != "final-ridge":
        assert f"it gains {gain.value:+.2f} [{gain.lo:.2f}, {gain.hi:.2f}]" in "".join(said.sentences)
    n = len(run.ids)
    assert f"95% intervals over {n // 2} groups" in said.sentences[-1]
    assert said.details[0].startswith(f"{n} of {n} items")


def test_final_is_the_rival_where_it_beats_all_that_have_seen_labels():
    found = compare(
        FakeRun(signal=[0, 0, 0, 0, 0, 0, 1], noise=3.0, n_items=60, seed=2), list(JUDGES), resamples=100, repeats=1
    )
    estimates = found.evidence[""].estimates
    assert estimates["final"].value > estimates[found.evidence[""].baseline].value
    assert "(final, " in "".join(answer(found, "").sentences)


def test_the_best_of_several_is_said_to_be_flattered():
    found = compare(FakeRun(), ["uniform@norm", "slope-ridge"], resamples=200, repeats=1)
    judge = headline_judge(found, "")
    assert judge == found.table.set_index("judge")["spearman"].idxmax()
    assert f"{judge} is the best of those shown" in answer(found, "").sentences[-1]


def test_without_a_judge_that_mixes_layers_nothing_is_told():
    said = answer(compare(FakeRun(), ["final"], resamples=200, repeats=1), "")
    assert (said.verdict, said.headline) == ("none", "Nothing can be told about agreement with human raters.")


# ---- the page ----


def test_the_page_says_answer_counts_judges_and_provenance(plain):
    run, path = plain
    page = read(path)
    words = " ".join(page.words.split())
    found = compare(run, FEW, resamples=200)
    assert words.index(answer(found, "").headline) < words.index("Judges") < words.index("Provenance")
    table = found.table.set_index("judge")
    for judge in FEW:
        cell = f"{table.loc[judge, 'spearman']:.2f}".replace("0.", ".", 1)
        row = f'<th scope="row">{judge}</th><td>norm</td><td class="number">{table.loc[judge, "labels_used"]}</td>'
        assert f'{row}<td class="number">52/60</td><td class="number">{cell} [' in path.read_text()
    over = found.difference("spectral-ordinal", "final-ridge")
    assert f"{over.value:+.2f} [{over.lo:+.2f}, {over.hi:+.2f}]".replace("0.", ".") in words
    for text in ("captured on 2026-01-02", "tiny", "items.jsonl", run.judge_hash, run.items.digest(), "main"):
        assert text in words
    assert "probes report run.h5 --judge final --judge final-ridge --judge spectral-ordinal --resamples 200" in words
    images = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert len(images) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)


def test_every_item_is_counted_once_with_its_reason(plain):
    run, path = plain
    states = read(path).data["state"]
    # Items 4, 14, ... have no human score; 4 has no reading either, which comes first.
    counts = dict(tally(states))
    assert counts == {
        "used": 52,
        "no human score": 5,
        "no reading: too long": 2,
        "no reading: no score in the answer": 1,
    }
    assert sum(counts.values()) == run.n_items
    page = path.read_text()
    for state, count in counts.items():
        assert f"<dt>{state}</dt><dd>{count}</dd>" in page


def test_the_numbers_of_an_item_are_those_of_the_run(plain):
    run, path = plain
    data = read(path).data
    shape = (60, len(run.layers), 5)
    stored = np.frombuffer(base64.b64decode(data["probs"]), dtype="<u2").reshape(shape) / STEPS
    probs = softmax(run.item_logits("norm").astype(float), axis=-1)
    there = np.isfinite(probs).all(axis=(1, 2))
    assert data["read"] == there.tolist()
    assert np.abs(stored - probs)[there].max() <= 0.5 / STEPS + 1e-12
    found = compare(run, FEW, resamples=200)
    mean = found.evidence[""].scores["spectral-ordinal"].mean(axis=0)
    used = [row for row in range(60) if data["state"][row] == "used"]
    np.testing.assert_allclose([data["score"][row] for row in used], mean, atol=1e-5)
    np.testing.assert_allclose(
        np.array(data["final"], float)[there], (probs[:, -1] @ np.arange(1, 6))[there], atol=1e-5
    )
    np.testing.assert_allclose([data["off"][row] for row in used], np.abs(mean - run.human_value[used]), atol=2e-5)
    assert data["raters"][0] == pytest.approx(run.human[0].tolist(), abs=1e-5)
    prompt = ["".join(data["texts"][n] for n in turn[1]) for turn in data["turns"][7]]
    assert prompt == ["Rate: answer number 7"]


def test_the_same_run_gives_the_same_bytes(plain, tmp_path):
    run, path = plain
    assert probes.report(run, tmp_path / "again.html", FEW, resamples=200).read_bytes() == path.read_bytes()


def test_a_comparison_is_taken_as_it_is(plain, tmp_path):
    run, path = plain
    found = compare(run, FEW, resamples=200)
    given = probes.report(run, tmp_path / "given.html", comparison=found)
    assert given.read_bytes() == path.read_bytes()
    other = FakeRun(n_items=40)
    with pytest.raises(FitError, match="the comparison is not one of"):
        probes.report(run, tmp_path / "x.html", comparison=compare(other, ["final"], resamples=200, repeats=1))
    assert not (tmp_path / "x.html").exists()


def test_nothing_of_the_page_comes_from_elsewhere_and_only_its_own_script_runs(plain):
    page = read(plain[1])
    for _, attrs in page.elements:
        for name in ("src", "href", "data", "action", "srcset"):
            if attrs.get(name):
                assert attrs[name].startswith(("data:", "#"))
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert len(page.scripts) == 2


def test_hostile_names_and_texts_stay_texts(tmp_path):
    with hostile_run(tmp_path / "run.h5") as run:
        path = probes.report(run, tmp_path / "report.html", FEW, resamples=100)
        page = read(path)
        assert len(page.scripts) == 2
        assert page.data["id"] == list(run.ids)
        texts = page.data["texts"]
        assert {texts[text] for of in page.data["fields"] for _, text in of} == {
            text for item in run.items for text in item.fields.values()
        }
        assert page.data["labels"] == list(run.scale.labels)
    text = path.read_text(encoding="utf-8")
    data = text[text.index('id="data">') + 10 : text.index("</script>")]
    assert not set("<>&\u2028\u2029") & set(data)
    before = text[: text.index('<script type="application/json"')]
    assert not re.search(r"<img(?! src=\"data:)|<svg|<script|alert\(\d\)>", before.replace("<svg/onload", ""))
    assert html.escape(HOSTILE[0]) in before
    assert html.escape(HOSTILE[6]) in before


def test_json_survives_the_element_that_holds_it():
    data = {"text": [*HOSTILE, "<!--<script>", "]]>", "\r\n\0"], "value": [0.1, None]}
    text = as_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029\r\n\0") & set(text)


# ---- without human scores, several criteria, many items ----


def test_a_run_without_human_scores_shows_layers_and_items(tmp_path):
    with written_run(tmp_path / "run.h5", labelled=np.zeros(60, dtype=bool)) as run:
        page = read(probes.report(run, tmp_path / "report.html"))
    words = " ".join(page.words.split())
    assert "Nothing can be told about agreement with human raters." in words
    assert "No item has a human score" in words
    assert "median" in words
    assert page.data["judge"] is None
    assert set(page.data["score"]) == {None}
    assert set(page.data["read"]) == {True}


def test_too_few_scores_are_a_reason_and_no_failure(tmp_path):
    with written_run(tmp_path / "run.h5", labelled=np.arange(60) < 4) as run:
        words = " ".join(read(probes.report(run, tmp_path / "report.html")).words.split())
    assert "The judges could not be compared: " in words


def test_every_criterion_has_a_section_and_one_may_lack_scores(tmp_path):
    labelled = np.arange(80) % 2 == 0
    with written_run(tmp_path / "run.h5", n_items=80, criteria=("clarity", "depth"), labelled=labelled) as run:
        page = read(probes.report(run, tmp_path / "all.html", FEW, resamples=100))
        alone = read(probes.report(run, tmp_path / "one.html", FEW, resamples=100, criterion="clarity"))
        with pytest.raises(FitError, match="no criterion 'x'"):
            probes.report(run, tmp_path / "x.html", criterion="x")
        found = compare(run, FEW, resamples=100, criterion="clarity")
    headings = [attrs.get("id") for tag, attrs in page.elements if tag == "section"]
    assert headings.count("criterion-1") == headings.count("criterion-2") == 1
    words = " ".join(page.words.split())
    assert answer(found, "clarity").headline in words
    assert "No item has a human score" in words
    assert {c for c, s in zip(page.data["criterion"], page.data["score"], strict=True) if s is not None} == {"clarity"}
    assert set(alone.data["criterion"]) == {"clarity"}
    assert "--criterion clarity" in alone.words


def test_of_many_items_a_sample_is_shown_and_said(plain, tmp_path):
    run, _ = plain
    page = read(probes.report(run, tmp_path / "report.html", FEW, resamples=100, max_items=20))
    said = "A sample: 20 of 60 items, the 10 with the largest disagreement and 10 drawn at random from the others"
    assert said in " ".join(page.words.split())
    assert len(page.data["id"]) == 20
    assert "--max-items 20" in page.words


def test_the_sample_holds_the_largest_and_others_without_repeats():
    off = np.where(np.arange(100) % 7 == 0, np.nan, np.arange(100) % 13)
    rows = choose(off, 30, seed=1).rows
    assert len(set(rows.tolist())) == 30
    assert set(np.argsort(-np.nan_to_num(off, nan=-1), kind="stable")[:15]) <= set(rows)
    assert (rows == choose(off, 30, seed=1).rows).all()
    assert (rows != choose(off, 30, seed=2).rows).any()
    assert "largest" not in choose(np.full(100, np.nan), 30, seed=1).says
    assert choose(off, 100, seed=1).says == "All 100 items of the run."


def test_two_thousand_items_and_33_layers_stay_below_ten_megabytes(tmp_path):
    texts = [{"response": f"{k} " + "words of an answer " * 100} for k in range(2000)]
    labelled = np.zeros(2000, dtype=bool)
    with written_run(tmp_path / "run.h5", n_items=2000, n_layers=32, labelled=labelled, texts=texts) as run:
        path = probes.report(run, tmp_path / "report.html")
    assert len(read(path).data["id"]) == 2000
    assert 3e6 < path.stat().st_size < 10e6


# ---- texts ----


def test_long_texts_are_cut_to_one_length_and_it_is_said():
    texts = Texts()
    for text in ("short", "ä" * 400, "b" * 1000, "c" * 300):
        texts.add(text)
    whole, lost = texts.cut(5000)
    assert whole[0] == "short"
    assert lost == {}
    cut, lost = texts.cut(905)
    assert sum(len(text.encode()) for text in cut) <= 905
    assert cut == ["short", "ä" * 150, "b" * 300, "c" * 300]
    assert lost == {"1": 250, "2": 700}


def test_a_prompt_in_parts_is_the_prompt():
    source, response = "the source " * 20, "a reply"
    prompt = f"Task.\n{source}\nReply: {response} ({response})"
    parts = _split(prompt, [source, response])
    assert "".join(parts) == prompt
    assert parts.count(response) == 2
    assert source in parts
    assert _split("aaaaaa", ["a"]) == ["aaaaaa"]


# ---- errors and the command line ----


def test_bad_arguments_are_refused_before_any_work(plain, tmp_path):
    run, _ = plain
    with pytest.raises(FitError, match="unknown judge 'finel'"):
        probes.report(run, tmp_path / "x.html", ["finel"])
    with pytest.raises(FitError, match="room for at least one item, got max_items=0"):
        probes.report(run, tmp_path / "x.html", max_items=0)
    for name in ("x.pdf", "x.md", "x.json"):
        with pytest.raises(FitError) as error:
            probes.report(run, tmp_path / name)
        assert str(error.value) == (
            f"{tmp_path / name}: a report is one HTML file; call it x.html, and print it from a browser where another "
            "kind of file is wanted"
        )
        with pytest.raises(SystemExit) as refused:
            main(["report", str(run.path), "--out", str(tmp_path / name)])
        assert refused.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_same_page(plain, tmp_path, capsys):
    run, path = plain
    judges = [part for judge in FEW for part in ("--judge", judge)]
    main(["report", str(run.path), *judges, "--resamples", "200", "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == path.read_bytes()

"""The demo on a small sample: real model, real human scores, every file that it promises."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import probes
from probes.demo import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One small demo, some 40 s: the capture of 120 words, and thirteen judges in 25 folds."""
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    found = run_demo(out, n_words=120, echo=said.append)
    return out, "\n".join(said), found


def test_everything_promised_is_written(demo):
    out, said, _ = demo
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written >= {"run.h5", "report.html", "comparison.csv", "judges/lager.json", "judges/logit-ridge.json"}
    assert written >= {f"{name}.{ending}" for name in ("alignment", "weights") for ending in ("png", "pdf")}
    for path in ("run.h5", "comparison.csv", "judges", "alignment.png", "weights.pdf", "report.html"):
        assert str(out / path) in said
    table = pd.read_csv(out / "comparison.csv")
    assert {"judge", "labels_used", "n_used", "n_total", "spearman", "spearman_lo", "spearman_hi"} <= set(table)
    assert {"pearson", "kendall"} <= set(table)


def test_labels_are_counted_and_intervals_enclose(demo):
    table = demo[2].table.set_index("judge")
    assert table.loc["final", "labels_used"] == 0
    assert table.loc["logit-ridge", "labels_used"] == 96
    assert (table["n_used"] == 120).all()
    defined = table.dropna(subset=["spearman"])
    assert ((defined["spearman_lo"] <= defined["spearman"]) & (defined["spearman"] <= defined["spearman_hi"])).all()


def test_it_says_what_was_found(demo):
    said = demo[1]
    for words in ("Recalibration of the last layer", "Other layers", "over final"):
        assert words in said


def test_a_second_demo_reuses_the_run(demo, monkeypatch):
    from probes.capturing.engine import Engine

    out, _, found = demo
    before = (out / "run.h5").read_bytes()
    monkeypatch.setattr(Engine, "states", lambda *args, **options: pytest.fail("captured again"))
    again = run_demo(out, n_words=120, echo=lambda text: None)
    assert (out / "run.h5").read_bytes() == before
    pd.testing.assert_frame_equal(again.table, found.table)


def test_fitted_judges_score_the_run(demo):
    from probes.artefact import FittedJudge

    out, _, _ = demo
    with probes.open_run(out / "run.h5") as run:
        scores = FittedJudge.load(out / "judges" / "slope-ridge.json").score(run)
        assert scores.value.shape == (120,)
        assert json.loads((out / "judges" / "lager.json").read_text())["judge_hash"] == run.judge_hash

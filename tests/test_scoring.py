"""Scoring new items: the numbers of a captured run, without a run; what does not go together is refused early."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import probes
from probes.artefact import FittedJudge
from probes.capturing.engine import Engine
from probes.comparing import fit
from probes.decoding import Decoding
from probes.errors import FitError, ModelError, ProbesError, RunFileError
from probes.origin import origin_of
from probes.scoring import json_lines, write_scores
from tests import tiny
from tests.fake_run import FakeRun
from tests.test_capture import TEMPLATE, make_judge
from tests.test_generation import PAIRS, pair_items, scripted

OLD, NEW = tiny.WORDS[:12], tiny.WORDS[12:]


def words(names, human=True):
    rated = tiny.word_items()
    picked = [item for item in rated if item.id in names]
    return probes.Items([item if human else replace(item, human=()) for item in picked])


def fitted_on(judge, items, path, spec="slope-ridge") -> FittedJudge:
    with probes.capture(judge, items, path) as run:
        return fit(run, spec)


def same(table, fitted, run):
    """The table holds a run's scores, bit by bit."""
    scores = fitted.score(run)
    np.testing.assert_array_equal(table["value"], scores.value)
    probs = table[[f"p_{label}" for label in run.scale.labels]].to_numpy()
    np.testing.assert_array_equal(probs, np.full(probs.shape, np.nan) if scores.probs is None else scores.probs)
    pd.testing.assert_frame_equal(table, probes.score(fitted, run))


@pytest.mark.parametrize(
    "spec", ["slope-ridge", "lager", "vscore", "spectral-ordinal", "residual-ridge", "text-ridge", "lager@tuned"]
)
def test_scores_are_those_of_a_captured_run(booted, tmp_path, spec):
    judge = make_judge(booted)
    fitted = fitted_on(judge, words(OLD), tmp_path / "old.h5", spec)
    table = probes.score(fitted, words(NEW, human=False), judge, batch_tokens=200)
    assert table["id"].tolist() == NEW
    assert (table["status"] == "ok").all()
    assert table["value"].nunique() > 1
    assert table["p_1"].isna().all() == (spec in ("slope-ridge", "residual-ridge", "text-ridge"))
    with probes.capture(judge, words(NEW), tmp_path / "new.h5", batch_tokens=200) as run:
        same(table, fitted, run)


def generating(booted, condition, rule, **options):
    return make_judge(
        booted, condition=condition, decoding=Decoding.of(condition, rule, **({"max_new_tokens": 8} | options))
    )


@pytest.mark.parametrize(
    ("condition", "options"), [("generate", {}), ("reasoning", {"samples": 3, "temperature": 1.0, "seed": 5})]
)
def test_generated_answers_are_scored_where_the_score_is(booted, tmp_path, monkeypatch, condition, options):
    judge = generating(booted, condition, "first", **options)
    scripted(monkeypatch, judge, ["4", "x 2", "nothing at all", *["so 5"] * 20])
    fitted = fitted_on(judge, tiny.word_items(), tmp_path / "run.h5")
    table = probes.score(fitted, tiny.word_items(human=False), judge)
    assert table["status"].tolist() == ["ok", "ok", "no_score", *["ok"] * 17]
    assert np.isnan(table["value"][2])
    with probes.open_run(tmp_path / "run.h5") as run:
        assert len(run.status) == 20 * options.get("samples", 1)
        same(table, fitted, run)
        of_states = fit(run, "residual-ridge")
    scripted(monkeypatch, judge, ["4", "x 2", "nothing at all", *["so 5"] * 20])
    table = probes.score(of_states, tiny.word_items(human=False), judge)
    with probes.open_run(tmp_path / "run.h5") as run:
        same(table, of_states, run)


def test_sampled_answers_are_the_same_samples(booted, tmp_path):
    judge = generating(booted, "generate", "first", samples=3, temperature=3.0)
    with probes.capture(judge, tiny.word_items(), tmp_path / "run.h5") as run:
        assert len(set(run.generated_text)) > 20
        fitted = replace(fit(run, "final"), criterion="")
        same(probes.score(fitted, tiny.word_items(), judge), fitted, run)
        # The state of an item is the mean over its samples that were read.
        read = run.item_status == 0
        states = np.nanmean(run.residual("2").reshape(20, 3, -1)[read], axis=1)
        np.testing.assert_allclose(run.item_residual("2")[read], states, rtol=1e-5, atol=1e-6)
        assert np.isnan(run.item_residual("2")[~read]).all()


def test_pairs_are_scored_in_both_orders(booted, tmp_path):
    judge = make_judge(booted, template=PAIRS, scale=probes.Scale.parse("A=1,B=0"))
    fitted = fitted_on(judge, pair_items(), tmp_path / "run.h5", "uniform")
    table = probes.score(fitted, pair_items(), judge)
    assert list(table.columns) == ["id", "value", "p_B", "p_A", "status"]
    with probes.open_run(tmp_path / "run.h5") as run:
        same(table, fitted, run)
        with pytest.raises(FitError) as caught:
            fit(run, "residual-ridge")
        assert str(caught.value) == (
            f"residual-ridge reads residual states, which {run.path} lacks: capture with residuals, and no pairs"
        )
        with pytest.raises(RunFileError, match="is pairwise: an item has a state in each order"):
            run.item_residual("2")


def test_every_item_has_a_row_that_says_why_it_has_no_score(booted, tmp_path, caplog):
    judge = make_judge(booted)
    fitted = fitted_on(judge, words(OLD), tmp_path / "old.h5")
    long = probes.Item("long", {"response": "zoo " * 60}, criterion="tone", group="g", system="s", split="test")
    items = probes.Items([*words(NEW), long])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        table = probes.score(fitted, items, judge, max_tokens=150)
    assert [record.getMessage() for record in caplog.records] == ["1 of 9 items have no score: 1 too_long"]
    assert list(table.columns)[:6] == ["id", "criterion", "group", "system", "split", "value"]
    assert table.iloc[-1][["id", "criterion", "group", "system", "split", "status"]].tolist() == [
        *("long", "tone", "g", "s", "test", "too_long")
    ]
    assert table["value"].isna().tolist() == [False] * 8 + [True]
    # None of them fits: no pass at all.
    assert set(probes.score(fitted, words(NEW), judge, max_tokens=5)["status"]) == {"too_long"}


def test_human_scores_of_new_items_play_no_part(booted, tmp_path):
    judge = make_judge(booted)
    fitted = fitted_on(judge, words(OLD), tmp_path / "old.h5")
    odd = probes.Items([replace(item, human=(99.0,)) for item in words(NEW)])
    pd.testing.assert_frame_equal(
        probes.score(fitted, odd, judge), probes.score(fitted, words(NEW, human=False), judge)
    )


def test_what_does_not_go_together_is_refused_before_the_first_pass(booted, tmp_path, monkeypatch):
    judge = make_judge(booted)
    fitted = fitted_on(judge, words(OLD), tmp_path / "old.h5")

    def never(*args, **kwargs):
        raise AssertionError("a pass was run")

    monkeypatch.setattr(Engine, "run_packed", never)
    monkeypatch.setattr(Engine, "run_batched", never)
    with pytest.raises(ModelError, match="a pass was run"):
        probes.score(fitted, words(NEW), judge)
    fields = {
        "the judge tiny-mistral has another model than slope-ridge was fitted on (model_hash ": make_judge(
            booted, "mistral"
        ),
        "the judge tiny-llama has another scale than slope-ridge was fitted on (labels (": make_judge(
            booted, scale=probes.Scale.parse("A..E")
        ),
    }
    for start, other in fields.items():
        with pytest.raises(FitError) as caught:
            probes.score(fitted, words(NEW), other)
        assert str(caught.value).startswith(start)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        FitError, match=r"the judge tiny-llama reads its scores out otherwise .*: readout_hash .*, not x"
    ):
        probes.score(replace(fitted, readout_hash="x"), words(NEW), judge)
    layers = replace(fitted.aggregator, layers=(*fitted.aggregator.layers, "4"))
    with pytest.raises(FitError, match=r"fitted on 5 layers \(embed \.\. 4\), not on 4 \(embed \.\. 3\)"):
        probes.score(replace(fitted, aggregator=layers), words(NEW), judge)
    with (
        probes.open_run(tmp_path / "old.h5") as run,
        pytest.raises(FitError, match="is a run, which is scored without its judge"),
    ):
        probes.score(fitted, run, judge)


def test_a_judge_carries_what_it_takes_to_load_its_model_again(tmp_path, caplog):
    folder = tiny.save_model(tmp_path / "model")
    judge = probes.Judge.load(folder, template=TEMPLATE, human_range="-4..4")
    with probes.capture(judge, words(OLD), tmp_path / "old.h5") as run:
        made = fit(run, "slope-ridge")
        assert made.origin == origin_of(run)
    assert made.origin["model"] == str(folder)
    assert made.origin["judge"] == judge.describe()
    fitted = FittedJudge.load(made.save(tmp_path / "judge.json"))
    assert fitted.to_dict() == made.to_dict()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        table = probes.score(fitted, words(NEW))
    assert not caplog.records
    pd.testing.assert_frame_equal(table, probes.score(fitted, words(NEW), judge))
    # Another prompt is scored, with a warning that names what changed.
    with caplog.at_level(logging.WARNING):
        other = probes.Template("other", user="Rate {{ response }} from 1 to 5.")
        probes.score(fitted, words(NEW), fitted.load_judge(template=other, human_range=(-5, 4)))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"slope-ridge was fitted with another prompt or setting than the judge {folder} (scale.human_range ([-4.0, "
        '4.0], now [-5.0, 4.0]), template.name ("test", now "other"), template.system, '
        "template.user): check its scores against human ones"
    )


def test_conditions_are_loaded_again_and_can_be_changed(tmp_path):
    folder = tiny.save_model(tmp_path / "model")
    options = {"samples": 2, "temperature": 0.5, "seed": 3, "max_new_tokens": 4}
    judge = probes.Judge.load(folder, template=TEMPLATE, human_range="-4..4", condition="generate", **options)
    with probes.capture(judge, words(OLD), tmp_path / "run.h5") as run:
        fitted = replace(fit(run, "final"), origin=origin_of(run))
    again = fitted.load_judge()
    assert again.decoding == judge.decoding
    again.prompts(words(NEW))
    assert again.digest() == judge.digest()
    assert fitted.load_judge(condition="direct").decoding is None
    assert fitted.load_judge(seed=4).decoding == replace(judge.decoding, seed=4)


def test_judges_of_earlier_versions_are_read_and_say_what_they_lack(tmp_path):
    data = fit(FakeRun(60), "final").to_dict()
    del data["origin"]
    path = tmp_path / "judge.json"
    path.write_text(json.dumps(data))
    old = FittedJudge.load(path)
    assert old.origin == {}
    assert np.isfinite(old.score(FakeRun(60)).value).all()
    message = "the judge does not say what it was fitted with: give its "
    for given, missing in (
        ({}, "model (--model) and template (--template)"),
        ({"model": "x"}, "template (--template)"),
    ):
        with pytest.raises(FitError) as caught:
            old.load_judge(**given)
        assert str(caught.value) == message + missing


@pytest.mark.parametrize(
    "origin",
    [
        {"model": "x"},
        {"model": "x", "judge": {"template": {}, "dtype": "float32", "condition": "direct"}},
        {
            "model": "x",
            "judge": {"template": {"user": "x"}, "dtype": "float32", "condition": "generate", "decoding": {"rule": 3}},
        },
    ],
)
def test_a_damaged_origin_is_one_line(origin):
    fitted = replace(fit(FakeRun(60), "final"), origin=origin)
    with pytest.raises(FitError, match="the judge is damaged: its origin cannot be read"):
        fitted.load_judge()


def test_an_origin_must_be_a_description(tmp_path):
    for origin in ([], {"judge": 3}):
        path = tmp_path / "judge.json"
        path.write_text(json.dumps(fit(FakeRun(60), "final").to_dict() | {"origin": origin}))
        with pytest.raises(FitError, match="is damaged: origin is no description of a judge; fit the judge again"):
            FittedJudge.load(path)


@pytest.fixture
def table():
    return pd.DataFrame(
        {"id": ["a", 'b,"\n'], "value": [1 / 3, np.nan], "p_no": [0.1 + 0.2, np.nan], "status": ["ok", "too_long"]}
    )


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_files_hold_every_row_exactly(table, tmp_path, suffix):
    path = tmp_path / "deep" / f"scores.{suffix}"
    write_scores(table, path)
    if suffix == "jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"id": "a", "value": 1 / 3, "p_no": 0.1 + 0.2, "status": "ok"},
            {"id": 'b,"\n', "value": None, "p_no": None, "status": "too_long"},
        ]
        assert path.read_text() == "".join(f"{line}\n" for line in json_lines(table))
    else:
        read = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
        pd.testing.assert_frame_equal(read, table, check_exact=True, check_dtype=False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_files_that_cannot_be_written_are_one_line(table, tmp_path):
    with pytest.raises(ProbesError, match=r"scores\.txt: give the file a name that ends in \.jsonl, \.csv, \.parquet"):
        write_scores(table, tmp_path / "scores.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot write .*check the disk and its permissions"):
        write_scores(table, tmp_path / "file" / "scores.csv")

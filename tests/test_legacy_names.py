"""Runs and fitted judges of the first way to hash a model, and those of today, are of one model where it is one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

import probes
from probes.capturing.engine import Engine
from probes.errors import FitError, RunFileError
from tests import tiny
from tests.test_capture import datasets
from tests.test_same_model import judge_of
from tests.test_weights_hash import first_scheme

ITEMS = tiny.word_items()


def pair(architecture="llama", **options):
    """One model as versions up to 0.1 knew it, and as it is known today."""
    model = tiny.hf_model(architecture)
    before = first_scheme(model)
    now = judge_of(model, **options)
    assert now.weights_hash != before
    assert now.weights_hash_v1 == before
    return replace(now, weights_hash=before), now


@pytest.fixture(scope="module")
def judges():
    return pair()


@pytest.fixture(scope="module")
def runs(judges, tmp_path_factory):
    """Some items by each of the two."""
    folder = tmp_path_factory.mktemp("runs")
    before, now = (
        probes.capture(judge, ITEMS[start : start + 10], folder / f"{start}.h5")
        for judge, start in zip(judges, (0, 10), strict=True)
    )
    assert before.model_hash == before.attr("judge")["weights"] == now.attr("model_hash_v1")
    with pytest.raises(RunFileError):
        before.attr("model_hash_v1")
    assert before.judge_hash != now.judge_hash
    return before, now


def test_a_finished_run_is_known_again(judges, runs, monkeypatch):
    monkeypatch.setattr(Engine, "states", lambda *args: pytest.fail("captured again"))
    written = runs[0].path.read_bytes()
    probes.capture(judges[1], ITEMS[:10], runs[0].path)
    probes.capture(judges[1], ITEMS[:5], runs[0].path, extend=True)
    assert runs[0].path.read_bytes() == written


def test_an_unfinished_run_goes_on(judges, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 3)
    before, now = judges
    original, calls = Engine.run_packed, []

    def dies(self, prompts, *options):
        calls.append(prompts)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, prompts, *options)

    monkeypatch.setattr(Engine, "run_packed", dies)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(before, ITEMS, tmp_path / "run.h5", batch_tokens=60)
    monkeypatch.setattr(Engine, "run_packed", original)
    run = probes.capture(now, ITEMS, tmp_path / "run.h5", batch_tokens=60)
    assert (run.model_hash, run.judge_hash) == (now.weights_hash, now.digest())
    probes.capture(now, ITEMS, tmp_path / "whole.h5", batch_tokens=60)
    assert datasets(tmp_path / "run.h5") == datasets(tmp_path / "whole.h5")
    assert probes.verify(run.path) == []


def test_a_run_is_extended_and_then_known_as_today(judges, tmp_path):
    before, now = judges
    probes.capture(before, ITEMS[:6], tmp_path / "run.h5").close()
    run = probes.capture(now, ITEMS[:9], tmp_path / "run.h5", extend=True)
    assert (run.model_hash, run.attr("model_hash_v1")) == (now.weights_hash, before.weights_hash)
    assert run.judge_hash == now.digest()
    assert probes.verify(run.path) == []
    # After an upgrade of transformers the first scheme gives something else; the run is still one of this model.
    later = probes.capture(now, ITEMS, tmp_path / "run.h5", extend=True)
    assert len(later.items) == len(ITEMS)


@pytest.mark.parametrize("turned", [False, True])
def test_runs_are_merged(runs, turned, tmp_path):
    parts = runs[::-1] if turned else runs
    merged = probes.merge(parts, tmp_path / "merged.h5")
    assert (merged.model_hash, merged.judge_hash) == (runs[1].model_hash, runs[1].judge_hash)
    assert merged.attr("model_hash_v1") == runs[0].model_hash
    np.testing.assert_array_equal(merged.residual(), np.concatenate([run.residual() for run in parts]))
    assert probes.verify(merged.path) == []


@pytest.mark.parametrize("turned", [False, True])
def test_a_saved_judge_scores_runs_and_items(judges, runs, turned, tmp_path, caplog):
    fitted_on, other = runs[::-1] if turned else runs
    saved = probes.fit(fitted_on, "slope-ridge").save(tmp_path / "judge.json")
    if not turned:  # as versions up to 0.1 wrote it
        data = json.loads(saved.read_text())
        assert data.pop("model_hash_v1") == ""
        saved.write_text(json.dumps(data))
    fitted = probes.FittedJudge.load(saved)
    with caplog.at_level(logging.WARNING):
        table = probes.score(fitted, other)
        again = probes.score(fitted, other.items, judges[0 if turned else 1])
    assert not [record for record in caplog.records if "another" in record.getMessage()]
    assert table["value"].notna().all()
    np.testing.assert_allclose(again["value"], table["value"], rtol=1e-4)


def test_a_saved_judge_still_warns_of_what_else_has_changed(judges, runs, tmp_path, caplog):
    fitted = probes.fit(runs[0], "slope-ridge")
    other = replace(judges[1], template=replace(judges[1].template, system="Be brief."))
    with caplog.at_level(logging.WARNING):
        probes.score(fitted, probes.capture(other, ITEMS[:4], tmp_path / "other.h5"))
    said = next(text for record in caplog.records if "another prompt" in (text := record.getMessage()))
    assert "template.system" in said
    assert "weights" not in said


def test_other_models_stay_others(judges, runs, tmp_path):
    for other in pair("qwen2"):
        run = probes.capture(other, ITEMS[10:14], tmp_path / f"{other.weights_hash}.h5")
        for one in runs:
            with pytest.raises(RunFileError, match=r"differ in judge\.weights, model_hash"):
                probes.merge([one.select(items=[0]), run], tmp_path / "merged.h5")
            with pytest.raises(FitError, match="another model"):
                probes.score(probes.fit(one, "final"), run)
        with pytest.raises(RunFileError, match=r"differs in judge\.weights"):
            probes.capture(other, ITEMS[:10], runs[0].path, extend=True)


def test_comparisons_know_one_model(judges, tmp_path):
    before, now = judges
    other = replace(now, template=replace(now.template, system="Be brief.", name="brief"))
    asked = {
        "first": probes.capture(before, ITEMS, tmp_path / "first.h5"),
        "brief": probes.capture(other, ITEMS, tmp_path / "brief.h5"),
    }
    found = probes.compare(asked, ["final"], resamples=20, repeats=1)
    assert set(found.prompts["judge"]) == {"final"}, "two prompts of one model"
    differs = found.runs.set_index("run")["differs"]
    assert "template" in differs["brief"]
    assert "weights" not in differs["brief"]
    from probes.curves import transfer

    sets = {"before": asked["first"], "now": probes.capture(now, ITEMS, tmp_path / "now.h5")}
    table = transfer(sets, "slope-ridge", resamples=20)
    assert set(table["fitted_on"]) == {"before", "now"}


def test_a_run_survives_a_later_transformers(judges, tmp_path):
    """Another use of the cache, and another setting written down: the run of before is extended all the same."""
    model = tiny.hf_model()
    probes.capture(judges[1], ITEMS[:6], tmp_path / "run.h5").close()
    model.config.use_cache = False
    model.config.a_setting_of_tomorrow = "fast"
    later = judge_of(model)
    assert later.weights_hash_v1 != judges[1].weights_hash_v1
    run = probes.capture(later, ITEMS[:9], tmp_path / "run.h5", extend=True)
    assert len(run.items) == 9

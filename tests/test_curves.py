"""Learning curves and transfer: what is fitted on what, and what the intervals are about."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from probes import curves
from probes.aggregate import LayerLogits, get_aggregator
from probes.curves import learning_curve, transfer
from probes.errors import FitError
from probes.runlike import parts
from tests.fake_run import FakeRun


def spied(monkeypatch):
    """Fits that are made: name, items by their first logit, and the items that are predicted."""
    from probes.aggregate import Aggregator

    original, seen = Aggregator.fit, []

    def fit(self, logits, y=None, groups=None):
        seen.append((self.name, logits.logits[:, -1, 0].tolist()))
        return original(self, logits, y, groups)

    monkeypatch.setattr(Aggregator, "fit", fit)
    return seen


def test_a_larger_fit_contains_the_smaller_and_no_group_is_on_both_sides(monkeypatch):
    run = FakeRun(200, group=4)
    seen = spied(monkeypatch)
    table = learning_curve(run, ["slope-ridge"], sizes=[10, 50], draws=3, resamples=100)
    item = {value: number for number, value in enumerate(run.logits["norm"][:, -1, 0].tolist())}
    fits = [{item[value] for value in values} for name, values in seen if name == "slope-ridge"]
    assert [len(fit) for fit in fits] == [10] * 3 + [50] * 3
    for small, large in zip(fits[:3], fits[3:], strict=True):
        assert small < large
    assert len({frozenset(fit) for fit in fits}) == 6, "every draw is another one"
    used = {run.groups[number] for fit in fits for number in fit}
    # What is tested on is what no fit may use: half of the items, in whole groups.
    assert set(table["n_test"]) == {100}
    assert len(used) <= 25


def test_the_value_is_the_mean_over_draws_of_the_coefficient_on_the_test_part(monkeypatch):
    run = FakeRun(120, group=1, seed=3)
    seen = spied(monkeypatch)
    table = learning_curve(run, ["spectral-ridge"], sizes=[30], draws=4, resamples=100)
    item = {value: number for number, value in enumerate(run.logits["norm"][:, -1, 0].tolist())}
    fits = [[item[value] for value in values] for name, values in seen if name == "spectral-ridge"]
    everything = LayerLogits(run.logits["norm"], run.layers, np.asarray(run.scale.values), "norm")
    aggregator = get_aggregator("spectral-ridge")
    # The fit uses 30 of 60; which 60 are tested is found by asking for all 60.
    seen.clear()
    learning_curve(run, ["spectral-ridge"], sizes=[60], draws=1, resamples=100)
    pool = {item[value] for value in seen[0][1]}
    test = np.array(sorted(set(range(120)) - pool))
    values = []
    for rows in fits:
        fitted = aggregator.fit(everything.select(np.array(rows)), run.human_value[rows], run.groups[rows])
        scores = fitted.predict(everything.select(test)).value
        values.append(stats.spearmanr(scores, run.human_value[test]).statistic)
    row = table[table["judge"] == "spectral-ridge"].iloc[0]
    assert row["value"] == pytest.approx(np.mean(values), abs=1e-12)
    assert row["lo"] < row["value"] < row["hi"]
    reference = table[table["judge"] == "final-ridge"].iloc[0]
    assert row["gain"] == pytest.approx(row["value"] - reference["value"], abs=1e-12)
    assert reference["gain"] == reference["gain_lo"] == reference["gain_hi"] == 0


def test_label_free_judges_do_not_depend_on_the_number_of_labels():
    table = learning_curve(FakeRun(200), ["final", "uniform"], sizes=[10, 100], draws=3, resamples=100)
    for judge in ("final", "uniform"):
        assert table.loc[table["judge"] == judge, "value"].nunique() == 1


def test_intervals_also_hold_the_draw_of_labels():
    """The mean over few draws of ten labels is less sure than that over many; a judge without labels does not care."""
    run, width = FakeRun(2000, group=1, seed=1), {}
    for draws in (3, 40):
        table = learning_curve(run, ["final", "slope-ridge"], sizes=[10], draws=draws, resamples=300)
        width[draws] = (table["hi"] - table["lo"]).set_axis(table["judge"])
    assert width[3]["slope-ridge"] > 1.5 * width[40]["slope-ridge"]
    assert width[3]["final"] == pytest.approx(width[40]["final"])


def test_sizes_that_are_not_there_are_left_out_and_none_is_an_error():
    assert set(learning_curve(FakeRun(60), ["final"], resamples=100)["n_labels"]) == {10, 20}
    with pytest.raises(
        FitError, match=r"has 12 items with a human score, too few for a learning curve from 10 labels on"
    ):
        learning_curve(FakeRun(12), ["final"], resamples=100)


def test_transfer_fits_on_one_set_and_tests_on_another():
    a, b = FakeRun(150, seed=1), FakeRun(100, seed=2)
    table = transfer({"a": a, "b": b}, "spectral-ridge", repeats=1, resamples=100).set_index(["fitted_on", "tested_on"])
    values = np.asarray(a.scale.values)
    on = {name: LayerLogits(run.logits["norm"], run.layers, values, "norm") for name, run in (("a", a), ("b", b))}
    fitted = get_aggregator("spectral-ridge").fit(on["a"], a.human_value, a.groups)
    value = stats.spearmanr(fitted.predict(on["b"]).value, b.human_value).statistic
    row = table.loc[("a", "b")]
    assert row["value"] == pytest.approx(value, abs=1e-12)
    assert (row["n_fit"], row["n_test"]) == (150, 100)
    assert row["lo"] < row["value"] < row["hi"]
    # On itself it is cross-validated: lower than in sample.
    in_sample = stats.spearmanr(fitted.predict(on["a"]).value, a.human_value).statistic
    assert table.loc[("a", "a"), "value"] < in_sample


def test_transfer_between_models_is_refused():
    a, b = FakeRun(60), FakeRun(60)
    b.model_hash = "other"
    with pytest.raises(FitError, match="is of another model, or reads other score tokens, than the run"):
        transfer({"a": a, "b": b})


def test_criteria_of_a_run_are_sets_of_their_own():
    run = FakeRun(120, criteria=["x", "y"] * 60)
    table = transfer({"run": run}, repeats=1, resamples=100)
    assert table["fitted_on"].tolist() == ["run/x", "run/y"] * 2
    assert set(learning_curve(run, ["final"], sizes=[10], resamples=100)["criterion"]) == {"x", "y"}


def test_judges_that_cannot_be_fitted_are_no_zeros():
    run = FakeRun(80)
    run.has_item_residuals = False
    with pytest.raises(FitError, match="^residual-ridge reads residual states, which the run lacks"):
        learning_curve(run, ["residual-ridge"], sizes=(10,), draws=2, resamples=20)
    run.logits["norm"][:] = 1.0
    table = learning_curve(run, ["best-layer-ridge"], sizes=(20,), draws=3, resamples=20).set_index("judge")
    never = table.loc["best-layer-ridge"]
    assert never["n_failed"] == never["n_draws"] == 3
    assert np.isnan(never[["value", "lo", "hi", "gain"]].astype(float)).all()
    # A judge that says one thing of all items has been fitted, and does not agree.
    assert table.loc["final-ridge", ["n_failed", "value"]].tolist() == [0, 0]


def test_label_free_judges_are_fitted_anew_on_every_draw():
    run = FakeRun(120, 4, seed=3)
    table = learning_curve(run, ["whitened"], sizes=(10,), draws=12, resamples=50)
    part = parts(run)[0]
    pool, test = curves._divide(part, 0.5, 0)
    values = []
    for draw in range(12):
        rows = pool[curves._label_order(part.groups[pool], 0, draw)[:10]]
        fitted = get_aggregator("whitened").fit(part.logits["norm"].select(rows), groups=part.groups[rows])
        values.append(stats.spearmanr(fitted.predict(part.logits["norm"].select(test)).value, part.y[test]).statistic)
    assert np.std(values) > 0
    assert table[table["judge"] == "whitened"]["value"].item() == pytest.approx(np.mean(values))

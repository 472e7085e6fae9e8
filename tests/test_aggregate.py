"""Aggregators: definitions, labels, NaN rows, constant layers, refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import linalg, optimize, stats
from scipy.special import softmax

from probes.aggregate import AGGREGATORS, LayerLogits, get_aggregator
from probes.errors import FitError
from probes.fitted import FittedAggregator
from probes.fitting.consensus import agreement_weights, whitened_weights
from probes.runlike import layer_logits
from tests.fake_run import FakeRun

VALUES = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
NAMES = [name if name != "layer" else "layer:2" for name in AGGREGATORS]


def logits_of(run, lens="norm"):
    return layer_logits(run, lens)


def fitted(spec, run=None, **options):
    run = run or FakeRun()
    aggregator = get_aggregator(spec, **options)
    return aggregator.fit(logits_of(run, aggregator.lens), run.human_value, run.groups)


def expected(logits, values=VALUES):
    return softmax(logits.astype(np.float64), axis=-1) @ values


def refuses(message, call, *args, **kwargs):
    with pytest.raises(FitError) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == message


def test_label_free_definitions():
    run = FakeRun()
    norm, raw = run.item_logits("norm"), run.item_logits("raw")
    predictions = {
        "final": expected(norm[:, -1]),
        "vscore": VALUES[norm[:, -1].argmax(axis=1)],
        "layer:2": expected(norm[:, 2]),
        "layer:embed": expected(norm[:, 0]),
        "uniform": expected(raw.astype(np.float64).mean(axis=1)),
        "uniform@norm": expected(norm.astype(np.float64).mean(axis=1)),
        "final@raw": expected(raw[:, -1]),
        "prob-uniform": softmax(raw.astype(np.float64), axis=-1).mean(axis=1) @ VALUES,
        "prob-uniform:again=1": softmax(softmax(raw.astype(np.float64), axis=-1).mean(axis=1), axis=-1) @ VALUES,
        "prob-uniform-max": VALUES[softmax(raw.astype(np.float64), axis=-1).mean(axis=1).argmax(axis=1)],
        "uniform-max": VALUES[raw.astype(np.float64).mean(axis=1).argmax(axis=1)],
    }
    for spec, value in predictions.items():
        aggregator = get_aggregator(spec)
        assert not aggregator.needs_labels
        assert aggregator.spec == spec
        found = aggregator.fit(logits_of(run, aggregator.lens), None, None)
        assert found.notes["n_fit"] == 0
        scores = found.predict(logits_of(run, aggregator.lens))
        np.testing.assert_allclose(scores.value, value, rtol=1e-9)
        np.testing.assert_allclose(scores.probs.sum(axis=1), 1)


def test_default_lens_is_raw_for_the_lager_family_only():
    raw = {name for name, kind in AGGREGATORS.items() if kind.lens == "raw"}
    tuned = {"lager", "lager-max", "lager-schedule", "lager-released", "prob-tuned", "prob-tuned-max"}
    untuned = {"uniform", "uniform-max", "prob-uniform", "prob-uniform-max"}
    assert raw == tuned | untuned
    assert get_aggregator("lager@norm").lens == "norm"
    assert {name for name, kind in AGGREGATORS.items() if kind.multi_layer} == {
        *raw,
        *("whitened", "agreement", "calibrated", "slope-ridge", "logit-ridge", "low-rank-ridge", "spectral-ridge"),
        "spectral-ordinal",
    }
    free = {name for name, kind in AGGREGATORS.items() if not kind.needs_labels}
    assert free == {"vscore", "final", "layer", "whitened", "agreement", *untuned}


def test_best_layer_is_the_one_that_ranks_the_fit_items_best():
    run = FakeRun(signal=[0, 0.2, 0.9, 1.6, 0.8, 0.1, 0.3])
    values = expected(run.item_logits("norm"))
    by_layer = [stats.spearmanr(values[:, k], run.human_value).statistic for k in range(1, 7)]
    found = fitted("best-layer", run)
    assert found.notes["layer"] == str(1 + int(np.argmax(by_layer)))
    assert found.notes["fit_spearman"] == pytest.approx(max(by_layer))
    assert found.layer_weights().tolist() == [float(k == 1 + int(np.argmax(by_layer))) for k in range(7)]


def test_slopes_and_layer_weights_of_ridges():
    run = FakeRun(scale="0=0,a=1,b=4,c=10")
    values = np.asarray(run.scale.values)
    norm = run.item_logits("norm").astype(np.float64)
    slope = np.stack([np.polyfit(values, norm[:, k].T, 1)[0] for k in range(7)], axis=1)
    found = fitted("slope-ridge", run)
    assert found.notes["constant_columns"] == ["embed"]
    np.testing.assert_allclose(found.params["mean"], slope.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.layer_weights(), found.params["coef"], rtol=1e-9)
    # Of any ridge: tilting a layer by one standard deviation of its slope moves the score by its weight.
    tilt = values - values.mean()
    for spec in ("final-ridge", "best-layer-ridge", "slope-ridge", "logit-ridge"):
        judge = fitted(spec, run)
        before = judge.predict(LayerLogits(norm, run.layers, values, "norm")).value
        for layer in range(1, 7):
            moved = norm.copy()
            moved[:, layer] += slope[:, layer].std() * tilt
            after = judge.predict(LayerLogits(moved, run.layers, values, "norm")).value
            np.testing.assert_allclose(after - before, judge.layer_weights()[layer], atol=1e-9)


def test_ridges_use_the_columns_that_they_name():
    run = FakeRun()
    columns = {
        "final-ridge": [[6, k] for k in range(5)],
        "slope-ridge": [[layer, -1] for layer in range(7)],
        "logit-ridge": [[layer, k] for layer in range(7) for k in range(5)],
    }
    for spec, expected_columns in columns.items():
        found = fitted(spec, run)
        assert found.params["columns"] == expected_columns
        assert found.predict(logits_of(run)).probs is None
    best = fitted("best-layer-ridge", run)
    layer = run.layers.index(best.notes["layer"])
    assert best.params["columns"] == [[layer, k] for k in range(5)]
    assert fitted("logit-ridge", run).notes["constant_columns"] == [f"embed/{k}" for k in range(5)]


def test_other_layers_help_a_ridge_when_errors_are_independent():
    train, test = FakeRun(300, signal=[0] + [0.8] * 6), FakeRun(300, signal=[0] + [0.8] * 6, seed=1)
    agreement = {}
    for spec in ("final-ridge", "slope-ridge", "logit-ridge", "lager"):
        judge = fitted(spec, train)
        value = judge.predict(logits_of(test, judge.lens)).value
        agreement[spec] = stats.spearmanr(value, test.human_value).statistic
    assert min(agreement[spec] for spec in ("slope-ridge", "logit-ridge", "lager")) > agreement["final-ridge"] + 0.1


@pytest.mark.parametrize("spec", NAMES)
def test_nan_rows_give_nan_and_change_nothing_else(spec):
    run = FakeRun()
    judge = fitted(spec, run)
    whole = judge.predict(logits_of(run, judge.lens))
    holed = run.item_logits(judge.lens).copy()
    holed[3] = np.nan
    holed[7, 2, 1] = np.nan
    scores = judge.predict(replace(logits_of(run, judge.lens), logits=holed))
    assert np.flatnonzero(np.isnan(scores.value)).tolist() == [3, 7]
    keep = np.delete(np.arange(120), [3, 7])
    np.testing.assert_allclose(scores.value[keep], whole.value[keep], rtol=1e-12)
    if scores.probs is not None:
        assert np.isnan(scores.probs[[3, 7]]).all()
        assert np.isfinite(scores.probs[keep]).all()


@pytest.mark.parametrize("spec", NAMES)
def test_fitted_aggregators_are_plain_data(spec):
    judge = fitted(spec)
    assert judge.name == spec
    assert json.loads(json.dumps([judge.params, judge.notes], allow_nan=False)) == [judge.params, judge.notes]
    assert judge.layer_weights().shape == (7,)
    assert judge.notes["n_fit"] == (120 if get_aggregator(spec).needs_labels else 0)


@pytest.mark.parametrize("spec", NAMES)
def test_fits_repeat_and_ignore_the_order_of_columns_in_memory(spec):
    run, aggregator = FakeRun(), get_aggregator(spec)
    logits = logits_of(run, aggregator.lens)
    fortran = replace(logits, logits=np.asfortranarray(logits.logits))
    one = aggregator.fit(logits, run.human_value, run.groups)
    two = aggregator.fit(fortran, run.human_value, run.groups)
    np.testing.assert_allclose(one.layer_weights(), two.layer_weights(), rtol=1e-6, atol=1e-9)


def test_weights_of_mixtures_lie_on_the_simplex_and_alpha_matters():
    for spec in ("uniform", "lager", "lager-schedule", "lager-released"):
        weights = fitted(spec).layer_weights()
        assert weights.sum() == pytest.approx(1)
        assert (weights >= 0).all()
    assert fitted("uniform").layer_weights().tolist() == [1 / 7] * 7
    low, high = fitted("lager", alpha=0.05), fitted("lager", alpha=0.95)
    assert np.abs(low.layer_weights() - high.layer_weights()).max() > 0.02
    assert low.notes["converged"]
    one, many = fitted("lager-schedule"), fitted("lager-schedule", epochs=5)
    assert np.abs(one.layer_weights() - many.layer_weights()).max() > 1e-3


def test_constant_layers_are_never_chosen():
    run = FakeRun(signal=[0, 0, 0, 0, 0, 0, 0.1])
    for lens in run.lenses:
        run.logits[lens] = run.logits[lens].copy()
        # Noise of rounding only, made to follow the human scores.
        run.logits[lens][:, :6] = 1 + 1e-7 * run.human_value[:, None, None] * np.arange(5)
    assert fitted("best-layer", run).notes["layer"] == "6"
    assert fitted("best-layer-ridge", run).notes["layer"] == "6"
    for lens in run.lenses:
        run.logits[lens][:, 6] = 0
    refuses("best-layer cannot be fitted: every layer gives all 120 items the same score", fitted, "best-layer", run)
    refuses(
        "best-layer-ridge cannot be fitted: every layer gives all 120 items the same logits",
        fitted,
        "best-layer-ridge",
        run,
    )
    flat = fitted("final-ridge", run)
    np.testing.assert_allclose(flat.predict(logits_of(run)).value, run.human_value.mean())


def test_settings_are_part_of_the_name():
    judge = get_aggregator("lager:alpha=0.3@norm")
    assert judge.options == {"alpha": 0.3}
    assert judge == get_aggregator("lager@norm", alpha=0.3)
    assert (judge.spec, judge.label, judge.kind) == ("lager:alpha=0.3@norm", "lager:alpha=0.3", "lager")
    assert get_aggregator("lager:alpha=0.5").spec == "lager"
    assert get_aggregator("lager-schedule:alpha=0.25,epochs=2").spec == "lager-schedule:alpha=0.25,epochs=2"
    assert fitted("lager:alpha=0.3@norm").name == "lager:alpha=0.3"


def test_unknown_names_and_settings_are_refused_in_one_line():
    choices = (
        "vscore, final, layer:LAYER, uniform, uniform-max, prob-uniform, prob-uniform-max, whitened, agreement, "
        "best-layer, lager, lager-max, prob-tuned, prob-tuned-max, lager-schedule, lager-released, calibrated, "
        "final-ridge, best-layer-ridge, slope-ridge, logit-ridge, low-rank-ridge, spectral-ridge, spectral-ordinal, "
        "residual-ridge, text-ridge"
    )
    refuses(f"unknown judge 'lagr' (did you mean lager?): choose one of {choices}", get_aggregator, "lagr")
    refuses(f"unknown judge 'zzz': choose one of {choices}", get_aggregator, "zzz")
    refuses("layer needs a layer: write layer:12 or layer:embed", get_aggregator, "layer")
    refuses("final takes no argument '3': write final", get_aggregator, "final:3")
    refuses("lager takes no argument 'alpha=x': write lager:alpha=NUMBER", get_aggregator, "lager:alpha=x")
    refuses("the judge 'lager@' names no lens after @: write lager@raw or lager@norm", get_aggregator, "lager@")
    refuses("final has no setting 'alpha': it has none", get_aggregator, "final", alpha=0.5)
    refuses("lager has no setting 'epochs': it has alpha", get_aggregator, "lager", epochs=2)
    refuses("alpha must lie between 0 and 1, got 1.5", get_aggregator, "lager", alpha=1.5)
    refuses("again must be 0 or 1, got 2", get_aggregator, "prob-uniform:again=2")
    refuses("epochs must be a whole number from 1, got 0", get_aggregator, "lager-schedule", epochs=0)


def test_fits_refuse_what_they_cannot_use():
    run = FakeRun()
    raw, lager = logits_of(run, "raw"), get_aggregator("lager")
    refuses("lager needs human scores to fit: pass them, or use a judge such as uniform", lager.fit, raw)
    refuses("lager reads the lens 'raw', but got logits of 'norm'", lager.fit, logits_of(run), run.human_value)
    refuses("lager got 119 human scores for 120 items: pass one an item", lager.fit, raw, run.human_value[1:])
    few = np.arange(9)
    refuses(
        "lager needs at least 10 items with a human score to fit, got 9: label more items, or use a judge that "
        "needs none, such as uniform",
        lager.fit,
        raw.select(few),
        run.human_value[few],
    )
    refuses(
        "lager cannot be fitted: all 120 human scores are 3; add items that differ",
        lager.fit,
        raw,
        np.full(120, 3.0),
    )
    unlabelled = "lager can only be fitted on captured items with a human score: drop the others"
    refuses(unlabelled, lager.fit, raw, np.where(np.arange(120) == 5, np.nan, run.human_value))
    holed = raw.logits.copy()
    holed[5] = np.nan
    refuses(unlabelled, lager.fit, LayerLogits(holed, raw.layers, VALUES, "raw"), run.human_value)
    refuses("there is no layer '9': choose one of embed, 1 .. 6", get_aggregator("layer:9").fit, logits_of(run))
    one = LayerLogits(raw.logits[:, :1], ("embed",), VALUES, "raw")
    refuses(
        "lager-released drops the last layer and needs at least two, got 1",
        get_aggregator("lager-released").fit,
        one,
        run.human_value,
    )


def test_predictions_refuse_other_logits():
    run = FakeRun()
    judge, norm = fitted("final", run), logits_of(run)
    refuses("final was fitted on the lens 'norm', not 'raw': pass its logits", judge.predict, logits_of(run, "raw"))
    refuses(
        "final was fitted on 7 layers (embed .. 6), not on 6 (embed .. 5): it belongs to another model",
        judge.predict,
        LayerLogits(norm.logits[:, :6], norm.layers[:6], VALUES, "norm"),
    )
    refuses(
        "final was fitted on labels worth 1, 2, 3, 4, 5, not 1, 2, 3, 4: fit it on this scale",
        judge.predict,
        LayerLogits(norm.logits[:, :, :4], norm.layers, VALUES[:4], "norm"),
    )


def test_select_takes_indices_and_masks():
    logits = logits_of(FakeRun())
    mask = np.zeros(120, dtype=bool)
    mask[[2, 4]] = True
    np.testing.assert_array_equal(logits.select(mask).logits, logits.select(np.array([2, 4])).logits)
    assert len(logits.select(mask)) == 2
    assert re.fullmatch("norm", logits.select(mask).lens)


def test_tuned_probabilities_are_at_the_minimum_that_another_solver_finds():
    """The problem is convex in the weights; SLSQP solves it on the simplex itself."""
    run = FakeRun(80, 3, signal=[0, 0.4, 1.2, 0.6])
    probs = softmax(run.item_logits("norm").astype(np.float64), axis=-1)
    target = np.array([np.interp(y, VALUES, np.eye(5)[k]) for y in run.human_value for k in range(5)]).reshape(-1, 5)

    def loss(weights):
        mixed = np.einsum("l,nlk->nk", weights, probs)
        error = np.sqrt((mixed @ VALUES - run.human_value) ** 2 + 0.004**2)
        return np.mean(-0.3 * (target * np.log(mixed)).sum(axis=1) + 0.7 * error)

    ours = np.array(fitted("prob-tuned:alpha=0.3@norm", run).params["weights"])
    simplex = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    best = optimize.minimize(loss, np.full(4, 0.25), bounds=[(1e-9, 1)] * 4, constraints=simplex, tol=1e-10)
    assert abs(ours.sum() - 1) < 1e-12
    assert loss(ours) <= best.fun + 1e-5
    assert fitted("prob-tuned:alpha=0.3@norm", run).notes["converged"]


def test_maxima_read_the_same_weights_out_differently():
    run = FakeRun()
    for name in ("lager", "prob-tuned"):
        mean, top = fitted(name, run), fitted(f"{name}-max", run)
        assert mean.params["weights"] == top.params["weights"]
        scores = top.predict(logits_of(run, "raw"))
        assert set(scores.value) <= set(VALUES)
        np.testing.assert_array_equal(VALUES[scores.probs.argmax(axis=1)], scores.value)


def test_whitened_layers_share_a_vote_where_they_repeat_each_other():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 500))
    layers = np.stack([np.full(500, 3.0), 3 + one, 3 + one, 3 + one, 3 + 10 * two], axis=1)
    weights = whitened_weights(layers)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == 0
    # In units of standard deviations; three copies have as much together as one alone times the root of three.
    votes = weights * layers.std(axis=0)
    assert votes[1] == pytest.approx(votes[2])
    assert votes[1:4].sum() / votes[4] == pytest.approx(np.sqrt(3), rel=0.05)
    standard = (layers[:, 1:] - layers[:, 1:].mean(axis=0)) / layers[:, 1:].std(axis=0)
    root = linalg.inv(linalg.sqrtm(standard.T @ standard / 500 + 1e-3 * np.eye(4))) @ np.ones(4)
    np.testing.assert_allclose(votes[1:] / votes[1:].sum(), root / root.sum(), rtol=1e-6)


def test_agreement_trusts_layers_that_rank_as_the_others_do():
    rng = np.random.default_rng(0)
    common = rng.normal(size=400)
    layers = 3 + np.stack([common + 0.3 * rng.normal(size=400) for _ in range(4)] + [-common, np.zeros(400)], axis=1)
    weights = agreement_weights(layers)
    assert weights[4] == weights[5] == 0
    assert (weights[:4] > 0.2).all()
    ranks = stats.spearmanr(layers[:, :5]).statistic
    expected_weights = np.maximum((ranks.sum(axis=0) - 1) / 4, 0) / layers[:, :5].std(axis=0)
    np.testing.assert_allclose(weights[:5], expected_weights / expected_weights.sum(), rtol=1e-9)


def test_consensus_of_layers_that_say_nothing_is_uniform():
    assert whitened_weights(np.full((20, 4), 3.0)).tolist() == [0.25] * 4
    assert agreement_weights(np.full((20, 4), 3.0)).tolist() == [0.25] * 4


def test_negative_weights_give_no_distribution():
    run = FakeRun()
    found = FittedAggregator(
        "whitened", "norm", run.layers, tuple(VALUES), "prob-mixture", {"weights": [-1.0, 2.0, 0, 0, 0, 0, 0]}
    )
    scores = found.predict(logits_of(run))
    assert scores.probs is None
    values = expected(run.item_logits("norm"))
    np.testing.assert_allclose(scores.value, 2 * values[:, 1] - values[:, 0])

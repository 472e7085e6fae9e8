"""Maps of label logits: the tuned lens and calibration, against known maps and a general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import log_softmax, softmax

from probes import aggregate
from probes.aggregate import get_aggregator
from probes.comparing import compare, score
from probes.errors import FitError
from probes.fitting.lowrank import fit_rank_one
from probes.fitting.maps import PULLS, LayerMaps, _map_of, fit_calibration, fit_tuned, kl_to_last
from probes.fitting.simplex import interpolated_target
from probes.protocol import make_folds
from probes.runlike import layer_logits
from probes.tuned import tuned_lens
from tests.fake_run import FakeRun

VALUES = np.array([1.0, 2.0, 3.0, 4.0])


def mapped_layers(n_items, seed=0):
    """Layers of which the first is another affine map of the last one, the second is noise, the third the same."""
    rng = np.random.default_rng(seed)
    last = rng.normal(size=(n_items, 4)) * 1.5
    matrix = np.eye(4) + 0.5 * rng.normal(size=(4, 4))
    first = (last - last.mean(axis=1, keepdims=True)) @ matrix.T + [3.0, 0.0, -2.0, 1.0]
    noise = 2 * rng.normal(size=(n_items, 4))
    return np.stack([first, noise, last, last], axis=1)


def test_tuned_lens_undoes_an_affine_map_and_leaves_the_last_layer_alone():
    train, test = np.split(mapped_layers(500), [400])
    found = fit_tuned(train, np.arange(400))
    before, after = kl_to_last(test).mean(axis=0), kl_to_last(found.maps.apply(test)).mean(axis=0)
    assert before[0] > 0.5
    assert after[0] < 0.01
    assert after[1] < before[1]  # the mean distribution is better than noise
    assert found.maps.matrix[2:] == pytest.approx(np.stack([np.eye(4)] * 2), abs=1e-6)
    np.testing.assert_array_equal(found.maps.apply(test)[:, -1], test[:, -1])
    # What was said of held-out items is what it is on other ones.
    np.testing.assert_allclose(found.kl_before, before, rtol=0.3, atol=1e-9)
    np.testing.assert_allclose(found.kl_after[1], after[1], rtol=0.3)


@pytest.mark.parametrize("n_items", [10, 30])
def test_tuned_lens_of_few_items_is_never_far_worse_than_none(n_items):
    """Layers that are the last one plus noise need no map: one would be fitted to the noise."""
    worse = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        last = rng.normal(size=(n_items + 200, 4))
        stack = np.stack([last + 0.1 * rng.normal(size=last.shape), last], axis=1)
        found = fit_tuned(stack[:n_items], np.arange(n_items))
        assert (found.kl_after <= found.kl_before).all()
        test = stack[n_items:]
        worse.append(kl_to_last(found.maps.apply(test)).mean(axis=0)[0] / kl_to_last(test).mean(axis=0)[0])
    assert np.median(worse) < 1.2


def test_divergence_is_that_of_the_formula():
    stack = mapped_layers(5)
    p, q = softmax(stack[:, -1], axis=1), softmax(stack[:, 0], axis=1)
    np.testing.assert_allclose(kl_to_last(stack)[:, 0], (p * np.log(p / q)).sum(axis=1))


def test_a_map_is_the_minimum_of_its_loss():
    stack = mapped_layers(60)
    logits, target = stack[:, 1], softmax(stack[:, -1], axis=1)
    pull = PULLS[3]
    matrix, bias = _map_of(logits, target, pull)
    own = logits - logits.mean(axis=1, keepdims=True)
    size = np.sqrt(((own - own.mean(axis=0)) ** 2).mean())
    columns = np.hstack([(own - own.mean(axis=0)) / size, np.ones((60, 1))])

    def loss(raw):
        found = log_softmax(own + columns @ raw.reshape(5, 4), axis=1)
        return -(target * found).sum(axis=1).mean() + pull / 2 * raw @ raw

    best = optimize.minimize(loss, np.zeros(20), method="BFGS", options={"gtol": 1e-8})
    ours = softmax(logits @ matrix.T + bias, axis=1)
    theirs = softmax(own + columns @ best.x.reshape(5, 4), axis=1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_calibration_is_the_minimum_of_the_cross_entropy_with_a_prior_of_one_item():
    stack = mapped_layers(50)
    y = np.clip(2.5 + stack[:, -1, 3] - stack[:, -1, 0], 1, 4)
    maps = fit_calibration(stack, y, VALUES)
    target = interpolated_target(y, VALUES)
    for layer in range(3):
        own = stack[:, layer] - stack[:, layer].mean(axis=1, keepdims=True)
        own = own - own.mean(axis=0)
        own = own / np.sqrt((own**2).mean())

        def loss(raw, own=own):
            found = log_softmax(raw[0] * own + raw[1:], axis=1)
            return -(target * found).sum() + raw @ raw / 2

        best = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
        theirs = softmax(best.x[0] * own + best.x[1:], axis=1)
        np.testing.assert_allclose(softmax(maps.apply(stack)[:, layer], axis=1), theirs, atol=1e-5)


def test_maps_compose_and_survive_json():
    rng = np.random.default_rng(0)
    one, two = (LayerMaps(rng.normal(size=(3, 4, 4)), rng.normal(size=(3, 4))) for _ in range(2))
    logits = rng.normal(size=(5, 3, 4))
    np.testing.assert_allclose(two.after(one).apply(logits), two.apply(one.apply(logits)))
    np.testing.assert_array_equal(LayerMaps.from_dict(one.to_dict()).apply(logits), one.apply(logits))


def test_constant_layers_get_a_bias_only():
    stack = mapped_layers(40)
    stack[:, 1] = [1.0, 2.0, 3.0, 9.0]
    tuned = fit_tuned(stack, np.arange(40)).maps
    assert np.ptp(tuned.apply(stack)[:, 1], axis=0).max() < 1e-9
    calibrated = fit_calibration(stack, np.tile([1.0, 2.0, 3.0, 4.0], 10), VALUES)
    probs = softmax(calibrated.apply(stack)[:, 1], axis=1)
    np.testing.assert_allclose(probs, 0.25, atol=1e-6)


@pytest.mark.parametrize("spec", ["uniform", "lager", "best-layer", "slope-ridge", "spectral-ordinal", "calibrated"])
def test_any_judge_can_read_the_tuned_lens(spec):
    run, aggregator = FakeRun(), get_aggregator(f"{spec}@tuned")
    assert (aggregator.lens, aggregator.reads) == ("tuned", "norm")
    logits = layer_logits(run, "norm")
    judge = aggregator.fit(logits, run.human_value, run.groups)
    assert len(judge.notes["kl_norm"]) == len(judge.notes["kl_tuned"]) == 7
    # The same as the judge on logits that were mapped beforehand.
    mapped = fit_tuned(logits.logits, run.groups).maps.apply(logits.logits)
    run.logits["norm"] = mapped
    plain = get_aggregator(f"{spec}@norm")
    expected = plain.fit(layer_logits(run, "norm"), run.human_value, run.groups).predict(layer_logits(run, "norm"))
    found = judge.predict(logits)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)


def test_the_last_layer_under_the_tuned_lens_is_the_last_layer():
    run = FakeRun()
    logits = layer_logits(run, "norm")
    tuned, plain = (get_aggregator(spec).fit(logits).predict(logits) for spec in ("final@tuned", "final"))
    np.testing.assert_allclose(tuned.value, plain.value, rtol=1e-12)
    with pytest.raises(FitError, match="needs at least 10 captured items to tune the lens on, got 9"):
        get_aggregator("final@tuned").fit(logits.select(np.arange(9)))


def test_rank_one_weights_are_found_again():
    rng = np.random.default_rng(0)
    centred = rng.normal(size=(400, 5, 4))
    centred -= centred.mean(axis=2, keepdims=True)
    truth = np.outer([0, 1.0, -2.0, 0.5, 0], [1.0, -1.0, 2.0, -2.0])
    y = (centred * truth).sum(axis=(1, 2)) + 0.1 * rng.normal(size=400)
    found, _ = fit_rank_one(centred, y, np.arange(400), VALUES)
    assert np.linalg.matrix_rank(found, tol=1e-9) == 1
    np.testing.assert_allclose(found, truth, atol=0.1)
    # With nothing to find, nothing is divided by zero.
    flat, _ = fit_rank_one(np.zeros((20, 5, 4)), rng.normal(size=20), np.arange(20), VALUES)
    assert (flat == 0).all()


def test_report_of_held_out_divergences():
    run = FakeRun(80, 3, group=2)
    stack = run.logits["norm"]
    stack[:, 1] = 0.5 * stack[:, 3] + [4, 0, 0, 0, 0]  # a map of the last layer
    stack[:, 2] = stack[:, 3]
    table = tuned_lens(run, folds=4, resamples=200)
    assert table["layer"].tolist() == ["embed", "1", "2"]
    logits = stack.astype(np.float64)
    p, q = softmax(logits[:, -1], axis=1), softmax(logits[:, :-1], axis=2)
    plain = (p[:, None] * (np.log(p)[:, None] - np.log(q))).sum(axis=2)
    np.testing.assert_allclose(table["kl_norm"], plain.mean(axis=0), atol=1e-9)
    # By hand: each fold with the lens of the others.
    folds = make_folds(run.human_value, run.groups, 4, 1, 0)
    groups = np.unique(run.groups.astype(str), return_inverse=True)[1]
    by_hand = np.zeros((80, 3))
    for fold in range(4):
        test = folds.fold[0] == fold
        mapped = fit_tuned(stack[~test], groups[~test]).maps.apply(stack[test])[:, :-1]
        r = np.log(softmax(mapped, axis=2))
        by_hand[test] = (p[test, None] * (np.log(p[test])[:, None] - r)).sum(axis=2)
    np.testing.assert_allclose(table["kl_tuned"], by_hand.mean(axis=0), atol=1e-9)
    assert table["lowered"].tolist() == [True, True, False]
    gain = table.set_index("layer").loc["1"]
    of_groups = (plain - by_hand)[:, 1].reshape(40, 2).mean(axis=1)
    error = of_groups.std(ddof=1) / np.sqrt(40)
    assert gain["gain_hi"] - gain["gain"] == pytest.approx(stats.t.isf(0.025, 39) * error, rel=0.15)


def test_layers_that_the_lens_does_not_help_are_named():
    run = FakeRun(60, 3, group=2)
    run.logits["norm"][:, 2] = run.logits["norm"][:, 3]
    found = compare(run, ["final", "uniform@tuned"], folds=3, repeats=1, resamples=60)
    assert found.warnings[-1] == "the tuned lens does not lower the held-out divergence from the last layer at 2"


def test_the_lens_is_tuned_on_groups_in_every_fold_and_when_scoring(monkeypatch):
    seen = []
    plain = aggregate.fit_tuned
    monkeypatch.setattr(
        aggregate, "fit_tuned", lambda logits, groups: seen.append(len(np.unique(groups))) or plain(logits, groups)
    )
    run = FakeRun(60, 3, group=10)
    compare(run, ["uniform@tuned"], folds=3, repeats=1, resamples=60)
    assert seen == [4, 4, 4, 6]
    scores = score(run, "uniform@tuned").value
    assert seen[-1] == 6
    expected = get_aggregator("uniform@tuned").fit(layer_logits(run, "norm"), groups=run.groups)
    np.testing.assert_allclose(scores, expected.predict(layer_logits(run, "norm")).value)


def test_bad_settings_of_the_report_are_refused():
    for bad in ({"level": 2}, {"resamples": 0}, {"seed": -1}):
        with pytest.raises(FitError):
            tuned_lens(FakeRun(40, 2), **bad)

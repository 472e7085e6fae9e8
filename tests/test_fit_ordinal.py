"""Proportional odds: the minimum of the penalised likelihood, distributions, labels that nobody gave."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit

from probes.aggregate import get_aggregator
from probes.fitting import ordinal
from probes.fitting.ordinal import fit_ordinal, label_probabilities
from probes.fitting.simplex import interpolated_target
from probes.fitting.spectral import Components, fit_spectral
from probes.runlike import layer_logits
from tests.fake_run import FakeRun

VALUES = np.array([1.0, 2.0, 4.0, 5.0])


def data(n_items=80, n_columns=6, seed=0):
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(n_items, n_columns)) @ rng.normal(size=(n_columns, n_columns)) + 3
    y = np.clip(3 + columns[:, 0] - 3 + 0.7 * rng.normal(size=n_items), 1, 5)
    return columns, np.round(y * 3) / 3, np.arange(n_items) // 2


def test_fit_is_the_minimum_of_the_penalised_likelihood():
    """Found again by a general optimiser from the formulas in the docs, without components or Newton steps."""
    columns, y, groups = data()
    found = fit_ordinal(columns, y, groups, VALUES)
    assert found.converged
    standardised = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    values, vectors = np.linalg.eigh(standardised.T @ standardised)
    metric = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    target = interpolated_target(y, VALUES)
    frequency = target.sum(axis=0) + ordinal._PRIOR
    below = np.cumsum(frequency / frequency.sum())[:-1]
    density, mass = below * (1 - below), np.diff(below, prepend=0, append=1)
    # Information about the latent score where nothing is known of the item: the variance of its score function.
    score = (np.append(density, 0) - np.insert(density, 0, 0)) / mass
    penalty = found.penalty * columns.shape[1] / np.sqrt(len(y)) * (mass * score**2).sum()

    def loss(raw):
        coef, cuts = raw[:6], np.cumsum(np.concatenate([raw[6:7], np.exp(raw[7:])]))

        def probs(latent):
            return np.diff(expit(cuts - latent[:, None]), axis=1, prepend=0, append=1)

        seen = -(target * np.log(probs(standardised @ coef))).sum()
        prior = -ordinal._PRIOR * np.log(probs(np.zeros(1))).sum()
        return seen + prior + penalty / 2 * coef @ metric @ coef

    start = np.concatenate([np.zeros(6), [-1.0, 0.0, 0.0]])
    best = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    cuts = np.cumsum(np.concatenate([best.x[6:7], np.exp(best.x[7:])]))
    np.testing.assert_allclose(found.coef, best.x[:6], atol=2e-5)
    np.testing.assert_allclose(found.thresholds, cuts, atol=2e-5)
    assert found.penalty == fit_spectral(columns, y, groups).penalty


def test_probabilities_are_differences_of_a_logistic_curve_and_exact_in_its_tails():
    cuts = np.array([-2.0, 0.0, 1.5])
    latent = np.array([-60.0, -1.0, 0.3, 60.0])
    probs = label_probabilities(latent, cuts)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-15)
    plain = np.diff(expit(cuts - latent[1:3, None]), axis=1, prepend=0, append=1)
    np.testing.assert_allclose(probs[1:3], plain, rtol=1e-12)
    # sigmoid(-58.5) - sigmoid(-60), which 1 - (1 - tiny) would round to 0.
    np.testing.assert_allclose(probs[3, 2], np.exp(-58.5) - np.exp(-60), rtol=1e-12)
    np.testing.assert_allclose(probs[0, 1], np.exp(-58.0) - np.exp(-60), rtol=1e-1)


@pytest.mark.parametrize("given", [(2.0, 4.0), (1.0, 5.0), (1.0, 2.0)])
def test_labels_that_nobody_gave_keep_a_small_probability(given):
    columns, y, groups = data()
    found = fit_ordinal(columns, np.where(y > np.median(y), given[1], given[0]), groups, VALUES)
    assert found.converged
    assert (np.diff(found.thresholds) > 0).all()
    probs = label_probabilities((columns - columns.mean(axis=0)) / found.spread @ found.coef, found.thresholds)
    missing = ~np.isin(VALUES, given)
    assert (probs[:, missing].mean(axis=0) < 0.02).all()
    assert (probs[:, missing] > 0).all()


def test_components_rebuild_the_columns_and_drop_what_is_constant():
    columns, _, _ = data(8, 6)
    columns[:, 2] = 7.0
    parts = Components.of(np.hstack([columns, columns]))
    np.testing.assert_allclose(parts.right.T @ parts.right, np.eye(len(parts.size)), atol=1e-9)
    rebuilt = parts.standardised @ parts.right @ parts.right.T
    np.testing.assert_allclose(rebuilt, parts.standardised, atol=1e-9)
    assert len(parts.size) == 5
    assert (parts.standardised[:, [2, 8]] == 0).all()


def test_the_judge_gives_distributions_that_ignore_what_is_common_to_a_layers_labels():
    run, aggregator = FakeRun(), get_aggregator("spectral-ordinal")
    logits = layer_logits(run, "norm")
    judge = aggregator.fit(logits, run.human_value, run.groups)
    scores = judge.predict(logits)
    np.testing.assert_allclose(scores.probs.sum(axis=1), 1)
    np.testing.assert_allclose(scores.value, scores.probs @ np.asarray(run.scale.values))
    run.logits["norm"] = run.logits["norm"] + np.float32(4)
    np.testing.assert_allclose(judge.predict(layer_logits(run, "norm")).value, scores.value, rtol=1e-5)
    # An average item, one layer tilted a little: the score moves by the layer's weight.
    centre = logits.logits.astype(np.float64).mean(axis=0)[None]
    values = np.asarray(run.scale.values)
    tilt = values - values.mean()
    slope = (logits.logits.astype(np.float64) @ tilt / (tilt @ tilt)).std(axis=0)
    at_centre = run_score(judge, logits, centre)
    for layer in range(1, 7):
        moved = centre.copy()
        moved[:, layer] += 1e-4 * slope[layer] * tilt
        change = (run_score(judge, logits, moved) - at_centre) / 1e-4
        assert change == pytest.approx(judge.layer_weights()[layer], rel=1e-3, abs=1e-6)


def run_score(judge, logits, values):
    from dataclasses import replace

    return judge.predict(replace(logits, logits=values, states=None, fields=[{}])).value[0]

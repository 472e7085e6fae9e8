"""The spectral ridge against its definition, solved by other means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from probes.aggregate import LayerLogits, get_aggregator
from probes.fitting.ridge import group_folds
from probes.fitting.spectral import SHRINKAGES, fit_spectral
from tests.fake_run import FakeRun


def problem(n_items, n_columns, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n_items, 3))
    columns = common @ rng.normal(size=(3, n_columns)) + 0.2 * rng.normal(size=(n_items, n_columns))
    columns[:, 1] = 7.0
    y = common[:, 0] - 2 * columns[:, 0] + columns[:, 2] + 0.3 * rng.normal(size=n_items) + 3
    return 5 + 3 * columns, y


@pytest.mark.parametrize(("n_items", "n_columns"), [(60, 8), (20, 45)])
def test_the_solution_is_the_minimum_of_its_definition(n_items, n_columns):
    columns, y = problem(n_items, n_columns)
    found = fit_spectral(columns, y, np.arange(n_items))
    varying = ~found.constant
    assert found.constant.tolist() == [column == 1 for column in range(n_columns)]
    assert found.coef[1] == 0
    x = (columns[:, varying] - columns[:, varying].mean(axis=0)) / columns[:, varying].std(axis=0)
    c = found.penalty * n_columns / np.sqrt(n_items)
    target = y - y.mean()
    root = linalg.sqrtm(x.T @ x).real
    b = found.coef[varying]
    # The gradient of ||y - X b||^2 + c b' (X'X)^(1/2) b is zero where X varies.
    gradient = x.T @ (x @ b - target) + c * root @ b
    assert np.abs(gradient).max() < 1e-6 * np.abs(x.T @ target).max()
    assert found.intercept == pytest.approx(y.mean())


def test_the_shrinkage_is_the_one_that_predicts_held_out_groups_best():
    columns, y = problem(80, 10)
    groups = np.arange(80) // 2
    fold = group_folds(groups, 5)
    errors = []
    for shrinkage in SHRINKAGES:
        error = 0.0
        for held_out in range(5):
            train, test = fold != held_out, fold == held_out
            one = fit_spectral(columns[train], y[train], groups[train], np.array([shrinkage]))
            predicted = one.intercept + ((columns[test] - one.mean) / one.spread) @ one.coef
            error += ((predicted - y[test]) ** 2).sum()
        errors.append(error)
    assert fit_spectral(columns, y, groups).penalty == SHRINKAGES[int(np.argmin(errors))]


def test_a_judge_of_it_does_not_see_what_a_softmax_does_not_see():
    run = FakeRun(200)
    values = np.asarray(run.scale.values)
    logits = run.item_logits("norm")
    shift = np.random.default_rng(0).normal(size=logits.shape[:2]).astype(np.float32)
    aggregator = get_aggregator("spectral-ridge")
    scores = []
    for changed in (logits, logits + 4 * shift[:, :, None]):
        layers = LayerLogits(changed, run.layers, values, "norm")
        scores.append(aggregator.fit(layers, run.human_value, run.groups).predict(layers).value)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_nearly_equal_layers_do_not_hide_what_they_differ_in():
    """Twelve layers repeat each other, and what raters see is a small difference between two of them."""
    rng = np.random.default_rng(0)
    values = np.arange(1.0, 6.0)
    common, small = rng.normal(size=(300, 1)), 0.05 * rng.normal(size=(300, 12))
    logits = ((common + small)[:, :, None] * (values - 3)).astype(np.float32)
    y = 3 + 20 * (small[:, 4] - small[:, 9]) + 0.3 * rng.normal(size=300)
    layers = LayerLogits(logits, ("embed", *map(str, range(1, 12))), values, "norm")
    train, test = np.arange(150), np.arange(150, 300)

    def agreement(name):
        fitted = get_aggregator(name).fit(layers.select(train), y[train], None)
        return np.corrcoef(fitted.predict(layers.select(test)).value, y[test])[0, 1]

    assert agreement("spectral-ridge") > 0.9
    assert agreement("final-ridge") < 0.3

"""The ridge against scikit-learn, its inner folds, and its constant columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from probes.fitting.ridge import INNER_FOLDS, PENALTIES, fit_ridge, group_folds


def draw(n_items=60, n_columns=8, problems=1, seed=0):
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(problems, n_items, n_columns)) * 10 ** rng.uniform(-2, 3, n_columns) + 50
    y = columns[0] @ (rng.normal(size=n_columns) / columns[0].std(axis=0)) + rng.normal(size=n_items)
    return columns, y, np.array([f"g{i // 3}" for i in range(n_items)], dtype=object)


def predict(found, columns):
    return found.intercept + ((columns - found.mean) / found.spread) @ found.coef


def by_sklearn(train, y, test, penalty):
    scaler = StandardScaler().fit(train)
    return Ridge(alpha=penalty).fit(scaler.transform(train), y).predict(scaler.transform(test))


@pytest.mark.parametrize(("n_items", "n_columns"), [(60, 8), (20, 50)])
@pytest.mark.parametrize("penalty", [1.0, 31.6, 1e5])
def test_solution_equals_sklearn(n_items, n_columns, penalty):
    columns, y, groups = draw(n_items, n_columns)
    found = fit_ridge(columns, y, groups, penalties=np.array([penalty]))
    np.testing.assert_allclose(predict(found, columns[0]), by_sklearn(columns[0], y, columns[0], penalty), rtol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_penalty_and_layer_are_those_of_a_plain_search(seed):
    columns, y, groups = draw(24, 4, problems=3, seed=seed)
    # Heavy tails: statistics that include the held-out items would choose otherwise.
    columns = columns + 200 * np.random.default_rng(seed).standard_cauchy(columns.shape)
    grid = PENALTIES[::4]
    fold = group_folds(groups, INNER_FOLDS)
    errors = np.zeros((len(grid), 3))
    for row, penalty in enumerate(grid):
        for problem in range(3):
            for k in range(INNER_FOLDS):
                train, test = fold != k, fold == k
                guess = by_sklearn(columns[problem][train], y[train], columns[problem][test], penalty)
                errors[row, problem] += ((guess - y[test]) ** 2).sum()
    row, problem = np.unravel_index(np.argmin(errors), errors.shape)
    found = fit_ridge(columns, y, groups, penalties=grid)
    assert (found.penalty, found.problem) == (grid[row], problem)
    only = fit_ridge(columns, y, groups, candidates=np.arange(3) == (problem + 1) % 3)
    assert only.problem == (problem + 1) % 3


def test_grid_covers_one_to_a_hundred_thousand():
    assert PENALTIES[0] == 1e5
    assert PENALTIES[-1] == 1
    assert (np.diff(PENALTIES) < 0).all()


def test_constant_columns_get_no_weight_however_noisy():
    columns, y, groups = draw()
    columns[0, :, 2] = 700 + 1e-5 * np.random.default_rng(0).normal(size=60)  # noise of float32 at that size
    columns[0, :, 5] = 0
    found = fit_ridge(columns, y, groups)
    assert np.flatnonzero(found.constant).tolist() == [2, 5]
    assert found.coef[[2, 5]].tolist() == [0, 0]
    without = fit_ridge(np.delete(columns, [2, 5], axis=2), y, groups)
    np.testing.assert_allclose(np.delete(found.coef, [2, 5]), without.coef, rtol=1e-9)


def test_a_single_group_gets_the_largest_penalty():
    columns, y, _ = draw()
    assert fit_ridge(columns, y, np.zeros(60)).penalty == PENALTIES[0]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_inner_folds_never_divide_a_group(members, n_folds):
    groups = np.array([f"g{m}" for m in members], dtype=object)
    fold = group_folds(groups, n_folds)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    assert set(fold) == set(range(min(n_folds, len(set(groups)))))
    np.testing.assert_array_equal(fold, group_folds(groups, n_folds))

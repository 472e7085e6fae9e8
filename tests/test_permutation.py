"""The paired permutation test against doing it by hand, its size under exchangeable judges, and Holm's correction."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from probes import permutation
from probes.permutation import holm, n_permutations, paired_permutation
from probes.protocol import Folds, make_folds, standing


def ranks(scores):
    return np.apply_along_axis(standing, -1, scores)


def swapped_difference(first, second, y, folds, swap):
    """Mean over folds of the difference of correlations, ranks swapped where ``swap`` is true."""
    values = []
    for repeat, test in folds.tests():
        a, b = first[repeat, test], second[repeat, test]
        a, b = np.where(swap[test], b, a), np.where(swap[test], a, b)
        human = stats.rankdata(y[test])
        values.append(np.corrcoef(a, human)[0, 1] - np.corrcoef(b, human)[0, 1])
    return np.mean(values)


def test_p_is_that_of_all_swaps_of_groups_done_by_hand():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(8), 3)
    y = rng.integers(1, 5, 24).astype(float)
    folds = make_folds(y, groups, 2, 2)
    first, second = ranks(y + rng.normal(size=(2, 24))), ranks(np.round(y + 2 * rng.normal(size=(2, 24))))
    observed = abs(swapped_difference(first, second, y, folds, np.zeros(24, dtype=bool)))
    every = [
        abs(swapped_difference(first, second, y, folds, np.array(which)[groups]))
        for which in product([False, True], repeat=8)
    ]
    exact = np.mean([value >= observed - 1e-10 for value in every])
    found = paired_permutation([first], second, y, groups, folds, 20_000)[0]
    assert 0.01 < exact < 0.9
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_blocks_and_company_do_not_change_a_p(monkeypatch):
    rng = np.random.default_rng(0)
    groups, y = np.arange(40) // 2, rng.normal(size=40)
    folds = make_folds(y, groups, 3, 2)
    judges = [ranks(y + rng.normal(size=(2, 40))) for _ in range(3)]
    reference = ranks(y + rng.normal(size=(2, 40)))
    together = paired_permutation(judges, reference, y, groups, folds, 500)
    assert paired_permutation(judges[1:2], reference, y, groups, folds, 500)[0] == together[1]
    monkeypatch.setattr(permutation, "_BLOCK", 3000)
    np.testing.assert_array_equal(paired_permutation(judges, reference, y, groups, folds, 500), together)


def test_p_is_uniform_for_exchangeable_judges_with_ties_and_few_groups_a_fold():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    found, naive = [], []
    for seed in range(200):
        common = rng.normal(size=20)[groups]
        y = np.round(common + 0.5 * rng.normal(size=100))
        folds = make_folds(y, groups, 5, 1, seed)
        errors = np.sqrt(0.9) * rng.normal(size=(2, 20))[:, groups] + np.sqrt(0.1) * rng.normal(size=(2, 100))
        first, second = ranks(np.round(2 * (common + errors)))[:, None]
        found.append(paired_permutation([first], second, y, groups, folds, 99, seed)[0])
        naive.append(paired_permutation([first], second, y, np.arange(100), folds, 99, seed)[0])
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.046)
    assert stats.kstest(found, "uniform").pvalue > 0.005
    # The check can fail: swapping single items, as if those of a group were independent, rejects too often.
    assert np.mean(np.array(naive) <= 0.05) > 0.15


def test_a_better_judge_is_found_and_the_smallest_p_is_one_in_all():
    rng = np.random.default_rng(1)
    y = rng.normal(size=100)
    folds = make_folds(y, np.arange(100), 5, 1)
    good, bad = ranks(y + 0.3 * rng.normal(size=100))[None], ranks(y + 3 * rng.normal(size=100))[None]
    assert paired_permutation([good, 101 - good, bad], bad, y, np.arange(100), folds, 999).tolist() == [
        0.001,
        0.001,
        1.0,
    ]


def test_folds_without_a_coefficient_are_left_out_and_none_left_is_nan():
    rng = np.random.default_rng(2)
    y = rng.normal(size=40)
    folds = Folds(np.repeat([[0, 1]], 20, axis=1), 2)
    reference, judge = ranks(y + rng.normal(size=(2, 40)))[:, None]
    gaps = np.where(np.arange(40) < 20, np.nan, judge)
    flat = np.where(np.arange(40) < 20, 3.0, judge)
    half = Folds(np.repeat([[1]], 20, axis=1), 2)
    alone = paired_permutation([judge[:, 20:]], reference[:, 20:], y[20:], np.arange(20), half, 4000)[0]
    for partial in (gaps, flat):
        found = paired_permutation([partial], reference, y, np.arange(40), folds, 4000)[0]
        assert found == pytest.approx(alone, abs=0.04)
    nothing = np.full((1, 40), 3.0)
    assert np.isnan(paired_permutation([nothing], reference, y, np.arange(40), folds, 50)).all()
    assert np.isnan(paired_permutation([judge], nothing, y, np.arange(40), folds, 50)).all()


def test_holm_by_hand_with_gaps():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1.0, 1.0]
    assert np.isnan(holm(np.full(2, np.nan))).all()


def test_permutations_suffice_for_the_family():
    assert n_permutations(1) == 10_000
    m = 80
    assert n_permutations(m) == 20 * m / 0.05
    # A test that no permutation reaches is significant even as the first of the family.
    assert holm(np.array([1 / (n_permutations(m) + 1)] + [1.0] * (m - 1)))[0] < 0.05 / 19

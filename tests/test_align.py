"""Agreement metrics against scipy and scikit-learn, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from probes import align

pairs = st.integers(3, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 6), min_size=n, max_size=n), st.lists(st.integers(0, 6), min_size=n, max_size=n)
    )
)


def varies(*columns):
    return all(len(set(column)) > 1 for column in columns)


@given(pairs)
def test_correlations_equal_scipy_with_ties(pair):
    x, y = (np.array(column, dtype=float) for column in pair)
    ours = [align.spearman(x, y), align.pearson(x, y), align.kendall(x, y)]
    assert [found.n_used for found in ours] == [len(x)] * 3
    if not varies(*pair):
        assert all(np.isnan(found.value) for found in ours)
        return
    theirs = [stats.spearmanr(x, y), stats.pearsonr(x, y), stats.kendalltau(x, y)]
    np.testing.assert_allclose([found.value for found in ours], [found.statistic for found in theirs], atol=1e-12)


@given(pairs)
def test_qwk_equals_sklearn_and_rounds_and_clips(pair):
    x, y = (np.array(column, dtype=float) for column in pair)
    values = np.arange(1.0, 6.0)
    found = align.qwk(x + 0.2, y - 0.2, values)
    a, b = np.clip(x, 1, 5).astype(int), np.clip(y, 1, 5).astype(int)
    if len({*a, *b}) == 1:
        assert np.isnan(found.value)
        return
    assert found.value == pytest.approx(cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5]))


def test_qwk_rounds_half_way_up_on_uneven_labels():
    values = np.array([0.0, 1.0, 4.0])
    assert align.nearest_label(np.array([-3, 0.49, 0.5, 2.49, 2.5, 99]), values).tolist() == [0, 0, 1, 1, 2, 2]
    # a = (0, 1, 4), b = (0, 4, 4): mean square 3; chance var 26/9 + 32/9 + (8/3 - 5/3)^2 = 67/9.
    assert align.qwk(np.array([0.0, 1, 4]), np.array([0.0, 4, 4]), values).value == pytest.approx(1 - 27 / 67)


def test_mae_and_pairwise_accuracy_of_a_worked_example():
    human = np.array([1.0, 2.0, 2.0, 4.0])
    judge = np.array([1.0, 1.0, 3.0, 2.0])
    assert align.mae(judge, human) == (1.0, 4)
    # Of six pairs one is a human tie; 1-2a is a judge tie (half), 1-2b and 1-4 and 2a-4 are right, 2b-4 is wrong.
    assert align.pairwise_accuracy(judge, human) == (pytest.approx(3.5 / 5), 4)


@given(pairs)
def test_pairwise_accuracy_equals_a_double_loop(pair):
    x, y = (np.array(column, dtype=float) for column in pair)
    scores = [
        0.5 if x[i] == x[j] else float((x[i] < x[j]) == (y[i] < y[j]))
        for i in range(len(x))
        for j in range(i)
        if y[i] != y[j]
    ]
    found = align.pairwise_accuracy(x, y).value
    assert np.isnan(found) if not scores else found == pytest.approx(np.mean(scores))


def test_pairwise_accuracy_of_one_pair():
    one = np.array([1.0, 2.0])
    assert align.pairwise_accuracy(one, one).value == 1
    assert align.pairwise_accuracy(one, -one).value == 0
    assert align.pairwise_accuracy(np.ones(2), one).value == 0.5
    assert np.isnan(align.pairwise_accuracy(one, np.ones(2)).value)


def test_means_are_rounded_in_units_of_the_largest_and_gaps_stay():
    one, other = (0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)
    assert one != other
    found = align.rounded(np.array([one, other, np.nan, 1e3]))
    assert found[0] == found[1]
    assert np.isnan(found[2])
    assert np.isnan(align.rounded(np.full(3, np.nan))).all()
    assert align.rounded(np.zeros(2)).tolist() == [0, 0]


def test_pairs_with_a_nan_are_left_out_and_counted():
    judge = np.array([1.0, 2.0, np.nan, 4.0, 3.0])
    human = np.array([1.0, np.nan, 9.0, 3.0, 2.0])
    for metric in align.METRICS.values():
        assert metric(judge, human).n_used == 3
    assert align.spearman(judge, human).value == pytest.approx(1)
    assert align.qwk(judge, human, np.arange(1.0, 6.0)).n_used == 3


def test_two_pairs_or_a_constant_have_no_coefficient():
    for metric in (align.spearman, align.pearson, align.kendall):
        assert np.isnan(metric(np.array([1.0, 2.0]), np.array([1.0, 2.0])).value)
        assert np.isnan(metric(np.full(5, 3.1), np.arange(5.0)).value)
    assert np.isnan(align.mae(np.array([np.nan]), np.array([1.0])).value)


@given(pairs, st.integers(0, 10_000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_weighted_spearman_equals_scipy_on_the_expanded_resample(pair, seed, tied):
    rng = np.random.default_rng(seed)
    y, first = (np.array(column, dtype=float) for column in pair)
    scores = np.stack([first, rng.normal(size=len(y)), np.full(len(y), 2.0)])
    if not tied:
        y = rng.normal(size=len(y))
    holes = scores.copy()
    holes[1, rng.integers(len(y))] = np.nan
    weights = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=5)
    for given_scores in (scores, holes):
        found = align.weighted_spearman(given_scores, y, weights)
        for judge, score in enumerate(given_scores):
            for resample, weight in enumerate(weights):
                keep = np.isfinite(score)
                x, z = (np.repeat(side[keep], weight[keep]) for side in (score, y))
                if len(x) < 3 or not varies(x, z):
                    assert np.isnan(found[judge, resample])
                else:
                    assert found[judge, resample] == pytest.approx(stats.spearmanr(x, z).statistic, abs=1e-10)


def test_weighted_spearman_in_blocks_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(3, 50)), rng.integers(0, 4, 50).astype(float)
    weights = rng.multinomial(50, np.full(50, 1 / 50), size=40)
    whole = align.weighted_spearman(scores, y, weights)
    monkeypatch.setattr(align, "_BLOCK", 350)
    np.testing.assert_array_equal(align.weighted_spearman(scores, y, weights), whole)

"""Calibration against scikit-learn and against worked examples with mapped, fractional and missing ratings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import log_loss

from probes.calibration import Targets, brier, ece, kl, nll, scale_use, targets

VALUES = np.arange(1.0, 6.0)
seeds = st.integers(0, 10_000)


def draw(seed, n_items=30, n_raters=3):
    rng = np.random.default_rng(seed)
    human = rng.integers(1, 6, (n_items, n_raters)).astype(float)
    return softmax(2 * rng.normal(size=(n_items, 5)), axis=1), human


@given(seeds)
def test_nll_and_brier_are_means_over_single_raters(seed):
    probs, human = draw(seed)
    target = targets(human, VALUES)
    rows = np.repeat(probs, 3, axis=0)
    labels = human.ravel().astype(int)
    assert nll(probs, target) == pytest.approx(log_loss(labels, rows, labels=[1, 2, 3, 4, 5]))
    one_hot = np.eye(5)[labels - 1]
    assert brier(probs, target) == pytest.approx(((rows - one_hot) ** 2).sum(axis=1).mean())


@given(seeds)
def test_kl_is_scipys_on_smoothed_histograms_and_zero_for_a_judge_that_gives_them(seed):
    probs, human = draw(seed)
    target = targets(human, VALUES)
    counts = np.stack([np.bincount(row.astype(int) - 1, minlength=5) for row in human])
    smooth = (counts + 0.5) / (3 + 2.5)
    assert kl(probs, target) == pytest.approx(entropy(smooth, probs, axis=1).mean())
    assert kl(smooth, target) == pytest.approx(0, abs=1e-12)
    assert kl(probs, target) > 0


@given(seeds)
def test_scores_are_best_at_the_raters_own_histogram(seed):
    probs, human = draw(seed)
    target = targets(human, VALUES)
    assert brier(target.shares, target) <= brier(probs, target)
    assert nll(target.shares, target) <= nll(probs, target)
    assert ece(target.shares, target) == pytest.approx(0, abs=1e-12)


def test_ratings_between_labels_count_for_both_and_keep_their_mean():
    uneven = np.array([0.0, 1.0, 4.0])
    human = np.array([[0.25, np.nan], [2.5, 4.0], [1.0, 0.0], [np.nan, np.nan], [4.0, 4.0]])
    found = targets(human, uneven)
    np.testing.assert_allclose(
        found.counts, [[0.75, 0.25, 0], [0, 0.5, 1.5], [1, 1, 0], [0, 0, 0], [0, 0, 2]], atol=1e-12
    )
    np.testing.assert_allclose(found.shares[[0, 1, 2, 4]] @ uneven, np.nanmean(human[[0, 1, 2, 4]], axis=1))
    assert np.isnan(found.shares[3]).all()
    assert np.isnan(found.smoothed[3]).all()
    np.testing.assert_allclose(found.smoothed[0], np.array([1.25, 0.75, 0.5]) / 2.5)


def test_ece_of_a_worked_example():
    # Top labels: 0 at .9 (raters agree: 1), 0 at .95 (raters: half), 1 at .6 (none).
    probs = np.array([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6]])
    target = Targets(np.array([[2.0, 0], [1, 1], [2, 0]]))
    # Bins are (.8, .9], (.9, 1] and (.5, .6]: gaps +.1, -.45, -.6.
    assert ece(probs, target) == pytest.approx((0.1 + 0.45 + 0.6) / 3)
    # Within one bin gaps cancel.
    assert ece(probs, target, 1) == pytest.approx(abs(0.1 - 0.45 - 0.6) / 3)


def test_items_without_raters_or_numbers_are_left_out():
    probs, human = draw(0)
    holed_probs, holed_human = (
        np.vstack([probs, np.full((1, 5), np.nan), probs[:1]]),
        np.vstack([human, human[:1], np.full((1, 3), np.nan)]),
    )
    for metric in (brier, nll, kl, ece):
        whole = metric(probs, targets(human, VALUES))
        assert metric(holed_probs, targets(holed_human, VALUES)) == pytest.approx(whole)
        assert np.isnan(metric(probs[:2] * np.nan, targets(human[:2], VALUES)))


def test_certain_mistakes_are_dear_but_finite():
    probs = np.array([[1.0, 0.0]])
    assert 700 < nll(probs, Targets(np.array([[0.0, 1.0]]))) < 750
    assert nll(probs, Targets(np.array([[1.0, 0.0]]))) == 0
    assert brier(probs, Targets(np.array([[0.0, 1.0]]))) == 2


def test_scale_use_runs_from_one_label_to_all():
    assert scale_use(np.array([3.0, 3.2, 2.8, np.nan]), VALUES) == 0
    assert scale_use(np.array([0.0, 2, 3, 4, 9]), VALUES) == pytest.approx(1)
    assert scale_use(np.array([1.0, 1, 5, 5]), VALUES) == pytest.approx(np.log(2) / np.log(5))
    assert np.isnan(scale_use(np.array([np.nan]), VALUES))

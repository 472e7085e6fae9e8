"""Metrics on resamples given as weights, against the plain metrics on items that are repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import align, resampling
from probes.intervals import interval, positive_interval, share_interval
from probes.protocol import Folds, group_resamples, make_folds, within_fold
from probes.resampling import METRICS, interval_of, weighted_agreement, within_fold_agreement

VALUES = np.arange(1.0, 6.0)


def plain(metric, score, human):
    if metric == "qwk":
        return align.qwk(score, human, VALUES).value
    return align.METRICS[metric](score, human).value


def judges(y, rng):
    """Scores with and without ties, constant, with gaps, and with one far from the others."""
    n = len(y)
    noisy = y + rng.normal(size=n)
    far = noisy.copy()
    far[0] += 1e4
    return np.stack([noisy, np.round(noisy), np.full(n, 2.0), np.where(rng.random(n) < 0.2, np.nan, noisy), far])


def check(scores, y, weights):
    found = weighted_agreement(scores, y, weights, VALUES)
    assert tuple(found) == METRICS
    for metric, values in found.items():
        for judge, score in enumerate(scores):
            for resample, weight in enumerate(weights):
                expected = plain(metric, np.repeat(score, weight), np.repeat(y, weight))
                np.testing.assert_allclose(values[judge, resample], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("square", [1, 4, 256])
@given(st.integers(1, 40), st.integers(0, 2), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_metric_is_the_plain_one_on_repeated_items(square, n, digits, seed):
    rng = np.random.default_rng(seed)
    y = np.round(rng.normal(3, 1, n), digits)
    # Multinomial draws leave items out and repeat others, down to a single item over and over.
    weights = np.concatenate((np.ones((1, n), dtype=np.int64), rng.multinomial(n, np.full(n, 1 / n), size=4)))
    before, resampling._SQUARE = resampling._SQUARE, square
    try:
        check(judges(y, rng), y, weights)
    finally:
        resampling._SQUARE = before


def test_many_items_in_blocks_of_both_scores_give_whole_numbers():
    rng = np.random.default_rng(0)
    n = 1500
    y = rng.integers(0, 40, n) / 10
    scores = np.stack([y + rng.normal(size=n), rng.integers(0, 3, n).astype(float)])
    weights = np.ones((1, n), dtype=np.int64)
    found = weighted_agreement(scores, y, weights, VALUES)
    for judge, score in enumerate(scores):
        for metric in METRICS:
            assert found[metric][judge, 0] == pytest.approx(plain(metric, score, y), abs=1e-12)
    light = rng.multinomial(n, np.full(n, 1 / n)).astype(np.float32)[:, None]
    order = np.sign(scores[0][:, None] - scores[0]) * np.sign(y[:, None] - y)
    assert resampling._concordance(scores[0], y, light)[0] == light[:, 0] @ order @ light[:, 0] / 2


def test_chunks_of_resamples_and_large_weights_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    y = rng.integers(1, 6, 60).astype(float)
    scores, weights = judges(y, rng), rng.multinomial(60, np.full(60, 1 / 60), size=30)
    whole = weighted_agreement(scores, y, weights, VALUES)
    for name, value in (("_BLOCK", 200), ("_EXACT", 1)):
        monkeypatch.setattr(resampling, name, value)
        again = weighted_agreement(scores, y, weights, VALUES)
        for metric in METRICS:
            np.testing.assert_allclose(again[metric], whole[metric], atol=1e-14)


def test_means_over_folds_use_the_draws_of_groups_and_leave_out_undefined_folds():
    rng = np.random.default_rng(2)
    y, groups = rng.integers(1, 6, 60).astype(float), np.arange(60) // 3
    folds = make_folds(y, groups, 3, 2)
    scores = y + rng.normal(size=(2, 60))
    scores[1, folds.fold[1] == 0] = np.nan
    found = within_fold_agreement([scores, np.full((2, 60), 3.0)], y, groups, folds, VALUES, 5, 7)
    drawn, code = group_resamples(groups, 5, 7)
    for metric in METRICS:
        assert found[metric][0, 0] == pytest.approx(
            within_fold(lambda a, b, of=metric: align.Agreement(plain(of, a, b), 0), scores, y, folds), abs=1e-12
        )
        for resample, weights in enumerate(drawn[:, code]):
            of_folds = [
                plain(metric, np.repeat(scores[repeat, test], weights[test]), np.repeat(y[test], weights[test]))
                for repeat, test in folds.tests()
            ]
            assert np.isnan(of_folds).sum() == 1
            assert found[metric][0, resample] == pytest.approx(np.nanmean(of_folds), abs=1e-12)
    assert np.isnan(found["pearson"][1]).all()
    assert (found["pairwise_accuracy"][1] == 0.5).all()
    nothing = within_fold_agreement([], y, groups, Folds(np.zeros((1, 60), dtype=np.int64), 1), VALUES, 5, 7)
    assert all(of.shape == (0, 6) for of in nothing.values())


def test_every_metric_has_the_interval_of_its_scale():
    drawn = np.concatenate(([0.7], 0.7 + 0.02 * np.random.default_rng(0).normal(size=500)))
    for metric, kind in (("mae", positive_interval), ("pairwise_accuracy", share_interval), ("kendall", interval)):
        assert interval_of(metric, drawn, 20, 0.9) == kind(drawn, 20, 0.9)

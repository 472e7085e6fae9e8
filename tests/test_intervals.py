"""Intervals: what they are made of, the simultaneous band, and that both hold the truth as often as they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import World
from probes.intervals import interval, mean_over_folds, paired, positive_interval, share_interval, simultaneous


def replicates(value, errors, seed=0, n=4000):
    rng = np.random.default_rng(seed)
    return np.concatenate(([value], value + errors * rng.normal(size=n)))


def test_interval_is_a_t_interval_on_fishers_scale():
    drawn = replicates(0.6, 0.1)
    found = interval(drawn, 12, 0.9)
    error = drawn[1:].std(ddof=1) * np.sqrt(12 / 11)
    reach = stats.t.ppf(0.95, 11) * error / (1 - 0.6**2)
    assert (found.value, found.lo, found.hi) == pytest.approx(
        (0.6, np.tanh(np.arctanh(0.6) - reach), np.tanh(np.arctanh(0.6) + reach))
    )
    # For many groups and small errors it is the textbook interval.
    plain = interval(replicates(0.1, 0.01), 10**6)
    assert (plain.lo, plain.hi) == pytest.approx((0.1 - 0.0196, 0.1 + 0.0196), abs=5e-4)


def test_interval_stays_within_the_limits():
    for limit in (1.0, 2.0):
        wide = interval(replicates(0.95 * limit, 0.2), 3, limit=limit)
        assert -limit < wide.lo < wide.value < wide.hi < limit
        edge = interval(replicates(limit, 0.1), 30, limit=limit)
        assert edge.hi == limit
        assert edge.lo == pytest.approx(limit - stats.t.ppf(0.975, 29) * 0.1, abs=0.02)
        nothing_varies = interval(np.full(10, limit), 30, limit=limit)
        assert (nothing_varies.lo, nothing_varies.hi) == (limit, limit)
    same = interval(np.zeros(10), 30, limit=2.0)
    assert (same.value, same.lo, same.hi) == (0, 0, 0)


def test_shares_have_an_interval_of_their_log_odds():
    drawn = replicates(0.8, 0.03)
    found = share_interval(drawn, 25)
    error = drawn[1:].std(ddof=1) * np.sqrt(25 / 24)
    reach = stats.t.ppf(0.975, 24) * error / (0.8 * 0.2)
    logit = np.log(0.8 / 0.2)
    expected = (0.8, 1 / (1 + np.exp(-logit + reach)), 1 / (1 + np.exp(-logit - reach)))
    assert (found.value, found.lo, found.hi) == pytest.approx(expected)
    edge = share_interval(replicates(1.0, 0.05), 25)
    assert edge.hi == 1 > edge.lo > 0.8


def test_positive_numbers_have_an_interval_of_their_logarithm():
    drawn = replicates(0.5, 0.1)
    found = positive_interval(drawn, 25, 0.9)
    reach = stats.t.ppf(0.95, 24) * drawn[1:].std(ddof=1) * np.sqrt(25 / 24)
    expected = (0.5, np.exp(np.log(0.5) - reach / 0.5), np.exp(np.log(0.5) + reach / 0.5))
    assert (found.value, found.lo, found.hi) == pytest.approx(expected)
    nothing = positive_interval(np.zeros(10), 25)
    assert (nothing.value, nothing.lo, nothing.hi) == (0, 0, 0)
    for undefined in (share_interval, positive_interval):
        assert np.isnan(undefined(np.array([np.nan, 1.0, 0.5]), 25).value)


def test_undefined_resamples_are_left_out_and_undefined_estimates_have_no_interval():
    drawn = replicates(0.3, 0.1)
    holed = np.insert(drawn, [1, 5, 9], np.nan)
    assert interval(holed, 20) == interval(drawn, 20)
    for nothing in (np.array([np.nan, 1.0, 0.5]), np.array([0.5, np.nan, 0.4]), np.array([0.5])):
        found = interval(nothing, 20)
        assert np.isnan([found.lo, found.hi]).all()
    assert np.isnan(interval(drawn, 1).lo)


def test_means_and_differences_are_over_defined_folds():
    first = np.array([[0.5, np.nan], [0.7, 0.2]])
    second = np.array([[0.1, 0.1], [np.nan, 0.1]])
    np.testing.assert_allclose(paired(first, second), [0.4, 0.1])
    np.testing.assert_allclose(mean_over_folds(first), [0.6, 0.2])
    assert np.isnan(mean_over_folds(np.full((2, 1), np.nan))).all()


def test_band_of_one_curve_is_its_interval_and_of_many_is_wider():
    curves = np.stack([replicates(value, 0.05, seed) for seed, value in enumerate(np.linspace(-0.5, 0.5, 20))])
    alone = simultaneous(curves[:1], 40)[0]
    # The largest deviation of one curve is its own, up to the error of 4,000 resamples.
    assert (alone.lo, alone.hi) == pytest.approx((interval(curves[0], 40).lo, interval(curves[0], 40).hi), abs=0.005)
    band = simultaneous(curves, 40)
    # Independent curves: the pointwise level is that of Sidak.
    quantile = stats.t.isf((1 - 0.95 ** (1 / 20)) / 2, 39) / stats.t.isf(0.025, 39)
    for curve, found in zip(curves, band, strict=True):
        pointwise = interval(curve, 40)
        assert found.lo < pointwise.lo < found.value < pointwise.hi < found.hi
        wider = (np.arctanh(found.hi) - np.arctanh(found.lo)) / (np.arctanh(pointwise.hi) - np.arctanh(pointwise.lo))
        assert wider == pytest.approx(quantile, rel=0.05)
    # Curves that are copies of one need no more than one.
    copies = simultaneous(np.repeat(curves[:1], 20, axis=0), 40)
    assert (copies[3].lo, copies[3].hi) == pytest.approx((alone.lo, alone.hi))


def test_band_passes_over_curves_that_do_not_vary_or_are_undefined():
    curves = np.stack([replicates(0.2, 0.05), np.full(4001, np.nan), np.full(4001, 0.3)])
    band = simultaneous(curves, 40)
    assert band[0] == simultaneous(curves[:1], 40)[0]
    assert np.isnan(band[1].lo)
    assert (band[2].lo, band[2].hi) == pytest.approx((0.3, 0.3))


def test_band_holds_all_curves_at_once_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = np.linspace(-0.3, 0.6, 12)
    held = {"band": 0, "pointwise": 0}
    for _ in range(400):
        errors = 0.05 * (rng.normal(size=(12, 1)) + np.zeros(1))
        drawn = 0.05 * rng.normal(size=(12, 300))
        curves = np.concatenate((truth[:, None] + errors, truth[:, None] + errors + drawn), axis=1)
        band = simultaneous(curves, 200)
        alone = [interval(curve, 200) for curve in curves]
        held["band"] += all(one.lo <= t <= one.hi for one, t in zip(band, truth, strict=True))
        held["pointwise"] += all(one.lo <= t <= one.hi for one, t in zip(alone, truth, strict=True))
    assert 0.92 < held["band"] / 400 < 0.98
    assert held["pointwise"] / 400 < 0.7


def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say():
    # In a process of its own, where shapes are not checked: that would take most of the time.
    code = (
        "import json; from benchmarks.coverage import World, simulate; "
        "few = {'repeats': 1, 'resamples': 200}; alike = World(shared=0.9); "
        "found = simulate(20, (1, 5), 120, **few), simulate(20, (5, 5), 40, world=alike, **few), "
        "simulate(20, (5, 5), 40, world=alike, by_group=False, **few); "
        "print(json.dumps([one['covers'].to_dict() for one in found]))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    usual, alike, naive = json.loads(done.stdout)
    # Three standard deviations of 120 and of 40 studies below 92 %.
    assert min(usual.values()) > 0.92 - 0.074
    assert min(alike.values()) > 0.92 - 0.129
    # The check can fail: intervals that take the items of a group for independent do not hold the truth so often.
    assert max(naive["rounded"], naive["slope-ridge"]) < 0.79


def test_population_coefficients_of_the_simulation_are_those_of_a_large_sample():
    world = World()
    layers, y = world.draw(np.random.default_rng(1), np.arange(200_000))
    weights = np.array([0.3, -0.2, 0.1, 0.9, 0.4])
    assert world.linear(weights) == pytest.approx(stats.spearmanr(layers @ weights, y).statistic, abs=0.006)
    rounded = np.clip(np.round(layers[:, -1]), -2, 2)
    assert world.rounded == pytest.approx(stats.spearmanr(rounded, y).statistic, abs=0.006)

"""The spread between prompts, beside a literal computation and in simulations where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from probes.prompt_spread import prompt_spread

G = 40


def test_formulas_by_hand():
    rng = np.random.default_rng(0)
    replicates = 0.5 + 0.1 * rng.normal(size=(4, 30))
    found = prompt_spread(replicates, G)
    values, drawn = replicates[:, 0], replicates[:, 1:]
    total = 0.0
    for p in range(4):
        deviations = [drawn[p, b] - np.mean([drawn[q, b] for q in range(4)]) for b in range(29)]
        total += np.var(deviations, ddof=1)
    sampling = total / 3 * G / (G - 1)
    observed = np.var(values, ddof=1)
    assert found.mean.value == pytest.approx(values.mean())
    assert found.sd == pytest.approx(np.sqrt(observed))
    assert found.sd_sampling == pytest.approx(np.sqrt(sampling))
    assert found.sd_corrected == pytest.approx(np.sqrt(max(0, observed - sampling)))
    assert found.se == pytest.approx(np.mean([one.std(ddof=1) for one in drawn]) * np.sqrt(G / (G - 1)))
    # The sampling part is half the mean variance of the differences between two prompts.
    pairs = [np.var(drawn[p] - drawn[q], ddof=1) for p in range(4) for q in range(p)]
    assert sampling == pytest.approx(np.mean(pairs) / 2 * G / (G - 1))


def test_the_spread_between_prompts_is_recovered():
    """True standard deviation .06 (and 0), beside errors of .08 that the prompts share in large part."""
    rng = np.random.default_rng(1)
    for truth in (0.06, 0.0):
        corrected, naive = [], []
        for _ in range(400):
            effects = truth * rng.normal(size=(5, 1))
            errors = 0.07 * rng.normal(size=(1, 301)) + 0.04 * rng.normal(size=(5, 301))
            replicates = 0.5 + effects + errors
            # Column 0 is the sample, with errors of its own; the others are resamples around it.
            replicates[:, 1:] += errors[:, :1]
            found = prompt_spread(replicates, 10_000)
            corrected.append(found.sd**2 - found.sd_sampling**2)
            naive.append(found.sd**2)
            assert found.sd_corrected == pytest.approx(np.sqrt(max(0, corrected[-1])))
            assert found.se == pytest.approx(np.hypot(0.07, 0.04), rel=0.2)
        error = np.std(corrected) / 20
        assert abs(np.mean(corrected) - truth**2) < 3 * error
        assert np.mean(naive) - truth**2 > 5 * error  # what is corrected for matters


def test_identical_prompts_have_no_spread():
    replicates = np.tile(0.5 + 0.1 * np.random.default_rng(2).normal(size=30), (3, 1))
    found = prompt_spread(replicates, G)
    assert (found.sd, found.sd_sampling, found.sd_corrected) == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.se > 0.05


def test_undefined_prompts_and_resamples_are_left_out():
    replicates = 0.5 + 0.1 * np.random.default_rng(3).normal(size=(4, 30))
    holed = replicates.copy()
    holed[1] = np.nan  # this prompt has no coefficient
    holed[2, 5] = np.nan  # this resample of another one neither
    expected = prompt_spread(np.delete(replicates[[0, 2, 3]], 5, axis=1), G)
    assert prompt_spread(holed, G) == expected
    alone = prompt_spread(replicates[:1], G)
    assert np.isnan([alone.sd, alone.sd_sampling, alone.sd_corrected]).all()
    assert alone.mean.value == replicates[0, 0]
    assert np.isnan(prompt_spread(holed[1:2], G).mean.value)

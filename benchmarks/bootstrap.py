"""Bootstrapped Spearman of many judges against scipy on each resample.

Baseline: `scipy.stats.spearmanr` on the items of each resample, timed on few and scaled up.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.stats import spearmanr

from probes.align import weighted_spearman


def main(n_judges: int = 33, n_items: int = 10_000, n_resamples: int = 2000, n_baseline: int = 20) -> None:
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(n_judges, n_items)), rng.normal(size=n_items)
    weights = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_resamples)
    start = time.perf_counter()
    ours = weighted_spearman(scores, y, weights)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for row in range(n_baseline):
        picked = np.repeat(np.arange(n_items), weights[row])
        theirs = [spearmanr(score[picked], y[picked]).statistic for score in scores]
        np.testing.assert_allclose(ours[:, row], theirs, atol=1e-12)
    baseline = (time.perf_counter() - start) * n_resamples / n_baseline
    print(f"{n_judges} judges, {n_items:,} items, {n_resamples:,} resamples")
    print(f"scipy (baseline)   {baseline:8.1f} s")
    print(f"weighted_spearman  {seconds:8.1f} s   {seconds / baseline:.4f} x")


if __name__ == "__main__":
    main()

"""Bootstrapped Spearman of many judges against scipy on each resample, and the whole table of layers.

Baseline: `scipy.stats.spearmanr` on the items of each resample, timed on few and scaled up. Human scores are tied, as
those of five labels are. The second part is what `probes.by_layer` does after reading a run, in five repeats of five
folds where each item is a group, and the permutation tests of every layer against the last.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from probes.align import weighted_spearman
from probes.permutation import n_permutations, paired_permutation
from probes.protocol import make_folds, standing, within_fold_spearman

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3


def main(n_judges: int = 33, n_items: int = 10_000, n_resamples: int = 2000, n_baseline: int = 20) -> None:
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(n_judges, n_items)), rng.integers(1, 6, size=n_items).astype(float)
    weights = rng.multinomial(n_items, np.full(n_items, 1 / n_items), size=n_resamples)
    ours = weighted_spearman(scores, y, weights)
    seconds = shortest(lambda: weighted_spearman(scores, y, weights))
    start = time.perf_counter()
    for row in range(n_baseline):
        picked = np.repeat(np.arange(n_items), weights[row])
        theirs = [spearmanr(score[picked], y[picked]).statistic for score in scores]
        np.testing.assert_allclose(ours[:, row], theirs, atol=1e-12)
    baseline = (time.perf_counter() - start) * n_resamples / n_baseline
    print(f"{n_judges} judges, {n_items:,} items, {n_resamples:,} resamples")
    print(f"scipy (baseline)   {baseline:8.1f} s")
    print(f"weighted_spearman  {seconds:8.1f} s   {seconds / baseline:.4f} x")
    groups = np.arange(n_items)
    folds = make_folds(y, groups, 5, 5)
    repeated = [np.broadcast_to(score, folds.fold.shape) for score in scores]
    seconds = shortest(lambda: within_fold_spearman(repeated, y, groups, folds, n_resamples, 0))
    print(f"5 x 5 folds        {seconds:8.1f} s   {seconds / (5 * baseline):.4f} x five times the baseline")
    ranks = [np.broadcast_to(standing(score), folds.fold.shape) for score in scores]
    permutations = n_permutations(n_judges - 1)
    seconds = shortest(lambda: paired_permutation(ranks[:-1], ranks[-1], y, groups, folds, permutations))
    print(f"{permutations:,} swaps       {seconds:8.1f} s")


def shortest(run: Callable[[], object]) -> float:
    """Least time of a few rounds: others may be using the machine."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()

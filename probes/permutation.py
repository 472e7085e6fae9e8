"""Paired permutation tests of judges, and Holm's correction for testing many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata

from probes.protocol import Folds, group_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

# Fewer permutations than this many times the number of tests could not bring a corrected p below .05 surely.
PER_TEST: Final = 400  # 20 / .05
MIN_PERMUTATIONS: Final = 10_000
_BLOCK: Final = 24_000_000  # numbers that a block of swaps may hold

_Standings = Float[np.ndarray, "repeat item"]


def n_permutations(n_tests: int) -> int:
    """How many permutations a family of tests takes: ``20 m / .05``, and 10,000 at least."""
    return max(MIN_PERMUTATIONS, PER_TEST * n_tests)


def paired_permutation(
    judges: Sequence[_Standings],
    reference: _Standings,
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    folds: Folds,
    permutations: int,
    seed: int = 0,
) -> Float[np.ndarray, " judge"]:
    """Two-sided p of each judge against a reference: are they exchangeable in how they agree with humans?

    Scores are replaced by ranks, so that judges on different scales can change places. A permutation swaps the two on
    whole groups, each with probability one half and alike in all repeats; the statistic is the mean over folds of the
    difference of the two correlations with the ranks of the human scores in the fold. With b of B permutations at least
    as far from zero, ``p = (b + 1) / (B + 1)`` (Phipson and Smyth 2010, Statistical Applications in Genetics and
    Molecular Biology 9(1)).

    Ranks are those among all items, not those within the fold. These would add up to the same for both judges, which no
    swap of groups keeps to, and with few groups in a fold the test would reject twice as often as it should.

    Folds where a coefficient is undefined are left out; NaN where none is left.

    Args:
        judges: Ranks of the scores of the judges to test, as ``OutOfFold.standings``.
        reference: Of the judge that they are tested against.
        y: Human scores.
        groups: What is swapped together.
        folds: Folds of each repeat.
        permutations: Number of permutations B.
        seed: Of the permutations.
    """
    code = group_codes(groups)
    n_groups = int(code.max()) + 1
    middle = (len(y) + 1) / 2  # the same for all, and only to keep the sums small
    of_folds = [
        _FoldSums(
            np.stack([judge[repeat, test] for judge in judges]) - middle,
            reference[repeat, test] - middle,
            y[test],
            code[test],
        )
        for repeat, test in folds.tests()
    ]
    observed = _statistic(of_folds, np.zeros((1, n_groups)))[0]
    # What differs by rounding only is as far from zero.
    far = np.abs(observed) - 1e-10
    rng = np.random.default_rng([seed, 2])
    exceeding = np.zeros(len(judges), dtype=np.int64)
    block = max(1, _BLOCK // (n_groups + 8 * len(judges)))
    for start in range(0, permutations, block):
        swaps = rng.integers(0, 2, size=(min(block, permutations - start), n_groups), dtype=np.uint8)
        exceeding += (np.abs(_statistic(of_folds, swaps)) >= far).sum(axis=0)
    return np.where(np.isfinite(observed), (exceeding + 1) / (permutations + 1), np.nan)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p of a family of tests, by Holm's step-down procedure; NaN is no member.

    Holm 1979, Scandinavian Journal of Statistics 6(2): the family-wise error holds whatever the dependence.
    """
    adjusted = np.full(len(p), np.nan)
    members = np.flatnonzero(np.isfinite(p))
    order = members[np.argsort(p[members], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


class _FoldSums:
    """Sums over the groups of a fold from which the correlations after any swap follow.

    With ranks ``a`` of a judge and ``b`` of the reference, ranks ``h`` of the human scores and
    ``s_g`` 1 where group g is swapped, ``sum h a' = sum h a + sum_g s_g sum_(i in g) h (b - a)``; sums of ``a'`` and of
    its squares are linear in ``s`` likewise. So all swaps of all judges are three matrix products.
    """

    def __init__(
        self,
        judges: Float[np.ndarray, "judge test"],
        reference: Float[np.ndarray, " test"],
        y: Float[np.ndarray, " test"],
        code: Int[np.ndarray, " test"],
    ) -> None:
        self.n = len(y)
        self.groups, member = np.unique(code, return_inverse=True)
        human = rankdata(y) - (self.n + 1) / 2
        self.human = float(np.sqrt(human @ human))
        first, second = _or_zero(judges), _or_zero(reference[None])[0]
        self.defined: Bool[np.ndarray, " judge"] = first.any(axis=1) & second.any() & (self.human > 0)
        self.first_product, self.second_product = first @ human, second @ human
        self.first_square, self.second_square = (first**2).sum(axis=1), (second**2).sum()
        self.first_total, self.second_total = first.sum(axis=1), second.sum()
        starts_of = np.argsort(member, kind="stable")
        starts = np.searchsorted(member[starts_of], np.arange(len(self.groups)))

        def by_group(values: Float[np.ndarray, "judge test"]) -> Float[np.ndarray, "group judge"]:
            return np.asarray(np.add.reduceat(values[:, starts_of], starts, axis=1).T)

        self.products = by_group((second - first) * human)
        self.totals = by_group(second - first)
        self.squares = by_group(second**2 - first**2)

    def difference(self, swaps: Shaped[np.ndarray, "swap group"]) -> Float[np.ndarray, "swap judge"]:
        """Correlation of the judge minus that of the reference after each swap; NaN where undefined."""
        own = swaps[:, self.groups].astype(np.float64)
        product, total, square = own @ self.products, own @ self.totals, own @ self.squares
        first = _ratio(
            self.first_product + product,
            self.first_square + square - (self.first_total + total) ** 2 / self.n,
        )
        second = _ratio(
            self.second_product - product,
            self.second_square - square - (self.second_total - total) ** 2 / self.n,
        )
        return np.where(self.defined, (first - second) / (self.human or 1.0), np.nan)


def _or_zero(ranks: Float[np.ndarray, "judge test"]) -> Float[np.ndarray, "judge test"]:
    """All zero where the ranks do not vary or one is missing, since then there is no coefficient."""
    varies = np.isfinite(ranks).all(axis=1) & (ranks.max(axis=1) > ranks.min(axis=1))
    return np.where(varies[:, None], ranks, 0.0)


def _ratio(
    product: Float[np.ndarray, "swap judge"], square: Float[np.ndarray, "swap judge"]
) -> Float[np.ndarray, "swap judge"]:
    """0 where the swapped ranks do not vary."""
    varies = square > 1e-9
    return np.where(varies, product / np.sqrt(np.where(varies, square, 1.0)), 0.0)


def _statistic(of_folds: list[_FoldSums], swaps: Shaped[np.ndarray, "swap group"]) -> Float[np.ndarray, "swap judge"]:
    total, count = np.zeros((len(swaps), len(of_folds[0].defined))), np.zeros(len(of_folds[0].defined))
    for fold in of_folds:
        total += np.where(fold.defined, fold.difference(swaps), 0.0)
        count += fold.defined
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

"""Ridge regression with the penalty chosen by inner cross-validation over groups.

Columns are standardised with the fit items' own float64 statistics and the target is centred, so the problem
is ``min_b ||y - mean - X b||^2 + penalty ||b||^2``. One eigendecomposition per inner fold gives the solutions
of all penalties at once; problems of equal shape (one a layer) are solved together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

PENALTIES: Final[Float[np.ndarray, " penalty"]] = np.logspace(5, 0, 21)
INNER_FOLDS: Final = 5
# A column whose spread is below this share of its size holds rounding noise; standardising would blow it up.
CONSTANT: Final = 1e-6


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A ridge on standardised columns: ``intercept + ((x - mean) / spread) @ coef``.

    Attributes:
        mean: Of each column over the fit items ``[column]``.
        spread: Their standard deviation; 1 where the column is constant ``[column]``.
        coef: One weight a standardised column; 0 where the column is constant ``[column]``.
        intercept: Mean of the target over the fit items.
        penalty: What the inner cross-validation chose.
        constant: Columns that got weight 0 because they do not vary ``[column]``.
        problem: Index of the chosen set of columns, 0 where there was only one.
    """

    mean: Float[np.ndarray, " column"]
    spread: Float[np.ndarray, " column"]
    coef: Float[np.ndarray, " column"]
    intercept: float
    penalty: float
    constant: Bool[np.ndarray, " column"]
    problem: int = 0


def is_constant(mean: Float[np.ndarray, "*any"], spread: Float[np.ndarray, "*any"]) -> Bool[np.ndarray, "*any"]:
    """Whether a column's standard deviation is rounding noise beside its mean."""
    return np.asarray(spread < CONSTANT * np.maximum(1.0, np.abs(mean)))


def group_folds(groups: Shaped[np.ndarray, " item"], n_folds: int, seed: int = 0) -> Int[np.ndarray, " item"]:
    """Fold of every item; a group is never divided, and folds are as equal in size as that allows.

    Largest groups first, each into the smallest fold so far, in an order among equals that the seed draws.
    With fewer groups than folds there are as many folds as groups.
    """
    names = groups.astype(str) if groups.dtype == object else groups
    _, index, sizes = np.unique(names, return_inverse=True, return_counts=True)
    n_folds = min(n_folds, len(sizes))
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_group = np.empty(len(sizes), dtype=np.int64)
    if sizes.min() == sizes.max():
        fold_of_group[order] = np.arange(len(sizes)) % n_folds
        return np.asarray(fold_of_group[index])
    filled = np.zeros(n_folds)
    for group in order:
        smallest = int(np.argmin(filled))
        fold_of_group[group] = smallest
        filled[smallest] += sizes[group]
    return np.asarray(fold_of_group[index])


def fit_ridge(
    columns: Float[np.ndarray, "problem item column"],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    *,
    penalties: Float[np.ndarray, " penalty"] = PENALTIES,
    candidates: Bool[np.ndarray, " problem"] | None = None,
) -> RidgeFit:
    """Fit a ridge; inner cross-validation chooses the penalty, and the columns where there are several sets.

    The error of a choice is the mean squared error of held-out items over all inner folds. Of equal errors
    the larger penalty wins, then the earlier problem. With a single group nothing can be held out, and the
    largest penalty is taken.

    Args:
        columns: Sets of columns to choose from, all of one shape.
        y: Target.
        groups: Group of each item; inner folds do not divide groups.
        penalties: Grid to choose from; descending, so that ties go to the simpler fit.
        candidates: Problems that may be chosen; all unless given.
    """
    errors = np.zeros((len(penalties), len(columns)))
    fold = group_folds(groups, INNER_FOLDS)
    for held_out in range(fold.max() + 1 if fold.max() > 0 else 0):
        train, test = fold != held_out, fold == held_out
        mean, spread, _ = _statistics(columns[:, train])
        coefs = _solve((columns[:, train] - mean) / spread, y[train] - y[train].mean(), penalties)
        predicted = y[train].mean() + ((columns[:, test] - mean) / spread) @ coefs
        errors += ((predicted - y[test][None, :, None]) ** 2).sum(axis=1).T
    if candidates is not None:
        errors[:, ~candidates] = np.inf
    choice, problem = np.unravel_index(int(np.argmin(errors)), errors.shape)
    penalty = penalties[choice]
    chosen = columns[problem][None]
    mean, spread, constant = _statistics(chosen)
    coef = _solve((chosen - mean) / spread, y - y.mean(), penalties[choice : choice + 1])[0, :, 0]
    coef[constant[0, 0]] = 0.0  # not merely as small as rounding made it
    return RidgeFit(mean[0, 0], spread[0, 0], coef, float(y.mean()), float(penalty), constant[0, 0], int(problem))


def _statistics(
    columns: Float[np.ndarray, "problem item column"],
) -> tuple[
    Float[np.ndarray, "problem 1 column"],
    Float[np.ndarray, "problem 1 column"],
    Bool[np.ndarray, "problem 1 column"],
]:
    """Mean, standard deviation and constancy of each column; infinite spread makes a constant one zero."""
    mean = columns.mean(axis=1, keepdims=True)
    spread = columns.std(axis=1, keepdims=True)
    constant = is_constant(mean, spread)
    return mean, np.where(constant, np.inf, spread), constant


def _solve(
    columns: Float[np.ndarray, "problem item column"],
    target: Float[np.ndarray, " item"],
    penalties: Float[np.ndarray, " penalty"],
) -> Float[np.ndarray, "problem column penalty"]:
    """Coefficients of every penalty, from the smaller of the two Gram matrices."""
    n_items, n_columns = columns.shape[1:]
    transposed = np.swapaxes(columns, 1, 2)
    if n_columns <= n_items:
        values, vectors = np.linalg.eigh(transposed @ columns)
        loaded = np.swapaxes(vectors, 1, 2) @ (transposed @ target)[:, :, None]
        # Rounding can make a zero eigenvalue slightly negative; the penalties are at least 1.
        return np.asarray(vectors @ (loaded / (np.maximum(values, 0)[:, :, None] + penalties)))
    values, vectors = np.linalg.eigh(columns @ transposed)
    loaded = np.swapaxes(vectors, 1, 2) @ target[:, None]
    return np.asarray(transposed @ (vectors @ (loaded / (np.maximum(values, 0)[:, :, None] + penalties))))

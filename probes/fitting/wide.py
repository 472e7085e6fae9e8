"""Ridge on many columns, validated by leaving out every group: one decomposition serves all penalties and groups.

With centred columns ``X = U S V'`` the fitted values are ``H y``, ``H = 11'/n + U diag(s^2 / (s^2 + penalty)) U'``.
What the fit without the items g of a group would be wrong by on them is ``(I - H_gg)^-1 (y - H y)_g``, exactly (Cook
and Weisberg 1982, Residuals and Influence in Regression, section 3.5; for single items the PRESS of Allen 1974).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped

# Shares of the mean squared singular value, descending, so that ties go to the simpler fit.
SHARES: Final[Float[np.ndarray, " penalty"]] = np.logspace(3, -4, 22)
_NOISE: Final = 1e-10


@dataclass(frozen=True, eq=False)
class WideFit:
    """A ridge on columns as they are: ``intercept + (x - mean) @ coef``.

    Attributes:
        mean: Of each column over the fit items ``[column]``.
        coef: One weight a column ``[column]``.
        intercept: Mean of the target.
        penalty: What left-out groups were predicted best with.
        error: Their mean squared error.
    """

    mean: Float[np.ndarray, " column"]
    coef: Float[np.ndarray, " column"]
    intercept: float
    penalty: float
    error: float


def fit_wide(
    columns: Float[np.ndarray, "item column"],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    shares: Float[np.ndarray, " penalty"] = SHARES,
) -> WideFit:
    """Fit; leave-one-group-out chooses the penalty, the larger one of equal errors.

    With a single group nothing can be left out; the largest penalty is taken, and the error is infinite.

    Args:
        columns: What is weighed, standardised or not: a column's size is its say.
        y: Target.
        groups: Group of each item.
        shares: Penalties to choose from, as shares of the mean squared singular value; descending.
    """
    mean = columns.mean(axis=0)
    centred, target = columns - mean, y - y.mean()
    n_items, n_columns = centred.shape
    wide = n_columns > n_items
    squares, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    kept = squares > _NOISE * max(float(squares[-1]), np.finfo(float).tiny)
    squares, vectors = squares[kept], vectors[:, kept]
    size = np.sqrt(squares)
    left = vectors if wide else centred @ vectors / size
    loaded = left.T @ target
    penalties = shares * (squares.sum() / max(1, len(squares)))
    errors = np.array([_left_out(left, target, groups, squares / (squares + penalty)) for penalty in penalties])
    choice = int(np.argmin(errors))
    # V diag(s / (s^2 + penalty)) U'y
    shrunk = loaded * size / (squares + penalties[choice])
    coef = centred.T @ (vectors @ (shrunk / size)) if wide else vectors @ shrunk
    return WideFit(mean, coef, float(y.mean()), float(penalties[choice]), float(errors[choice]))


def _left_out(
    left: Float[np.ndarray, "item component"],
    target: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    factor: Float[np.ndarray, " component"],
) -> float:
    """Mean squared error of the items of each group, by the fit on all others."""
    n_items = len(target)
    residual = target - left @ (factor * (left.T @ target))
    members = _members(groups)
    if len(members) < 2:
        return float("inf")
    singles = np.concatenate([rows for rows in members if len(rows) == 1] or [np.empty(0, dtype=np.int64)])
    weight = 1 / n_items + (left[singles] ** 2) @ factor
    total = float(((residual[singles] / (1 - weight)) ** 2).sum())
    for rows in members:
        if len(rows) > 1:
            block = 1 / n_items + (left[rows] * factor) @ left[rows].T
            total += float((np.linalg.solve(np.eye(len(rows)) - block, residual[rows]) ** 2).sum())
    return total / n_items


def _members(groups: Shaped[np.ndarray, " item"]) -> list[Int[np.ndarray, " member"]]:
    names = groups.astype(str) if groups.dtype == object else groups
    code = np.unique(names, return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(code[order])) + 1)

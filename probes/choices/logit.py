"""Conditional logit with a ridge penalty: McFadden 1974, "Conditional logit analysis of qualitative choice behavior".

The utility of a choice is ``u = x b``, its probability the softmax of the utilities of the item's choices. With ``t``
what the choices of an item are worth, divided by their sum, the loss is

    sum over items of ``-sum_c t_c log p_c``  plus  ``penalty / 2 * b b``,

which is convex. What is the same for all choices of an item drops out, so there is no intercept; columns are divided by
the standard deviation within items. The penalty is the one of a grid with the smallest loss on held-out groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import minimize

from probes.choices.ragged import centred, log_softmax
from probes.fitting.ridge import CONSTANT, INNER_FOLDS, group_folds
from probes.token_table import ragged_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

# Descending, so that each fit starts from a smaller one and ties go to the stronger penalty.
PENALTIES: Final[Float[np.ndarray, " penalty"]] = np.logspace(3, -2, 6)
_TOLERANCE: Final = 1e-8
_STEPS: Final = 50
_HALVINGS: Final = 30

_Offsets = Int[np.ndarray, " edge"]
_Columns = Float[np.ndarray, "problem choice column"]


@dataclass(frozen=True, eq=False)
class LogitFit:
    """A conditional logit on columns that are divided by their spread.

    Attributes:
        spread: Standard deviation of each column within the fit items; 1 where there is none ``[column]``.
        coef: Weight of each column, once divided; 0 where it does not vary within items ``[column]``.
        penalty: What the inner cross-validation chose.
        constant: Columns that do not vary within items ``[column]``.
        problem: Index of the chosen set of columns, 0 where there was only one.
        converged: Whether the fit on all items reached a minimum.
    """

    spread: Float[np.ndarray, " column"]
    coef: Float[np.ndarray, " column"]
    penalty: float
    constant: Bool[np.ndarray, " column"]
    problem: int = 0
    converged: bool = True


def fit_logit(
    columns: _Columns,
    target: Float[np.ndarray, " choice"],
    offsets: _Offsets,
    groups: Shaped[np.ndarray, " item"],
    *,
    candidates: Bool[np.ndarray, " problem"] | None = None,
    penalties: Float[np.ndarray, " penalty"] = PENALTIES,
) -> LogitFit:
    """Fit a conditional logit; inner cross-validation chooses the penalty, and the columns of several sets.

    With a single group nothing can be held out, and the largest penalty and first candidate are taken.

    Args:
        columns: Sets of columns to choose from, all of one shape.
        target: Distribution over the choices of each item.
        offsets: Where the choices of each item start.
        groups: Group of each item; inner folds do not divide groups.
        candidates: Sets that may be chosen; all unless given.
        penalties: Grid to choose from, descending.
    """
    errors = np.zeros((len(penalties), len(columns)))
    for train, test, train_offsets, test_offsets in _inner_folds(offsets, groups):
        scaled, scale, _ = _scaled(columns[:, train], train_offsets)
        held_out = columns[:, test] / scale[:, None]
        coef = np.zeros((len(columns), columns.shape[2]))
        for index, penalty in enumerate(penalties):
            coef, _ = _newton(scaled, target[train], train_offsets, float(penalty), coef)
            logp = log_softmax((held_out @ coef[:, :, None])[:, :, 0].T, test_offsets)
            errors[index] -= target[test] @ logp
    if candidates is not None:
        errors[:, ~candidates] = np.inf
    choice, problem = np.unravel_index(int(np.argmin(errors)), errors.shape)
    scaled, scale, constant = _scaled(columns[problem][None], offsets)
    found, converged = _newton(scaled, target, offsets, float(penalties[choice]), np.zeros((1, columns.shape[2])))
    coef = np.where(constant[0], 0.0, found[0])
    size = np.where(constant[0], 1.0, scale[0])
    return LogitFit(size, coef, float(penalties[choice]), constant[0], int(problem), bool(converged))


def fit_wide_logit(
    columns: Any, target: Float[np.ndarray, " choice"], offsets: _Offsets, groups: Shaped[np.ndarray, " item"]
) -> LogitFit:
    """The same for many columns, most of them 0, as one sparse matrix ``[choice, column]`` that is taken as it is."""
    errors = np.zeros(len(PENALTIES))
    for train, test, train_offsets, test_offsets in _inner_folds(offsets, groups):
        coef = np.zeros(columns.shape[1])
        fit_part, held_out = columns[train], columns[test]
        for index, penalty in enumerate(PENALTIES):
            coef, _ = _lbfgs(fit_part, target[train], train_offsets, float(penalty), coef)
            errors[index] -= target[test] @ log_softmax(held_out @ coef, test_offsets)
    penalty = float(PENALTIES[int(np.argmin(errors))])
    coef, converged = _lbfgs(columns, target, offsets, penalty, np.zeros(columns.shape[1]))
    ones = np.ones(len(coef))
    return LogitFit(ones, coef, penalty, np.zeros(len(coef), dtype=bool), 0, converged)


def within_spread(
    columns: Float[np.ndarray, "*problem choice column"], offsets: _Offsets
) -> tuple[Float[np.ndarray, "*problem column"], Bool[np.ndarray, "*problem column"]]:
    """Standard deviation of columns within items, and whether that is rounding noise beside their size."""
    first = np.moveaxis(columns, -2, 0)
    size = np.sqrt((centred(first, offsets) ** 2).mean(axis=0))
    return size, np.asarray(size < CONSTANT * np.maximum(1.0, np.abs(first).mean(axis=0)))


def _inner_folds(
    offsets: _Offsets, groups: Shaped[np.ndarray, " item"]
) -> Iterator[tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"], _Offsets, _Offsets]]:
    """Rows of the choices of fit items and of held-out items, and where those of each item start."""
    fold = group_folds(groups, INNER_FOLDS)
    counts = np.diff(offsets)
    for held_out in range(fold.max() + 1 if fold.max() > 0 else 0):
        parts = [np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)]
        train, test = (ragged_rows(offsets, items) for items in parts)
        starts, ends = (np.concatenate([[0], np.cumsum(counts[items])]).astype(np.int64) for items in parts)
        yield train, test, starts, ends


def _scaled(
    columns: _Columns, offsets: _Offsets
) -> tuple[_Columns, Float[np.ndarray, "problem column"], Bool[np.ndarray, "problem column"]]:
    """Columns over their spread within items; an infinite spread makes a constant one zero."""
    size, constant = within_spread(columns, offsets)
    size = np.where(constant, np.inf, size)
    return columns / size[:, None], size, constant


def _newton(
    columns: _Columns,
    target: Float[np.ndarray, " choice"],
    offsets: _Offsets,
    penalty: float,
    start: Float[np.ndarray, "problem column"],
) -> tuple[Float[np.ndarray, "problem column"], bool]:
    """Minima of several problems at once, by Newton steps that are halved until the loss falls.

    The penalty makes every Hessian positive definite. Neighbouring layers nearly copy each other, which quasi-Newton
    methods take hundreds of steps over.
    """
    coef = start.copy()
    loss, logp = _losses(columns, target, offsets, penalty, coef)
    eye = penalty * np.eye(columns.shape[2])
    done = np.zeros(len(coef), dtype=bool)
    for _ in range(_STEPS):
        p = np.exp(logp)
        slope = ((p - target)[:, None, :] @ columns)[:, 0] + penalty * coef
        weighted = p[:, :, None] * columns
        mean = np.add.reduceat(weighted, offsets[:-1], axis=1)
        hessian = np.swapaxes(weighted, 1, 2) @ columns - np.swapaxes(mean, 1, 2) @ mean + eye
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        decrement = (step * slope).sum(axis=1)
        if done.all():
            break
        # This near, one more step is the last: the error is squared once more.
        length = np.where(done, 0.0, 1.0)
        done |= decrement <= _TOLERANCE * np.maximum(1.0, loss)
        for _ in range(_HALVINGS):
            tried = coef - length[:, None] * step
            new, new_logp = _losses(columns, target, offsets, penalty, tried)
            worse = new > loss + 1e-12 * np.abs(loss)
            if not worse.any():
                break
            length[worse] /= 2
        else:
            # What rounding leaves no step for is at its minimum.
            tried[worse], new[worse], new_logp[worse] = coef[worse], loss[worse], logp[worse]
            done |= worse
        coef, loss, logp = tried, new, new_logp
    return coef, bool(done.all())


def _losses(
    columns: _Columns,
    target: Float[np.ndarray, " choice"],
    offsets: _Offsets,
    penalty: float,
    coef: Float[np.ndarray, "problem column"],
) -> tuple[Float[np.ndarray, " problem"], Float[np.ndarray, "problem choice"]]:
    """Loss of every problem, and the log-probabilities behind it."""
    logp = log_softmax((columns @ coef[:, :, None])[:, :, 0].T, offsets).T
    return -(logp @ target) + penalty / 2 * (coef**2).sum(axis=1), logp


def _lbfgs(
    columns: Any,
    target: Float[np.ndarray, " choice"],
    offsets: _Offsets,
    penalty: float,
    start: Float[np.ndarray, " column"],
) -> tuple[Float[np.ndarray, " column"], bool]:
    """Minimum of one wide problem."""
    transposed = columns.T.tocsr()

    def loss(coef: Float[np.ndarray, " column"]) -> tuple[float, Float[np.ndarray, " column"]]:
        logp = log_softmax(columns @ coef, offsets)
        return float(-(target @ logp) + penalty / 2 * (coef @ coef)), transposed @ (
            np.exp(logp) - target
        ) + penalty * coef

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-4, "ftol": 1e-9})
    return np.asarray(found.x), bool(found.success)

"""Ridge in the metric between plain and whitened: how all layers are mixed by default.

With the standardised columns ``X = U S V'``, a ridge shrinks the j-th principal component by ``s^2 / (s^2 + c)``.
The logits of neighbouring layers are nearly copies of each other, so that a few components hold almost all variance,
and a ridge that leaves those free cannot reach the small ones, in which layers differ. Full whitening shrinks all
alike, noise too. Here the factor is ``s / (s + c)``: the minimum of ``||y - X b||^2 + c b' (X'X)^(1/2) b``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Shaped

from probes.fitting.ridge import INNER_FOLDS, RidgeFit, group_folds, is_constant

# In units in which the data term does not depend on the number of items or columns.
SHRINKAGES: Final[Float[np.ndarray, " penalty"]] = np.logspace(2, -4, 25)
# Components of less than this share of the largest one are rounding noise.
_NOISE: Final = 1e-6


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of standardised columns, ``(columns - mean) / spread = U S V'``.

    Attributes:
        mean: Of each column over the items ``[column]``.
        spread: Their standard deviation; infinite where the column is constant ``[column]``.
        standardised: The columns, less mean, over spread ``[item, column]``.
        size: Singular values S ``[component]``.
        right: V ``[column, component]``.
    """

    mean: Float[np.ndarray, " column"]
    spread: Float[np.ndarray, " column"]
    standardised: Float[np.ndarray, "item column"]
    size: Float[np.ndarray, " component"]
    right: Float[np.ndarray, "column component"]

    @classmethod
    def of(cls, columns: Float[np.ndarray, "item column"]) -> Components:
        """Components that are more than rounding noise."""
        mean, spread = columns.mean(axis=0), columns.std(axis=0)
        spread = np.where(is_constant(mean, spread), np.inf, spread)
        n_items, n_columns = columns.shape
        standardised = (columns - mean) / spread
        # The smaller Gram matrix gives the same components as a singular value decomposition, and faster.
        wide = n_columns > n_items
        gram = standardised @ standardised.T if wide else standardised.T @ standardised
        squares, vectors = np.linalg.eigh(gram)
        kept = squares > _NOISE**2 * max(float(squares[-1]), np.finfo(float).tiny)
        size, vectors = np.sqrt(squares[kept]), vectors[:, kept]
        return cls(mean, spread, standardised, size, standardised.T @ vectors / size if wide else vectors)

    @property
    def unit(self) -> float:
        """What a shrinkage of 1 is in the units of the singular values, as ``c`` above is."""
        n_items, n_columns = self.standardised.shape
        return float(n_columns / np.sqrt(n_items))


def fit_spectral(
    columns: Float[np.ndarray, "item column"],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    shrinkages: Float[np.ndarray, " penalty"] = SHRINKAGES,
) -> RidgeFit:
    """Fit; inner cross-validation over groups chooses the shrinkage, the larger one of equal errors.

    Args:
        columns: What is weighed.
        y: Target.
        groups: Group of each item; inner folds do not divide groups.
        shrinkages: Grid to choose from, descending.
    """
    errors = np.zeros(len(shrinkages))
    fold = group_folds(groups, INNER_FOLDS)
    for held_out in range(fold.max() + 1 if fold.max() > 0 else 0):
        train, test = fold != held_out, fold == held_out
        parts = Components.of(columns[train])
        coefs = _solve(parts, y[train], shrinkages)
        predicted = y[train].mean() + ((columns[test] - parts.mean) / parts.spread) @ coefs
        errors += ((predicted - y[test][:, None]) ** 2).sum(axis=0)
    choice = int(np.argmin(errors))
    parts = Components.of(columns)
    constant = np.isinf(parts.spread)
    coef = np.where(constant, 0.0, _solve(parts, y, shrinkages[choice : choice + 1])[:, 0])
    return RidgeFit(parts.mean, parts.spread, coef, float(y.mean()), float(shrinkages[choice]), constant)


def _solve(
    parts: Components, y: Float[np.ndarray, " item"], shrinkages: Float[np.ndarray, " penalty"]
) -> Float[np.ndarray, "column penalty"]:
    """Coefficients of the standardised columns, for every shrinkage."""
    # U'y, whose share of every component is then shrunk by s / (s + c), and divided by s to be a coefficient.
    loaded = parts.right.T @ (parts.standardised.T @ (y - y.mean())) / parts.size
    return np.asarray(parts.right @ (loaded[:, None] / (parts.size[:, None] + shrinkages * parts.unit)))

"""One weight a layer and one a label, multiplied: a ridge of rank one on layer x label logits."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Shaped

from probes.fitting.ridge import fit_ridge
from probes.fitting.spectral import fit_spectral

_ROUNDS: Final = 3


def fit_rank_one(
    centred: Float[np.ndarray, "item layer label"],
    y: Float[np.ndarray, " item"],
    groups: Shaped[np.ndarray, " item"],
    values: Float[np.ndarray, " label"],
) -> tuple[Float[np.ndarray, "layer label"], float]:
    """Weights ``u_l v_k``, by turns: the layers' with the labels' held fixed, then the labels' with the layers'.

    The labels' weights start at the centred label values, with which the first turn is a ridge on slopes. Each turn
    chooses its own penalty by inner cross-validation. A bilinear problem of this kind: reduced-rank regression
    (Izenman 1975, Journal of Multivariate Analysis 5(2)).

    Args:
        centred: Score logits without each layer's mean over the labels.
        y: Target.
        groups: Group of each item; inner folds do not divide groups.
        values: Value of each label.

    Returns:
        Weights of the logits, and the penalty of the layers' weights.
    """
    of_labels = (values - values.mean()) / np.abs(values - values.mean()).sum()
    for _ in range(_ROUNDS):
        layers = fit_spectral(centred @ of_labels, y, groups)
        of_layers = layers.coef / layers.spread
        mixed = np.einsum("ilk,l->ik", centred, of_layers)
        labels = fit_ridge(mixed[None], y, groups)
        found = np.where(np.isfinite(labels.spread), labels.coef / labels.spread, 0.0)
        if not np.abs(found).sum() > 0:
            break  # nothing goes with the target: what there is stays
        of_labels = (found - found.mean()) / np.abs(found).sum()
    layers = fit_spectral(centred @ of_labels, y, groups)
    return np.outer(layers.coef / layers.spread, of_labels), layers.penalty

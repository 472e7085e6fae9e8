"""Whether the tuned lens is one: how near it brings every layer to the last, on items that it was not fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probes.fitting.maps import fit_tuned, kl_to_last
from probes.fitting.threads import one_blas_thread
from probes.intervals import Interval, mean_interval
from probes.layer_order import in_model_order
from probes.protocol import Settings, group_resamples, make_folds
from probes.runlike import check_lens, parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from probes.runlike import Part, RunLike


# In nats; what is less is no gain.
_ROUNDING: Final = 1e-9


def tuned_lens(
    run: RunLike,
    *,
    folds: int = 5,
    repeats: int = 1,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """Divergence of every layer's distribution over the labels from the last layer's, under ``norm`` and ``tuned``.

    The lens is fitted on the items of the other folds, as in a judge that reads it, and measured on held-out ones.

    Args:
        run: A run with human scores, whose items are those that judges are compared on.
        folds: Group folds of a repeat.
        repeats: How often the items are divided anew.
        resamples: Resamples of the groups.
        level: Coverage.
        seed: Of folds and resamples.
        criterion: Only this criterion.
        pool: Treat all criteria as one.

    Returns:
        One row a criterion and layer but the last, which is its own goal: ``criterion, layer, layer_index, kl_norm,
        kl_tuned, gain, gain_lo, gain_hi, lowered, n_used, n_total``. Divergences are in nats, means over items;
        ``gain`` is how much the lens takes off; ``lowered`` says whether its interval lies above 0.

    Raises:
        FitError: The run lacks the ``norm`` lens; or as ``compare``.
    """
    run = in_model_order(run)
    check_lens(run, "norm")
    Settings(folds, repeats, resamples, level, seed)  # refuses what is out of range
    rows = []
    for part in parts(run, criterion, pool=pool):
        before, after = _held_out(part, folds, repeats, seed)
        drawn, code = group_resamples(part.groups, resamples, seed)
        for index, layer in enumerate(run.layers[:-1]):
            gain = _mean(before[:, index] - after[:, index], drawn, code, level)
            rows.append(
                {
                    "criterion": part.criterion,
                    "layer": layer,
                    "layer_index": index,
                    "kl_norm": float(before[:, index].mean()),
                    "kl_tuned": float(after[:, index].mean()),
                    "gain": gain.value,
                    "gain_lo": gain.lo,
                    "gain_hi": gain.hi,
                    "lowered": gain.lo > 0,
                    "n_used": len(part.y),
                    "n_total": part.n_total,
                }
            )
    return pd.DataFrame(rows)


def _held_out(
    part: Part, folds: int, repeats: int, seed: int
) -> tuple[Float[np.ndarray, "item layer"], Float[np.ndarray, "item layer"]]:
    """Divergence of each item without the lens, and with one that other items were fitted on, averaged over repeats."""
    logits = part.logits["norm"].logits
    after = np.zeros(logits.shape[:2])
    made = make_folds(part.y, part.groups, folds, repeats, seed)
    with one_blas_thread():
        for repeat, test in made.tests():
            train = made.fold[repeat] != made.fold[repeat, test[0]]
            maps = fit_tuned(logits[train], part.groups[train]).maps
            after[test] += kl_to_last(maps.apply(logits[test])) / repeats
    return kl_to_last(logits), after


def _mean(
    gains: Float[np.ndarray, " item"],
    drawn: Int[np.ndarray, "resample group"],
    code: Int[np.ndarray, " item"],
    level: float,
) -> Interval:
    total, size = np.bincount(code, weights=gains), np.bincount(code)
    return mean_interval((drawn @ total) / (drawn @ size), drawn.shape[1], level)


def not_lowered(notes: Mapping[str, Any], layers: Sequence[str]) -> list[str]:
    """Layers that a fitted judge's tuned lens brings no nearer to the last one, by its inner cross-validation."""
    pairs = zip(layers[:-1], notes["kl_norm"], notes["kl_tuned"], strict=False)
    return [layer for layer, before, after in pairs if not after < before - _ROUNDING]

"""Tables that figures take, made from a run, a layer or a block of items at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import softmax

from probes.aggregate import DEFAULT_JUDGE, get_aggregator
from probes.calibration import N_BINS, ece, kl, targets
from probes.errors import FitError
from probes.figures.item_tables import item_choices as item_choices
from probes.figures.item_tables import item_distributions as item_distributions
from probes.figures.item_tables import item_row as item_row
from probes.figures.item_tables import prompt_text as prompt_text
from probes.fitted import expected_values
from probes.fitting.threads import one_blas_thread
from probes.layer_order import in_model_order
from probes.protocol import make_folds, out_of_fold
from probes.runlike import HoldsStates, RunLike, check_lens, lacking, parts, where

if TYPE_CHECKING:
    from collections.abc import Sequence

# Bytes of states that are in memory at once.
_BLOCK_BYTES: Final = 64 << 20
# A state that differs from the mean state by less than this part of itself is the mean state, but for rounding.
_SAME: Final = 1e-6


def layer_scores(run: RunLike, lens: str = "norm", criterion: str | None = None) -> pd.DataFrame:
    """What every layer would answer to every item, for ``probes.figures.score_map``.

    Args:
        run: The run.
        lens: Lens whose logits are read.
        criterion: Only items of this criterion.

    Returns:
        One row an item and layer: ``item, criterion, layer, layer_index, score, human``; ``score`` is the expected
        value of the layer's softmax over the labels, ``human`` the mean of the raters, both in label values. NaN where
        an item has no reading or no raters.

    Raises:
        FitError: There is no such lens or criterion.
    """
    run = in_model_order(run)
    chosen = _of_criterion(run, criterion)
    scores = expected_values(_logits(run, lens)[chosen], np.asarray(run.scale.values, dtype=np.float64))
    n_items, n_layers = scores.shape
    again = pd.Series(list(run.ids)).groupby(list(run.ids)).cumcount()  # an item may be selected several times
    names = [f"{name} ({number + 1})" if number else name for name, number in zip(run.ids, again, strict=True)]
    ids, criteria = np.asarray(names, dtype=object), np.asarray(run.criteria, dtype=object)
    return pd.DataFrame(
        {
            "item": np.repeat(ids[chosen], n_layers),
            "criterion": np.repeat(criteria[chosen], n_layers),
            "layer": np.tile(np.asarray(run.layers, dtype=object), n_items),
            "layer_index": np.tile(np.arange(n_layers), n_items),
            "score": scores.ravel(),
            "human": np.repeat(np.asarray(run.human_value, dtype=np.float64)[chosen], n_layers),
        }
    )


def score_distributions(run: RunLike, lens: str = "norm", criterion: str | None = None) -> pd.DataFrame:
    """How often every layer would give each label, beside the raters, for ``probes.figures.distributions``.

    Over the items that have both a reading and a rater; where no item has a rater, over those that have a reading.

    Args:
        run: The run.
        lens: Lens whose logits are read.
        criterion: Only items of this criterion.

    Returns:
        One row a layer and label: ``layer, layer_index, label, label_value, share, raters, kl, n_used, n_total,
        criterion``.
        ``share`` is the mean over items of the label's probability, ``raters`` the mean of the items' histograms
        (``probes.calibration.Targets.shares``), ``kl`` the layer's ``probes.calibration.kl``, a mean over items.

    Raises:
        FitError: There is no such lens or criterion, or no item that can be used.
    """
    run = in_model_order(run)
    chosen = _of_criterion(run, criterion)
    logits = _logits(run, lens)[chosen]
    values = np.asarray(run.scale.values, dtype=np.float64)
    human = run.scale.to_value(np.asarray(run.human, dtype=np.float64)[chosen])
    captured, rated = np.isfinite(logits).all(axis=(1, 2)), np.isfinite(human).any(axis=1)
    used = captured & rated if rated.any() else captured
    if not used.any():
        raise FitError(f"{where(run)} has no item with both a reading and a human score; nothing can be counted")
    target = targets(human[used], values)
    raters = target.shares.mean(axis=0)
    rows: list[dict[str, Any]] = []
    for index, layer in enumerate(run.layers):
        probs = softmax(logits[used, index].astype(np.float64), axis=-1)
        share, divergence = probs.mean(axis=0), kl(probs, target)
        for label in range(len(values)):
            rows.append(
                {
                    "layer": layer,
                    "layer_index": index,
                    "label": run.scale.labels[label],
                    "label_value": values[label],
                    "share": share[label],
                    "raters": raters[label],
                    "kl": divergence,
                    "n_used": int(used.sum()),
                    "n_total": len(chosen),
                }
            )
    return pd.DataFrame(rows).assign(criterion=_criterion_of(run, chosen))


def reliability_bins(
    run: RunLike,
    judges: Sequence[str] = ("final", DEFAULT_JUDGE),
    *,
    folds: int = 5,
    seed: int = 0,
    n_bins: int = N_BINS,
    criterion: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """How often raters choose the label that a judge finds most probable, for ``probes.figures.reliability``.

    Bins, their accuracy and ``ece`` are those of ``probes.calibration.ece``. Judges that need labels say what they say
    about items that they were not fitted on, in one division into folds.

    Args:
        run: A run with human scores.
        judges: Judges by name.
        folds: Group folds.
        seed: Of the folds.
        n_bins: Bins of equal width.
        criterion: Only items of this criterion.
        pool: Treat all criteria as one.

    Returns:
        One row a judge and bin that holds an item: ``judge, lens, labels_used, bin_lo, bin_hi, confidence, accuracy,
        count, ece, n_used, n_total, criterion``.

    Raises:
        FitError: A judge is unknown or gives no distribution, or there are several criteria or too few items.
    """
    chosen, run = [get_aggregator(judge) for judge in judges], in_model_order(run)
    found = parts(run, criterion, pool=pool)
    if len(found) > 1:
        raise FitError(f"choose a criterion for the reliability: {', '.join(part.criterion for part in found)}")
    part = found[0]
    values = np.asarray(run.scale.values, dtype=np.float64)
    target = targets(run.scale.to_value(np.asarray(run.human, dtype=np.float64)[part.rows]), values)
    made = make_folds(part.y, part.groups, folds, 1, seed)
    rows: list[dict[str, Any]] = []
    for one in chosen:
        if lacks := lacking(run, one):
            raise FitError(lacks)
        told = out_of_fold(one, part.logits[one.reads], part.y, part.groups, made)
        if told.probs is None:
            raise FitError(f"{one.spec} gives a number and no distribution: reliability needs a judge that has one")
        probs = told.probs[0]
        fitted = np.isfinite(probs).all(axis=1)
        best = np.argmax(np.where(fitted[:, None], probs, 0), axis=1)
        confidence = probs[np.arange(len(probs)), best]
        accuracy = target.shares[np.arange(len(probs)), best]
        with np.errstate(invalid="ignore"):
            in_bin = np.clip(np.ceil(confidence * n_bins) - 1, 0, n_bins - 1)
        error = ece(probs, target, n_bins)
        for number in range(n_bins):
            members = fitted & (in_bin == number)
            if members.any():
                rows.append(
                    {
                        "judge": one.spec,
                        "lens": one.lens,
                        "labels_used": round(told.n_fit),
                        "bin_lo": number / n_bins,
                        "bin_hi": (number + 1) / n_bins,
                        "confidence": float(confidence[members].mean()),
                        "accuracy": float(accuracy[members].mean()),
                        "count": int(members.sum()),
                        "ece": error,
                        "n_used": int(fitted.sum()),
                        "n_total": part.n_total,
                        "criterion": part.criterion,
                    }
                )
    return pd.DataFrame(rows)


def layer_similarity(run: RunLike, *, centred: bool = False) -> pd.DataFrame:
    """Cosine between the residual states of every two layers, a mean over items, for ``probes.figures.similarity``.

    States are read in blocks of items of some 64 MiB, so that memory does not grow with the run. Items of all
    criteria take part.

    Args:
        run: A run with residual states.
        centred: Take the mean state over items from each layer's states first. What all items share, such as a few
            huge dimensions, makes uncentred cosines large whatever the item. A layer whose states are the same for
            all items has no centred cosine: NaN.

    Returns:
        One row a pair of layers, both ways: ``layer, layer_index, other, other_index, cosine, centred, n_used,
        n_total``.

    Raises:
        FitError: The run holds no states that an item can be said to have.
    """
    run = in_model_order(run)
    if not isinstance(run, HoldsStates) or not run.has_item_residuals:
        raise FitError(f"{where(run)} holds no residual states of items: capture with residuals, and no pairs")
    n_layers, n_items = len(run.layers), len(run.ids)
    first = _states(run, np.arange(min(1, n_items)))
    step = max(1, _BLOCK_BYTES // (first.shape[0] * first.shape[2] * 8))
    blocks = [np.arange(start, min(start + step, n_items)) for start in range(0, n_items, step)]
    mean = np.zeros((n_layers, first.shape[2]))
    if centred:
        count = 0
        for rows in blocks:
            states, usable = _usable(_states(run, rows))
            mean += states.sum(axis=1)
            count += usable
        mean /= max(count, 1)
    total, used = np.zeros((n_layers, n_layers)), np.zeros((n_layers, n_layers), dtype=np.int64)
    n_used = 0
    for rows in blocks:
        states, usable = _usable(_states(run, rows))
        n_used += usable
        before = _norms(states)
        states -= mean[:, None]  # in place, as the block is what takes memory
        norm = _norms(states)
        defined = (norm > _SAME * before) & (norm > 0)
        states /= np.where(defined, norm, np.inf)[:, :, None]
        flat = states.reshape(n_layers, -1)
        with one_blas_thread():
            total += flat @ flat.T
        used += defined.astype(np.int64) @ defined.T.astype(np.int64)
    cosine = np.divide(total, used, out=np.full_like(total, np.nan), where=used > 0)
    layer, other = (index.ravel() for index in np.indices(cosine.shape))
    names = np.asarray(run.layers, dtype=object)
    return pd.DataFrame(
        {
            "layer": names[layer],
            "layer_index": layer,
            "other": names[other],
            "other_index": other,
            "cosine": np.clip(cosine.ravel(), -1, 1),
            "centred": centred,
            "n_used": n_used,
            "n_total": n_items,
        }
    )


def scale_mass(run: RunLike) -> pd.DataFrame:
    """Share of the full vocabulary's probability on the scale, by layer, for ``probes.figures.mass``.

    Of all layers where the run was captured with ``mass=True``, else of the last one alone.

    Returns:
        One row a layer: ``layer, layer_index, value, lo, hi, n_used, n_total``: median and quartiles over items; NaN
        where it was not captured.

    Raises:
        FitError: The run says nothing about it.
    """
    run = in_model_order(run)
    run_: Any = run
    if not hasattr(run, "final_mass"):
        raise FitError(f"{where(run)} holds no probability of the scale")
    n_layers = len(run.layers)
    if "scale_mass" in run_.extras:
        of_items = run_.readings.item_mean(run_.extra("scale_mass"))
    else:
        of_items = np.full((len(run.ids), n_layers), np.nan)
        if run.layers[-1] == str(run.n_layers):
            of_items[:, -1] = run_.readings.item_mean(run_.final_mass)
    rows = []
    for index, layer in enumerate(run.layers):
        there = of_items[np.isfinite(of_items[:, index]), index].astype(np.float64)
        lo, value, hi = np.quantile(there, [0.25, 0.5, 0.75]) if len(there) else [np.nan] * 3
        rows.append({"layer": layer, "layer_index": index, "value": value, "lo": lo, "hi": hi, "n_used": len(there)})
    return pd.DataFrame(rows).assign(n_total=len(run.ids))


def _of_criterion(run: RunLike, criterion: str | None) -> Int[np.ndarray, " item"]:
    names = np.asarray(list(run.criteria), dtype=object)
    if criterion is None:
        return np.arange(len(names))
    if criterion not in names:
        known = ", ".join(repr(name) for name in dict.fromkeys(names.tolist()))
        raise FitError(f"{where(run)} has no criterion {criterion!r}: it has {known}")
    return np.flatnonzero(names == criterion)


def _criterion_of(run: RunLike, rows: Int[np.ndarray, " item"]) -> str:
    """The criterion of some items; empty where they have several, or none."""
    names = {run.criteria[row] for row in rows.tolist()}
    return names.pop() if len(names) == 1 else ""


def _logits(run: RunLike, lens: str) -> Float[np.ndarray, "item layer label"]:
    check_lens(run, lens)
    return run.item_logits(lens)


def _states(run: Any, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "layer row d_model"]:
    """States of some items at all layers; a run file reads no others."""
    some = run.select(items=rows) if hasattr(run, "select") else None
    of_layer = [run.item_residual(layer)[rows] if some is None else some.item_residual(layer) for layer in run.layers]
    return np.stack(of_layer).astype(np.float64)


def _norms(states: Float[np.ndarray, "layer row d_model"]) -> Float[np.ndarray, "layer row"]:
    """Lengths of states, without a copy of them."""
    return np.asarray(np.sqrt(np.einsum("lid,lid->li", states, states)))


def _usable(states: Float[np.ndarray, "layer row d_model"]) -> tuple[Float[np.ndarray, "layer used d_model"], int]:
    # A sum is finite only if all that is added up is.
    finite: Bool[np.ndarray, " row"] = np.isfinite(states.sum(axis=2)).all(axis=0)
    return states if finite.all() else states[:, finite], int(finite.sum())

"""How far labels go: agreement by the number of labels, and on other criteria and data than those fitted on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probes.aggregate import DEFAULT_JUDGE, MIN_FIT, Aggregator, get_aggregator
from probes.align import spearman, weighted_spearman
from probes.errors import FitError, KindError
from probes.intervals import DIFFERENCE, interval, mean_over_folds
from probes.kinds import require_run
from probes.layer_order import in_model_order
from probes.protocol import group_codes, group_resamples, make_folds, out_of_fold, within_fold_spearman
from probes.runlike import Part, RunLike, lacking, parts, where
from probes.same_model import named_alike

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZES: Final = (10, 20, 50, 100, 300)
JUDGES: Final = ("final", "final-ridge", "best-layer-ridge", "uniform", "lager", "slope-ridge", DEFAULT_JUDGE)


def learning_curve(
    run: RunLike,
    judges: Sequence[str] = JUDGES,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 20,
    reference: str = "final-ridge",
    test_share: float = 0.5,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """Spearman by the number of labels, on items that are never fitted on.

    The groups are divided once. One part gives the labels: in each of ``draws`` random orders of its groups the first
    ``n`` items are used, so that a larger fit contains the smaller ones. On the other part every fit is tested. The
    value is the mean over draws. Intervals are those of ``probes.intervals``, from resamples that draw both the label
    draws and the test groups anew, the same for all judges. All label draws are from one part of one run, so they do
    not tell how much another such part would change.

    Args:
        run: A run with human scores.
        judges: Judges by name.
        sizes: Numbers of labels; those that the run does not have are left out.
        draws: Label draws.
        reference: Judge that differences are taken from.
        test_share: Share of the items in the test part.
        resamples: Number of resamples.
        level: Of the intervals.
        seed: Of the division, the draws and the resamples.
        criterion: Only items of this criterion.
        pool: Treat all criteria as one.

    Returns:
        One row a criterion, judge and size: ``criterion, judge, lens, n_labels, n_test, n_draws, n_failed, value, lo,
        hi, gain, gain_lo, gain_hi``; ``gain`` is the difference to the reference at the same size. Draws on which a
        judge cannot be fitted (ten labels that are all equal) are counted in ``n_failed`` and as no agreement; where
        there are no others the value is NaN.

    Raises:
        FitError: A judge is unknown, or a criterion has too few items for any size.
    """
    require_run(run)
    run = in_model_order(run)
    if isinstance(judges, str):
        raise KindError(f"judges: expected a list of names, got the text {judges!r}; write [{judges!r}]")
    names = list(dict.fromkeys([*judges, reference]))
    chosen = [get_aggregator(name) for name in names]
    for one in chosen:
        if lacks := lacking(run, one):
            raise FitError(lacks)
    rows = []
    for part in parts(run, criterion, pool=pool):
        pool_rows, test = _divide(part, test_share, seed)
        possible = [size for size in sizes if MIN_FIT <= size <= len(pool_rows)]
        if not possible or len(test) < MIN_FIT:
            raise FitError(
                f"{where(run)}: {part.criterion or 'the run'} has {len(part.y)} items with a human score, too few for "
                f"a learning curve from {min(sizes)} labels on; label more, or ask for smaller sizes"
            )
        orders = [_label_order(part.groups[pool_rows], seed, draw) for draw in range(draws)]
        weights, code = group_resamples(part.groups[test], resamples, seed)
        # The first resample is the sample itself, with every draw once.
        drawn = np.random.default_rng([seed, 2]).multinomial(draws, np.full(draws, 1 / draws), size=resamples)
        drawn = np.concatenate((np.ones((1, draws), dtype=np.int64), drawn))
        for size in possible:
            fits = [pool_rows[order[:size]] for order in orders]
            tested = [_tested(one, part, fits, test, weights[:, code]) for one in chosen]
            found, failed = np.stack([values for values, _ in tested]), [count for _, count in tested]
            # Undefined coefficients, of judges that say one thing, count as no agreement.
            mean = np.einsum("jdr,rd->jr", np.nan_to_num(found), drawn) / draws
            mean[[count == draws for count in failed]] = np.nan
            gain = mean - mean[names.index(reference)]
            for number, one in enumerate(chosen):
                value = interval(mean[number], weights.shape[1], level)
                difference = interval(gain[number], weights.shape[1], level, limit=DIFFERENCE)
                rows.append(
                    {
                        "criterion": part.criterion,
                        "judge": one.label,
                        "lens": one.lens,
                        "n_labels": size,
                        "n_test": len(test),
                        "n_draws": draws,
                        "n_failed": failed[number],
                        "value": value.value,
                        "lo": value.lo,
                        "hi": value.hi,
                        "gain": difference.value,
                        "gain_lo": difference.lo,
                        "gain_hi": difference.hi,
                    }
                )
    return pd.DataFrame(rows)


def _divide(part: Part, test_share: float, seed: int) -> tuple[Int[np.ndarray, " pool"], Int[np.ndarray, " test"]]:
    """Positions of the items that labels come from, and of those that are tested on."""
    code = group_codes(part.groups)
    order = np.random.default_rng([seed, 3]).permutation(int(code.max()) + 1)
    place = np.argsort(order)[code]
    n_before = np.searchsorted(np.sort(place), np.arange(int(code.max()) + 1), side="right")
    n_test_groups = int(np.searchsorted(n_before, test_share * len(code))) + 1
    return np.flatnonzero(place >= n_test_groups), np.flatnonzero(place < n_test_groups)


def _label_order(groups: Int[np.ndarray, " item"], seed: int, draw: int) -> Int[np.ndarray, " item"]:
    """Items in a random order of their groups, and within a group in a random order."""
    rng = np.random.default_rng([seed, 4, draw])
    code = group_codes(groups)
    place = rng.permutation(int(code.max()) + 1)[code]
    shuffled = rng.permutation(len(groups))
    return np.asarray(shuffled[np.argsort(place[shuffled], kind="stable")])


def _tested(
    aggregator: Aggregator,
    part: Part,
    fits: Sequence[Int[np.ndarray, " fit"]],
    test: Int[np.ndarray, " test"],
    weights: Int[np.ndarray, "resample test"],
) -> tuple[Float[np.ndarray, "draw resample"], int]:
    """Spearman on the test items, in every resample, of the judge fitted on each draw; how many it cannot be."""
    logits = part.logits[aggregator.reads]
    on_test = logits.select(test)
    scores, failed = np.full((len(fits), len(test)), np.nan), 0
    for draw, rows in enumerate(fits):
        try:
            fitted = aggregator.fit(logits.select(rows), part.y[rows], part.groups[rows])
        except FitError:
            failed += 1  # for example ten labels that are all equal
            continue
        scores[draw] = fitted.predict(on_test).value
    return weighted_spearman(scores, part.y[test], weights), failed


def transfer(
    runs: Mapping[str, RunLike],
    judge: str = DEFAULT_JUDGE,
    *,
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman of a judge that is fitted on one criterion or data set and tested on another.

    Every criterion of every run is a set. Sets must be read by the same model and score tokens; scales may differ in
    their human range. On its own set a judge is cross-validated, as in ``compare``.

    Args:
        runs: Runs by name.
        judge: Judge by name.
        folds: Group folds, where a set is tested on itself.
        repeats: Repeats of the folds.
        resamples: Resamples of the test groups.
        level: Of the intervals, which are conditional on the fitted judges.
        seed: Of folds and resamples.

    Returns:
        One row a pair of sets: ``fitted_on, tested_on, value, lo, hi, final, n_fit, n_test``; ``final`` is that of
        the last layer's expected value on the same items, which has seen no labels.

    Raises:
        FitError: The runs are of different models or labels, or a set cannot be fitted.
    """
    if not hasattr(runs, "values"):
        raise KindError(f"runs: expected runs by name, got {runs!r}; write {{'first': run, 'second': run}}")
    first = next(iter(runs.values()))
    for run in runs.values():
        require_run(run)
        one, other = named_alike([first, run])
        if one["model_hash"] != other["model_hash"] or run.readout_hash != first.readout_hash:
            raise FitError(
                f"{where(run)} is of another model, or reads other score tokens, than {where(first)}; transfer needs "
                "one judge for all"
            )
    sets = {}
    for name, run in runs.items():
        several = parts(in_model_order(run))
        for part in several:
            sets[f"{name}/{part.criterion}" if len(several) > 1 else name] = part
    aggregator, final = get_aggregator(judge), get_aggregator("final")
    fits = {name: aggregator.fit(part.logits[aggregator.reads], part.y, part.groups) for name, part in sets.items()}
    rows = []
    for tested_on, part in sets.items():
        plain = final.fit(part.logits[final.reads]).predict(part.logits[final.lens]).value
        weights, code = group_resamples(part.groups, resamples, seed)
        for fitted_on, fitted in fits.items():
            if fitted_on == tested_on:
                made = make_folds(part.y, part.groups, folds, repeats, seed)
                scores = out_of_fold(aggregator, part.logits[aggregator.reads], part.y, part.groups, made).scores
                found = within_fold_spearman([scores], part.y, part.groups, made, resamples, seed)[0]
                values = mean_over_folds(found)
            else:
                scores = fitted.predict(part.logits[aggregator.reads]).value[None]
                values = weighted_spearman(scores, part.y, weights[:, code])[0]
            value = interval(values, part.n_groups, level)
            rows.append(
                {
                    "fitted_on": fitted_on,
                    "tested_on": tested_on,
                    "value": value.value,
                    "lo": value.lo,
                    "hi": value.hi,
                    "final": spearman(plain, part.y).value,
                    "n_fit": len(sets[fitted_on].y),
                    "n_test": len(part.y),
                }
            )
    return pd.DataFrame(rows)

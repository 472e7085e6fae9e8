"""Folds, leaks, within-fold statistics, and the bootstrap over groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes import align
from probes.aggregate import AGGREGATORS, get_aggregator
from probes.errors import FitError
from probes.intervals import interval, mean_over_folds
from probes.protocol import (
    Folds,
    flatten_constants,
    group_resamples,
    make_folds,
    out_of_fold,
    within_fold,
    within_fold_spearman,
)
from probes.runlike import layer_logits
from tests.fake_run import FakeRun

LABELLED = [name for name, kind in AGGREGATORS.items() if kind.needs_labels]


def logits_of(run, lens="norm"):
    return layer_logits(run, lens)


def refuses(message, call, *args, **kwargs):
    with pytest.raises(FitError) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == message


@given(
    st.integers(2, 40).flatmap(lambda g: st.lists(st.integers(0, g), min_size=6, max_size=80)),
    st.integers(2, 6),
    st.integers(0, 3),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_folds_cover_every_item_once_and_never_divide_a_group(members, n_folds, seed, ties):
    groups = np.array([f"g{m}" for m in members], dtype=object)
    rng = np.random.default_rng(seed)
    y = rng.integers(1, 3, len(members)).astype(float) if ties else rng.normal(size=len(members))
    if len(set(members)) < 2:
        with pytest.raises(FitError):
            make_folds(y, groups, n_folds)
        return
    folds = make_folds(y, groups, n_folds, repeats=2, seed=seed)
    assert folds.fold.shape == (2, len(members))
    assert folds.n_folds == max(2, min(n_folds, len(set(members)), len(members) // 3))
    assert bool(folds.notes) == (folds.n_folds < n_folds)
    for row in folds.fold:
        assert ((row >= 0) & (row < folds.n_folds)).all()
        assert all(len(set(row[groups == g])) == 1 for g in set(groups))
    np.testing.assert_array_equal(folds.fold, make_folds(y, groups, n_folds, repeats=2, seed=seed).fold)


def test_folds_are_stratified_and_differ_between_repeats_and_seeds():
    y = np.repeat([1.0, 2.0, 3.0, 4.0], 25)
    folds = make_folds(y, np.arange(100), 5, 5)
    for row in folds.fold:
        for score in range(1, 5):
            assert np.bincount(row[y == score], minlength=5).tolist() == [5] * 5
    assert len({tuple(row) for row in folds.fold}) == 5
    assert (folds.fold != make_folds(y, np.arange(100), 5, 5, seed=1).fold).any()


def test_small_sets_are_reduced_or_refused_in_one_line():
    y = np.arange(12.0)
    assert make_folds(y, np.arange(12) % 3).notes == ("3 folds instead of 5: there are 12 items in 3 groups",)
    refuses(
        "cross-validation needs items of at least 2 groups, got 12 items of 1: add items of other sources",
        make_folds,
        y,
        np.zeros(12),
    )
    refuses(
        "cross-validation needs items of at least 2 groups, got 0 items of 0: add items of other sources",
        make_folds,
        y[:0],
        np.zeros(0),
    )
    refuses("cross-validation needs at least 6 items with a human score, got 5", make_folds, y[:5], np.arange(5))
    refuses("cross-validation needs at least 2 folds and 1 repeat, got 1 and 5", make_folds, y, y, 1)
    refuses("cross-validation needs at least 2 folds and 1 repeat, got 5 and 0", make_folds, y, y, 5, 0)
    run = FakeRun(12, group=1)
    folds = make_folds(run.human_value, run.groups, repeats=1)
    refuses(
        "lager needs at least 10 items with a human score outside the test fold, but one fold leaves 9 of 12: "
        "label more items",
        out_of_fold,
        get_aggregator("lager"),
        logits_of(run, "raw"),
        run.human_value,
        run.groups,
        folds,
    )


def as_text(judge):
    return json.dumps([dict(judge.params), dict(judge.notes)])


@pytest.mark.parametrize("spec", LABELLED)
def test_test_labels_cannot_reach_the_fit(spec):
    run, aggregator = FakeRun(60, group=2), get_aggregator(spec)
    logits, y = logits_of(run, aggregator.lens), run.human_value
    folds = make_folds(y, run.groups, 3, 1)
    clean = out_of_fold(aggregator, logits, y, run.groups, folds)
    for place, (_, test) in enumerate(folds.tests()):
        corrupted = y.copy()
        corrupted[test] = np.random.default_rng(place).uniform(1, 5, len(test))
        dirty = out_of_fold(aggregator, logits, corrupted, run.groups, folds)
        assert as_text(clean.fits[place]) == as_text(dirty.fits[place])
        np.testing.assert_array_equal(clean.scores[0, test], dirty.scores[0, test])
        # The check can fail: the same labels do move the fits that may see them.
        for other in {0, 1, 2} - {place}:
            assert as_text(clean.fits[other]) != as_text(dirty.fits[other])
    assert clean.n_fit == pytest.approx(40, abs=1)


@pytest.mark.parametrize("spec", [name for name in LABELLED if name.endswith("ridge")])
def test_permuted_labels_leave_nothing_to_find(spec):
    values = []
    for seed in range(24):
        run, aggregator = FakeRun(60, 4, seed=seed), get_aggregator(spec)
        y = np.random.default_rng(seed).permutation(run.human_value)
        folds = make_folds(y, run.groups, 5, 1, seed=seed)
        found = out_of_fold(aggregator, logits_of(run, aggregator.lens), y, run.groups, folds)
        values.append(within_fold(align.spearman, found.scores, y, folds))
    values = np.array(values)[np.isfinite(values)]
    assert len(values) >= 20
    assert abs(values.mean()) < 2 * values.std(ddof=1) / np.sqrt(len(values))


def test_scores_of_different_folds_are_never_ranked_together():
    y = np.tile(np.arange(10.0), 3)
    fold = np.repeat([[0, 1, 2]], 10, axis=1)
    folds = Folds(fold, 3)
    scores = (np.tile(np.arange(10.0), 3) + 1000 * np.array([2, -1, 5]).repeat(10))[None]
    assert align.spearman(scores[0], y).value < 0.5
    found = within_fold_spearman([scores], y, np.arange(30), folds, 20, 0)
    np.testing.assert_allclose(found[0, :, 0], 1)
    assert within_fold(align.spearman, scores, y, folds) == pytest.approx(1)


def test_statistic_is_the_mean_of_scipys_coefficient_over_folds():
    run = FakeRun(60, group=2)
    folds = make_folds(run.human_value, run.groups, 4, 3)
    scores = np.random.default_rng(0).normal(size=(2, 3, 60)) + run.human_value
    found = mean_over_folds(within_fold_spearman(list(scores), run.human_value, run.groups, folds, 5, 0))
    for judge in range(2):
        by_hand = np.mean(
            [
                stats.spearmanr(scores[judge, r, folds.fold[r] == k], run.human_value[folds.fold[r] == k]).statistic
                for r in range(3)
                for k in range(4)
            ]
        )
        assert found[judge, 0] == pytest.approx(by_hand)
        assert within_fold(align.spearman, scores[judge], run.human_value, folds) == pytest.approx(by_hand)


def test_a_resample_draws_whole_groups_once_for_all_judges_and_repeats():
    run = FakeRun(60, group=3)
    folds = make_folds(run.human_value, run.groups, 2, 2)
    scores = np.random.default_rng(0).normal(size=(2, 2, 60)) + run.human_value
    drawn, code = group_resamples(run.groups, 7, seed=4)
    assert drawn.shape == (8, 20)
    assert (drawn[0] == 1).all()
    assert (drawn.sum(axis=1) == 20).all()
    assert all(len(set(code[run.groups == g])) == 1 for g in set(run.groups))
    found = within_fold_spearman(list(scores), run.human_value, run.groups, folds, 7, 4)
    for place, (repeat, test) in enumerate(folds.tests()):
        for resample in range(8):
            rows = np.repeat(test, drawn[resample, code[test]])
            for judge in range(2):
                by_hand = stats.spearmanr(scores[judge, repeat, rows], run.human_value[rows]).statistic
                assert found[judge, place, resample] == pytest.approx(by_hand)


def test_repeats_do_not_shrink_the_interval():
    run = FakeRun(100, group=1)
    scores = run.human_value + np.random.default_rng(9).normal(size=100)
    widths = []
    for repeats in (1, 12):
        folds = make_folds(run.human_value, run.groups, 5, repeats)
        one = np.broadcast_to(scores, (repeats, 100))
        found = interval(
            mean_over_folds(within_fold_spearman([one], run.human_value, run.groups, folds, 600, 0))[0], 100
        )
        widths.append(found.hi - found.lo)
    # Independent draws would give about 1 / sqrt(12) = .29; a little is gained by averaging over divisions.
    assert widths[1] > 0.6 * widths[0]


def test_groups_that_hold_together_widen_the_interval():
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.normal(size=40), 10)
    y = shared + 0.1 * rng.normal(size=400)
    scores = (np.repeat(rng.normal(size=40), 10) + 0.4 * shared)[None]
    folds = make_folds(y, np.arange(400) // 10, 2, 1)
    widths = []
    for groups in (np.arange(400), np.arange(400) // 10):
        found = interval(mean_over_folds(within_fold_spearman([scores], y, groups, folds, 400, 0))[0], len(set(groups)))
        widths.append(found.hi - found.lo)
    assert widths[1] > 2 * widths[0]


def test_rounding_noise_is_not_ranked():
    folds = Folds(np.zeros((1, 20), dtype=int), 1)
    noise = 3 + 1e-8 * np.arange(20.0)[None]
    assert np.isnan(within_fold(align.spearman, flatten_constants(noise, folds), np.arange(20.0), folds))
    real = 3 + 1e-3 * np.arange(20.0)[None]
    assert within_fold(align.spearman, flatten_constants(real, folds), np.arange(20.0), folds) == pytest.approx(1)


def test_a_failed_fit_leaves_its_fold_empty_and_says_why():
    run = FakeRun(60, group=1)
    y = np.where(np.arange(60) < 30, 3.0, run.human_value)
    folds = Folds((np.arange(60) < 30).astype(int)[None] * 0 + (np.arange(60) >= 30)[None], 2)
    found = out_of_fold(get_aggregator("final-ridge"), logits_of(run), y, run.groups, folds)
    assert found.failures == {"final-ridge cannot be fitted: all 30 human scores are 3; add items that differ": 1}
    assert len(found.fits) == 1
    assert np.isnan(found.scores[0, 30:]).all()
    assert np.isfinite(found.scores[0, :30]).all()

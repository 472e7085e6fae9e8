"""Leaks from test items into fits: each is built here, and is caught, or changes nothing, or shows."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from probes import align
from probes.aggregate import AGGREGATORS, Aggregator, States, get_aggregator
from probes.comparing import by_layer, compare, fit
from probes.duplicates import join_groups
from probes.errors import FitError
from probes.protocol import Folds, make_folds, out_of_fold, within_fold
from probes.runlike import layer_logits, parts
from tests.fake_run import FakeRun

FAST = {"folds": 3, "repeats": 2, "resamples": 60}
# Every judge that looks at the items it is fitted on, with or without labels.
FITTED = [name for name, kind in AGGREGATORS.items() if not kind.argument]


def logits_of(run, lens="norm"):
    return layer_logits(run, lens)


def as_text(judge):
    return json.dumps([dict(judge.params), dict(judge.notes)])


def test_groups_that_share_a_text_are_put_together_through_others_too():
    texts = ["a", "b", "b", "c", "C ", "d", "e", "e"]
    groups = np.array([0, 0, 1, 1, 2, 3, 4, 4])
    found = join_groups(groups, [{"response": text, "task": "t"} for text in texts])
    # 0 and 1 share b, 1 and 2 share c; that e is twice in one group is no reason.
    assert found.groups.tolist() == [0, 0, 0, 0, 0, 1, 2, 2]
    assert (found.n_apart, found.n_repeated) == (5, 4)
    assert found.note == (
        "4 of 8 items have the same text as an item of another group; such groups are put together, 3 instead of 5, so "
        "that no text is on both sides of a fold"
    )
    apart = join_groups(groups, [{"response": text, "task": f"{i}"} for i, text in enumerate(texts)])
    assert apart.groups.tolist() == groups.tolist()
    assert apart.note is None


def copied_run():
    """A run of 30 texts, each under four ids, with random logits and human scores that belong to the text."""
    run, rng = FakeRun(120, group=1), np.random.default_rng(0)
    for logits in run.logits.values():
        logits[:] = np.tile(rng.normal(size=(30, *logits.shape[1:])), (4, 1, 1))
    run.human_value[:] = np.tile(rng.uniform(1, 5, 30), 4)
    run.human[:] = run.human_value[:, None]
    run.texts = {run.ids[i]: f"text of {run.ids[i % 30]}" for i in range(120)}
    return run


def test_copies_of_a_text_under_two_ids_cannot_be_learned_by_heart():
    run = copied_run()
    found = compare(run, ["logit-ridge"], **FAST)
    note = (
        "120 of 120 items have the same text as an item of another group; such groups are put together, 30 instead of "
        "120, so that no text is on both sides of a fold"
    )
    assert note in found.warnings
    assert found.table["n_groups"].tolist() == [30]
    assert abs(found.table["spearman"][0]) < 0.35
    assert parts(run)[0].groups.tolist() == np.tile(parts(run)[0].groups[:30], 4).tolist()
    # The leak is real: with the copies in groups of their own, random logits predict random scores.
    logits = logits_of(run)
    folds = make_folds(run.human_value, run.groups, 3, 2)
    leaked = out_of_fold(get_aggregator("logit-ridge"), logits, run.human_value, run.groups, folds)
    assert within_fold(align.spearman, leaked.scores, run.human_value, folds) > 0.6


def test_copies_are_told_of_by_criterion_and_only_among_items_that_take_part():
    run = FakeRun(120, criteria=["fluency", "coherence"] * 60, group=2)
    run.texts = {"i2": "text of i0", "i5": "text of i1"}
    assert [part.repeated is None for part in parts(run)] == [False, False]
    assert "coherence: 2 of 60 items have the same text" in "\n".join(compare(run, ["final"], **FAST).warnings)
    run.human_value[2] = np.nan
    assert [part.repeated is None for part in parts(run)] == [True, False]


def test_a_group_in_two_folds_is_an_error():
    run = FakeRun(60, group=3)
    folds = make_folds(run.human_value, run.groups, 3, 2)
    divided = folds.fold.copy()
    divided[1, 7] = (divided[1, 7] + 1) % 3
    message = (
        "1 of 20 groups lie in several folds of repeat 1, 'g2' among them: keep the items of a group together, as "
        "make_folds does"
    )
    for judge in ("final", "slope-ridge"):
        with pytest.raises(FitError) as caught:
            out_of_fold(get_aggregator(judge), logits_of(run), run.human_value, run.groups, Folds(divided, 3))
        assert str(caught.value) == message


def changed_at(run, logits, test, other):
    """The same with other logits, and at some items other states and texts."""
    states = run.states.copy()
    states[test] = 30 + 20 * np.random.default_rng(1).normal(size=states[test].shape)
    fields = [{"response": f"otherwise {k} {k}"} if k in set(test) else of for k, of in enumerate(logits.fields)]
    return replace(logits, logits=other, states=States(lambda index: states[:, index]), fields=fields)


@pytest.mark.parametrize("spec", FITTED)
def test_nothing_of_a_test_item_reaches_its_fit(spec):
    """Standardisers, penalties, layers and weights do not depend on the logits or labels of the test items."""
    aggregator = get_aggregator(spec)
    run = FakeRun(60, 4, group=2)
    logits, y = logits_of(run, aggregator.lens), run.human_value
    folds = make_folds(y, run.groups, 3, 1)
    clean = out_of_fold(aggregator, logits, y, run.groups, folds)
    moved = 0
    for place, (_, test) in enumerate(folds.tests()):
        rng = np.random.default_rng(place)
        other, labels = logits.logits.copy(), y.copy()
        other[test] = 50 + 20 * rng.normal(size=other[test].shape)
        labels[test] = rng.uniform(1, 5, len(test))
        changed = changed_at(run, logits, test, other)
        dirty = out_of_fold(aggregator, changed, labels, run.groups, folds)
        assert as_text(dirty.fits[place]) == as_text(clean.fits[place])
        moved += sum(as_text(dirty.fits[k]) != as_text(clean.fits[k]) for k in {0, 1, 2} - {place})
    # The check can fail: the same items do move the fits that may see them, of every judge that learns anything.
    learns = aggregator.needs_labels or "n_unlabelled" in clean.fits[0].notes
    assert moved == (6 if learns else 0)


def test_a_layer_picked_on_test_labels_shows_on_labels_without_meaning():
    """Held-out agreement with permuted labels is what the suite tells leaks by: nil for ours, clear for a leak."""
    ours, leaky = [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        run = FakeRun(40, 30, group=1, seed=seed)
        run.logits["norm"][:] = rng.normal(size=run.logits["norm"].shape)
        logits, y = logits_of(run), rng.uniform(1, 5, 40)
        folds = make_folds(y, run.groups, 4, 1, seed)
        for judge, values in (
            (get_aggregator("best-layer"), ours),
            (_Picked("best-layer", "norm", True, False, {}, (logits, y)), leaky),
        ):
            found = out_of_fold(judge, logits, y, run.groups, folds)
            values.append(within_fold(align.spearman, found.scores, y, folds))
    assert abs(np.mean(ours)) < 2.5 * np.std(ours) / np.sqrt(24)
    assert np.mean(leaky) > 4 * np.std(leaky) / np.sqrt(24)


@dataclass(frozen=True)
class _Picked(Aggregator):
    """The layer that agrees best on all items, test items included."""

    everything: tuple = ()

    def fit(self, logits, y=None, groups=None):  # noqa: ARG002
        return get_aggregator("best-layer").fit(*self.everything)


def test_picking_the_best_of_a_table_is_no_part_of_any_table():
    # The best row of the layers flatters itself; `best-layer`, which picks within the folds, does not.
    gains, quick = [], {"folds": 3, "repeats": 1, "resamples": 2}
    for seed in range(8):
        run = FakeRun(60, 20, group=1, seed=seed)
        rng = np.random.default_rng(seed)
        run.logits["norm"][:, 1:] = rng.normal(size=(60, 20, 5))
        layers = by_layer(run, **quick)
        honest = compare(run, ["best-layer"], **quick).table["spearman"][0]
        gains.append(layers[layers["lens"] == "norm"]["value"].max() - honest)
    assert np.mean(gains) > 0.08


def test_a_judge_fitted_on_everything_says_that_its_metric_is_of_the_fit():
    assert list(fit(FakeRun(60), "slope-ridge").metrics) == ["in_sample_spearman"]

"""Human lines against known answers, and judges beside a rater."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from probes import align
from probes.errors import FitError
from probes.intervals import interval
from probes.protocol import group_resamples, make_folds
from probes.raters import _one_and_others, attainable, beside_raters, human_agreement, krippendorff, rater_rows


def raters(n_items, n_raters, noise, seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n_items, 1)) + noise * rng.normal(size=(n_items, n_raters))
    scores[rng.random(scores.shape) < missing] = np.nan
    return scores


@pytest.mark.parametrize("n_raters", [2, 3, 4, 5])
def test_human_lines_reach_their_theoretical_values(n_raters):
    noise = 1.0
    human = raters(4000, n_raters, noise)
    truth = np.sqrt(n_raters / (n_raters + noise**2))  # sqrt of the reliability of the mean
    found = attainable(human, "pearson", n_splits=20)
    assert found.value == pytest.approx(truth, abs=0.015)
    # A judge that knows the quality itself reaches it.
    quality = np.random.default_rng(0).normal(size=(4000, 1))[:, 0]
    assert align.pearson(quality, human.mean(axis=1)).value == pytest.approx(truth, abs=0.015)
    others = 1 + noise**2 / (n_raters - 1)
    assert human_agreement(human, "pearson", n_draws=20).value == pytest.approx(
        1 / np.sqrt((1 + noise**2) * others), abs=0.02
    )


def test_human_lines_leave_out_items_with_one_rater_and_say_so():
    human = raters(300, 3, 0.5, missing=0.4)
    enough = int((np.isfinite(human).sum(axis=1) >= 2).sum())
    for line in (attainable, human_agreement):
        found = line(human, "spearman", 10)
        assert (found.n_used, found.n_total) == (enough, 300)
        assert 0.5 < found.value < 1
        assert found == line(human, "spearman", 10)
        assert found != line(human, "spearman", 10, seed=1)
        alone = line(human[:, :1])
        assert np.isnan(alone.value)
        assert (alone.n_used, alone.n_total) == (0, 300)


def test_attainable_of_raters_who_agree_on_nothing_is_zero():
    human = np.stack([np.arange(20.0), -np.arange(20.0)], axis=1)
    assert attainable(human, n_splits=5).value == 0.0
    assert np.isnan(attainable(np.ones((20, 3)), n_splits=5).value)


def test_human_lines_need_a_correlation():
    message = "no human line for 'mae': choose one of spearman, pearson, kendall"
    with pytest.raises(FitError, match=f"^{re.escape(message)}$"):
        attainable(np.ones((5, 2)), "mae")


@pytest.mark.parametrize("n_raters", [2, 3, 10])
def test_attainable_spearman_is_what_a_judge_that_knows_the_quality_reaches(n_raters):
    rng = np.random.default_rng(5)
    quality = rng.normal(size=4000)
    human = np.round(2 * (quality[:, None] + rng.normal(size=(4000, n_raters))))  # with ties
    reached = align.spearman(quality, human.mean(axis=1)).value
    assert attainable(human, n_splits=20).value == pytest.approx(reached, abs=0.015)


def test_raters_of_items_are_exchangeable_and_may_differ_in_number():
    human = raters(2000, 6, 1.0)
    human[:1000, 3:] = np.nan
    shuffled = np.random.default_rng(0).permuted(human, axis=1)
    assert attainable(human, n_splits=20).value == pytest.approx(attainable(shuffled, n_splits=20).value, abs=0.01)
    few, many = attainable(human[:1000], n_splits=20).value, attainable(human[1000:], n_splits=20).value
    assert few < attainable(human, n_splits=20).value < many


def test_beside_raters_is_scipys_coefficient_within_folds_on_the_same_draws():
    human = np.round(raters(60, 3, 1.0))
    human[7, 1:] = np.nan
    human[9, 1] = np.nan
    y = np.nanmean(human, axis=1)
    folds = make_folds(y, np.arange(60), 3, 2)
    judge = y + np.random.default_rng(0).normal(size=(2, 60))
    found = beside_raters([judge, np.full((2, 60), 3.0)], human, folds, n_draws=7, seed=3)
    assert found.n_used == 59
    rated = np.delete(np.arange(60), 7)
    line, of_judge = [], []
    for one, others in _one_and_others(human[rated], 7, 3):
        for repeat, test in folds.tests():
            inside = np.isin(rated, test)
            line.append(stats.spearmanr(one[inside], others[inside]).statistic)
            of_judge.append(stats.spearmanr(judge[repeat, rated[inside]], others[inside]).statistic)
    assert found.human == pytest.approx(np.mean(line))
    assert found.judges[0] == pytest.approx(np.mean(of_judge))
    assert np.isnan(found.judges[1])


def test_a_drawn_rater_is_any_one_of_the_item_and_the_others_are_the_rest():
    human = np.array([[1.0, 2, 6], [4, np.nan, 5]])
    drawn = [(one.tolist(), others) for one, others in _one_and_others(human, 200, 0)]
    assert {one[0] for one, _ in drawn} == {1.0, 2.0, 6.0}
    assert {one[1] for one, _ in drawn} == {4.0, 5.0}
    for one, others in drawn:
        rest = np.array([(9 - one[0]) / 2, 9 - one[1]])
        assert others * rest.max() == pytest.approx(rest)


def test_a_judge_that_is_one_more_rater_stands_at_the_human_line():
    human = raters(3000, 5, 1.0)
    judge = human[:, 4][None]
    y = human[:, :4].mean(axis=1)
    folds = make_folds(y, np.arange(3000), 5, 1)
    found = beside_raters([judge], human[:, :4], folds, n_draws=40)
    assert found.judges[0] == pytest.approx(found.human, abs=0.02)
    # Against all four it would come out ahead.
    assert align.spearman(judge[0], y).value > found.human + 0.015
    assert found.human == pytest.approx(human_agreement(human[:, :4], n_draws=40).value, abs=0.02)


def test_beside_raters_needs_items_with_two_raters():
    human = np.full((12, 2), np.nan)
    human[:, 0] = np.arange(12)
    folds = make_folds(human[:, 0], np.arange(12), 3, 1)
    found = beside_raters([human[:, :1].T], human, folds, n_draws=3)
    assert np.isnan([found.human, *found.judges]).all()
    assert found.n_used == 0


def test_means_of_the_same_ratings_in_another_order_are_ties():
    # Sums of these depend on their order in the last bit; all means of the others are the same.
    human = np.array([[9.0, 0.1, 0.2, 0.3], [8.0, 0.3, 0.2, 0.1], [7.0, 0.2, 0.3, 0.1], [6.0, 0.3, 0.1, 0.2]])
    assert len({row[1:].sum() for row in human}) > 1
    assert len(set(align.rounded(human[:, 1:].sum(axis=1) / 3))) == 1


def published():
    """The data of Krippendorff 2011, four observers and twelve units, ``.`` being missing."""
    rows = """
        1 2 3 3 2 1 4 1 2 . . .
        1 2 3 3 2 2 4 1 2 5 . 3
        . 3 3 3 2 3 4 2 2 5 1 .
        1 2 3 3 2 4 4 1 2 5 1 .
    """
    return np.array(
        [[np.nan if one == "." else float(one) for one in row.split()] for row in rows.split("\n") if row.strip()]
    ).T


@pytest.mark.parametrize(("metric", "alpha"), [("interval", 0.849), ("ordinal", 0.815), ("nominal", 0.743)])
def test_alpha_is_that_of_krippendorffs_own_example(metric, alpha):
    found = krippendorff(published(), metric)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert (found.n_used, found.n_total) == (11, 12)  # the last unit has one score only


@pytest.mark.parametrize("metric", ["interval", "ordinal", "nominal"])
def test_alpha_equals_a_loop_over_pairs_of_scores(metric):
    human = np.round(raters(40, 4, 1.0, missing=0.3))
    units = [row[np.isfinite(row)] for row in human if np.isfinite(row).sum() >= 2]
    every = np.concatenate(units)

    def apart(c, k):
        low, high = min(c, k), max(c, k)
        if metric == "nominal":
            return float(c != k)
        if metric == "interval":
            return (c - k) ** 2
        between = ((every >= low) & (every <= high)).sum() - ((every == c).sum() + (every == k).sum()) / 2
        return 0.0 if c == k else between**2

    def total(scores):
        return sum(apart(c, k) for c in scores for k in scores)  # of a score with itself it is 0

    observed = sum(total(unit) / (len(unit) - 1) for unit in units) / len(every)
    expected = total(every) / (len(every) * (len(every) - 1))
    assert krippendorff(human, metric).value == pytest.approx(1 - observed / expected, abs=1e-12)


def test_alpha_of_nothing_is_undefined_and_of_severe_raters_low():
    assert np.isnan(krippendorff(np.ones((5, 3))).value)
    assert np.isnan(krippendorff(raters(5, 1, 1.0)).value)
    human = raters(200, 3, 0.5)
    assert krippendorff(human + np.array([0, 2, 4])).value < 0.2 < krippendorff(human).value
    with pytest.raises(FitError, match="^no alpha for 'ratio': choose one of interval, ordinal, nominal$"):
        krippendorff(human, "ratio")


def test_every_rater_is_set_beside_the_mean_of_its_others():
    human = np.round(raters(60, 3, 1.0, missing=0.2), 1)
    human[:, 1] += 2.0  # lenient
    human[7, 1:] = np.nan  # rated by one alone
    groups = np.arange(60) // 2
    folds = make_folds(np.nanmean(np.nan_to_num(human), axis=1), groups, 3, 2)
    rows = rater_rows(human, groups, folds, 40, 0.9, 5)
    assert [row["rater"] for row in rows] == [1, 2, 3]
    drawn, code = group_resamples(groups, 40, 5)
    for k, row in enumerate(rows):
        rest = np.delete(human, k, axis=1)
        both = np.isfinite(human[:, k]) & np.isfinite(rest).any(axis=1)
        others = np.array([np.nanmean(rest[i]) if both[i] else np.nan for i in range(60)])
        assert row["n_used"] == both.sum()
        assert row["mean"] == pytest.approx(np.nanmean(human[:, k]))
        apart = human[:, k] - others
        replicates = np.array([np.average(apart[both], weights=weights[both]) for weights in drawn[:, code]])
        span = np.nanmax(human) - np.nanmin(human)
        expected = interval(replicates, len(set(groups[both])), 0.9, limit=span)
        assert (row["offset"], row["offset_lo"], row["offset_hi"]) == pytest.approx(
            (expected.value, expected.lo, expected.hi)
        )
        inside = [test[both[test]] for _, test in folds.tests()]
        value = np.mean([stats.spearmanr(human[test, k], np.round(others[test], 9)).statistic for test in inside])
        assert row["spearman"] == pytest.approx(value)
        assert row["spearman_lo"] < value < row["spearman_hi"]
    assert rows[1]["offset_lo"] > 1.5
    assert rows[0]["offset_hi"] < 0


def test_a_rater_without_scores_has_a_row_of_gaps():
    human = raters(30, 3, 1.0)
    human[:, 2] = np.nan
    folds = make_folds(human[:, 0], np.arange(30), 3, 1)
    row = rater_rows(human, np.arange(30), folds, 10)[2]
    assert row["n_used"] == 0
    assert np.isnan([row["mean"], row["offset"], row["spearman"], row["spearman_lo"]]).all()

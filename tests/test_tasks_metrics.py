"""Metrics of tasks. Figures to the last digit were computed once with the published package (bigbench 1.0.0)."""

from __future__ import annotations

import hashlib
import math
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from probes.items import Item, Items
from probes.tasks import (
    TaskError,
    TaskScore,
    aggregate,
    breakthroughness,
    linearity,
    load_task,
    load_tasks,
    normalized,
    score_choices,
    score_texts,
    stored_tasks,
)
from probes.tasks import metrics as m
from probes.tasks import text_metrics as t
from probes.tasks.names import GENERATIVE
from probes.tasks.scoring import answers
from tests.made_up_tasks import big, even, sums, write, write_bbh

if TYPE_CHECKING:
    from pathlib import Path

# yes/no; three colours with soft labels; a confident mistake; a tie of three; two that are both worth nothing, tied.
LOG_PROBS = np.array([-0.2, -1.7, -1.2, -0.9, -1.1, -3.0, -0.05, -2.0, -1.0, -1.0, -1.0, -1.0, -1.0])
SCORES = np.array([1, 0, 0.5, 0.25, 0.25, 1, 0, 0, 1, 0, 0, 0, 0])
OFFSETS = np.array([0, 2, 5, 7, 11, 13])
TARGETS = [["the cat sat on the mat"], ["a dog . it barked", "the dog barked"]]
RESPONSES = ["the cat sat on a mat", "the dog barked loud"]


def test_metrics_of_choices_are_the_published_ones() -> None:
    data = (LOG_PROBS, SCORES, OFFSETS)
    assert m.multiple_choice_grade(*data) == 0.25
    assert m.brier(*data) == pytest.approx(0.2883961840236839, abs=1e-15)
    assert m.ece(*data) == pytest.approx(0.5452920206083922, abs=1e-15)
    assert m.weighted_log_probabilities(*data) == pytest.approx(-1.06, abs=1e-15)
    assert m.weighted_probabilities(*data) == pytest.approx(0.31437091088661173, abs=1e-15)


def test_macro_f1_is_the_published_one() -> None:
    log_probs = np.array([-0.2, -1.7, -3.0, -0.05, -2.0, -1.0, -1.0, -1.0, -1.0, -2.0])
    scores = np.array([1, 0, 1, 0, 0, 1, 0, 0, 1, 0])
    labels = ["yes", "no", "no", "yes", "a", "b", "c", "d", "yes", "no"]
    assert m.macro_f1(log_probs, scores, np.array([0, 2, 4, 8, 10]), labels) == pytest.approx(0.2)
    with pytest.raises(TaskError, match="macro_f1 needs one choice with score 1 and no others; item 1 differs"):
        m.macro_f1(LOG_PROBS, SCORES, OFFSETS, ["x"] * 13)


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([-1.0, -1.0], 0),
        ([-2.0, -1.0, -1.0, -1.0], 2),
        ([-0.5, -0.5, -0.5], 0),
        ([-1.5, -1.5], 0),
        ([-3.0, -3.0], 0),
        ([0.0, 0.0, 0.0, 0.0], 1),
    ],
)
def test_ties_are_broken_as_published(values: list[float], first: int) -> None:
    assert m.chosen(np.array([-1.0, *values]), np.array([0, 1, 1 + len(values)])).tolist() == [0, 1 + first]


def test_values_of_items_make_up_the_metrics() -> None:
    data = (LOG_PROBS, SCORES, OFFSETS)
    assert m.grade_of_items(*data).tolist() == [1, 0.25, 0, 0, 0]
    sums_, counts = m.brier_of_items(*data)
    assert counts.tolist() == [2, 3, 2, 4, 2]
    assert sums_.sum() / counts.sum() == m.brier(*data)
    # By hand: with two choices the softmax is a logistic function of the difference.
    p = 1 / (1 + math.exp(-1.5))
    assert sums_[0] == pytest.approx(2 * (1 - p) ** 2)
    confidence, right = m.calibration_of_items(*data)
    assert confidence[0] == pytest.approx(p)
    assert right.tolist() == [True, False, False, True, True]


def test_a_certain_answer_is_in_the_last_bucket() -> None:
    data = (np.array([0.0, -800.0]), np.array([0.0, 1.0]), np.array([0, 2]))
    assert m.ece(*data) == 1
    assert m.brier(*data) == 1
    # A confidence at the end of a bucket belongs to the next one: .6 and .65 share it, so that their errors cancel out.
    probs = np.array([0.6, 0.4, 0.65, 0.35])
    edge = (np.log(probs), np.array([1.0, 0, 0, 1]), np.array([0, 2, 4]))
    assert m.ece(*edge) == pytest.approx(abs((1 - 0.6) + (0 - 0.65)) / 2)


def test_log_likelihood_adds_up_accepted_texts() -> None:
    log_probs = np.log([0.1, 0.2, 0.5, 0.3])
    assert m.log_likelihood(log_probs, np.array([1.0, 1, 1, 0]), np.array([0, 2, 4])) == pytest.approx(
        (math.log(0.3) + math.log(0.5)) / 2
    )
    assert m.log_likelihood_of_items(log_probs, np.zeros(4), np.array([0, 2, 4])).tolist() == [-np.inf, -np.inf]


def test_probabilities_among_choices_sum_to_one() -> None:
    normed = m.normalize(LOG_PROBS, OFFSETS)
    np.testing.assert_allclose(np.add.reduceat(np.exp(normed), OFFSETS[:-1]), 1)
    assert m.ece(normed, SCORES, OFFSETS) == pytest.approx(m.ece(LOG_PROBS, SCORES, OFFSETS))


def test_normalizing_twice_changes_no_bit_and_ties_stay_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(1, 6, 4)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        values = rng.choice([-700.0, -31.7, -2.3, -0.9, -0.1], offsets[-1]) + rng.choice([0.0, -1e-3], offsets[-1])
        once = m.normalize(values, offsets)
        assert once.tobytes() == m.normalize(once, offsets).tobytes()
        np.testing.assert_array_equal(m.normalize(values, offsets)[:, None] == once, once[:, None] == once)
        for start, stop in pairwise(offsets.tolist()):
            own, ours = values[start:stop], once[start:stop]
            np.testing.assert_array_equal(own == own.max(), ours == ours.max())
    assert m.normalize(np.array([-np.inf, -1.0]), np.array([0, 2])).tolist() == [-np.inf, 0.0]


def tied_items(n_items: int, **about: Any) -> Items:
    items = [
        Item(f"t/{k}", {"prompt": f"p{k}"}, criterion="t", choices=("a", "b", "c"), choice_scores=(1.0, 0.0, 0.0))
        for k in range(n_items)
    ]
    fields = {"metrics": ["multiple_choice_grade"], "preferred_score": "multiple_choice_grade", **about}
    return Items(items, about={"t": fields})


def test_a_tie_is_broken_by_the_normalized_values_as_published_whatever_is_passed() -> None:
    """The published code hashes values less their log-sum-exp, or as they are with absolute_normalization."""
    log_probs = np.random.default_rng(1).choice([-0.5, -1.5, -2.5], (40, 3)) - 5
    for absolute in (False, True):
        items = tied_items(40, absolute_normalization=absolute)
        expected = []
        for row in log_probs:
            hashed = row if absolute else row - (row.max() + np.log(np.exp(row - row.max()).sum()))
            best = np.flatnonzero(hashed == hashed.max())
            expected.append(float(best[int(hashlib.sha256(hashed.tobytes()).hexdigest(), 16) % len(best)] == 0))
        given = [log_probs.ravel()]
        given += [] if absolute else [m.normalize(log_probs.ravel(), np.arange(0, 121, 3))]
        for one in given:
            table = score_choices(items, one, tasks=stored_tasks(items)).set_index("metric")
            assert table.loc["multiple_choice_grade", "value"] == pytest.approx(np.mean(expected))


def test_of_errors_the_smallest_is_normalized_to_100() -> None:
    items = tied_items(10)
    metrics = ["calibration_multiple_choice_brier_score", "expected_calibration_error"]
    for right, value in ((0, 100), (1, pytest.approx(100 * (1 - 2 / 3), abs=1))):
        log_probs = np.full((10, 3), -50.0)
        log_probs[:, right] = 0.0
        table = score_choices(items, log_probs.ravel(), metrics, tasks=stored_tasks(items)).set_index("metric")
        assert table.loc[metrics[0], "normalized"] == value
        assert table.loc[metrics[1], "normalized"] == pytest.approx(100 if right == 0 else 0)
        assert table.loc[metrics, "low"].tolist() == [1, 1]
        assert table.loc[metrics, "high"].tolist() == [0, 0]
    assert normalized(0.2, 1, 0) == pytest.approx(80)


def test_choices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TaskError, match="run from 0 to 13, and there are 12 choices"):
        m.multiple_choice_grade(LOG_PROBS[:-1], SCORES, OFFSETS)
    with pytest.raises(TaskError, match="one choice at least"):
        m.multiple_choice_grade(LOG_PROBS, SCORES, np.array([0, 2, 2, 13]))
    broken = LOG_PROBS.copy()
    broken[5] = np.nan
    with pytest.raises(TaskError, match="item 2 has a choice without log-probability"):
        m.brier(broken, SCORES, OFFSETS)


def test_metrics_of_text_are_the_published_ones() -> None:
    assert t.bleu(TARGETS, RESPONSES) == pytest.approx(49.99999999999999)
    each = t.rouge_of_items(TARGETS, RESPONSES)
    np.testing.assert_allclose(each["rouge1"], [83.33333333333334, 85.71428571428571])
    np.testing.assert_allclose(each["rouge2"], [60, 80])
    np.testing.assert_allclose(each["rougeLsum"], [83.33333333333334, 85.71428571428571])
    assert t.rouge(TARGETS, RESPONSES)["rouge1"] == pytest.approx(84.52380952380952)
    assert t.exact_str_match(TARGETS, ["The cat sat on the mat", "the dog barked"]) == 0.5
    assert t.case_insensitive_str_match(TARGETS, [" The cat sat on the mat", "x"]) == 0.5
    # Position by position: 5 of 6 words; the second answer is cut to "the dog barked loud" -> "a dog . it barked".
    np.testing.assert_allclose(t.sequence_f1_of_items(TARGETS, RESPONSES), [500 / 6, 20])


def test_numeric_match_divides_by_the_target_as_published() -> None:
    targets = [["10"], ["10"], ["0"], ["-4"], ["x"], ["3"]]
    found = t.numeric_match_of_items(targets, ["11", "11.1", "0.05", "77", "1", "three"])
    assert found.tolist() == [True, False, True, True, False, False]
    with pytest.raises(TaskError, match="needs one accepted number an item; item 1 has 2"):
        t.numeric_match([["1"], ["2", "two"]], ["1", "2"])


def test_bleurt_is_refused_with_the_reason() -> None:
    with pytest.raises(TaskError, match="'bleurt' is not computed: it is a neural model"):
        t.bleurt(TARGETS, RESPONSES)
    assert set(GENERATIVE) < set(t.TEXT_METRICS)


@pytest.mark.parametrize(("module", "metric"), [("sacrebleu", t.bleu), ("rouge_score.rouge_scorer", t.rouge)])
def test_a_package_that_is_not_installed_is_named(module: str, metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TaskError, match=r"install probes\[tasks\]"):
        metric(TARGETS, RESPONSES)


def test_a_metric_of_a_task_that_cannot_be_computed_is_a_note_and_others_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    about = {"t/a": {"metrics": ["bleu", "exact_str_match"], "preferred_score": "exact_str_match"}}
    items = Items([Item("t/a/0", {"prompt": "p"}, criterion="t/a", choices=("x",), choice_scores=(1.0,))], about=about)
    table = score_texts(items, ["x"], tasks=stored_tasks(items)).set_index("metric")
    assert table.loc["exact_str_match", "value"] == 1
    assert np.isnan(table.loc["bleu", "value"])
    assert "install probes[tasks]" in table.loc["bleu", "note"]
    with pytest.raises(TaskError, match=r"install probes\[tasks\]"):
        score_texts(items, ["x"], ["bleu"])


def test_texts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TaskError, match="1 answers for 2 items"):
        t.exact_str_match(TARGETS, ["x"])
    with pytest.raises(TaskError, match="a list of accepted texts"):
        t.exact_str_match(["x"], ["x"])


def test_subtasks_are_averaged_as_published() -> None:
    first = TaskScore("t/a", {"exact_str_match": 0.4, "bleu": 10.0}, "exact_str_match", 0.0, 1.0)
    second = TaskScore("t/b", {"multiple_choice_grade": 0.7, "bleu": 30.0}, "multiple_choice_grade", 0.25, 1.0)
    found = aggregate("t", [first, second])
    assert found.values == pytest.approx(
        {"exact_str_match": 0.4, "multiple_choice_grade": 0.7, "bleu": 20, "normalized_aggregate_score": 50}
    )
    assert (found.preferred_score, found.low_score, found.high_score) == ("normalized_aggregate_score", 0, 100)
    third = TaskScore("t/c", {"multiple_choice_grade": 0.4}, "multiple_choice_grade", 0.5, 1.0)
    found = aggregate("t", [third, second])
    assert found.values["normalized_aggregate_score"] == pytest.approx(20)
    assert (found.preferred_score, found.low_score, found.high_score) == ("multiple_choice_grade", 0.375, 1)
    assert aggregate("t/a", [first]).preferred_score == "exact_str_match"
    with pytest.raises(TaskError, match="preferred score 'bleu' was not computed"):
        aggregate("t", [TaskScore("t/a", {}, "bleu", 0, 100)])
    assert normalized(0.25, 0.5, 1.0) == -50
    with pytest.raises(TaskError, match="is empty"):
        normalized(1, 1, 1)


def test_linearity_and_breakthroughness_by_hand() -> None:
    line = [0.0, 1.0, 2.0, 3.0]
    assert linearity(line) == pytest.approx(3)
    assert breakthroughness(line) == pytest.approx(3)
    assert linearity(line[::-1]) == pytest.approx(-3)
    step = [0.0, 0.1, 0.2, 1.0]
    assert linearity(step) == pytest.approx(1 / math.sqrt((0.01 + 0.01 + 0.64) / 3))
    assert breakthroughness(step) == pytest.approx(1 / 0.1)
    assert breakthroughness(step) > breakthroughness(line)
    assert breakthroughness([0, 0, 0, 1]) == math.inf
    assert breakthroughness([1, 0, 0, 0]) == -math.inf
    assert (linearity([1, 1, 1]), breakthroughness([1, 1, 1])) == (0, 0)
    with pytest.raises(TaskError, match="no steps"):
        linearity([1.0])
    with pytest.raises(TaskError, match="score 1 is not finite"):
        breakthroughness([1.0, math.nan])


def test_a_table_of_generated_texts(tmp_path: Path) -> None:
    write_bbh(tmp_path, "snarks", [even(8), even(9), even(10)])
    write_bbh(tmp_path, "navigate", [even(8), even(9)])
    tasks = load_tasks("bbh", tmp_path)
    items = Items([item for task in tasks for item in task.items()])
    texts = ["4. So the answer is Yes.", "So the answer is Yes.", "Yes", None, "the answer is Yes. I am sure"]
    table = score_texts(items, texts, tasks=tasks).set_index("task")
    assert table.loc["bbh/navigate", "value"] == 0.5
    assert table.loc["bbh/snarks", "value"] == 1
    assert table.loc["bbh/snarks", ["n_items", "n_missing"]].tolist() == [2, 1]
    assert table.loc["bbh", "value"] == 0.75
    assert table.loc["bbh", "note"] == "mean over 2 of 23 tasks (2 of 27 files)"
    assert table.loc["bbh", ["n_items", "n_missing", "n_tasks"]].tolist() == [4, 1, 2]
    by_id = dict(zip(items.ids, texts, strict=True))
    assert score_texts(items, by_id).set_index("task").loc["bbh", "value"] == 0.75
    assert answers(items, ["Yes.\nNo"] * 5)["bbh/snarks/2"] == "Yes"


def test_a_table_of_big_bench_texts(tmp_path: Path) -> None:
    head = {key: value for key, value in big().items() if key not in ("examples", "metrics", "preferred_score")}
    write(tmp_path, "family", head)
    write(tmp_path, "family/a", sums(metrics=["exact_str_match", "bleurt"]))
    write(tmp_path, "family/b", sums(output_regex="[0-9]+"))
    write(tmp_path, "other", sums(metrics=["rouge"], preferred_score="rouge1"))
    tasks = [load_task(f"bigbench/{name}", tmp_path) for name in ("family", "other")]
    items = Items([item for task in tasks for item in task.items()])
    texts = ["2. x", "four!", "7", "8\n9", "so 2", "4", "six", "8 9", "2", "four", "six", "nine"]
    table = score_texts(items, texts, tasks=tasks).set_index(["task", "metric"])
    value = table["value"]
    assert value["bigbench/family/a", "exact_str_match"] == 0.75
    assert value["bigbench/family/b", "exact_str_match"] == 0.75
    assert table.loc[("bigbench/family/a", "bleurt"), "note"] == "not computed: a neural model"
    assert value["bigbench/family", "exact_str_match"] == 0.75
    assert value["bigbench/family", "normalized_aggregate_score"] == 75
    assert value["bigbench/other", "rouge1"] == 75
    assert value["bigbench", "normalized_aggregate_score"] == 75
    assert table.loc[("bigbench", "normalized_aggregate_score"), "n_tasks"] == 2
    with pytest.raises(TaskError, match="'bleurt' is not computed"):
        score_texts(items, texts, ["bleurt"])
    with pytest.raises(TaskError, match="no metric 'accuracy'"):
        score_texts(items, texts, ["accuracy"])
    with pytest.raises(TaskError, match="11 texts for 12 items"):
        score_texts(items, texts[1:])
    with pytest.raises(TaskError, match="a text for 'x', which is none"):
        score_texts(items, {"x": "y"})


def test_a_table_of_choices(tmp_path: Path) -> None:
    write(tmp_path, "choosing", big())
    write(tmp_path, "free", sums(metrics=["log_likelihood"], preferred_score="log_likelihood"))
    tasks = load_tasks("bigbench", tmp_path)
    items = Items([item for task in tasks for item in task.items()])
    counts = [len(item.choices) for item in items]
    log_probs = np.log(np.concatenate([np.arange(n, 0, -1) / 10 for n in counts]))
    table = score_choices(items, log_probs, tasks=tasks).set_index(["task", "metric"])
    grade = table.loc[("bigbench/choosing", "multiple_choice_grade")]
    assert grade["value"] == pytest.approx((2 + 0.5) / 6)  # always the first: "one", and "two" of the last
    assert grade["low"] == pytest.approx(0.34027777777777773)
    assert grade["normalized"] == pytest.approx(100 * (2.5 / 6 - grade["low"]) / (1 - grade["low"]))
    assert grade["preferred"]
    expected = (3 * math.log(0.3) + math.log(0.1)) / 4
    assert table.loc[("bigbench/free", "log_likelihood"), "value"] == pytest.approx(expected)
    log_probs[0] = np.nan
    again = score_choices(items, log_probs, ["multiple_choice_grade"]).set_index("task")
    assert again.loc["bigbench/choosing", ["n_items", "n_missing"]].tolist() == [5, 1]
    assert again.loc["bigbench/choosing", "low"] == pytest.approx(grade["low"])
    with pytest.raises(TaskError, match="give one a choice"):
        score_choices(items, log_probs[1:])
    with pytest.raises(TaskError, match="no metric 'bleu' of choices"):
        score_choices(items, log_probs, ["bleu"])


def test_accuracy_on_choices_is_averaged_over_tasks(tmp_path: Path) -> None:
    for name in ("logical_deduction_three_objects", "logical_deduction_five_objects", "snarks"):
        write_bbh(tmp_path, name, [even(8), even(9)])
    items = Items([item for task in load_tasks("bbh", tmp_path) for item in task.items()])
    log_probs = np.log([0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9])
    table = score_choices(items, log_probs, ["multiple_choice_grade"]).set_index("task")
    assert table.loc["bbh", "value"] == pytest.approx((0.75 + 1) / 2)  # .5 and 1 of one task, 1 of the other
    assert table.loc["bbh/snarks", ["low", "normalized"]].tolist() == [0.5, 100]


def test_items_without_their_task_are_scored_by_their_choices() -> None:
    items = Items(
        [
            Item("a", {}, criterion="bigbench/x", choices=("one", "two"), choice_scores=(0, 1)),
            Item("b", {}, criterion="bigbench/x", choices=("one", "two"), choice_scores=(1, 0)),
        ]
    )
    assert score_texts(items, ["two. And", "two"])["value"].tolist() == [0.5]
    with pytest.raises(TaskError, match="give one an item"):
        score_texts(items, "two")

"""BIG-bench tasks. Prompts and draws were computed once with the published package (1.0.0) on the made-up tasks."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from probes.tasks import Task, TaskError, items_of, load_task, load_tasks, score_choices
from tests.made_up_tasks import CHOOSING, PUBLISHED, SUMS, big, sums, write

if TYPE_CHECKING:
    from pathlib import Path


def load(folder: Path, content: dict[str, Any], name: str = "made_up") -> Task:
    write(folder, name, content)
    return load_task(f"bigbench/{name}", folder)


def listed(question: str) -> str:
    choices = ["two", "one"] if question == "free" else ["one", "three", "two"]
    return f"\nQ: {question}" + "".join(f"\n  choice: {choice}" for choice in choices) + "\nA: "


def test_choices_are_listed_in_the_published_order_and_scored_in_that_of_the_file(tmp_path: Path) -> None:
    task = load(tmp_path, big())
    items = task.items()
    assert items.ids == tuple(f"bigbench/made_up/{i}" for i in range(6))
    assert items[0].fields["prompt"] == "\nQ: question 0\n  choice: one\n  choice: three\n  choice: two\nA: "
    assert items[5].fields["prompt"] == "\nQ: free\n  choice: two\n  choice: one\nA: "
    assert items[0].fields["input"] == "question 0"
    assert items[0].fields["task"] == "Made up."
    assert items[0].choices == ("one", "two", "three")
    assert items[0].choice_scores == (0.0, 1.0, 0.0)
    assert items[5].choice_scores == (0.5, 0.25)  # soft labels
    assert set(items.column("criterion")) == {"bigbench/made_up"}
    assert task.low_score == pytest.approx(0.34027777777777773, abs=1e-15)
    assert task.high_score == 1
    assert task.metrics == (
        "multiple_choice_grade",
        "calibration_multiple_choice_brier_score",
        "expected_calibration_error",
    )


def test_worked_examples_are_drawn_as_published(tmp_path: Path) -> None:
    items = load(tmp_path, big(task_prefix="Choose.\n")).items(shots=2)
    published = {  # question asked: worked examples with their answers
        "question 0": [("question 4", "two"), ("question 2", "two")],
        "question 1": [("question 2", "two"), ("question 0", "two")],
        "free": [("question 0", "two"), ("question 1", "one")],
        "question 2": [("question 0", "two"), ("question 3", "one")],
        "question 4": [("free", "b"), ("question 2", "two")],
        "question 3": [("question 1", "one"), ("question 2", "two")],
    }
    for item in items:
        worked = "".join(listed(question) + answer + "\n" for question, answer in published[item.fields["input"]])
        assert item.fields["prompt"] == "Choose.\n" + worked + listed(item.fields["input"])


def test_one_of_several_targets_is_drawn_for_each_worked_example(tmp_path: Path) -> None:
    style = {
        "example_input_prefix": "I: ",
        "example_output_prefix": " O: ",
        "few_shot_example_separator": "; ",
    }
    task = load(tmp_path, sums(**style))
    assert [item.fields["prompt"] for item in task.items(shots=3)] == [
        "I: 2+2 O: 4; I: 3+3 O: six; I: 4+4 O: 8; I: 1+1 O: ",
        "I: 1+1 O: 2; I: 3+3 O: 6; I: 4+4 O: 8; I: 2+2 O: ",
        "I: 1+1 O: 2; I: 2+2 O: four; I: 4+4 O: 8; I: 3+3 O: ",
        "I: 1+1 O: 2; I: 2+2 O: 4; I: 3+3 O: 6; I: 4+4 O: ",
    ]
    assert [item.fields["prompt"] for item in task.items(shots=2, seed=7, limit=2)] == [
        "I: 4+4 O: 8; I: 3+3 O: 6; I: 2+2 O: ",
        "I: 1+1 O: two; I: 2+2 O: four; I: 3+3 O: ",
    ]


def test_a_limit_draws_the_published_questions(tmp_path: Path) -> None:
    task = load(tmp_path, big())
    assert [item.fields["input"] for item in task.items(limit=3)] == ["question 0", "question 1", "free"]
    found = task.items(shots=1, limit=3)
    assert [item.fields["prompt"] for item in found] == [
        listed("question 4") + "two\n" + listed("question 0"),
        listed("question 2") + "two\n" + listed("question 1"),
        listed("question 0") + "two\n" + listed("free"),
    ]
    assert task.items(limit=99).ids == task.items().ids


def test_an_example_is_not_shown_beside_its_equal(tmp_path: Path) -> None:
    # 1 and 1.0 are written differently, so both stay, and are equal once they are read.
    twins = [
        {"input": "same", "target_scores": {"x": 1, "y": 0}},
        {"input": "same", "target_scores": {"x": 1.0, "y": 0}},
        {"input": "other", "target_scores": {"x": 0, "y": 1}},
    ]
    task = load(tmp_path, big(twins))
    assert len(task.examples) == 3
    for item in task.items(shots=1):
        assert item.fields["prompt"].count("same") == 1
    with pytest.raises(TaskError, match="2 shots for example 0, and only 1 others differ"):
        task.items(shots=2)


def test_free_text_accepts_all_targets(tmp_path: Path) -> None:
    task = load(tmp_path, sums())
    item = task.items()[0]
    assert item.is_free_text
    assert item.choices == ("2", "two")
    assert not task.is_multiple_choice
    assert task.output_regex == r"[^\.\?\!\;\n]+"
    assert task.stop_string is None
    both = load(tmp_path, big(metrics=["multiple_choice_grade"]), "both")
    assert both.items(free_text=True)[5].choices == ("a", "b", "c")
    assert both.items(free_text=True)[0].choices == ("two",)


def test_a_stop_string_takes_the_place_of_the_default_expression(tmp_path: Path) -> None:
    task = load(tmp_path, sums(stop_string="\n"))
    assert (task.stop_string, task.output_regex) == ("\n", None)
    task = load(tmp_path, sums(output_regex="[0-9]+"))
    assert (task.stop_string, task.output_regex) == (None, "[0-9]+")


def test_choices_may_stay_out_of_the_prompt(tmp_path: Path) -> None:
    task = load(tmp_path, big(append_choices_to_input=False, choice_prefix=" * "))
    assert task.items()[0].fields["prompt"] == "\nQ: question 0\nA: "
    task = load(tmp_path, big(choice_prefix=" * "))
    assert task.items()[0].fields["prompt"] == "\nQ: question 0 * one * three * two\nA: "


def test_the_text_false_lists_choices_as_the_published_code_does(tmp_path: Path) -> None:
    task = load(tmp_path, big(append_choices_to_input="false"))
    assert "choice: three" in task.items()[0].fields["prompt"]
    assert any("takes every text as true" in note for note in task.notes)


def test_repeated_examples_are_counted_and_left_out(tmp_path: Path) -> None:
    task = load(tmp_path, big([*CHOOSING, CHOOSING[0], CHOOSING[2]]))
    assert len(task.examples) == 6
    assert "2 repeated examples" in task.notes[0]


def test_what_cannot_be_asked_is_counted_and_left_out(tmp_path: Path) -> None:
    task = load(tmp_path, big([*CHOOSING, {"input": "empty", "target_scores": {"": 1, "x": 0}}]))
    assert len(task.examples) == 7
    assert len(task.items()) == 6
    assert "1 examples have an empty choice" in task.notes[0]


def test_subtasks_are_the_folders_below(tmp_path: Path) -> None:
    head = {key: value for key, value in big().items() if key not in ("examples", "metrics", "preferred_score")}
    write(tmp_path, "family", head)
    write(tmp_path, "family/first", big())
    write(tmp_path, "family/second", sums())
    task = load_task("bigbench/family", tmp_path)
    assert [leaf.name for leaf in task.leaves] == ["bigbench/family/first", "bigbench/family/second"]
    assert (task.preferred_score, task.low_score, task.high_score) == ("normalized_aggregate_score", 0, 100)
    items = task.items()
    assert len(items) == 10
    assert items.column("criterion") == ["bigbench/family/first"] * 6 + ["bigbench/family/second"] * 4
    assert len(task.items(limit=5)) == 4  # two of each, as published
    with pytest.raises(TaskError, match="a limit of 1 questions is less than its 2 subtasks"):
        task.items(limit=1)
    alone = load_task("bigbench/family/second", tmp_path)
    assert alone.items().ids == items.ids[6:]
    assert load_task(tmp_path / "bigbench/family/second").name == "bigbench/family/second"
    write(tmp_path, "family/second", big())
    task = load_task("bigbench/family", tmp_path)
    assert (task.preferred_score, task.high_score) == ("multiple_choice_grade", 1)
    assert task.low_score == pytest.approx(0.34027777777777773)


def test_subtasks_may_be_written_inside_the_file(tmp_path: Path) -> None:
    head = {key: value for key, value in big().items() if key not in ("examples", "metrics", "preferred_score")}
    write(tmp_path, "inline", head | {"subtasks": [big(name="the first"), sums(name="second")]})
    task = load_task("bigbench/inline", tmp_path)
    assert [leaf.name for leaf in task.leaves] == ["bigbench/inline/the_first", "bigbench/inline/second"]
    assert load_task("bigbench/inline/second", tmp_path).items()[0].choices == ("2", "two")
    write(tmp_path, "twice", head | {"subtasks": [big(), big()]})
    with pytest.raises(TaskError, match="has 'bigbench/twice/made_up' twice"):
        load_task("bigbench/twice", tmp_path)


def test_canary_strings_stay_with_the_data(tmp_path: Path) -> None:
    task = load(tmp_path, big())
    assert "kept with the data" not in repr(task) + repr(vars(task))
    assert not any("kept with the data" in text for item in task.items() for text in item.fields.values())


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no canary": (big(canary=None), "'canary' is missing"),
    "no name": (big(name=None), "'name' is missing"),
    "no keywords": (big(keywords=None), "'keywords' is missing"),
    "keyword no text": (big(keywords=["a", 3]), r"'keywords\[1\]' is a number; it must be a text"),
    "no metrics": (big() | {"metrics": None}, "'metrics' is null"),
    "unknown metric": (big(metrics=["grade"]), r"'metrics\[0\]' is 'grade', which is no metric of BIG-bench"),
    "no preferred score": (big(preferred_score=None), "'preferred_score' is missing"),
    "rouge preferred": (sums(preferred_score="rouge"), "'preferred_score' is 'rouge'; it must be one of"),
    "no examples": (big([]), "'examples' is empty"),
    "examples no list": (big() | {"examples": {}}, "'examples' is an object; it must be a list"),
    "example no object": (big([*CHOOSING, 3]), r"'examples\[6\]' is a number"),  # type: ignore[list-item]
    "no input": (big([{"target_scores": {"a": 1, "b": 0}}]), r"'examples\[0\].input' is missing"),
    "input no text": (big([{"input": 1, "target_scores": {"a": 1}}]), r"'examples\[0\].input' is a number"),
    "no choices": (big([*CHOOSING, {"input": "x", "target": "a"}]), r"'examples\[6\].target_scores' is missing"),
    "no target": (sums([{"input": "x", "target_scores": {"a": 1, "b": 0}}]), r"\[0\].target' is missing"),
    "neither": (sums([{"input": "x"}]), r"'examples\[0\].target' is missing; an example has it or"),
    "empty list": (sums([{"input": "x", "target": []}]), r"'examples\[0\].target' is an empty list"),
    "target no text": (sums([{"input": "x", "target": [3]}]), r"'examples\[0\].target' holds a number"),
    "score no number": (big([{"input": "x", "target_scores": {"a": "1"}}]), r"target_scores\['a'\]' is '1'"),
    "nothing right": (big([{"input": "x", "target_scores": {"a": 0, "b": 0}}]), "gives every choice the score 0"),
    "all right": (big([{"input": "x", "target_scores": {"a": 1, "b": 1}}]), "gives every choice the score 1"),
    "scores too high": (big([{"input": "x", "target_scores": {"a": 3, "b": 1}}]), "'preferred_score' ranges from 2 to"),
    "flag": (big(append_choices_to_input="maybe"), "'append_choices_to_input' is a text; it must be true or false"),
    "prefix": (big(example_input_prefix=3), "'example_input_prefix' is a number; it must be a text"),
    "expression": (sums(output_regex="["), "'output_regex' is no regular expression"),
    "groups": (sums(output_regex="(a)(b)"), "'output_regex' has 2 groups"),
    "both": (big(subtasks=[big()]), "has both 'examples' and 'subtasks'"),
    "subtask": (
        {key: value for key, value in big().items() if key != "examples"}
        | {"subtasks": [big(name="a"), big(name="b", metrics=None)]},
        r"'subtasks\[1\].metrics' is missing",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_malformed_task_names_file_and_field(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    path = write(tmp_path, "wrong", content)
    with pytest.raises(TaskError, match=message) as raised:
        load_task("bigbench/wrong", tmp_path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_json_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "wrong", big())
    path.write_text('{"name": "x",\n "examples": [}', encoding="utf-8")
    with pytest.raises(TaskError, match=re.escape(f"{path}, line 2: is not JSON")):
        load_task(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(TaskError, match="holds a list; a task is a JSON object"):
        load_task(path)


def test_a_range_depends_on_the_preferred_metric(tmp_path: Path) -> None:
    task = load(tmp_path, sums(metrics=["bleu", "rouge"], preferred_score="rougeLsum"))
    assert (task.low_score, task.high_score) == (0, 100)
    task = load(tmp_path, sums(metrics=["log_likelihood"], preferred_score="log_likelihood"))
    assert (task.low_score, task.high_score) == (-10, 0)


def test_what_a_task_does_not_allow_is_refused(tmp_path: Path) -> None:
    task = load(tmp_path, sums())
    with pytest.raises(TaskError, match="publishes no chains of thought"):
        task.items(chain_of_thought=True)
    with pytest.raises(TaskError, match="4 shots need 5 different examples, and it has 4"):
        task.items(shots=4)
    with pytest.raises(TaskError, match="-1 shots"):
        task.items(shots=-1)
    with pytest.raises(TaskError, match="a limit of 0"):
        task.items(limit=0)


def test_names_paths_checkouts_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "first", big())
    write(tmp_path, "second", sums())
    for name in ("first", "second"):
        assert load_task(tmp_path / "bigbench" / name).name == f"bigbench/{name}"
        assert load_task(str(tmp_path / "bigbench" / name / "task.json")).name == f"bigbench/{name}"
    assert load_task("bigbench/first", tmp_path / "bigbench").name == "bigbench/first"  # the suite's own folder
    checkout = tmp_path / "BIG-bench" / "bigbench" / "benchmark_tasks" / "third"
    checkout.mkdir(parents=True)
    (checkout / "task.json").write_text(json.dumps(sums()), encoding="utf-8")
    assert load_task("bigbench/third", tmp_path).name == "bigbench/third"
    assert load_task("bigbench/third", tmp_path / "BIG-bench").name == "bigbench/third"
    assert [task.name for task in load_tasks("bigbench", tmp_path)] == ["bigbench/first", "bigbench/second"]
    assert [task.name for task in load_tasks("bigbench/s*", tmp_path)] == ["bigbench/second"]
    both = load_tasks(["bigbench/second", "bigbench/*"], tmp_path)
    assert [task.name for task in both] == ["bigbench/second", "bigbench/first"]
    items = items_of(both, limit=2)
    assert items.column("criterion") == ["bigbench/second"] * 2 + ["bigbench/first"] * 2
    monkeypatch.setenv("PROBES_TASKS", str(tmp_path))
    assert load_task("bigbench/first").path == tmp_path / "bigbench/first/task.json"


def test_a_missing_task_says_where_it_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path, "known_unknowns", big())
    with pytest.raises(TaskError, match="near names there: bigbench/known_unknowns") as raised:
        load_task("bigbench/known_unknown", tmp_path)
    assert str(tmp_path / "bigbench") in str(raised.value)
    assert "github.com/google/BIG-bench" in str(raised.value)
    assert "PROBES_TASKS" in str(raised.value)
    with pytest.raises(TaskError, match="no task 'bigbench/x"):
        load_tasks("bigbench/x*", tmp_path)
    with pytest.raises(TaskError, match="has no '..'"):
        load_task("bigbench/../x", tmp_path)
    with pytest.raises(TaskError, match="neither a file nor a name"):
        load_task("known_unknowns", tmp_path)
    with pytest.raises(TaskError, match="holds no task.json"):
        load_task(tmp_path)


def test_programmatic_tasks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="bigbench/sudoku is a programmatic task"):
        load_task("bigbench/sudoku", tmp_path)
    code = tmp_path / "bigbench" / "own_code"
    code.mkdir(parents=True)
    (code / "task.py").write_text("", encoding="utf-8")
    for name in ("bigbench/own_code", code):
        with pytest.raises(TaskError, match="bigbench/own_code is a programmatic task|own_code is a programmatic"):
            load_task(name, tmp_path)


def test_ids_number_the_examples_of_the_file(tmp_path: Path) -> None:
    task = load(tmp_path, sums([SUMS[0], SUMS[0], SUMS[1]]))
    assert task.items().ids == ("bigbench/made_up/0", "bigbench/made_up/2")


@pytest.mark.skipif(not (PUBLISHED / "bigbench").is_dir(), reason="the published tasks are not beside the project")
def test_published_tasks_load() -> None:
    tasks = load_tasks("bigbench", PUBLISHED)
    assert len(tasks) >= 19
    for task in tasks:
        items = task.items()
        assert len(items) == len(task.examples)
        assert all(item.fields["input"] in item.fields["prompt"] for item in items)
        assert task.low_score < task.high_score
    unknowns = load_task("bigbench/known_unknowns", PUBLISHED)
    assert (len(unknowns.examples), unknowns.is_multiple_choice, unknowns.low_score) == (46, True, 0.5)


def test_one_choice_is_always_right_as_published_and_said(tmp_path: Path) -> None:
    task = load(tmp_path, big([*CHOOSING[:2], {"input": "alone", "target_scores": {"x": 1}}]))
    assert "1 examples have one choice, which is always right, as published" in task.notes
    table = score_choices(task.items(), np.log([0.2, 0.5, 0.3, 0.2, 0.5, 0.3, 0.1]), tasks=[task])
    assert (table["note"] == "1 of 3 items have one choice, which is always right").all()

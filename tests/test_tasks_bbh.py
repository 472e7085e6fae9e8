from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from probes.tasks import TaskError, answer_of, bbh_average, extract_answer, load_task, load_tasks, postprocess
from probes.tasks.bbh import options_of
from probes.tasks.names import BBH_FILES, BBH_TASKS, PROGRAMMATIC
from tests.made_up_tasks import COT_PROMPT, PUBLISHED, even, write_bbh

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = "Is {} even?\nOptions:\n- Yes\n- No"


def test_an_answer_only_prompt_shows_bare_answers(tmp_path: Path) -> None:
    write_bbh(tmp_path, "evenness", [even(8), even(9)])
    task = load_task("bbh/evenness", tmp_path)
    items = task.items()
    assert items[1].fields["prompt"] == (
        "Say whether a number is even.\n\n"
        f"Q: {QUESTION.format(4)}\nA: Yes\n\n"
        f"Q: {QUESTION.format(5)}\nA: No\n\n"
        f"Q: {QUESTION.format(6)}\nA: Yes\n\n"
        f"Q: {QUESTION.format(9)}\nA:"
    )
    assert items.ids == ("bbh/evenness/0", "bbh/evenness/1")
    assert items[1].fields["input"] == QUESTION.format(9)
    assert items[1].fields["task"] == "Say whether a number is even."
    assert items[1].choices == ("Yes", "No")
    assert items[1].choice_scores == (0.0, 1.0)
    assert (task.metrics, task.preferred_score) == (("exact_match",), "exact_match")


def test_a_chain_of_thought_prompt_is_as_published(tmp_path: Path) -> None:
    write_bbh(tmp_path, "evenness", [even(8)])
    task = load_task("bbh/evenness", tmp_path)
    published = COT_PROMPT.partition("-----\n")[2].strip()
    prompt = task.items(chain_of_thought=True)[0].fields["prompt"]
    assert prompt == f"{published}\n\nQ: {QUESTION.format(8)}\nA: Let's think step by step."
    assert task.items(shots=1)[0].fields["prompt"].count("A: ") == 1
    assert task.items(shots=0)[0].fields["prompt"] == f"Say whether a number is even.\n\nQ: {QUESTION.format(8)}\nA:"
    with pytest.raises(TaskError, match="4 shots were asked for, and 3 worked examples are published"):
        task.items(shots=4)


def test_canary_strings_stay_with_the_data(tmp_path: Path) -> None:
    write_bbh(tmp_path, "evenness", [even(8)])
    task = load_task("bbh/evenness", tmp_path)
    texts = [text for item in task.items(chain_of_thought=True) for text in item.fields.values()]
    assert not any("warns" in text or "kept with" in text for text in [*texts, repr(vars(task))])


def test_without_the_published_prompt_there_are_no_worked_examples(tmp_path: Path) -> None:
    path = write_bbh(tmp_path, "evenness", [even(8)], prompt=None)
    task = load_task(path)
    assert task.name == "bbh/evenness"
    assert task.items(shots=0)[0].fields["prompt"] == f"Q: {QUESTION.format(8)}\nA:"
    with pytest.raises(TaskError, match="evenness.txt; put the published cot-prompts folder there, or ask for 0 shots"):
        task.items()


def test_letters_are_those_of_each_question(tmp_path: Path) -> None:
    rows = [
        ("Which?\nOptions:\n(A) one\n(B) two", "(B)"),
        ("Which?\nOptions:\n(A) one\n(B) two\n(C) (D) three", "(A)"),
    ]
    write_bbh(tmp_path, "letters", rows)
    items = load_task("bbh/letters", tmp_path).items()
    assert [item.choices for item in items] == [("(A)", "(B)"), ("(A)", "(B)", "(C)")]
    assert [item.choice_scores for item in items] == [(0, 1), (1, 0, 0)]


def test_options_are_those_behind_the_last_heading() -> None:
    assert options_of("Options:\n(A) x\n\nOptions:\n- valid \n- invalid") == ("valid", "invalid")
    assert options_of("What are my Options: a or b?") == ()
    assert options_of("A list\n- one\n- two") == ()


@pytest.mark.parametrize(
    ("targets", "choices"),
    [
        (["True", "False", "True", "False"], ("False", "True")),
        (["yes", "no", "no", "yes"], ("no", "yes")),
        (["3", "4", "3", "4"], None),  # numbers are no closed set
        (["-3", "1,200", "-3", "1,200"], None),
        (["] ]", ")", "] ]", "}"], None),  # a target that occurs once
    ],
)
def test_a_small_set_of_targets_is_what_can_be_chosen(
    targets: list[str], choices: tuple[str, ...] | None, tmp_path: Path
) -> None:
    write_bbh(tmp_path, "closed", [(f"question {i}", target) for i, target in enumerate(targets)])
    task = load_task("bbh/closed", tmp_path)
    for item, target in zip(task.items(), targets, strict=True):
        assert item.choices == (choices or (target,))
        assert item.is_free_text is (choices is None)
    assert task.items(free_text=True)[0].choices == (targets[0],)


def test_targets_off_format_are_kept_and_counted(tmp_path: Path) -> None:
    rows = [("Which?\nOptions:\n(A) one\n(B) two", target) for target in ("(A)", "two", "(B)")]
    write_bbh(tmp_path, "off", rows)
    task = load_task("bbh/off", tmp_path)
    items = task.items()
    assert len(items) == 3
    assert items[1].choice_scores == (0, 0)
    assert not items[1].is_free_text
    assert "1 of 3 targets are none of the options of their question ('two')" in task.notes[0]


def test_questions_without_options_among_others_take_theirs(tmp_path: Path) -> None:
    write_bbh(tmp_path, "some", [even(8), ("Is 3 even?", "No")])
    task = load_task("bbh/some", tmp_path)
    assert task.items()[1].choices == ("No", "Yes")
    assert "1 questions list no options" in task.notes[0]


def test_a_malformed_file_names_the_field(tmp_path: Path) -> None:
    path = write_bbh(tmp_path, "wrong", [even(8)])
    for content, message in [
        ({"canary": ""}, "'examples' is missing"),
        ({"examples": []}, "'examples' is empty"),
        ({"examples": [{"input": "x"}]}, r"'examples\[0\].target' is missing"),
        ({"examples": [{"input": "x", "target": " "}]}, r"'examples\[0\].target' is empty"),
        ({"examples": [{"input": 3, "target": "x"}]}, r"'examples\[0\].input' is a number"),
        ({"examples": ["x"]}, r"'examples\[0\]' is a text"),
    ]:
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(TaskError, match=message) as raised:
            load_task("bbh/wrong", tmp_path)
        assert str(path) in str(raised.value)


def test_a_prompt_that_is_not_as_published_is_refused(tmp_path: Path) -> None:
    for prompt, message in [
        ("-----\nnothing", "has no line that starts with 'Q: '"),
        ("-----\nd\n\nQ: x\nA: yes", "worked example 1 lacks 'the answer is'"),
        ("-----\nd\n\nQ: x", "worked example 1 lacks a line that starts with 'A: '"),
    ]:
        write_bbh(tmp_path, "evenness", [even(8)], prompt)
        with pytest.raises(TaskError, match=message):
            load_task("bbh/evenness", tmp_path)


def test_files_are_found_in_a_checkout_and_by_pattern(tmp_path: Path) -> None:
    for name in ("snarks", "navigate", "logical_deduction_three_objects"):
        write_bbh(tmp_path, name, [even(8), even(9)])
    assert load_task("bbh/snarks", tmp_path / "bbh" / "bbh").items()[0].fields["prompt"].startswith("Say")
    assert load_task("bbh/snarks", tmp_path / "bbh").name == "bbh/snarks"
    names = ["bbh/logical_deduction_three_objects", "bbh/navigate", "bbh/snarks"]
    assert [task.name for task in load_tasks("bbh", tmp_path)] == names
    assert [task.name for task in load_tasks("bbh/[ns]*", tmp_path)] == names[1:]
    with pytest.raises(TaskError, match=r"near names there: bbh/navigate; .*github.com/suzgunmirac/BIG-Bench-Hard"):
        load_task("bbh/navigat", tmp_path)
    with pytest.raises(TaskError, match="no task 'bbh/word_sorting' in [^;]*; get the data from"):
        load_task("bbh/word_sorting", tmp_path)


def test_the_suite_is_27_files_of_23_tasks() -> None:
    assert (len(BBH_TASKS), len(BBH_FILES), len(set(BBH_FILES))) == (23, 27, 27)
    assert "known_unknowns" not in PROGRAMMATIC


def test_the_mean_is_over_tasks_and_not_over_files() -> None:
    values = dict.fromkeys(BBH_FILES, 0.0) | {"logical_deduction_three_objects": 0.9, "snarks": 1.0}
    found = bbh_average(values)
    assert found.value == pytest.approx((0.9 / 3 + 1) / 23)
    assert (found.n_tasks, found.n_files) == (23, 27)
    assert bbh_average({"bbh/snarks": 0.5}) == (0.5, 1, 1)
    with pytest.raises(TaskError, match="'evenness' is no file of BIG-Bench Hard"):
        bbh_average({"bbh/evenness": 1.0})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 4 is even. So the answer is Yes.", "Yes"),
        ("So the answer is (B). That is all.", "(B)"),
        ("the answer is No. Wait: the answer is Yes.\n\nQ: next?\nA: So the answer is No.", "Yes"),
        ("The Answer is: 3.5.", "3.5"),
        ("So the answer is ] ) } ].\n", "] ) } ]"),
        ("So the answer is bar foo\nand more", "bar foo"),
        ("So the answer is -50.", "-50"),
        ("no such words", None),
        ("So the answer is", None),
    ],
)
def test_the_answer_is_behind_the_words(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_without_the_words_the_first_line_is_the_answer() -> None:
    assert answer_of(" (B)\n\nQ: next?") == "(B)"
    assert answer_of("\n Yes.\n") == "Yes"
    assert answer_of("So the answer is No.") == "No"
    assert answer_of("") == ""


def test_postprocessing_follows_the_published_rules() -> None:
    # Computed from the published function: the stop string stays, one at the start does not count, a group counts.
    assert postprocess("The apple. What", stop_string=".") == "The apple."
    assert postprocess(".x.y", stop_string=".") == ".x.y"
    assert postprocess("= 42. 7*7 = 49", output_regex=r"\d+") == "42"
    assert postprocess("is 7.", output_regex=r"([-+]?\d+)[.]{0,1}$") == "7"
    assert postprocess("none", output_regex=r"\d+") == ""
    assert postprocess("a\nb\nc 5", "\n", r"\d+|b") == ""
    assert postprocess("as it is") == "as it is"


@pytest.mark.skipif(not (PUBLISHED / "bbh").is_dir(), reason="the published tasks are not beside the project")
def test_published_files_load_with_their_prompts() -> None:
    tasks = {task.name: task for task in load_tasks("bbh", PUBLISHED)}
    assert len(tasks) >= 22
    free = {name for name, task in tasks.items() if not task.is_multiple_choice}
    assert free <= {f"bbh/{n}" for n in "dyck_languages multistep_arithmetic_two object_counting word_sorting".split()}
    for task in tasks.values():
        items, reasoned = task.items(), task.items(chain_of_thought=True)
        assert len(items) == len(task.examples) in (146, 178, 187, 250)
        assert all(item.fields["prompt"].endswith("\nA:") for item in items)
        assert reasoned[0].fields["prompt"].count("Let's think step by step.") == 4
        assert task.description
        shared = items[0].fields["prompt"].removesuffix(items[0].fields["input"] + "\nA:")
        assert all(item.fields["prompt"].startswith(shared) for item in items)
        right = np.array([sum(item.choice_scores) for item in items])
        assert (right == 1).mean() > 0.98
    assert tasks["bbh/movie_recommendation"].notes[0].startswith("1 of 250 targets")


def test_answer_only_prompts_have_the_first_paragraph_of_a_description(tmp_path: Path) -> None:
    prompt = COT_PROMPT.replace("even.\n", "even.\n\nAn even number is two times a whole one.\n\nSo is 0.\n", 1)
    write_bbh(tmp_path, "evenness", [even(8)], prompt)
    task = load_task("bbh/evenness", tmp_path)
    for shots in (0, 3):
        direct = task.items(shots=shots)[0].fields["prompt"]
        assert direct.startswith("Say whether a number is even.\n\nQ: Is")
        assert "two times a whole one" not in direct
        reasoned = task.items(shots=shots, chain_of_thought=True)[0].fields["prompt"]
        assert reasoned.startswith(
            "Say whether a number is even.\n\nAn even number is two times a whole one.\n\nSo is 0.\n\nQ: Is"
        )


def test_a_question_that_breaks_off_behind_its_first_option_takes_those_of_the_others(tmp_path: Path) -> None:
    rows = [("Which?\nOptions:\n(A) one\n(B) two", "(B)"), ("Which?\nOptions:\n(A) o", "(A)")]
    write_bbh(tmp_path, "cut", rows)
    task = load_task("bbh/cut", tmp_path)
    item = task.items()[1]
    assert (item.choices, item.choice_scores) == (("(A)", "(B)"), (1, 0))
    assert not item.is_free_text
    assert task.notes == ("1 questions list one option only; they have those of the others",)


def test_a_limit_says_that_it_draws_at_random(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bbh(tmp_path, "evenness", [even(number) for number in range(8)])
    task = load_task("bbh/evenness", tmp_path)
    with caplog.at_level("INFO", logger="probes"):
        task.items(limit=8)
        assert not caplog.messages
        task.items(limit=3)
    assert caplog.messages == ["bbh/evenness: 3 of 8 questions, drawn at random with seed 42"]

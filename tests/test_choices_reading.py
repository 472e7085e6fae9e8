"""Choices as users write them: lists, texts with what they are worth, and which one is right."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import probes
from probes.errors import ItemError


def test_items_with_choices_are_read_from_files(tmp_path):
    rows = [
        {"id": "a", "prompt": "p", "options": ["yes", "no"], "answer": "no"},
        {"id": "b", "prompt": "q", "options": ["x", "y", "z"], "answer": "y"},
        {"id": "c", "prompt": "r", "options": ["x", "y"], "answer": None},
        {"id": "d", "prompt": "s", "options": ["x", "y"], "answer": [0.25, 0.75]},
        {"id": "e", "prompt": "s", "options": ["x", "y"], "answer": ["x", "y"]},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    items = probes.read_items(path, fields=["prompt"], choices="options", target="answer")
    assert [item.choice_scores for item in items] == [(0, 1), (0, 1, 0), (), (0.25, 0.75), (1, 1)]
    assert [item.is_free_text for item in items] == [False, False, False, False, True]
    weighed = tmp_path / "weighed.csv"
    weighed.write_text('id,prompt,options\na,p,"{""yes"": 1, ""no"": 0}"\nb,q,"[""x"", ""y""]"\n')
    items = probes.read_items(weighed, fields=["prompt"], choices="options")
    assert [item.choices for item in items] == [("yes", "no"), ("x", "y")]
    assert [item.choice_scores for item in items] == [(1, 0), ()]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"options": "yes"}, "line 1, column 'options': expected a list of choices, got"),
        ({"options": ["yes", 3]}, "line 1, column 'options': the choice 3 is no text"),
        (
            {"options": ["a", "b"], "answer": "c"},
            "column 'answer': 'c' is none of the choices ['a', 'b'], nor the number",
        ),
        ({"options": ["a", "b"], "answer": 2}, "column 'answer': 2 is none of the choices ['a', 'b'], nor the number"),
        ({"options": ["a", "b"], "answer": [1]}, "column 'answer': 1 numbers for 2 choices"),
        ({"options": {"a": 1, "b": 0}, "answer": "a"}, "column 'answer': the choices say already what each is worth"),
        ({"options": {"a": -1, "b": 0}}, "column 'options': -1 is not what a choice can be worth"),
    ],
)
def test_what_is_no_choice_is_named(tmp_path, cells, message):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "p", "answer": None, **cells}))
    with pytest.raises(ItemError) as error:
        probes.read_items(path, fields=["prompt"], choices="options", target="answer")
    assert message in str(error.value)


def read(tmp_path, rows, name="items.jsonl", **options):
    path = tmp_path / name
    records = [{"id": str(number), "prompt": "p", "options": o, "answer": a} for number, (o, a) in enumerate(rows)]
    if path.suffix == ".csv":
        pd.DataFrame(records).assign(options=[json.dumps(o) for o, _ in rows]).to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    items = probes.read_items(path, fields=["prompt"], choices="options", target="answer", **options)
    return [item.choice_scores.index(1) if item.choice_scores else None for item in items]


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
@pytest.mark.parametrize("written", [int, str])
def test_one_rule_reads_the_targets_of_a_file(tmp_path, caplog, name, written):
    caplog.set_level("INFO", logger="probes")
    numbers = ["4", "0", "2"]
    # 3 is the number of no choice, so these are texts; and 2 is the text of none, so those are numbers.
    assert read(tmp_path, [(numbers, written(0)), (["3", "5"], written(3))], name) == [1, 0]
    assert caplog.messages[-1].endswith(f"{name}: column 'answer' names the right choice by its text (2 of 2 records)")
    assert read(tmp_path, [(numbers, written(0)), (["a", "b", "c"], written(2)), (["x"], None)], name) == [0, 2, None]
    assert caplog.messages[-1].endswith("names the right choice by its number, from 0 (2 of 3 records)")
    # What comes out the same either way is not ambiguous.
    assert read(tmp_path, [(["0", "1"], written(1)), (["0", "x"], written(0))], name) == [1, 0]


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_file_whose_targets_may_be_read_either_way_is_refused(tmp_path, name):
    rows = [(["0", "1"], "0"), (["4", "0", "2"], "0"), (["2", "1"], "1")]
    with pytest.raises(ItemError) as error:
        read(tmp_path, rows, name)
    at = f"{tmp_path / name}, line {3 if name == 'items.csv' else 2}, column 'answer': '0' is the text of one choice"
    assert str(error.value).startswith(at)
    assert "target_as='text' or target_as='number' (--target-as)" in str(error.value)
    assert read(tmp_path, rows, name, target_as="text") == [0, 1, 1]
    assert read(tmp_path, rows, name, target_as="number") == [0, 0, 1]


def test_a_rule_that_does_not_fit_names_the_record(tmp_path):
    with pytest.raises(ItemError, match=r"line 2, column 'answer': 5 is not the number of one \(0 to 1\)"):
        read(tmp_path, [(["a", "b"], 1), (["a", "5"], 5)], target_as="number")
    with pytest.raises(ItemError, match=r"line 1, column 'answer': 1 is none of the choices \['a', 'b'\]"):
        read(tmp_path, [(["a", "b"], 1), (["a", "5"], 5)], target_as="text")
    with pytest.raises(ItemError, match="target_as must be 'text' or 'number', got 'letter'"):
        read(tmp_path, [(["a", "b"], 1)], target_as="letter")
    mixed = [(["a", "b"], "b"), (["a", "b"], 0)]
    with pytest.raises(ItemError) as error:
        read(tmp_path, mixed)
    assert str(error.value).endswith(
        "line 1, column 'answer': 'b' is the text of a choice and no number of one, while line 2 has 0, a number and "
        "no text; name the right choice in one way throughout"
    )


def test_whole_numbers_with_gaps_and_numbers_as_text_name_choices(tmp_path):
    frame = pd.DataFrame({"prompt": ["p", "q", "r"], "options": [["a", "b"]] * 3, "answer": [1, None, 0]})
    items = probes.read_items(frame, fields=["prompt"], choices="options", target="answer")
    assert [item.choice_scores for item in items] == [(0, 1), (), (1, 0)]
    frame.assign(options=['["a", "b"]'] * 3).to_csv(tmp_path / "gap.csv", index=False)
    items = probes.read_items(tmp_path / "gap.csv", fields=["prompt"], choices="options", target="answer")
    assert [item.choice_scores for item in items] == [(0, 1), (), (1, 0)]
    assert read(tmp_path, [(["a", "b"], "1"), (["a", "b"], "0")]) == [1, 0]

"""Answers in free text: what a model that is always right is given for them, and answers that are cut off."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers

import probes
from probes import cli
from probes.capturing.generation import Generator
from probes.choices.published import published
from probes.decoding import Decoding
from probes.encoding import encode
from probes.tasks import load_task, load_tasks, postprocess, score_texts
from tests import made_up_tasks, tiny

if TYPE_CHECKING:
    from pathlib import Path

NEXT = "\n\nQ: what else?"


@pytest.fixture(scope="module", params=["digits", "merged", "sentencepiece"])
def model(request, tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), "digits")


def save_model(folder: Path, kind: str) -> str:
    """A random model that takes prompts of any length."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": 4096},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny.tokenizer(kind).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def says(monkeypatch):
    """Has the model continue every prompt, as it was written, with a text."""

    def put(text_of):
        def choose(self, step, batch):
            del step
            judge, table, chosen = self._job.judge, self._job.table, []
            for answer in batch:
                item = self._job.items[int(table.item[answer.prompt])]
                prompt = judge.render(item)
                text = prompt.text + judge.template.answer_separator + text_of(item)
                whole = list(prompt.token_ids[: len(prompt.token_ids) - len(plain(judge, prompt.text))])
                whole += plain(judge, text)
                kept = table.tokens[answer.prompt].tolist()
                # Other texts than the choices may change the end of the prompt; then only the text counts.
                rest = whole[len(kept) :] if whole[: len(kept)] == kept else plain(judge, text_of(item))
                chosen.append([*rest, judge.tokenizer.eos_token_id][len(answer.tokens)])
            return np.array(chosen)

        monkeypatch.setattr(Generator, "_choose", choose)

    def plain(judge, text):
        return encode(judge.tokenizer, text, special_tokens=False)

    return put


def asked(model, task, path, **options):
    judge = probes.Judge.load(model, template=task.suite, scale="choices", condition="generate", **options)
    return probes.capture(judge, task.items(limit=min(6, len(task.examples))), path)


def value_of(run, metric="exact_str_match"):
    rows = published(run).query("of == 'text'").set_index("metric")
    return rows.loc[metric, "value"]


STYLES = [
    {},
    {"example_output_prefix": "\nA:  "},
    {"example_output_prefix": "\nAnswer:\n"},
    {"example_output_prefix": " (the answer is)"},
    {"example_input_prefix": "", "example_output_prefix": ""},
    {"stop_string": "\n", "output_regex": r"([A-Za-z0-9 ]+)\s*$"},
    {"output_regex": r"(?s:.+)"},
]


@pytest.mark.parametrize("style", STYLES)
def test_a_model_that_is_always_right_has_all_points(model, says, tmp_path, style):
    # Without any prefix there are no prompts at all.
    texts = [f"{n}+{n}" if style.get("example_input_prefix") != "" else "" for n in range(1, 5)]
    rows = [{"input": text, "target": [str(2 * n), f"{'very ' * n}good"]} for n, text in enumerate(texts, 1)]
    made_up_tasks.write(tmp_path, "sums", made_up_tasks.sums(rows, **style))
    task = load_task("bigbench/sums", tmp_path)
    for place in (0, 1):
        says(lambda item, place=place: item.choices[place] + (style.get("stop_string") or NEXT))
        run = asked(model, task, tmp_path / f"{place}.h5", stop=[task.stop_string] if task.stop_string else None)
        assert value_of(run) == 1, run.generated_text
        assert value_of(run) == score_texts(run.items, run.generated_text, tasks=[task])["value"].iloc[0]
        if task.stop_string is None:
            assert run.generated_text == [item.choices[place] for item in run.items]
        assert probes.verify(run.path) == []


def published_free_text():
    folder = made_up_tasks.PUBLISHED
    if not (folder / "bigbench").is_dir():
        return []
    leaves = [leaf for task in load_tasks("bigbench", folder) for leaf in task.leaves]
    return [leaf for leaf in leaves if "exact_str_match" in leaf.metrics]


@pytest.mark.parametrize("task", published_free_text(), ids=lambda task: task.name)
def test_of_published_tasks_too(plain_model, says, tmp_path, task):
    says(lambda item: item.choices[0] + NEXT)
    run = asked(plain_model, task, tmp_path / "run.h5", stop=[task.stop_string] if task.stop_string else None)
    # The published expression may leave no chance to be right: the default one ends in front of a period.
    right = [postprocess(item.choices[0], task.stop_string, task.output_regex) in item.choices for item in run.items]
    assert value_of(run) == np.mean(right)


def test_an_answer_that_does_not_begin_with_the_space_is_what_it_is(plain_model, says, tmp_path):
    made_up_tasks.write(tmp_path, "sums", made_up_tasks.sums())
    task = load_task("bigbench/sums", tmp_path)
    says(lambda item: "\n" + item.choices[0])
    run = asked(plain_model, task, tmp_path / "run.h5")
    assert run.generated_text == ["\n" + item.choices[0] for item in run.items]


def test_separators_are_no_part_of_an_answer(plain_model, says, tmp_path):
    rows = [{"id": str(n), "question": f"{n}+{n}", "accepted": {str(2 * n): 1.0}} for n in range(1, 5)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = probes.read_items(tmp_path / "sums.jsonl", fields=["question"], choices="accepted")
    template = probes.Template.from_dict({"user": "{{ question }} =", "plain": True, "separator": " "}, "sums")
    judge = probes.Judge.load(plain_model, template=template, scale="choices", condition="generate")
    says(lambda item: item.choices[0] + NEXT)
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert run.generated_text == ["2", "4", "6", "8"]
    assert value_of(run) == 1


@pytest.fixture
def sums(tmp_path):
    made_up_tasks.write(tmp_path, "sums", made_up_tasks.sums())
    return tmp_path


def run_cli(*arguments) -> int:
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_answers_that_are_cut_off_are_counted_and_keep_their_numbers(plain_model, says, sums, tmp_path, caplog, capsys):
    texts = {"1+1": "2" + NEXT, "2+2": "4, or so I think", "3+3": "six", "4+4": "8 8 8 8 8"}
    says(lambda item: texts[item.fields["input"]])
    run = asked(plain_model, load_task("bigbench/sums", sums), tmp_path / "run.h5", max_new_tokens=5)
    assert run.cut_off.tolist() == [False, True, False, True]
    assert (run.item_status == 0).all()
    assert np.isfinite(run.choice_logprob()).all()
    message = "2 of 4 answers were cut off at 5 tokens: what was read is kept, but their texts lack their end"
    assert any(record.message.startswith(message) and record.levelno == logging.WARNING for record in caplog.records)
    assert probes.inspect_run(run.path).n_cut_off == 2
    assert run_cli("inspect", run.path) == 0
    assert "4 captured; 2 answers cut off at 5 tokens" in capsys.readouterr().out
    table = published(run).query("of == 'text'")
    assert table["note"].tolist() == ["2 answers cut off"]
    assert run.select(items=[0, 1]).cut_off.tolist() == [False, True]
    assert probes.verify(run.path) == []


def test_an_answer_that_ends_with_the_last_token_it_may_have_is_not_cut_off(plain_model, says, sums, tmp_path):
    says(lambda item: item.fields["input"].replace("+", "")[:1] + "\n\n" + "more")
    task = load_task("bigbench/sums", sums)
    lengths = [len(ids) for ids in asked(plain_model, task, tmp_path / "long.h5").generated_ids]
    run = asked(plain_model, task, tmp_path / "run.h5", max_new_tokens=max(lengths))
    assert [len(ids) for ids in run.generated_ids] == lengths
    assert not run.cut_off.any()
    less = asked(plain_model, task, tmp_path / "less.h5", max_new_tokens=max(lengths) - 1)
    assert less.cut_off.tolist() == [length == max(lengths) for length in lengths]


def test_the_command_line_says_how_many_answers_were_cut_off(plain_model, says, sums, tmp_path, capsys):
    says(lambda item: "and so on " * 50)
    arguments = ("--task", "bigbench/sums", "--tasks", sums, "--model", plain_model, "--condition", "generate")
    assert run_cli("capture", *arguments, "--max-new-tokens", 8, "--out", tmp_path / "run.h5") == 0
    said = capsys.readouterr()
    assert said.out.strip().endswith("run.h5: 4 of 4 items captured")
    assert "warning: 4 of 4 answers were cut off at 8 tokens" in said.err
    assert run_cli("capture", *arguments, "--max-new-tokens", 8, "--out", tmp_path / "run.h5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["cut_off"] == 4
    assert run_cli("compare", tmp_path / "run.h5") == 0
    assert "4 answers cut off" in capsys.readouterr().out


def test_the_usual_length_of_answers_follows_the_accepted_ones(plain_model, says, tmp_path):
    def allowed(targets, **options):
        rows = [{"input": f"question {n}", "target": target} for n, target in enumerate(targets)]
        made_up_tasks.write(tmp_path, "long", made_up_tasks.sums(rows, output_regex="(?s:.+)"))
        task = load_task("bigbench/long", tmp_path)
        says(lambda item: item.choices[0])
        run = asked(plain_model, task, tmp_path / "run.h5", **options)
        (tmp_path / "run.h5").unlink()
        return run.attr("judge")["decoding"], value_of(run)

    usual, value = allowed(["one", "two"])
    assert (usual["max_new_tokens"], usual["stop"], value) == (64, ["\n\n"], 1)
    longer, value = allowed(["one", "very " * 150])
    assert longer["max_new_tokens"] > 150
    assert longer["max_new_tokens"].bit_count() == 1
    assert value == 1
    # A usual stop is none where accepted answers have it; both are as they were asked for.
    blank, value = allowed(["one", "a\n\nb"])
    assert "stop" not in blank
    assert value == 1
    given, value = allowed(["one", "very " * 150 + "\n\n"], max_new_tokens=20, stop=["\n\n"])
    assert (given["max_new_tokens"], given["stop"], value) == (20, ["\n\n"], 0.5)


def test_longer_answers_leave_room_for_every_prompt():
    usual = Decoding.of("generate", choices=True)
    assert usual is not None
    assert usual.fitted(["x"], 100, None).max_new_tokens == 256
    assert usual.fitted(["x"], 100, 150).max_new_tokens == 150
    assert usual.fitted(["x"], 100, 10).max_new_tokens == 64
    assert usual.fitted(["x"], 32, None) == usual
    assert Decoding.from_dict(usual.to_dict()) == usual
    assert not usual.fitted(["x"], 100, None).usual


def test_a_run_with_longer_answers_resumes_and_extends(plain_model, says, tmp_path):
    rows = [{"input": f"question {n}", "target": "very " * (60 - n)} for n in range(4)]
    made_up_tasks.write(tmp_path, "long", made_up_tasks.sums(rows))
    items = load_task("bigbench/long", tmp_path).items()
    says(lambda item: item.choices[0])
    judge = probes.Judge.load(plain_model, template="bigbench", scale="choices", condition="generate")
    first = probes.capture(judge, items.select([0, 1]), tmp_path / "run.h5")
    assert first.attr("judge")["decoding"]["max_new_tokens"] > 64
    first.close()
    both = probes.capture(judge, items, tmp_path / "run.h5", extend=True)
    assert both.ids == items.ids
    again = probes.capture(judge, items, tmp_path / "run.h5")
    assert again.judge_hash == both.judge_hash


@pytest.mark.parametrize(
    ("extract", "value"), [(None, 0), (r"is (\w+)", 1), (str.upper, 0), (lambda text: text.split()[2].strip(","), 1)]
)
def test_how_answers_are_taken_out_of_texts_can_be_said(plain_model, says, sums, tmp_path, extract, value):
    says(lambda item: f"That is {item.choices[0]}, I say")
    task = load_task("bigbench/sums", sums)
    run = asked(plain_model, task, tmp_path / "run.h5")
    assert score_texts(run.items, run.generated_text, tasks=[task], extract=extract)["value"].tolist() == [value]
    assert published(run, extract=extract).query("of == 'text'")["value"].tolist() == [value]
    found = probes.compare(run, ["final"], extract=extract).published
    assert found.query("of == 'text'")["value"].tolist() == [value]


def test_the_command_line_takes_an_expression_of_answers(plain_model, says, sums, tmp_path, capsys):
    says(lambda item: f"That is {item.choices[0]}, I say")
    run = asked(plain_model, load_task("bigbench/sums", sums), tmp_path / "run.h5")
    table = ("compare", run.path, "--table", "published", "--json")
    assert run_cli(*table, "--extract", r"is (\w+)") == 0
    rows = {(row["of"], row["metric"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["text", "exact_str_match"]["value"] == 1
    assert run_cli(*table, "--extract", "(a)(b)") == 2
    assert "extract: '(a)(b)' has 2 groups and may have one" in capsys.readouterr().err
    assert run_cli("compare", run.path, "--table", "layers", "--extract", "a") == 2
    assert "leave out --extract" in capsys.readouterr().err


def test_answers_on_a_scale_that_are_cut_off_are_counted(plain_model, tmp_path):
    items = probes.vader_words(6)
    options = {"template": "words", "scale": "1..5", "human_range": "-4..4", "condition": "generate"}
    run = probes.capture(probes.Judge.load(plain_model, **options), items, tmp_path / "run.h5")
    full = np.array([len(ids) for ids in run.generated_ids]) == 10
    assert (run.cut_off == (full & (run.status != 0))).all()
    direct = probes.Judge.load(plain_model, **(options | {"condition": "direct"}))
    assert not probes.capture(direct, items, tmp_path / "direct.h5").cut_off.any()

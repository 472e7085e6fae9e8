"""Which tokens of a prompt are which part of it: recorded while the prompt is written, never searched for."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import probes
from probes.errors import ItemError, RunFileError
from probes.prompt_parts import PromptParts
from probes.prompts import Shot, load_template
from probes.rendering import render
from probes.spanned import Span
from probes.store.format import write_array
from probes.store.structure import attributes_digest
from probes.traced import TracedTemplate
from tests import tiny
from tests.valid_run import write_valid

SCALE = probes.Scale.parse("1..5")
KINDS = ("digits", "merged", "sentencepiece")
# Responses that stand elsewhere in the prompt too: in the scale, the criterion, the chat template, a word.
AMBIGUOUS = ["one", "best", "A", "1", "art", "assistant", "numb", "Score", "user", "5", "s", "Rate the response"]


def shown(prompt, part, kind="parts"):
    return [prompt.text[span.start : span.stop] for span in prompt.parts if span.part == part]


def decoded(tokenizer, prompt, part):
    return [
        tokenizer.decode(list(prompt.token_ids[span.start : span.stop]))
        for span in prompt.token_parts
        if span.part == part
    ]


def prompt_of(tokenizer, response, template=None, **fields):
    template = template or probes.Template(
        name="t",
        system="You judge. Best is 5, worst is 1.",
        user="Rate the response on {{ scale }}, by {{ criterion }}: one number.\n[{{ response }}]\n{{ context }}",
        shots=(Shot({"response": response, "context": "c"}, "1"), Shot({"response": "b", "context": "c"}, "5")),
        prefill="Score:",
    )
    item = probes.Item(id="a", fields={"response": response, "context": "art is one", **fields}, criterion="best")
    return render(tokenizer, template, item, SCALE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "paragraphs"])
@pytest.mark.parametrize("response", AMBIGUOUS)
def test_parts_are_where_they_were_written(kind, chat, response):
    tokenizer = tiny.tokenizer(kind, tiny.CHAT_TEMPLATE if chat else None)
    prompt = prompt_of(tokenizer, response)
    assert shown(prompt, "system") == ["You judge. Best is 5, worst is 1."]
    (user,) = shown(prompt, "user")
    assert user == f"Rate the response on 1..5, by best: one number.\n[{response}]\nart is one"
    assert shown(prompt, "field:response") == [response]
    assert shown(prompt, "field:context") == ["art is one"]
    assert shown(prompt, "field:criterion") == ["best"]
    assert shown(prompt, "scale") == ["1..5"]
    assert shown(prompt, "prefill") == ["Score:"]
    (shots,) = shown(prompt, "shots")
    assert shots.startswith("Rate the response on 1..5")
    assert shots.endswith("Score: 5")
    (place,) = [span for span in prompt.parts if span.part == "field:response"]
    assert prompt.text[place.start - 1] == "["
    assert place.start > prompt.text.index(shots) + len(shots), "the item's own, not that of an example"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", [*AMBIGUOUS, "naïve 判断 👩‍👧 ok"])
def test_token_parts_hold_the_part_and_no_token_without_it(kind, response):
    tokenizer = tiny.tokenizer(kind)
    prompt = prompt_of(tokenizer, response)
    for part, text in (
        ("field:response", response),
        ("system", "You judge. Best is 5, worst is 1."),
        ("scale", "1..5"),
    ):
        (found,) = decoded(tokenizer, prompt, part)
        assert text in found
        (span,) = [span for span in prompt.token_parts if span.part == part]
        for narrower in (prompt.token_ids[span.start + 1 : span.stop], prompt.token_ids[span.start : span.stop - 1]):
            assert text not in tokenizer.decode(list(narrower))


def test_special_tokens_in_front_move_the_parts():
    tokenizer = tiny.tokenizer("sentencepiece", None)
    tokenizer.add_bos_token = True
    prompt = prompt_of(tokenizer, "one")
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    assert decoded(tokenizer, prompt, "field:response") == ["one"]


def test_a_merged_system_turn_and_a_plain_prompt_have_parts():
    prompt = prompt_of(tiny.tokenizer("digits", tiny.NO_SYSTEM_TEMPLATE), "best")
    assert shown(prompt, "system") == ["You judge. Best is 5, worst is 1."]
    assert shown(prompt, "field:response") == ["best"]
    plain = probes.Template(name="p", user=" {{ context }} best\n{{ response }}", prefill="best", plain=True)
    prompt = prompt_of(tiny.tokenizer(), "best", plain)
    assert prompt.text == " art is one best\nbestbest"
    assert [prompt.text[s.start : s.stop] for s in prompt.parts if s.part == "field:response"] == ["best"]
    assert [s.start for s in prompt.parts if s.part == "field:response"] == [17]


@pytest.mark.parametrize("name", ["rubric", "reasoning", "g-eval", "words", "pair"])
def test_every_field_of_the_packages_templates_has_a_part(name):
    fields = {
        key: f"the {key} text"
        for key in ("task", "instruction", "context", "response", "criterion_text", "response_a", "response_b")
    }
    prompt = render(tiny.tokenizer(), load_template(name), probes.Item(id="a", fields=fields), SCALE)
    for key, text in fields.items():
        assert shown(prompt, f"field:{key}") == [text] * prompt.text.count(text)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{{ response | trim | upper }}", ["field:response"]),
        ("{% for line in response.splitlines() %}{{ loop.index }}. {{ line }} {% endfor %}", ["field:response"] * 4),
        ("{% set response = response ~ '!' %}{{ response }}", ["field:response"]),
        ("{% set both = [response, context] %}{{ both | join(' ') }}", ["field:context+response"]),
        ("{% macro show(text) %}<{{ text }}>{% endmacro %}{{ show(response) }}", ["field:response"]),
        ("{% set block %}x{{ context }}{% endset %}{{ block }}", ["field:context"]),
        ("{% with text = response %}{{ text }}{% endwith %}", ["field:response"]),
        ("{% set all = [] %}{% set _ = all.append(response) %}{{ all | join }}", ["field:response"]),
        ("{% set ns = namespace(x='') %}{% set ns.x = response %}{{ ns.x }}", ["field:response"]),
        ("{% filter upper %}x{{ response }}{% endfilter %}", ["field:response"]),
        ("{% autoescape true %}{{ response }}{% endautoescape %}", ["field:response"]),
        ("{% for x in [response] recursive %}{{ x }}{% endfor %}", ["field:response"]),
        ("{{ scale }} {{ scale.low }}", ["scale"] * 2),
        ("{% set mark = '<|end|>' %}{{ mark }}{{ 'x' }}{{ range(3) | join }}", []),
        ("{% if response %}yes{% endif %}", []),
        ("{{ context[:0] }}x", []),
    ],
)
def test_what_an_expression_shows_is_traced(source, parts):
    class Labels:
        low = 1

    found = TracedTemplate(source).render({"response": "r\ns", "context": "c", "scale": Labels()})
    assert [span.part for span in found.spans] == parts


def test_a_response_that_is_shown_twice_is_there_twice(booted, tmp_path):
    template = probes.Template(name="t", user="One: {{ response }}. Two: {{ response }}!")
    judge, items = make_judge(booted, template=template), tiny.word_items(3)
    run = probes.capture(judge, items, tmp_path / "run.h5", response_mean=True)
    for number, parts in enumerate(run.prompt_parts):
        first, second = [span for span in parts if span.part == "field:response"]
        assert first.stop < second.start
        np.testing.assert_allclose(
            run.extra("response_mean")[number],
            states(judge, run.token_ids[number])[first.start : first.stop].mean(0),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def make_judge(folder, **options):
    return probes.Judge.load(str(folder), scale="1..5", human_range="-4..4", **options)


def states(judge, token_ids):
    """States of every position and layer before the final norm, by plain transformers."""
    model = tiny.hf_model()
    last = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    with torch.no_grad():
        out = model(torch.as_tensor(np.asarray(token_ids, dtype=np.int64))[None], output_hidden_states=True)
    handle.remove()
    return torch.stack([*out.hidden_states[:-1], last[0]], dim=1)[0].permute(1, 0, 2).numpy()


@pytest.mark.parametrize("share_prefix", [True, False])
def test_the_mean_is_over_the_tokens_of_the_response(booted, tmp_path, share_prefix):
    template = probes.Template(
        name="t",
        user="Is it art? Rate the best word from 1 to 5, one number. Word: {{ response }}\nscale: {{ scale }}, A to E",
        prefill="Score:",
    )
    judge = make_judge(booted, template=template)
    items = probes.Items([probes.Item(id=word, fields={"response": word}) for word in AMBIGUOUS])
    run = probes.capture(judge, items, tmp_path / "run.h5", response_mean=True, share_prefix=share_prefix)
    for number, word in enumerate(AMBIGUOUS):
        ids = run.token_ids[number].tolist()
        # Independently: the tokens behind those of the text in front, found by tokenising it alone.
        text = judge.render(items[number]).text
        front = text[: text.index("Word: ") + len("Word:")]
        start = len(judge.tokenizer(front, add_special_tokens=False)["input_ids"])
        stop = start + len(judge.tokenizer(f" {word}", add_special_tokens=False)["input_ids"])
        assert word in judge.tokenizer.decode(ids[start:stop])
        space = judge.tokenizer.decode(ids[start : start + 1]).strip() == ""
        expected = states(judge, ids)[start + space : stop].mean(0)
        np.testing.assert_allclose(run.extra("response_mean")[number], expected, rtol=1e-4, atol=2e-5)


def test_a_response_that_is_not_shown_has_no_mean(booted, tmp_path):
    for user in ("{{ response ~ task }}", "{{ task }}"):
        judge = make_judge(booted, template=probes.Template(name="t", user=user))
        items = probes.Items([probes.Item(id="a", fields={"response": "x", "task": "x"})])
        with pytest.raises(ItemError) as error:
            probes.capture(judge, items, tmp_path / "run.h5", response_mean=True)
        assert str(error.value) == (
            "item 'a': its prompt does not show its 'response', or only together with other fields, so the mean over "
            "the response's tokens (response_mean) is not defined; leave it out, or show {{ response }} in the template"
        )


def test_a_run_keeps_its_parts_through_all_that_becomes_of_it(booted, tmp_path):
    template = probes.Template(name="t", user="Rate {{ response }}, {{ scale }}.", prefill="Score:")
    judge, items = make_judge(booted, template=template), tiny.word_items(6)
    run = probes.capture(judge, items, tmp_path / "run.h5")
    whole = run.prompt_parts
    words = [
        [run.token_ids[k][s.start : s.stop] for s in parts if s.part == "field:response"]
        for k, parts in enumerate(whole)
    ]
    for item, (word,) in zip(items, words, strict=True):
        assert item.fields["response"] in judge.tokenizer.decode(word.tolist())
    first = probes.capture(judge, items.select([0, 1, 2]), tmp_path / "first.h5")
    rest = probes.capture(judge, items.select([3, 4, 5]), tmp_path / "rest.h5")
    merged = probes.merge([first, rest], tmp_path / "merged.h5")
    assert merged.prompt_parts == whole
    part = run.select(items=[4, 1])
    assert part.prompt_parts == [whole[run.ids.index(name)] for name in part.ids]
    extended = probes.capture(judge, items, tmp_path / "first.h5", extend=True)
    assert extended.prompt_parts == whole
    for path in ("run.h5", "merged.h5", "first.h5"):
        assert probes.verify(tmp_path / path) == []


def strip_parts(path):
    """A run as earlier versions wrote it."""
    with h5py.File(path, "r+") as file:
        del file["prompts/parts"]
        file.attrs["sha256"] = attributes_digest(file)
    return path


def test_names_of_parts_are_told_apart(tmp_path):
    path = write_parts(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        file["prompts/parts"].attrs["names"] = '["user", "user"]'
        file.attrs["sha256"] = attributes_digest(file)
    fault = "/prompts/parts@names: must be texts that are not empty, each once"
    assert [str(found) for found in probes.verify(path)] == [fault]


def test_runs_without_parts_are_read_merged_and_extended(booted, tmp_path):
    template = probes.Template(name="t", user="Rate {{ response }}.", prefill="Score:")
    judge, items = make_judge(booted, template=template), tiny.word_items(4)
    old = strip_parts(probes.capture(judge, items.select([0, 1]), tmp_path / "old.h5").path)
    assert probes.verify(old) == []
    with probes.open_run(old) as run:
        assert run.prompt_parts == [(), ()]
    new = probes.capture(judge, items.select([2, 3]), tmp_path / "new.h5")
    with probes.open_run(old) as run, probes.merge([run, new], tmp_path / "merged.h5") as merged:
        assert merged.prompt_parts == [(), (), *new.prompt_parts]
    assert probes.verify(tmp_path / "merged.h5") == []
    with probes.capture(judge, items, old, extend=True) as extended:
        assert extended.prompt_parts == [(), (), *new.prompt_parts]


def write_parts(path, **columns):
    parts = PromptParts.from_lists([[Span("user", 0, 1), Span("field:response", 0, 1)]] * 6)
    return write_valid(path, parts=replace(parts, **columns))


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({}, None),
        ({"names": ("user", "")}, "/prompts/parts@names: must be texts that are not empty, each once"),
        (
            {"stop": np.array([1] * 5 + [9] + [1] * 6, dtype=np.int32)},
            "/prompts/parts/stop row 5 (prompt 2): ends a part of tokens 0 to 8, of the 4 of its prompt",
        ),
        (
            {"start": np.array([1] + [0] * 11, dtype=np.int32)},
            "/prompts/parts/stop row 0 (prompt 0): ends a part of tokens 1 to 0, of the 2 of its prompt",
        ),
    ],
)
def test_wrong_parts_are_named(tmp_path, columns, fault):
    path = write_parts(tmp_path / "run.h5", **columns)
    assert [str(found) for found in probes.verify(path)] == ([] if fault is None else [fault])


@pytest.mark.parametrize(
    ("columns", "where"),
    [
        ({"part": np.array([0, 7] * 6, dtype=np.int32)}, "name a part that has no name"),
        ({"offsets": np.array([0, 2, 4, 3, 8, 10, 12])}, "have offsets that do not ascend"),
        ({"start": np.zeros(3, dtype=np.int32)}, "are of different lengths"),
    ],
)
def test_damaged_parts_are_refused_and_found(tmp_path, columns, where):
    path = write_parts(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        for name, values in columns.items():
            del file[f"prompts/parts/{name}"]
            write_array(file["prompts/parts"], name, values)
        file.attrs["sha256"] = attributes_digest(file)
    assert any("/prompts/parts/" in str(fault) for fault in probes.verify(path))
    with probes.open_run(path) as run, pytest.raises(RunFileError, match=f"/prompts/parts {where}"):
        _ = run.prompt_parts


def test_a_group_that_lacks_a_part_is_no_run(tmp_path):
    path = write_parts(tmp_path / "run.h5")
    with h5py.File(path, "r+") as file:
        del file["prompts/parts/stop"]
        file.attrs["sha256"] = attributes_digest(file)
    assert [str(fault) for fault in probes.verify(path)] == ["/prompts/parts/stop: is missing"]

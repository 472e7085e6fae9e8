"""Templates, and what the model reads in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

import probes
from probes.errors import TemplateError
from probes.locate import ScoreFinder, ScoreRule
from probes.prompts import load_template, template_names
from probes.rendering import render
from tests import tiny

SCALE = probes.Scale.parse("1..5")
FULL = probes.Item(
    id="a",
    fields={
        "task": "Summarise the article.",
        "instruction": "Two sentences.",
        "context": "The committee met.",
        "response": "A committee met.",
        "criterion_text": "Is it faithful?",
    },
    criterion="consistency",
)
SHOTS = (probes.prompts.Shot({"response": "good"}, "5"), probes.prompts.Shot({"response": "bad"}, "1"))


def template(**changes):
    return probes.Template(**({"name": "t", "user": "Rate {{ response }}.", "system": "You judge."} | changes))


def test_chat_template_is_applied_exactly_once():
    prompt = render(tiny.tokenizer(), template(shots=SHOTS, prefill="Score:"), FULL, SCALE)
    assert prompt.text == (
        "<|start|>system\nYou judge.<|end|>\n"
        "<|start|>user\nRate good.<|end|>\n<|start|>assistant\nScore: 5<|end|>\n"
        "<|start|>user\nRate bad.<|end|>\n<|start|>assistant\nScore: 1<|end|>\n"
        "<|start|>user\nRate A committee met..<|end|>\n<|start|>assistant\nScore:"
    )
    assert prompt.system_turn == "own"
    assert prompt.tail == ".<|end|>\n<|start|>assistant\nScore:" or prompt.tail == "<|end|>\n<|start|>assistant\nScore:"


@pytest.mark.parametrize("kind", ["digits", "sentencepiece"])
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_bos_is_never_doubled(kind, chat):
    """Templates that write BOS meet tokenizers that add it: exactly one may remain."""
    tokenizer = tiny.tokenizer(kind, tiny.NO_SYSTEM_TEMPLATE if chat else None)
    if kind == "sentencepiece":
        tokenizer.add_bos_token = True
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "this tokenizer must add BOS by itself"
    prompt = render(tokenizer, template(), FULL, SCALE)
    wanted = 1 if chat or kind == "sentencepiece" else 0
    assert list(prompt.token_ids).count(tokenizer.bos_token_id) == wanted
    assert prompt.token_ids.index(tokenizer.bos_token_id) == 0 if wanted else True


def test_an_end_token_that_the_tokenizer_appends_is_not_read():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer("digits", None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    prompt = render(tokenizer, template(), FULL, SCALE)
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids[-1] != 2


def test_a_refused_system_turn_is_merged():
    prompt = render(tiny.tokenizer(chat_template=tiny.NO_SYSTEM_TEMPLATE), template(), FULL, SCALE)
    assert prompt.system_turn == "merged"
    assert prompt.text.startswith("<s><|start|>user\nYou judge.\n\nRate A committee met.")


def test_a_silently_dropped_system_turn_is_merged():
    dropping = tiny.CHAT_TEMPLATE.replace("messages %}", "messages if message['role'] != 'system' %}")
    prompt = render(tiny.tokenizer(chat_template=dropping), template(), FULL, SCALE)
    assert prompt.system_turn == "merged"
    assert "You judge.\n\nRate" in prompt.text


def test_without_a_chat_template_turns_are_paragraphs():
    prompt = render(tiny.tokenizer(chat_template=None), template(shots=SHOTS, prefill="Score:"), FULL, SCALE)
    assert prompt.text == (
        "You judge.\n\nRate good.\nScore: 5\n\nRate bad.\nScore: 1\n\nRate A committee met..\nScore:"
    )


def test_a_chat_template_that_refuses_everything_is_an_error():
    tokenizer = tiny.tokenizer(chat_template="{{ raise_exception('no judges here') }}")
    with pytest.raises(TemplateError) as error:
        render(tokenizer, template(), FULL, SCALE)
    assert str(error.value) == "the model's chat template refuses template 't' at item 'a': no judges here"


def test_chat_options_reach_the_chat_template():
    chat = tiny.CHAT_TEMPLATE + "{% if not enable_thinking | default(true) %}<think></think>{% endif %}"
    prompt = render(tiny.tokenizer(chat_template=chat), template(chat_options={"enable_thinking": False}), FULL, SCALE)
    assert prompt.text.endswith("<think></think>")


@pytest.mark.parametrize("name", ["rubric", "reasoning", "g-eval"])
def test_ready_templates_show_every_field(name):
    text = render(tiny.tokenizer(), load_template(name), FULL, SCALE).text
    for field in FULL.fields.values():
        assert text.count(field) == 1, field
    assert "consistency" in text
    assert "5" in text
    minimal = probes.Item(id="b", fields={"response": "Short.", "criterion_text": "Is it good?"})
    assert "Short." in render(tiny.tokenizer(), load_template(name), minimal, SCALE).text
    two = render(tiny.tokenizer(), load_template("rubric"), minimal, probes.Scale.parse("yes/no")).text
    assert "Answer with no or yes." in two


@pytest.mark.parametrize("name", ["rubric", "reasoning"])
def test_criteria_of_one_response_share_everything_in_front_of_them(name):
    other = replace(FULL, criterion="style", fields=FULL.fields | {"criterion_text": "Is it well written?"})
    texts = [render(tiny.tokenizer(), load_template(name), item, SCALE).text for item in (FULL, other)]
    (shared,) = {text.partition("## Criterion\n")[0] for text in texts}
    assert shared.endswith("A committee met.\n\n")


def test_pair_template_shows_both_responses_and_asks_for_a_letter():
    fields = {"task": "Summarise.", "context": "The committee met.", "response_a": "Met.", "response_b": "It sat."}
    judge = load_template("pair")
    assert judge.pair == ("response_a", "response_b")
    assert judge.first_label == "A"
    item = probes.Item(id="p", fields=fields)
    text = render(tiny.tokenizer(), judge, item, probes.Scale.parse("A=1,B=0")).text
    assert "## Response A\nMet.\n\n## Response B\nIt sat.\n\n## Question\nWhich response is better?\n" in text
    assert text.endswith("Answer with one letter, A or B.<|end|>\n<|start|>assistant\nAnswer:")
    ties = probes.Scale.parse("A=1,tie=0.5,B=0")
    assert "Answer with one of A, tie, B." in render(tiny.tokenizer(), judge, item, ties).text
    asked = replace(item, criterion="style", fields=fields | {"criterion_text": "Is it short?"})
    text = render(tiny.tokenizer(), judge, asked, probes.Scale.parse("A=1,B=0")).text
    assert "## Criterion\nstyle: Is it short?\n\n## Question\nWhich response is better by this criterion?\n" in text


@pytest.mark.parametrize(("scale", "labels"), [("1..5", ("1", "5")), ("yes/no", ("no", "yes"))])
def test_reasoning_template_asks_for_what_the_anchor_finds(scale, labels):
    parsed = probes.Scale.parse(scale)
    text = render(tiny.tokenizer(), load_template("reasoning"), FULL, parsed).text
    assert text.endswith("<|end|>\n<|start|>assistant\n")
    assert all(label in text for label in labels)
    # A model that repeats the instruction has not given a score yet.
    finder = ScoreFinder(ScoreRule(), parsed, {ord(letter): 0 for letter in "15"}, lambda ids: "".join(map(chr, ids)))
    asked = text[text.index("Give your reasons") : text.index("<|end|>\n<|start|>assistant")]
    assert not any(finder.feed(ord(letter)) for letter in asked)
    assert finder.result() is None


def test_words_template_has_five_examples():
    prompt = render(tiny.tokenizer(), load_template("words"), FULL, SCALE)
    assert prompt.text.count("<|start|>assistant") == 6
    assert 'word "A committee met." is on a scale from 1 to 5, where 1 is very negative' in prompt.text


def test_item_text_is_data_not_template():
    hostile = probes.Item(id="h", fields={"response": "{{ 7 * 7 }} {% raw %} {{ scale.__class__ }}"})
    assert "{{ 7 * 7 }} {% raw %}" in render(tiny.tokenizer(), template(), hostile, SCALE).text


def test_templates_cannot_reach_python():
    reaching = template(user="{{ response.__class__.__mro__ }}")
    with pytest.raises(TemplateError, match="is unsafe"):
        render(tiny.tokenizer(), reaching, FULL, SCALE)


def test_a_shot_never_borrows_the_items_fields():
    borrowing = template(user="{{ context }} {{ response }}", shots=SHOTS)
    with pytest.raises(TemplateError) as error:
        render(tiny.tokenizer(), borrowing, FULL, SCALE)
    assert str(error.value) == (
        "template 't', user, at few-shot example 1: 'context' is undefined; there are: criterion, response, scale; "
        "give few-shot example 1 a field context, or correct the template"
    )


def test_templates_load_from_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("user: 'Rate {{ response }}'\nshots:\n- {fields: {response: x}, answer: 3}\nprefill: 'A:'\n")
    loaded = load_template(path)
    assert loaded.name == "mine"
    assert loaded.shots[0].answer == "3"
    assert probes.Template.from_dict(loaded.to_dict()) == loaded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user: 'Rate {{ response'",
            "template 'mine', user, line 1: unexpected end of template, expected 'end of print statement'.; "
            "correct the Jinja2 text",
        ),
        ("system: x", "template 'mine' has no user text; add a `user:` entry"),
        (
            "users: x",
            "template 'mine' has unknown entries users (did you mean user?); "
            "known: chat_options, control_tokens, first_label, name, pair, plain, prefill, separator, shots, system, "
            "user",
        ),
        ("user: [1]", "template 'mine': `user` must be text, got [1]"),
        (
            "- 1",
            "template 'mine': expected entries such as `user:`, got a list; write `user: |-`, "
            "and the text of the user turn indented below it",
        ),
        (
            "user: x\nshots: [{fields: {response: no}, answer: 1}]",
            "template 'mine', few-shot example 1, response: False is not text; put quotes around it",
        ),
        ("user: x\nshots: [{a: 1}]", "template 'mine', few-shot example 1: give `fields:` (name: text) and `answer:`"),
    ],
)
def test_a_broken_template_says_where(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TemplateError) as error:
        load_template(path)
    assert str(error.value) == message


def test_an_unknown_template_lists_the_known():
    with pytest.raises(TemplateError) as error:
        load_template("rubrik")
    names = ["bbh", "bigbench", "g-eval", "pair", "reasoning", "rubric", "words"]
    assert (
        str(error.value)
        == f"no template 'rubrik' (did you mean rubric?): give a YAML file or one of {', '.join(names)}"
    )
    assert template_names() == names


def test_a_chat_template_that_prints_the_date_gives_one_prompt_for_ever():
    dated = "Today is {{ strftime_now('%d %b %Y') }}.\n" + tiny.CHAT_TEMPLATE
    assert render(tiny.tokenizer(chat_template=dated), template(), FULL, SCALE).text.startswith("Today is 26 Jul 2024.")

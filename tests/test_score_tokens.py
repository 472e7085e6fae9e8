"""Which tokens spell the labels, on the three kinds of tokenizer and on SmolLM2's own."""

from __future__ import annotations

import pytest

import probes
from probes.encoding import encode
from probes.errors import ScoreTokenError
from probes.rendering import Prompt
from probes.score_tokens import find_score_tokens
from tests import tiny

KINDS = ("digits", "merged", "sentencepiece")


def prompt(tokenizer, text: str) -> Prompt:
    return Prompt(text, tuple(encode(tokenizer, text, special_tokens=False)))


def found(kind: str, text: str, scale: str, separator: str = "", **options):
    tokenizer = tiny.tokenizer(kind)
    tokens = find_score_tokens(tokenizer, prompt(tokenizer, text), probes.Scale.parse(scale, **options), separator)
    return tokenizer, tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["1..5", "0..9", "A..E", "A=4,C=2,E=1"])
@pytest.mark.parametrize(("text", "separator"), [("Rate it.\n", ""), ("Score:", " ")])
def test_reading_behind_the_lead_finds_the_label(kind, scale, text, separator):
    """Whatever the tokenizer does, prompt + lead + token must decode to prompt + separator + label."""
    tokenizer, tokens = found(kind, text, scale, separator)
    labels = probes.Scale.parse(scale).labels
    start = prompt(tokenizer, text).token_ids
    exact = {label: encode(tokenizer, text + separator + label, special_tokens=False) for label in labels}
    for index, label in enumerate(labels):
        spelled = tokens.token_ids[tokens.label_index == index]
        assert exact[label] in [[*start, *tokens.lead_ids, token] for token in spelled.tolist()]
        assert {tokenizer.decode([token]).strip() for token in spelled.tolist()} == {label}


@pytest.mark.parametrize("kind", ["digits", "sentencepiece"])
def test_a_space_that_every_label_starts_with_moves_the_read(kind):
    tokenizer, tokens = found(kind, "Score:", "1..5", " ")
    assert len(tokens.lead_ids) == 1
    assert tokenizer.decode(list(tokens.lead_ids)).strip() == ""
    assert len(tokens.token_ids) == 5


def test_merged_spaces_count_as_a_second_spelling():
    tokenizer, tokens = found("merged", "Score:", "1..5", " ")
    assert tokens.lead_ids == ()
    assert tokens.spellings == (" 1", "1", " 2", "2", " 3", "3", " 4", "4", " 5", "5")
    assert tokens.label_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    _, bare = found("merged", "Score:", "1..5", " ", bare=True)
    assert bare.spellings == (" 1", " 2", " 3", " 4", " 5")


def test_case_adds_capitalised_forms():
    _, tokens = found("merged", "Answer:", "yes/no", " ", case=True)
    assert tokens.spellings == (" no", "no", " No", "No", " yes", "yes", " Yes", "Yes")
    assert tokens.label_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_smollm2s_own_tokenizer(smollm2):
    p = prompt(smollm2.tokenizer, "<|im_start|>assistant\nScore:")
    tokens = find_score_tokens(smollm2.tokenizer, p, probes.Scale.parse("1..5"), " ")
    assert smollm2.tokenizer.convert_ids_to_tokens(list(tokens.lead_ids)) == ["Ġ"]
    assert smollm2.tokenizer.convert_ids_to_tokens(tokens.token_ids.tolist()) == list("12345")
    bare = find_score_tokens(smollm2.tokenizer, p, probes.Scale.parse("1..5"), "")
    assert bare.lead_ids == ()
    words = find_score_tokens(smollm2.tokenizer, p, probes.Scale.parse("yes/no", case=True), " ")
    assert words.spellings == (" no", "no", " No", "No", " yes", "yes", " Yes", "Yes")


def test_a_label_of_several_tokens_is_named():
    with pytest.raises(ScoreTokenError) as error:
        found("digits", "Score it.\n", "1..10")
    assert str(error.value) == (
        "no single token spells the labels '10' (2 tokens: '1' '0'); choose labels that are one token each, for "
        "example 1..5 or A..E (--scale)"
    )


def test_labels_that_share_a_token_are_named():
    with pytest.raises(ScoreTokenError) as error:
        found("merged", "Answer:", "yes=1,Yes=2", " ", case=True)
    assert str(error.value).startswith("the labels 'yes' and 'Yes' share the token ")
    assert str(error.value).endswith("choose labels that the tokenizer tells apart")


def test_unequal_numbers_of_spellings_are_refused():
    with pytest.raises(ScoreTokenError) as error:
        found("merged", "Answer:", "yes=1,No=2", " ", case=True)
    assert str(error.value) == (
        "the labels have unequal numbers of spellings ('yes': [' yes', 'yes', ' Yes', 'Yes'], 'No': [' No', 'No']), "
        "which would favour some; use bare=True to count the exact text only"
    )


def test_a_label_that_changes_the_prompts_tokens_prints_both():
    with pytest.raises(ScoreTokenError) as error:
        found("merged", "Reply with the number only. ", "1..5")
    message = str(error.value)
    assert message.startswith("the label text '1' changes the tokens of the prompt in front of it: ")
    assert " becomes " in message
    assert message.endswith("end the template where a token ends, for example without a trailing space")

"""Which tokens of a choice are scored: those that tell the choices of an item apart."""

from __future__ import annotations

import logging
from itertools import product

import numpy as np
import pytest

import probes
from probes.choice_tokens import told_apart
from probes.decoding import Decoding
from probes.errors import RunFileError
from probes.items import Item, Items
from probes.judge import Judge
from tests import tiny
from tests.test_choices_capture import make_judge, plain_logprob


def lettered(n_items: int = 6, letters: str = "ABC") -> Items:
    choices = tuple(f"({letter})" for letter in letters)
    return Items(
        Item(
            f"q{number}",
            {"prompt": f"Q: {'very ' * (number % 3)}good word {number}\nA:"},
            choices=choices,
            choice_scores=tuple(float(place == number % len(choices)) for place in range(len(choices))),
        )
        for number in range(n_items)
    )


@pytest.mark.parametrize(
    ("given", "lead", "kept"),
    [
        ([[1, 5, 2], [1, 6, 2]], [1], [[5], [6]]),  # "(A)" and "(B)"
        ([[1, 2, 5, 7], [1, 2, 6]], [1, 2], [[5, 7], [6]]),
        ([[5, 9, 9], [6, 7, 9, 9]], [], [[5], [6, 7]]),
        ([[5], [6]], [], [[5], [6]]),
        # Every choice keeps a token.
        ([[1], [1, 2], [1, 3]], [], [[1], [1, 2], [1, 3]]),
        ([[1, 2], [1, 2, 3]], [1], [[2], [2, 3]]),
        ([[9], [5, 9]], [], [[9], [5, 9]]),
        ([[7, 7], [7, 7, 7]], [7], [[7], [7, 7]]),
        # The end tells "3." from "35.": without it the shorter would be part of the longer.
        ([[3, 9], [3, 5, 9]], [3], [[9], [5, 9]]),
        ([[1, 3, 9], [1, 3, 5, 9], [1, 4, 9]], [1], [[3, 9], [3, 5, 9], [4, 9]]),
        ([[3, 8, 9], [3, 5, 8, 9], [4, 8, 9]], [], [[3, 8], [3, 5, 8], [4, 8]]),
        # Two that a tokenizer makes the same stay the same.
        ([[1, 5, 2], [1, 5, 2], [1, 6, 2]], [1], [[5], [5], [6]]),
        ([[1, 5, 2]], [], [[1, 5, 2]]),
    ],
)
def test_what_all_choices_share_at_their_ends_is_not_scored(given, lead, kept):
    assert told_apart(given, lead=True) == (lead, kept)
    assert told_apart(given, lead=False)[0] == []


def begins(first, second):
    return second[: len(first)] == first


def test_no_choice_loses_its_last_token_or_becomes_part_of_another():
    words = [list(one) for size in (1, 2, 3) for one in product((1, 2), repeat=size)]
    for choices in product(words, repeat=3):
        lead, kept = told_apart(list(choices), lead=True)
        for whole, part in zip(choices, kept, strict=True):
            assert part
            assert begins(lead + part, whole)
        tails = {tuple(whole[len(lead + part) :]) for whole, part in zip(choices, kept, strict=True)}
        assert len(tails) == 1
        for first, second in product(range(3), repeat=2):
            assert begins(kept[first], kept[second]) == begins(choices[first], choices[second])


def test_a_letter_in_parentheses_is_scored_as_the_letter_behind_the_parenthesis(booted, tmp_path):
    run = probes.capture(make_judge(booted), lettered(), tmp_path / "run.h5", batch_tokens=200)
    tokenizer = tiny.tokenizer()
    assert set(run.choices.n_tokens) == {1}
    for item in range(6):
        text = lettered()[item].fields["prompt"] + " ("
        assert run.token_ids[item].tolist() == tokenizer(text)["input_ids"]
        for row in run.choices.rows([item]).tolist():
            assert tokenizer.decode(run.choices.tokens[row]) == run.choices.labels[row].strip("()")
            expected = plain_logprob("llama", run.token_ids[item].tolist(), run.choices.tokens[row].tolist())
            np.testing.assert_allclose(run.choice_logprob()[row], expected, rtol=1e-4, atol=2e-4)
    # The state that is stored is the one that the letter comes from.
    np.testing.assert_array_equal(run.position, [len(ids) - 1 for ids in run.token_ids])
    assert probes.verify(run.path) == []


def test_answers_are_written_behind_the_prompt_as_it_stands(booted, tmp_path):
    decoding = Decoding.of("generate", choices=True, max_new_tokens=3)
    judge = make_judge(booted, condition="generate", decoding=decoding)
    run = probes.capture(judge, lettered(), tmp_path / "text.h5")
    direct = probes.capture(make_judge(booted), lettered(), tmp_path / "direct.h5")
    for item, ids in enumerate(run.token_ids):
        assert ids.tolist() == tiny.tokenizer()(lettered()[item].fields["prompt"])["input_ids"]
        rows = run.choices.rows([item]).tolist()
        assert [run.choices.tokens[row].tolist()[-1:] for row in rows] == [
            direct.choices.tokens[row].tolist() for row in rows
        ]
        # What all share has one probability, which no choice between them sees.
        apart = run.choice_logprob()[rows] - direct.choice_logprob()[rows]
        np.testing.assert_allclose(apart, np.broadcast_to(apart[:1], apart.shape), atol=2e-4)
    assert probes.verify(run.path) == []


def test_texts_that_all_count_as_right_are_scored_whole(booted, tmp_path):
    items = Items(
        [
            Item("one", {"prompt": "Q: a\nA:"}, choices=("(A)",), choice_scores=(1,)),
            Item("two", {"prompt": "Q: a\nA:"}, choices=("(A)", "(B)"), choice_scores=(1, 1)),
        ]
    )
    run = probes.capture(make_judge(booted), items, tmp_path / "run.h5")
    whole = [tiny.tokenizer()("Q: a\nA: " + label)["input_ids"] for label in run.choices.labels]
    for row, item in enumerate(run.choices.item.tolist()):
        assert run.token_ids[item].tolist() + run.choices.tokens[row].tolist() == whole[row]


def test_runs_that_score_other_tokens_of_the_choices_are_not_mixed(booted, tmp_path, monkeypatch):
    """A run of the rule before, under which all tokens of a choice were scored, opens and is not added to."""
    items, judge = lettered(8), make_judge(booted)
    describe = Judge.describe
    with monkeypatch.context() as before:
        before.setattr("probes.judge.told_apart", lambda tokens, lead: ([], tokens))
        before.setattr(
            Judge, "describe", lambda self: {k: v for k, v in describe(self).items() if k != "choice_tokens"}
        )
        probes.capture(judge, items[:4], tmp_path / "old.h5").close()
    with probes.open_run(tmp_path / "old.h5") as old:
        assert min(old.choices.n_tokens) > 1
        assert probes.verify(old.path) == []
    for asked in (items, items[4:]):
        with pytest.raises(RunFileError, match=r"differs in judge\.choice_tokens \(null, now \"apart\"\)"):
            probes.capture(judge, asked, tmp_path / "old.h5", extend=True)
    with pytest.raises(RunFileError, match=r"judge\.choice_tokens"):
        probes.capture(judge, items[:4], tmp_path / "old.h5")
    new = probes.capture(judge, items[4:], tmp_path / "new.h5")
    with probes.open_run(tmp_path / "old.h5") as old, pytest.raises(RunFileError, match=r"judge\.choice_tokens"):
        probes.merge([old, new], tmp_path / "both.h5")


def test_the_hash_of_a_judge_of_labels_is_what_it_was(booted):
    judge = make_judge(booted, scale=probes.Scale.parse("1..5"))
    judge.prompts(lettered())
    assert "choice_tokens" not in judge.describe()


class TestMass:
    def warned(self, judge, items, path, caplog):
        with caplog.at_level(logging.INFO, "probes"):
            run = probes.capture(judge, items, path)
        said = [one for one in caplog.records if "the choices hold" in one.message]
        assert len(said) == 1
        return run, said[0]

    def test_choices_that_the_model_would_not_say_are_warned_about(self, booted, tmp_path, caplog):
        run, said = self.warned(make_judge(booted), lettered(), tmp_path / "run.h5", caplog)
        assert run.final_mass.mean() < 0.2
        assert said.levelno == logging.WARNING
        assert f"the choices hold only {run.final_mass.mean():.3f} of the probability of all answers" in said.message
        assert "worked examples" in said.message
        assert "\n" not in said.message

    def test_what_a_token_holds_counts_where_choices_are_long(self, booted, tmp_path, caplog, monkeypatch):
        long = ("yes A", "no B B")
        items = Items([Item(f"q{k}", {"prompt": f"Q: {k}\nA:"}, choices=long, choice_scores=(1, 0)) for k in range(3)])
        run = probes.capture(make_judge(booted), items, tmp_path / "run.h5")
        held = run.final_mass.astype(float)
        a_token = float(np.mean(held ** (2 / run.choices.n_tokens[:2].sum())))
        for limit, level in ((1.1 * a_token, logging.WARNING), (0.9 * a_token, logging.INFO)):
            assert held.mean() < limit
            monkeypatch.setattr("probes.capturing.pipeline.LOW_MASS", limit)
            caplog.clear()
            _, said = self.warned(make_judge(booted), items, tmp_path / f"{level}.h5", caplog)
            assert said.levelno == level
            assert f"{a_token:.3f} a token" in said.message

    def test_the_answer_in_free_text_is_no_choice_to_be_said(self, booted, tmp_path, caplog):
        items = Items([Item("a", {"prompt": "Q: a\nA:"}, choices=("yes",), choice_scores=(1,))])
        with caplog.at_level(logging.WARNING, "probes"):
            probes.capture(make_judge(booted), items, tmp_path / "run.h5")
        assert "the choices hold" not in caplog.text

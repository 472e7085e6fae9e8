"""Choices behind generated answers and chains of thought."""

from __future__ import annotations

import numpy as np
import torch

import probes
from probes.answers import AnswerFinder
from probes.choices.ragged import log_softmax
from probes.decoding import Decoding
from probes.locate import ScoreRule
from probes.store.format import Status
from tests import tiny
from tests.test_choices_capture import choice_items, make_judge, plain_logprob


class TestGeneratedAnswers:
    def judge(self, booted, condition, **options):
        decoding = Decoding.of(condition, choices=True, **options)
        return make_judge(booted, condition=condition, decoding=decoding)

    def test_choices_of_free_answers_are_read_behind_the_prompt(self, booted, tmp_path):
        direct = probes.capture(make_judge(booted), choice_items(4), tmp_path / "direct.h5")
        run = probes.capture(self.judge(booted, "generate", max_new_tokens=6), choice_items(4), tmp_path / "text.h5")
        # What all choices of an item start in is no part of a prompt behind which an answer is written.
        ours, theirs = (log_softmax(one.choice_logprob(), one.choices.offsets) for one in (run, direct))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
        alone = run.choices.n_tokens == direct.choices.n_tokens
        assert 0 < alone.sum() < len(alone)
        np.testing.assert_allclose(run.choice_logprob()[alone], direct.choice_logprob()[alone], atol=1e-4)
        model = tiny.hf_model("llama").eval()
        for ids, made in zip(run.token_ids, run.generated_ids, strict=True):
            with torch.no_grad():
                whole = model.generate(torch.tensor([ids.tolist()]), max_new_tokens=6, do_sample=False)[0].tolist()
            assert whole[len(ids) : len(ids) + len(made)] == made.tolist()
        assert probes.verify(run.path) == []

    def test_behind_reasoning_the_choices_follow_what_leads_to_the_answer(self, booted, tmp_path):
        items = choice_items(6)
        plain = probes.capture(self.judge(booted, "generate", max_new_tokens=12, stop=()), items, tmp_path / "text.h5")
        # A tiny model never says "the answer is"; what it does say in one text leads to the answer here.
        texts = plain.generated_text
        anchor = next(text[4:7] for text in texts if text[4:7].isalpha())
        judge = self.judge(booted, "reasoning", rule=ScoreRule("anchor", anchor), max_new_tokens=12)
        run = probes.capture(judge, items, tmp_path / "run.h5")
        found = [anchor in text for text in texts]
        assert sum(found) > 0
        np.testing.assert_array_equal(run.item_status == Status.OK, found)
        np.testing.assert_array_equal(run.item_status == Status.NO_SCORE, ~np.array(found))
        decode = judge.tokenizer.decode
        for item in np.flatnonzero(found).tolist():
            cut = int(run.position[item]) + 1 - len(run.token_ids[item])
            made = run.generated_ids[item][:cut].tolist()
            assert anchor in decode(made)
            assert anchor not in decode(made[:-1])
            for row in run.choices.rows([item]).tolist():
                behind = run.token_ids[item].tolist() + made
                expected = plain_logprob("llama", behind, run.choices.tokens[row].tolist())
                np.testing.assert_allclose(run.choice_logprob()[row], expected, rtol=1e-4, atol=2e-4)
        assert np.isnan(run.choice_logprob()[~np.array(found)[run.choices.item]]).all()
        assert probes.verify(run.path) == []


class TestAnswerFinder:
    def finder(self, **options):
        words: list[str] = []

        def decode(ids):
            return "".join(words[number] for number in ids)

        made = AnswerFinder(ScoreRule("anchor", r"(?i)\bthe answer is\b:?"), decode, **options)

        def feed(text: str) -> bool:
            words.append(text)
            return made.feed(len(words) - 1)

        return made, feed

    def test_the_answer_ends_with_its_line(self):
        finder, feed = self.finder()
        for text in ("So", " the", " answer", " is"):
            assert not feed(text)
        assert finder.anchored == 4
        assert not feed(" (B)")
        assert finder.anchored == 4
        assert feed(".\n")

    def test_the_first_anchor_counts(self):
        finder, feed = self.finder()
        for text in ("the answer is", " 4", " and", " the answer is", " 5"):
            feed(text)
        assert finder.anchored == 1

    def test_a_stop_text_ends_an_answer_that_has_begun(self):
        finder, feed = self.finder(stop=("\n\n",))
        assert not feed("\n\n")
        assert not feed("word")
        assert feed("\n\n")
        assert finder.anchored is None

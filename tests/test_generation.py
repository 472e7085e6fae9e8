"""Generated answers: the tokens that transformers generates, and the states that emitted the score."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import probes
from probes.capturing import generation
from probes.capturing.engine import Engine
from probes.capturing.support import RESIDUAL_TOLERANCE
from probes.decoding import Decoding
from probes.errors import ProbesError, TemplateError
from probes.locate import ScoreRule
from probes.store.format import Status
from tests import tiny
from tests.test_capture import datasets, make_judge
from tests.test_equality import plain_transformers, relative

PACKED = ("llama", "mistral", "gemma2", "gpt2", "gpt_neox")
PLAIN = ("bloom", "mamba", "lfm2")


def greedy(architecture: str, prompt: list[int], n: int) -> list[int]:
    """What an untouched model generates, each token from a pass over everything before it."""
    model = tiny.hf_model(architecture)
    tokens = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def scripted(monkeypatch, judge, answers: list[str]):
    """Make the judge answer given texts, whatever it would have said; the states stay the model's own.

    Answers are dealt out by reading: the first to the first prompt.
    """
    tokenizer = judge.tokenizer
    end = tokenizer.eos_token_id
    wanted = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in answers]

    def choose(self, step, batch):
        return np.array([wanted[answer.prompt][len(answer.tokens)] for answer in batch])

    monkeypatch.setattr(generation.Generator, "_choose", choose)


def generating(booted, architecture="llama", condition="generate", rule="first", **options):
    options = {"max_new_tokens": 8} | options
    decoding = Decoding.of(condition, rule, **options)
    return make_judge(booted, architecture, condition=condition, decoding=decoding)


@pytest.mark.parametrize("architecture", [*PACKED, *PLAIN])
def test_greedy_answers_are_those_of_plain_transformers(booted, architecture, tmp_path):
    judge, items = generating(booted, architecture, rule="last"), tiny.word_items(6)
    run = probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=100)
    assert run.attr("deviations")["layout"] == ("batched" if architecture in PLAIN else "packed")
    ends = generation.end_tokens(judge)
    for prompt, generated in zip(run.token_ids, run.generated_ids, strict=True):
        wanted = greedy(architecture, prompt.tolist(), 8)
        stop = next((k for k, token in enumerate(wanted) if token in ends), len(wanted))
        assert generated.tolist() == wanted[:stop]


@pytest.mark.parametrize("architecture", [*PACKED, *PLAIN])
def test_states_are_those_that_emitted_the_score(booted, architecture, tmp_path, monkeypatch):
    judge, items = generating(booted, architecture, rule="anchor", max_new_tokens=60), tiny.word_items(5)
    answers = ["Score: 4", "I see 3 problems, so Score: 2.\n", "no idea", "Score: 5, Score: 1", "It is fair. Score: 3 "]
    scripted(monkeypatch, judge, answers)
    run = probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=120)
    assert [Status(status).name for status in run.status] == ["OK", "OK", "NO_SCORE", "OK", "OK"]
    assert np.isnan(run.residual()[2]).all()
    spelled = dict(zip(judge.score_tokens.token_ids, judge.score_tokens.label_index, strict=True))
    for row, label in ((0, 4), (1, 2), (3, 5), (4, 3)):
        whole = [*run.token_ids[row].tolist(), *run.generated_ids[row].tolist()]
        position = int(run.position[row])
        assert spelled[whole[position + 1]] == label - 1
        residual, logits = plain_transformers(architecture, [whole[: position + 1]])
        assert relative(run.residual()[row], residual[0]) <= RESIDUAL_TOLERANCE
        ours = run.readout.token_logits(run.residual()[row, -1], "norm")
        np.testing.assert_allclose(ours, logits[0, run.readout.token_ids], atol=1e-4)


def test_answers_end_as_early_as_the_rule_allows(booted, tmp_path, monkeypatch):
    judge, items = generating(booted, rule="anchor", max_new_tokens=60), tiny.word_items(3)
    scripted(monkeypatch, judge, ["Score: 4\nbecause it is good", "3 or 4? Score: 2\nbecause", "Score: 5"])
    run = probes.capture(judge, items, tmp_path / "run.h5")
    texts = [text.rstrip() for text in run.generated_text]
    assert texts[0] == "Score: 4"
    assert texts[1] == "3 or 4? Score: 2"
    assert texts[2] == "Score: 5"
    last = generating(booted, rule="last", max_new_tokens=60)
    scripted(monkeypatch, last, ["Score: 4 and so on 2 there", "3 or 4? Score: 2\nbecause", "Score: 5"])
    run = probes.capture(last, items, tmp_path / "last.h5")
    assert run.generated_text[0] == "Score: 4 and so on 2 there"
    assert run.scale.labels[_label(last, run, 0)] == "2"


def _label(judge, run, row: int) -> int:
    whole = [*run.token_ids[row].tolist(), *run.generated_ids[row].tolist()]
    spelled = dict(zip(judge.score_tokens.token_ids, judge.score_tokens.label_index, strict=True))
    return int(spelled[whole[int(run.position[row]) + 1]])


def test_finished_answers_leave_the_batch(booted, tmp_path, monkeypatch):
    judge, items = generating(booted, rule="last", max_new_tokens=60), tiny.word_items(8)
    answers = ["4", *["1 2 3 4 5 " * (k + 1) for k in range(7)]]
    scripted(monkeypatch, judge, answers)
    sizes: list[int] = []
    states = Engine.states

    def counted(self, tokens, wanted, **options):
        sizes.append(len(wanted.rows))
        return states(self, tokens, wanted, **options)

    monkeypatch.setattr(Engine, "states", counted)
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert (run.status == Status.OK).all()
    longest = max(map(len, run.generated_ids))
    # The last sizes are those of the decoding, step by step, but for the check of one answer alone.
    decoding = [size for size in sizes if size > 1][-longest:]
    assert decoding == sorted(decoding, reverse=True)
    assert decoding[0] == 8
    assert decoding[-1] <= 3
    alone = probes.capture(judge, items[:1], tmp_path / "alone.h5")
    assert relative(alone.residual(), run.residual()[:1]) <= RESIDUAL_TOLERANCE


def test_results_do_not_depend_on_the_batch(booted, tmp_path):
    items = tiny.word_items(8)
    runs = []
    for name, options in {
        "one": {"batch_tokens": 1, "share_prefix": False},
        "all": {},
        "some": {"batch_tokens": 90},
    }.items():
        judge = generating(booted, rule="first", max_new_tokens=24, temperature=1.0, samples=6, seed=5)
        runs.append(probes.capture(judge, items, tmp_path / f"{name}.h5", **options))
    for run in runs[1:]:
        assert run.generated_text == runs[0].generated_text
        np.testing.assert_array_equal(run.status, runs[0].status)
        captured = run.status == Status.OK
        assert captured.sum() >= 3
        assert relative(run.residual()[captured], runs[0].residual()[captured]) <= RESIDUAL_TOLERANCE


def test_samples_have_seeds_of_their_own(booted, tmp_path):
    items = tiny.word_items(4)
    first = generating(booted, temperature=1.5, samples=4, seed=1, max_new_tokens=6)
    run = probes.capture(first, items, tmp_path / "1.h5")
    assert len(run.generated_text) == 16
    assert run.readings.item.tolist() == [item for item in range(4) for _ in range(4)]
    assert run.readings.sample.tolist() == [0, 1, 2, 3] * 4
    assert len(set(run.generated_text)) > 8
    other = generating(booted, temperature=1.5, samples=4, seed=2, max_new_tokens=6)
    assert probes.capture(other, items, tmp_path / "2.h5").generated_text != run.generated_text
    # What is drawn for an item does not depend on the items beside it.
    subset = probes.capture(first, items[1:2], tmp_path / "3.h5")
    assert subset.generated_text == run.generated_text[4:8]


def test_sampling_follows_the_distribution():
    decoding = Decoding(ScoreRule(), 5, samples=2, temperature=2.0)
    logits = torch.tensor([[0.0, 1.0, 2.0, -50.0]]).repeat(4000, 1)
    batch = [SimpleNamespace(random=decoding.generator("item", sample)) for sample in range(4000)]
    step = SimpleNamespace(logits=logits)
    drawn = inspect.unwrap(generation.Generator._choose)(SimpleNamespace(_decoding=decoding), step, batch)
    wanted = torch.softmax(logits[0] / 2, -1).numpy()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, wanted, atol=0.03)


def test_a_killed_generation_resumes_to_the_same_bytes(booted, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 2)
    items = tiny.word_items(8)
    judge = generating(booted, temperature=1.0, samples=1, seed=3)
    probes.capture(judge, items, tmp_path / "whole.h5", batch_tokens=100)
    original, calls = generation.Generator.run_shard, [0]

    def dies(self, shard):
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(self, shard)

    monkeypatch.setattr(generation.Generator, "run_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=100)
    monkeypatch.setattr(generation.Generator, "run_shard", original)
    probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=100)
    assert datasets(tmp_path / "run.h5") == datasets(tmp_path / "whole.h5")


def test_decoding_that_goes_wrong_is_found_and_dropped(booted, tmp_path, monkeypatch, caplog):
    """Answers that see their neighbours' keys must not survive the first pass."""
    from probes.capturing.decoders import _AnswerAttention

    original = _AnswerAttention.begin

    def wrong(self):
        original(self)
        self._keys = [key.flip(0) for key in self._keys]

    monkeypatch.setattr(_AnswerAttention, "begin", wrong)
    judge, items = generating(booted, rule="last", max_new_tokens=20), tiny.word_items(4)
    scripted(monkeypatch, judge, ["It is 4", "Perhaps 3", "No, 1", "Well, 2"])
    with caplog.at_level(logging.WARNING):
        run = probes.capture(judge, items, tmp_path / "run.h5")
    assert "packed answers differ by" in caplog.text
    assert run.attr("deviations")["answers"] == "cached"
    for row in range(4):
        whole = [*run.token_ids[row].tolist(), *run.generated_ids[row].tolist()][: int(run.position[row]) + 1]
        assert relative(run.residual()[row], plain_transformers("llama", [whole])[0][0]) <= RESIDUAL_TOLERANCE


def test_decoding_is_checked_even_where_nothing_has_a_score(booted, tmp_path, monkeypatch):
    """Wrong keys make gibberish, which has no score to look at."""
    from probes.capturing.decoders import _AnswerAttention

    original = _AnswerAttention.begin

    def wrong(self):
        original(self)
        self._keys = [key.flip(0) for key in self._keys]

    monkeypatch.setattr(_AnswerAttention, "begin", wrong)
    judge, items = generating(booted, rule="anchor", max_new_tokens=6), tiny.word_items(4)
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert (run.status == Status.NO_SCORE).all()
    assert run.attr("deviations")["answers"] == "cached"
    for prompt, generated in zip(run.token_ids, run.generated_ids, strict=True):
        assert generated.tolist() == greedy("llama", prompt.tolist(), 6)[: len(generated)]


def test_no_score_is_counted_and_shown(booted, tmp_path, monkeypatch, caplog):
    judge, items = generating(booted, rule="anchor", max_new_tokens=20), tiny.word_items(3)
    scripted(monkeypatch, judge, ["nothing", "Score: 3", "4.5"])
    with caplog.at_level(logging.WARNING):
        run = probes.capture(judge, items, tmp_path / "run.h5")
    assert "2 of 3 items have no numbers: no_score" in caplog.text
    assert run.generated_text[0] == "nothing"
    assert run.item_status.tolist() == [1, 0, 1]


def test_a_run_without_any_score_is_still_a_run(booted, tmp_path, monkeypatch):
    judge, items = generating(booted, rule="anchor", max_new_tokens=20), tiny.word_items(3)
    scripted(monkeypatch, judge, ["nothing"] * 3)
    run = probes.capture(judge, items, tmp_path / "run.h5", mass=True, entropy=True)
    assert (run.status == Status.NO_SCORE).all()
    assert np.isnan(run.score_logits("norm")).all()


def test_room_for_the_answer_is_part_of_the_limit(booted, tmp_path):
    judge, items = generating(booted, max_new_tokens=8), tiny.word_items(4)
    lengths = judge.prompt_table(items).tokens.lengths
    run = probes.capture(judge, items, tmp_path / "run.h5", max_tokens=int(lengths.max()) + 7)
    assert ((run.status == Status.TOO_LONG) == (lengths == lengths.max())).all()


def test_mass_and_entropy_of_generated_scores(booted, tmp_path, monkeypatch):
    judge, items = generating(booted, rule="last", max_new_tokens=20), tiny.word_items(2)
    scripted(monkeypatch, judge, ["so 4", "well, it is 3"])
    run = probes.capture(judge, items, tmp_path / "run.h5", mass=True, entropy=True)
    np.testing.assert_allclose(run.extra("scale_mass")[:, -1], run.final_mass, rtol=1e-4)
    whole = [*run.token_ids[1].tolist(), *run.generated_ids[1].tolist()][: int(run.position[1]) + 1]
    _, logits = plain_transformers("llama", [whole])
    chance = torch.softmax(torch.tensor(logits[0]).double(), -1).numpy()
    assert run.extra("entropy")[1, -1] == pytest.approx(-(chance * np.log(chance + 1e-300)).sum(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition": "talk"}, "unknown condition 'talk': choose one of direct, generate, reasoning"),
        (
            {"condition": "direct", "rule": "last"},
            "the condition direct generates nothing; choose generate or reasoning (--condition)",
        ),
        (
            {"condition": "generate", "samples": 3},
            "3 samples at temperature 0 would all be equal; give a temperature (--temperature 1)",
        ),
        ({"condition": "generate", "max_new_tokens": 0}, "max_new_tokens and samples must be at least 1"),
        ({"condition": "generate", "temperature": -1.0}, "the temperature must be 0 or a positive number, got -1.0"),
    ],
)
def test_impossible_decoding_is_refused(arguments, message):
    with pytest.raises(ProbesError) as error:
        Decoding.of(**arguments)
    assert str(error.value) == message


def test_decoding_is_part_of_the_judge(booted):
    judges = [
        generating(booted),
        generating(booted, max_new_tokens=9),
        generating(booted, temperature=1.0),
        generating(booted, rule="last"),
        generating(booted, condition="reasoning"),
        make_judge(booted),
    ]
    for judge in judges:
        judge.prompts(tiny.word_items(1))
    assert len({judge.digest() for judge in judges}) == len(judges)
    decoding = judges[2].decoding
    assert Decoding.from_dict(decoding.to_dict()) == decoding


PAIRS = probes.Template(
    name="pairs",
    user="A: {{ response_a }}\nB: {{ response_b }}\nWhich is better, A or B?",
    pair=("response_a", "response_b"),
    first_label="A",
)


def pair_items(n: int = 6) -> probes.Items:
    words = tiny.WORDS
    return probes.Items(
        [
            probes.Item(str(k), {"response_a": words[k], "response_b": words[k + 8]}, human=(float(k % 2),))
            for k in range(n)
        ]
    )


def test_pairs_are_shown_in_both_orders(booted, tmp_path):
    judge = make_judge(booted, template=PAIRS, scale=probes.Scale.parse("A=1,B=0"))
    items = pair_items()
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert len(run.status) == 12
    assert run.readings.swapped.tolist() == [False, True] * 6
    texts = [judge.tokenizer.decode(ids) for ids in run.token_ids]
    assert "A: calm\nB: debt" in texts[0]
    assert "A: debt\nB: calm" in texts[1]

    odds = run.score_logits("norm")[:, :, 1] - run.score_logits("norm")[:, :, 0]  # labels ascend: B, A
    given, swapped = odds[::2], odds[1::2]
    mean = run.item_logits("norm")
    np.testing.assert_allclose(mean[:, :, 1] - mean[:, :, 0], (given - swapped) / 2, atol=1e-4)
    bias = run.position_bias("norm")
    np.testing.assert_allclose(bias["bias"], ((given + swapped) / 2).mean(0), atol=1e-4)
    assert (bias["n"] == 6).all()
    residual, _ = plain_transformers("llama", [ids.tolist() for ids in run.token_ids])
    assert relative(run.residual(), residual) <= RESIDUAL_TOLERANCE


def test_equal_responses_have_no_preference(booted, tmp_path):
    judge = make_judge(booted, template=PAIRS, scale=probes.Scale.parse("A=1,B=0"))
    items = probes.Items([probes.Item("same", {"response_a": "calm", "response_b": "calm"})])
    run = probes.capture(judge, items, tmp_path / "run.h5")
    logits = run.item_logits("norm")
    np.testing.assert_allclose(logits[..., 0], logits[..., 1], atol=1e-5)
    assert run.position_bias("norm")["flipped"].tolist()[1:] == [1.0] * 3


def test_a_pair_needs_its_fields_and_its_scale(booted, tmp_path):
    judge = make_judge(booted, template=PAIRS, scale=probes.Scale.parse("1..5"))
    with pytest.raises(TemplateError, match="says 'A' where the response shown first is better"):
        probes.capture(judge, pair_items(), tmp_path / "run.h5")
    judge = replace(judge, scale=probes.Scale.parse("A=1,B=0"), template=replace(PAIRS, user="{{ response_a }}"))
    with pytest.raises(ProbesError, match="item 'x' has no field 'response_b', which the template's pair names"):
        probes.capture(judge, probes.Items([probes.Item("x", {"response_a": "calm"})]), tmp_path / "run.h5")


def test_pairs_can_be_answered_in_words(booted, tmp_path, monkeypatch):
    decoding = Decoding.of("generate", "first", 8)
    scale = probes.Scale.parse("A=1,B=0")
    judge = make_judge(booted, template=PAIRS, scale=scale, condition="generate", decoding=decoding)
    scripted(monkeypatch, judge, ["A", "B"] * 6)
    run = probes.capture(judge, pair_items(), tmp_path / "run.h5")
    assert (run.item_status == Status.OK).all()


def test_readings_of_the_prompt_do_not_go_with_answers(booted, tmp_path):
    with pytest.raises(ProbesError, match="last_positions and response_mean are read in the condition direct only"):
        probes.capture(generating(booted), tiny.word_items(2), tmp_path / "run.h5", last_positions=2)


def test_a_pair_run_without_residuals_and_norm_logits_is_reported(booted, tmp_path):
    judge = make_judge(booted, template=PAIRS, scale=probes.Scale.parse("A=1,B=0"))
    run = probes.capture(judge, pair_items(), tmp_path / "run.h5", lenses=["raw"], residuals=False)
    assert len(run.position_bias("raw")) == 4

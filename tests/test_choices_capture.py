"""Choices of any length: their log-likelihoods at every layer against plain transformers, and runs that hold them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import probes
from probes.capturing.plan import Behind
from probes.choices.table import ChoiceTable
from probes.errors import ItemError, ProbesError, RunFileError
from probes.items import Item, Items
from probes.models import load_model
from probes.store.format import Status
from probes.token_table import TokenTable, ragged_rows
from tests import tiny
from tests.test_capture import datasets

PLAIN = probes.Template.from_dict({"user": "{{ prompt }}", "plain": True, "separator": " "}, "plain")
LEAD = "Rate how positive or negative the emotion of the word is. Reply with the number only.\n\n"
# One token, several, one that goes on from another, and one that only one item has.
CHOICES = [
    ("yes", "no"),
    ("A", "A B", "a careful judge"),
    ("yes no", "yes A", "yes A B"),
    ("yes", "no", "never at all"),
]


def choice_items(n_items: int = 8) -> Items:
    items = []
    for number in range(n_items):
        choices = CHOICES[number % len(CHOICES)]
        scores = tuple(float(place == number % len(choices)) for place in range(len(choices)))
        prompt = f"{LEAD}Q: {'very ' * (number % 3)}good word {number}\nA:"
        items.append(Item(f"q{number}", {"prompt": prompt}, choices=choices, choice_scores=scores))
    return Items(items)


def make_judge(booted, architecture="llama", **changes):
    loaded = booted(architecture)
    judge = probes.Judge(
        bridge=loaded.bridge,
        tokenizer=loaded.tokenizer,
        template=PLAIN,
        scale=probes.Scale.parse("choices"),
        name=f"tiny-{architecture}",
        weights_hash=loaded.weights_hash,
        attention=loaded.attention,
    )
    return replace(judge, **changes)


def plain_logprob(architecture: str, prompt: list[int], choice: list[int]) -> np.ndarray:
    """Log-likelihood of a choice at every layer, by plain transformers and the model's own modules."""
    model = tiny.hf_model(architecture).eval()
    base = model.base_model
    norm = next(
        getattr(base, name) for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm") if hasattr(base, name)
    )
    with torch.no_grad():
        out = model(torch.tensor([prompt + choice]), output_hidden_states=True)
        cap = getattr(model.config, "final_logit_softcapping", None)
        layers = []
        for state in out.hidden_states[:-1]:
            logits = model.get_output_embeddings()(norm(state))
            layers.append(cap * torch.tanh(logits / cap) if cap else logits)
        layers.append(out.logits)
        logprob = torch.stack([logits[0].float().log_softmax(-1) for logits in layers])
    rows = torch.arange(len(choice)) + len(prompt) - 1
    return logprob[:, rows, torch.tensor(choice)].sum(-1).numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral", "bloom"])
def test_log_likelihoods_are_those_of_plain_transformers(booted, architecture, tmp_path):
    judge, items = make_judge(booted, architecture), choice_items()
    run = probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=200)
    found, table = run.choice_logprob(), run.choices
    assert table is not None
    assert found.shape == (len(table), len(run.layers))
    for item in range(len(items)):
        for row in table.rows([item]).tolist():
            expected = plain_logprob(architecture, run.token_ids[item].tolist(), table.tokens[row].tolist())
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=2e-4)
    # What is scored is the text of the choice behind the prompt, and nothing else.
    for item, row in zip(table.item.tolist(), range(len(table)), strict=True):
        text = items[item].fields["prompt"] + " " + table.labels[row]
        whole = judge.tokenizer(text, add_special_tokens=True)["input_ids"]
        assert run.token_ids[item].tolist() + table.tokens[row].tolist() == whole
    assert probes.verify(run.path) == []


def test_layouts_agree(booted, tmp_path):
    judge, items = make_judge(booted), choice_items(12)
    packed = probes.capture(judge, items, tmp_path / "packed.h5", batch_tokens=150)
    batched = probes.capture(judge, items, tmp_path / "batched.h5", share_prefix=False, batch_tokens=400)
    alone = probes.capture(judge, items, tmp_path / "alone.h5", share_prefix=False, batch_tokens=1)
    assert packed.attr("deviations")["layout"] == "packed"
    assert batched.attr("deviations")["layout"] == "batched"
    for other in (batched, alone):
        np.testing.assert_allclose(packed.choice_logprob(), other.choice_logprob(), atol=1e-4)
        np.testing.assert_allclose(packed.residual(), other.residual(), atol=1e-4)
    assert packed.attr("config")["tokens_after"] < packed.attr("config")["tokens_before"] / 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_captured_within_what_rounding_allows(dtype, tmp_path):
    model = tiny.hf_model("llama").to(dtype).eval()
    loaded = load_model(tiny.hf_model("llama").to(dtype), tokenizer=tiny.tokenizer())
    run = probes.capture(make_judge(lambda _: loaded), choice_items(8), tmp_path / "run.h5", batch_tokens=200)
    assert (run.item_status == Status.OK).all()
    assert run.attr("deviations")["layout"] == "packed"
    found = run.choice_logprob()[:, -1]
    for item, row in zip(run.choices.item.tolist(), range(len(run.choices)), strict=True):
        prompt, choice = run.token_ids[item].tolist(), run.choices.tokens[row].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1].float()
        expected = float(logits.log_softmax(-1)[range(len(choice)), choice].sum())
        # Twice what a logit may be off, for the logit and for the sum over the vocabulary.
        allowed = 2 * len(choice) * 2**-6 * float(logits.abs().max())
        assert abs(found[row] - expected) <= allowed
    assert probes.verify(run.path) == []


def test_the_raw_lens_is_the_output_matrix_alone(booted, tmp_path):
    judge, items = make_judge(booted, "gemma2"), choice_items(4)
    run = probes.capture(judge, items, tmp_path / "run.h5", lenses=("norm", "raw"))
    table = run.choices
    single = [row for row in range(len(table)) if table.n_tokens[row] == 1]
    states = run.residual()[table.item[single]]
    model = judge.bridge.original_model
    with torch.no_grad():
        logits = torch.as_tensor(states) @ model.get_output_embeddings().weight.float().T
    expected = logits.log_softmax(-1)[range(len(single)), :, table.tokens.values[table.tokens.offsets[single]]]
    np.testing.assert_allclose(run.choice_logprob("raw")[single], expected, rtol=1e-4, atol=1e-3)


def test_a_prompt_that_ends_in_a_space_is_read_where_the_word_begins(booted, tmp_path):
    judge = make_judge(booted, template=replace(PLAIN, separator=""))
    spaced = Items([replace(item, fields={"prompt": item.fields["prompt"] + " "}) for item in choice_items(4)])
    healed = probes.capture(judge, spaced, tmp_path / "healed.h5")
    usual = probes.capture(make_judge(booted), choice_items(4), tmp_path / "usual.h5")
    assert [ids.tolist() for ids in healed.token_ids] == [ids.tolist() for ids in usual.token_ids]
    np.testing.assert_array_equal(healed.choice_logprob(), usual.choice_logprob())


def test_an_empty_prompt_starts_at_the_token_that_texts_start_with(booted, tmp_path):
    judge = make_judge(booted, template=replace(PLAIN, separator=""))
    items = Items([Item("a", {"prompt": ""}, choices=("yes", "no"), choice_scores=(1, 0))])
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert run.token_ids[0].tolist() == [judge.tokenizer.bos_token_id]
    expected = plain_logprob("llama", run.token_ids[0].tolist(), run.choices.tokens[0].tolist())
    np.testing.assert_allclose(run.choice_logprob()[0], expected, atol=2e-4)


def test_the_probability_of_all_choices_counts_none_twice(booted, tmp_path):
    run = probes.capture(make_judge(booted), choice_items(4), tmp_path / "run.h5")
    last, table = np.exp(run.choice_logprob()[:, -1].astype(float)), run.choices
    assert run.final_mass[0] == pytest.approx(last[table.rows([0])].sum(), rel=1e-5)
    # "A B" goes on from "A" and is part of it.
    one, _, other = table.rows([1])
    assert run.final_mass[1] == pytest.approx(last[one] + last[other], rel=1e-5)


def test_a_run_reads_selects_merges_and_extends_its_choices(booted, tmp_path):
    judge, items = make_judge(booted), choice_items(9)
    whole = probes.capture(judge, items, tmp_path / "whole.h5")
    assert whole.lenses == ("norm",)
    assert [item.choices for item in whole.items] == [item.choices for item in items]
    assert [item.choice_scores for item in whole.items] == [item.choice_scores for item in items]
    some = whole.select(items=[1, 4, 5], layers=["embed", "1"])
    rows = whole.choices.rows([1, 4, 5])
    np.testing.assert_array_equal(some.choice_logprob(), whole.choice_logprob()[rows][:, [0, 1]])
    np.testing.assert_array_equal(
        whole.choice_logprob(items=["q4", "q1"]), whole.choice_logprob()[whole.choices.rows([4, 1])]
    )
    assert some.choices.labels == tuple(whole.choices.labels[row] for row in rows)
    first = probes.merge([whole.select(items=range(4))], tmp_path / "first.h5")
    rest = probes.merge([whole.select(items=range(4, 9))], tmp_path / "rest.h5")
    again = probes.merge([first, rest], tmp_path / "again.h5")
    ours, theirs = datasets(again.path), datasets(whole.path)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours)
    probes.capture(judge, items[:4], tmp_path / "grown.h5")
    grown = probes.capture(judge, items, tmp_path / "grown.h5", extend=True)
    np.testing.assert_allclose(grown.choice_logprob(), whole.choice_logprob(), atol=1e-4)
    for run in (whole, first, again, grown):
        assert probes.verify(run.path) == []


def test_an_interrupted_capture_shows_what_is_finished_and_goes_on_to_the_same_bytes(booted, tmp_path, monkeypatch):
    from probes.capturing import plan
    from probes.store.writer import RunWriter

    monkeypatch.setattr(plan, "_SHARD_ROWS", 3)
    judge, items = make_judge(booted), choice_items(10)
    whole = probes.capture(judge, items, tmp_path / "whole.h5")
    close, closed = RunWriter.close_shard, []

    def dying(self, number, shard):
        if len(closed) == 2:
            raise KeyboardInterrupt
        closed.append(number)
        close(self, number, shard)

    monkeypatch.setattr(RunWriter, "close_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(judge, items, tmp_path / "torn.h5")
    monkeypatch.setattr(RunWriter, "close_shard", close)
    with probes.open_run(tmp_path / "torn.h5.partial") as partial:
        known = np.isfinite(partial.choice_logprob()).all(axis=1)
        np.testing.assert_array_equal(known, (partial.item_status == Status.OK)[partial.choices.item])
        assert 0 < known.sum() < len(known)
        np.testing.assert_array_equal(partial.choice_logprob()[known], whole.choice_logprob()[known])
    resumed = probes.capture(judge, items, tmp_path / "torn.h5")
    ours, theirs = datasets(resumed.path), datasets(whole.path)
    assert all(ours[name] == theirs[name] for name in theirs)


def test_prompts_that_are_too_long_with_their_choices_are_counted_and_kept(booted, tmp_path):
    judge, items = make_judge(booted), choice_items(4)
    lengths = [len(ids) for ids in probes.capture(judge, items, tmp_path / "a.h5").token_ids]
    run = probes.capture(judge, items, tmp_path / "b.h5", max_tokens=max(lengths))
    # The longest prompt and those whose longest choice leads beyond it.
    assert (run.item_status == Status.TOO_LONG).any()
    assert (run.item_status == Status.OK).any()
    missing = np.isnan(run.choice_logprob()).all(axis=1)
    np.testing.assert_array_equal(missing, (run.item_status != Status.OK)[run.choices.item])
    assert probes.verify(run.path) == []


def test_changed_choices_are_another_run(booted, tmp_path):
    judge, items = make_judge(booted), choice_items(4)
    probes.capture(judge, items, tmp_path / "run.h5").close()
    other = Items([replace(items[0], choices=("yes", "never")), *items[1:]])
    with pytest.raises(RunFileError, match=r"the prompts of 1 items \(first 'q0'\)"):
        probes.capture(judge, other, tmp_path / "run.h5")
    turned = Items([replace(items[0], choice_scores=(0.0, 1.0)), *items[1:]])
    with pytest.raises(RunFileError, match=r"the human scores, texts or labels of 1 items \(first 'q0'\)"):
        probes.capture(judge, turned, tmp_path / "run.h5")


def test_damage_to_choices_is_named(booted, tmp_path):
    run = probes.capture(make_judge(booted), choice_items(4), tmp_path / "run.h5")
    run.close()

    def faults(change) -> str:
        path = tmp_path / "damaged.h5"
        shutil.copy(run.path, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return "\n".join(map(str, probes.verify(path)))

    def put(name, index, value):
        def change(file):
            file[name][index] = value

        return change

    assert "/choices/item row 1: is 3; that of the offsets is 0" in faults(put("choices/item", 1, 3))
    assert "/choices/n_tokens" in faults(put("choices/n_tokens", 0, 9))
    assert "/choices/score" in faults(put("choices/score", 0, -1))
    assert "is no log-likelihood" in faults(put("capture/choice_logprob/norm", (0, 0), 1.0))
    assert "/items/items_hash" in faults(put("choices/token_ids/values", 0, 7))
    assert "/choices/offsets" in faults(put("choices/offsets", 1, 99))
    assert "/choices/label" in faults(put("choices/label/values", 0, 0xFF))


def test_what_does_not_go_together_is_refused(booted, tmp_path):
    items = choice_items(4)
    with pytest.raises(ItemError, match="the items have choices of their own, but the judge answers on the scale 1..5"):
        probes.capture(make_judge(booted, scale=probes.Scale.parse("1..5")), items, tmp_path / "a.h5")
    with pytest.raises(ItemError, match="the judge chooses between the choices of an item, and the items have none"):
        probes.capture(make_judge(booted), tiny.word_items(), tmp_path / "a.h5")
    with pytest.raises(ProbesError, match="no extra readings are taken"):
        probes.capture(make_judge(booted), items, tmp_path / "a.h5", mass=True)
    with pytest.raises(ProbesError, match="without a lens no choice is scored"):
        probes.capture(make_judge(booted), items, tmp_path / "a.h5", lenses=())
    run = probes.capture(make_judge(booted), items, tmp_path / "a.h5")
    with pytest.raises(RunFileError, match="has choices of its items and no labels"):
        run.score_logits()
    with pytest.raises(RunFileError, match="were not scored under the lens 'raw'"):
        run.choice_logprob("raw")
    with pytest.raises(ItemError, match="has the choice 'yes' twice"):
        Items([Item("a", {}, choices=("yes", "yes"))])
    with pytest.raises(ItemError, match="give all items choices, or none"):
        Items([Item("a", {}, choices=("yes", "no")), Item("b", {})])


def test_a_plan_counts_what_choices_share():
    tokens = TokenTable.from_lists([[5, 6, 7], [5, 6, 8], [9], [5, 6, 7], [4, 4]])
    table = ChoiceTable(np.array([0, 3, 5]), tuple("abcde"), np.zeros(5), tokens)
    found = Behind.of(TokenTable.from_lists([[1, 2, 3], [1]]), table)
    assert found.shared.tolist() == [2, 3]
    assert found.whole.tolist() == [3 * 3 + 4, 2 + 3]
    assert found.longest.tolist() == [2, 2]
    assert found.reads.tolist() == [3, 4]


def test_ragged_rows():
    offsets = np.array([0, 2, 2, 5, 6])
    assert ragged_rows(offsets, np.array([2, 0])).tolist() == [2, 3, 4, 0, 1]
    assert ragged_rows(offsets, np.array([1])).tolist() == []
    assert ragged_rows(offsets, np.array([], dtype=int)).tolist() == []

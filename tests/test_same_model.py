"""One model that is loaded, asked and named more than once stays one model."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import probes
from probes.errors import ModelError
from tests import tiny
from tests.test_capture import TEMPLATE


def judge_of(model, **options):
    options = {"template": TEMPLATE, "human_range": "-4..4", "tokenizer": tiny.tokenizer()} | options
    return probes.Judge.load(model, **options)


def numbers(run):
    return run.residual(), run.score_logits("norm"), run.final_mass


def same_capture(judge, first, path):
    """A judge captures what another run of the same model holds, to the last bit and in the same way."""
    run = probes.capture(judge, tiny.word_items(6), path)
    for ours, theirs in zip(numbers(run), numbers(first), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run.attr("deviations") == first.attr("deviations"), "the same layout and attention, nothing fell back"
    assert run.attr("config")["attention"] == first.attr("config")["attention"]
    assert run.judge_hash == first.judge_hash


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "phi"])
@pytest.mark.parametrize("kept", [True, False], ids=["first judge in use", "first judge gone"])
def test_a_model_loaded_twice_is_captured_as_the_first_time(architecture, kept, tmp_path):
    model = tiny.hf_model(architecture)
    judge = judge_of(model)
    first = probes.capture(judge, tiny.word_items(6), tmp_path / "first.h5")
    assert first.attr("deviations")["layout"] == "packed"
    bridge = judge.bridge if kept else None
    for number in range(2):
        judge = None
        gc.collect()  # where nobody else holds the bridge of the judge before, it is gone
        judge = judge_of(model)
        assert bridge is None or judge.bridge is bridge
        same_capture(judge, first, tmp_path / f"again{number}.h5")
    same_capture(judge_of(judge.bridge, tokenizer=None), first, tmp_path / "bridge.h5")
    same_capture(judge_of(copy.deepcopy(model)), first, tmp_path / "copy.h5")
    same_capture(judge, first, tmp_path / "after the copy.h5")


def test_a_bridge_serves_several_judges(tmp_path):
    one = judge_of(tiny.hf_model())
    other = judge_of(one.bridge, template=replace(TEMPLATE, user="{{ response }}: from 1 to 5?"))
    assert (other.weights_hash, other.attention) == (one.weights_hash, one.attention)
    assert other.bridge is one.bridge
    asked = probes.capture(other, tiny.word_items(4), tmp_path / "other.h5")
    first = probes.capture(one, tiny.word_items(6), tmp_path / "first.h5")
    same_capture(judge_of(one.bridge), first, tmp_path / "again.h5")
    assert asked.attr("deviations")["layout"] == first.attr("deviations")["layout"] == "packed"


def test_a_model_that_was_moved_takes_its_bridge_along():
    judge = judge_of(tiny.hf_model())
    judge.bridge.cfg.device = "cuda"
    assert judge_of(judge.bridge.original_model).bridge.cfg.device == "cpu"


def test_a_model_in_a_bridge_of_somebody_else_is_refused_until_the_bridge_is_known(tmp_path):
    model = tiny.hf_model()
    model.config.architectures = ["LlamaForCausalLM"]
    bridge = TransformerBridge.boot_transformers(
        "LlamaForCausalLM", hf_model=model, tokenizer=tiny.tokenizer(), device="cpu"
    )
    with pytest.raises(ModelError) as error:
        judge_of(model)
    assert str(error.value) == (
        "the loaded model 'LlamaForCausalLM' is in a TransformerBridge; give that bridge in its place"
    )
    first = probes.capture(judge_of(bridge), tiny.word_items(6), tmp_path / "first.h5")
    assert first.attr("deviations")["layout"] == "packed"
    same_capture(judge_of(model), first, tmp_path / "again.h5")


def test_a_model_that_is_changed_back_is_what_it_was():
    model = tiny.hf_model("gpt2")
    before = judge_of(model)
    weight = next(model.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
        changed = judge_of(model)
        weight.copy_(kept)
    assert changed.weights_hash != before.weights_hash
    assert changed.weights_hash_v1 == "", "nobody knows"
    again = judge_of(model)
    assert (again.weights_hash, again.weights_hash_v1) == (before.weights_hash, before.weights_hash_v1)


def test_a_model_is_freed_with_its_judges():
    model = tiny.hf_model()
    judges = [judge_of(model) for _ in range(2)]
    alive = weakref.ref(model)
    del model, judges
    gc.collect()
    assert alive() is None

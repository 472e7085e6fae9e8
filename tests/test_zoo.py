"""Kinds of attention beyond the test matrix: sinks, latent keys, layers without positions, shared keys, experts."""

from __future__ import annotations

from dataclasses import replace

import pytest

import probes
from probes.capturing.support import RESIDUAL_TOLERANCE
from probes.models import load_model
from tests import tiny
from tests.test_capture import make_judge
from tests.test_equality import plain_transformers, relative
from tests.test_generation import generating, greedy

PACKED = ("gpt_oss", "deepseek_v3", "smollm3", "gemma4", "opt")


@pytest.mark.parametrize("name", [*PACKED, "bamba", "falcon_alibi"])
def test_a_run_holds_plain_transformers_states(booted, name, tmp_path):
    run = probes.capture(make_judge(booted, name), tiny.word_items(8), tmp_path / "run.h5", batch_tokens=100)
    assert run.attr("deviations")["layout"] == ("packed" if name in PACKED else "batched")
    residual, _ = plain_transformers(name, [ids.tolist() for ids in run.token_ids])
    assert relative(run.residual(), residual) <= RESIDUAL_TOLERANCE


@pytest.mark.parametrize("name", [*PACKED, "bamba"])
def test_greedy_answers_are_those_of_plain_transformers(booted, name, tmp_path):
    run = probes.capture(generating(booted, name, rule="last"), tiny.word_items(4), tmp_path / "run.h5")
    for prompt, generated in zip(run.token_ids, run.generated_ids, strict=True):
        assert generated.tolist() == greedy(name, prompt.tolist(), 8)[: len(generated)]
        assert len(generated) > 0


def test_a_second_run_of_a_longrope_model_is_like_the_first(tmp_path):
    loaded = load_model(tiny.hf_model("longrope"), tokenizer=tiny.tokenizer())
    template = probes.Template(name="short", user="{{ response }}")
    judge = replace(make_judge(lambda _: loaded, "longrope"), template=template)
    items = probes.Items([probes.Item(str(k), {"response": "so " * (1 + k * k)}) for k in range(6)])
    for number in range(2):
        run = probes.capture(judge, items, tmp_path / f"{number}.h5")
        assert run.n_tokens.min() < 30 < run.n_tokens.max()
        residual, _ = plain_transformers("longrope", [ids.tolist() for ids in run.token_ids])
        assert relative(run.residual(), residual) <= RESIDUAL_TOLERANCE


def test_answers_across_the_original_context_of_longrope(booted, tmp_path):
    """Cached keys with the frequencies of short prompts would not fit those of long ones."""
    template = probes.Template(name="short", user="{{ response }}")
    judge = replace(generating(booted, "longrope", rule="last"), template=template)
    items = probes.Items([probes.Item(str(k), {"response": "so " * (1 + k)}) for k in range(6)])
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert run.n_tokens.min() < 30 < run.n_tokens.max() + 8
    for prompt, generated in zip(run.token_ids, run.generated_ids, strict=True):
        assert generated.tolist() == greedy("longrope", prompt.tolist(), 8)[: len(generated)]


def test_layers_without_positions_do_not_break_the_bridge(tmp_path):
    """Granite 4 without position embeddings: the bridge wraps rotary embeddings that are not there."""
    import transformers

    config = transformers.GraniteMoeHybridConfig(
        **tiny._sizes(num_key_value_heads=2),
        position_embedding_type="nope",
        layer_types=["attention"] * 3,
        num_local_experts=0,
        mamba_n_heads=8,
        mamba_d_head=12,
        shared_intermediate_size=96,
    )
    loaded = load_model(transformers.AutoModelForCausalLM.from_config(config), tokenizer=tiny.tokenizer())
    run = probes.capture(make_judge(lambda _: loaded), tiny.word_items(4), tmp_path / "run.h5")
    assert (run.status == 0).all()

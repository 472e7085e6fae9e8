"""Packed passes give the states of one-by-one passes, or are not used."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformer_lens.tools.analysis import logit_lens

import probes
from probes.capturing import attention, checking, pipeline
from probes.capturing.engine import Engine, Extras, native_attention
from probes.capturing.job import Settings, prepare
from probes.capturing.readout import extract_readout
from probes.capturing.results import joined
from probes.capturing.support import RESIDUAL_TOLERANCE, free_tokens, length_class, packing_refusal
from probes.capturing.trie import lexicographic
from probes.errors import ItemError, ModelError
from tests import tiny
from tests.test_capture import TEMPLATE, make_judge
from tests.test_equality import TOKENS, logits_agree, plain_transformers, relative

WINDOW = 8
SLIDING = ("mistral", "gemma2", "gemma3")
PACKABLE = tuple(name for name in tiny.ARCHITECTURES if name != "bloom")


def kernel_of(loaded) -> str:
    return "eager" if loaded.attention == "eager" else "sdpa"


def branching_prompts(seed: int = 0) -> list[np.ndarray]:
    """Prompts of at least five windows that share prefixes of 0, 20 and 35 tokens, some equal, in trie order."""
    random = np.random.default_rng(seed)

    def tokens(n: int) -> list[int]:
        return random.integers(10, 370, n).tolist()

    prompts = []
    for _ in range(2):
        document = tokens(20)
        for _ in range(2):
            response = document + tokens(15)
            prompts += [response + tokens(n) for n in (5, 9, 20)]
    prompts.append(list(prompts[0]))
    prompts.append(prompts[1] + tokens(3))
    assert min(map(len, prompts)) >= 5 * WINDOW
    arrays = [np.array(prompt, dtype=np.int32) for prompt in prompts]
    return [arrays[row] for row in lexicographic(arrays, range(len(arrays)))]


def run_packed(loaded, readout, prompts, rows_a_pass: int, extras: Extras | None = None, spans=None):
    """Passes of so many prompts, each going on from the one before."""
    engine = Engine(loaded.bridge, readout, extras)
    results = []
    for start in range(0, len(prompts), rows_a_pass):
        part = slice(start, start + rows_a_pass)
        results.append(engine.run_packed(prompts[part], kernel_of(loaded), spans and spans[part]).result())
    return joined(results)


@pytest.fixture(params=PACKABLE)
def architecture(request) -> str:
    return request.param


@pytest.mark.parametrize("rows_a_pass", [1, 4, 100])
def test_packed_passes_give_plain_transformers_states(booted, architecture, rows_a_pass):
    loaded, prompts = booted(architecture), branching_prompts()
    readout = extract_readout(loaded.bridge, TOKENS)
    residual, logits = plain_transformers(architecture, [prompt.tolist() for prompt in prompts])
    result = run_packed(loaded, readout, prompts, rows_a_pass)
    assert relative(result.residual, residual) <= RESIDUAL_TOLERANCE
    assert logits_agree(result.token_logits, logits[:, TOKENS.token_ids])
    assert relative(result.residual[:, :-1], residual[:, 1:]) > 100 * RESIDUAL_TOLERANCE


@pytest.mark.parametrize("name", SLIDING)
@pytest.mark.parametrize("mistake", ["no window", "one wider", "counted in the packed sequence"])
def test_a_window_that_is_ignored_shows(booted, name, mistake, monkeypatch):
    loaded, prompts = booted(name), branching_prompts()
    readout = extract_readout(loaded.bridge, TOKENS)
    residual, _ = plain_transformers(name, [prompt.tolist() for prompt in prompts])
    if mistake == "no window":
        monkeypatch.setattr(attention, "window_of", lambda module, options: None)
    elif mistake == "one wider":
        right = attention.window_of
        monkeypatch.setattr(attention, "window_of", lambda *a: None if right(*a) is None else right(*a) + 1)
    else:
        prepare = attention.TreeAttention._prepare

        def by_node(chunk, window, query):
            nodes = np.arange(chunk.start, chunk.stop)
            return prepare(replace(chunk, query_depth=nodes, key_depth=chunk.keys), window, query)

        monkeypatch.setattr(attention.TreeAttention, "_prepare", staticmethod(by_node))
    result = run_packed(loaded, readout, prompts, 100)
    assert relative(result.residual, residual) > 100 * RESIDUAL_TOLERANCE


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_positions_that_depend_on_length_are_kept_apart(booted, name, tmp_path):
    """Prompts on both sides of the original context, in one run, behind a much longer pass."""
    judge = make_judge(booted, name)
    items = probes.Items([probes.Item(str(k), {"response": "so " * (1 + k * k)}) for k in range(8)])
    short = probes.Template(name="short", user="{{ response }}")
    judge = replace(judge, template=short)
    run = probes.capture(judge, items, tmp_path / "run.h5")
    lengths = run.n_tokens
    limit = 30 if name == "longrope" else 100
    assert lengths.min() < limit
    captured = run.status == 0
    # What lies beyond the context of dynamic embeddings is too long; the others reach over the limit.
    assert lengths.max() > limit
    assert captured.tolist() == (lengths <= (512 if name == "longrope" else limit)).tolist()
    one_by_one = [plain_transformers(name, [ids.tolist()])[0][0] for ids in np.array(run.token_ids, object)[captured]]
    assert run.attr("deviations")["layout"] == "packed"
    assert relative(run.residual()[captured], np.stack(one_by_one)) <= RESIDUAL_TOLERANCE


def test_length_classes(booted):
    longrope, dynamic = (length_class(booted(name).bridge) for name in ("longrope", "dynamic"))
    assert [longrope(n) for n in (5, 30, 31, 400)] == [0, 0, 1, 1]
    assert [dynamic(n) for n in (5, 100, 101, 102)] == [0, 0, 101, 102]
    assert length_class(booted("llama").bridge)(10**6) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bloom", "bloom uses ALiBi position biases"),
        ("mamba", "mamba has layers of the type linear_attention"),
        ("lfm2", "lfm2 has layers of the type conv"),
        ("falcon", "falcon does not let its attention be replaced"),
    ],
)
def test_what_cannot_be_packed_falls_back_and_says_why(booted, name, reason, tmp_path):
    judge, items = make_judge(booted, name), tiny.word_items()
    assert packing_refusal(judge.bridge) == reason
    run = probes.capture(judge, items, tmp_path / "run.h5")
    assert run.attr("deviations")["layout"] == "batched"
    assert run.attr("deviations")["fallback"] == [reason]
    assert run.attr("config")["sharing_note"] == reason
    assert run.attr("config")["tokens_after"] >= run.attr("config")["tokens_before"]
    residual, _ = plain_transformers(name, [ids.tolist() for ids in run.token_ids])
    assert relative(run.residual(), residual) <= RESIDUAL_TOLERANCE


def test_an_unknown_layer_type_is_not_trusted(booted, monkeypatch):
    bridge = booted("gemma2").bridge
    assert packing_refusal(bridge) is None
    monkeypatch.setattr(bridge.original_model.config, "layer_types", ["full_attention", "chunked_attention"])
    assert packing_refusal(bridge) == "gemma2 has layers of the type chunked_attention"


def test_a_model_whose_layers_do_not_all_attend_is_found(booted, tmp_path, monkeypatch, caplog):
    """Even one that the list of kinds would let through."""
    monkeypatch.setattr("probes.capturing.job.packing_refusal", lambda bridge: None)
    with caplog.at_level(logging.WARNING):
        run = probes.capture(make_judge(booted, "lfm2"), tiny.word_items(), tmp_path / "run.h5")
    assert run.attr("deviations")["layout"] == "batched"
    assert "packed prompts and native attention do not run" in caplog.text


def test_a_pass_that_exceeds_memory_is_halved_and_loses_nothing(booted, tmp_path, monkeypatch, caplog):
    judge, items = make_judge(booted), tiny.word_items()
    whole = probes.capture(judge, items, tmp_path / "whole.h5")
    original = Engine.run_packed

    def small(self, prompts, *options):
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, prompts, *options)

    monkeypatch.setattr(Engine, "run_packed", small)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with caplog.at_level(logging.WARNING):
        run = probes.capture(judge, items, tmp_path / "run.h5")
    assert "a pass of 20 prompts does not fit into memory; running it in halves" in caplog.text
    assert (run.status == 0).all()
    assert run.attr("deviations")["layout"] == "packed"
    assert relative(run.residual(), whole.residual()) <= RESIDUAL_TOLERANCE


def test_a_prompt_that_exceeds_memory_is_one_line(booted, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(Engine, "states", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(ModelError) as error:
        probes.capture(make_judge(booted), tiny.word_items(), tmp_path / "run.h5")
    assert str(error.value) == (
        "one prompt does not fit into memory (the longest has 90 tokens): CUDA out of memory. Tried to allocate 2 GiB; "
        "use a smaller dtype, more devices (device_map), or max_tokens to leave long prompts out"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_deviation_is_reported_beside_that_of_batching_alone(tmp_path, dtype):
    model = tiny.hf_model(dtype=dtype)
    judge = probes.Judge.load(model, tokenizer=tiny.tokenizer(), template=TEMPLATE, human_range="-4..4")
    run = probes.capture(judge, tiny.word_items(), tmp_path / "run.h5")
    found = run.attr("deviations")
    largest = np.abs(run.score_logits("norm")).max()
    assert found["layout"] == "packed"
    for name in ("first_pass_norm_logits", "plain_batch_norm_logits"):
        assert 0 <= found[name] <= 2**-6 * largest
    assert found["plain_batch_residual"] >= 0


def hidden_everywhere(architecture: str, prompt) -> np.ndarray:
    """Residuals at every position ``[position, layer, d_model]`` of an untouched model."""
    stops = [plain_transformers(architecture, [prompt[: stop + 1].tolist()])[0][0] for stop in range(len(prompt))]
    return np.stack(stops)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "batched"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_extra_readings(booted, name, packed):
    loaded, prompts = booted(name), branching_prompts()[:5]
    readout = extract_readout(loaded.bridge, TOKENS)
    spans = [(7 + k, 25 + k) for k in range(len(prompts))]
    extras = Extras(mass=True, entropy=True, last_positions=3, response_mean=True)
    if packed:
        result = run_packed(loaded, readout, prompts, 2, extras, spans)
    else:
        with native_attention(loaded.bridge, loaded.attention):
            result = Engine(loaded.bridge, readout, extras).run_batched(prompts, spans).result()
    for row, (prompt, (start, stop)) in enumerate(zip(prompts, spans, strict=True)):
        everywhere = hidden_everywhere(name, prompt)
        assert relative(result.extras["last_positions"][row], everywhere[-3:]) <= RESIDUAL_TOLERANCE
        assert relative(result.extras["response_mean"][row], everywhere[start:stop].mean(0)) <= RESIDUAL_TOLERANCE
        lens = logit_lens(loaded.bridge, torch.tensor(prompt[None].astype(np.int64)))
        chance = torch.softmax(lens.values.detach().double().reshape(4, -1), -1).numpy()
        np.testing.assert_allclose(result.extras["scale_mass"][row], chance[:, TOKENS.token_ids].sum(-1), rtol=2e-4)
        entropy = -(chance * np.log(np.maximum(chance, 1e-300))).sum(-1)
        np.testing.assert_allclose(result.extras["entropy"][row], entropy, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result.extras["scale_mass"][:, -1], result.final_mass, rtol=1e-4)


def test_extra_readings_are_stored(booted, tmp_path):
    judge, items = make_judge(booted), tiny.word_items()
    run = probes.capture(
        judge, items, tmp_path / "run.h5", mass=True, entropy=True, last_positions=2, response_mean=True
    )
    assert set(run.extras) == {"scale_mass", "entropy", "last_positions", "response_mean"}
    np.testing.assert_array_equal(run.extra("last_positions")[:, -1], run.residual())
    np.testing.assert_allclose(run.extra("scale_mass")[:, -1], run.final_mass, rtol=1e-4)
    word = judge.prompt_table(items, spans=True)
    text = judge.tokenizer.decode(word.tokens[3][word.spans[3][0] : word.spans[3][1]])
    assert text.strip() == items[3].fields["response"]


def test_a_response_that_is_not_in_its_prompt_has_no_mean(booted, tmp_path):
    judge = make_judge(booted, template=probes.Template(name="none", user="{{ criterion }}?"))
    with pytest.raises(ItemError) as error:
        probes.capture(judge, tiny.word_items(), tmp_path / "run.h5", response_mean=True)
    assert str(error.value) == (
        "item 'calm': its prompt does not show its 'response', or only together with other fields, so the mean over "
        "the response's tokens (response_mean) is not defined; leave it out, or show {{ response }} in the template"
    )


def test_more_last_positions_than_a_prompt_has_are_refused(booted, tmp_path):
    with pytest.raises(ItemError, match="fewer than the 500 last positions asked for; ask for fewer"):
        probes.capture(make_judge(booted), tiny.word_items(), tmp_path / "run.h5", last_positions=500)


@pytest.mark.parametrize("batch_tokens", [100, 10_000])
def test_the_check_takes_two_prompts_and_reaches_into_the_second_pass(booted, tmp_path, monkeypatch, batch_tokens):
    seen = []
    alone = checking.alone
    monkeypatch.setattr(checking, "alone", lambda runner, row, *a: seen.append(row) or alone(runner, row, *a))
    judge, items = make_judge(booted), tiny.word_items()
    probes.capture(judge, items, tmp_path / "run.h5", batch_tokens=batch_tokens)
    assert len(set(seen)) == 2
    plan = prepare(judge, items, Settings(("norm",), batch_tokens=batch_tokens)).plan
    assert (seen[1] in plan.passes[0]) is (len(plan.passes) == 1)


def test_keys_that_are_carried_wrongly_are_found(booted, tmp_path, monkeypatch, caplog):
    carry_on = Engine.carry_on

    def wrong(self, path, carry):
        carry_on(self, path, [(key * 1.01, value) for key, value in carry])

    monkeypatch.setattr(Engine, "carry_on", wrong)
    with caplog.at_level(logging.WARNING):
        run = probes.capture(make_judge(booted), tiny.word_items(), tmp_path / "run.h5", batch_tokens=100)
    assert "packed prompts and native attention, states differ" in caplog.text
    assert run.attr("deviations")["layout"] == "batched"


def test_batch_size_follows_free_memory_on_a_gpu(booted, monkeypatch):
    bridge = booted("llama").bridge
    assert free_tokens(bridge) == 4096
    cuda = SimpleNamespace(device=torch.device("cuda", 0))
    model = SimpleNamespace(parameters=lambda: [cuda], config=bridge.original_model.config, dtype=torch.bfloat16)
    fake = SimpleNamespace(original_model=model)
    sizes = []
    for free in (10e6, 100e6, 101e6, 80e9):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        sizes.append(free_tokens(fake))
    assert sizes == [2048, 16384, 16384, 65536]


def test_an_unfinished_run_keeps_the_batch_size_it_was_started_with(booted, tmp_path, monkeypatch):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    with monkeypatch.context() as patch:
        patch.setattr("probes.capturing.job.free_tokens", lambda bridge: 77)
        patch.setattr(pipeline.RunWriter, "write_run", tiny.interrupted)
        with pytest.raises(KeyboardInterrupt):
            probes.capture(judge, items, path)
    assert probes.capture(judge, items, path).attr("config")["batch_tokens"] == 77

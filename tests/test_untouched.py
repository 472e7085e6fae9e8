"""Models with hooks, or with weights that their bridge has processed, are refused wherever states are read."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

import probes
from probes.errors import ModelError
from tests import tiny
from tests.test_same_model import judge_of

# Captures put the model's own modules in the place of those that the first ones sit in; the others run as well.
NAMES = ["attn.hook_out", "attn.hook_pattern", "ln1.hook_normalized", "hook_attn_out"]
NAMES += ["attn.hook_z", "mlp.hook_out", "hook_in", "hook_out", "attn.q.hook_out", "hook_resid_mid", "ln2.hook_in"]
PLACES = [f"blocks.1.{name}" for name in NAMES]
PLACES += ["unembed.hook_in", "unembed.hook_out", "ln_final.hook_normalized", "embed.hook_out", "hook_embed"]
ITEMS = tiny.word_items(3)


def double(value, hook=None):
    return value * 2


@pytest.fixture(scope="module")
def judges():
    """Two judges on one bridge, a fitted judge, and the scores that it gives."""
    judge = judge_of(tiny.hf_model())
    generating = judge_of(judge.bridge, condition="generate")
    return judge, generating


@pytest.fixture(scope="module")
def fitted(judges, tmp_path_factory):
    with probes.capture(judges[0], tiny.word_items(), tmp_path_factory.mktemp("runs") / "run.h5") as run:
        return probes.fit(run, "final")


def refusal(judges, fitted, folder):
    """What every way to a model's states says, which is one thing."""
    judge, generating = judges
    ways = {
        "capture": lambda: probes.capture(judge, ITEMS, folder / "run.h5"),
        "generate": lambda: probes.capture(generating, ITEMS, folder / "run.h5"),
        "preview": lambda: probes.preview(judge, ITEMS),
        "score": lambda: probes.score(fitted, ITEMS, judge),
        "bridge": lambda: judge_of(judge.bridge),
        "model": lambda: judge_of(judge.bridge.original_model),
    }
    said = {}
    for name, way in ways.items():
        with pytest.raises(ModelError) as error:
            way()
        said[name] = str(error.value)
    assert not list(folder.iterdir()), "refused before anything is written"
    assert len(set(said.values())) == 1, said
    assert "\n" not in said["capture"]
    return said["capture"]


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_on_the_bridge_is_refused(judges, fitted, place, tmp_path):
    bridge = judges[0].bridge
    bridge.add_hook(place, double)
    try:
        said = refusal(judges, fitted, tmp_path)
    finally:
        bridge.reset_hooks()
    names = " = ".join(name for name, point in bridge.hook_dict.items() if point is bridge.hook_dict[place])
    assert place in names.split(" = ")
    assert said == (
        f"the model has hooks (at {names}), of which a capture would follow some and not others, under the hash of the "
        "model without them; remove them with bridge.reset_hooks(), or hook a copy of the model"
    )
    probes.preview(judges[0], ITEMS)


def test_many_hooks_are_counted_and_permanent_ones_need_another_call(judges, fitted, tmp_path):
    bridge = judges[0].bridge
    bridge.add_hook(lambda name: name.endswith("hook_out"), double, is_permanent=True)
    try:
        said = refusal(judges, fitted, tmp_path)
    finally:
        bridge.reset_hooks(including_permanent=True)
    assert " more), of which " in said
    assert "remove them with bridge.reset_hooks(including_permanent=True), or hook a copy" in said


def test_hooks_for_the_time_of_a_block_and_of_partials_are_refused(judges, fitted, tmp_path):
    bridge = judges[0].bridge
    with bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_z", functools.partial(double))]):
        assert "blocks.0.attn.hook_z" in refusal(judges, fitted, tmp_path)
    probes.preview(judges[0], ITEMS)


@pytest.mark.parametrize("path", ["model.layers.1", "model.layers.1.self_attn", "model.layers.1.self_attn.q_proj"])
@pytest.mark.parametrize("before", [True, False], ids=["before wrapping", "on the wrapped model"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_torch_on_a_part_of_the_model_is_refused(path, before, kind):
    model = tiny.hf_model()
    part = model.get_submodule(path)
    judge = None if before else judge_of(model)
    handle = getattr(part, kind)(lambda module, args, output=None: None)
    for way in [lambda: judge_of(model), *([] if before else [lambda: probes.preview(judge, ITEMS)])]:
        with pytest.raises(ModelError) as error:
            way()
        assert str(error.value) == (
            f"the model has hooks (at {path}), of which a capture would follow some and not others, under the hash of "
            "the model without them; remove them with the handle of each (handle.remove()), or hook a copy of the model"
        )
    handle.remove()
    probes.preview(judge_of(model), ITEMS)


def test_a_hook_of_torch_on_a_part_of_the_bridge_is_refused(judges, fitted, tmp_path):
    bridge = judges[0].bridge
    for part in (bridge.blocks[1].attn, bridge.blocks[1].attn.hook_z):
        handle = part.register_forward_hook(lambda module, args, output: output)
        try:
            assert "handle.remove()" in refusal(judges, fitted, tmp_path)
        finally:
            handle.remove()


def test_a_copy_of_the_model_can_be_hooked(judges, tmp_path):
    judge = judges[0]
    before = probes.capture(judge, ITEMS, tmp_path / "before.h5")
    theirs = copy.deepcopy(judge.bridge)
    theirs.add_hook("blocks.1.hook_out", double)
    with pytest.raises(ModelError, match=r"hooks \(at blocks\.1\.hook_out = blocks\.1\.hook_resid_post\)"):
        judge_of(theirs)
    after = probes.capture(judge, ITEMS, tmp_path / "after.h5")
    np.testing.assert_array_equal(before.residual(), after.residual())


def test_what_libraries_hang_up_is_no_hook_of_a_user(tmp_path):
    """Caches and tools of TransformerLens, placement by accelerate, input gradients of transformers."""
    folder = tiny.save_model(tmp_path / "model")
    judge = judge_of(folder, tokenizer=None, device_map={"": "cpu"})
    tokens = torch.tensor([tiny.prompts(1)[0]])
    judge.bridge.run_with_cache(tokens)
    judge.bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_out", double)])
    judge.bridge.original_model.enable_input_require_grads()
    judge.bridge.original_model(tokens, output_hidden_states=True, output_attentions=True)
    probes.capture(judge, ITEMS, tmp_path / "run.h5")
    probes.preview(judge_of(judge.bridge), ITEMS)


@pytest.mark.parametrize("architecture", ["opt", "gpt_oss", "falcon", "granite"])
def test_bridges_that_wire_hooks_of_their_own_are_captured_twice(booted, architecture, tmp_path):
    from tests.test_capture import make_judge

    for number in range(2):
        probes.capture(make_judge(booted, architecture), ITEMS, tmp_path / f"{number}.h5")


OPTIONS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
PROCESSED = (
    "the bridge is in compatibility mode or has processed its weights (process_weights), and folded or centred weights "
    "have other residuals and logits than the model; boot it again, without either"
)


@pytest.mark.parametrize("option", [*OPTIONS, "compatibility mode", "nothing"])
def test_weights_that_the_bridge_has_processed_are_refused(fitted, option, tmp_path):
    """After loading, one option changed residuals of GPT-2 by their own size, under the hash of the raw weights."""
    judge = judge_of(tiny.hf_model("gpt2"))
    generating = judge_of(judge.bridge, condition="generate")
    with probes.capture(judge, tiny.word_items(), tmp_path / "run.h5") as run:
        of_gpt2 = probes.fit(run, "final")
    (tmp_path / "run.h5").unlink()
    if option == "compatibility mode":
        judge.bridge.enable_compatibility_mode(disable_warnings=True)
    elif option == "nothing":
        judge.bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    else:
        judge.bridge.process_weights(**{name: name == option for name in OPTIONS})
    assert refusal((judge, generating), of_gpt2, tmp_path) == PROCESSED

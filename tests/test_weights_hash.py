"""The hash of a model moves with what changes a number, and with nothing else."""

from __future__ import annotations

import copy
import dataclasses
import hashlib

import pytest
import torch
import transformers

from probes.model_settings import settings_of
from probes.weights_hash import hash_both, hash_weights
from tests import tiny

IDLE = {
    "use_cache": False,
    "output_router_logits": True,
    "output_hidden_states": True,
    "return_dict": False,
    "pad_token_id": 7,
    "bos_token_id": 9,
    "id2label": {0: "good", 1: "bad"},
    "attention_dropout": 0.3,
    "initializer_range": 0.5,
    "architectures": ["Another"],
    "_name_or_path": "/another/place",
    "transformers_version": "99.0.0",
    # What a class does not declare and no code of the model names: written by another version, or by some tool.
    "a_setting_of_tomorrow": True,
    "another_of_tomorrow": {"kind": "fast", "size": 3},
    "trained_by": "some tool",
}
COUNTED = {
    "llama": {
        "rms_norm_eps": 1e-3,
        "hidden_act": "gelu",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "max_position_embeddings": 1024,
        "eos_token_id": 5,  # where a generated answer ends
        "head_dim": 24,
    },
    "gemma2": {
        "final_logit_softcapping": 9.0,
        "attn_logit_softcapping": None,
        "sliding_window": 4,
        "query_pre_attn_scalar": 24,
        "layer_types": ["full_attention"] * 3,
    },
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "gpt2": {"layer_norm_epsilon": 1e-2, "scale_attn_by_inverse_layer_idx": True},
    "qwen2": {"head_dim": 24, "use_sliding_window": True},  # the first is read by the model, though not declared
    "deepseek_v3": {"routed_scaling_factor": 1.0, "norm_topk_prob": False},
}


@pytest.mark.parametrize("name", IDLE)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_what_changes_no_number_is_no_part_of_a_model(architecture, name):
    model = tiny.hf_model(architecture)
    before = hash_weights(model)
    setattr(model.config, name, IDLE[name])
    assert hash_weights(model) == before


@pytest.mark.parametrize(("architecture", "name"), [(kind, name) for kind, names in COUNTED.items() for name in names])
def test_what_changes_numbers_is_part_of_a_model(architecture, name):
    model = tiny.hf_model(architecture)
    before = hash_weights(model)
    setattr(model.config, name, COUNTED[architecture][name])
    assert hash_weights(model) != before


def test_every_architecture_has_a_hash_of_its_own_that_a_copy_shares():
    found = {}
    for architecture in tiny.ARCHITECTURES:
        model = tiny.hf_model(architecture)
        found[architecture] = hash_weights(model)
        model.config.use_cache = not getattr(model.config, "use_cache", True)
        assert hash_weights(copy.deepcopy(model)) == found[architecture]
    assert len(set(found.values())) == len(found)


def test_a_new_default_of_a_later_transformers_changes_nothing():
    """A class that declares one more setting, which all of its configs say from then on."""
    model = tiny.hf_model()

    @dataclasses.dataclass(kw_only=True)
    class Later(transformers.LlamaConfig):
        use_a_faster_norm: bool = True
        rows_at_a_time: int = 128

        def __post_init__(self, **kwargs):
            # And one that follows from others.
            self.norm_size = kwargs.pop("norm_size", self.hidden_size)
            super().__post_init__(**kwargs)

    before = hash_weights(model)
    said = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    model.config = Later(**said)
    assert model.config.to_dict()["rows_at_a_time"] == 128
    assert model.config.to_dict()["norm_size"] == 48
    assert hash_weights(model) == before
    model.config = Later(**said, rows_at_a_time=64)
    assert hash_weights(model) != before


def test_settings_one_level_down_count_in_the_same_way():
    text = tiny._CONFIGS["gemma3"]()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    before = hash_weights(model)
    for name in ("use_cache", "output_hidden_states", "attention_dropout", "pad_token_id", "a_setting_of_tomorrow"):
        setattr(model.config.text_config, name, IDLE[name])
    assert hash_weights(model) == before
    model.config.text_config.final_logit_softcapping = 30.0
    assert hash_weights(model) != before


def test_a_config_that_its_class_refuses_counts_whole():
    """Nothing is left out on a guess where the class cannot say what is a default."""
    model = tiny.hf_model()
    model.config.__dict__["num_attention_heads"] = 7  # does not divide the width
    before = hash_weights(model)
    assert settings_of(model)["rms_norm_eps"] == 1e-6, "a default, but nobody knows"
    model.config.__dict__["rms_norm_eps"] = 1e-3
    assert hash_weights(model) != before


def test_packed_weights_count_with_what_changes_their_numbers():
    model = tiny.hf_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    before = hash_weights(model)
    model.config.quantization_config |= {"_load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}
    assert hash_weights(model) == before
    model.config.quantization_config["llm_int8_threshold"] = 0.0
    assert hash_weights(model) != before


def test_every_weight_and_its_type_counts():
    model = tiny.hf_model()
    found = {hash_weights(model), hash_weights(tiny.hf_model(dtype=torch.bfloat16))}
    with torch.no_grad():
        model.lm_head.weight[3, 4] += 1e-3
    found.add(hash_weights(model))
    assert len(found) == 3


def first_scheme(hf_model) -> str:
    """The hash as versions up to 0.1 computed it, word for word."""
    sha = hashlib.sha256()
    config = hf_model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "_attn_implementation", "architectures", "dtype"):
        config.pop(volatile, None)
    for key in sorted(config):
        sha.update(f"{key}={config[key]!r};".encode())
    parameters = dict(hf_model.named_parameters())
    tied = {id(parameter) for parameter in hf_model.parameters()}
    buffers = {key: value for key, value in hf_model.state_dict(keep_vars=True).items() if id(value) not in tied}
    for name, tensor in sorted((parameters | buffers).items()):
        sha.update(f"{name.replace('._original_component', '')}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        sha.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sha.hexdigest()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "bloom", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_scheme_lives_on_as_a_second_name(architecture, dtype):
    model = tiny.hf_model(architecture, dtype=dtype)
    assert hash_both(model) == (hash_weights(model), first_scheme(model))

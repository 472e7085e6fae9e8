"""Where models come from: a hub id, a folder, a .gguf file, a loaded model, or the embedded SmolLM2.

Everything ends as a TransformerLens ``TransformerBridge`` around raw Hugging Face weights.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import ModelError
from probes.gguf import EMBEDDED, check_complete, convert_gguf, embedded_gguf, first_line
from probes.quantization import (
    bitsandbytes_config,
    check_loadable,
    check_unpacked,
    describe_quantization,
    prepare_quantised,
)
from probes.untouched import check_untouched
from probes.weights_hash import hash_both, hash_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probes.quantization import Quantization

# Any of these makes a folder that has a tokenizer.
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "*.tiktoken", "tekken.json")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A booted model.

    Attributes:
        bridge: The ``TransformerBridge``.
        tokenizer: Its tokenizer.
        name: What the user asked for.
        weights_hash: SHA-256 over every weight and what of the config changes numbers.
        attention: The model's own attention implementation, before the bridge put its eager one in place.
        quantization: How the weights are packed, for example ``bitsandbytes 4-bit nf4``; None where they are not.
    """

    bridge: Any
    tokenizer: Any
    name: str
    weights_hash: str
    attention: str | None
    quantization: str | None = None


def load_model(
    model: Any,
    *,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
) -> LoadedModel:
    """Load a model and wrap it in a ``TransformerBridge``.

    Args:
        model: Hub id, local folder, ``.gguf`` path, ``smollm2-135m``, a loaded Hugging Face model, or a
            ``TransformerBridge`` with raw weights.
        tokenizer: Only for a loaded model whose tokenizer cannot be found by its name.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``; ignored for a loaded model.
        device: For example ``cuda:0``; the CPU unless given and no GPU is there.
        device_map: Passed on to transformers, instead of ``device``.
        revision: Hub revision.
        trust_remote_code: Allow the model's own Python code to run. Off unless asked for.
        quantization: ``8bit`` or ``4bit`` quantises a full-precision checkpoint with bitsandbytes while it loads.
            One that is already quantised is loaded as it is, without this.

    Raises:
        ModelError: The model cannot be found, loaded or wrapped.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: choose one of {', '.join(_DTYPES)}")
    if quantization not in (None, "8bit", "4bit"):
        raise ModelError(f"unknown quantization {quantization!r}: choose 8bit or 4bit")
    with _quiet_transformers():
        if not isinstance(model, (str, Path)):
            if quantization is not None:
                raise ModelError("a loaded model is captured as it is; leave quantization out, or quantise it yourself")
            return _from_object(model, tokenizer)
        name = str(model)
        source = _resolve(name)
        device = device or _default_device()
        loading = _Loading(dtype, device, device_map, revision, trust_remote_code, quantization)
        hf_model, quantised = _from_pretrained(source, name, loading)
        if tokenizer is None:
            tokenizer = _load_tokenizer(source, revision, trust_remote_code)
        if device_map is None and quantised is None:
            hf_model = _to_device(hf_model, device)
        return _wrap(hf_model, tokenizer, name, quantised)


@dataclass(frozen=True)
class _Loading:
    dtype: str
    device: str
    device_map: Any
    revision: str | None
    trust_remote_code: bool
    quantization: Quantization | None


def _to_device(hf_model: Any, device: str) -> Any:
    try:
        return hf_model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"cannot move the model to {device!r}: {first_line(error)}; choose another device (--device), such as cpu"
        ) from None


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _resolve(name: str) -> str:
    """Turn what the user named into something that transformers can load."""
    if name == EMBEDDED:
        return str(convert_gguf(embedded_gguf()))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"no such file: {path}; check the path of the .gguf file")
        return str(convert_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.is_file():
        raise ModelError(f"{path} is no model; give a folder written by save_pretrained, a .gguf file or a hub id")
    if name.startswith((".", "/", "~")):
        raise ModelError(f"no such folder: {path}; give a folder written by save_pretrained, or a hub id")
    return name


def _from_pretrained(source: str, name: str, loading: _Loading) -> tuple[Any, str | None]:
    """Load a model; return it and how it is quantised."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    options: dict[str, Any] = {"revision": loading.revision, "trust_remote_code": loading.trust_remote_code}
    with _one_line(f"the model {name!r}"):
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except OSError as error:
            if "couldn't connect to" not in first_line(error).lower():
                raise
            raise ModelError(
                f"no model {name!r}: it is no folder here, it was not downloaded before, and the Hugging Face hub "
                "cannot be reached; check the name and the connection, or give the folder of a model"
            ) from None
    _check_decoder(config, name)
    packed = check_loadable(config, name)
    options |= _placement(config, name, loading, packed)
    with _one_line(f"the model {name!r}" + (f" ({packed})" if packed else "")):
        # Multimodal models judge texts as well, but are filed under another name.
        textual = loading.trust_remote_code or type(config) in AutoModelForCausalLM._model_mapping
        loader = AutoModelForCausalLM if textual else AutoModelForImageTextToText
        model, info = loader.from_pretrained(source, output_loading_info=True, **options)
    check_complete(info, name)
    if packed is None:
        check_unpacked(info, name)
    # Some methods unpack their weights where the hardware has no use for them packed.
    return model, describe_quantization(model.config) or (f"{packed}, unpacked on loading" if packed else None)


def _check_decoder(config: Any, name: str) -> None:
    """Refuse models that do not write text from left to right, before their weights are read."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = str(getattr(config, "model_type", "it"))
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder model"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        what = "an encoder, which writes no text"
    if what:
        raise ModelError(f"{name!r} ({kind}) is {what}; give a decoder-only language model, such as Llama or Qwen")


def _placement(config: Any, name: str, loading: _Loading, packed: str | None) -> dict[str, Any]:
    """Options that say where weights go, and as what."""
    import torch

    dtype = loading.dtype if loading.dtype == "auto" else getattr(torch, loading.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if loading.quantization is not None:
        if packed is not None:
            raise ModelError(f"{name!r} is already quantised ({packed}); leave quantization out")
        compute = dtype if dtype != "auto" else getattr(config, "dtype", None) or torch.float32
        options["quantization_config"] = bitsandbytes_config(loading.quantization, compute)
    if loading.device_map is not None:
        options["device_map"] = loading.device_map
    elif packed or loading.quantization:
        # Some methods pack weights for the device while they load, and cannot be moved after that.
        options["device_map"] = {"": loading.device}
    return options


def _load_tokenizer(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any(path.is_file() for name in _TOKENIZER_FILES for path in folder.glob(name)):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json and tokenizer_config.json); save that of the model there with "
            "tokenizer.save_pretrained, or pass tokenizer=..."
        )
    with _one_line(f"the tokenizer of {source!r}"):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn any error into one line: a checkpoint can be broken in as many ways as libraries read parts of it."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load {what}: {first_line(error)}") from error


def _from_object(model: Any, tokenizer: Any) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    if isinstance(model, TransformerBridge):
        check_untouched(model)
        inner = model.original_model
        name, origin = _name_of(inner), getattr(inner, _ORIGIN, None)
        _refuse_offloaded(inner, name)
        prepare_quantised(inner, name)
        if tokenizer is None:
            # The bridge's own tokenizer is a copy that may add BOS; the original is what other sources load.
            own = str(getattr(model.tokenizer, "name_or_path", "") or name)
            tokenizer = origin.tokenizer if origin else _tokenizer_of(own)
        # Of a bridge booted elsewhere nobody knows what the model ran before, so the bridge's attention stays.
        attention = origin.attention if origin else None
        quantised = origin.quantization if origin else describe_quantization(inner.config)
        if origin is None:
            hashes = hash_both(inner)
            weights_hash, _ = hashes
            _remember(_Origin(model, hashes, weights_hash, attention, tokenizer, quantised))
        else:
            # A model that was changed since it was wrapped is another one, until it is changed back.
            found = hash_weights(inner)
            weights_hash = origin.hashes[0] if found == origin.bridged_hash else found
        return LoadedModel(model.eval(), tokenizer, name, weights_hash, attention, quantised)
    if not hasattr(model, "named_parameters") or not hasattr(model, "config"):
        raise ModelError(
            f"cannot use {type(model).__name__} as a model; give a hub id, a folder, a .gguf file, a loaded "
            "Hugging Face model or a TransformerBridge"
        )
    name = _name_of(model)
    if tokenizer is None:
        if not getattr(model.config, "_name_or_path", ""):
            raise ModelError(f"the loaded model {name!r} does not say where its tokenizer is; pass tokenizer=...")
        tokenizer = _tokenizer_of(name)
    # Wrapped once more, a model would run the attention of the first bridge in place of its own.
    if (origin := getattr(model, _ORIGIN, None)) is not None:
        device = next(model.parameters()).device
        if not str(origin.bridge.cfg.device).startswith(device.type):
            origin.bridge.cfg.device = str(device)  # the model was moved without its bridge
        return _from_object(origin.bridge, tokenizer)
    if any(isinstance(module, GeneralizedComponent) for module in model.modules()):
        raise ModelError(f"the loaded model {name!r} is in a TransformerBridge; give that bridge in its place")
    check_untouched(model)
    return _wrap(model, tokenizer, name, describe_quantization(model.config))


def _tokenizer_of(name: str) -> Any:
    """The tokenizer of a loaded model, by the name that it was loaded from."""
    try:
        return _load_tokenizer(name, None, False)
    except ModelError as error:
        raise ModelError(f"{error}; pass tokenizer=...") from error


def _name_of(hf_model: Any) -> str:
    return str(getattr(hf_model.config, "_name_or_path", "") or type(hf_model).__name__)


def _wrap(hf_model: Any, tokenizer: Any, name: str, quantised: str | None) -> LoadedModel:
    from transformer_lens.model_bridge import TransformerBridge

    _refuse_offloaded(hf_model, name)
    prepare_quantised(hf_model, name)
    hf_model.eval()
    if not hf_model.config.architectures:
        # The bridge chooses its adapter by this name; a model made from a config does not carry it.
        hf_model.config.architectures = [type(hf_model).__name__]
    hashes, attention = hash_both(hf_model), hf_model.config._attn_implementation
    # The bridge reloads its tokenizer by name, which one made in memory or since moved does not have.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            bridge = TransformerBridge.boot_transformers(
                # The name only finds the adapter of a few models, and short names are aliases of hub models.
                type(hf_model).__name__,
                hf_model=hf_model,
                tokenizer=_load_tokenizer(folder, None, False),
                dtype=hf_model.dtype,
            )
        except Exception as error:  # adapters fail in any way on models that they were not written for
            reason = first_line(error)[:200]
            if "Could not determine supported architecture" in reason:
                reason = "it has no adapter for this architecture"
            if quantised is not None:
                reason = f"it splits weights that are packed ({quantised}); load the model unquantised"
            raise ModelError(f"TransformerLens cannot wrap {type(hf_model).__name__} ({name}): {reason}") from error
    _drop_empty_rotary(bridge)
    _remember(_Origin(bridge.eval(), hashes, hash_weights(hf_model), attention, tokenizer, quantised))
    return LoadedModel(bridge, tokenizer, name, hashes[0], attention, quantised)


def _drop_empty_rotary(bridge: Any) -> None:
    """Undo the wrapping of rotary embeddings that a model does not have (Granite 4 without positions)."""
    for module in bridge.original_model.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ == "RotaryEmbeddingBridge" and child.original_component is None:
                setattr(module, name, None)


def _refuse_offloaded(hf_model: Any, name: str) -> None:
    """Refuse a model of which parts wait on the CPU or on disk until a pass needs them."""
    meta = [key for key, parameter in hf_model.named_parameters() if parameter.is_meta]
    if meta:
        places = getattr(hf_model, "hf_device_map", None) or {}
        parts = [f"{part} on {place}" for part, place in places.items() if any(key.startswith(part) for key in meta)]
        where = f" ({', '.join(parts[:3])}{' ...' if len(parts) > 3 else ''})" if parts else ""
        raise ModelError(
            f"parts of {name!r} are offloaded{where}, where they can be neither hashed nor captured; "
            "use larger or more devices, a smaller dtype, or quantised weights"
        )


@dataclass(frozen=True)
class _Origin:
    """What a model was before a bridge renamed and split its modules: kept on the model, under ``_ORIGIN``."""

    bridge: Any
    hashes: tuple[str, str]
    bridged_hash: str
    attention: str | None
    tokenizer: Any
    quantization: str | None


_ORIGIN = "_probes_origin"


def _remember(origin: _Origin) -> None:
    """Keep on a model what it was, since it may be loaded again: a copy of it takes all of this along."""
    setattr(origin.bridge.original_model, _ORIGIN, origin)


def first_hash(bridge: Any, weights_hash: str) -> str:
    """Hash that versions up to 0.1 gave a loaded model of a hash; empty where it is not known."""
    origin: _Origin | None = getattr(getattr(bridge, "original_model", None), _ORIGIN, None)
    return origin.hashes[1] if origin is not None and origin.hashes[0] == weights_hash else ""


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the libraries' progress bars and advice while a model loads; our own messages say what happens."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    verbosity = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()

"""Quantised models: what their weights are packed with, and what has to hold before they can be captured."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from probes.errors import ModelError

if TYPE_CHECKING:
    import torch

Quantization = Literal["8bit", "4bit"]

# What transformers needs for a method beyond what comes with it; it names the packages of rarer methods itself.
_PACKAGES: Final = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed-tensors",),
}
# How the names of the scales beside packed weights end.
_SCALES: Final = (".SCB", ".absmax", ".scales", ".weight_scale", ".weight_scale_inv")


def describe_quantization(config: Any) -> str | None:
    """How a model is quantised, for example ``bitsandbytes 4-bit nf4`` or ``gptq 4-bit group 128``.

    Args:
        config: The Hugging Face config of a checkpoint or of a loaded model.

    Returns:
        None where the weights are not quantised.
    """
    settings = _settings(config)
    if settings is None:
        return None
    if settings.get("load_in_8bit"):
        return "bitsandbytes 8-bit"
    if settings.get("load_in_4bit"):
        return f"bitsandbytes 4-bit {settings.get('bnb_4bit_quant_type', 'fp4')}"
    words = [_method(settings) or "unknown"]
    words += [f"{settings[key]}-bit" for key in ("bits", "nbits", "w_bit") if settings.get(key)]
    words += [f"group {settings['group_size']}"] if settings.get("group_size") else []
    words += [str(settings[key]) for key in ("weights", "format") if settings.get(key)]
    return " ".join(dict.fromkeys(words))


def pass_dependence(config: Any) -> str | None:
    """Why the states of a quantised model depend on what else is in a pass; None where they do not.

    Such a model gives the same states again only for one whole prompt a pass, with no prefix shared.
    """
    settings = _settings(config) or {}
    if settings.get("load_in_8bit") and settings.get("llm_int8_threshold", 6.0) > 0:
        return "bitsandbytes 8-bit picks its outlier columns over all tokens of a pass"
    return None


def check_loadable(config: Any, name: str) -> str | None:
    """Refuse a checkpoint whose quantisation cannot be loaded here, before its weights are read.

    Returns:
        How the checkpoint is quantised, as ``describe_quantization`` says it.

    Raises:
        ModelError: The method is unknown, or a package that it needs is not installed.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    settings = _settings(config)
    if settings is None:
        return None
    method = _method(settings)
    if method is None:
        raise ModelError(
            f"{name!r} is quantised, but its config.json names no quant_method (MLX writes such files); "
            "give its full-precision checkpoint"
        )
    # transformers would read packed weights of a method it does not know as if they were plain numbers.
    if method not in {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}:
        raise ModelError(
            f"{name!r} is quantised with {method!r}, which transformers cannot load; give its full-precision checkpoint"
        )
    _require(method, f"{name!r} is quantised with {method}")
    return describe_quantization(config)


def check_unpacked(info: dict[str, Any], name: str) -> None:
    """Refuse packed weights that were read as plain numbers, because no setting said that they are packed.

    Args:
        info: What transformers found out while it loaded the model.
        name: What the user asked for.

    Raises:
        ModelError: The checkpoint holds scales of packed weights, which the model has no place for.
    """
    scales = sorted(key for key in info.get("unexpected_keys", ()) if key.endswith(_SCALES))
    if scales:
        raise ModelError(
            f"{name!r} holds quantised weights ({scales[0]}), but its config.json has no quantization_config; "
            "give the checkpoint with the config.json that belongs to it"
        )


def bitsandbytes_config(kind: Quantization, dtype: torch.dtype) -> Any:
    """Settings that quantise a full-precision checkpoint while it loads: LLM.int8() or NF4.

    Args:
        kind: ``8bit`` or ``4bit``.
        dtype: What 4-bit weights are unpacked to for each product.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    _require("bitsandbytes", f"quantization={kind!r} quantises with bitsandbytes")
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def prepare_quantised(hf_model: Any, name: str) -> None:
    """Make a loaded quantised model ready to be captured, in place; other models are left alone.

    Raises:
        ModelError: The output layer is packed, or the weights have been rounded by a pass on the CPU.
    """
    found = describe_quantization(hf_model.config)
    if found is None:
        return
    head = hf_model.get_output_embeddings()
    weight = getattr(getattr(head, "original_component", head), "weight", None)
    # Packed weights are integers, narrow floats, or subclasses of a tensor that keep their parts to themselves.
    if weight is None or type(weight).__name__ not in {"Parameter", "Tensor"} or weight.dtype.itemsize < 2:
        raise ModelError(
            f"the output layer of {name!r} is quantised too ({found}), so no lens can read its rows; "
            "keep it unquantised (for bitsandbytes: llm_int8_skip_modules=['lm_head'])"
        )
    # It would write a line for every layer of every pass: that float32 and bfloat16 are computed in float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in hf_model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such CPUs the first pass would round the 4-bit scales to bfloat16, and reading the weights after
            # that would change them for good. Without it the CPU computes what a GPU does.
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ModelError(
                    f"the 4-bit model {name!r} already ran on the CPU, where bitsandbytes rounds its weights once "
                    "more; load it again, and hand it over before it runs"
                )
            module.support_avx512bf16_for_cpu = False


def _settings(config: Any) -> dict[str, Any] | None:
    """The quantisation settings of a config, whether it was just read (a dict) or belongs to a loaded model."""
    nested = getattr(config, "text_config", None)
    found = getattr(config, "quantization_config", None) or getattr(nested, "quantization_config", None)
    return dict(found if isinstance(found, dict) else found.to_dict()) if found else None


def _method(settings: dict[str, Any]) -> str | None:
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    method = settings.get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def _require(method: str, why: str) -> None:
    missing = [package for package in _PACKAGES.get(method, ()) if not _installed(package)]
    if missing:
        raise ModelError(f"{why}, which needs more packages: pip install {' '.join(missing)}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None

"""Settings of a model that change what it computes, out of everything that its config says.

A config repeats the defaults of its class, what follows from other settings, and much that concerns training, files
and the way to run. All of that differs between versions of transformers for one and the same model.
"""

from __future__ import annotations

import copy
import inspect
import re
import sys
import warnings
from typing import Any, Final

# Settings that change no number while a model reads text, in evaluation mode. Token ids of padding and of beginnings
# are the tokenizer's business; the one that ends a text is not here, since generated answers stop at it.
_IDLE: Final = {
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "output_scores"),
    *("return_dict_in_generate", "torchscript", "gradient_checkpointing", "keys_to_ignore_at_inference"),
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "tokenizer_class", "model_type"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params", "finetuning_task"),
    *("pad_token_id", "bos_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    # Which weights were left unpacked shows in the weights; the rest says how they are stored and moved.
    *("modules_to_not_convert", "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload", "bnb_4bit_quant_storage"),
    *("version", "checkpoint_format", "meta"),
}
_IDLE_PARTS: Final = re.compile(
    r"^_|dropout|pdrop|layerdrop|drop_path|initializer|init_std|jitter|_loss|loss_|^summary_|^classifier_"
)


def settings_of(hf_model: Any) -> dict[str, Any]:
    """The settings that change what a model computes, as far as they say more than the defaults; JSON-ready."""
    return _settings(hf_model.config, hf_model)


def _settings(config: Any, hf_model: Any) -> dict[str, Any]:
    """Settings of a config, nested ones inside."""
    nested = {name: value for name, value in vars(config).items() if _is_config(value)}
    said = {name: value for name, value in _said(config).items() if name not in nested}
    kept = _needed(config, said, {name: value.to_dict() for name, value in nested.items()})
    if (declared := _made(config, {})) is not None:
        unknown = [name for name in kept if name not in declared and name != "quantization_config"]
        kept = {name: value for name, value in kept.items() if name not in unknown or _is_named(name, hf_model)}
    inner = {name: _settings(value, hf_model) for name, value in nested.items()}
    return {"model_type": getattr(config, "model_type", "")} | kept | inner


def _is_config(value: Any) -> bool:
    from transformers import PreTrainedConfig

    return isinstance(value, PreTrainedConfig)


def _said(config: Any) -> dict[str, Any]:
    """Everything that a config says and that may change a number."""
    return _without_idle(config.to_dict())


def _without_idle(settings: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in settings.items() if name not in _IDLE and not _IDLE_PARTS.search(name)}
    if isinstance(packed := found.get("quantization_config"), dict):
        found["quantization_config"] = _without_idle(packed)
    return found


def _needed(config: Any, said: dict[str, Any], nested: dict[str, Any]) -> dict[str, Any]:
    """As few settings as make the class say the same again; all of them where it cannot be asked."""
    kept = dict(said)
    if not _says(config, kept | nested, said):
        return kept
    for name in sorted(said):
        fewer = {other: value for other, value in kept.items() if other != name}
        if _says(config, fewer | nested, said):
            kept = fewer
    return kept


def _says(config: Any, settings: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether the class of a config makes of some settings one that says the same."""
    made = _made(config, settings)
    return made is not None and {name: value for name, value in made.items() if name in said} == said


def _made(config: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a config of the same class says that is made of some settings; None where it cannot be made."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class may advise against what the model was made with
            return _said(type(config)(**copy.deepcopy(settings)))  # classes change what they are given
    except Exception:  # classes of models are foreign code, and refuse settings in any way
        return None


def _is_named(name: str, hf_model: Any) -> bool:
    """Whether code that a model runs names a setting that its config does not declare, and so may read it."""
    packages = {"transformers", type(hf_model).__module__.partition(".")[0]}
    modules = {type(module).__module__ for module in hf_model.modules()}
    modules |= {
        str(getattr(value, "__module__", None))
        for module in modules & sys.modules.keys()
        if module.partition(".")[0] in packages
        for value in list(vars(sys.modules[module]).values())
    }
    word = re.compile(rf"\b{re.escape(name)}\b")
    for module in modules & sys.modules.keys():
        if module.partition(".")[0] not in packages:
            continue
        try:
            source = inspect.getsource(sys.modules[module])
        except (OSError, TypeError):
            return True
        if word.search(source):
            return True
    return False

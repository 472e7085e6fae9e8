"""Is a model still what its hash says: no hooks in it, no weights folded by its bridge?

Captures run the model's own attention and norms in place of the bridge's, and a hook that sits on one of those would
be followed by the bridge and not by the capture. Others would change both, under the hash of the model without them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from probes.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Whose hooks belong to a model as it is loaded, placed and packed; `transformers_modules` is code of the model itself.
_LIBRARIES: Final = {
    *("transformer_lens", "transformers", "transformers_modules", "accelerate", "torch"),
    *("bitsandbytes", "compressed_tensors", "torchao", "gptqmodel", "optimum", "hqq"),
}
_SHOWN: Final = 3


def check_untouched(model: Any) -> None:
    """Refuse a model that does not compute what its weights say.

    Args:
        model: A ``TransformerBridge``, or a Hugging Face model.

    Raises:
        ModelError: It has hooks that no library put there, or its bridge has folded or centred its weights.
    """
    if getattr(model, "compatibility_mode", False) or getattr(model, "_weights_processed", False):
        raise ModelError(
            "the bridge is in compatibility mode or has processed its weights (process_weights), and folded or centred "
            "weights have other residuals and logits than the model; boot it again, without either"
        )
    found = list(_hooks(model))
    if not found:
        return
    places = list(dict.fromkeys(_names(model, module, path) for path, module, _ in found))
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    how = " and ".join(dict.fromkeys(way for *_, way in found))
    raise ModelError(
        f"the model has hooks (at {', '.join(places[:_SHOWN])}{more}), of which a capture would follow some and not "
        f"others, under the hash of the model without them; remove them with {how}, or hook a copy of the model"
    )


def _hooks(model: Any) -> Iterator[tuple[str, Any, str]]:
    """Hooks that change what a model computes and that no library put there: path, module, and how to remove them."""
    seen: set[Any] = set()
    for root in (getattr(model, "original_model", None), model):
        if root is None:
            continue
        for path, module in root.named_modules(memo=seen):
            # Hook points of TransformerLens keep what they were given beside what they register with torch.
            handles = {handle.hook.id: handle for handle in getattr(module, "fwd_hooks", ())}
            for number, hook in (*module._forward_pre_hooks.items(), *module._forward_hooks.items()):
                handle = handles.get(number)
                if _is_of_library(hook if handle is None else handle.user_hook) and (
                    # What TransformerLens wires for good; what its tools hang up for a while is to be gone by now.
                    handle is None or handle.is_permanent
                ):
                    continue
                yield path, module, _removal(handle)


def _names(model: Any, module: Any, path: str) -> str:
    """A module as its user knows it; a hook point may have two names."""
    if hasattr(module, "fwd_hooks"):
        known = [name for name, point in getattr(model, "hook_dict", {}).items() if point is module]
        return " = ".join(known) or str(module.name or path)
    return path.replace("._original_component", "") or type(module).__name__


def _is_of_library(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None)).partition(".")[0] in _LIBRARIES


def _removal(handle: Any) -> str:
    if handle is None:
        return "the handle of each (handle.remove())"
    return "bridge.reset_hooks(including_permanent=True)" if handle.is_permanent else "bridge.reset_hooks()"

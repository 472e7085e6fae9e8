"""Tree attention: every new token of a packed pass looks back along its own prompts only.

A dense mask over the packed sequence would compute what it then throws away, and keep a matrix that is quadratic
in the length of the pass. Instead the pass is cut into short runs of queries, and each run attends to its
ancestors alone, with the model's own kernel. Keys and values of the last prompt are carried on to the next pass.

The function is registered with transformers as an attention implementation, so each model keeps its own
projections, norms and position embeddings around it.
"""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from transformers import AttentionInterface

from probes.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probes.capturing.trie import Chunk, Layout

NAME: Final = "probes_tree"
# What models hand to their attention besides queries, keys and values. The rest could change what is computed.
_UNDERSTOOD: Final = {
    *("dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal"),
    *("position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
}
# State that the registered function works on: transformers calls it by name, with no place for an argument.
_active: ContextVar[Any] = ContextVar("probes_attention")

_Query = Float[torch.Tensor, "row head pos d_head"]
_Key = Float[torch.Tensor, "row kv_head key d_head"]
_Value = Float[torch.Tensor, "row kv_head key d_value"]


def _dispatch(
    module: Any,
    query: _Query,
    key: _Key,
    value: _Value,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    # Models build no mask for this function, so what is handed in is something that it does not know of.
    unknown = [name for name, value in options.items() if value is not None and name not in _UNDERSTOOD]
    causal = options.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if attention_mask is not None or unknown or not causal:
        what = ", ".join(unknown) or ("a mask of its own" if causal else "tokens that look ahead")
        raise ModelError(f"attention with {what} is not supported in packed prompts")
    return _active.get().attend(module, query, key, value, **options), None


# Without a mask function of the same name, models build no mask at all.
AttentionInterface.register(NAME, _dispatch)


@contextlib.contextmanager
def attending(state: Any) -> Iterator[None]:
    """Let a state answer the attention calls of a block."""
    token = _active.set(state)
    try:
        yield
    finally:
        _active.reset(token)


class TreeAttention:
    """Attention of one packed pass.

    Args:
        layout: What attends to what.
        implementation: The model's own kernel, ``sdpa`` or ``eager``.
        n_layers: Number of the model's layers.
        carry: Keys and values of the carried tokens, one pair a layer.
        keep: Nodes whose keys and values are kept for later; those of the last prompt unless given.
    """

    def __init__(
        self,
        layout: Layout,
        implementation: str,
        n_layers: int,
        carry: list[tuple[_Key, _Value]],
        keep: np.ndarray | None = None,
    ) -> None:
        self._layout = layout
        self._kernel = _KERNELS[implementation]
        self._carry = carry
        self._keep = layout.last_path if keep is None else keep
        self._plans: dict[Any, list[tuple[Chunk, Any, torch.Tensor]]] = {}
        self._kept: dict[torch.device, torch.Tensor] = {}
        self._n_layers = n_layers
        self._stores: dict[Any, torch.Tensor] = {}
        self.kept: list[tuple[_Key, _Value]] = []
        self.options: dict[str, Any] = {}

    def attend(
        self, module: Any, query: _Query, key: _Key, value: _Value, **options: Any
    ) -> Float[torch.Tensor, "row pos head d_value"]:
        """One layer's attention; layers call in order, once each."""
        window = window_of(module, options)
        if self._layout.carried:
            past_key, past_value = self._carry[len(self.kept)]
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        if key.device not in self._kept:
            self._kept[key.device] = torch.as_tensor(self._keep, device=key.device)
        kept = self._kept[key.device]
        self.kept.append((self._store("key", key, kept), self._store("value", value, kept)))
        output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        for chunk, keys, mask in self._plan(window, query):
            part = query[:, :, chunk.start : chunk.stop]
            selected = [t[:, :, keys] if isinstance(keys, slice) else t.index_select(2, keys) for t in (key, value)]
            output[:, chunk.start : chunk.stop] = self._kernel(module, part, *selected, mask, **options)
        return output

    def _store(self, name: str, whole: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Copy what is kept of a layer's keys or values.

        Into one block for all layers: small ones between large temporaries would fragment the heap.
        """
        place = (name, whole.device, *whole.shape[:2], whole.shape[3])
        if place not in self._stores:
            self._stores[place] = whole.new_empty(self._n_layers, *whole.shape[:2], len(kept), whole.shape[3])
        stored = self._stores[place][len(self.kept)]
        stored.copy_(whole.index_select(2, kept))
        return stored

    def _plan(self, window: int | None, query: _Query) -> list[tuple[Chunk, Any, torch.Tensor]]:
        """Keys and additive mask of every chunk, under a sliding window where the layer has one."""
        place = (window, query.device, query.dtype)
        if place not in self._plans:
            self._plans[place] = [self._prepare(chunk, window, query) for chunk in self._layout.chunks]
        return self._plans[place]

    @staticmethod
    def _prepare(chunk: Chunk, window: int | None, query: _Query) -> tuple[Chunk, Any, torch.Tensor]:
        keys, visible = chunk.keys, chunk.visible
        if window is not None:
            # Counted along the prompt: in the packed sequence, neighbours may belong to other prompts.
            visible = visible & (chunk.query_depth[:, None] - chunk.key_depth < window)
            seen = visible.any(axis=0)
            keys, visible = keys[seen], visible[:, seen]
        mask = torch.zeros(visible.shape, dtype=query.dtype)
        mask.masked_fill_(torch.from_numpy(~visible), -torch.inf)
        contiguous = int(keys[-1]) - int(keys[0]) + 1 == len(keys)
        where: Any = (
            slice(int(keys[0]), int(keys[-1]) + 1) if contiguous else torch.as_tensor(keys, device=query.device)
        )
        return chunk, where, mask.to(query.device)[None, None]


def window_of(module: Any, options: dict[str, Any]) -> int | None:
    """Sliding window of a layer, as the model hands it to its attention function.

    Raises:
        ModelError: The layer is of another kind than full or sliding attention, or keeps its window to itself.
    """
    window = options.get("sliding_window")
    types = getattr(module.config, "layer_types", None)
    kind = types[module.layer_idx] if types else None
    if kind not in {None, "full_attention", "sliding_attention"} or (kind == "sliding_attention" and window is None):
        raise ModelError(f"layer {module.layer_idx} has {kind}, which packed prompts do not support")
    return int(window) if window is not None and kind != "full_attention" else None


def attend_alone(
    kernel: str, module: Any, query: _Query, key: _Key, value: _Value, mask: torch.Tensor, **options: Any
) -> Float[torch.Tensor, "row pos head d_value"]:
    """Attention of one query a row, to keys of its own."""
    if kernel == "eager":
        return _eager(module, query, key, value, mask, **options)
    _refuse_unknown(options)
    # Query heads that share a key head become queries of it: no copies of keys and values.
    grouped = rearrange(query, "row (kv group) 1 d -> row kv group d", kv=key.shape[1])
    result = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask, scale=options.get("scaling")
    )
    return rearrange(result, "row kv group d -> row 1 (kv group) d")


def _sdpa(
    module: Any,  # noqa: ARG001 - as the models' own functions
    query: _Query,
    key: _Key,
    value: _Value,
    mask: torch.Tensor,
    **options: Any,
) -> Float[torch.Tensor, "row pos head d_value"]:
    _refuse_unknown(options)
    groups = query.shape[1] // key.shape[1]
    # Query heads that share a key head become the batch: strides instead of copies of keys and values.
    parts = rearrange(query, "1 (kv group) pos d -> group kv pos d", group=groups)
    result = torch.nn.functional.scaled_dot_product_attention(
        parts,
        key.expand(groups, -1, -1, -1),
        value.expand(groups, -1, -1, -1),
        attn_mask=mask,
        scale=options.get("scaling"),
    )
    return rearrange(result, "group kv pos d -> 1 pos (kv group) d")


def _refuse_unknown(options: dict[str, Any]) -> None:
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ModelError("this model's attention has a soft-cap or sinks, which SDPA does not compute")


def _eager(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
) -> Float[torch.Tensor, "row pos head d_value"]:
    # The model's own function, with its soft-cap, sinks and what else it has.
    forward = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return forward(module, query, key, value, mask, **options)[0]


_KERNELS: Final[dict[str, Any]] = {"sdpa": _sdpa, "eager": _eager}

"""The engine: one forward pass over some prompts, the residual stream of every layer at one position each.

TransformerLens hooks copy the read positions out of each block's output; nothing else is kept. A hook in front
of the unembedding cuts every sequence down to its read position, so the output matrix is applied once a prompt
instead of once a token.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from probes.lens import Readout

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class PassResult:
    """What one pass reads.

    Attributes:
        residual: States before the final norm, as float32 ``[row, layer, d_model]``.
        token_logits: The model's own logits of the score tokens ``[row, token]``.
        scale_mass: Their share of the full vocabulary's probability ``[row]``.
    """

    residual: Float[np.ndarray, "row layer d_model"]
    token_logits: Float[np.ndarray, "row token"]
    scale_mass: Float[np.ndarray, " row"]


class Engine:
    """Runs passes on a judge's bridge.

    Args:
        bridge: A ``TransformerBridge`` in eval mode.
        readout: Names the score tokens.
        padding_side: Where shorter prompts of a pass are padded. On the right, real tokens keep their default
            positions; results agree on either side.
    """

    def __init__(self, bridge: Any, readout: Readout, padding_side: PaddingSide = "right") -> None:
        self.bridge = bridge
        self.padding_side = padding_side
        self._device = bridge.W_E.device if hasattr(bridge, "W_E") else next(bridge.parameters()).device
        self._token_ids = torch.as_tensor(readout.token_ids)

    def prefix_cache(self, prefix: Sequence[int]) -> Any:
        """Keys and values of a prefix that prompts share, for ``run``."""
        tokens = torch.tensor([list(prefix)], device=self._device)
        with torch.inference_mode(), self.bridge.hooks(fwd_hooks=[("unembed.hook_in", _keep_last)]):
            _, cache = self.bridge(tokens, return_type="logits_and_cache", use_cache=True)
        return cache

    def run(self, prompts: Sequence[Sequence[int]], cache: Any = None) -> PassResult:
        """Read every prompt at its last token.

        Args:
            prompts: Token ids; behind a cached prefix, only what follows it.
            cache: From ``prefix_cache``; it is copied, not changed.
        """
        with torch.inference_mode():
            return self._run(prompts, cache)

    def _run(self, prompts: Sequence[Sequence[int]], cache: Any) -> PassResult:
        tokens, mask, last = self._pad(prompts)
        options: dict[str, Any] = {}
        past = 0
        if cache is not None:
            past = int(cache.get_seq_length())
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(prompts))
            options = {"past_key_values": cache, "use_cache": True}
        if not bool(mask.all()):
            # A mask without holes is left out: the fast causal kernels need none.
            options["attention_mask"] = torch.nn.functional.pad(mask, (past, 0), value=1)
        states: dict[int, torch.Tensor] = {}
        with self.bridge.hooks(fwd_hooks=self._hooks(last, states)):
            logits = self.bridge(tokens, return_type="logits", **options)
        residual = torch.stack([states[layer] for layer in range(len(states))])
        logits = logits[:, -1].float()
        ours = logits[:, self._token_ids.to(logits.device)]
        mass = torch.exp(torch.logsumexp(ours.double(), -1) - torch.logsumexp(logits.double(), -1))
        return PassResult(
            residual=rearrange(residual, "layer row d_model -> row layer d_model").float().cpu().numpy(),
            token_logits=ours.cpu().numpy(),
            scale_mass=mass.float().cpu().numpy(),
        )

    def _hooks(
        self, last: Int[torch.Tensor, " row"], states: dict[int, torch.Tensor]
    ) -> list[tuple[str, Callable[..., Any]]]:
        def keep(layer: int) -> Callable[..., None]:
            def hook(activation: torch.Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens' signature
                # Indexing copies; a view would keep the whole sequence alive. Layers may lie on several devices.
                rows = torch.arange(len(last), device=activation.device)
                states[layer] = activation[rows, last.to(activation.device)].to(self._device)

            return hook

        def cut(activation: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
            rows = torch.arange(len(last), device=activation.device)
            return rearrange(activation[rows, last.to(activation.device)], "row d_model -> row 1 d_model")

        n_layers = int(self.bridge.cfg.n_layers)
        blocks = [(f"blocks.{block}.hook_out", keep(block + 1)) for block in range(n_layers)]
        return [("blocks.0.hook_in", keep(0)), *blocks, ("unembed.hook_in", cut)]

    def _pad(
        self, prompts: Sequence[Sequence[int]]
    ) -> tuple[Int[torch.Tensor, "row pos"], Int[torch.Tensor, "row pos"], Int[torch.Tensor, " row"]]:
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt) if self.padding_side == "left" else 0
            tokens[row, start : start + len(prompt)] = torch.as_tensor(prompt)
            mask[row, start : start + len(prompt)] = 1
        lengths = mask.sum(1)
        last = torch.full_like(lengths, longest - 1) if self.padding_side == "left" else lengths - 1
        return tokens.to(self._device), mask.to(self._device), last.to(self._device)


def _keep_last(activation: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 - TransformerLens' signature
    return activation[:, -1:]


@contextlib.contextmanager
def native_attention(bridge: Any, implementation: str | None) -> Iterator[None]:
    """Run the model's own attention instead of the bridge's eager re-implementation, for the time of a capture.

    The bridge re-implements attention so that hooks inside it can fire. Capture hooks none of these, and the
    original modules with their fast kernels (SDPA, flash) give the same states in less time and memory.

    Args:
        bridge: The bridge.
        implementation: What the model used before the bridge wrapped it; None leaves everything as it is.
    """
    if implementation is None:
        yield
        return
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    model = bridge.original_model
    configs = [model.config, getattr(model.config, "text_config", None)]
    before = [(config, config._attn_implementation) for config in configs if config is not None]
    swapped: list[tuple[dict[str, Any], str, Any]] = []
    for block in bridge.blocks:
        children = block.original_component._modules
        for name, module in children.items():
            if isinstance(module, AttentionBridge) and module.original_component is not None:
                swapped.append((children, name, module))
    try:
        for children, name, module in swapped:
            children[name] = module.original_component
        for config, _ in before:
            config._attn_implementation = implementation
        yield
    finally:
        for children, name, module in swapped:
            children[name] = module
        for config, old in before:
            config._attn_implementation = old

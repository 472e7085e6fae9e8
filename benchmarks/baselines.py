"""What captures are compared with: plain transformers, TransformerLens, and LAGER's way, each written out here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float

    from probes.lens import Readout

Prompts = "Sequence[Sequence[int]]"


@dataclass(frozen=True, eq=False)
class Found:
    """What a baseline read at the last token of each prompt; a part it does not read is None.

    Attributes:
        residual: States before the final norm, from the embedding on ``[row, layer, d_model]``.
        norm_logits: Logits of the labels under the ``norm`` lens, up to the last layer ``[row, layer, label]``.
    """

    residual: Float[np.ndarray, "row layer d_model"] | None = None
    norm_logits: Float[np.ndarray, "row layer label"] | None = None


def padded(model: Any, prompts: Prompts, readout: Readout, batch_tokens: int) -> Found:
    """Plain transformers, prompts of similar length padded on the right, with torch's own hooks on the blocks.

    Args:
        model: A Llama without a bridge.
        prompts: Token ids.
        readout: Names the labels' tokens.
        batch_tokens: Tokens of a pass, padding included; 1 runs one prompt a pass.
    """
    layers = model.model.layers
    residual = np.empty((len(prompts), len(layers) + 1, model.config.hidden_size), dtype=np.float32)
    states: list[torch.Tensor] = []
    places: tuple[torch.Tensor, torch.Tensor]

    def keep(_: Any, args: Any, output: Any = None) -> None:
        hidden = args[0] if output is None else output[0] if isinstance(output, tuple) else output
        states.append(hidden[places])

    handles = [layers[0].register_forward_pre_hook(keep), *(layer.register_forward_hook(keep) for layer in layers)]
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    try:
        while order:
            longest = len(prompts[order[0]])
            fit = max(1, batch_tokens // longest)
            batch, order = order[:fit], order[fit:]
            lengths = torch.tensor([len(prompts[row]) for row in batch])
            mask = (torch.arange(longest) < lengths[:, None]).long()
            tokens = torch.zeros_like(mask)
            tokens[mask.bool()] = torch.tensor([token for row in batch for token in prompts[row]])
            places = torch.arange(len(batch)), lengths - 1
            # Without a mask, the kernel for causal passes is taken.
            options = {} if mask.all() else {"attention_mask": mask}
            states.clear()
            with torch.inference_mode():
                model.model(tokens, use_cache=False, **options)
            residual[batch] = torch.stack(states, dim=1).numpy()
    finally:
        for handle in handles:
            handle.remove()
    return Found(residual, readout.score_logits(residual, "norm"))


def bare(model: Any, prompts: Prompts, readout: Readout) -> Found:
    """The decoder alone, one prompt a pass: no hooks, no output matrix, nothing kept but the last state."""
    with torch.inference_mode():
        last = [model.model(torch.tensor([p]), use_cache=False).last_hidden_state[0, -1] for p in prompts]
        # The model has applied its final norm already.
        rows = torch.from_numpy(readout.unembed_rows)
        logits = readout.join_spellings((torch.stack(last) @ rows.T).numpy())
    return Found(norm_logits=logits[:, None])


def bare_passes(model: Any, shapes: Sequence[tuple[int, int]]) -> Found:
    """The decoder alone on causal passes of given rows and tokens, whatever the tokens are."""
    with torch.inference_mode():
        for rows, length in shapes:
            model.model(torch.arange(rows * length).reshape(rows, length) % 40_000 + 100, use_cache=False)
    return Found()


def hooks(bridge: Any, prompts: Prompts, readout: Readout) -> Found:
    """TransformerLens hooks on the residual stream, one prompt a pass, the bridge as it boots."""
    states: list[torch.Tensor] = []

    def keep(activation: torch.Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens' signature
        states.append(activation[0, -1].clone())

    def cut(activation: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
        return activation[:, -1:]

    n_layers = int(bridge.cfg.n_layers)
    names = ["blocks.0.hook_in", *(f"blocks.{block}.hook_out" for block in range(n_layers))]
    wanted: list[tuple[str, Callable[..., Any]]] = [*((name, keep) for name in names), ("unembed.hook_in", cut)]
    with torch.inference_mode():
        for prompt in prompts:
            bridge.run_with_hooks(torch.tensor([prompt]), return_type="logits", fwd_hooks=wanted)
    residual = torch.stack(states).float().numpy().reshape(len(prompts), n_layers + 1, -1)
    return Found(residual, readout.score_logits(residual, "norm"))


def transformer_lens(bridge: Any, prompts: Prompts, readout: Readout) -> Found:
    """TransformerLens' own logit lens on the score tokens, one prompt a call."""
    from transformer_lens.tools.analysis import logit_lens

    vocab = readout.token_ids.tolist()
    with torch.inference_mode():
        values = [logit_lens(bridge, torch.tensor([prompt]), vocab=vocab).values[:, 0] for prompt in prompts]
    return Found(norm_logits=readout.join_spellings(torch.stack(values).float().numpy()))


# As LAGER's released code has them for direct scores.
_PADDED, _NEW_TOKENS, _BATCH = 2048, 10, 4


def lager(model: Any, prompts: Prompts, readout: Readout) -> Found:
    """LAGER's way: pad to 2,048 on the left, generate up to ten tokens, keep all hidden states of all positions.

    Then the output matrix on every layer's state where the last label of the generated text was emitted. That may
    be later than the first new token, so what is returned for comparison is read at the first.
    """
    labels = set(readout.token_ids.tolist())
    states, logits = [], []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        tokens, mask = (torch.zeros(len(batch), _PADDED, dtype=torch.long) for _ in range(2))
        for row, prompt in enumerate(batch):
            tokens[row, -len(prompt) :] = torch.tensor(prompt)
            mask[row, -len(prompt) :] = 1
        with torch.inference_mode():
            generated = model.generate(
                tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=_NEW_TOKENS,
                pad_token_id=0,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
            scores = []
            for row in range(len(batch)):
                new = generated.sequences[row, _PADDED:].tolist()
                step = max((k for k, token in enumerate(new) if token in labels), default=None)
                if step is not None:
                    scores.append([model.lm_head(layer[row, -1]) for layer in generated.hidden_states[step]])
            first = torch.stack([layer[:, -1] for layer in generated.hidden_states[0]], dim=1)
        # The last of transformers' hidden states has passed the final norm, the others have not.
        states.append(first[:, :-1].numpy())
        logits.append(readout.join_spellings(first[:, -1].numpy() @ readout.unembed_rows.T))
    return Found(np.concatenate(states), np.concatenate(logits)[:, None])

"""Decoders: answers grow by one token a step, and each step gives the states that emitted the next token.

``PackedDecoder`` computes the prompts of a pass with every shared prefix once, then decodes all answers together,
each with keys and values of its own. ``PlainDecoder`` decodes one answer with the model's own cache, in every
architecture.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int

from probes.capturing.attention import NAME, attend_alone, attending, window_of
from probes.capturing.engine import Wanted, native_attention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.capturing.engine import Engine, Tokens

# Positions by which the room for keys and values grows, so that it is not moved at every step.
_ROOM = 64


@dataclass(frozen=True, eq=False)
class Step:
    """What emits the next token of every answer.

    Attributes:
        residual: States before the final norm at the last position ``[answer, layer, d_model]``.
        logits: Full-vocabulary logits ``[answer, vocabulary]``.
    """

    residual: Float[torch.Tensor, "answer layer d_model"]
    logits: Float[torch.Tensor, "answer vocabulary"]


@runtime_checkable
class Decoder(Protocol):
    """Decodes some answers together."""

    def start(self) -> Step:
        """Compute the prompts."""

    def step(self, tokens: Int[np.ndarray, " answer"]) -> Step:
        """Append one token to every answer."""

    def keep(self, answers: Bool[np.ndarray, " answer"]) -> None:
        """Go on with some of the answers only."""


class PackedDecoder:
    """Decodes the answers to all prompts of a pass.

    Args:
        engine: The engine.
        prompts: Token ids, in lexicographic order.
        samples: Answers a prompt; all of the first prompt come first.
        kernel: The model's own attention, ``sdpa`` or ``eager``.
    """

    def __init__(self, engine: Engine, prompts: Sequence[Tokens], samples: int, kernel: str) -> None:
        self._engine = engine
        self._prompts = prompts
        self._samples = samples
        self._state = _AnswerAttention(kernel)

    def start(self) -> Step:
        """Compute the prompts, every shared prefix once, and deal out their keys and values."""
        engine, prompts = self._engine, self._prompts
        layout = engine.pack(prompts, [len(prompt) - 1 for prompt in prompts], wanted=[0] * len(prompts))
        last = engine.tensor(np.array([path[-1] for path in layout.paths]) - layout.carried)
        wanted = Wanted(torch.zeros_like(last), last)
        nodes = np.arange(layout.carried + len(layout.tokens))
        with engine.attending(layout, self._state.kernel, keep=nodes) as attention:
            states, logits, _ = engine.states(engine.tensor(layout.tokens)[None], wanted, **attention.options)
        with torch.inference_mode():
            on = engine.tensor(layout.last_path)
            engine.carry_on(
                prompts[-1],
                [(k.index_select(2, on.to(k.device)), v.index_select(2, on.to(v.device))) for k, v in attention.kept],
            )
            self._state.deal(attention.kept, layout.paths, self._samples)
            each = self._samples
            return Step(states["residual"].repeat_interleave(each, 0), logits.repeat_interleave(each, 0))

    def step(self, tokens: Int[np.ndarray, " answer"]) -> Step:
        """Append one token to every answer."""
        engine, state = self._engine, self._state
        state.begin()
        positions = engine.tensor(state.lengths - 1)[:, None]
        rows = torch.arange(len(tokens), device=engine.device)
        wanted = Wanted(rows, torch.zeros_like(rows))
        with native_attention(engine.bridge, NAME), attending(state):
            states, logits, _ = engine.states(engine.tensor(tokens)[:, None], wanted, position_ids=positions)
        return Step(states["residual"], logits)

    def keep(self, answers: Bool[np.ndarray, " answer"]) -> None:
        """Go on with some of the answers only."""
        self._state.keep(answers)


class _AnswerAttention:
    """Attention of one new token an answer, each to its own prompt and what was generated so far."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.lengths: Int[np.ndarray, " answer"] = np.empty(0, dtype=np.int64)
        # One a layer, [answer, head, position, d_head]; positions behind an answer's length are not looked at.
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._layer = 0
        self._masks: dict[Any, torch.Tensor] = {}

    def deal(self, kept: Sequence[tuple[Any, Any]], paths: Sequence[Tokens], samples: int) -> None:
        """Give every answer the keys and values along its prompt."""
        lengths = np.array([len(path) for path in paths])
        index = np.zeros((len(paths), int(lengths.max()) + _ROOM), dtype=np.int64)
        for row, path in enumerate(paths):
            index[row, : len(path)] = path
        self.lengths = np.repeat(lengths, samples)
        self._keys, self._values = [], []
        for key, value in kept:
            nodes = torch.as_tensor(np.repeat(index, samples, axis=0), device=key.device)
            for dealt, whole in ((self._keys, key), (self._values, value)):
                dealt.append(rearrange(whole[0][:, nodes], "head answer pos d -> answer head pos d").contiguous())

    def begin(self) -> None:
        """Make room for one more token of every answer."""
        self.lengths = self.lengths + 1
        self._layer = 0
        self._masks = {}
        if int(self.lengths.max()) > self._keys[0].shape[2]:
            self._keys = [torch.nn.functional.pad(key, (0, 0, 0, _ROOM)) for key in self._keys]
            self._values = [torch.nn.functional.pad(value, (0, 0, 0, _ROOM)) for value in self._values]

    def keep(self, answers: Bool[np.ndarray, " answer"]) -> None:
        self.lengths = self.lengths[answers]
        longest = int(self.lengths.max()) + _ROOM
        rows = torch.as_tensor(np.flatnonzero(answers))
        self._keys = [key[:, :, :longest].index_select(0, rows.to(key.device)) for key in self._keys]
        self._values = [value[:, :, :longest].index_select(0, rows.to(value.device)) for value in self._values]

    def attend(
        self,
        module: Any,
        query: Float[torch.Tensor, "answer head 1 d_head"],
        key: Float[torch.Tensor, "answer kv_head 1 d_head"],
        value: Float[torch.Tensor, "answer kv_head 1 d_value"],
        **options: Any,
    ) -> Float[torch.Tensor, "answer 1 head d_value"]:
        """One layer's attention; layers call in order, once each."""
        keys, values = self._keys[self._layer], self._values[self._layer]
        self._layer += 1
        rows = torch.arange(len(query), device=key.device)
        last = torch.as_tensor(self.lengths - 1, device=key.device)
        keys[rows, :, last], values[rows, :, last] = key[:, :, 0], value[:, :, 0]
        stop = int(self.lengths.max())
        mask = self._mask(window_of(module, options), query, stop)
        return attend_alone(self.kernel, module, query, keys[:, :, :stop], values[:, :, :stop], mask, **options)

    def _mask(self, window: int | None, query: torch.Tensor, stop: int) -> torch.Tensor:
        place = (window, query.device)
        if place not in self._masks:
            distance = (self.lengths - 1)[:, None] - np.arange(stop)
            visible = (distance >= 0) & (distance < (stop if window is None else window))
            mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(torch.from_numpy(~visible), -torch.inf)
            self._masks[place] = mask[:, None, None].to(query.device)
        return self._masks[place]


class PlainDecoder:
    """Decodes one answer with the model's own cache, or from the start each time where it has none.

    Args:
        engine: The engine.
        prompt: Token ids.
        cached: Use the cache; without, every step is what a pass over all tokens gives.
    """

    def __init__(self, engine: Engine, prompt: Tokens, *, cached: bool = True) -> None:
        self._engine = engine
        self._cached = cached
        self._tokens = np.asarray(prompt, dtype=np.int64)
        self._cache: Any = None

    def start(self) -> Step:
        """Compute the prompt."""
        return self._run(self._tokens)

    def step(self, tokens: Int[np.ndarray, " answer"]) -> Step:
        """Append one token."""
        self._tokens = np.append(self._tokens, tokens)
        return self._run(self._tokens if self._cache is None else self._tokens[-1:])

    def keep(self, answers: Bool[np.ndarray, " answer"]) -> None:
        """There is one answer only."""

    def _run(self, tokens: Tokens) -> Step:
        engine = self._engine
        wanted = Wanted(engine.tensor(np.zeros(1)), engine.tensor(np.array([len(tokens) - 1])))
        options: dict[str, Any] = {}
        if self._cache is not None:
            options["past_key_values"] = self._cache
            # Some models count the tokens of a call from 0 unless they are told.
            if "position_ids" in inspect.signature(engine.bridge.original_model.forward).parameters:
                options["position_ids"] = engine.tensor(np.array([[len(self._tokens) - 1]]))
        states, logits, cache = engine.states(engine.tensor(tokens)[None], wanted, use_cache=self._cached, **options)
        self._cache = cache if self._cached else None
        return Step(states["residual"], logits)

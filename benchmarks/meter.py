"""Where the time of a capture goes, and how fast the machine is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from probes.capturing import checking

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Meter:
    """Listens to a bridge and to the check of a capture, for the time of a call.

    Attributes:
        shapes: Rows and new tokens of every forward pass outside the check.
        total: Seconds of the call.
        forward: Seconds inside the model's forward, outside the check.
        check: Seconds of the check, its forward passes included.
    """

    bridge: Any
    shapes: list[tuple[int, int]] = field(default_factory=list)
    total: float = 0.0
    forward: float = 0.0
    check: float = 0.0
    _checking: bool = False
    _started: float = 0.0

    def time(self, run: Callable[[], Any]) -> Any:
        """Call a function and return what it returns."""
        handles = [
            self.bridge.register_forward_pre_hook(self._enter, with_kwargs=True),
            self.bridge.register_forward_hook(self._leave),
        ]
        # The part of the check of a run's first pass that a capture without it would not do.
        original = checking.alone

        def checked(*args: Any, **kwargs: Any) -> Any:
            started, self._checking = time.perf_counter(), True
            try:
                return original(*args, **kwargs)
            finally:
                self.check += time.perf_counter() - started
                self._checking = False

        started = time.perf_counter()
        try:
            with mock.patch.object(checking, "alone", checked):
                return run()
        finally:
            self.total = time.perf_counter() - started
            for handle in handles:
                handle.remove()

    @property
    def unchecked(self) -> float:
        """Seconds of the call without the check."""
        return self.total - self.check

    @property
    def outside(self) -> float:
        """Share of these that is spent outside the model's forward."""
        return 1 - self.forward / self.unchecked

    def _enter(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._checking:
            tokens = args[0] if args else kwargs["input"]
            self.shapes.append((int(tokens.shape[0]), int(tokens.shape[1])))
        self._started = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        if not self._checking:
            self.forward += time.perf_counter() - self._started


def matrix_rate(size: int = 2048) -> float:
    """Floating-point operations a second of one float32 matrix product, on all threads that torch uses."""
    left, right = torch.rand(2, size, size)
    started = time.perf_counter()
    torch.mm(left, right)
    return 2 * size**3 / (time.perf_counter() - started)


def pass_operations(model: Any, tokens: int, pairs: int) -> float:
    """Floating-point operations of a decoder on some tokens that attend to so many pairs."""
    config = model.config
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Scores and weighted values: two products of a head's width a pair.
    return 2.0 * weights * tokens + 4.0 * config.num_hidden_layers * config.num_attention_heads * head * pairs

"""The plan: which prompts share which pass, in which order. A pure function of token ids and settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A shared prefix shorter than this is not worth a cache.
_MIN_PREFIX = 16
# Cached and new tokens of a pass together may be so many times the tokens that it computes.
_CACHE_FACTOR = 6
# Rows and tokens that one shard holds at least, in whole passes: what a killed run can lose.
_SHARD_ROWS = 256
_SHARD_TOKENS = 50_000


@dataclass(frozen=True)
class Plan:
    """How a capture is carried out.

    Attributes:
        n_tokens: Length of every prompt ``[reading]``.
        prefix: Token ids with which every prompt starts; computed once.
        passes: Reading numbers of each forward pass, in order.
        shards: Pass numbers of each shard, in order; a shard holds whole passes.
        too_long: Reading numbers whose prompts exceed ``max_tokens``.
        max_tokens: Longest prompt that is captured; None for no limit.
        batch_tokens: Tokens in one pass, padding included.
    """

    n_tokens: tuple[int, ...]
    prefix: tuple[int, ...]
    passes: tuple[tuple[int, ...], ...]
    shards: tuple[tuple[int, ...], ...]
    too_long: tuple[int, ...]
    max_tokens: int | None
    batch_tokens: int

    @property
    def tokens_before(self) -> int:
        """Tokens that one-by-one capture would compute."""
        return sum(self.n_tokens[row] for group in self.passes for row in group)

    @property
    def tokens_after(self) -> int:
        """Tokens that this plan computes, padding included."""
        own = sum(len(group) * (max(self.n_tokens[row] for row in group) - len(self.prefix)) for group in self.passes)
        return own + len(self.prefix)

    def digest(self) -> str:
        """SHA-256 of the plan; a run resumes only under the plan that it was started with."""
        parts = [self.batch_tokens, self.prefix, self.passes, self.shards, self.too_long]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def make_plan(
    prompts: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    max_tokens: int | None = None,
    share_prefix: bool = True,
) -> Plan:
    """Arrange prompts into passes of similar length.

    Args:
        prompts: Token ids of every reading.
        batch_tokens: Tokens in one pass, padding included; a longer prompt has a pass of its own.
        max_tokens: Longest prompt to capture; longer ones are listed as ``too_long``, never cut.
        share_prefix: Compute the tokens with which all prompts start once.
    """
    n_tokens = tuple(map(len, prompts))
    fitting = [row for row, n in enumerate(n_tokens) if max_tokens is None or n <= max_tokens]
    too_long = tuple(row for row, n in enumerate(n_tokens) if max_tokens is not None and n > max_tokens)
    prefix: tuple[int, ...] = ()
    if share_prefix and len(fitting) > 1:
        prefix = _common_start([tuple(prompts[row]) for row in fitting])
    passes: list[tuple[int, ...]] = []
    current: list[int] = []
    # Longest first: a pass that does not fit into memory fails at the start, not after hours.
    for row in sorted(fitting, key=lambda row: (-n_tokens[row], row)):
        if current and len(current) >= rows_that_fit(n_tokens[current[0]], len(prefix), batch_tokens):
            passes.append(tuple(current))
            current = []
        current.append(row)
    if current:
        passes.append(tuple(current))
    return Plan(n_tokens, prefix, tuple(passes), _into_shards(passes, n_tokens), too_long, max_tokens, batch_tokens)


def rows_that_fit(longest: int, prefix: int, batch_tokens: int) -> int:
    """How many prompts one pass takes.

    What is computed is bounded by ``batch_tokens``, and what is kept in memory by a few times that: every row of a
    pass holds its own copy of the prefix's keys and values.

    Args:
        longest: Tokens of the longest prompt of the pass.
        prefix: Tokens of it that are in the cache.
        batch_tokens: Tokens in one pass, padding included.
    """
    return max(1, min(batch_tokens // (longest - prefix), _CACHE_FACTOR * batch_tokens // longest))


def _common_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Tokens with which all prompts start, if they are worth a cache."""
    # Whatever the smallest and the largest share, all in between share as well.
    first, last = min(prompts), max(prompts)
    # Every prompt keeps at least its last token, which is the one that is read.
    length = min(map(len, prompts)) - 1
    shared = next((k for k in range(length) if first[k] != last[k]), length)
    return first[:shared] if shared >= _MIN_PREFIX else ()


def _into_shards(passes: Sequence[Sequence[int]], n_tokens: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    shards: list[tuple[int, ...]] = []
    current: list[int] = []
    rows = tokens = 0
    for number, group in enumerate(passes):
        current.append(number)
        rows += len(group)
        tokens += sum(n_tokens[row] for row in group)
        if rows >= _SHARD_ROWS or tokens >= _SHARD_TOKENS:
            shards.append(tuple(current))
            current, rows, tokens = [], 0, 0
    if current:
        shards.append(tuple(current))
    return tuple(shards)

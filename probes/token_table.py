"""Token ids of many prompts in two flat arrays, because Python lists take ten times the memory and the time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, Int32, Int64

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Prompts of different lengths, one after the other.

    Attributes:
        values: Token ids of all prompts ``[token]``.
        offsets: Where each prompt starts in ``values``, and the end of the last one ``[prompt + 1]``.
    """

    values: Int32[np.ndarray, " token"]
    offsets: Int64[np.ndarray, " bound"]

    @classmethod
    def from_lists(cls, prompts: Iterable[Sequence[int]]) -> TokenTable:
        """Copy prompts that are sequences of token ids."""
        prompts = list(prompts)
        offsets = np.cumsum([0, *map(len, prompts)], dtype=np.int64)
        return cls(np.fromiter(chain.from_iterable(prompts), dtype=np.int32, count=int(offsets[-1])), offsets)

    @classmethod
    def concatenate(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """The prompts of several tables, one after the other."""
        lengths = np.concatenate([table.lengths for table in tables])
        values = [table.values[table.offsets[0] : table.offsets[-1]] for table in tables]
        return cls(np.concatenate(values), np.concatenate([[0], np.cumsum(lengths)]))

    def take(self, prompts: Int[np.ndarray, " chosen"]) -> TokenTable:
        """Some of the prompts, in the order asked for."""
        lengths = self.lengths[prompts]
        return TokenTable(self.values[ragged_rows(self.offsets, prompts)], np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, prompt: int) -> Int32[np.ndarray, " position"]:
        """Token ids of one prompt, as a view."""
        number = range(len(self))[prompt]  # counts from the end and refuses what is out of range, as a list does
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    @property
    def lengths(self) -> Int64[np.ndarray, " prompt"]:
        """Tokens of every prompt."""
        return np.diff(self.offsets)


def ragged_rows(offsets: Int[np.ndarray, " edge"], chosen: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " value"]:
    """Positions of the values of some rows of a ragged array, row by row, in the order asked for."""
    counts = np.diff(offsets)[chosen]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    # Within each row from its start; np.repeat shifts the running number back at every row.
    return np.asarray(np.arange(total) + np.repeat(offsets[chosen] - (ends - counts), counts), dtype=np.int64)


def common_prefix(first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"]) -> int:
    """Number of tokens with which both start."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length

"""Which tokens of every prompt are which part of it: system turn, examples, each field, scale, prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32, Int64

from probes.spanned import Span

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class PromptParts:
    """Parts of prompts, one prompt after the other.

    Attributes:
        names: Names of parts; see ``Span``.
        part: Number of the name of each part ``[span]``.
        start: Its first token ``[span]``.
        stop: One behind its last ``[span]``.
        offsets: Where the parts of each prompt start, and the end of the last one ``[prompt + 1]``.
    """

    names: tuple[str, ...]
    part: Int32[np.ndarray, " span"]
    start: Int32[np.ndarray, " span"]
    stop: Int32[np.ndarray, " span"]
    offsets: Int64[np.ndarray, " bound"]

    @classmethod
    def from_lists(cls, prompts: Sequence[Sequence[Span]]) -> PromptParts:
        """Parts of prompts in tokens."""
        numbers: dict[str, int] = {}
        rows = [(numbers.setdefault(span.part, len(numbers)), span.start, span.stop) for p in prompts for span in p]
        part, start, stop = np.array(rows, dtype=np.int32).reshape(-1, 3).T
        return cls(tuple(numbers), part, start, stop, np.cumsum([0, *map(len, prompts)], dtype=np.int64))

    @classmethod
    def none(cls, n_prompts: int) -> PromptParts:
        """Of prompts of which no part is known."""
        nothing = np.empty(0, np.int32)
        return cls((), nothing, nothing, nothing, np.zeros(n_prompts + 1, np.int64))

    @classmethod
    def concatenate(cls, tables: Sequence[PromptParts]) -> PromptParts:
        """The prompts of several tables, one after the other."""
        names = tuple(dict.fromkeys(name for table in tables for name in table.names))
        numbers = [np.array([names.index(name) for name in table.names], dtype=np.int32) for table in tables]
        counts = np.concatenate([np.diff(table.offsets) for table in tables])
        return cls(
            names,
            np.concatenate([known[table.part] for known, table in zip(numbers, tables, strict=True)]),
            np.concatenate([table.start for table in tables]),
            np.concatenate([table.stop for table in tables]),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def take(self, prompts: Int64[np.ndarray, " chosen"]) -> PromptParts:
        """Some of the prompts, in the order given."""
        return self.from_lists([self[int(prompt)] for prompt in prompts])

    def fault(self) -> str | None:
        """What is wrong with the tables; None where nothing is."""
        offsets, n = self.offsets, len(self.part)
        if not len(self.start) == len(self.stop) == n:
            return "are of different lengths"
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
            return "have offsets that do not ascend from 0 to the number of spans"
        if n and not (self.part.min() >= 0 and self.part.max() < len(self.names)):
            return "name a part that has no name"
        return None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, prompt: int) -> tuple[Span, ...]:
        """Parts of one prompt."""
        number = range(len(self))[prompt]
        rows = range(int(self.offsets[number]), int(self.offsets[number + 1]))
        return tuple(Span(self.names[self.part[row]], int(self.start[row]), int(self.stop[row])) for row in rows)

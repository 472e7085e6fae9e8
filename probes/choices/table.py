"""The choices of all items of a run, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from probes.token_table import TokenTable, ragged_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Item


@dataclass(frozen=True, eq=False)
class ChoiceTable:
    """Choices of items, ragged: those of item ``i`` are the rows ``offsets[i]`` to ``offsets[i + 1]``.

    Attributes:
        offsets: Where the choices of each item start; one more than there are items ``[edge]``.
        labels: Their texts ``[choice]``.
        scores: What each is worth, float64 ``[choice]``; NaN where nobody has said so.
        tokens: Tokens of each that are scored; together with the prompt they are what the model reads.
    """

    offsets: Int[np.ndarray, " edge"]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " choice"]
    tokens: TokenTable

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int[np.ndarray, " item"]:
        """Number of choices of each item."""
        return np.diff(self.offsets)

    @property
    def item(self) -> Int[np.ndarray, " choice"]:
        """Item of each choice."""
        return np.repeat(np.arange(self.n_items), self.counts)

    @property
    def n_tokens(self) -> Int[np.ndarray, " choice"]:
        """Number of tokens of each choice that are scored."""
        return self.tokens.lengths

    def fault(self) -> str | None:
        """What does not fit together; None where all does."""
        lengths = {len(self.labels), len(self.scores), len(self.tokens)}
        for offsets, last in ((self.offsets, len(self.labels)), (self.tokens.offsets, len(self.tokens.values))):
            if not len(offsets) or offsets[0] != 0 or offsets[-1] != last or (np.diff(offsets) < 0).any():
                return "has offsets that do not rise from 0 to the number of values"
        return None if len(lengths) == 1 else "has parts of different lengths"

    def rows(self, items: Int[np.ndarray, " selected"] | Sequence[int]) -> Int[np.ndarray, " choice"]:
        """Rows of the choices of some items, item by item."""
        return ragged_rows(self.offsets, np.asarray(items, dtype=np.int64))

    def select(self, items: Int[np.ndarray, " selected"]) -> ChoiceTable:
        """The choices of some items."""
        rows = self.rows(items)
        return ChoiceTable(
            offsets=np.concatenate([[0], np.cumsum(self.counts[items])]).astype(np.int64),
            labels=tuple(self.labels[row] for row in rows.tolist()),
            scores=self.scores[rows],
            tokens=self.tokens.take(rows),
        )

    def of_item(self, item: int) -> dict[str, Any]:
        """What an ``Item`` says of its choices."""
        part = slice(int(self.offsets[item]), int(self.offsets[item + 1]))
        scores = self.scores[part]
        return {"choices": self.labels[part], "choice_scores": () if np.isnan(scores).all() else tuple(scores.tolist())}

    @classmethod
    def concatenate(cls, tables: Sequence[ChoiceTable]) -> ChoiceTable:
        """The choices of the items of several tables, one after the other."""
        return cls(
            offsets=np.cumsum(np.concatenate([[0], *(table.counts for table in tables)]), dtype=np.int64),
            labels=tuple(label for table in tables for label in table.labels),
            scores=np.concatenate([table.scores for table in tables]),
            tokens=TokenTable.concatenate([table.tokens for table in tables]),
        )

    @classmethod
    def of(cls, items: Sequence[Item], tokens: TokenTable) -> ChoiceTable:
        """The choices of items, in order."""
        counts = [len(item.choices) for item in items]
        scores = [item.choice_scores or (np.nan,) * len(item.choices) for item in items]
        return cls(
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            labels=tuple(choice for item in items for choice in item.choices),
            scores=np.array([score for of_item in scores for score in of_item], dtype=np.float64),
            tokens=tokens,
        )

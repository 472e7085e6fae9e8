"""What the layers say of the choices of items, as judges of choices read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.errors import FitError
from probes.token_table import ragged_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a log-likelihood may be divided by: the number of scored tokens, or of bytes or characters of the choice's text.
Per = Literal["", "token", "byte", "char"]
PERS: Final[tuple[Per, ...]] = get_args(Per)
# The same in words.
PER_WORDS: Final[Mapping[str, str]] = {"token": "token", "byte": "byte", "char": "character"}


@dataclass(frozen=True, eq=False)
class ChoiceData:
    """Choices of items, one after the other, with their log-likelihood at every layer.

    Attributes:
        logprob: Log-likelihood of all tokens of a choice ``[choice, layer]``; NaN where an item was not captured.
        offsets: Where the choices of each item start, and where the last one's end.
        labels: Texts of the choices.
        scores: What each is worth; NaN where nobody has said so.
        n_tokens: Tokens of each.
        layers: Labels of the layer axis, ``embed, 1 .. L``.
        lens: Name of the lens.
        fields: Texts of every item, by name.
    """

    logprob: Float[np.ndarray, "choice layer"]
    offsets: Int[np.ndarray, " edge"]
    labels: tuple[str, ...]
    scores: Float[np.ndarray, " choice"]
    n_tokens: Int[np.ndarray, " choice"]
    layers: tuple[str, ...]
    lens: str
    fields: Sequence[Mapping[str, str]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int[np.ndarray, " item"]:
        """Number of choices of each item."""
        return np.diff(self.offsets)

    @property
    def usable(self) -> Bool[np.ndarray, " item"]:
        """Which items were captured: every log-likelihood is finite."""
        finite = np.isfinite(self.logprob).all(axis=1)
        return np.asarray(np.logical_and.reduceat(finite, self.offsets[:-1]) if len(self) else finite[:0])

    def rows(self, items: Int[np.ndarray, " row"]) -> Int[np.ndarray, " choice"]:
        """Rows of the choices of some items, item by item."""
        return ragged_rows(self.offsets, items)

    def select(self, items: Int[np.ndarray, " row"] | Bool[np.ndarray, " item"]) -> ChoiceData:
        """The same for some items, by index or by mask."""
        chosen = np.flatnonzero(items) if items.dtype == bool else items
        rows = self.rows(chosen)
        return replace(
            self,
            logprob=self.logprob[rows],
            offsets=np.concatenate([[0], np.cumsum(self.counts[chosen])]).astype(np.int64),
            labels=tuple(self.labels[row] for row in rows.tolist()),
            scores=self.scores[rows],
            n_tokens=self.n_tokens[rows],
            fields=[self.fields[row] for row in chosen.tolist()],
        )

    def divided(self, per: Per) -> Float[np.ndarray, "choice layer"]:
        """Log-likelihoods, float64, as they are or divided by the length of the choice."""
        values = self.logprob.astype(np.float64)
        if not per:
            return values
        # The text of the choice itself, without what stands in front of it, as evaluation harnesses measure it.
        texts: Sequence[str | bytes] = [label.encode() for label in self.labels] if per == "byte" else self.labels
        length = self.n_tokens if per == "token" else np.array([len(text) for text in texts])
        return np.asarray(values / np.maximum(length, 1)[:, None])

    def layer_index(self, layer: str) -> int:
        """Position of a layer label on the layer axis.

        Raises:
            FitError: There is no such layer.
        """
        if layer not in self.layers:
            raise FitError(
                f"there is no layer {layer!r}: choose one of {self.layers[0]}, {self.layers[1]} .. {self.layers[-1]}"
            )
        return self.layers.index(layer)


def read_per(per: str | None, *, of_choices: bool = True) -> Per | None:
    """What log-likelihoods are to be divided by, as it was asked for.

    Args:
        per: What was asked for.
        of_choices: Whether what is read has choices of its items.

    Raises:
        FitError: There is no such length, or nothing that has one.
    """
    if per is None:
        return None
    if not of_choices:
        raise FitError("per is about choices of items, and the run has the labels of a scale: leave it out (--per)")
    for known in PERS:
        if per == known:
            return known
    raise FitError(f"per is {per!r}: choose one of {', '.join(filter(None, PERS))} (--per)")

"""From readings to items: which readings belong together, and what they say about an item as a whole.

An item has one reading in the direct condition, one a sample where answers are sampled, and two a sample where
pairs are judged: one with the responses in the given order and one with them swapped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


class Status(enum.IntEnum):
    """Why a reading has numbers or not; rows of every status but ``OK`` are NaN."""

    OK = 0
    NO_SCORE = 1
    TOO_LONG = 2
    NON_FINITE = 3
    NOT_CAPTURED = 4
    ERROR = 5


@dataclass(frozen=True, eq=False)
class Readings:
    """What every reading of a run is of, and how it went.

    Attributes:
        item: Item number ``[reading]``.
        sample: Sample number ``[reading]``.
        swapped: Whether the two responses were shown in swapped order ``[reading]``; pairwise judging only.
        status: One ``Status`` a reading.
        n_items: Number of items.
    """

    item: Int[np.ndarray, " reading"]
    sample: Int[np.ndarray, " reading"]
    swapped: Bool[np.ndarray, " reading"]
    status: UInt8[np.ndarray, " reading"]
    n_items: int

    @cached_property
    def counted(self) -> Bool[np.ndarray, " reading"]:
        """Readings that count for their item: those of samples of which every reading is ``OK``.

        Of a pair both orders must be there, or the preference for a position would pass for one for a response.
        """
        # Samples are numbered from 0 within an item.
        key = self.item.astype(np.int64) * (int(self.sample.max(initial=0)) + 1) + self.sample
        samples, of = np.unique(key, return_inverse=True)
        failed = np.bincount(of, weights=self.status != Status.OK, minlength=len(samples))
        return np.asarray(failed[of] == 0)

    @cached_property
    def item_status(self) -> UInt8[np.ndarray, " item"]:
        """``OK`` where a reading counts, else the status of the item's first reading that failed."""
        status = np.full(self.n_items, Status.NOT_CAPTURED, dtype=np.uint8)
        failed = np.flatnonzero(self.status != Status.OK)[::-1]
        status[self.item[failed]] = self.status[failed]  # of several, the last one written is the first reading
        status[self.item[self.counted]] = Status.OK
        return status

    def item_logits(self, logits: Float[np.ndarray, "reading layer label"]) -> Float[np.ndarray, "item layer label"]:
        """Mean of the score logits over the readings that count, float32; NaN rows for all other items.

        The labels of swapped readings are reversed first, so that a label names the same response in both orders
        and the log-odds of a pair are the mean of its two log-odds.
        """
        if self.swapped.any():
            logits = np.where(self.swapped[:, None, None], logits[..., ::-1], logits)
        return self.item_mean(logits)

    def item_mean(self, values: Float[np.ndarray, "reading *axes"]) -> Float[np.ndarray, "item *axes"]:
        """Mean over the readings that count, float32; NaN rows for all other items."""
        if len(self.item) == self.n_items and (self.item == np.arange(self.n_items)).all():
            return values
        return self._mean(values, self.counted)

    def position_bias(self, odds: Float[np.ndarray, "reading layer"], layers: Sequence[str]) -> pd.DataFrame:
        """How much a pairwise judge leans to the response that it is shown first, per layer.

        With ``g`` and ``s`` an item's log-odds of "the first response shown is better" in the given and in the
        swapped order, its preference for one response is ``(g - s) / 2``, and its preference for the position is
        ``(g + s) / 2``: positive where the judge prefers what it is shown first.

        Args:
            odds: Logit of the label for the response shown first, minus that of the label for the other one.
            layers: Names along the layer axis.

        Returns:
            One row a layer: ``layer``; ``n``, items read in both orders; ``bias``, the mean over them of
            ``(g + s) / 2``; ``sd``, its standard deviation over items; ``flipped``, the share of items whose
            preferred response changes with the order, which is where ``g`` and ``s`` have the same sign.
        """
        import pandas as pd

        given = self._mean(odds, self.counted & ~self.swapped).astype(np.float64)
        swapped = self._mean(odds, self.counted & self.swapped).astype(np.float64)
        both = np.isfinite(given).all(axis=1) & np.isfinite(swapped).all(axis=1)
        given, swapped = given[both], swapped[both]
        n = int(both.sum())
        bias, blank = (given + swapped) / 2, np.full(len(layers), np.nan)
        return pd.DataFrame(
            {
                "layer": list(layers),
                "n": n,
                "bias": bias.mean(axis=0) if n else blank,
                "sd": bias.std(axis=0, ddof=1) if n > 1 else blank,
                "flipped": (given * swapped > 0).mean(axis=0) if n else blank,
            }
        )

    def _mean(
        self, values: Float[np.ndarray, "reading *axes"], which: Bool[np.ndarray, " reading"]
    ) -> Float[np.ndarray, "item *axes"]:
        """Mean of some readings an item, summed in float64; NaN for items that have none of them."""
        from scipy.sparse import csr_array  # takes as long to import as everything else that checks a file

        rows = np.flatnonzero(which)
        count = np.bincount(self.item[rows], minlength=self.n_items)
        picks = csr_array((np.ones(len(rows)), (self.item[rows], rows)), shape=(self.n_items, len(self.item)))
        total = picks @ values.reshape(len(values), -1)
        with np.errstate(invalid="ignore"):
            mean = (total / count[:, None]).astype(np.float32)  # 0 / 0 is the NaN that is wanted
        return np.asarray(mean.reshape(self.n_items, *values.shape[1:]))

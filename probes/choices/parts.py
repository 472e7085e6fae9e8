"""The items of a run of choices that take part, criterion by criterion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.choices.data import ChoiceData
from probes.choices.ragged import spread, sums
from probes.duplicates import join_groups
from probes.errors import FitError
from probes.runlike import HoldsChoices, RunLike, check_lens, chosen_criteria, shown_texts, where

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, eq=False)
class ChoicePart:
    """The items of one criterion that were captured and whose choices are worth something.

    Attributes:
        criterion: Name of the criterion, which is that of the task; ``all`` when pooled.
        rows: Their positions in the run.
        data: Their choices, by lens.
        groups: A number for the group of each; groups that share a text are one.
        free_text: Captured items whose answer is free text, by lens.
        free_groups: A number for the group of each of those.
        n_total: Items of the criterion, whether they can be used or not.
        n_unlabelled: Of these, how many have no scores of their choices, or none above 0.
        n_uncaptured: Of these, how many were not captured.
        n_free_text: Of these, how many have no wrong choice: their answer is free text.
        repeated: What was done about texts that occur in several groups, in words; None where there are none.
    """

    criterion: str
    rows: Int[np.ndarray, " used"]
    data: Mapping[str, ChoiceData]
    groups: Int[np.ndarray, " used"]
    free_text: Mapping[str, ChoiceData]
    free_groups: Int[np.ndarray, " free"]
    n_total: int
    n_unlabelled: int
    n_uncaptured: int
    n_free_text: int
    repeated: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def first(self) -> ChoiceData:
        """The choices under one of the lenses."""
        return next(iter(self.data.values()))

    @property
    def without(self) -> str:
        """How many items lack what, in words."""
        free = f", {self.n_free_text} have free text for an answer" if self.n_free_text else ""
        return (
            f"of {self.n_total}, {self.n_unlabelled} have no choice that is worth something{free} and "
            f"{self.n_uncaptured} have no reading; capture items with scores of their choices"
        )

    @property
    def n_groups(self) -> int:
        """Number of groups among the items."""
        return len(np.unique(self.groups))

    @property
    def labels(self) -> list[list[float]]:
        """What a fit sees of each item: the scores of its choices."""
        ends, scores = self.first.offsets.tolist(), self.first.scores.tolist()
        return [scores[start:stop] for start, stop in pairwise(ends)]

    @property
    def strata(self) -> Float[np.ndarray, " used"]:
        """What folds are alike in: the best choice, by name, where items share them; else the same for all."""
        data = self.first
        best = np.zeros(len(data.scores), dtype=bool)
        starts = data.offsets[:-1]
        if not len(self):
            return np.zeros(0)
        top = data.scores == spread(np.maximum.reduceat(data.scores, starts), data.offsets)
        place = np.where(top, np.arange(len(top)), len(top))
        best[np.minimum.reduceat(place, starts)] = True
        names = [label for label, is_best in zip(data.labels, best.tolist(), strict=True) if is_best]
        known = sorted(set(names))
        # Every name should occur in most folds; answers that are all different say nothing.
        if len(names) < 5 * len(known):
            return np.zeros(len(self))
        place_of = {name: number for number, name in enumerate(known)}
        return np.array([place_of[name] for name in names], dtype=np.float64)

    def take(
        self, order: Int[np.ndarray, " taken"], criterion: str, groups: Int[np.ndarray, " taken"], repeated: str | None
    ) -> ChoicePart:
        """Some of the items, in another order, with other groups."""
        return replace(
            self,
            criterion=criterion,
            rows=self.rows[order],
            data={lens: one.select(order) for lens, one in self.data.items()},
            groups=groups,
            repeated=repeated,
        )


def choice_data(run: RunLike, lens: str) -> ChoiceData:
    """The choices of all items of a run, under one lens.

    Raises:
        FitError: The run has no choices, no such lens, or lacks the model's last layer.
    """
    if not isinstance(run, HoldsChoices) or run.choices is None:
        raise FitError(f"{where(run)} has no choices of its items: judges of choices read runs of tasks")
    check_lens(run, lens)
    table = run.choices
    return ChoiceData(
        run.choice_logprob(lens),
        np.asarray(table.offsets, dtype=np.int64),
        table.labels,
        np.asarray(table.scores, dtype=np.float64),
        np.asarray(table.n_tokens, dtype=np.int64),
        tuple(run.layers),
        lens,
        [item.fields for item in run.items],
    )


def choice_parts(run: RunLike, criterion: str | None = None, *, pool: bool = False) -> list[ChoicePart]:
    """Split a run of choices by criterion, or take one criterion, or pool them.

    Raises:
        FitError: As ``choice_data``; there is no such criterion, or both a criterion and pooling are asked for.
    """
    criteria = chosen_criteria(run, criterion, pool=pool)
    data = {lens: choice_data(run, lens) for lens in run.lenses}
    items = run.items
    first = next(iter(data.values()))
    labelled = sums(first.scores, first.offsets) > 0  # a NaN is not above 0
    free = np.array([item.is_free_text for item in items], dtype=bool)
    usable = np.ones(len(first), dtype=bool)
    for one in data.values():
        usable &= one.usable
    groups = np.asarray(run.groups).astype(str)

    def part(name: str, members: Bool[np.ndarray, " item"]) -> ChoicePart:
        rows, of_free = (np.flatnonzero(members & usable & labelled & kind) for kind in (~free, free))
        joined = join_groups(groups[rows], [shown_texts(items[row]) for row in rows.tolist()])
        return ChoicePart(
            name,
            rows,
            {lens: one.select(rows) for lens, one in data.items()},
            joined.groups,
            {lens: one.select(of_free) for lens, one in data.items()},
            join_groups(groups[of_free], [shown_texts(items[row]) for row in of_free.tolist()]).groups,
            int(members.sum()),
            int((members & ~labelled).sum()),
            int((members & ~usable).sum()),
            int((members & free).sum()),
            joined.note,
        )

    return [part(name, members) for name, members in criteria]

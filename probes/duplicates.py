"""Items with the same text in different groups, which would stand on both sides of a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class JoinedGroups(NamedTuple):
    """Groups after those that share a text were put together.

    Attributes:
        groups: Number of the group of each item ``[item]``.
        n_apart: Number of groups before.
        n_repeated: Items whose text occurs in several of those.
    """

    groups: Int[np.ndarray, " item"]
    n_apart: int
    n_repeated: int

    @property
    def note(self) -> str | None:
        """What was done, in words; None where no text is in two groups."""
        if not self.n_repeated:
            return None
        return (
            f"{self.n_repeated} of {len(self.groups)} items have the same text as an item of another group; such "
            f"groups are put together, {len(np.unique(self.groups))} instead of {self.n_apart}, so that no text is on "
            "both sides of a fold"
        )


def join_groups(groups: Shaped[np.ndarray, " item"], fields: Sequence[Mapping[str, str]]) -> JoinedGroups:
    """Put groups together that share a text, directly or through others.

    Texts are the same where all fields are, apart from white space and case: the judge then says nearly the same of
    both, and a fit that has seen one knows the human score of the other.

    Args:
        groups: Group of each item.
        fields: Texts of each item, by name.
    """
    texts: dict[tuple[tuple[str, str], ...], int] = {}
    text = np.array([texts.setdefault(_key(of_item), len(texts)) for of_item in fields], dtype=np.int64)
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1 if len(group) else 0
    # Groups and texts are the nodes of a graph, items its edges.
    links = coo_array((np.ones(len(text)), (group, n_groups + text)), shape=(n_groups + len(texts),) * 2)
    _, component = connected_components(links, directed=False)
    pairs = np.unique(np.stack([text, group]), axis=1)
    groups_of_text = np.bincount(pairs[0], minlength=len(texts))
    _, joined = np.unique(component[group], return_inverse=True)
    return JoinedGroups(np.asarray(joined), n_groups, int((groups_of_text[text] > 1).sum()))


def _key(fields: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, " ".join(text.split()).casefold()) for name, text in sorted(fields.items()))

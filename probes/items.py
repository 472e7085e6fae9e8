"""Items: what is judged, and how humans scored it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from jaxtyping import Float, Shaped

from probes.errors import ItemError, KindError

if TYPE_CHECKING:
    import pandas as pd

RaterKind = Literal["slots", "identity"]
LabelName = Literal["id", "criterion", "group", "system", "split"]

_LABELS: tuple[LabelName, ...] = ("id", "criterion", "group", "system", "split")


@dataclass(frozen=True)
class Item:
    """One (response, criterion) to be judged.

    Attributes:
        id: Unique among the items of a run.
        fields: Named texts for the template (``response``, ``context``, ``task`` ...).
        criterion: Name of what is judged; empty where there is only one.
        group: Source that the item shares with others (a document, a dialogue); empty means "its own".
        system: What produced the response; may be empty.
        split: A label for selecting items; may be empty.
        human: Human scores on the human scale, one a rater; NaN is a missing rater.
        choices: What may be answered, word for word as it would follow the prompt, where that differs from item to
            item; empty where the labels of a scale are the answers. Of a task whose answer is free text, the texts
            that count as right.
        choice_scores: What each choice is worth, one a choice: 1 right and 0 wrong, or soft labels. Empty, or NaN,
            where nobody has said so.
    """

    id: str
    fields: Mapping[str, str]
    criterion: str = ""
    group: str = ""
    system: str = ""
    split: str = ""
    human: tuple[float, ...] = field(default=())
    choices: tuple[str, ...] = field(default=())
    choice_scores: tuple[float, ...] = field(default=())

    @property
    def is_free_text(self) -> bool:
        """Whether its choices are texts that all count as right, so that nothing is chosen between them."""
        scores = set(self.choice_scores)
        return bool(self.choices) and len(scores) == 1 and not math.isnan(min(scores)) and min(scores) > 0


class Items(Sequence[Item]):
    """An ordered collection of items with unique ids.

    Args:
        items: The items, in the order in which the run stores them.
        raters: ``identity`` if column k of the human scores is the same person throughout, else ``slots``.
        source: Where they came from, for messages and provenance.
        about: What is known of each criterion, JSON-ready: of published tasks their metrics, for example.
        repeated: Let ids occur several times, as in a selection of a run that names an item twice.

    Raises:
        ItemError: There are no items, or two share an id.
    """

    def __init__(
        self,
        items: Sequence[Item],
        raters: RaterKind = "slots",
        source: str = "items",
        about: Mapping[str, Any] | None = None,
        *,
        repeated: bool = False,
    ) -> None:
        self._items = tuple(items)
        self._repeated = repeated
        self.about: dict[str, Any] = dict(about or {})
        self.raters: RaterKind = raters
        self.source = source
        if not self._items:
            raise ItemError(f"{source}: no items found; check that the file is not empty")
        seen: dict[str, int] = {}
        for position, item in enumerate(self._items, start=1):
            if not isinstance(item, Item):
                raise KindError(
                    f"{source}: item {position} is {item!r}, not an Item; make items of a table with probes.read_items"
                )
            if item.id in seen and not repeated:
                raise ItemError(
                    f"{source}: item {position} has the id {item.id!r} of item {seen[item.id]}; ids must be unique"
                )
            seen[item.id] = position
            if not item.id:
                raise ItemError(f"{source}: item {position} has an empty id; give every item one")
            for name in _LABELS:
                _check_text(source, position, name, getattr(item, name))
            for key, text in item.fields.items():
                _check_text(source, position, key, text)
            _check_choices(source, position, item)
        if len(kinds := {bool(item.choices) for item in self._items}) > 1:
            without = next(item.id for item in self._items if not item.choices)
            raise ItemError(
                f"{source}: item {without!r} has no choices and others have; give all items choices, or none"
            )
        self.has_choices: bool = kinds.pop()

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self._items[index], self.raters, self.source, self.about, repeated=self._repeated)
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __repr__(self) -> str:
        return f"Items({len(self)} items, {self.n_raters} raters at most, from {self.source})"

    def _repr_html_(self) -> str:
        from probes.reprs import of_items

        return of_items(self)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(item.id for item in self._items)

    @property
    def n_raters(self) -> int:
        """The largest number of raters of any item."""
        return max(len(item.human) for item in self._items)

    @property
    def human(self) -> Float[np.ndarray, "item rater"]:
        """Human scores as given, float32; NaN where a rater is missing."""
        table = np.full((len(self), self.n_raters), np.nan, dtype=np.float32)
        for row, item in enumerate(self._items):
            table[row, : len(item.human)] = item.human
        return table

    @property
    def human_mean(self) -> Float[np.ndarray, " item"]:
        """Mean over the raters that scored an item, float64, on the human scale; NaN where nobody did."""
        sums = np.zeros(len(self))
        counts = np.zeros(len(self))
        for row, item in enumerate(self._items):
            scores = [score for score in item.human if score == score]
            sums[row], counts[row] = sum(scores), len(scores)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    @property
    def groups(self) -> Shaped[np.ndarray, " item"]:
        """Group of every item; an item without one is a group of its own."""
        return np.array([item.group or f"item:{item.id}" for item in self._items], dtype=object)

    def column(self, name: LabelName) -> list[str]:
        """One of the text columns, as a list."""
        return [getattr(item, name) for item in self._items]

    def select(
        self, which: Shaped[np.ndarray, " selected"] | Sequence[int] | Sequence[bool], *, repeated: bool = False
    ) -> Items:
        """Some of the items.

        Args:
            which: One true or false an item, or positions in the order wanted.
            repeated: Let an item be selected several times; its id is then no longer unique.

        Raises:
            ItemError: The mask has another length, a position does not exist or is there twice, or nothing is selected.
        """
        chosen = np.asarray(which)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ItemError(f"{self.source}: the mask has {chosen.size} entries for {len(self)} items")
            chosen = np.flatnonzero(chosen)
        if chosen.size == 0:
            raise ItemError(f"{self.source}: the selection is empty; {len(self)} items to choose from")
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise ItemError(f"{self.source}: select items by a mask or by whole numbers, got {chosen.dtype} values")
        if chosen.min() < -len(self) or chosen.max() >= len(self):
            wrong = chosen.max() if chosen.max() >= len(self) else chosen.min()
            raise ItemError(f"{self.source}: no item at position {wrong}; there are {len(self)} items")
        some = [self._items[i] for i in chosen]
        return Items(some, self.raters, self.source, self.about, repeated=repeated or self._repeated)

    def to_pandas(self) -> pd.DataFrame:
        """One row an item: ``id``, ``criterion``, ``group``, ``system``, ``split``, the fields, the scores.

        ``human`` holds the list of scores and ``human_mean`` its mean. A field that bears the name of one of
        these columns appears as ``field:<name>``.
        """
        import pandas as pd

        labels: dict[str, Any] = {name: self.column(name) for name in _LABELS}
        taken = {*labels, "human", "human_mean"}
        names = dict.fromkeys(name for item in self._items for name in item.fields)
        texts: dict[str, Any] = {
            f"field:{name}" if name in taken else name: [item.fields.get(name) for item in self._items]
            for name in names
        }
        scores: dict[str, Any] = {
            "human": [list(item.human) for item in self._items],
            "human_mean": self.human_mean,
        }
        return pd.DataFrame({**labels, **texts, **scores})

    def digest(self) -> str:
        """SHA-256 over ids, texts and human scores, in order."""
        sha = hashlib.sha256()
        for item, scores in zip(self._items, self.human, strict=True):
            record: list[Any] = [item.id, dict(item.fields), item.criterion, item.group, item.system, item.split]
            if item.choices:
                record += [list(item.choices), [str(score) for score in item.choice_scores]]
            sha.update(json.dumps(record, ensure_ascii=False, sort_keys=True).encode())
            # The padded row, so that items read back from a run have the digest that they were written with.
            sha.update(scores.tobytes())
        return sha.hexdigest()


def _check_choices(source: str, position: int, item: Item) -> None:
    for choice in item.choices:
        _check_text(source, position, "choices", choice)
        if not choice:
            raise ItemError(f"{source}: item {position} ({item.id!r}) has an empty choice; give every choice a text")
    if len(set(item.choices)) < len(item.choices):
        again = next(choice for choice in item.choices if item.choices.count(choice) > 1)
        raise ItemError(f"{source}: item {position} ({item.id!r}) has the choice {again!r} twice; name it once")
    if item.choice_scores and len(item.choice_scores) != len(item.choices):
        raise ItemError(
            f"{source}: item {position} ({item.id!r}) has {len(item.choices)} choices and "
            f"{len(item.choice_scores)} scores of choices; give one a choice, or none"
        )
    if any(not (math.isnan(score) or 0 <= score < math.inf) for score in item.choice_scores):
        raise ItemError(
            f"{source}: item {position} ({item.id!r}) has the choice scores {list(item.choice_scores)}; they must be "
            "finite numbers from 0"
        )


def _check_text(source: str, position: int, name: str, text: str) -> None:
    """Refuse what UTF-8 or a text of fixed length cannot hold."""
    if not isinstance(text, str):
        raise KindError(f"{source}: item {position} has {text!r} as its {name}; write a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError(
            f"{source}: item {position} has the half of a character at position {error.start} of {name}; repair the "
            "text (a surrogate is no character)"
        ) from None
    if name in _LABELS and "\0" in text:
        raise ItemError(f"{source}: item {position} has a zero byte in {name}; remove it")

"""The choices of an item as users write them: lists, texts with what they are worth, and which one is right."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from probes.errors import ItemError
from probes.sources import describe

if TYPE_CHECKING:
    from probes.sources import Table

logger = logging.getLogger(__name__)

TargetRule = Literal["text", "number"]
RULES: Final[tuple[TargetRule, ...]] = get_args(TargetRule)
_SAID: Final[Mapping[TargetRule, str]] = {"text": "its text", "number": "its number, from 0"}
_ADVICE = 'write ["yes", "no"], or {"yes": 1, "no": 0}'
# A column of whole numbers with a gap is written as 1.0.
_WHOLE: Final = re.compile(r"\s*(\d+)(?:\.0+)?\s*")


class ChoiceReader:
    """Reads the choices of every record, and what each is worth, by one rule for the whole table.

    A target names the right choice by its text or by its number. Where choices are numbers themselves, one cell may do
    both, and come out differently; so the rule is decided over all records.

    Args:
        table: Where the records are from.
        columns: Columns of the roles ``choices`` and ``target``, as far as they are named.
        target_as: The rule; that which fits all records unless given.

    Raises:
        ItemError: A cell cannot be read, no rule fits all targets, or both do and differ; the message names file, line
            and column.
    """

    def __init__(self, table: Table, columns: Mapping[str, str], target_as: TargetRule | None = None) -> None:
        self._table = table
        self._columns = columns
        self._rule: TargetRule = target_as or ("text" if "target" not in columns else self._decided())

    def read(self, place: int, cells: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Choices of a record, and what each is worth; the latter is empty where nobody has said so.

        Args:
            place: Its line or row.
            cells: Its cells.
        """
        if "choices" not in self._columns:
            return (), ()
        choices, worth = self._choices(place, cells)
        if "target" not in self._columns:
            return choices, worth
        column = self._columns["target"]
        if worth:
            raise self._fail(place, column, "the choices say already what each is worth; leave the target out")
        value = self._plain(place, column, cells.get(column))
        if _is_missing(value):
            return choices, ()
        if _is_worth(value):
            if len(value) != len(choices):
                problem = f"{len(value)} numbers for {len(choices)} choices; give what each is worth"
                raise self._fail(place, column, problem)
            return choices, tuple(self._worth(place, column, one) for one in value)
        found = _read_as(self._rule, cells.get(column), value, choices)
        if found is None:
            span = f"the number of one (0 to {len(choices) - 1})"
            unknown = next((one for one in value if one not in choices), value) if isinstance(value, list) else value
            which = f"none of the choices {list(choices)}" if self._rule == "text" else f"not {span}"
            raise self._fail(place, column, f"{unknown!r} is {which}")
        return choices, found

    def _decided(self) -> TargetRule:
        """The rule by which every target of the table can be read."""
        column = self._columns["target"]
        # Per rule the first target that does not fit it, and the first that the two read differently.
        misfits: dict[TargetRule, tuple[int, Any]] = {}
        differs: tuple[int, Any] | None = None
        count = 0
        for place, cells in self._table.rows:
            choices, _ = self._choices(place, cells)
            cell = cells.get(column)
            value = self._plain(place, column, cell)
            if _is_missing(value) or _is_worth(value):
                continue
            count += 1
            found = {rule: _read_as(rule, cell, value, choices) for rule in RULES}
            if not any(found.values()):
                raise self._fail(place, column, _neither(value, choices))
            for rule in RULES:
                if found[rule] is None:
                    misfits.setdefault(rule, (place, value))
            if len(set(found.values())) > 1:
                differs = differs or (place, value)
        fitting = [rule for rule in RULES if rule not in misfits]
        if not fitting:
            (no_text, number), (no_number, text) = misfits["text"], misfits["number"]
            raise self._fail(
                no_number,
                column,
                f"{text!r} is the text of a choice and no number of one, while {self._table.unit} {no_text} has "
                f"{number!r}, a number and no text; name the right choice in one way throughout",
            )
        if len(fitting) > 1 and differs is not None:
            place, value = differs
            raise self._fail(
                place,
                column,
                f"{value!r} is the text of one choice and the number of another, and so throughout the file; say which "
                "is meant with target_as='text' or target_as='number' (--target-as)",
            )
        if count:
            how = f"column {column!r} names the right choice by {_SAID[fitting[0]]}"
            logger.info("%s: %s (%d of %d records)", self._table.name, how, count, len(self._table.rows))
        return fitting[0]

    def _fail(self, place: int, column: str, problem: str) -> ItemError:
        return ItemError(f"{self._table.at(place)}, column {column!r}: {problem}")

    def _choices(self, place: int, cells: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
        column = self._columns["choices"]
        value = self._plain(place, column, cells.get(column))
        if isinstance(value, Mapping):
            # A table of records gives every record the keys of all: those of others are missing in this one.
            known = {key: score for key, score in value.items() if score is not None}
            texts: Any = list(known)
            worth = [self._worth(place, column, score) for score in known.values()]
        else:
            texts, worth = value, []
        if not isinstance(texts, (list, tuple)) or len(texts) < 1:
            raise self._fail(place, column, f"expected a list of choices, got {describe(value)}; {_ADVICE}")
        if wrong := [text for text in texts if not isinstance(text, str) or not text]:
            raise self._fail(place, column, f"the choice {wrong[0]!r} is no text; {_ADVICE}")
        if len(set(texts)) < len(texts):
            again = next(text for text in texts if list(texts).count(text) > 1)
            raise self._fail(place, column, f"the choice {again!r} is there twice; name it once")
        return tuple(texts), tuple(worth)

    def _worth(self, place: int, column: str, value: Any) -> float:
        if not 0 <= _number(value) < math.inf:
            raise self._fail(place, column, f"{value!r} is not what a choice can be worth; give a number from 0")
        return float(value)

    def _plain(self, place: int, column: str, value: Any) -> Any:
        """Lists and mappings as Python has them; in CSV they are JSON."""
        if hasattr(value, "tolist"):
            value = value.tolist()
        if self._table.text_only and isinstance(value, str) and value.strip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except ValueError:
                raise self._fail(place, column, f"{value!r} is not JSON; {_ADVICE}") from None
        return list(value) if isinstance(value, tuple) else value


def _read_as(rule: TargetRule, cell: Any, value: Any, choices: tuple[str, ...]) -> tuple[float, ...] | None:
    """What each choice is worth if a target is read by a rule; None where it cannot be."""
    if rule == "number":
        number = _index(value)
        return None if number is None or number >= len(choices) else _one_of(number, choices)
    if isinstance(cell, str) and cell in choices:
        return _one_of(choices.index(cell), choices)
    if isinstance(value, list):
        return tuple(float(choice in value) for choice in choices) if set(value) <= set(choices) else None
    written = str(_index(value))
    return _one_of(choices.index(written), choices) if written in choices and not isinstance(value, bool) else None


def _one_of(number: int, choices: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(place == number) for place in range(len(choices)))


def _index(value: Any) -> int | None:
    """A whole number from 0, also one that is written as text; None for anything else."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return int(found[1]) if found else None
    number = _number(value)
    return int(number) if number >= 0 and number.is_integer() else None


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ == "NAType":
        return True
    return bool(value == "") or (isinstance(value, float) and math.isnan(value))


def _is_worth(value: Any) -> bool:
    """Whether a target is a list of what each choice is worth, and not of the texts that are right."""
    return isinstance(value, list) and not (value and all(isinstance(one, str) for one in value))


def _neither(value: Any, choices: tuple[str, ...]) -> str:
    if isinstance(value, list):
        return f"{next(one for one in value if one not in choices)!r} is none of the choices {list(choices)}"
    return f"{value!r} is none of the choices {list(choices)}, nor the number of one (0 to {len(choices) - 1})"


def _number(value: Any) -> float:
    """A number; NaN for anything else, a truth value too."""
    return float(value) if isinstance(value, Real) and value is not True and value is not False else math.nan

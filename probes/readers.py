"""Read items from JSON lines, CSV, TSV, Parquet, a data frame or a Hugging Face data set."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

from probes.choices.reading import RULES, ChoiceReader, TargetRule
from probes.errors import ItemError, KindError
from probes.items import Item, Items, RaterKind
from probes.sources import Table, describe, open_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    import pandas as pd

    from probes.scale import Scale

logger = logging.getLogger(__name__)

_DEFAULTS = {"id": "id", "criterion": "criterion", "group": "group", "system": "system", "split": "split"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MISSING_CELLS = {"", "nan", "na", "n/a", "null", "none"}
# What to do about a score that is none.
_CORRECT = "write a number, or nothing where there is no score"
_FLOAT32_MAX = 3.4028235e38  # human scores are stored as float32


def read_items(
    source: str | PathLike[str] | pd.DataFrame,
    *,
    fields: str | Sequence[str] | Mapping[str, str] | None = None,
    id: str | None = "id",
    criterion: str | None = "criterion",
    group: str | None = "group",
    system: str | None = "system",
    split: str | None = "split",
    human: str | Sequence[str] | None = "human",
    choices: str | None = None,
    target: str | None = None,
    target_as: TargetRule | None = None,
    scale: Scale | None = None,
    raters: RaterKind = "slots",
    hf_split: str | None = None,
    hf_config: str | None = None,
    limit: int | None = None,
) -> Items:
    """Read items, checking every record; no record is ever dropped.

    Args:
        source: A file (``.jsonl``/``.ndjson``/``.json-lines``, ``.csv``, ``.tsv``, ``.parquet``), a pandas
            DataFrame (a named index counts as a column), a folder written by ``save_to_disk``, or the id of a
            data set on the Hugging Face hub.
        fields: Columns that hold the texts: names, or a mapping from field to column such as
            ``{"response": "word"}``. None takes every remaining column that holds text (in CSV: that holds
            anything but numbers and lists of numbers, so that stray scores do not pass for text).
        id: Column of the ids; numbers become text. A record without one gets a hash of fields and criterion.
        criterion: Column that names what is judged.
        group: Column that names the source shared with other items.
        system: Column that names what produced the response.
        split: Column with a label for selecting items.
        human: Column with one score or a list of scores (in CSV written as ``[1, 2, 3]``), or
            several columns, one a rater. Missing scores are null, NaN or an empty cell.
        choices: Column with the choices of every item: a list of texts, or texts with what each is worth
            (``{"yes": 1, "no": 0}``). In CSV either is written as JSON.
        target: With ``choices``, the column that says which is right: its text, a list of texts, its number from 0, or
            a list of what each choice is worth. Empty where nobody knows. One rule, text or number, reads the whole
            column: the one that fits all records, which is logged.
        target_as: That rule, ``text`` or ``number``; needed where both fit and differ, as the choices 4, 0, 2 and the
            target 0 do.
        scale: If given, every human score must lie in its human range.
        raters: ``identity`` if the k-th score is by the same person in every record, else ``slots``.
        hf_split: Split of a Hugging Face data set; needed where it has several.
        hf_config: Configuration (subset) of a data set on the hub.
        limit: Read the first so many records.

    A column left at its default name may be absent; one named by the caller must exist. None switches it off.
    An empty text is kept: it is a response like any other.

    Raises:
        ItemError: Something cannot be read or used; the message names the file, the line and the column.
    """
    if raters not in ("slots", "identity"):
        raise ItemError(f"raters must be 'slots' or 'identity', got {raters!r}")
    if target_as is not None and target_as not in RULES:
        raise ItemError(f"target_as must be {' or '.join(map(repr, RULES))}, got {target_as!r}")
    if target_as is not None and target is None:
        raise ItemError("target_as says how the target names a choice; name the column of the target as well (target)")
    if limit is not None and limit < 1:
        raise ItemError(f"limit must be at least 1, got {limit}")
    if scale is not None and not hasattr(scale, "contains_human"):
        raise KindError(f"scale: expected a Scale, got {scale!r}; make one with probes.Scale.parse('1..5')")
    table = open_table(source, hf_split=hf_split, hf_config=hf_config, limit=limit)
    labels = {"id": id, "criterion": criterion, "group": group, "system": system, "split": split}
    answers = _answer_columns(table, choices, target)
    columns = _find_columns(table, fields, labels, human, tuple(answers.values()))
    reader = _Reader(table, columns, scale, ChoiceReader(table, answers, target_as))
    items = [reader.item(place, cells) for place, cells in table.rows]
    _check_unique(table, items, reader)
    if raters == "identity":
        _check_identity(table, items)
    return Items(items, raters, table.name)


@dataclass(frozen=True)
class _Columns:
    fields: dict[str, str]
    labels: dict[str, str]
    human: str | tuple[str, ...] | None


def _find_columns(
    table: Table,
    fields: str | Sequence[str] | Mapping[str, str] | None,
    labels: Mapping[str, str | None],
    human: str | Sequence[str] | None,
    answers: tuple[str, ...] = (),
) -> _Columns:
    found: dict[str, str] = {}
    for role, column in labels.items():
        if column is not None and (column != _DEFAULTS[role] or column in table.columns):
            found[role] = _existing(table, column, role)
    scores: str | tuple[str, ...] | None = None
    if isinstance(human, str):
        if human != "human" or human in table.columns:
            scores = _existing(table, human, "human")
    elif human is not None:
        scores = tuple(_existing(table, column, "human") for column in human)
        if not scores or len(set(scores)) < len(scores):
            raise ItemError(f"human needs one or more different columns, got {list(scores)}")
    if isinstance(fields, str):
        fields = [fields]
    if fields is None:
        used = {*answers, *found.values(), *([scores] if isinstance(scores, str) else scores or ())}
        texts = _text_columns(table, [column for column in table.columns if column not in used])
    else:
        wanted = fields if isinstance(fields, Mapping) else {name: name for name in fields}
        texts = {name: _existing(table, column, f"fields[{name!r}]") for name, column in wanted.items()}
        if not texts:
            raise ItemError("fields is empty; name at least one column that holds text")
    return _Columns(texts, found, scores)


def _answer_columns(table: Table, choices: str | None, target: str | None) -> dict[str, str]:
    if choices is None and target is not None:
        raise ItemError("target says which of the choices is right; name the column of the choices as well (choices)")
    given = {"choices": choices, "target": target}
    return {role: _existing(table, column, role) for role, column in given.items() if column is not None}


def _existing(table: Table, column: str, role: str) -> str:
    if column in table.columns:
        return column
    close = difflib.get_close_matches(column, table.columns, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ItemError(f"{table.name}: no column {column!r} for {role}; {hint}the columns are {_listed(table.columns)}")


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:20])
    return shown if len(columns) <= 20 else f"{shown} and {len(columns) - 20} more"


def _text_columns(table: Table, candidates: Sequence[str]) -> dict[str, str]:
    def holds_text(column: str) -> bool:
        cells = (cells.get(column) for _, cells in table.rows)
        return any(isinstance(cell, str) and not (table.text_only and _is_numeric(cell)) for cell in cells)

    # A column without a name is the index that pandas writes; no template could ask for it.
    texts = {column: column for column in candidates if column and holds_text(column)}
    if not texts:
        raise ItemError(
            f"{table.name}: no column holds text to judge; name one with fields, "
            f"the columns are {_listed(table.columns)}"
        )
    ignored = [column for column in candidates if column not in texts]
    if ignored:
        logger.info("%s: columns without text are not read: %s", table.name, _listed(ignored))
    return texts


def _is_numeric(cell: str) -> bool:
    cell = cell.strip()
    if cell.startswith("[") and cell.endswith("]"):
        return all(_is_numeric(part) for part in cell[1:-1].split(","))
    return cell.lower() in _MISSING_CELLS or _NUMBER.fullmatch(cell) is not None


@dataclass(frozen=True)
class _Reader:
    table: Table
    columns: _Columns
    scale: Scale | None
    choices: ChoiceReader

    def item(self, place: int, cells: Mapping[str, Any]) -> Item:
        fields = {name: self._text(place, column, cells.get(column)) for name, column in self.columns.fields.items()}
        labels = {role: self._label(place, column, cells.get(column)) for role, column in self.columns.labels.items()}
        if not labels.get("id"):
            labels["id"] = content_id(fields, labels.get("criterion", ""))
        choices, worth = self.choices.read(place, cells)
        return Item(
            fields=fields, human=self._human(place, cells), choices=choices, choice_scores=worth, **cast("Any", labels)
        )

    def has_id(self, cells: Mapping[str, Any]) -> bool:
        column = self.columns.labels.get("id")
        value = None if column is None else cells.get(column)
        return not (_is_missing(value) or value == "")

    def _fail(self, place: int, column: str, problem: str) -> ItemError:
        return ItemError(f"{self.table.at(place)}, column {column!r}: {problem}")

    def _text(self, place: int, column: str, value: Any) -> str:
        if isinstance(value, str):
            return self._valid(place, column, value)
        if _is_missing(value):
            raise self._fail(
                place,
                column,
                'there is no text here; write "" if that is meant, or leave the column out of fields',
            )
        raise self._fail(place, column, f"expected text, got {describe(value)}; write a text")

    def _valid(self, place: int, column: str, value: str) -> str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"U+{ord(value[error.start]):04X}"
            raise self._fail(place, column, f"half of a surrogate pair ({code}) is not valid text; repair it") from None
        return value

    def _label(self, place: int, column: str, value: Any) -> str:
        if isinstance(value, str):
            return self._valid(place, column, value)
        if _is_missing(value):
            return ""
        if isinstance(value, Integral) and not _is_bool(value):
            return str(int(value))
        if isinstance(value, Real) and not _is_bool(value) and math.isfinite(value):
            # A column of whole numbers with a gap becomes float in pandas: 7.0 is the id 7.
            number = float(value)
            return str(int(number)) if number.is_integer() else repr(number)
        raise self._fail(place, column, f"expected text or a whole number, got {describe(value)}; write one")

    def _human(self, place: int, cells: Mapping[str, Any]) -> tuple[float, ...]:
        columns = self.columns.human
        if columns is None:
            return ()
        if isinstance(columns, tuple):
            return tuple(self._score(place, column, cells.get(column)) for column in columns)
        value: Any = cells.get(columns)
        if self.table.text_only and isinstance(value, str):
            return self._cell_scores(place, columns, value.strip())
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list | tuple):
            return tuple(self._score(place, columns, score) for score in value)
        return () if _is_missing(value) else (self._score(place, columns, value),)

    def _cell_scores(self, place: int, column: str, cell: str) -> tuple[float, ...]:
        if not cell.startswith("["):
            return () if cell.lower() in _MISSING_CELLS else (self._score(place, column, cell),)
        # Not json.loads(): pandas writes a list with a gap as [1.0, nan], which is not JSON.
        parts = [part.strip() for part in cell[1:].removesuffix("]").split(",")]
        if parts == [""] and cell.endswith("]"):
            return ()
        if not cell.endswith("]") or "" in parts:
            raise self._fail(place, column, f"{cell!r} is no list of numbers; write one such as [1, 2, null]")
        return tuple(self._score(place, column, part) for part in parts)

    def _score(self, place: int, column: str, value: Any) -> float:
        if self.table.text_only and isinstance(value, str):
            cell = value.strip()
            if cell.lower() in _MISSING_CELLS:
                return math.nan
            if _NUMBER.fullmatch(cell) is None:
                raise self._fail(place, column, f"the score {value!r} is not a number; {_CORRECT}")
            value = float(cell)
        if _is_missing(value):
            return math.nan
        if isinstance(value, str):
            raise self._fail(place, column, f"the score {value!r} is text; {_CORRECT}")
        if _is_bool(value):
            raise self._fail(place, column, f"the score {value} is not a number; write 1 or 0")
        if not isinstance(value, Real | Decimal):
            raise self._fail(place, column, f"expected a score, got {describe(value)}; {_CORRECT}")
        try:
            score = float(value)
        except OverflowError:
            score = math.inf
        if not abs(score) <= _FLOAT32_MAX:
            raise self._fail(place, column, f"the score {score} is not a finite number; {_CORRECT}")
        if self.scale is not None and not self.scale.contains_human(score):
            low, high = self.scale.human_range
            raise self._fail(
                place,
                column,
                f"the score {score:g} is outside the human range {low:g}..{high:g}; correct it, or say what the range "
                "is: human_range of the scale (--human-range=LOW..HIGH)",
            )
        return score


def content_id(fields: Mapping[str, str], criterion: str) -> str:
    """Id of a record that came without one: the same text and criterion give the same id anywhere."""
    record = json.dumps([dict(fields), criterion], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real | Decimal) and value != value


def _is_bool(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # numpy's has either name


def _check_unique(table: Table, items: Iterable[Item], reader: _Reader) -> None:
    seen: dict[str, int] = {}
    for (place, cells), item in zip(table.rows, items, strict=True):
        first = seen.setdefault(item.id, place)
        if first == place:
            continue
        if reader.has_id(cells):
            raise ItemError(
                f"{table.at(place)}, column {reader.columns.labels['id']!r}: the id {item.id!r} is also that "
                f"of {table.unit} {first}; give each response and criterion an id of its own"
            )
        raise ItemError(
            f"{table.at(place)}: the same text and criterion as {table.unit} {first}, "
            "and no id to tell them apart; add a column of ids"
        )


def _check_identity(table: Table, items: Sequence[Item]) -> None:
    rated = [(place, len(item.human)) for (place, _), item in zip(table.rows, items, strict=True) if item.human]
    for place, count in rated[1:]:
        if count != rated[0][1]:
            raise ItemError(
                f"{table.at(place)}: {count} scores, but {rated[0][1]} in {table.unit} {rated[0][0]}; "
                "with raters='identity' write null for a rater who is missing"
            )

"""The contents of a run: what its texts and whole numbers must be, and how they hang together."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from probes.same_model import judge_digest
from probes.store.choice_contents import ChoiceTokens, check_choices, check_labels, row_name
from probes.store.format import TEXT_COLUMNS, Status
from probes.store.part_contents import check_parts
from probes.store.safety import one_line, shown
from probes.store.structure import attributes_digest, is_sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py

    from probes.store.structure import Structure


class Contents:
    """Checks of everything but the numbers that were captured.

    Args:
        run: The run, its structure checked.
    """

    def __init__(self, run: Structure) -> None:
        self._run = run
        self._faults = run.faults
        self._ids: list[str] = []
        self._hashes: list[str] = []
        self._columns: dict[str, np.ndarray] = {}
        self._choices: ChoiceTokens | None = None

    def check(self, file: h5py.File) -> None:
        """Check all of it."""
        self._check_texts()
        self._check_human()
        self._check_fields()
        for name in ("item", "sample", "swapped", "prompt", "position", "status"):
            path = f"/readings/{name}"
            if self._run.has(path) and (column := self._run.whole(path)) is not None:
                self._columns[name] = column
        self._check_readings()
        self._check_choices()
        self._check_prompts()
        self._check_hashes(file)

    @property
    def status(self) -> np.ndarray | None:
        """Status of every reading, where it can be read."""
        return self._columns.get("status")

    def name_reading(self, row: int) -> str:
        """A reading as messages name it."""
        item = self._columns.get("item")
        if item is None or not 0 <= item[row] < len(self._ids):
            return f"row {row}"
        return f"row {row} (item {shown(self._ids[item[row]])!r})"

    def name_item(self, row: int) -> str:
        """An item as messages name it."""
        return f"row {row} (item {shown(self._ids[row])!r})" if row < len(self._ids) else f"row {row}"

    @property
    def item_of_choice(self) -> np.ndarray | None:
        """Item of every choice, where it is known; every item has one reading."""
        return self._columns.get("choice_item")

    def name_choice(self, row: int) -> str:
        """A choice as messages name it."""
        item = self._columns.get("choice_item")
        return f"row {row}" if item is None else f"row {row} (item {shown(self._ids[item[row]])!r})"

    def _check_choices(self) -> None:
        found = check_choices(self._run, self, len(self._ids))
        if found is not None:
            self._columns["choice_item"], self._choices = found.item, found.tokens
            check_labels(self._run, self, found.item)

    def offsets(self, name: str, values: str = "values") -> np.ndarray | None:
        """Offsets of a ragged dataset, where they are what they must be."""
        path = f"{name}/offsets"
        if not self._run.has(path, f"{name}/{values}"):
            return None
        offsets, length = self._run.whole(path), len(self._run.dataset(f"{name}/{values}"))
        if offsets is None:
            return None
        right = True
        if offsets[0] != 0 or offsets[-1] != length:
            self._faults.add(path, f"runs from {offsets[0]} to {offsets[-1]}, not from 0 to {length}, the last value")
            right = False
        falls = np.flatnonzero(offsets[1:] < offsets[:-1])
        self._faults.add_rows(
            path, falls + 1, lambda row: f"is {offsets[row]}, less than the {offsets[row - 1]} before"
        )
        return offsets if right and not len(falls) else None

    def check_texts_of(self, name: str, call: Callable[[int], str]) -> None:
        """Check that every row of a ragged dataset of bytes is UTF-8."""
        offsets = self.offsets(name)
        if offsets is None:
            return
        for first, bounds, values in self._run.rows(name, offsets):
            starts = bounds[:-1][bounds[:-1] < len(values)]
            try:
                values.tobytes().decode()
                torn = bool(((values[starts] & 0xC0) == 0x80).any())
            except UnicodeDecodeError:
                torn = True
            if torn:
                for row, (start, stop) in enumerate(pairwise(bounds.tolist()), start=first):
                    if not _is_utf8(values[start:stop].tobytes()):
                        self.add(f"{name}/values", row, "is not UTF-8", call)

    def add(self, path: str, row: int, what: str, call: Callable[[int], str] | None = None, kind: str = "") -> None:
        """Note a fault of one row."""
        self._faults.add_rows(path, np.array([row]), lambda _: what, call or row_name, kind)

    def _check_texts(self) -> None:
        for name in (*TEXT_COLUMNS, "items_hash"):
            path = f"/items/{name}"
            if not self._run.has(path):
                continue
            texts: list[str] = []
            for start, block in self._run.blocks(path):
                for row, text in enumerate(block.tolist(), start=start):
                    if not _is_utf8(text):
                        self.add(path, row, "is not UTF-8")
                    if name in ("id", "items_hash"):
                        texts.append(text.decode(errors="replace"))
            if name == "id":
                self._ids = texts
                self._check_ids(texts)
            elif name == "items_hash":
                self._hashes = texts

    def _check_ids(self, ids: list[str]) -> None:
        first: dict[str, int] = {}
        for row, text in enumerate(ids):
            if not text:
                self.add("/items/id", row, "is empty", kind="empty")
            if (before := first.setdefault(text, row)) != row:
                self.add("/items/id", row, f"is {shown(text)!r}, as row {before} is", kind="again")
        if not ids:
            self._faults.add("/items/id", "is empty; a run has one item at least")

    def _check_human(self) -> None:
        scale, path = self._run.scale, "/items/human"
        kind = self._run.owner_attrs(path).get("raters", "slots") if self._run.has(path) else "slots"
        if kind not in ("slots", "identity"):
            self._faults.add(f"{path}@raters", f"is {shown(kind)!r}; it must be slots or identity")
        if scale is None or not self._run.has(path, "/items/human_value"):
            return
        human, value = self._run.whole(path), self._run.whole("/items/human_value")
        if human is None or value is None:
            return
        low, high = scale.human_range
        outside = ~(np.isnan(human) | ((human >= np.float32(low)) & (human <= np.float32(high))))
        self._faults.add_rows(
            path,
            np.flatnonzero(outside.any(axis=1)),
            lambda row: f"has the score {human[row][outside[row]][0]:g}, outside the human range {low:g}..{high:g}",
            self.name_item,
        )
        given = ~np.isnan(human)
        count = given.sum(axis=1)
        mean = np.where(given, human, 0).sum(axis=1, dtype=np.float64) / np.maximum(count, 1)
        expected = np.where(count > 0, scale.to_value(mean), np.nan)
        near = 1e-6 * scale.slope * (high - low)
        with np.errstate(invalid="ignore"):
            wrong = ~((np.abs(value - expected) <= near) | (np.isnan(value) & np.isnan(expected)))
        self._faults.add_rows(
            "/items/human_value",
            np.flatnonzero(wrong & ~outside.any(axis=1)),
            lambda row: f"is {value[row]:g}; the mean of its human scores, mapped, is {expected[row]:g}",
            self.name_item,
        )

    def _check_fields(self) -> None:
        name = "/items/fields"
        offsets = self.offsets(name)
        if offsets is None:
            return
        for first, bounds, values in self._run.rows(name, offsets):
            data = values.tobytes()
            for row, (start, stop) in enumerate(pairwise(bounds.tolist()), start=first):
                if (wrong := _fields_fault(data[start:stop])) is not None:
                    self.add(f"{name}/values", row, wrong, self.name_item)

    def _check_readings(self) -> None:
        columns, faults, sizes = self._columns, self._faults, self._run.sizes

        def check(name: str, wrong: np.ndarray, what: str) -> None:
            faults.add_rows(
                f"/readings/{name}",
                np.flatnonzero(wrong),
                lambda row: f"is {columns[name][row]}, {what}",
                self.name_reading,
                kind=what,
            )

        if (item := columns.get("item")) is not None:
            n_items = sizes.get("item", 0)
            check("item", (item < 0) | (item >= n_items), f"but there are items 0 to {n_items - 1}")
            unread = np.setdiff1d(np.arange(n_items), item)
            faults.add_rows("/items/id", unread, lambda _: "has no reading", self.name_item, kind="unread")
        if (sample := columns.get("sample")) is not None:
            check("sample", sample < 0, "below 0")
        if (status := columns.get("status")) is not None:
            check("status", status > max(Status), f"but there are 0 to {max(Status):d}")
            if not self._run.captured:
                check("status", status == Status.OK, "but there is no /capture")
        pairwise_run = self._run.attrs.get("pairwise")
        if (swapped := columns.get("swapped")) is not None:
            check("swapped", swapped > 1, "not 0 or 1")
            if pairwise_run is False:
                check("swapped", swapped == 1, "but the run is not pairwise")
        if item is not None and sample is not None and swapped is not None:
            self._check_samples(item, sample, swapped, pairs=bool(pairwise_run))
        first_label = self._run.attrs.get("first_label")
        if pairwise_run and self._run.scale is not None and first_label is not None:
            ends = self._run.scale.labels[0], self._run.scale.labels[-1]
            if first_label not in ends:
                outer = " or ".join(map(shown, ends))
                faults.add("/@first_label", f"is {shown(first_label)!r}, no outer label of the scale ({outer})")

    def _check_samples(self, item: np.ndarray, sample: np.ndarray, swapped: np.ndarray, *, pairs: bool) -> None:
        keys = np.stack([item, sample, swapped.astype(np.int32)], axis=1)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        again = np.flatnonzero(first[inverse] != np.arange(len(item)))
        self._faults.add_rows(
            "/readings/item",
            again,
            lambda row: f"is sample {sample[row]} of its item once more, after row {first[inverse[row]]}",
            self.name_reading,
            kind="again",
        )
        if pairs:
            _, of = np.unique(keys[:, :2], axis=0, return_inverse=True)
            orders = np.bincount(of.reshape(-1), weights=np.where(swapped == 0, 1, -1))
            half = np.flatnonzero(orders[of.reshape(-1)] != 0)
            self._faults.add_rows(
                "/readings/swapped",
                half,
                lambda row: f"is {swapped[row]}, and sample {sample[row]} lacks the other order",
                self.name_reading,
                kind="half",
            )

    def _check_prompts(self) -> None:
        """Readings name the prompt of their item and order; prompts are in order of items, given order first."""
        columns, offsets = self._columns, self.offsets("/prompts/token_ids")
        prompt, item, swapped = (columns.get(name) for name in ("prompt", "item", "swapped"))
        if prompt is None or item is None or swapped is None:
            return
        expected_keys, expected = np.unique(2 * item.astype(np.int64) + (swapped == 1), return_inverse=True)
        wrong = np.flatnonzero(prompt != expected)
        self._faults.add_rows(
            "/readings/prompt",
            wrong,
            lambda row: f"is {prompt[row]}; that of its item and order is {expected[row]}",
            self.name_reading,
        )
        n_prompts = self._run.sizes.get("prompt")
        if n_prompts is not None and n_prompts != len(expected_keys):
            what = f"has {n_prompts} prompts; readings are of {len(expected_keys)}"
            self._faults.add("/prompts/token_ids/offsets", what)
            offsets = None
        if offsets is None:
            return
        lengths = np.diff(offsets)
        self._check_item_hashes(expected_keys // 2, offsets)
        check_parts(self._run, self, lengths)
        self._check_positions(lengths[expected])

    def _check_positions(self, n_tokens: np.ndarray) -> None:
        position = self._columns.get("position")
        if self._run.generated:
            offsets = self.offsets("/generation/token_ids")
            if offsets is None:
                return
            n_tokens = n_tokens + np.diff(offsets)
        if position is None:
            return
        self._faults.add_rows(
            "/readings/position",
            np.flatnonzero((position < 0) | (position >= n_tokens)),
            lambda row: f"is {position[row]}; its prompt and answer have {n_tokens[row]} tokens",
            self.name_reading,
        )

    def _check_item_hashes(self, item: np.ndarray, offsets: np.ndarray) -> None:
        """Recompute every item's hash from its id and the tokens of its prompts."""
        lengths, negative = np.diff(offsets), []
        counts: dict[int, list[int]] = {}
        for number, length in zip(item.tolist(), lengths.tolist(), strict=True):
            counts.setdefault(number, []).append(length)
        known = self._hashes
        right = len(known) == len(self._ids) and all(0 <= number < len(known) for number in counts)
        current, sha = -1, hashlib.sha256()

        def finish() -> None:
            if right and current >= 0 and (more := self._choice_tokens(current)) is not None:
                sha.update(json.dumps(more).encode())
            if right and current >= 0 and known[current] != sha.hexdigest():
                what = "is not the hash of its id and the tokens of its prompts"
                self.add("/items/items_hash", current, what, self.name_item)

        for first, bounds, values in self._run.rows("/prompts/token_ids", offsets):
            below = np.searchsorted(bounds, np.flatnonzero(values < 0), side="right") - 1 + first
            negative += np.unique(below).tolist()
            if not right:
                continue
            for prompt, (start, stop) in enumerate(pairwise(bounds.tolist()), start=first):
                if (number := int(item[prompt])) != current:
                    finish()
                    current = number
                    sha = hashlib.sha256(json.dumps([self._ids[number], counts[number]]).encode())
                sha.update(values[start:stop].tobytes())
        finish()
        self._faults.add_rows(
            "/prompts/token_ids/values", np.array(negative, dtype=np.int64), lambda _: "has a token id below 0", _prompt
        )

    def _choice_tokens(self, item: int) -> list[list[int]] | None:
        """Tokens of the choices of an item, where it has any that can be read."""
        if self._choices is None:
            return None
        return self._choices.of_item(item)

    def _check_hashes(self, file: h5py.File) -> None:
        attrs, faults = self._run.attrs, self._faults
        if "judge" in attrs:
            judge = attrs["judge"]
            digest = judge_digest(judge)
            if (known := attrs.get("judge_hash", digest)) != digest:
                faults.add("/@judge_hash", f"is {known[:12]}..., but that of the judge is {digest[:12]}...")
            for key, name in (("weights", "model_hash"), ("scale", "scale"), ("dtype", "dtype")):
                if key in judge and name in attrs and judge[key] != attrs[name]:
                    faults.add(f"/@{name}", f"differs from what judge says of its {key}")
            for key in ("weights", "tokenizer", "chat_template"):
                if key in judge and not (isinstance(judge[key], str) and is_sha256(judge[key])):
                    faults.add("/@judge", f"has no SHA-256 as {key}")
        if "sha256" in attrs and attrs["sha256"] != (digest := attributes_digest(file)):
            faults.add("/@sha256", f"is {attrs['sha256'][:12]}..., but that of all attributes is {digest[:12]}...")


def _prompt(row: int) -> str:
    return f"prompt {row}"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fields_fault(data: bytes) -> str | None:
    """What is wrong with the fields of an item; None where nothing is."""
    try:
        fields = json.loads(data.decode())
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({one_line(error)})"
    if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()):
        return "is no JSON object of texts"
    return None

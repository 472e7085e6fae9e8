"""Everything of a run but its numbers: items, prompts, readings, readout and what the run says about itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from probes.choices.table import ChoiceTable
from probes.errors import RunFileError
from probes.items import Item, Items
from probes.lens import READOUT_ORDER, Readout
from probes.prompt_parts import PromptParts
from probes.store.format import (
    EXTRAS,
    TEXT_COLUMNS,
    raw_bytes,
    read_ragged,
    to_text,
    write_array,
    write_texts,
)
from probes.store.readings import Readings
from probes.token_table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py

    from probes.store.values import Selection


@dataclass(frozen=True, eq=False)
class Header:
    """Everything of a run that is known before the first pass.

    Attributes:
        items: The items with their human scores.
        token_ids: The prompts: one an item, or for pairs the one in the given and the one in the swapped order, in
            order of items. Samples share their prompt.
        human_value: Mean human score mapped onto label values ``[item]``; NaN where there is none.
        readout: Final norm and output rows.
        layers: Names along the layer axis.
        lenses: Lenses whose score logits are stored.
        residual_dtype: ``float32``, ``bfloat16``, or None when residuals are not stored.
        status: What is known of each reading beforehand ``[reading]``: ``NOT_CAPTURED`` or ``TOO_LONG``.
        attrs: Root attributes; dictionaries and lists are stored as JSON. A pairwise run needs ``pairwise`` (true)
            and ``first_label``, the label which says that the response shown first is better.
        reading_item: Item of each reading ``[reading]``; one reading an item unless given.
        reading_sample: Sample number of each reading ``[reading]``; 0 unless given.
        reading_swapped: Whether the two responses of a pair are shown in swapped order ``[reading]``; False unless
            given.
        reading_position: Position of the token whose state was read ``[reading]``; the last one of the prompt
            unless given.
        extras: Names of the optional readings that are stored, of ``EXTRAS``.
        choices: What is scored behind each prompt, where items have choices of their own. Then ``lenses`` are those of
            their log-likelihoods, and every item has one reading.
        parts: Which tokens of each prompt are which part of it, as far as that is known.

    Raises:
        ValueError: The parts do not fit together.
    """

    items: Items
    token_ids: TokenTable
    human_value: Float[np.ndarray, " item"]
    readout: Readout
    layers: Sequence[str]
    lenses: Sequence[str]
    residual_dtype: str | None
    status: Shaped[np.ndarray, " reading"]
    attrs: dict[str, Any]
    reading_item: Int[np.ndarray, " reading"] | None = None
    reading_sample: Int[np.ndarray, " reading"] | None = None
    reading_swapped: Shaped[np.ndarray, " reading"] | None = None
    reading_position: Int[np.ndarray, " reading"] | None = None
    extras: Sequence[str] = ()
    choices: ChoiceTable | None = None
    parts: PromptParts | None = None

    def __post_init__(self) -> None:
        if self.choices is not None and (
            len(self.status) != len(self.items) or len(self.items) != self.choices.n_items
        ):
            raise ValueError("with choices, every item has one reading")
        if unknown := [name for name in self.extras if name not in EXTRAS]:
            raise ValueError(f"unknown extra {unknown[0]!r}: choose among {', '.join(EXTRAS)}")
        n_prompts = len(self._prompts[0])
        if len(self.token_ids) != n_prompts:
            raise ValueError(f"{len(self.token_ids)} prompts, but the readings name {n_prompts}: pass one for each")

    @cached_property
    def readings(self) -> Readings:
        """What every reading is of."""
        n = len(self.status)

        def column(given: np.ndarray | None, default: np.ndarray, dtype: type) -> np.ndarray:
            return (default if given is None else given).astype(dtype)

        return Readings(
            item=column(self.reading_item, np.arange(n), np.int32),
            sample=column(self.reading_sample, np.zeros(n), np.int32),
            swapped=column(self.reading_swapped, np.zeros(n), np.bool_),
            status=self.status.astype(np.uint8),
            n_items=len(self.items),
        )

    @cached_property
    def _prompts(self) -> tuple[np.ndarray, np.ndarray]:
        """For every prompt twice its item, plus one if swapped; and the prompt of every reading."""
        prompts, of = np.unique(2 * self.readings.item + self.readings.swapped, return_inverse=True)
        return prompts, of.astype(np.int32)

    @property
    def reading_prompt(self) -> Int[np.ndarray, " reading"]:
        """Prompt of each reading, as a position in ``token_ids``."""
        return self._prompts[1]

    @cached_property
    def position(self) -> Int[np.ndarray, " reading"]:
        """Position of the token whose state was read, in the prompt and what was generated after it."""
        last = self.token_ids.lengths[self.reading_prompt] - 1
        return (last if self.reading_position is None else self.reading_position).astype(np.int32)

    @cached_property
    def item_hashes(self) -> tuple[str, ...]:
        """SHA-256 of id and prompt tokens, one an item."""
        bounds = np.searchsorted(self._prompts[0], 2 * np.arange(len(self.items) + 1))
        lengths, starts = self.token_ids.lengths, self.token_ids.offsets[bounds]
        hashes = []
        for number, item in enumerate(self.items):
            # The lengths tell where one prompt ends and the next begins.
            counts = lengths[bounds[number] : bounds[number + 1]].tolist()
            sha = hashlib.sha256(json.dumps([item.id, counts]).encode())
            sha.update(raw_bytes(self.token_ids.values[starts[number] : starts[number + 1]]))
            if self.choices is not None:
                tokens = [self.choices.tokens[row].tolist() for row in self.choices.rows([number]).tolist()]
                sha.update(json.dumps(tokens).encode())
            hashes.append(sha.hexdigest())
        return tuple(hashes)

    def select(self, chosen: Selection) -> Header:
        """The header of a run of some items and layers, in the order asked for."""
        readings, items, rows = self.readings, chosen.items, chosen.readings
        _, first = np.unique(2 * chosen.item + readings.swapped[rows], return_index=True)
        prompts = self.reading_prompt[rows[first]]
        layers = np.arange(len(self.layers)) if chosen.layers is None else chosen.layers
        attrs = dict(self.attrs)
        if not np.array_equal(items, np.arange(len(self.items))):
            attrs.pop("parts", None)  # of a selection nobody knows which part its items are from
        return replace(
            self,
            items=self.items.select(items, repeated=True),
            token_ids=self.token_ids.take(prompts),
            human_value=self.human_value[items],
            layers=[self.layers[int(layer)] for layer in layers],
            status=readings.status[rows],
            attrs=attrs,
            reading_item=chosen.item,
            reading_sample=readings.sample[rows],
            reading_swapped=readings.swapped[rows],
            reading_position=self.position[rows],
            choices=None if self.choices is None else self.choices.select(items),
            parts=None if self.parts is None else self.parts.take(prompts),
        )


def join_headers(headers: Sequence[Header], attrs: dict[str, Any]) -> Header:
    """The header of a run that has the items of several, one after the other.

    Args:
        headers: Of runs of the same judge and disjoint items.
        attrs: Root attributes of the result.
    """
    first = headers[0]
    starts = np.cumsum([0, *(len(header.items) for header in headers)])

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(header.readings, name) for header in headers])

    return replace(
        first,
        items=Items(
            [item for header in headers for item in header.items],
            first.items.raters,
            first.items.source,
            {name: one for header in headers for name, one in header.items.about.items()},
        ),
        token_ids=TokenTable.concatenate([header.token_ids for header in headers]),
        human_value=np.concatenate([header.human_value for header in headers]),
        status=joined("status"),
        attrs=attrs,
        reading_item=np.concatenate(
            [header.readings.item + start for header, start in zip(headers, starts, strict=False)]
        ),
        reading_sample=joined("sample"),
        reading_swapped=joined("swapped"),
        reading_position=np.concatenate([header.position for header in headers]),
        choices=ChoiceTable.concatenate([header.choices for header in headers if header.choices is not None])
        if first.choices is not None
        else None,
        parts=PromptParts.concatenate([header.parts or PromptParts.none(len(header.token_ids)) for header in headers])
        if any(header.parts is not None for header in headers)
        else None,
    )


def read_header(file: h5py.File) -> Header:
    """The header of a run file, or of the ``header.h5`` of an unfinished one."""
    attrs = {name: read_attr(file, name) for name in file.attrs if name != "sha256"}
    layers, lenses, extras, stored = (attrs.pop(name) for name in ("layers", "lenses", "extras", "residual_dtype"))
    readings, prompts = file["readings"], file["prompts/token_ids"]
    return Header(
        items=read_items(file),
        token_ids=TokenTable(prompts["values"][:], prompts["offsets"][:]),
        human_value=file["items/human_value"][:],
        readout=read_readout(file),
        layers=layers,
        lenses=lenses,
        residual_dtype=None if stored == "none" else stored,
        status=readings["status"][:],
        attrs=attrs,
        reading_item=readings["item"][:],
        reading_sample=readings["sample"][:],
        reading_swapped=readings["swapped"][:].astype(bool),
        reading_position=readings["position"][:],
        extras=extras,
        choices=read_choices(file),
        parts=read_parts(file),
    )


def read_attr(file: h5py.File, name: str) -> Any:
    """A root attribute; JSON is parsed."""
    value = file.attrs[name]
    return json.loads(value) if isinstance(value, str) and value.startswith(("{", "[")) else value


def write_header(file: h5py.File, header: Header) -> None:
    """Write root attributes, ``/items``, ``/prompts``, ``/readings`` without numbers, and ``/readout``."""
    for name, value in header.attrs.items():
        file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, (dict, list, tuple)) else value
    file.attrs["pairwise"] = bool(header.attrs.get("pairwise", False))
    file.attrs["layers"] = json.dumps(list(header.layers))
    file.attrs["lenses"] = json.dumps(list(header.lenses))
    file.attrs["extras"] = json.dumps(list(header.extras))
    file.attrs["residual_dtype"] = header.residual_dtype or "none"
    _write_items(file.create_group("items"), header)
    prompts = file.create_group("prompts/token_ids")
    write_array(prompts, "values", header.token_ids.values)
    write_array(prompts, "offsets", header.token_ids.offsets)
    if header.parts is not None:
        parts = file.create_group("prompts/parts")
        parts.attrs["names"] = json.dumps(list(header.parts.names))
        for name in ("part", "start", "stop", "offsets"):
            write_array(parts, name, getattr(header.parts, name))
    readings = file.create_group("readings")
    write_array(readings, "item", header.readings.item)
    write_array(readings, "sample", header.readings.sample)
    write_array(readings, "swapped", header.readings.swapped.astype(np.uint8))
    write_array(readings, "prompt", header.reading_prompt)
    write_array(readings, "position", header.position)
    write_array(readings, "status", header.readings.status)
    _write_readout(file.create_group("readout"), header.readout)
    if header.choices is not None:
        _write_choices(file.create_group("choices"), header.choices)


def _write_items(group: h5py.Group, header: Header) -> None:
    items = header.items
    for name in TEXT_COLUMNS:
        write_array(group, name, to_text([getattr(item, name) for item in items]))
    human = items.human if items.n_raters else np.full((len(items), 1), np.nan, dtype=np.float32)
    write_array(group, "human", human)
    group["human"].attrs["raters"] = items.raters
    write_array(group, "human_value", header.human_value.astype(np.float64))
    write_array(group, "items_hash", np.array(header.item_hashes, dtype="S64"))
    write_texts(group, "fields", [json.dumps(dict(i.fields), ensure_ascii=False, sort_keys=True) for i in items])


def _write_choices(group: h5py.Group, choices: ChoiceTable) -> None:
    write_array(group, "offsets", choices.offsets)
    write_array(group, "item", choices.item.astype(np.int32))
    write_array(group, "score", choices.scores)
    write_array(group, "n_tokens", choices.n_tokens.astype(np.int32))
    write_texts(group, "label", choices.labels)
    tokens = group.create_group("token_ids")
    write_array(tokens, "values", choices.tokens.values)
    write_array(tokens, "offsets", choices.tokens.offsets)


def _write_readout(group: h5py.Group, readout: Readout) -> None:
    for name in ("token_ids", "label_index", "unembed_rows", "unembed_bias", "norm_weight", "norm_bias"):
        write_array(group, name, getattr(readout, name))
    group.attrs["norm_type"] = readout.norm_type
    group.attrs["eps"] = readout.eps
    group.attrs["logit_scale"] = readout.logit_scale
    group.attrs["softcap"] = np.nan if readout.softcap is None else readout.softcap
    group.attrs["order"] = READOUT_ORDER


def read_choices(file: h5py.File) -> ChoiceTable | None:
    """The choices of a run; None where the labels of a scale are the answers."""
    if "choices" not in file:
        return None
    group = file["choices"]
    table = ChoiceTable(
        offsets=group["offsets"][:],
        labels=tuple(bytes(text).decode() for text in read_ragged(group, "label")),
        scores=group["score"][:],
        tokens=TokenTable(group["token_ids/values"][:], group["token_ids/offsets"][:]),
    )
    if (wrong := table.fault()) is not None:
        raise RunFileError(f"{file.filename}: /choices {wrong}; `probes verify` names everything that is wrong with it")
    return table


def read_parts(file: h5py.File) -> PromptParts | None:
    """Parts of the prompts of a run; None where they are not known."""
    if "prompts/parts" not in file:
        return None
    group = file["prompts/parts"]
    columns = {name: group[name][:] for name in ("part", "start", "stop", "offsets")}
    parts = PromptParts(names=tuple(json.loads(group.attrs["names"])), **columns)
    if (wrong := parts.fault()) is not None:
        raise RunFileError(
            f"{file.filename}: /prompts/parts {wrong}; `probes verify` names everything that is wrong with it"
        )
    return parts


def read_items(file: h5py.File) -> Items:
    """Items of a run, in order."""
    group = file["items"]
    choices = read_choices(file)
    columns = {name: [text.decode() for text in group[name][:]] for name in TEXT_COLUMNS}
    human = group["human"][:]
    records = read_ragged(group, "fields")
    items = [
        Item(
            fields=json.loads(bytes(record)),
            human=tuple(row) if not np.isnan(row).all() else (),
            **({} if choices is None else choices.of_item(number)),
            **{name: columns[name][number] for name in TEXT_COLUMNS},
        )
        for number, (record, row) in enumerate(zip(records, human.tolist(), strict=True))
    ]
    about = read_attr(file, "config").get("tasks", {})
    return Items(items, raters=group["human"].attrs["raters"], source=file.filename, about=about)


def read_readout(file: h5py.File) -> Readout:
    """The readout of a run."""
    group = file["readout"]
    softcap = float(group.attrs["softcap"])
    return Readout(
        **{
            name: group[name][:]
            for name in ("token_ids", "label_index", "unembed_rows", "unembed_bias", "norm_weight", "norm_bias")
        },
        norm_type=group.attrs["norm_type"],
        eps=float(group.attrs["eps"]),
        logit_scale=float(group.attrs["logit_scale"]),
        softcap=None if np.isnan(softcap) else softcap,
    )

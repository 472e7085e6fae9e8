"""Which items and layers a caller means."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from probes.errors import RunFileError, did_you_mean
from probes.token_table import ragged_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from probes.store.description import Description

# Numbers, a boolean mask or a slice; for items also ids.
Some = Sequence[Any] | np.ndarray | slice
Choice = str | Sequence[str]


def chosen_items(run: Description, items: Some | None, labels: Mapping[str, Choice | None]) -> Int[np.ndarray, " item"]:
    """Item numbers that satisfy all of several conditions, in the order of ``items`` and as often as there.

    Args:
        run: The run.
        items: As in ``item_numbers``; all unless given.
        labels: Wanted values by text column; a column whose value is None is not looked at.

    Raises:
        RunFileError: There is no such item or value, or nothing is left.
    """
    n_items = run.n_items
    numbers = np.arange(n_items) if items is None else item_numbers(run, items)
    for name, wanted in labels.items():
        if wanted is None:
            continue
        if not isinstance(wanted, (str, Sequence, set, frozenset, np.ndarray)):
            raise RunFileError(f"{run.path}: give {name} as a text or a list of texts, got {wanted!r}")
        values = {wanted} if isinstance(wanted, str) else set(wanted)
        column = np.array([getattr(item, name) for item in run.items], dtype=np.object_)
        if unknown := sorted(values - set(column)):
            known = sorted(set(column))
            shown = ", ".join(map(repr, known[:10])) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise RunFileError(f"{run.path} has no item of {name} {unknown[0]!r}; it has {shown}")
        numbers = numbers[np.isin(column[numbers], list(values))]
    if not len(numbers):
        raise RunFileError(f"{run.path}: the selection is empty; {n_items} items to choose from")
    return numbers


def item_numbers(run: Description, items: Some) -> Int[np.ndarray, " item"]:
    """Item numbers, in the order asked for and as often as asked for.

    Args:
        run: The run.
        items: Numbers, ids, a boolean mask or a slice. An id stands for the first item that bears it.

    Raises:
        RunFileError: There is no such item, or the mask has another length.
    """
    chosen = np.asarray(items)
    if chosen.dtype.kind in "OSU" and chosen.ndim == 1 and len(chosen):
        place = {name: number for number, name in reversed(list(enumerate(run.ids)))}
        if unknown := [name for name in chosen.tolist() if name not in place]:
            raise RunFileError(
                f"{run.path} has no item {unknown[0]!r}{did_you_mean(unknown[0], place)}: its first is {run.ids[0]!r}, "
                f"of {run.n_items}"
            )
        return np.array([place[name] for name in chosen.tolist()])
    return chosen_numbers(items, run.n_items, "item", run.path)


def chosen_numbers(chosen: Some, n_all: int, what: str, path: Path) -> Int[np.ndarray, " chosen"]:
    """Numbers of items or readings, in the order asked for, from numbers, a boolean mask or a slice.

    Raises:
        RunFileError: The mask has another length, or there is no such number.
    """
    if isinstance(chosen, slice):
        try:
            return np.arange(n_all)[chosen]
        except TypeError:
            raise RunFileError(f"{path}: a slice of {what}s goes by whole numbers, got {chosen!r}") from None
    given = np.asarray(chosen)
    if given.ndim == 1 and not len(given):
        return np.empty(0, dtype=np.int64)
    if given.ndim != 1 or given.dtype.kind not in "biu":
        raise RunFileError(f"{path}: give {what}s as a list of whole numbers or as a mask, got {chosen!r}")
    if given.dtype == bool:
        if len(given) != n_all:
            raise RunFileError(f"{path}: the mask has {len(given)} entries for {n_all} {what}s")
        return np.flatnonzero(given)
    numbers = given.astype(np.int64)
    outside = numbers[(numbers < -n_all) | (numbers >= n_all)]
    if len(outside):
        raise RunFileError(f"{path} has no {what} number {outside[0]}; there are {n_all}")
    return np.where(numbers < 0, numbers + n_all, numbers)


def rows_of(
    item: Int[np.ndarray, " reading"], chosen: Int[np.ndarray, " chosen"]
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """All readings of some items, item by item, and which of the items, counted as they were chosen, each is of.

    Args:
        item: Item of every reading.
        chosen: Item numbers, in any order and as often as wanted.
    """
    order = np.argsort(item, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=int(chosen.max(initial=-1)) + 1))])
    counts = np.diff(offsets)[chosen]
    return order[ragged_rows(offsets, chosen)], np.repeat(np.arange(len(chosen)), counts)


def one_layer(run: Description, layer: str | int) -> int:
    """Position of one layer on the layer axis.

    Raises:
        RunFileError: There is no such layer, or several are given.
    """
    if not isinstance(layer, (str, Integral)):
        raise RunFileError(f"{run.path}: layer takes one name, got {layer!r}; run.select(layers=...) takes several")
    return int(chosen_layers(run, layer)[0])


def chosen_layers(run: Description, layers: Sequence[str | int] | str | int) -> Int[np.ndarray, " layer"]:
    """Positions of layers on the layer axis, in the order asked for and as often as asked for.

    Raises:
        RunFileError: There is no such layer.
    """
    if not isinstance(layers, (str, Integral, Sequence, np.ndarray)):
        raise RunFileError(f"{run.path}: give layers as names, such as 'embed' and 12, got {layers!r}")
    names = [layers] if isinstance(layers, (str, Integral)) else list(layers)
    for name in names:
        if str(name) not in run.layers:
            raise RunFileError(f"{run.path} has no layer {name!r}; its layers are {_shown(run.layers)}")
    if not names:
        raise RunFileError(f"{run.path}: no layer is selected; its layers are {_shown(run.layers)}")
    return np.array([run.layers.index(str(name)) for name in names])


def _shown(layers: Sequence[str]) -> str:
    if len(layers) < 4:
        return ", ".join(layers)
    return f"{layers[0]}, {layers[1]} .. {layers[-1]}"

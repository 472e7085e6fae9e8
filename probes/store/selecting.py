"""Which items and layers a caller means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from probes.errors import RunFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probes.store.description import Description

# Numbers or a boolean mask; for items also ids.
Some = Sequence[Any] | np.ndarray
Choice = str | Sequence[str]


def chosen_items(
    run: Description, items: Some | None, labels: Mapping[str, Choice | None], *, ordered: bool = False
) -> Int[np.ndarray, " item"]:
    """Item numbers that satisfy all of several conditions, ascending unless ``ordered``.

    Args:
        run: The run.
        items: Numbers, a boolean mask or ids; all unless given.
        labels: Wanted values by text column; a column whose value is None is not looked at.
        ordered: Keep the order and repetitions of ``items``.

    Raises:
        RunFileError: There is no such item or value, or nothing is left.
    """
    n_items = run.n_items
    numbers = np.arange(n_items) if items is None else _numbers(run, items)
    if not ordered:
        numbers = np.unique(numbers)
    for name, wanted in labels.items():
        if wanted is None:
            continue
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


def _numbers(run: Description, items: Some) -> Int[np.ndarray, " item"]:
    chosen = np.asarray(items)
    n_items = run.n_items
    if chosen.ndim != 1:
        raise RunFileError(f"{run.path}: give items as a list of numbers or ids, or as a mask, got {items!r}")
    if chosen.dtype == bool:
        if len(chosen) != n_items:
            raise RunFileError(f"{run.path}: the mask has {len(chosen)} entries for {n_items} items")
        return np.flatnonzero(chosen)
    if chosen.dtype.kind in "OSU" and len(chosen):
        place = {name: number for number, name in enumerate(run.ids)}
        if unknown := [name for name in chosen.tolist() if name not in place]:
            raise RunFileError(f"{run.path} has no item {unknown[0]!r}")
        return np.array([place[name] for name in chosen.tolist()])
    numbers = chosen.astype(np.int64)
    if outside := [int(number) for number in numbers if not -n_items <= number < n_items]:
        raise RunFileError(f"{run.path} has no item number {outside[0]}; there are {n_items}")
    return np.where(numbers < 0, numbers + n_items, numbers)


def chosen_layers(run: Description, layers: Sequence[str | int] | str | int) -> Int[np.ndarray, " layer"]:
    """Positions of layers on the layer axis, ascending.

    Raises:
        RunFileError: There is no such layer.
    """
    names = [layers] if isinstance(layers, (str, int)) else list(layers)
    for name in names:
        if str(name) not in run.layers:
            raise RunFileError(f"{run.path} has no layer {name!r}; its layers are {_shown(run.layers)}")
    if not names:
        raise RunFileError(f"{run.path}: no layer is selected; its layers are {_shown(run.layers)}")
    return np.unique([run.layers.index(str(name)) for name in names])


def _shown(layers: Sequence[str]) -> str:
    if len(layers) < 4:
        return ", ".join(layers)
    return f"{layers[0]}, {layers[1]} .. {layers[-1]}"

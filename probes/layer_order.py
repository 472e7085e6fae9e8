"""Layers in the order of the model, as judges, figures and files have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_R = TypeVar("_R")


def model_order(layers: Sequence[str]) -> list[str]:
    """Names along the layer axis in the order of the model, ``embed, 1 .. L``, each once."""
    return sorted(set(layers), key=lambda name: int(name) if name.isdecimal() else 0)


def in_model_order(run: _R) -> _R:
    """A run with its layers in the order of the model, each once; the same run where they are, or it cannot select.

    A selection has the layers in the order asked for (``run.select(layers=[22, 3, 22])``), while all that judges
    layers against each other needs the last layer to be the last, and no layer to weigh twice.
    """
    shown: Any = run
    ordered = model_order(shown.layers)
    if list(shown.layers) == ordered or not hasattr(shown, "select"):
        return run
    selected: _R = shown.select(layers=ordered)
    return selected

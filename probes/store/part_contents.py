"""The parts of prompts in a run: names, and stretches of tokens that lie within their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from probes.store.contents import Contents
    from probes.store.structure import Structure

_GROUP: Final = "/prompts/parts"


def check_parts(run: Structure, contents: Contents, lengths: Int[np.ndarray, " prompt"]) -> None:
    """Check the parts of the prompts of a run, where it has them.

    Args:
        run: The run.
        contents: Takes what is wrong.
        lengths: Tokens of every prompt.
    """
    if not run.has_parts:
        return
    names = run.owner_attrs(_GROUP).get("names", [])
    if not all(isinstance(name, str) and name for name in names) or len(set(map(str, names))) < len(names):
        run.faults.add(f"{_GROUP}@names", "must be texts that are not empty, each once")
    offsets = contents.offsets(_GROUP, "part")
    if offsets is None or not run.has(f"{_GROUP}/start", f"{_GROUP}/stop"):
        return
    part, start, stop = (run.whole(f"{_GROUP}/{name}") for name in ("part", "start", "stop"))
    if part is None or start is None or stop is None or len(offsets) != len(lengths) + 1:
        return
    prompt = np.repeat(np.arange(len(lengths)), np.diff(offsets))

    def call(row: int) -> str:
        return f"row {row} (prompt {prompt[row]})"

    unnamed = np.flatnonzero((part < 0) | (part >= len(names)))
    run.faults.add_rows(f"{_GROUP}/part", unnamed, lambda row: f"is {part[row]}, and there is no such name", call)
    outside = np.flatnonzero((start < 0) | (start >= stop) | (stop > lengths[prompt]))
    run.faults.add_rows(
        f"{_GROUP}/stop",
        outside,
        lambda row: (
            f"ends a part of tokens {start[row]} to {stop[row] - 1}, of the {lengths[prompt[row]]} of its prompt"
        ),
        call,
    )

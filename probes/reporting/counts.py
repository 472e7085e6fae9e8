"""Items used and not used, and why: every item of a run is in one of these states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Int

from probes.store.readings import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.store import Run

USED: Final = "used"
UNLABELLED: Final = "no human score"
UNREAD: Final = {
    Status.NO_SCORE: "no reading: no score in the answer",
    Status.TOO_LONG: "no reading: too long",
    Status.NON_FINITE: "no reading: numbers not finite",
    Status.NOT_CAPTURED: "no reading: not captured",
    Status.ERROR: "no reading: error",
}
_HALF_READ: Final = "no reading: not finite under every lens"


def item_states(
    run: Run, used: Int[np.ndarray, " used"], labelled: Bool[np.ndarray, " item"], read: Bool[np.ndarray, " item"]
) -> list[str]:
    """What became of every item; an item that lacks both a reading and a human score counts as not read.

    Args:
        run: The run.
        used: Positions of the items that take part in the comparison, or would.
        labelled: Which items have a human score.
        read: Which items have a reading.
    """
    status = run.item_status
    states = []
    taking_part = set(used.tolist())
    for row in range(len(status)):
        if row in taking_part:
            states.append(USED)
        elif not read[row]:
            states.append(UNREAD[Status(int(status[row]))])
        else:
            states.append(_HALF_READ if labelled[row] else UNLABELLED)
    return states


def tally(states: Sequence[str]) -> list[tuple[str, int]]:
    """How many items are in which state: used first, then by number."""
    counts = {state: list(states).count(state) for state in dict.fromkeys([USED, *states])}
    return sorted(counts.items(), key=lambda pair: (pair[0] != USED, -pair[1], pair[0]))

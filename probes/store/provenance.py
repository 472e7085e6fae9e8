"""Where a run's numbers come from, in one text that travels with every export."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from probes.errors import RunFileError

if TYPE_CHECKING:
    from probes.store.run import Run

_ATTRIBUTES: Final = (
    "format_version",
    "created",
    "judge_hash",
    "model_hash",
    "model_hash_v1",
    "readout_hash",
    "judge",
    "config",
    "scale",
    "n_layers",
    "dtype",
    "residual_dtype",
    "pairwise",
    "first_label",
    "tolerances",
    "deviations",
    "versions",
    "parts",
)


def provenance(run: Run) -> str:
    """JSON object of the root attributes that a run has, the layers it shows, and whether its capture is over."""
    found: dict[str, Any] = {"run": run.path.name, "is_complete": run.is_complete, "layers": list(run.layers)}
    for name in _ATTRIBUTES:
        with suppress(RunFileError):  # a run of an earlier version, or one that has no use for it
            found[name] = run.attr(name)
    return json.dumps(found, sort_keys=True, default=lambda number: number.item())

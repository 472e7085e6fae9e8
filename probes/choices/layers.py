"""Rows of the table of layers, of choices and of answers in free text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from probes.choices.evidence import Resampled, metric_interval
from probes.choices.ragged import largest, spread, sums
from probes.intervals import Interval, simultaneous

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from probes.choices.data import Per
    from probes.choices.parts import ChoicePart
    from probes.protocol import Settings
    from probes.runlike import RunLike

# The one metric of items whose answer is free text.
FREE_TEXT: Final = "log_likelihood"


def said_per(table: pd.DataFrame, per: Per) -> pd.DataFrame:
    """A table about layers, with a column ``per`` where log-likelihoods are divided by the length of the choice.

    Those of free text never are: nothing is chosen between texts of different lengths.
    """
    if not per or table.empty:
        return table
    return table.assign(per=np.where(table["metric"] == FREE_TEXT, "", per) if "metric" in table else per)


def free_text_rows(run: RunLike, part: ChoicePart, settings: Settings, band: str = "pointwise") -> list[dict[str, Any]]:
    """Rows of the table of layers for items whose answer is free text: mean log-likelihood of the right answers.

    Of an item with several, that of all of them together, as ``probes.tasks.metrics`` has it.
    """
    rows = []
    for lens, data in part.free_text.items():
        if not len(data):
            continue
        logprob = data.divided("")
        top = largest(logprob, data.offsets)
        of_items = top + np.log(sums(np.exp(logprob - spread(top, data.offsets)), data.offsets))
        found = Resampled(part.free_groups, settings.resamples, settings.seed).mean(of_items)
        rows += layer_rows(
            part.criterion,
            lens,
            run.layers,
            FREE_TEXT,
            found,
            len(np.unique(part.free_groups)),
            settings.level,
            band,
            float("nan"),
            (len(data), part.n_total),
        )
    return rows


def layer_rows(
    criterion: str,
    lens: str,
    layers: Sequence[str],
    metric: str,
    replicates: Float[np.ndarray, "layer resample"],
    n_groups: int,
    level: float,
    band: str,
    at_random: float,
    counts: tuple[int, int],
) -> list[dict[str, Any]]:
    """Rows of one metric of every layer."""
    if band == "simultaneous" and metric in ("accuracy", "stable"):
        found = [
            Interval((1 + one.value) / 2, (1 + one.lo) / 2, (1 + one.hi) / 2)
            for one in simultaneous(2 * replicates - 1, n_groups, level)
        ]
    else:
        band = "pointwise"
        found = [metric_interval(metric, row, n_groups, level) for row in replicates]
    return [
        {
            "criterion": criterion,
            "lens": lens,
            "layer": layer,
            "layer_index": index,
            "metric": metric,
            "value": one.value,
            "lo": one.lo,
            "hi": one.hi,
            "band": band,
            "chance": at_random,
            "n_used": counts[0],
            "n_total": counts[1],
        }
        for index, (layer, one) in enumerate(zip(layers, found, strict=True))
    ]


def named(name: str, estimate: Interval) -> dict[str, float]:
    """An estimate with its interval, as columns."""
    return {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}

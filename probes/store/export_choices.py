"""The part of an export that a run of choices has instead of score logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from probes.choices.ragged import first_largest, softmax, sums

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from probes.choices.table import ChoiceTable
    from probes.store.run import Run


def table_of(run: Run) -> ChoiceTable:
    """The choices of a run that has some."""
    assert run.choices is not None
    return run.choices


def choice_rows(run: Run, lens: str, rows: ArrayLike) -> Float[np.ndarray, "row layer"]:
    """Log-likelihoods of some choices, by their numbers in the run; no others are read but those of the same items.

    Raises:
        RunFileError: As ``Run.choice_logprob``.
    """
    table, wanted = table_of(run), np.asarray(rows, dtype=np.int64)
    if not len(wanted):
        return np.empty((0, len(run.layers)), dtype=np.float32)
    items = np.unique(np.searchsorted(table.offsets, wanted, side="right") - 1)
    return run.choice_logprob(lens, items)[np.searchsorted(table.rows(items), wanted)]


def most_likely(run: Run, last: Run | None, lens: str, items: Int[np.ndarray, " row"]) -> dict[str, Any]:
    """Columns of the table of readings: the most likely choice of some items, and what it is worth.

    Args:
        run: The run.
        last: The run with its last layer alone; None where nothing was captured.
        lens: Lens of the log-likelihoods.
        items: Numbers of the items.

    Returns:
        ``n_choices``; ``label``, the text of the most likely choice, of equal ones the first, or None; ``grade``, what
        it is worth; ``p_label``, its probability among the choices of its item.
    """
    import pandas as pd

    table = table_of(run).select(items)
    logprob = np.full(len(table), np.nan)
    if last is not None and len(items):
        logprob = last.choice_logprob(lens, items)[:, 0].astype(np.float64)
    known = sums((~np.isfinite(logprob)).astype(float), table.offsets) == 0
    place = np.where(known, first_largest(logprob, table.offsets), 0) + table.offsets[:-1]
    text_type = pd.Series(np.array(table.labels, dtype=object)).dtype  # depends on the version of pandas
    labels = [table.labels[row] if is_known else None for row, is_known in zip(place.tolist(), known, strict=True)]
    return {
        "n_choices": table.counts,
        "label": pd.Series(labels, dtype=text_type),
        "grade": np.where(known, table.scores[place], np.nan),
        "p_label": np.where(known, softmax(logprob, table.offsets)[place], np.nan),
    }


def choice_layers(run: Run, lens: str) -> pd.DataFrame:
    """``layer_table`` of a run of choices."""
    import pandas as pd

    table, n_layers = table_of(run), len(run.layers)
    logprob = run.choice_logprob(lens).astype(np.float64)
    choice, layer = np.repeat(np.arange(len(table)), n_layers), np.tile(np.arange(n_layers), len(table))
    item = table.item[choice]
    return pd.DataFrame(
        {
            "reading": np.argsort(run.readings.item)[item],
            "id": np.array(run.ids, dtype=object)[item],
            "choice": np.array(table.labels, dtype=object)[choice],
            "score": table.scores[choice],
            "layer": np.array(run.layers, dtype=object)[layer],
            "layer_index": layer,
            "logprob": logprob.reshape(-1),
            "p": softmax(logprob, table.offsets).reshape(-1),
        }
    )


def choice_lists(
    run: Run, lenses: list[str], items: Int[np.ndarray, " row"], missing: Bool[np.ndarray, " row"]
) -> dict[str, Any]:
    """Columns of a Parquet file: one list an item, with an entry a choice.

    Args:
        run: The run.
        lenses: Lenses whose log-likelihoods are given.
        items: Numbers of the items.
        missing: Which of them have no numbers, and no lists of any.
    """
    import pyarrow as pa

    table = table_of(run).select(items)
    offsets = pa.array(table.offsets.astype(np.int32))
    columns = {
        "choices": pa.ListArray.from_arrays(offsets, pa.array(table.labels, pa.string())),
        "choice_scores": pa.ListArray.from_arrays(offsets, pa.array(table.scores, from_pandas=True)),
    }
    for lens in lenses:
        logprob = run.choice_logprob(lens, items)
        for number, layer in enumerate(run.layers):
            values, mask = pa.array(np.ascontiguousarray(logprob[:, number])), pa.array(missing)
            columns[f"choice_logprob.{lens}.{layer}"] = pa.ListArray.from_arrays(offsets, values, mask=mask)
    return columns

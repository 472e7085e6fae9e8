"""What was generated: the text of each answer, and whether it came to its end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from probes.answers import is_answered, stopped_at
from probes.errors import RunFileError
from probes.store.readings import Status

if TYPE_CHECKING:
    from probes.store.run import Run


def answer_texts(run: Run, readings: Int[np.ndarray, " row"] | None = None) -> list[str]:
    """Generated text of some readings, up to the stop text that ended it, which stays where the item's task names it.

    Raises:
        RunFileError: Nothing was generated for this run.
    """
    texts = [bytes(text).decode() for text in run.generated("generation/text", readings)]
    stop = _decoding(run).get("stop", ())
    if not stop:
        return texts
    of = run.readings.item if readings is None else run.readings.item[readings]
    named = {name: known.get("stop_string") for name, known in run.items.about.items()}
    criteria = run.criteria
    return [
        text[: stopped_at(text, [one for one in stop if one != named.get(criteria[item])])]
        for text, item in zip(texts, of.tolist(), strict=True)
    ]


def cut_off(run: Run) -> Bool[np.ndarray, " reading"]:
    """Whether an answer has all the tokens that it may have, and did not come to its end with them."""
    decoding = _decoding(run)
    lengths = run.generated_lengths("generation/token_ids")
    full = np.asarray(lengths >= decoding.get("max_new_tokens", np.inf))
    if not full.any():
        return full
    if not run.has_choices:
        # A score is certain once a token follows it; the last label of all is so at the end alone.
        certain = (run.status == Status.OK) & (run.position < run.n_tokens + lengths - 2)
        return full & ~certain if decoding["rule"]["kind"] != "last" else full
    anchor, stop = re.compile(decoding["rule"]["anchor"]), decoding.get("stop", ())
    rows = np.flatnonzero(full)
    for row, text in zip(rows.tolist(), run.generated("generation/text", rows), strict=True):
        written = bytes(text).decode()
        full[row] = not is_answered(written, anchor) and stopped_at(written, stop) is None
    return full


def _decoding(run: Run) -> dict[str, Any]:
    """How answers were decoded; empty where none were, or where the run does not say."""
    try:
        return dict(run.attr("judge").get("decoding") or {})
    except RunFileError:
        return {}

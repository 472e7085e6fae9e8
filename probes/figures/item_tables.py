"""Tables about one item of a run, for the figure of single items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from probes.errors import FitError
from probes.fitted import expected_values
from probes.layer_order import in_model_order
from probes.runlike import RunLike, check_lens, where


def item_distributions(run: RunLike, item: str, lens: str = "norm") -> pd.DataFrame:
    """What every layer would answer to one item, for ``probes.figures.item``.

    Args:
        run: The run.
        item: Id of the item.
        lens: Lens whose logits are read.

    Returns:
        One row a layer and label: ``item, lens, layer, layer_index, label, label_value, prob, score``; ``score`` is
        the layer's expected value.

    Raises:
        FitError: There is no such item or lens, or the item has no reading.
    """
    row, run = item_row(run, item), in_model_order(run)
    check_lens(run, lens)
    logits = run.item_logits(lens)[row].astype(np.float64)
    if not np.isfinite(logits).all():
        raise FitError(f"{where(run)} has no reading of the item {item!r}: choose one that was captured")
    values = np.asarray(run.scale.values, dtype=np.float64)
    probs = softmax(logits, axis=-1)
    n_layers, n_labels = probs.shape
    return pd.DataFrame(
        {
            "item": item,
            "lens": lens,
            "layer": np.repeat(np.asarray(run.layers, dtype=object), n_labels),
            "layer_index": np.repeat(np.arange(n_layers), n_labels),
            "label": np.tile(np.asarray(run.scale.labels, dtype=object), n_layers),
            "label_value": np.tile(values, n_layers),
            "prob": probs.ravel(),
            "score": np.repeat(expected_values(logits, values), n_labels),
        }
    )


def item_choices(run: RunLike, item: str, lens: str = "norm", per: str = "") -> pd.DataFrame:
    """What every layer would answer to one item of a run of choices, for ``probes.figures.item``.

    Args:
        run: The run.
        item: Id of the item.
        lens: Lens whose log-likelihoods are read.
        per: What they are divided by: ``token``, ``byte`` or ``char``; by nothing unless given.

    Returns:
        The columns of ``item_distributions``; ``label`` is the text of a choice, with ``(right)`` behind it where no
        other is worth more, ``label_value`` its place, the first at the top, and ``score`` is missing. With ``per``, a
        column of that name.

    Raises:
        FitError: There is no such item, lens or length, or the item has no reading.
    """
    from probes.choices.data import read_per
    from probes.choices.layers import said_per
    from probes.choices.parts import choice_data
    from probes.choices.ragged import softmax as of_items

    divided = read_per(per) or ""
    run = in_model_order(run)
    data = choice_data(run, lens).select(np.array([item_row(run, item)]))
    if not data.usable.all():
        raise FitError(f"{where(run)} has no reading of the item {item!r}: choose one that was captured")
    probs = of_items(data.divided(divided), data.offsets).T
    right = (data.scores == data.scores.max()) & (data.scores > data.scores.min())
    names = [f"{label} (right)" if is_right else label for label, is_right in zip(data.labels, right, strict=True)]
    n_layers, n_choices = probs.shape
    table = pd.DataFrame(
        {
            "item": item,
            "lens": lens,
            "layer": np.repeat(np.asarray(run.layers, dtype=object), n_choices),
            "layer_index": np.repeat(np.arange(n_layers), n_choices),
            "label": np.tile(np.asarray(names, dtype=object), n_layers),
            "label_value": np.tile(-np.arange(n_choices, dtype=np.float64), n_layers),
            "prob": probs.ravel(),
            "score": np.nan,
        }
    )
    return said_per(table, divided)


def item_row(run: RunLike, item: str) -> int:
    """Where an item is in a run.

    Raises:
        FitError: There is no such item.
    """
    ids = list(run.ids)
    if item not in ids:
        raise FitError(f"{where(run)} has no item {item!r}: its first is {ids[0]!r}, of {len(ids):,}")
    return ids.index(item)


def prompt_text(run: RunLike, item: str) -> str:
    """What the judge was asked about an item: the last turn of its prompt, or its fields where the run does not say.

    The few-shot examples before it and the marks of the model's chat template are left out.

    Raises:
        FitError: There is no such item.
    """
    from probes.errors import ProbesError
    from probes.origin import origin_of
    from probes.prompts import Template

    record: Any = run.items[item_row(run, item)]
    if record.choices and "input" in record.fields:
        return str(record.fields["input"])  # of a task's prompt, worked examples take most
    try:
        template = Template.from_dict(origin_of(run)["judge"]["template"])
        messages, prefill = template.messages(record, run.scale)  # type: ignore[arg-type]
        return "\n".join(text for text in (str(messages[-1]["content"]), prefill) if text)
    except (KeyError, ProbesError):
        return "\n".join(f"{name}: {text}" for name, text in record.fields.items())

"""Published metrics of the tasks of a run: what its choices and its generated texts are worth at the last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probes.runlike import HoldsChoices
from probes.store.readings import Status

if TYPE_CHECKING:
    from jaxtyping import Bool

    from probes.items import Items
    from probes.runlike import RunLike
    from probes.tasks.extraction import Extract


def published(run: RunLike, criterion: str | None = None, extract: Extract | None = None) -> pd.DataFrame:
    """Published metrics of a run of choices, without folds or fits.

    Layers do not come into it: choices are scored under the ``norm`` lens at the last layer, which is what the model
    says, and generated texts come from there as well.

    Args:
        run: A run of choices, captured with whatever condition.
        criterion: Only this task; all unless given.
        extract: How answers are taken out of generated texts, as in ``probes.tasks.score_texts``.

    Returns:
        One row a task and metric, then averages over tasks: ``of`` (``choices`` or ``text``) and the columns of
        ``probes.tasks.score_texts``.
    """
    from probes.items import Items
    from probes.tasks import score_choices, score_texts, stored_tasks

    items = run.items
    if not isinstance(run, HoldsChoices) or run.choices is None or not isinstance(items, Items):
        return pd.DataFrame()
    chosen = np.flatnonzero([criterion in (None, item.criterion) for item in items])
    items, tasks, parts = items.select(chosen), stored_tasks(items), []
    if "norm" in run.lenses and run.layers[-1] == str(run.n_layers):
        last = run.choice_logprob("norm")[run.choices.rows(chosen), -1]
        parts.append(score_choices(items, last.astype(np.float64), tasks=tasks).assign(of="choices"))
    if (texts := _texts(run)) is not None:
        scores = score_texts(items, [texts[row] for row in chosen], tasks=tasks, extract=extract)
        parts.append(_with_cut_off(scores, items, _cut_off(run)[chosen]).assign(of="text"))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    return table[["of", *(name for name in table.columns if name != "of")]]


def _with_cut_off(scores: pd.DataFrame, items: Items, cut_off: Bool[np.ndarray, " item"]) -> pd.DataFrame:
    """Scores of texts, with a note where texts lack their end."""
    criteria = np.array(items.column("criterion"))
    counts = {name: int(cut_off[criteria == name].sum()) for name in dict.fromkeys(criteria.tolist())}
    said = [f"{count} answers cut off" if (count := counts.get(task, 0)) else "" for task in scores["task"]]
    return scores.assign(note=["; ".join(filter(None, pair)) for pair in zip(scores["note"], said, strict=True)])


def _cut_off(run: Any) -> Bool[np.ndarray, " reading"]:
    """Which answers were cut off; with choices, a reading is an item."""
    return np.asarray(run.cut_off)


def _texts(run: Any) -> list[str | None] | None:
    """What was generated for each item, None where nothing was; None where the run generates nothing."""
    if not hasattr(type(run), "__contains__") or "generation/text" not in run:
        return None
    # Reasoning that leads to no answer is a text as well, and a wrong answer.
    answered = np.isin(run.status, [Status.OK, Status.NO_SCORE, Status.NON_FINITE])
    return [text if known else None for text, known in zip(run.generated_text, answered.tolist(), strict=True)]

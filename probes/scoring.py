"""Score new items with a fitted judge: one pass an item, one row an item."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from probes.errors import FitError, KindError
from probes.items import Items, LabelName
from probes.kinds import require_judge, require_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from probes.artefact import FittedJudge
    from probes.capturing.memory import MemoryRun
    from probes.choices.fitted import ChoiceScores
    from probes.fitted import Scores
    from probes.judge import Judge
    from probes.store.run import Run

_LABELS: Final[tuple[LabelName, ...]] = ("criterion", "group", "system", "split")

_log = logging.getLogger(__name__)


def score(
    fitted: FittedJudge,
    source: Items | Run,
    judge: Judge | None = None,
    *,
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    share_prefix: bool = True,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Score items with a fitted judge, or the items of a run.

    Items go through the judge as in ``capture``, with the same numbers, but nothing is written, and no more is kept
    than the score logits of one lens. A judge that does not go with ``fitted`` is refused before the first pass.

    Args:
        fitted: The fitted judge.
        source: Items, whose human scores play no part, or a run.
        judge: What reads the items; loaded as ``fitted.load_judge()`` does unless given.
        batch_tokens: Tokens that one pass computes; chosen by free memory unless given.
        max_tokens: Longest prompt to score, if lower than the model's own limit.
        share_prefix: Compute shared prefixes once, where the architecture allows.
        show_progress: Progress bar on or off; on a terminal and in notebooks unless given.

    Returns:
        One row an item, in order: ``id``; ``criterion``, ``group``, ``system`` and ``split``, each where an item has
        one; ``value``, on the scale of the label values; ``p_<label>``, the probability of each label, NaN for judges
        that give a number only; of items with choices instead ``choice``, the text of the most likely one, and its
        probability ``p_choice``; ``status``: ``ok``, or why there is no value (``no_score``, ``too_long``,
        ``non_finite``, ``not_captured``, ``error``).

    Raises:
        FitError: The judge or run has another model, scale, readout or layers than ``fitted``.
        ProbesError: As ``capture``.
    """
    if not hasattr(fitted, "aggregator"):
        raise KindError(
            f"fitted: expected a FittedJudge, got {fitted!r}; load one with probes.FittedJudge.load(path), or fit one "
            "with probes.fit"
        )
    if not isinstance(source, Items):
        require_run(source, "source: items or a run")
    if judge is not None:
        require_judge(judge)
    run: Run | MemoryRun
    if isinstance(source, Items):
        run = _captured(fitted, source, judge or fitted.load_judge(), batch_tokens, max_tokens, share_prefix)
        run.capture(show_progress=show_progress)
    elif judge is not None:
        raise FitError(f"{source.path} is a run, which is scored without its judge; pass either a run, or items")
    else:
        run = source
        fitted.check(run)
    table = _table(run, fitted.predict(run))
    missing = Counter(table["status"][table["status"] != "ok"])
    if missing:
        reasons = ", ".join(f"{count} {status}" for status, count in sorted(missing.items()))
        _log.warning("%d of %d items have no score: %s", missing.total(), len(table), reasons)
    return table


def write_scores(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table of scores; what is there is replaced when the file is whole.

    Args:
        table: From ``score``.
        path: ``.jsonl``, ``.csv`` or ``.parquet``; a number that is missing is null, or an empty cell.

    Raises:
        FitError: The suffix is none of these.
        RunFileError: The file cannot be written.
    """
    from probes.store import disk

    path = Path(path)
    check_suffix(path)
    temporary = path.with_name(f"{path.name}.writing")
    with disk.failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".jsonl":
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in json_lines(table))
            elif path.suffix == ".csv":
                table.to_csv(temporary, index=False)
            else:
                table.to_parquet(temporary, index=False)
            disk.publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_suffix(path: Path) -> None:
    """Refuse a file name that names no format.

    Raises:
        FitError: The suffix is not one that ``write_scores`` knows.
    """
    if path.suffix not in _SUFFIXES:
        raise FitError(f"cannot write scores to {path}: give the file a name that ends in {', '.join(_SUFFIXES)}")


_SUFFIXES: Final = (".jsonl", ".csv", ".parquet")


def json_lines(table: pd.DataFrame) -> Iterator[str]:
    """Rows as JSON, every number exact to the last bit and missing ones null."""
    for row in table.itertuples(index=False, name=None):
        values = (None if isinstance(value, float) and np.isnan(value) else value for value in row)
        yield json.dumps(dict(zip(table.columns, values, strict=True)), allow_nan=False)


def _captured(
    fitted: FittedJudge,
    items: Items,
    judge: Judge,
    batch_tokens: int | None,
    max_tokens: int | None,
    share_prefix: bool,
) -> MemoryRun:
    """A capture of the lens that a fitted judge reads, checked and ready to run."""
    from probes.capturing.job import Settings, prepare
    from probes.capturing.memory import MemoryRun

    what = f"the judge {judge.name}"
    # Of another model, the labels may be no tokens; that is not what is wrong.
    fitted.check_judge(judge.weights_hash, judge.scale, what, judge.weights_hash_v1)
    # The human scores of items that are about to be scored may lie on any scale.
    unlabelled = Items([replace(item, human=()) for item in items], source=items.source)
    layer = fitted.aggregator.layer_of_states
    settings = Settings(
        (fitted.aggregator.reads,),
        layer is not None,
        batch_tokens=batch_tokens,
        max_tokens=max_tokens,
        share_prefix=share_prefix,
    )
    run = MemoryRun(prepare(judge, unlabelled, settings), layer)
    fitted.check(run, what)
    return run


def _table(run: Run | MemoryRun, scores: Scores | ChoiceScores) -> pd.DataFrame:
    from probes.choices.fitted import ChoiceScores
    from probes.store.readings import Status

    items, n_items = run.items, len(scores.value)
    columns: dict[str, Any] = {"id": list(items.ids)}
    columns |= {name: texts for name in _LABELS if any(texts := items.column(name))}
    if isinstance(scores, ChoiceScores):
        columns["choice"] = [
            item.choices[place] if place >= 0 else None
            for item, place in zip(items, scores.choice.tolist(), strict=True)
        ]
        columns["p_choice"] = scores.value
        columns["status"] = [Status(int(number)).name.lower() for number in run.item_status]
        return pd.DataFrame(columns)
    probs = np.full((n_items, len(run.scale.labels)), np.nan) if scores.probs is None else scores.probs
    columns["value"] = scores.value
    columns |= {f"p_{label}": probs[:, k] for k, label in enumerate(run.scale.labels)}
    status = run.item_status.copy()
    # A lens that was not captured can overflow where those that were did not.
    status[(status == Status.OK) & ~np.isfinite(scores.value)] = Status.NON_FINITE
    columns["status"] = [Status(int(number)).name.lower() for number in status]
    return pd.DataFrame(columns)

"""A fitted judge as a scorer of Inspect (``pip install 'probes[inspect]'``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio

from probes.artefact import FittedJudge
from probes.errors import ItemError, ProbesError
from probes.items import Item, Items
from probes.scoring import score

try:
    from inspect_ai.scorer import Score, mean, scorer, stderr
except ImportError as error:
    raise ImportError(f"this scorer needs Inspect ({error}): pip install 'probes[inspect]'") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from inspect_ai.scorer import Scorer, Target
    from inspect_ai.solver import TaskState

    from probes.judge import Judge

_FIELDS: Final = {"task": "input", "response": "output"}


@scorer(metrics=[mean(), stderr()])  # type: ignore[untyped-decorator]
def fitted_judge(
    fitted: FittedJudge | str | Path,
    judge: Judge | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    criterion: str = "",
    batch_tokens: int | None = None,
) -> Scorer:
    """Score what a model answered with a fitted judge.

    Samples that wait for a score while others are being read go through the judge together.

    Args:
        fitted: The fitted judge, or its file.
        judge: What reads the answers; loaded at the first sample, as the fitted judge says, unless given.
        fields: For each text field of the template what fills it: ``input``, ``output`` (the completion), ``target``,
            or ``metadata.NAME``. ``task`` from ``input`` and ``response`` from ``output`` unless given.
        criterion: Name of what is judged, for templates that show it.
        batch_tokens: Tokens that one pass computes; chosen by free memory unless given.

    Returns:
        A scorer whose value is on the scale of the label values. Its metadata has ``probabilities`` by label (None
        for judges that give a number only) and ``status``. An answer without a value is unscored.

    Raises:
        FitError: The file is no fitted judge.
        ItemError: A field cannot be filled like that.
    """
    loaded = fitted if isinstance(fitted, FittedJudge) else FittedJudge.load(fitted)
    sources = dict(_FIELDS if fields is None else fields)
    for name, source in sources.items():
        if source not in ("input", "output", "target") and not source.startswith("metadata."):
            raise ItemError(
                f"the field {name!r} cannot be filled with {source!r}: choose input, output, target or metadata.NAME"
            )
    queue = _Queue(loaded, judge, batch_tokens)

    async def run(state: TaskState, target: Target) -> Score:
        texts = {name: _text(source, state, target) for name, source in sources.items()}
        item = Item(f"{state.sample_id}, epoch {state.epoch}", texts, criterion)
        return _score(await queue.score(item))

    return run


def _text(source: str, state: TaskState, target: Target) -> str:
    """What one field of an item says."""
    if source == "input":
        return str(state.input_text)
    if source == "output":
        return str(state.output.completion)
    if source == "target":
        return str(target.text)
    name = source.removeprefix("metadata.")
    if name not in state.metadata:
        there = ", ".join(map(str, state.metadata)) or "nothing"
        raise ItemError(f"sample {state.sample_id!r} has no metadata {name!r}; it has {there}")
    return str(state.metadata[name])


def _score(row: Mapping[str, Any]) -> Score:
    """A row of the table of scores as Inspect has it."""
    probabilities = {name.removeprefix("p_"): p for name, p in row.items() if name.startswith("p_")}
    known = not any(math.isnan(p) for p in probabilities.values())
    metadata = {"probabilities": probabilities if known else None, "status": row["status"]}
    if row["status"] != "ok":
        explanation = f"the judge gives no score: {row['status']}"
        return Score.unscored(reason="scoring_failed", explanation=explanation, metadata=metadata)
    return Score(value=float(row["value"]), metadata=metadata)


@dataclass(eq=False)
class _Waiting:
    """An item and, once it is scored, its row or what went wrong."""

    item: Item
    found: dict[str, Any] | ProbesError | None = None


class _Queue:
    """Scores items one call at a time; items that arrive during a call share the next one."""

    def __init__(self, fitted: FittedJudge, judge: Judge | None, batch_tokens: int | None) -> None:
        self._fitted = fitted
        self._judge = judge
        self._batch_tokens = batch_tokens
        self._lock = anyio.Lock()
        self._waiting: list[_Waiting] = []

    async def score(self, item: Item) -> dict[str, Any]:
        """Row of an item in the table of scores.

        Raises:
            ProbesError: The item, or the judge, cannot be used.
        """
        mine = _Waiting(item)
        self._waiting.append(mine)
        async with self._lock:
            if mine.found is None:
                # Ids are unique in a call; tasks that share a scorer may have samples of the same id.
                batch = list({one.item.id: one for one in [*self._waiting, mine]}.values())
                self._waiting = [one for one in self._waiting if one not in batch]
                await anyio.to_thread.run_sync(self._run, batch)
        if isinstance(mine.found, ProbesError):
            raise mine.found
        assert mine.found is not None
        return mine.found

    def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            self._judge = self._judge or self._fitted.load_judge()
            items = Items([one.item for one in batch], source="the samples")
            table = score(self._fitted, items, self._judge, batch_tokens=self._batch_tokens, show_progress=False)
        except ProbesError as error:
            if len(batch) == 1:
                batch[0].found = error
                return
            # What is wrong with one sample must not fail the others.
            for one in batch:
                self._run([one])
            return
        for one, row in zip(batch, table.to_dict("records"), strict=True):
            one.found = {str(name): value for name, value in row.items()}

"""The report of a run whose items have choices of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from probes.choices.comparing import MACRO
from probes.choices.data import PER_WORDS, read_per
from probes.choices.held_out import stable_from
from probes.choices.judges import get_choice_judge
from probes.choices.parts import choice_data, choice_parts
from probes.choices.ragged import first_largest, largest, softmax
from probes.errors import FitError
from probes.figures.drawing import of_comparison
from probes.reporting.answer import answer
from probes.reporting.explorer import choose
from probes.reporting.pictures import Picture, draw, shown_lens
from probes.tables import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.choices.data import Per
    from probes.choices.parts import ChoicePart
    from probes.comparison import Comparison
    from probes.reporting.explorer import Sample
    from probes.store import Run

JUDGES: Final = ("final", "final-ridge", "best-layer-ridge", "text-ridge", "lager", "slope-ridge")
COLUMNS: Final = (
    "judge", "labels_used", "n_used", "accuracy", "chance", "gain_over_final", "gain_over_recalibrated",
    "gain_over_baseline", "gain_over_baseline_p", "baseline", "brier", "ece",
)  # fmt: skip
_LETTERS: Final = 160


def _compared(name: str) -> Any:
    return lambda _, found, criterion: of_comparison(found, name, criterion)


def _reliability(_: Run, found: Comparison, criterion: str) -> Any:
    from probes import figures

    table = found.calibration[found.calibration["criterion"] == criterion]
    return figures.reliability(table[table["judge"].isin(["final", "final-ridge", "slope-ridge"])], answers=True)


PICTURES: Final = (
    Picture(
        "Right answers, layer by layer",
        "Share of items whose most likely choice at each layer is right; dashed: chance and the last layer.",
        _compared("alignment"),
    ),
    Picture("Judges against the last layer", "Paired differences of accuracy, with intervals.", _compared("forest")),
    Picture(
        "Weights of the layers",
        "How much each layer counts in the judges that learn to mix them; whiskers: range over folds.",
        _compared("weights"),
    ),
    Picture("As sure as right?", "Share of right answers by the probability of the choice.", _reliability),
)


def check_judges(judges: Sequence[str] | None) -> list[str]:
    """Judges to compare; those of ``JUDGES`` unless given.

    Raises:
        FitError: A judge is unknown.
    """
    return [get_choice_judge(judge).spec for judge in judges or JUDGES]


def compared(
    run: Run,
    judges: Sequence[str],
    given: Comparison | None,
    criterion: str | None,
    resamples: int,
    level: float,
    seed: int,
    per: Per | None = None,
) -> Comparison:
    """The comparison that a report is about.

    Raises:
        FitError: The one given is not of this run; or as ``probes.compare``.
    """
    from probes.comparing import compare

    if given is None:
        return compare(run, judges, resamples=resamples, level=level, seed=seed, criterion=criterion, per=per)
    for part in choice_parts(run, criterion):
        if len(part) and (
            part.criterion not in given.evidence or len(given.evidence[part.criterion].groups) != len(part)
        ):
            raise FitError(f"the comparison is not one of {run.path}: compare this run, or leave the comparison out")
    return given


def per_of(found: Comparison) -> Per:
    """What log-likelihoods of layers are divided by in a comparison."""
    return read_per(next(filter(None, found.by_layer["per"]))) or "" if "per" in found.by_layer else ""


def sections(run: Run, found: Comparison, criterion: str | None) -> list[dict[str, Any]]:
    """What the page says about each task, and about their mean."""
    of_task = {part.criterion: part for part in choice_parts(run, criterion)}
    shown = []
    for name in found.criteria:
        pictures = [one for one in PICTURES if name != MACRO or one.title.startswith(("Right", "Judges"))]
        parts = [of_task[name]] if name in of_task else list(of_task.values())
        shown.append(
            {
                "criterion": name,
                "answer": answer(found, name),
                "pictures": draw(run, found, name, pictures),
                "counts": _counts(parts),
            }
        )
    return shown


def _counts(parts: Sequence[ChoicePart]) -> list[tuple[str, int]]:
    counts = {
        "used": sum(map(len, parts)),
        "no reading": sum(part.n_uncaptured for part in parts),
        "no choice that is worth something": sum(part.n_unlabelled for part in parts),
        "answer in free text": sum(part.n_free_text for part in parts),
    }
    return [(name, count) for name, count in counts.items() if count or name == "used"]


def item_rows(run: Run, most: int, seed: int, per: Per = "") -> tuple[Sample, pd.DataFrame]:
    """Items with what the last layer answers, and since which layer: all, or those furthest off and some others."""
    data = choice_data(run, shown_lens(run))
    usable = np.flatnonzero(data.usable)
    known = data.select(usable)
    last = softmax(known.divided(per)[:, -1], known.offsets)
    right = known.scores == np.repeat(largest(known.scores, known.offsets), known.counts)
    off = np.full(len(data), np.nan)
    off[usable] = 1 - np.add.reduceat(np.where(right, last, 0.0), known.offsets[:-1]) if len(usable) else off[usable]
    sample = choose(off, most, seed)
    chosen = first_largest(known.divided(per), known.offsets)
    since = stable_from(chosen) if len(usable) else np.zeros(0, dtype=np.int64)
    sure = largest(last, known.offsets)
    place = {row: number for number, row in enumerate(usable.tolist())}
    items = run.items
    rows = []
    for row in sample.rows.tolist():
        item, number = items[row], place.get(row)
        best = max(item.choice_scores, default=float("nan"))
        answers = [one for one, worth in zip(item.choices, item.choice_scores, strict=False) if worth == best]
        said = None if number is None else item.choices[int(chosen[number, -1])]
        rows.append(
            {
                "item": item.id,
                "question": _short(item.fields.get("input") or "\n".join(item.fields.values())),
                "right answer": _short(" | ".join(answers)) or MISSING,
                f"last layer says{f', per {PER_WORDS[per]}' if per else ''}": MISSING if said is None else _short(said),
                "right": MISSING if said is None or not answers else "yes" if said in answers else "no",
                "probability": np.nan if number is None else float(sure[number]),
                "from layer": MISSING if number is None else run.layers[int(since[number])],
            }
        )
    return sample, pd.DataFrame(rows)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LETTERS else f"... {line[-_LETTERS:]}"

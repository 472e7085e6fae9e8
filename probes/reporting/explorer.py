"""What the page holds of every item: scores, texts, and the distributions of all layers in compact form."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence  # noqa: TC003 - the tests look the types up
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from probes.calibration import targets
from probes.errors import FitError
from probes.reporting.pictures import shown_lens
from probes.reporting.texts import Texts, prompts

if TYPE_CHECKING:
    from probes.store import Run

# Probabilities are stored in so many steps: two bytes each, wrong by less than a hundred-thousandth.
STEPS: Final = 65_535


@dataclass(frozen=True, eq=False)
class ItemScores:
    """What is known of every item of a run, on the scale of the label values; NaN where there is nothing.

    Attributes:
        lens: Lens that the layers are read under.
        probs: Probability of each label at each layer.
        human: Mean human score.
        final: Expected value of the last layer.
        judge: Out-of-fold score of the judge that the report is about, a mean over the repeats.
        states: What became of each item; see ``probes.reporting.counts``.
    """

    lens: str
    probs: Float[np.ndarray, "item layer label"]
    human: Float[np.ndarray, " item"]
    final: Float[np.ndarray, " item"]
    judge: Float[np.ndarray, " item"]
    states: Sequence[str]

    @property
    def off(self) -> Float[np.ndarray, " item"]:
        """Disagreement: how far the judge, or where it has no score the last layer, is from the raters' mean."""
        return np.asarray(np.abs(np.where(np.isfinite(self.judge), self.judge, self.final) - self.human))


def read_layers(run: Run) -> tuple[str, Float[np.ndarray, "item layer label"]]:
    """The lens that layers are shown under, and their distributions.

    Raises:
        FitError: The run has no lens at all.
    """
    if not run.lenses:
        raise FitError(f"{run.path} has no score logits and no states to make them of: capture it again")
    lens = shown_lens(run)
    return lens, np.asarray(softmax(run.item_logits(lens).astype(np.float64), axis=-1))


@dataclass(frozen=True, eq=False)
class Sample:
    """The items that a page holds.

    Attributes:
        rows: Their positions in the run, ascending.
        says: Which they are, in words.
    """

    rows: Int[np.ndarray, " shown"]
    says: str


def choose(off: Float[np.ndarray, " item"], most: int, seed: int) -> Sample:
    """All items, or of too many the half with the largest disagreement and others at random.

    Args:
        off: Disagreement of every item; NaN where nothing is known.
        most: Items that a page may hold.
        seed: Of the random half.
    """
    n_items = len(off)
    if n_items <= most:
        return Sample(np.arange(n_items), f"All {n_items:,} items of the run.")
    known = np.flatnonzero(np.isfinite(off))
    worst = known[np.argsort(-off[known], kind="stable")][: most // 2]
    rest = np.setdiff1d(np.arange(n_items), worst)
    drawn = np.random.default_rng(seed).choice(rest, size=most - len(worst), replace=False)
    largest = f"the {len(worst):,} with the largest disagreement and " if len(worst) else ""
    says = (
        f"A sample: {most:,} of {n_items:,} items, {largest}{len(drawn):,} drawn at random from the others "
        f"(seed {seed}). All numbers above are about the whole run."
    )
    return Sample(np.sort(np.concatenate([worst, drawn])), says)


def payload(run: Run, scores: ItemScores, sample: Sample, judge: str | None) -> dict[str, Any]:
    """What the script of the page reads, JSON-ready.

    Args:
        run: The run.
        scores: Of all its items.
        sample: The items to show.
        judge: Name of the judge of ``scores.judge``, if there is one.
    """
    rows = sample.rows.tolist()
    items = [run.items[row] for row in rows]
    texts = Texts()
    fields = [[[texts.add(name), texts.add(text)] for name, text in item.fields.items()] for item in items]
    turns = prompts(run, items, texts)
    answers = _answers(run, sample.rows, texts)
    table, lost = texts.cut()
    values = np.asarray(run.scale.values, dtype=np.float64)
    human = np.asarray(run.human, dtype=np.float64)[rows]
    shares = targets(run.scale.to_value(human), values).shares
    low, high = run.scale.human_range
    return {
        "labels": list(run.scale.labels),
        "values": values.tolist(),
        "human_range": [low, high],
        "layers": list(run.layers),
        "lens": scores.lens,
        "judge": judge,
        "id": [item.id for item in items],
        "criterion": [item.criterion for item in items],
        "group": [item.group for item in items],
        "system": [item.system for item in items],
        "state": [scores.states[row] for row in rows],
        "human": _numbers(scores.human[rows]),
        "final": _numbers(scores.final[rows]),
        "score": _numbers(scores.judge[rows]),
        "off": _numbers(scores.off[rows]),
        "raters": [_numbers(of) for of in human],
        "read": np.isfinite(scores.probs[rows]).all(axis=(1, 2)).tolist(),
        "steps": STEPS,
        "probs": _packed(scores.probs[rows]),
        "shares": _packed(shares),
        "texts": table,
        "lost": lost,
        "fields": fields,
        "turns": turns,
        "answers": answers,
    }


def as_json(data: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or a line of script.

    HTML reads such an element up to ``</script`` and takes ``<!--`` for more than text, so no ``<`` is left; U+2028
    and U+2029 end lines in older JavaScript.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029\x7f"})


def _numbers(values: Float[np.ndarray, " number"]) -> list[float | None]:
    return [round(value, 5) + 0.0 if np.isfinite(value) else None for value in values.tolist()]


def _packed(shares: Float[np.ndarray, "item *axes"]) -> str:
    """Base64 of little-endian unsigned 16-bit steps, zeros where there is nothing."""
    steps = np.rint(np.nan_to_num(shares) * STEPS).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode()


def _answers(run: Run, rows: Int[np.ndarray, " shown"], texts: Texts) -> list[list[int]] | None:
    """What the judge wrote about each item, an entry a sample; None where nothing was generated."""
    if "generation/text" not in run:
        return None
    place = {row: number for number, row in enumerate(rows.tolist())}
    found: list[list[int]] = [[] for _ in place]
    for item, written in zip(run.readings.item.tolist(), run.generated_text, strict=True):
        if item in place:
            found[place[item]].append(texts.add(written))
    return found

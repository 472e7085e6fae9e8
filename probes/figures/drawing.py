"""Draw and save the figures that runs allow, and say why others cannot be drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool

from probes import figures
from probes.aggregate import DEFAULT_JUDGE, get_aggregator
from probes.errors import FigureError, ProbesError, did_you_mean
from probes.figures import tables
from probes.figures.output import check_formats
from probes.runlike import has_choices, where

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from probes.choices.data import Per
    from probes.comparison import Comparison
    from probes.runlike import RunLike

_OF_LABELS: Final = "it is about the labels of a scale, and items of the run have choices of their own"


class Drawn(NamedTuple):
    """A figure that was asked for: its files, or why there are none."""

    name: str
    paths: tuple[Path, ...]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Material:
    """Runs, what their figures are to be about, and what was found in them, found once.

    Attributes:
        runs: By name.
        judges: Judges of the comparison; the common ones unless given.
        items: Ids of the items that are looked at one by one; the first that was captured unless given.
        criterion: Only items of this criterion.
        seed: Of folds, label draws and resamples.
        per: What log-likelihoods of layers are divided by, where items have choices; as the judges do unless given.
    """

    runs: Mapping[str, RunLike]
    judges: Sequence[str] | None = None
    items: Sequence[str] = ()
    criterion: str | None = None
    seed: int = 0
    per: str | None = None

    @property
    def run(self) -> RunLike:
        """The one run.

        Raises:
            FigureError: There are several.
        """
        if len(self.runs) > 1:
            raise FigureError("it is about one run: draw it from each on its own")
        return next(iter(self.runs.values()))

    def of_labels(self) -> RunLike:
        """The one run, of a figure that is about the labels of a scale.

        Raises:
            FigureError: There are several, or its items have choices of their own.
        """
        if has_choices(self.run):
            raise FigureError(_OF_LABELS)
        return self.run

    @cached_property
    def criteria(self) -> list[str]:
        """Criteria to draw, in order."""
        if self.criterion is not None:
            return [self.criterion]
        return list(dict.fromkeys(name for run in self.runs.values() for name in run.criteria))

    @cached_property
    def comparison(self) -> Comparison:
        """Judges compared.

        Raises:
            FigureError: No run has human scores, or answers are free text, so that nothing is chosen.
            FitError: As ``probes.compare``.
        """
        from probes.comparing import compare

        self.check_scores()
        runs = dict(self.runs) if len(self.runs) > 1 else next(iter(self.runs.values()))
        found = compare(runs, self.judges, seed=self.seed, criterion=self.criterion, per=self.per)
        if found.table.empty:
            reason = "".join(f"; {warning}" for warning in found.warnings[:1])
            raise FigureError(
                "there is nothing to choose between: answers are free text, which `probes compare --table published` "
                f"scores{reason}"
            )
        return found

    @cached_property
    def divided(self) -> tuple[Per, str]:
        """What log-likelihoods of layers are divided by, and why not as the judges do; empty for labels of a scale.

        Raises:
            FitError: There is no such length or judge.
        """
        from probes.choices.data import read_per
        from probes.choices.judges import get_choice_judge
        from probes.choices.length import layers_per

        of_choices = any(map(has_choices, self.runs.values()))
        asked = read_per(self.per, of_choices=of_choices)
        if not of_choices:
            return "", ""
        per, notes = layers_per([get_choice_judge(judge) for judge in self.judges or ()], asked)
        return per, "".join(notes)

    def check_scores(self) -> None:
        """Refuse runs without human scores.

        Raises:
            FigureError: A run has none.
        """
        for run in self.runs.values():
            # Where nobody has said which choice is right, the comparison says so.
            if not has_choices(run) and not np.isfinite(np.asarray(run.human_value, dtype=np.float64)).any():
                raise FigureError(f"{where(run)} has no human scores")


def draw(
    material: Material,
    names: Sequence[str],
    out: Path,
    formats: Sequence[str] = ("png", "pdf"),
    *,
    skip: bool = False,
) -> Iterator[Drawn]:
    """Draw figures and save them, one after the other.

    Args:
        material: What they are of.
        names: Names among ``FIGURES``.
        out: Folder.
        formats: Any of ``png``, ``pdf``, ``svg``.
        skip: Go on where a figure cannot be drawn, and yield the reason.

    Yields:
        What was drawn; several figures of a name where there are several criteria or items.

    Raises:
        FigureError: There is no such figure; or, unless ``skip``, one cannot be drawn.
        FitError: As ``probes.compare``, unless ``skip``.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        near = did_you_mean(unknown[0], FIGURES)
        raise FigureError(f"no figure {unknown[0]!r}{near}: choose one of {', '.join(FIGURES)}, or all")
    check_formats(formats)
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        n_drawn = 0
        try:
            for suffix, figure in FIGURES[name](material):
                paths = figures.save(figure, out / _file_name(name, suffix, taken), tuple(formats))
                n_drawn += 1
                yield Drawn(name, paths)
            if not n_drawn:
                raise FigureError("the run holds nothing for it")
        except ProbesError as error:
            reason = " ".join(str(error).split())
            if not skip:
                raise type(error)(f"cannot draw {name}: {reason}") from None
            yield Drawn(name, (), reason)


def of_comparison(found: Comparison, name: str, criterion: str) -> Figure:
    """The figure ``alignment``, ``weights`` or ``forest`` of one criterion of a comparison.

    Raises:
        FigureError: It has nothing to draw.
    """
    if name == "alignment":
        return _alignment(found, criterion)
    return _weights(found, criterion) if name == "weights" else figures.forest(_of(found.table, criterion))


def _alignment(found: Comparison, criterion: str) -> Figure:
    layers = _of(found.by_layer, criterion)
    layers = layers[layers["metric"] == found.metric]
    chance = float(layers["chance"].iloc[0]) if "chance" in layers and len(layers) else None
    if found.each:
        lens = next(lens for lens in ("norm", *layers["lens"]) if (layers["lens"] == lens).any())
        return figures.alignment(layers[layers["lens"] == lens], chance=chance, metric=found.metric)
    # The last layer under the norm lens is what the model itself says.
    last = layers[(layers["lens"] == "norm") & (layers["layer_index"] == layers["layer_index"].max())]
    final = float(last["value"].iloc[0]) if len(last) else None
    if chance is not None:
        return figures.alignment(layers, final=final, chance=chance, metric=found.metric)
    lines = _of(found.human_lines, criterion).set_index("line")["value"]
    return figures.alignment(layers, final=final, attainable=float(lines["attainable"]))


def _weights(found: Comparison, criterion: str) -> Figure:
    table = _of(found.weights, criterion)
    # Weights that are not learned, or lie on one layer, need no picture.
    learned = found.table[found.table["labels_used"] > 0]["judge"]
    shown = table[table["judge"].isin(found.multi_layer) & table["judge"].isin(learned)]
    if shown.empty:
        raise FigureError("no judge among these learns weights of several layers")
    return figures.weights(shown)


def _of(table: pd.DataFrame, criterion: str) -> pd.DataFrame:
    return table[table["criterion"] == criterion]


_Figures = Iterator[tuple[str, "Figure"]]


def _compared(name: str) -> Any:
    def make(material: Material) -> _Figures:
        if name == "weights":
            _ = material.run
        found = material.comparison
        for criterion in found.criteria:
            yield criterion if len(found.criteria) > 1 else "", of_comparison(found, name, criterion)

    return make


def _by_criterion(material: Material) -> Iterator[tuple[str, str]]:
    """A suffix for the name of the file, and the criterion, of each."""
    for criterion in material.criteria:
        yield criterion if len(material.criteria) > 1 else "", criterion


def _score_map(material: Material) -> _Figures:
    run = material.of_labels()
    limits = float(run.scale.values[0]), float(run.scale.values[-1])
    for suffix, criterion in _by_criterion(material):
        yield suffix, figures.score_map(tables.layer_scores(run, _lens(run), criterion), limits=limits)


def _distributions(material: Material) -> _Figures:
    material.of_labels()
    material.check_scores()
    for suffix, criterion in _by_criterion(material):
        yield suffix, figures.distributions(tables.score_distributions(material.run, _lens(material.run), criterion))


def _reliability(material: Material) -> _Figures:
    material.check_scores()
    if has_choices(material.run):
        compared = material.comparison
        shown = compared.table["judge"].drop_duplicates().tolist()
        shown = [judge for judge in ("final", "final-ridge", "slope-ridge") if judge in shown] or shown[:3]
        of_shown = compared.calibration[compared.calibration["judge"].isin(shown)]
        for suffix, criterion in _by_criterion(material):
            if len(one := _of(of_shown, criterion)):
                yield suffix, figures.reliability(one, answers=True)
        return
    judges = ["final", DEFAULT_JUDGE] if "norm" in material.run.lenses else [f"{DEFAULT_JUDGE}@raw"]
    for suffix, criterion in _by_criterion(material):
        found = tables.reliability_bins(material.run, judges, seed=material.seed, criterion=criterion)
        yield suffix, figures.reliability(found)


def _similarity(material: Material) -> _Figures:
    for suffix, centred in (("", False), ("centred", True)):
        yield suffix, figures.similarity(tables.layer_similarity(material.run, centred=centred))


def _learning_curve(material: Material) -> _Figures:
    from probes.curves import JUDGES, learning_curve

    material.of_labels()
    material.check_scores()
    judges = [judge for judge in JUDGES if get_aggregator(judge).reads in material.run.lenses]
    for suffix, criterion in _by_criterion(material):
        found = learning_curve(material.run, judges, seed=material.seed, criterion=criterion)
        yield suffix, figures.learning_curve(found)


def _transfer(material: Material) -> _Figures:
    from probes.curves import transfer

    if any(map(has_choices, material.runs.values())):
        raise FigureError(_OF_LABELS)
    material.check_scores()
    if len(material.runs) == 1 and len(set(material.run.criteria)) == 1:
        raise FigureError("it needs two criteria or two runs of one model")
    yield "", figures.transfer(transfer(material.runs, seed=material.seed))


def _mass(material: Material) -> _Figures:
    yield "", figures.mass(tables.scale_mass(material.of_labels()))


def _item(material: Material) -> _Figures:
    run = material.run
    ids = list(material.items)
    if not ids:
        there = _captured(run)
        if not there.any():
            raise FigureError(f"{where(run)} has no item that was captured")
        ids = [run.ids[int(np.flatnonzero(there)[0])]]
    for item in ids:
        if has_choices(run):
            figure = figures.item(
                tables.item_choices(run, item, _lens(run), material.divided[0]), prompt=tables.prompt_text(run, item)
            )
            yield item if len(ids) > 1 else "", figure
            continue
        human = run.scale.to_value(np.asarray(run.human, dtype=np.float64)[tables.item_row(run, item)])
        found = tables.item_distributions(run, item, _lens(run))
        figure = figures.item(found, prompt=tables.prompt_text(run, item), human=human)
        yield item if len(ids) > 1 else "", figure


def _captured(run: RunLike) -> Bool[np.ndarray, " item"]:
    """Items that can be shown."""
    if has_choices(run):
        from probes.choices.parts import choice_data

        return choice_data(run, _lens(run)).usable
    return np.asarray(np.isfinite(run.item_logits(_lens(run))).all(axis=(1, 2)))


def _lens(run: RunLike) -> str:
    return "norm" if "norm" in run.lenses else run.lenses[0]


def _file_name(name: str, suffix: str, taken: set[str]) -> str:
    """A name that every system takes, whatever a criterion or an item is called, and that no other figure has."""
    plain = re.sub(r"[^\w.-]+", "-", suffix).strip("-.")[:60]
    stem = f"{name}-{plain}" if plain else name
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    free = next(one for one in numbered if one.lower() not in taken)
    taken.add(free.lower())
    return free


FIGURES: Final[Mapping[str, Any]] = {
    "alignment": _compared("alignment"),
    "weights": _compared("weights"),
    "forest": _compared("forest"),
    "score-map": _score_map,
    "distributions": _distributions,
    "reliability": _reliability,
    "similarity": _similarity,
    "learning-curve": _learning_curve,
    "transfer": _transfer,
    "mass": _mass,
    "item": _item,
}

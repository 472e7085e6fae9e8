"""What a comparison of judges found: tables, differences, and a summary in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from probes.errors import FitError
from probes.protocol import Interval, interval, paired

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from probes.artefact import FittedJudge


@dataclass(frozen=True, eq=False)
class Comparison:
    """Judges compared on the same items.

    Attributes:
        table: One row a judge and criterion. Coefficients are means over the folds of the coefficient within
            the fold; ``mae`` and ``qwk`` are on the scale of the label values. ``labels_used`` is what the
            fit of a fold sees. ``gain_over_final`` and ``gain_over_baseline`` are paired differences of
            Spearman; ``baseline`` is the best judge of one layer with equally many labels (``final`` where
            none are used).
        by_layer: One row a criterion, lens and layer: the same statistic for each layer on its own.
        weights: One row a criterion, judge and layer: weight of the fit on all items, smallest and largest
            among the fits of the folds.
        human_lines: One row a criterion and line: ``human``, one random rater against the mean of the others;
            ``attainable``, the square root of the reliability of the raters' mean.
        judges: Judges fitted on all labelled items, by name; ``name [criterion]`` where there are several
            criteria.
        warnings: What a reader must know about the numbers.
        level: Coverage of the intervals.
        settings: Folds asked for, repeats, resamples and seed.
    """

    table: pd.DataFrame
    by_layer: pd.DataFrame
    weights: pd.DataFrame
    human_lines: pd.DataFrame
    judges: Mapping[str, FittedJudge]
    warnings: list[str]
    level: float
    settings: Mapping[str, int]
    multi_layer: frozenset[str] = frozenset()
    coefficients: Mapping[str, Mapping[str, Float[np.ndarray, "fold resample"]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def criteria(self) -> list[str]:
        """Criteria in the table, in order."""
        return list(self.coefficients)

    def difference(self, first: str, second: str, criterion: str | None = None) -> Interval:
        """Spearman of one judge minus that of another, with a paired interval.

        Raises:
            FitError: A judge or criterion is not in the comparison, or the criterion is needed but not given.
        """
        if criterion is None:
            if len(self.criteria) > 1:
                raise FitError(f"choose a criterion for the difference: {', '.join(self.criteria)}")
            criterion = self.criteria[0]
        if criterion not in self.coefficients:
            raise FitError(f"no criterion {criterion!r} in this comparison: it has {', '.join(self.criteria)}")
        of = self.coefficients[criterion]
        for judge in (first, second):
            if judge not in of:
                raise FitError(f"no judge {judge!r} in this comparison: it has {', '.join(of)}")
        return interval(paired(of[first], of[second]), self.level)

    def summary(self) -> str:
        """What was found, in plain words: a paragraph a criterion, then the warnings."""
        paragraphs = [self._paragraph(criterion) for criterion in self.criteria]
        if self.warnings:
            paragraphs.append("\n".join(["Note:", *(f"- {warning}" for warning in self.warnings)]))
        return "\n\n".join(paragraphs)

    def _paragraph(self, criterion: str) -> str:
        of_criterion = self.table[self.table["criterion"] == criterion]
        first = of_criterion.iloc[0]
        folds, repeats = first["n_folds"], self.settings["repeats"]
        name = f"{criterion}: " if criterion else ""
        lines = [
            f"{name}{first['n_used']} of {first['n_total']} items in {first['n_groups']} groups, "
            f"{repeats} x {folds} folds; Spearman with human scores, {self.level:.0%} intervals."
        ]
        of = self.coefficients[criterion]
        estimates = {judge: interval(_mean(values), self.level) for judge, values in of.items()}
        lines.append(f"- The last layer alone (final) reaches {_with_interval(estimates['final'])}.")
        lines.append(self._recalibration(criterion, estimates))
        lines.append(self._other_layers(criterion, estimates, of_criterion))
        for line in self._human(criterion):
            lines.append(line)
        return "\n".join(lines)

    def _recalibration(self, criterion: str, estimates: Mapping[str, Interval]) -> str:
        gain = self.difference("final-ridge", "final", criterion)
        if np.isnan(gain.value):
            return "- Recalibration: cannot be stated, because final or final-ridge has no defined Spearman."
        verdict = _verdict(
            gain,
            "labels help without any other layer",
            "whether labels alone help cannot be told from these items",
            "recalibrating on these labels costs agreement",
        )
        value = _plain(estimates["final-ridge"].value)
        return f"- Recalibration of the last layer (final-ridge, {value}) gives {_signed(gain)} over final: {verdict}."

    def _other_layers(self, criterion: str, estimates: Mapping[str, Interval], rows: pd.DataFrame) -> str:
        shown = [judge for judge in rows["judge"] if judge in self.multi_layer]
        defined = [judge for judge in shown if not np.isnan(estimates[judge].value)]
        baseline = best_of(estimates, BASELINES)
        if not defined or baseline is None:
            return "- Other layers: cannot be stated, because no judge that mixes layers has a defined Spearman."
        best = max(defined, key=lambda judge: estimates[judge].value)
        gain = self.difference(best, baseline, criterion)
        verdict = _verdict(
            gain,
            "the other layers add to what one layer gives",
            "whether the other layers add anything cannot be told from these items",
            "the other layers add nothing, and mixing them in costs agreement",
        )
        chosen = f", the best of {len(defined)} on this very table, so its lead flatters it" if len(defined) > 1 else ""
        seen = int(rows.set_index("judge")["labels_used"][best])
        labels = "with as many labels" if seen else f"with labels ({best} has seen none)"
        text = (
            f"- Other layers: {best} reaches {_with_interval(estimates[best])}{chosen}. Against {baseline} "
            f"({_plain(estimates[baseline].value)}), the best judge of one layer {labels}, "
            f"that is {_signed(gain)}: {verdict}."
        )
        if estimates["final"].value > estimates[baseline].value:
            over_final = self.difference(best, "final", criterion)
            text += f" Against final, which beats {baseline} without any labels, it is {_signed(over_final)}."
        return text

    def _human(self, criterion: str) -> list[str]:
        rows = self.human_lines[self.human_lines["criterion"] == criterion]
        value = dict(zip(rows["line"], rows["value"].astype(float), strict=True))
        if np.isnan(value["attainable"]):
            return []
        return [
            f"- Humans: one rater against the others {_plain(value['human'])}; a perfect judge could attain "
            f"{_plain(value['attainable'])} ({int(rows['n_used'].max())} items with two raters or more)."
        ]


# Judges of one layer that see labels: what a cross-layer judge has to beat.
BASELINES = ("final-ridge", "best-layer", "best-layer-ridge")


def best_of(estimates: Mapping[str, Interval], judges: tuple[str, ...]) -> str | None:
    """Judge with the highest defined estimate, the earlier one of equals; None where there is none."""
    defined = [judge for judge in judges if judge in estimates and not np.isnan(estimates[judge].value)]
    return max(defined, key=lambda judge: estimates[judge].value) if defined else None


def _mean(values: Float[np.ndarray, "fold resample"]) -> Float[np.ndarray, " resample"]:
    return paired(values, np.zeros_like(values))


def _verdict(gain: Interval, above: str, unclear: str, below: str) -> str:
    if gain.lo > 0:
        return above
    return below if gain.hi < 0 else unclear


def _plain(value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return f"{value:.2f}".replace("-0.00", "0.00")


def _with_interval(estimate: Interval) -> str:
    if np.isnan(estimate.value):
        return "no defined Spearman"
    return f"{_plain(estimate.value)} [{_plain(estimate.lo)}, {_plain(estimate.hi)}]"


def _signed(gain: Interval) -> str:
    value = f"{gain.value:+.2f}".replace("-0.00", "+0.00")
    return f"{value} [{_plain(gain.lo)}, {_plain(gain.hi)}]"

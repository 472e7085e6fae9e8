"""Compare judges on a run, look at its layers, and fit one judge for export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.aggregate import Aggregator, FittedAggregator, expected_values, get_aggregator
from probes.align import Metric, attainable, human_agreement, kendall, mae, pearson, qwk, spearman
from probes.artefact import FittedJudge, fit_set_hash, package_version
from probes.comparison import BASELINES, Comparison, best_of
from probes.errors import FitError
from probes.protocol import (
    Folds,
    Interval,
    OutOfFold,
    flatten_constants,
    interval,
    make_folds,
    mean_over_folds,
    out_of_fold,
    paired,
    within_fold,
    within_fold_spearman,
)
from probes.runlike import Part, RunLike, parts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_JUDGES: Final = (
    "vscore",
    "final",
    "uniform",
    "uniform@norm",
    "lager",
    "lager@norm",
    "lager-schedule",
    "lager-released",
    "best-layer",
    "final-ridge",
    "best-layer-ridge",
    "slope-ridge",
    "logit-ridge",
)
_FEW_GROUPS: Final = 20
_NAN: Final = Interval(float("nan"), float("nan"), float("nan"))

_Coefficients = Float[np.ndarray, "fold resample"]


@dataclass(frozen=True)
class _Settings:
    folds: int
    repeats: int
    resamples: int
    level: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise FitError(f"the level of the intervals must lie between 0 and 1, got {self.level:g}")
        if self.resamples < 1:
            raise FitError(f"intervals need at least 1 resample, got {self.resamples}")


def compare(
    run: RunLike,
    judges: Sequence[str | Aggregator] | None = None,
    *,
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
) -> Comparison:
    """Compare judges on the labelled items of a run, by the protocol of ``probes.protocol``.

    Each criterion is a study of its own: its own folds, fits and metrics. ``final``, ``final-ridge`` and
    ``best-layer-ridge`` are always computed, because gains are stated against them, and shown if asked for.

    Args:
        run: What to analyse.
        judges: Names or aggregators; all the common ones unless given.
        folds: Group folds of a repeat.
        repeats: How often the items are divided anew.
        resamples: Resamples of the groups for the intervals.
        level: Coverage of the intervals.
        seed: Of folds and resamples.
        criterion: Only this criterion.
        pool: Treat all criteria as one.

    Raises:
        FitError: A judge, lens or criterion is unknown, or there are too few labelled items or groups.
    """
    settings = _Settings(folds, repeats, resamples, level, seed)
    notes: list[str] = []
    shown = _aggregators(run, judges, notes)
    every = {one.spec: one for one in [*shown, *map(get_aggregator, ("final", *BASELINES))]}
    studies = [_Study(run, part, every, settings) for part in parts(run, criterion, pool=pool)]
    several = len(studies) > 1
    for study in studies:
        prefix = f"{study.part.criterion}: " if several else ""
        notes += [prefix + note for note in study.warnings]
    names = [one.spec for one in shown]
    return Comparison(
        table=pd.DataFrame([row for study in studies for row in study.rows(names)]),
        by_layer=pd.DataFrame([row for study in studies for row in study.layer_rows()]),
        weights=pd.DataFrame(
            [row for study in studies for row in study.weight_rows(names)],
            columns=["criterion", "judge", "lens", "layer", "layer_index", "weight", "lo", "hi"],
        ),
        human_lines=pd.DataFrame([row for study in studies for row in study.human_rows()]),
        judges={
            f"{spec} [{study.part.criterion}]" if several else spec: judge
            for study in studies
            for spec, judge in study.fitted_judges(names).items()
        },
        warnings=notes,
        level=level,
        settings={
            "folds": folds,
            "repeats": repeats,
            "resamples": resamples,
            "seed": seed,
        },
        multi_layer=frozenset(one.spec for one in shown if one.multi_layer),
        coefficients={study.part.criterion: study.coefficients for study in studies},
    )


def by_layer(
    run: RunLike,
    *,
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
) -> pd.DataFrame:
    """Spearman of every layer's expected value under every lens, with the statistic and folds of ``compare``.

    Returns:
        One row a criterion, lens and layer: ``criterion, lens, layer, layer_index, metric, value, lo, hi,
        n_used, n_total``; NaN where a layer gives every item the same score.

    Raises:
        FitError: As ``compare``.
    """
    settings = _Settings(folds, repeats, resamples, level, seed)
    studies = [_Study(run, part, {}, settings) for part in parts(run, criterion, pool=pool)]
    return pd.DataFrame([row for study in studies for row in study.layer_rows()])


def fit(run: RunLike, judge: str | Aggregator, *, criterion: str | None = None, pool: bool = False) -> FittedJudge:
    """Fit one judge on all labelled items of a run, for export.

    Its only metric is ``in_sample_spearman``, which is no estimate of how well it does on new items.

    Raises:
        FitError: The judge is unknown or cannot be fitted, or none of several criteria is chosen.
    """
    aggregator = get_aggregator(judge) if isinstance(judge, str) else judge
    _check_lens(run, aggregator)
    chosen = parts(run, criterion, pool=pool)
    if len(chosen) > 1:
        names = ", ".join(part.criterion for part in chosen)
        raise FitError(f"the run has several criteria: choose one of {names}, or pool them")
    part = chosen[0]
    logits = part.logits[aggregator.lens]
    fitted = aggregator.fit(logits, part.y, part.groups)
    agreement = spearman(fitted.predict(logits).value, part.y).value
    return _artefact(run, part, fitted, {"in_sample_spearman": agreement})


def _aggregators(run: RunLike, judges: Sequence[str | Aggregator] | None, notes: list[str]) -> list[Aggregator]:
    given = DEFAULT_JUDGES if judges is None else judges
    if isinstance(given, str) or not given:
        raise FitError("pass a list of at least one judge, for example ['final', 'lager']")
    chosen = [get_aggregator(judge) if isinstance(judge, str) else judge for judge in given]
    if judges is None:
        missing = [one.spec for one in chosen if one.lens not in run.lenses]
        if missing:
            notes.append(f"left out because the run lacks their lens: {', '.join(missing)}")
        chosen = [one for one in chosen if one.lens in run.lenses]
    for one in [*chosen, get_aggregator("final")]:
        _check_lens(run, one)
    return list({one.spec: one for one in chosen}.values())


def _check_lens(run: RunLike, aggregator: Aggregator) -> None:
    if aggregator.lens not in run.lenses:
        raise FitError(
            f"{aggregator.spec} reads the lens {aggregator.lens!r}, which the run lacks: it has {', '.join(run.lenses)}"
        )


def _artefact(run: RunLike, part: Part, fitted: FittedAggregator, metrics: Mapping[str, float]) -> FittedJudge:
    labelled = fitted.notes["n_fit"] > 0
    ids = [run.ids[row] for row in part.rows] if labelled else []
    return FittedJudge(
        fitted,
        run.scale.to_dict(),
        part.criterion,
        run.judge_hash,
        run.model_hash,
        run.readout_hash,
        fit_set_hash(ids, part.y if labelled else np.empty(0)),
        len(ids),
        {name: None if np.isnan(value) else float(value) for name, value in metrics.items()},
        package_version(),
    )


class _Study:
    """One criterion of a run under the protocol: folds, predictions, coefficients, rows for the tables."""

    def __init__(self, run: RunLike, part: Part, aggregators: Mapping[str, Aggregator], settings: _Settings) -> None:
        self.part = part
        self._run = run
        self._settings = settings
        self._aggregators = aggregators
        self.folds: Folds = make_folds(part.y, part.groups, settings.folds, settings.repeats, settings.seed)
        self._predicted: dict[str, OutOfFold] = {
            spec: out_of_fold(one, part.logits[one.lens], part.y, part.groups, self.folds)
            for spec, one in aggregators.items()
        }
        self._scores = {spec: flatten_constants(found.scores, self.folds) for spec, found in self._predicted.items()}
        self._layers = [(lens, index) for lens in part.logits for index in range(len(run.layers))]
        layer_scores = [
            flatten_constants(np.broadcast_to(score, self.folds.fold.shape), self.folds)
            for logits in part.logits.values()
            for score in expected_values(logits.logits, logits.values).T
        ]
        found = within_fold_spearman(
            [*self._scores.values(), *layer_scores],
            part.y,
            part.groups,
            self.folds,
            settings.resamples,
            settings.seed,
        )
        self.coefficients: dict[str, _Coefficients] = dict(zip(self._scores, found, strict=False))
        self._layer_estimates = [
            interval(mean_over_folds(values), settings.level) for values in found[len(self._scores) :]
        ]
        self.estimates = {
            spec: interval(mean_over_folds(values), settings.level) for spec, values in self.coefficients.items()
        }
        self._full = self._fit_on_all()
        self.warnings = self._warnings()

    def _fit_on_all(self) -> dict[str, FittedAggregator]:
        full = {}
        for spec, one in self._aggregators.items():
            if not one.needs_labels:
                full[spec] = self._predicted[spec].fits[0]
            elif self._predicted[spec].fits:
                full[spec] = one.fit(self.part.logits[one.lens], self.part.y, self.part.groups)
        return full

    def _warnings(self) -> list[str]:
        part, notes = self.part, list(self.folds.notes)
        if part.n_groups < _FEW_GROUPS:
            notes.append(f"only {part.n_groups} groups: below {_FEW_GROUPS}, intervals are rough and tend to be narrow")
        if part.n_unlabelled:
            notes.append(f"{part.n_unlabelled} of {part.n_total} items have no human score and are left out")
        if part.n_uncaptured:
            notes.append(f"{part.n_uncaptured} of {part.n_total} items have no reading and are left out")
        for spec, found in self._predicted.items():
            total = len(self.folds.tests())
            for reason, count in found.failures.items():
                notes.append(f"{spec} could not be fitted in {count} of {total} folds: {reason}")
            stuck = sum(one.notes.get("converged") is False for one in found.fits)
            if stuck and self._aggregators[spec].kind == "lager":  # the recipes stop after their epochs
                notes.append(f"{spec} stopped before it converged in {stuck} of {total} folds")
            undefined = int(np.isnan(self.coefficients[spec][:, 0]).sum()) - sum(found.failures.values())
            if undefined > 0:
                notes.append(
                    f"{spec} gives every item the same score in {undefined} of {total} folds, where its coefficient is "
                    "undefined; its row is about the other folds"
                )
        return notes

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table."""
        metrics: dict[str, Metric] = {
            "pearson": pearson,
            "kendall": kendall,
            "mae": mae,
            "qwk": lambda score, human: qwk(score, human, np.asarray(self._run.scale.values)),
        }
        labelled_baseline = best_of(self.estimates, BASELINES)
        rows = []
        for spec in names:
            one, found = self._aggregators[spec], self._predicted[spec]
            baseline = labelled_baseline if one.needs_labels else "final"
            rows.append(
                {
                    "judge": spec,
                    "lens": one.lens,
                    "criterion": self.part.criterion,
                    "labels_used": round(found.n_fit),
                    "n_used": len(self.part.y),
                    "n_total": self.part.n_total,
                    "n_groups": self.part.n_groups,
                    "n_folds": self.folds.n_folds,
                    **_named("spearman", self.estimates[spec]),
                    **{
                        name: within_fold(metric, self._scores[spec], self.part.y, self.folds)
                        for name, metric in metrics.items()
                    },
                    **_named("gain_over_final", self._gain(spec, "final")),
                    **_named("gain_over_baseline", self._gain(spec, baseline)),
                    "baseline": baseline or "",
                }
            )
        return rows

    def _gain(self, spec: str, over: str | None) -> Interval:
        if over is None:
            return _NAN
        return interval(paired(self.coefficients[spec], self.coefficients[over]), self._settings.level)

    def layer_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of layers."""
        return [
            {
                "criterion": self.part.criterion,
                "lens": lens,
                "layer": self._run.layers[index],
                "layer_index": index,
                "metric": "spearman",
                "value": estimate.value,
                "lo": estimate.lo,
                "hi": estimate.hi,
                "n_used": len(self.part.y),
                "n_total": self.part.n_total,
            }
            for (lens, index), estimate in zip(self._layers, self._layer_estimates, strict=True)
        ]

    def weight_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table of weights."""
        rows = []
        for spec in names:
            if spec not in self._full:
                continue
            weights = self._full[spec].layer_weights()
            of_folds = np.stack([one.layer_weights() for one in self._predicted[spec].fits])
            for index, layer in enumerate(self._run.layers):
                rows.append(
                    {
                        "criterion": self.part.criterion,
                        "judge": spec,
                        "lens": self._aggregators[spec].lens,
                        "layer": layer,
                        "layer_index": index,
                        "weight": float(weights[index]),
                        "lo": float(of_folds[:, index].min()),
                        "hi": float(of_folds[:, index].max()),
                    }
                )
        return rows

    def human_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of human lines."""
        human = np.asarray(self._run.human)[self.part.rows]
        lines = {"human": human_agreement, "attainable": attainable}
        rows = []
        for line, of in lines.items():
            found = of(human, "spearman", seed=self._settings.seed)
            rows.append(
                {
                    "criterion": self.part.criterion,
                    "line": line,
                    "metric": "spearman",
                    "value": found.value,
                    "n_used": found.n_used,
                    "n_total": self.part.n_total,
                }
            )
        return rows

    def fitted_judges(self, names: Sequence[str]) -> dict[str, FittedJudge]:
        """Judges fitted on all items, with the cross-validated metrics of their recipe."""
        return {
            spec: _artefact(self._run, self.part, self._full[spec], _named("spearman", self.estimates[spec]))
            for spec in names
            if spec in self._full
        }


def _named(name: str, estimate: Interval) -> dict[str, float]:
    return {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}

"""One criterion of a run under the protocol: folds, fits, predictions, coefficients, and the rows of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from probes.aggregate import Aggregator, FittedAggregator, expected_values
from probes.align import Metric, attainable, human_agreement, kendall, mae, pearson, qwk
from probes.artefact import FittedJudge, fit_set_hash, package_version
from probes.comparison import BASELINES, best_of
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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probes.runlike import Part, RunLike

_FEW_GROUPS: Final = 20
_NAN: Final = Interval(float("nan"), float("nan"), float("nan"))

_Coefficients = Float[np.ndarray, "fold resample"]


@dataclass(frozen=True)
class Settings:
    """How a study is carried out; see ``probes.compare``."""

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


class Study:
    """One criterion of a run under the protocol: folds, predictions, coefficients, rows for the tables."""

    def __init__(self, run: RunLike, part: Part, aggregators: Mapping[str, Aggregator], settings: Settings) -> None:
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
            spec: artefact(self._run, self.part, self._full[spec], _named("spearman", self.estimates[spec]))
            for spec in names
            if spec in self._full
        }


def _named(name: str, estimate: Interval) -> dict[str, float]:
    return {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}


def artefact(run: RunLike, part: Part, fitted: FittedAggregator, metrics: Mapping[str, float]) -> FittedJudge:
    """A fitted aggregator with everything that ties it to its run."""
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

"""One task of a run of choices under the protocol: folds, fits, answers, metrics, and the rows of every table."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from probes.artefact import FittedJudge, artefact
from probes.choices.evidence import ChoiceEvidence, Resampled, mean_of_repeats
from probes.choices.held_out import HeldOut, held_out, stable_from
from probes.choices.layers import layer_rows, named
from probes.choices.length import length_notes
from probes.choices.metrics import N_BINS, brier_sums, chance, confidence_gaps, grades, nlls, shares
from probes.choices.ragged import first_largest, largest, log_softmax, sums
from probes.errors import FitError
from probes.found import weight_rows
from probes.permutation import holm, n_permutations
from probes.protocol import Folds, Settings, make_folds
from probes.runlike import where

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from probes.choices.data import Per
    from probes.choices.fitted import FittedChoices
    from probes.choices.judges import ChoiceJudge
    from probes.choices.parts import ChoicePart
    from probes.runlike import RunLike

_FEW_GROUPS: Final = 20


class Scored(NamedTuple):
    """What predictions are worth, item by item; columns are repeats or layers.

    Attributes:
        grade: What the answer is worth.
        brier: Its part of the Brier score.
        nll: Cross-entropy.
        gap: Accuracy less confidence.
        bucket: Of the confidence.
    """

    grade: Float[np.ndarray, "item column"]
    brier: Float[np.ndarray, "item column"]
    nll: Float[np.ndarray, "item column"]
    gap: Float[np.ndarray, "item column"]
    bucket: Int[np.ndarray, "item column"]


class ChoiceStudy:
    """One task of a run of choices under the protocol.

    Args:
        run: The run.
        part: Its items of the task.
        judges: By name.
        settings: How it is carried out.
        folds: Folds that another study of the same items has made; made anew unless given.
        per: What log-likelihoods of layers are divided by; judges say it for themselves.
    """

    def __init__(
        self,
        run: RunLike,
        part: ChoicePart,
        judges: Mapping[str, ChoiceJudge],
        settings: Settings,
        folds: Folds | None = None,
        per: Per = "",
    ) -> None:
        if not len(part):
            raise FitError(f"no item of {where(run)} has an answer to compare with: {part.without}")
        self.part, self._run, self._settings, self._judges, self._per = part, run, settings, judges, per
        self.folds = folds or make_folds(part.strata, part.groups, settings.folds, settings.repeats, settings.seed)
        # Tasks are resampled apart from each other, so that their means may be averaged; of each the same whatever
        # others there are.
        self._seed = settings.seed + zlib.crc32(part.criterion.encode())
        self.resampled = Resampled(part.groups, settings.resamples, self._seed)
        self._held_out: dict[str, HeldOut] = {
            spec: held_out(judge, part.data[judge.reads], part.groups, self.folds) for spec, judge in judges.items()
        }
        self._scored = {spec: self._score(found.logp.T) for spec, found in self._held_out.items()}
        self.evidence = ChoiceEvidence.gather(
            {spec: scored.grade.T for spec, scored in self._scored.items()},
            part.groups,
            self.resampled,
            settings.level,
            self._seed,
        )
        self._full = self._fit_on_all()
        self.warnings = self._warnings()

    @cached_property
    def _target(self) -> Float[np.ndarray, " choice"]:
        return shares(self.part.first.scores, self.part.first.offsets)

    def _score(self, logp: Float[np.ndarray, "choice column"]) -> Scored:
        data = self.part.first
        known = np.isfinite(logp)
        # A judge that could not be fitted on a fold has no answers there.
        whole = sums((~known).astype(np.float64), data.offsets) == 0
        safe = np.where(known, logp, 0.0)
        gap, bucket = confidence_gaps(safe, self._target, data.offsets)
        missing = float("nan")
        return Scored(
            np.where(whole, grades(safe, data.scores, data.offsets), missing),
            np.where(whole, brier_sums(safe, self._target, data.offsets), missing),
            np.where(whole, nlls(safe, self._target, data.offsets), missing),
            np.where(whole, gap, missing),
            bucket,
        )

    def _fit_on_all(self) -> dict[str, FittedChoices]:
        return {
            spec: judge.fit(self.part.data[judge.reads], self.part.groups)
            for spec, judge in self._judges.items()
            if self._held_out[spec].fits
        }

    def _warnings(self) -> list[str]:
        part, notes, total = self.part, list(self.folds.notes), len(self.folds.tests())
        if part.repeated:
            notes.append(part.repeated)
        if part.n_groups < _FEW_GROUPS:
            notes.append(f"only {part.n_groups} groups: below {_FEW_GROUPS}, intervals and tests are rough")
        of = f"of {part.n_total} items"
        if part.n_unlabelled:
            notes.append(f"{part.n_unlabelled} {of} have no choice that is worth something and are left out")
        if part.n_uncaptured:
            notes.append(f"{part.n_uncaptured} {of} have no reading and are left out; they are not counted as wrong")
        if part.n_free_text:
            notes.append(
                f"{part.n_free_text} {of} have free text for an answer: they have a log-likelihood, and no accuracy"
            )
        for spec, found in self._held_out.items():
            for reason, count in found.failures.items():
                notes.append(f"{spec} could not be fitted in {count} of {total} folds: {reason}")
            stuck = sum(one.notes.get("converged") is False for one in found.fits)
            if stuck:
                notes.append(f"{spec} stopped before it converged in {stuck} of {total} folds")
        return notes + length_notes(part, self._per)

    def replicates(self, spec: str) -> dict[str, Float[np.ndarray, " resample"]]:
        """Every metric of a judge, on the sample and on resamples."""
        scored = self._scored[spec]
        return {metric: values[0] for metric, values in self._metrics(scored, together=True).items()}

    def _metrics(self, scored: Scored, *, together: bool) -> dict[str, Float[np.ndarray, "column resample"]]:
        """Every metric of the columns, or of their mean where they are repeats."""
        counts = self.part.first.counts.astype(np.float64)
        grade, brier, nll = (
            mean_of_repeats(values.T)[:, None] if together else values
            for values in (scored.grade, scored.brier, scored.nll)
        )
        ece = self.resampled.ece(scored.gap, scored.bucket)
        return {
            "accuracy": self.resampled.mean(grade),
            "brier": self.resampled.mean(brier, counts),
            "ece": mean_of_repeats(ece)[None] if together else ece,
            "nll": self.resampled.mean(nll),
        }

    @cached_property
    def chance(self) -> float:
        """Accuracy of choosing at random."""
        return chance(self.part.first.scores, self.part.first.offsets)

    @cached_property
    def layer_replicates(self) -> dict[str, dict[str, Float[np.ndarray, "layer resample"]]]:
        """Every metric of every layer on its own, by lens."""
        found = {}
        for lens, data in self.part.data.items():
            logp = log_softmax(data.divided(self._per), data.offsets)
            metrics = self._metrics(self._score(logp), together=False)
            stable = self.stable[lens][:, None] <= np.arange(len(data.layers))
            found[lens] = metrics | {"stable": self.resampled.mean(stable.astype(np.float64))}
        return found

    @cached_property
    def stable(self) -> dict[str, Int[np.ndarray, " item"]]:
        """The layer from which on each item's answer is that of the last layer, by lens."""
        found = {}
        for lens, data in self.part.data.items():
            found[lens] = stable_from(first_largest(data.divided(self._per), data.offsets))
        return found

    def layer_evidence(self, lens: str) -> ChoiceEvidence:
        """The layers of a lens as judges, by their label."""
        data = self.part.data[lens]
        grade = grades(log_softmax(data.divided(self._per), data.offsets), data.scores, data.offsets)
        return ChoiceEvidence.gather(
            {layer: grade[None, :, index] for index, layer in enumerate(data.layers)},
            self.part.groups,
            self.resampled,
            self._settings.level,
            self._seed,
        )

    def layer_rows(self, band: str = "pointwise") -> list[dict[str, Any]]:
        """Rows of the table of layers; a simultaneous band holds over the layers of a lens, for one metric."""
        level, n_groups = self._settings.level, self.part.n_groups
        return [
            row
            for lens, of_lens in self.layer_replicates.items()
            for metric, of_layers in of_lens.items()
            for row in layer_rows(
                self.part.criterion,
                lens,
                self._run.layers,
                metric,
                of_layers,
                n_groups,
                level,
                band,
                self.chance if metric == "accuracy" else float("nan"),
                (len(self.part), self.part.n_total),
            )
        ]

    def layer_test_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of tests: the accuracy of each layer against that of the last one, a family a lens."""
        rows = []
        for lens in self.part.data:
            evidence, final = self.layer_evidence(lens), self._run.layers[-1]
            tested = [layer for layer in self._run.layers if layer != final]
            p = evidence.p_values(tested, final)
            adjusted = holm(np.array(p))
            for index, layer in enumerate(tested):
                rows.append(
                    {
                        "criterion": self.part.criterion,
                        "lens": lens,
                        "layer": layer,
                        "layer_index": index,
                        "metric": "accuracy",
                        **named("difference", evidence.difference(layer, final)),
                        "p": p[index],
                        "p_holm": float(adjusted[index]),
                        "n_tests": len(tested),
                        "permutations": n_permutations(len(tested)),
                        "n_used": len(self.part),
                        "n_total": self.part.n_total,
                    }
                )
        return rows

    def stable_rows(self) -> list[dict[str, Any]]:
        """Rows of the table of stability: quartiles over the items of the layer from which their answer stays."""
        rows = []
        for lens, found in self.stable.items():
            quartiles = np.quantile(found, [0.25, 0.5, 0.75], method="inverted_cdf").astype(int).tolist()
            names = dict(zip(("q25", "median", "q75"), quartiles, strict=True))
            rows.append(
                {
                    "criterion": self.part.criterion,
                    "lens": lens,
                    **{name: self._run.layers[index] for name, index in names.items()},
                    **{f"{name}_index": index for name, index in names.items()},
                    "last_only": float((found == len(self._run.layers) - 1).mean()),
                    "n_used": len(self.part),
                    "n_total": self.part.n_total,
                }
            )
        return rows

    def judge_facts(self, spec: str) -> dict[str, Any]:
        """What the table says of a judge besides metrics."""
        return {
            "judge": spec,
            "lens": self._judges[spec].lens,
            "criterion": self.part.criterion,
            "labels_used": round(self._held_out[spec].n_fit),
            "n_used": len(self.part),
            "n_total": self.part.n_total,
            "n_groups": self.part.n_groups,
            "n_folds": self.folds.n_folds,
        }

    def weight_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table of weights."""
        full = {spec: self._full[spec] for spec in names if spec in self._full}
        of_folds = {spec: self._held_out[spec].fits for spec in full}
        return weight_rows(self.part.criterion, self._run.layers, full, of_folds)

    def bucket_rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of the table of calibration: the buckets of the confidence that hold items, means over the repeats."""
        rows = []
        for spec in names:
            scored = self._scored[spec]
            known = np.isfinite(scored.gap)
            ece = float(self.replicates(spec)["ece"][0])
            confidence = np.exp(largest(self._held_out[spec].logp.T, self.part.first.offsets))
            for number in range(N_BINS):
                inside = known & (scored.bucket == number)
                if not inside.any():
                    continue
                mean = float(confidence[inside].mean())
                rows.append(
                    {
                        "criterion": self.part.criterion,
                        "judge": spec,
                        "lens": self._judges[spec].lens,
                        "bin_lo": number / N_BINS,
                        "bin_hi": (number + 1) / N_BINS,
                        "confidence": mean,
                        "accuracy": mean + float(scored.gap[inside].mean()),
                        "count": float(inside.sum() / known.shape[1]),
                        "ece": ece,
                        "n_used": len(self.part),
                        "n_total": self.part.n_total,
                    }
                )
        return rows

    def fitted_judges(self, names: Sequence[str]) -> dict[str, FittedJudge]:
        """Judges fitted on all items, with the cross-validated accuracy of their recipe."""
        return {
            spec: artefact(self._run, self.part, self._full[spec], named("accuracy", self.evidence.estimates[spec]))
            for spec in names
            if spec in self._full
        }

"""Judges of several runs on the same items: common folds, paired differences, one table for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from probes.aggregate import Aggregator, get_aggregator
from probes.differences import differences
from probes.errors import FitError
from probes.matching import Matched, match
from probes.origin import origin_of
from probes.permutation import holm
from probes.prompt_spread import prompt_rows
from probes.runlike import has_choices
from probes.same_model import named_alike
from probes.study import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probes.choices.evidence import ChoiceEvidence
    from probes.comparison import Comparison
    from probes.evidence import Evidence
    from probes.protocol import Settings
    from probes.runlike import RunLike

    AnyEvidence = Evidence | ChoiceEvidence

_FINAL: Final = "final"


def studies(
    runs: Mapping[str, RunLike],
    aggregators: Mapping[str, Mapping[str, Aggregator]],
    settings: Settings,
    criterion: str | None = None,
    *,
    pool: bool = False,
) -> tuple[dict[str, list[Study]], Matched]:
    """A study of every criterion of every run, all on the same items and in the same folds and resamples.

    Args:
        runs: By name.
        aggregators: Judges of every run, by name.
        settings: Folds, repeats, resamples, level and seed.
        criterion: Only this criterion.
        pool: Treat all criteria as one.

    Raises:
        FitError: As ``probes.matching.match`` and ``probes.compare``.
    """
    matched = match(runs, criterion, pool=pool)
    first, *others = runs
    found = {first: [Study(runs[first], part, aggregators[first], settings) for part in matched.parts[first]]}
    for name in others:
        found[name] = [
            Study(runs[name], part, aggregators[name], settings, like.folds)
            for part, like in zip(matched.parts[name], found[first], strict=True)
        ]
    return found, matched


@dataclass(frozen=True)
class Reference:
    """What judges are set against.

    Attributes:
        judge: Its judge, as ``get_aggregator`` reads it.
        run: The run that judge is taken from; None where every run has its own.
    """

    judge: str
    run: str | None = None

    @classmethod
    def read(
        cls, text: str | None, runs: Mapping[str, RunLike], judge: Callable[[str], Any] = get_aggregator
    ) -> Reference | None:
        """Read ``JUDGE`` or ``RUN:JUDGE``, the run by name or file; of several runs ``final`` of the first if None.

        Args:
            text: What is asked for.
            runs: By name.
            judge: Reads the name of a judge, and gives what has a ``spec``.

        Raises:
            FitError: There is no such judge or run.
        """
        if text is None:
            return cls(_FINAL, next(iter(runs))) if len(runs) > 1 else None
        known = {called: name for name, run in runs.items() for called in _called(name, run)}
        of_run: FitError | None = None
        # The longest first, as one name may begin like another; a run may also be called like a judge.
        for called in sorted(known, key=len, reverse=True):
            if text.startswith(f"{called}:"):
                try:
                    return cls(judge(text.removeprefix(f"{called}:")).spec, known[called])
                except FitError as error:
                    of_run = of_run or error
        try:
            return cls(judge(text).spec)
        except FitError as error:
            if of_run is not None:
                raise of_run from None
            if ":" not in text:
                raise
            raise FitError(
                f"the baseline {text!r} is neither RUN:JUDGE with a run among {', '.join(runs)}, nor a judge: {error}"
            ) from None

    def of(self, run: str) -> tuple[str, str]:
        """Run and judge that the judges of a run are set against."""
        return self.run or run, self.judge

    def __str__(self) -> str:
        return self.judge if self.run is None else key(self.run, self.judge)


def _called(name: str, run: RunLike) -> list[str]:
    """What a run may be called: its name, its path, its file."""
    return [name] if run.path is None else [name, str(run.path), Path(run.path).name]


def key(run: str, judge: str) -> str:
    """A judge of one of several runs."""
    return f"{run}:{judge}"


def difference_columns(evidence: AnyEvidence, over: Mapping[str, str]) -> pd.DataFrame:
    """Paired differences of Spearman, or accuracy, with permutation tests that Holm corrects as one family.

    Args:
        evidence: Of one criterion.
        over: What each judge is set against. Judges set against themselves are no tests.

    Returns:
        One row a judge: ``difference_to, difference, difference_lo, difference_hi, p, p_holm, n_tests``.
    """
    found = {judge: evidence.difference(judge, reference) for judge, reference in over.items() if judge != reference}
    tested = [judge for judge, difference in found.items() if not np.isnan(difference.value)]
    p: dict[str, float] = {}
    for reference in dict.fromkeys(over[judge] for judge in tested):
        judges = [judge for judge in tested if over[judge] == reference]
        p |= dict(zip(judges, evidence.p_values(judges, reference, len(tested)), strict=True))
    adjusted = dict(zip(tested, holm(np.array([p[judge] for judge in tested])).tolist(), strict=True))
    missing = float("nan")
    rows = []
    for judge, reference in over.items():
        difference = found.get(judge)
        rows.append(
            {
                "difference_to": reference,
                "difference": missing if difference is None else difference.value,
                "difference_lo": missing if difference is None else difference.lo,
                "difference_hi": missing if difference is None else difference.hi,
                "p": p.get(judge, missing),
                "p_holm": adjusted.get(judge, missing),
                "n_tests": len(tested),
            }
        )
    return pd.DataFrame(rows)


def add_differences(table: pd.DataFrame, evidence: Mapping[str, AnyEvidence], reference: Reference) -> pd.DataFrame:
    """A table of judges with the columns of ``difference_columns``; the rows of a criterion are a family."""
    several = "run" in table
    parts = []
    for criterion, of_criterion in table.groupby("criterion", sort=False):
        over = {}
        for row in of_criterion.to_dict("records"):
            run, judge = reference.of(row["run"]) if several else ("", reference.judge)
            over[key(row["run"], row["judge"]) if several else row["judge"]] = key(run, judge) if several else judge
        columns = difference_columns(evidence[str(criterion)], over)
        parts.append(columns.set_index(of_criterion.index))
    return table.join(pd.concat(parts))


def stacked(of_run: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of several runs under each other, with a first column ``run``."""
    filled = {name: table for name, table in of_run.items() if len(table)}
    if not filled:
        return next(iter(of_run.values()))
    if len(of_run) == 1 or all("run" in table for table in filled.values()):
        return pd.concat(filled.values(), ignore_index=True)
    named = [table.assign(run=name)[["run", *table.columns]] for name, table in filled.items()]
    return pd.concat(named, ignore_index=True)


def merged_evidence(of_run: Mapping[str, AnyEvidence]) -> AnyEvidence:
    """The judges of several runs, ``run:judge``, as judges on the same items, which they are."""
    first = next(iter(of_run.values()))
    merged: dict[str, Any] = {}
    for field in fields(first):
        value = getattr(first, field.name)
        if isinstance(value, Mapping):
            value = {
                key(run, judge): of_judge
                for run, one in of_run.items()
                for judge, of_judge in getattr(one, field.name).items()
            }
        merged[field.name] = value
    return replace(first, **merged)


def run_rows(runs: Mapping[str, RunLike], matched: Matched) -> list[dict[str, Any]]:
    """Rows of the table of runs: what each is of, what is used of it, and in what it differs from the first."""
    first = _settings(next(iter(runs.values())))
    rows = []
    for (name, run), named in zip(runs.items(), named_alike(runs.values()), strict=True):
        found = _settings(run)
        # Under the same hash where the model is the same, whoever hashed it.
        changed = differences(first, found | (named["judge"] or {})) if first and found else []
        for part in matched.parts[name]:
            rows.append(
                {
                    "run": name,
                    "criterion": part.criterion,
                    "model": model_name(run),
                    "template": str(found.get("template", {}).get("name", "")),
                    "condition": str(found.get("condition", "")),
                    "dtype": str(found.get("dtype", "")),
                    "scale": str(run.scale),
                    "lenses": ", ".join(run.lenses),
                    "n_layers": run.n_layers,
                    "n_used": len(part),
                    "n_total": part.n_total,
                    "n_unlabelled": part.n_unlabelled,
                    "n_uncaptured": part.n_uncaptured,
                    "n_unmatched": matched.unmatched[name][part.criterion],
                    "differs": "; ".join(changed),
                }
            )
    return rows


def _settings(run: RunLike) -> dict[str, Any]:
    """What a run says about its judge; empty where it does not."""
    origin = origin_of(run)
    judge: dict[str, Any] = origin.pop("judge", {})
    return origin | judge


def model_name(run: RunLike) -> str:
    """A run's model as it was named at capture; of a folder on this machine the last part."""
    name = str(_settings(run).get("model", ""))
    return Path(name).name if Path(name).is_absolute() else name


def scale_notes(runs: Mapping[str, RunLike]) -> list[str]:
    """Say which numbers cannot be compared where scales differ."""
    if all(map(has_choices, runs.values())):
        return []
    by_scale: dict[str, list[str]] = {}
    for name, run in runs.items():
        low, high = run.scale.to_dict()["human_range"]
        by_scale.setdefault(f"{run.scale} for human scores {low:g}..{high:g}", []).append(name)
    if len(by_scale) == 1:
        return []
    scales = "; ".join(f"{', '.join(names)}: {scale}" for scale, names in by_scale.items())
    return [f"scales differ ({scales}): mae, qwk and calibration are each on the run's own scale"]


def shared_warnings(of_run: Mapping[str, Sequence[str]]) -> list[str]:
    """Warnings of several runs: what all say is said once, the rest with the name of the run."""
    everywhere = [text for text in next(iter(of_run.values())) if all(text in of for of in of_run.values())]
    return everywhere + [f"{name}: {text}" for name, of in of_run.items() for text in of if text not in everywhere]


def combine(
    each: Mapping[str, Comparison], reference: Reference, runs: Mapping[str, RunLike], notes: list[str]
) -> Comparison:
    """One comparison of the judges of several runs."""
    from probes.comparison import Comparison

    first = next(iter(each.values()))
    evidence = {
        criterion: merged_evidence({name: one.evidence[criterion] for name, one in each.items()})
        for criterion in first.evidence
    }
    frames = {
        field.name: stacked({name: getattr(one, field.name) for name, one in each.items()})
        for field in fields(first)
        if isinstance(getattr(first, field.name), pd.DataFrame)
    }
    frames["table"] = add_differences(frames["table"], evidence, reference)
    frames["prompts"] = pd.DataFrame(prompt_rows(runs, frames["table"], evidence, first.metric))
    return Comparison(
        **frames,
        judges={key(name, spec): judge for name, one in each.items() for spec, judge in one.judges.items()},
        warnings=[*scale_notes(runs), *notes, *shared_warnings({name: one.warnings for name, one in each.items()})],
        level=first.level,
        settings=first.settings,
        multi_layer=frozenset(key(name, spec) for name, one in each.items() for spec in one.multi_layer),
        evidence=evidence,
        each=each,
        baseline=str(reference),
        metric=first.metric,
    )

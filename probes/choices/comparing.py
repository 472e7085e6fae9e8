"""Compare judges of choices, on tasks whose items have choices of their own; see ``probes.comparing``, the door."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from probes.across import Reference, add_differences, combine, run_rows, stacked
from probes.artefact import FittedJudge, artefact
from probes.choices.evidence import ChoiceEvidence, metric_interval
from probes.choices.judges import DEFAULT_JUDGES, ChoiceJudge, get_choice_judge
from probes.choices.layers import free_text_rows, layer_rows, named, said_per
from probes.choices.length import layers_per, length_notes, per_note
from probes.choices.metrics import METRICS, grades
from probes.choices.parts import ChoicePart, choice_data, choice_parts
from probes.choices.published import published
from probes.choices.shape import shape_rows
from probes.choices.study import ChoiceStudy
from probes.comparison import Comparison
from probes.errors import FitError
from probes.evidence import BASELINES
from probes.found import shared_fields
from probes.intervals import UNDEFINED
from probes.matching import match
from probes.protocol import group_codes
from probes.runlike import where

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probes.aggregate import Aggregator
    from probes.choices.data import Per
    from probes.choices.fitted import ChoiceScores
    from probes.matching import Matched
    from probes.protocol import Settings
    from probes.runlike import RunLike
    from probes.tasks.extraction import Extract

# Criterion of the mean over tasks.
MACRO: Final = "macro"


def compare_choices(
    runs: Mapping[str, RunLike],
    judges: Sequence[str | Aggregator | ChoiceJudge] | None,
    baseline: str | None,
    settings: Settings,
    criterion: str | None,
    *,
    pool: bool,
    extract: Extract | None = None,
    per: Per | None = None,
) -> Comparison:
    """What ``probes.compare`` does with runs of choices."""
    reference = Reference.read(baseline, runs, get_choice_judge)
    given = DEFAULT_JUDGES if judges is None else judges
    if isinstance(given, str) or not given:
        raise FitError("pass a list of at least one judge, for example ['final', 'lager']")
    shown = {judge.spec: judge for judge in map(get_choice_judge, given)}
    every = shown | {name: get_choice_judge(name) for name in ("final", *BASELINES) if name not in shown}
    if reference is not None:
        every.setdefault(reference.judge, get_choice_judge(reference.judge))
    divided, notes = layers_per(list(shown.values()), per)
    found, matched = _studies(runs, every, settings, criterion, pool=pool, per=divided)
    rows = run_rows(runs, matched)
    each = {
        name: _comparison(
            runs[name],
            of,
            matched.parts[name],
            list(shown.values()),
            settings,
            [row for row in rows if row["run"] == name],
            criterion,
            extract,
            divided,
            notes,
        )
        for name, of in found.items()
    }
    if len(runs) > 1 and reference is not None:
        return combine(each, reference, runs, matched.notes)
    (alone,) = each.values()
    if reference is None:
        return alone
    table = add_differences(alone.table, alone.evidence, reference)
    return replace(alone, table=table, baseline=reference.judge)


def layers_of_choices(
    runs: Mapping[str, RunLike], settings: Settings, criterion: str | None, band: str, per: Per, *, pool: bool
) -> pd.DataFrame:
    """What ``probes.by_layer`` does with runs of choices."""

    def rows(run: RunLike, studies: Sequence[ChoiceStudy], parts: Sequence[ChoicePart]) -> list[dict[str, Any]]:
        return _layer_rows(run, studies, parts, settings, band)

    return _of_layers(runs, settings, criterion, rows, per, pool=pool)


def layer_tests_of_choices(
    runs: Mapping[str, RunLike], settings: Settings, criterion: str | None, per: Per, *, pool: bool
) -> pd.DataFrame:
    """What ``probes.layer_tests`` does with runs of choices."""

    def rows(_: RunLike, studies: Sequence[ChoiceStudy], _parts: Sequence[ChoicePart]) -> list[dict[str, Any]]:
        return [row for study in studies for row in study.layer_test_rows()]

    return _of_layers(runs, settings, criterion, rows, per, pool=pool)


def notes_on_layers(runs: Mapping[str, RunLike], criterion: str | None, per: Per, *, pool: bool) -> list[str]:
    """What must be known about layers of runs of choices: what they are divided by, and whether they go by length."""
    parts = match(runs, criterion, pool=pool).parts
    notes = [per_note(per).strip()] if per else []
    for name, of in parts.items():
        for part in of:
            of_what = [name] * (len(runs) > 1) + [part.criterion] * (len(of) > 1)
            notes += [": ".join([*of_what, note]) for note in length_notes(part, per)]
    return notes


def fit_choices(
    run: RunLike, judge: str | ChoiceJudge | Aggregator, criterion: str | None, *, pool: bool
) -> FittedJudge:
    """What ``probes.fit`` does with a run of choices; the one metric is ``in_sample_accuracy``."""
    chosen = get_choice_judge(judge)
    parts = choice_parts(run, criterion, pool=pool)
    if len(parts) > 1:
        names = ", ".join(part.criterion for part in parts)
        raise FitError(f"the run has several tasks: choose one of {names}, or pool them")
    part = parts[0]
    _check_lens(run, chosen)
    if not len(part):
        raise FitError(f"no item of {where(run)} has an answer to fit on: {part.without}")
    data = part.data[chosen.reads]
    fitted = chosen.fit(data, part.groups)
    accuracy = grades(fitted.predict(data).logp, data.scores, data.offsets).mean()
    return artefact(run, part, fitted, {"in_sample_accuracy": float(accuracy)})


def score_choices(run: RunLike, judge: str | ChoiceJudge) -> ChoiceScores:
    """What a judge that needs no labels says of every item of a run of choices."""
    chosen = get_choice_judge(judge)
    if chosen.needs_labels:
        raise FitError(f"{chosen.spec} needs labels: fit it with probes.fit, or use a judge such as final or uniform")
    data = choice_data(run, chosen.reads)
    return chosen.fit(data, group_codes(np.asarray(run.groups))).predict(data)


def _check_lens(run: RunLike, judge: ChoiceJudge) -> None:
    if judge.reads not in run.lenses:
        raise FitError(
            f"{judge.spec} reads the lens {judge.reads!r}, which {where(run)} lacks: it has {', '.join(run.lenses)}"
        )


def _studies(
    runs: Mapping[str, RunLike],
    judges: Mapping[str, ChoiceJudge],
    settings: Settings,
    criterion: str | None,
    *,
    pool: bool,
    per: Per,
) -> tuple[dict[str, list[ChoiceStudy]], Matched]:
    """A study of every task of every run that has anything to choose, on the same items and in the same folds."""
    for run in runs.values():
        for judge in judges.values():
            _check_lens(run, judge)
    matched = match(runs, criterion, pool=pool)
    first, *others = runs
    # Tasks whose answers are free text have no accuracy, and are no reason to refuse the others.
    places = [place for place, part in enumerate(matched.parts[first]) if len(part) or not part.n_free_text]

    def study(name: str, place: int, like: ChoiceStudy | None = None) -> ChoiceStudy:
        part = matched.parts[name][place]
        return ChoiceStudy(runs[name], part, judges, settings, None if like is None else like.folds, per)

    found = {first: [study(first, place) for place in places]}
    for name in others:
        found[name] = [study(name, place, like) for place, like in zip(places, found[first], strict=True)]
    return found, matched


def _comparison(
    run: RunLike,
    studies: Sequence[ChoiceStudy],
    parts: Sequence[ChoicePart],
    shown: Sequence[ChoiceJudge],
    settings: Settings,
    rows: list[dict[str, Any]],
    criterion: str | None,
    extract: Extract | None,
    per: Per,
    notes: Sequence[str],
) -> Comparison:
    """What the studies of one run found."""
    several = len(studies) > 1
    names = [judge.spec for judge in shown]
    notes = [
        *notes,
        *((f"{study.part.criterion}: " if several else "") + note for study in studies for note in study.warnings),
    ]
    notes += [
        f"{part.criterion}: all {part.n_total} items have free text for an answer; only by_layer has them"
        for part in parts
        if not len(part) and part.n_free_text
    ]
    evidence = {study.part.criterion: study.evidence for study in studies}
    if several:
        evidence[MACRO] = ChoiceEvidence.macro([study.evidence for study in studies])
    by_layer = said_per(pd.DataFrame(_layer_rows(run, studies, parts, settings, "pointwise")), per)
    nothing = pd.DataFrame()
    return Comparison(
        **shared_fields(studies, names, settings),
        table=pd.DataFrame(_table(studies, shown, evidence, settings)),
        by_layer=by_layer,
        calibration=pd.DataFrame([row for study in studies for row in study.bucket_rows(names)]),
        levels=nothing,
        raters=nothing,
        human_lines=nothing,
        warnings=notes,
        multi_layer=frozenset(judge.spec for judge in shown if judge.multi_layer),
        evidence=evidence,
        runs=pd.DataFrame(rows),
        metric="accuracy",
        stability=said_per(pd.DataFrame([row for study in studies for row in study.stable_rows()]), per),
        shape=said_per(pd.DataFrame(shape_rows(by_layer)), per),
        published=published(run, criterion, extract),
    )


def _table(
    studies: Sequence[ChoiceStudy],
    shown: Sequence[ChoiceJudge],
    evidence: Mapping[str, ChoiceEvidence],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Rows of the table of judges: every task, then the mean over tasks."""
    rows = []
    for criterion, of in evidence.items():
        members = [study for study in studies if criterion in (study.part.criterion, MACRO)]
        replicates = {
            judge.spec: _mean_of_tasks([study.replicates(judge.spec) for study in members]) for judge in shown
        }
        baseline = {judge.spec: of.baseline if judge.needs_labels else "final" for judge in shown}
        p_final = _p_values(of, dict.fromkeys(baseline, "final"))
        p_baseline = _p_values(of, baseline)
        for judge in shown:
            spec, over = judge.spec, baseline[judge.spec]
            facts = _facts([study.judge_facts(spec) for study in members], criterion)
            metrics = {
                name: value
                for metric in METRICS
                for name, value in named(
                    metric, metric_interval(metric, replicates[spec][metric], of.n_groups, settings.level)
                ).items()
            }
            accuracy = {name: metrics.pop(name) for name in list(metrics) if name.startswith("accuracy")}
            rows.append(
                {
                    **facts,
                    **accuracy,
                    "chance": float(np.mean([study.chance for study in members])),
                    **metrics,
                    **named("gain_over_final", of.difference(spec, "final")),
                    "gain_over_final_p": p_final.get(spec, float("nan")),
                    **named("gain_over_baseline", UNDEFINED if over is None else of.difference(spec, over)),
                    "gain_over_baseline_p": p_baseline.get(spec, float("nan")),
                    "baseline": over or "",
                }
            )
    return rows


def _facts(of_tasks: Sequence[Mapping[str, Any]], criterion: str) -> dict[str, Any]:
    """What is said of a judge in one task, or in all of them together."""
    facts = dict(of_tasks[0]) | {"criterion": criterion}
    if len(of_tasks) > 1:
        facts |= {name: sum(one[name] for one in of_tasks) for name in ("n_used", "n_total", "n_groups")}
        facts["labels_used"] = round(float(np.mean([one["labels_used"] for one in of_tasks])))
        facts["n_folds"] = max(one["n_folds"] for one in of_tasks)
    return facts


def _mean_of_tasks(of_tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {metric: np.mean([one[metric] for one in of_tasks], axis=0) for metric in of_tasks[0]}


def _p_values(evidence: ChoiceEvidence, over: Mapping[str, str | None]) -> dict[str, float]:
    found: dict[str, float] = {}
    for reference in {one for one in over.values() if one is not None}:
        tested = [spec for spec, one in over.items() if one == reference and spec != reference]
        if tested:
            found |= dict(zip(tested, evidence.p_values(tested, reference, 2 * len(over)), strict=True))
    return found


def _layer_rows(
    run: RunLike, studies: Sequence[ChoiceStudy], parts: Sequence[ChoicePart], settings: Settings, band: str
) -> list[dict[str, Any]]:
    rows = [row for study in studies for row in study.layer_rows(band)]
    if len(studies) > 1:
        groups = sum(study.part.n_groups for study in studies)
        counts = sum(len(study.part) for study in studies), sum(study.part.n_total for study in studies)
        at_random = float(np.mean([study.chance for study in studies]))
        for lens, of_lens in studies[0].layer_replicates.items():
            for metric in of_lens:
                mean = np.mean([study.layer_replicates[lens][metric] for study in studies], axis=0)
                rows += layer_rows(
                    MACRO,
                    lens,
                    run.layers,
                    metric,
                    mean,
                    groups,
                    settings.level,
                    band,
                    at_random if metric == "accuracy" else float("nan"),
                    counts,
                )
    for part in parts:
        rows += free_text_rows(run, part, settings, band)
    return rows


def _of_layers(
    runs: Mapping[str, RunLike],
    settings: Settings,
    criterion: str | None,
    rows: Callable[[RunLike, Sequence[ChoiceStudy], Sequence[ChoicePart]], list[dict[str, Any]]],
    per: Per,
    *,
    pool: bool,
) -> pd.DataFrame:
    found, matched = _studies(runs, {}, settings, criterion, pool=pool, per=per)
    tables = {
        name: said_per(pd.DataFrame(rows(runs[name], of, matched.parts[name])), per) for name, of in found.items()
    }
    return next(iter(tables.values())) if len(tables) == 1 else stacked(tables)

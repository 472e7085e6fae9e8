"""Compare judges on a run, look at its layers, and fit one judge for export."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from probes.across import Reference, add_differences, combine, run_rows, stacked, studies
from probes.aggregate import DEFAULT_JUDGE, Aggregator, get_aggregator
from probes.align import spearman
from probes.artefact import FittedJudge, artefact
from probes.choices.comparing import (
    compare_choices,
    fit_choices,
    layer_tests_of_choices,
    layers_of_choices,
    score_choices,
)
from probes.choices.data import read_per
from probes.choices.judges import DEFAULT_JUDGES as OF_CHOICES
from probes.choices.judges import ChoiceJudge, get_choice_judge
from probes.comparison import Comparison
from probes.errors import FitError, KindError
from probes.evidence import BASELINES
from probes.found import shared_fields
from probes.kinds import require_run
from probes.layer_order import in_model_order
from probes.matching import Runs, named_runs
from probes.protocol import Settings, group_codes
from probes.raters import RATER_COLUMNS
from probes.runlike import RunLike, has_choices, lacking, layer_logits, parts, where
from probes.study import BANDS, Study

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from probes.choices.data import Per
    from probes.choices.fitted import ChoiceScores
    from probes.fitted import Scores
    from probes.tasks.extraction import Extract

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
    "text-ridge",
    "slope-ridge",
    "logit-ridge",
    DEFAULT_JUDGE,
)


def compare(
    run: Runs,
    judges: Sequence[str | Aggregator | ChoiceJudge] | None = None,
    *,
    baseline: str | None = None,
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
    extract: Extract | None = None,
    per: str | None = None,
) -> Comparison:
    """Compare judges on the labelled items of one run or several, by the protocol of ``probes.protocol``.

    Each criterion is a study of its own: its own folds, fits and metrics. ``final`` and the judges without
    other layers (``probes.evidence.BASELINES``) are always computed, because gains are stated against them, and shown
    if asked for; of many items ``text-ridge`` takes the longest of them.

    Several runs (models, prompts, conditions, scales) are compared on the items that all of them can use, in the same
    folds and resamples, so that differences between any two judges of any two runs are paired.

    Runs of tasks whose items have choices of their own are compared by accuracy, with judges of choices
    (``probes.choices.judges``); where there are several tasks, ``macro`` is the mean over them.

    Args:
        run: What to analyse; of several runs a mapping by name, or a sequence, which is named after the files.
        judges: Names or aggregators; all the common ones unless given.
        baseline: What all are set against, in the columns of ``probes.across.difference_columns``: a judge, of the
            same run each, or ``run:judge``. Of several runs it is ``final`` of the first unless given.
        folds: Group folds of a repeat.
        repeats: How often the items are divided anew.
        resamples: Resamples of the groups for the intervals.
        level: Coverage of the intervals.
        seed: Of folds and resamples.
        criterion: Only this criterion.
        pool: Treat all criteria as one.
        extract: How answers are taken out of generated texts for ``published``; see ``probes.tasks.score_texts``.
        per: Of runs of choices, what log-likelihoods of *layers* are divided by: ``token``, ``byte`` or ``char``; as
            the judges do, where they agree, unless given. Judges say it themselves (``final:per_char=1``).

    Raises:
        FitError: A judge, lens, criterion or baseline is unknown, there are too few labelled items or groups, or runs
            differ in a text, group or human score of an item.
    """
    settings = Settings(folds, repeats, resamples, level, seed)
    runs = named_runs(run)
    of_choices, divided = _of_choices(runs, per)
    if of_choices:
        return compare_choices(runs, judges, baseline, settings, criterion, pool=pool, extract=extract, per=divided)
    if extract is not None:
        raise FitError("extract reads the generated answers of tasks, and these runs have a scale; leave it out")
    of_scores = None if judges is None else _of_scores(judges)
    reference = Reference.read(baseline, runs)
    notes: dict[str, list[str]] = {name: [] for name in runs}
    shown = {name: _aggregators(one, of_scores, notes[name]) for name, one in runs.items()}
    every = {
        name: {one.spec: one for one in [*shown[name], *map(get_aggregator, ("final", *BASELINES))]} for name in runs
    }
    if reference is not None:
        judge = get_aggregator(reference.judge)
        for name in runs if reference.run is None else [reference.run]:
            _check_lens(runs[name], judge)
            every[name].setdefault(judge.spec, judge)
    found, matched = studies(runs, every, settings, criterion, pool=pool)
    rows = run_rows(runs, matched)
    each = {
        name: _comparison(of, shown[name], notes[name], settings, [row for row in rows if row["run"] == name])
        for name, of in found.items()
    }
    if len(runs) > 1 and reference is not None:
        return combine(each, reference, runs, matched.notes)
    (alone,) = each.values()
    if reference is None:
        return alone
    table = add_differences(alone.table, alone.evidence, reference)
    return replace(alone, table=table, baseline=reference.judge)


def usual_judges(run: RunLike) -> tuple[str, ...]:
    """Names of the common judges of a run, of a scale or of choices."""
    return OF_CHOICES if has_choices(run) else DEFAULT_JUDGES


def check_judge(run: RunLike, spec: str) -> None:
    """Refuse the name of a judge that a run cannot have.

    Raises:
        FitError: There is none of that name, or it has no meaning for the items of this run.
    """
    if has_choices(run):
        get_choice_judge(spec)
    else:
        get_aggregator(spec)


def _comparison(
    studies: Sequence[Study],
    shown: Sequence[Aggregator],
    notes: list[str],
    settings: Settings,
    rows: list[dict[str, Any]],
) -> Comparison:
    """What the studies of one run found."""
    several = len(studies) > 1
    for study in studies:
        prefix = f"{study.part.criterion}: " if several else ""
        notes += [prefix + note for note in study.warnings]
    names = [one.spec for one in shown]
    return Comparison(
        **shared_fields(studies, names, settings),
        table=pd.DataFrame([row for study in studies for row in study.rows(names)]),
        by_layer=pd.DataFrame([row for study in studies for row in study.layer_rows()]),
        calibration=pd.DataFrame([row for study in studies for row in study.calibration_rows(names)]),
        levels=pd.DataFrame([row for study in studies for row in study.level_rows(names)]),
        raters=pd.DataFrame([row for study in studies for row in study.rater_rows()], columns=list(RATER_COLUMNS)),
        human_lines=pd.DataFrame([row for study in studies for row in study.human_rows()]),
        warnings=notes,
        multi_layer=frozenset(one.spec for one in shown if one.multi_layer),
        evidence={study.part.criterion: study.evidence for study in studies},
        runs=pd.DataFrame(rows),
    )


def by_layer(
    run: Runs,
    *,
    band: str = "pointwise",
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
    per: str | None = None,
) -> pd.DataFrame:
    """Spearman of every layer's expected value under every lens, with the statistic and folds of ``compare``.

    Of runs of choices accuracy and other metrics of every layer's most likely choice.

    Args:
        run: What to analyse; several as in ``compare``, and then with a first column ``run``.
        band: ``pointwise`` intervals, each of which covers with probability ``level``, or a ``simultaneous`` band,
            which covers all layers of a lens at once with that probability.
        folds: As in ``compare``, like all that follow.
        repeats: How often the items are divided anew.
        resamples: Resamples of the groups.
        level: Coverage.
        seed: Of folds and resamples.
        criterion: Only this criterion.
        pool: Treat all criteria as one.
        per: Of runs of choices, what log-likelihoods are divided by: ``token``, ``byte`` or ``char``; by nothing unless
            given.

    Returns:
        One row a criterion, lens and layer: ``criterion, lens, layer, layer_index, metric, value, lo, hi, band,
        n_used, n_total``; NaN where a layer gives every item the same score. With ``per``, a column of that name.

    Raises:
        FitError: There is no such band; or as ``compare``.
    """
    if band not in BANDS:
        raise FitError(f"no band {band!r}: choose one of {', '.join(BANDS)}")
    settings = Settings(folds, repeats, resamples, level, seed)
    of_choices, divided = _of_choices(runs := named_runs(run), per)
    if of_choices:
        return layers_of_choices(runs, settings, criterion, band, divided or "", pool=pool)
    return _of_layers(run, settings, criterion, lambda study: study.layer_rows(band), pool=pool)


def layer_tests(
    run: Runs,
    *,
    folds: int = 5,
    repeats: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    criterion: str | None = None,
    pool: bool = False,
    per: str | None = None,
) -> pd.DataFrame:
    """Test every layer's Spearman, or accuracy, against the last layer's: paired permutation, Holm's correction.

    The layers of one lens and criterion are a family; the reference is the last layer under the ``norm`` lens, which is
    what the model itself says. The arguments are those of ``by_layer``.

    Returns:
        One row a criterion, lens and layer: ``criterion, lens, layer, layer_index, metric, difference, difference_lo,
        difference_hi, p, p_holm, n_tests, permutations, n_used, n_total``; NaN where a layer gives every item the
        same score, which is then no member of the family.

    Raises:
        FitError: The run lacks the ``norm`` lens; or as ``compare``.
    """
    settings = Settings(folds, repeats, resamples, level, seed)
    of_choices, divided = _of_choices(runs := named_runs(run), per)
    if of_choices:
        return layer_tests_of_choices(runs, settings, criterion, divided or "", pool=pool)
    return _of_layers(run, settings, criterion, Study.layer_test_rows, pool=pool)


def _of_choices(runs: Mapping[str, RunLike], per: str | None) -> tuple[bool, Per | None]:
    """Whether runs have choices of their items, and what log-likelihoods are divided by.

    Raises:
        FitError: Some have, and others have the labels of a scale; or nothing can be divided like that.
    """
    kinds = {name: has_choices(run) for name, run in runs.items()}
    if len(set(kinds.values())) > 1:
        names = {kind: next(name for name, one in kinds.items() if one is kind) for kind in (True, False)}
        raise FitError(
            f"{names[True]} has choices of its items and {names[False]} the labels of a scale: compare runs of one kind"
        )
    of_choices = any(kinds.values())
    return of_choices, read_per(per, of_choices=of_choices)


def _of_layers(
    run: Runs,
    settings: Settings,
    criterion: str | None,
    rows: Callable[[Study], list[dict[str, Any]]],
    *,
    pool: bool,
) -> pd.DataFrame:
    runs = named_runs(run)
    found, _ = studies(runs, {name: {} for name in runs}, settings, criterion, pool=pool)
    tables = {name: pd.DataFrame([row for study in of for row in rows(study)]) for name, of in found.items()}
    return next(iter(tables.values())) if len(tables) == 1 else stacked(tables)


def fit(
    run: RunLike, judge: str | Aggregator | ChoiceJudge, *, criterion: str | None = None, pool: bool = False
) -> FittedJudge:
    """Fit one judge on all labelled items of a run, for export.

    Its only metric is ``in_sample_spearman``, which is no estimate of how well it does on new items (of a run of
    choices ``in_sample_accuracy``).

    Raises:
        FitError: The judge is unknown or cannot be fitted, or none of several criteria is chosen.
    """
    require_run(run)
    if not isinstance(judge, str | Aggregator | ChoiceJudge):
        raise KindError(f"judge: expected the name of one judge, got {judge!r}; fit several one by one")
    run = in_model_order(run)
    if has_choices(run):
        return fit_choices(run, judge, criterion, pool=pool)
    (given,) = _of_scores([judge])
    aggregator = get_aggregator(given) if isinstance(given, str) else given
    _check_lens(run, aggregator)
    chosen = parts(run, criterion, pool=pool)
    if len(chosen) > 1:
        names = ", ".join(part.criterion for part in chosen)
        raise FitError(f"{where(run)} has several criteria: choose one of {names} (--criterion), or pool them")
    part = chosen[0]
    logits = part.logits[aggregator.reads]
    fitted = aggregator.fit(logits, part.y, part.groups)
    agreement = spearman(fitted.predict(logits).value, part.y).value
    return artefact(run, part, fitted, {"in_sample_spearman": agreement})


def score(run: RunLike, judge: str | FittedJudge = "final") -> Scores | ChoiceScores:
    """Scores of every item of a run, or answers to it; NaN where an item has no reading.

    Args:
        run: The run.
        judge: One that needs no labels, such as ``final``, ``layer:12@norm`` or ``lager``, or one that was fitted.

    Raises:
        FitError: The judge is unknown, needs labels, or does not go with this run.
    """
    run = in_model_order(run)
    if isinstance(judge, FittedJudge):
        return judge.score(run)
    if has_choices(run):
        return score_choices(run, judge)
    aggregator = get_aggregator(judge)
    _check_lens(run, aggregator)
    logits = layer_logits(run, aggregator.reads)
    return aggregator.fit(logits, groups=group_codes(np.asarray(run.groups))).predict(logits)


def _of_scores(judges: Sequence[str | Aggregator | ChoiceJudge]) -> Any:
    """The judges as given, all of them names or judges of scores."""
    for judge in judges:
        if isinstance(judge, ChoiceJudge):
            raise FitError(f"{judge.spec} is a judge of choices, and the run has the labels of a scale: name a judge")
    return judges


def _aggregators(run: RunLike, judges: Sequence[str | Aggregator] | None, notes: list[str]) -> list[Aggregator]:
    given = DEFAULT_JUDGES if judges is None else judges
    if isinstance(given, str) or not given:
        raise FitError("pass a list of at least one judge, for example ['final', 'lager']")
    chosen = [get_aggregator(judge) if isinstance(judge, str) else judge for judge in given]
    if judges is None:
        missing = [one.spec for one in chosen if lacking(run, one)]
        if missing:
            notes.append(f"left out because the run lacks what they read: {', '.join(missing)}")
        chosen = [one for one in chosen if not lacking(run, one)]
    for one in [*chosen, get_aggregator("final")]:
        _check_lens(run, one)
    return list({one.spec: one for one in chosen}.values())


def _check_lens(run: RunLike, aggregator: Aggregator) -> None:
    if lacks := lacking(run, aggregator):
        raise FitError(lacks)

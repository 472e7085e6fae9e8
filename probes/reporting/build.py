"""Make a report: compare, draw, count, and fill the page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from probes.aggregate import DEFAULT_JUDGE, get_aggregator
from probes.choices.data import read_per
from probes.errors import FitError
from probes.kinds import require_run
from probes.layer_order import in_model_order
from probes.reporting import choices as of_choices
from probes.reporting.answer import Answer, answer, headline_judge, no_answer
from probes.reporting.counts import item_states, tally
from probes.reporting.explorer import ItemScores, as_json, choose, payload, read_layers
from probes.reporting.pictures import Drawn, draw
from probes.reporting.provenance import commands, facts
from probes.runlike import has_choices, lacking, parts
from probes.store import disk
from probes.tables import MISSING, _columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from probes.choices.data import Per
    from probes.comparison import Comparison
    from probes.runlike import Part
    from probes.store import Run

# What a reader needs to see beside the default judge: what it has to beat, and what was there before.
JUDGES: Final = ("final", "final-ridge", "best-layer-ridge", "text-ridge", "lager", DEFAULT_JUDGE)
MAX_ITEMS: Final = 2000
_FOLDS: Final = 5  # and repeats, as in `probes.compare`
_COLUMNS: Final = (
    "judge", "lens", "labels_used", "n_used", "spearman", "gain_over_final", "gain_over_recalibrated",
    "gain_over_baseline", "gain_over_baseline_p", "baseline", "mae",
)  # fmt: skip
_HEADS: Final = {
    "gain over recalibrated": "over final-ridge",
    "gain over baseline p": "p",
    "spearman": "Spearman",
    "mae": "MAE",
}
_LINES: Final = {
    "human": "One rater at random against the mean of the others (Spearman)",
    "attainable": "What a perfect judge could attain, given the raters' noise (Spearman)",
    "alpha": "Agreement among the raters (Krippendorff's alpha)",
}


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: heads, which of them are over text, and cells."""

    heads: list[str]
    is_text: list[bool]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """What the page says about one criterion."""

    criterion: str
    answer: Answer
    pictures: list[Drawn]
    judges: Table | None
    footnote: str
    human: list[tuple[str, str, int, int]]
    layers: Table | None
    counts: list[tuple[str, int]]
    warnings: list[str]


def report(
    run: Run,
    path: str | Path,
    judges: Sequence[str] | None = None,
    *,
    criterion: str | None = None,
    max_items: int = MAX_ITEMS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    comparison: Comparison | None = None,
    per: str | None = None,
) -> Path:
    """Write one HTML file that says what was found in a run, and shows every item.

    The file needs no network and no other file. It is the same, byte by byte, for the same run and arguments.

    Args:
        run: A run; without human scores the report shows layers and items and says that nothing was compared.
        path: File to write.
        judges: Judges to compare; ``probes.reporting.build.JUDGES`` unless given.
        criterion: Only items of this criterion.
        max_items: Items in the explorer; of a larger run it holds a sample and says so.
        resamples: Resamples of the groups for the intervals.
        level: Coverage of the intervals.
        seed: Of folds, resamples and the sample of items.
        comparison: What ``probes.compare`` found in this run; compared anew unless given.
        per: Of a run of choices, what log-likelihoods of layers are divided by: ``token``, ``byte`` or ``char``; as the
            judges do, where they agree, unless given.

    Returns:
        The path.

    Raises:
        FitError: The path is named as another kind of file, a judge, criterion or length is unknown, ``max_items`` is
            too small, or the comparison is of several runs or of other items.
        RunFileError: The file cannot be written, or the run is damaged.
    """
    require_run(run)
    run = in_model_order(run)
    path = Path(path)
    if path.suffix.lower() not in {"", ".html", ".htm"}:
        raise FitError(
            f"{path}: a report is one HTML file; call it {path.with_suffix('.html').name}, and print it from a browser "
            "where another kind of file is wanted"
        )
    if max_items < 1:
        raise FitError(f"a report needs room for at least one item, got max_items={max_items}")
    if comparison is not None and comparison.each:
        raise FitError("a report is about one run: pass the comparison of that run alone, or none")
    if comparison is not None:  # the command below is to say how that was made
        judges, level = list(dict.fromkeys(comparison.table["judge"])), comparison.level
        resamples, seed = comparison.settings["resamples"], comparison.settings["seed"]
        per = of_choices.per_of(comparison) if has_choices(run) else per
    divided = read_per(per, of_choices=has_choices(run))
    arguments: list[str] | None = _arguments(judges, criterion, max_items, resamples, level, seed, divided)
    if comparison is not None and {comparison.settings[name] for name in ("folds", "repeats")} != {_FOLDS}:
        arguments = None  # the command line has no other folds
    if has_choices(run):
        _write(
            path,
            _page_of_choices(run, judges, comparison, criterion, arguments, max_items, resamples, level, seed, divided),
        )
        return path
    chosen, notes = _judges(run, judges)
    if criterion is not None and criterion in run.criteria:
        run = run.select(criterion=criterion)
    lens, probs = read_layers(run)
    values = np.asarray(run.scale.values, dtype=np.float64)
    judged, states = np.full(len(run.ids), np.nan), np.full(len(run.ids), "", dtype=object)
    sections, about = [], dict[str, None]()
    for part in parts(run, criterion):
        found, reason = _compare(run, part, chosen, comparison, resamples, level, seed)
        rows = _members(run, part)
        of_part = item_states(run, part.rows, np.isfinite(run.human_value), np.isfinite(probs).all(axis=(1, 2)))
        states[rows] = np.asarray(of_part, dtype=object)[rows]
        if found is not None and (judge := headline_judge(found, part.criterion)) is not None:
            judged[part.rows] = _out_of_fold(found, part, judge)
            about[judge] = None
        sections.append(
            Section(
                criterion=part.criterion,
                answer=answer(found, part.criterion) if found else no_answer(part.criterion, reason),
                pictures=draw(run, found, part.criterion),
                judges=_judge_table(found, part.criterion) if found else None,
                footnote=found.footnote if found else "",
                human=_human_lines(found, part.criterion) if found else [],
                layers=None if found else _layer_table(run, probs[rows] @ values),
                counts=tally(states[rows].tolist()),
                warnings=[*notes, *(_warnings(found, part.criterion) if found else [])],
            )
        )
    scores = ItemScores(
        lens, probs, np.asarray(run.human_value, dtype=np.float64), _final(run, probs, values), judged, states.tolist()
    )
    sample = choose(scores.off, max_items, seed)
    known = facts(run)
    page = _page(
        run=run,
        model=_model(run),
        sections=sections,
        sample=sample,
        about=", ".join(about),
        data=Markup(as_json(payload(run, scores, sample, ", ".join(about) or None))),
        facts=known,
        created=dict(known).get("Captured", ""),
        commands=commands(run, arguments),
        items=None,
        metric="Spearman",
    )
    _write(path, page)
    return path


def _write(path: Path, page: str) -> None:
    with disk.failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            disk.write_text(path, page)
        finally:
            path.with_name(f"{path.name}.writing").unlink(missing_ok=True)


def _page_of_choices(
    run: Run,
    judges: Sequence[str] | None,
    comparison: Comparison | None,
    criterion: str | None,
    arguments: list[str] | None,
    max_items: int,
    resamples: int,
    level: float,
    seed: int,
    per: Per | None,
) -> str:
    """The page about a run whose items have choices of their own."""
    found = of_choices.compared(
        run, of_choices.check_judges(judges), comparison, criterion, resamples, level, seed, per
    )
    if criterion is not None:
        run = run.select(criterion=criterion)
    sections = [
        Section(
            **section,
            judges=_judge_table(found, section["criterion"], of_choices.COLUMNS),
            footnote=found.footnote,
            human=[],
            layers=None,
            warnings=_warnings(found, section["criterion"]),
        )
        for section in of_choices.sections(run, found, criterion)
    ]
    sample, items = of_choices.item_rows(run, max_items, seed, of_choices.per_of(found))
    known = facts(run)
    return _page(
        run=run,
        model=_model(run),
        sections=sections,
        sample=sample,
        about="",
        data=Markup("{}"),
        facts=known,
        created=dict(known).get("Captured", ""),
        commands=commands(run, arguments),
        items=_table(items, list(items.columns)),
        metric="accuracy",
    )


def _judges(run: Run, judges: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Judges to compare, and what to say about those left out. Unknown names are refused before any work."""
    if judges is not None:
        return [get_aggregator(judge).spec for judge in judges], []
    able = [judge for judge in JUDGES if not lacking(run, get_aggregator(judge))]
    left = [judge for judge in JUDGES if judge not in able]
    return able, [f"left out because the run lacks what they read: {', '.join(left)}"] if left else []


def _arguments(
    judges: Sequence[str] | None,
    criterion: str | None,
    max_items: int,
    resamples: int,
    level: float,
    seed: int,
    per: Per | None,
) -> list[str]:
    """Arguments of ``probes report`` that are not the usual ones."""
    arguments = [part for judge in judges or () for part in ("--judge", judge)]
    arguments += [] if criterion is None else ["--criterion", criterion]
    arguments += ["--per", per] if per else []
    given = {"max-items": (max_items, MAX_ITEMS), "resamples": (resamples, 1000), "level": (level, 0.95)}
    given["seed"] = (seed, 0)
    return arguments + [part for name, (n, usual) in given.items() if n != usual for part in (f"--{name}", f"{n:g}")]


def _model(run: Run) -> str:
    """The model's name; of a folder the last part."""
    name = run.judge_name
    return Path(name).name if Path(name).is_absolute() else name


def _warnings(found: Comparison, criterion: str) -> list[str]:
    """Warnings of one criterion; a comparison of several puts its name in front of what is about one."""
    if len(found.criteria) < 2:
        return found.warnings
    others = tuple(f"{name}: " for name in found.criteria if name != criterion)
    return [warning.removeprefix(f"{criterion}: ") for warning in found.warnings if not warning.startswith(others)]


def _members(run: Run, part: Part) -> np.ndarray:
    return np.flatnonzero(np.asarray(list(run.criteria), dtype=object) == part.criterion)


def _compare(
    run: Run, part: Part, judges: list[str], given: Comparison | None, resamples: int, level: float, seed: int
) -> tuple[Comparison | None, str]:
    """The comparison of one criterion, or why there is none."""
    from probes.comparing import compare

    if given is not None:
        if part.criterion not in given.evidence or len(given.evidence[part.criterion].groups) != len(part.rows):
            raise FitError(f"the comparison is not one of {run.path}: compare this run, or leave the comparison out")
        return given, ""
    if part.n_unlabelled == part.n_total:
        return None, "no item has a human score; below are what the layers say, and the items"
    try:
        return compare(run, judges, resamples=resamples, level=level, seed=seed, criterion=part.criterion), ""
    except FitError as error:
        # Too few items, or scores that are all the same: something to say, and no reason to show nothing.
        return None, f"the judges could not be compared: {error}"


def _out_of_fold(found: Comparison, part: Part, judge: str) -> Float[np.ndarray, " used"]:
    """Mean over the repeats of the scores that a judge gives to items outside its fit; NaN where there are none."""
    scores = found.evidence[part.criterion].scores[judge]
    count = np.isfinite(scores).sum(axis=0)
    return np.asarray(np.divide(np.nansum(scores, axis=0), count, out=np.full(len(count), np.nan), where=count > 0))


def _final(
    run: Run, probs: Float[np.ndarray, "item layer label"], values: Float[np.ndarray, " label"]
) -> Float[np.ndarray, " item"]:
    """Expected value of the model's last layer; NaN where the run is a selection without it."""
    if run.layers[-1] != str(run.n_layers):
        return np.full(len(probs), np.nan)
    return np.asarray(probs[:, -1] @ values)


def _judge_table(found: Comparison, criterion: str, columns: Sequence[str] = _COLUMNS) -> Table:
    rows = found.table[found.table["criterion"] == criterion].reset_index(drop=True)
    gains = [found.difference(judge, "final-ridge", criterion) for judge in rows["judge"]]
    itself = (rows["judge"] == "final-ridge").to_numpy()
    for ending, values in (("", "value"), ("_lo", "lo"), ("_hi", "hi")):
        rows[f"gain_over_recalibrated{ending}"] = np.where(itself, np.nan, [getattr(one, values) for one in gains])
    return _table(rows, columns)


def _table(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    columns = _columns(rows, list(names), 2)
    cells = zip(*(column.cells for column in columns), strict=True)
    heads = [_HEADS.get(column.head, column.head) for column in columns]
    return Table(heads, [column.is_text for column in columns], [list(row) for row in cells])


def _human_lines(found: Comparison, criterion: str) -> list[tuple[str, str, int, int]]:
    rows = found.human_lines[found.human_lines["criterion"] == criterion]
    return [
        (
            _LINES.get(row["line"], row["line"]),
            MISSING if np.isnan(row["value"]) else f"{row['value']:.2f}",
            int(row["n_used"]),
            int(row["n_total"]),
        )
        for row in rows.to_dict("records")
    ]


def _layer_table(run: Run, expected: Float[np.ndarray, "item layer"]) -> Table | None:
    """What the layers say, where there is nothing to compare it with."""
    read = expected[np.isfinite(expected).all(axis=1)]
    if not len(read):
        return None
    quartiles = np.quantile(read, [0, 0.25, 0.5, 0.75, 1], axis=0)
    names = ("lowest", "quartile", "median", "upper quartile", "highest")
    table = pd.DataFrame({"layer": list(run.layers)} | dict(zip(names, quartiles, strict=True)))
    return _table(table, ["layer", *names])


def _page(**values: Any) -> str:
    """The filled page. Its own style and script are allowed by hash, and nothing else is."""
    style, script = (
        (resources.files("probes.reporting") / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("probes.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    page = environment.get_template("page.html.j2").render(**values, **own)
    # A path may hold bytes that are no text.
    return page.encode("utf-8", "replace").decode("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

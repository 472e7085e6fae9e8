"""Several runs of the same human-scored items: their names, and the items that all of them can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.duplicates import join_groups
from probes.errors import FitError
from probes.kinds import require_run
from probes.layer_order import in_model_order
from probes.runlike import POOLED, PROMPT, RunLike, has_choices, parts, shown_texts

if TYPE_CHECKING:
    from jaxtyping import Int

    from probes.items import Item

# One run, or several: by name, or in a row and named after their files.
Runs = RunLike | Mapping[str, RunLike] | Sequence[RunLike]

_AnyPart = Any  # a Part or a ChoicePart, which can both be taken items of
_Key = tuple[str, str]  # id and criterion


def named_runs(run: Runs) -> dict[str, RunLike]:
    """Runs by name; those without one are named after their files, as ``short_names`` does.

    Raises:
        FitError: There is none, or two are the same file.
    """
    given: Any = run
    if isinstance(given, str):
        require_run(given)
    if isinstance(given, Sequence):
        for one in given:
            require_run(one)
    if isinstance(run, Mapping):
        found = {str(name): one for name, one in run.items()}
    elif isinstance(run, Sequence):
        # What has no file is numbered.
        paths = [Path(str(number)) if one.path is None else one.path for number, one in enumerate(run, start=1)]
        found = dict(zip(short_names(paths), run, strict=True))
    else:
        require_run(run)
        found = {"run" if run.path is None else run.path.stem: run}
    for one in found.values():
        require_run(one)
    found = {name: in_model_order(one) for name, one in found.items()}
    if not found:
        raise FitError("pass at least one run")
    return found


def named_paths(texts: Sequence[str]) -> dict[str, Path]:
    """Paths by name, from ``PATH`` and ``NAME=PATH``.

    Raises:
        FitError: Two runs have the same name or file.
    """
    split = [("", text) if Path(text).exists() else text.rpartition("=")[::2] for text in texts]
    paths = [Path(path) for _, path in split]
    if empty := [text for text, (_, path) in zip(texts, split, strict=True) if not path]:
        raise FitError(f"{empty[0]!r} names no run: write PATH or NAME=PATH")
    unnamed = iter(short_names([path for (name, _), path in zip(split, paths, strict=True) if not name]))
    names = [name or next(unnamed) for name, _ in split]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FitError(f"two runs are called {twice[0]!r}: give them names, as in NAME=PATH")
    return dict(zip(names, paths, strict=True))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Stems of files, with as many of their folders as tell them apart.

    Raises:
        FitError: Two are the same file.
    """
    depth = [1] * len(paths)

    def name(number: int) -> str:
        path = paths[number]
        return "/".join([*path.parts[len(path.parts) - depth[number] : -1], path.stem])

    while True:
        names = [name(number) for number in range(len(paths))]
        clashing = [number for number, one in enumerate(names) if names.count(one) > 1]
        if not clashing:
            return names
        deeper = [number for number in clashing if depth[number] < len(paths[number].parts)]
        if not deeper:
            raise FitError(f"the run {paths[clashing[0]]} is given twice: give each once, or names, as in NAME=PATH")
        for number in deeper:
            depth[number] += 1


@dataclass(frozen=True, eq=False)
class Matched:
    """What several runs share.

    Attributes:
        parts: The items that every run can use, the same and in the same order for all, criterion by criterion: each
            a ``probes.runlike.Part``, or of runs of choices a ``probes.choices.parts.ChoicePart``.
        unmatched: Items that a run can use and another cannot, by run and criterion.
        notes: What is left out, in words.
    """

    parts: Mapping[str, list[Any]]
    unmatched: Mapping[str, Mapping[str, int]]
    notes: list[str] = field(default_factory=list)


def match(runs: Mapping[str, RunLike], criterion: str | None = None, *, pool: bool = False) -> Matched:
    """Find the items that every run can use.

    Items are the same if id and criterion are. Where runs say something else of an item that both have, one of them is
    about other data, and nothing is compared. One run alone is left as it is.

    Args:
        runs: By name.
        criterion: Only this criterion.
        pool: Treat all criteria as one.

    Raises:
        FitError: Runs differ in a text, group or human score of an item, or share no criterion or no item; or as
            ``probes.runlike.parts``.
    """
    found = {name: _parts(run, criterion, pool=pool) for name, run in runs.items()}
    if len(runs) == 1:
        return Matched(found, {name: {part.criterion: 0 for part in of} for name, of in found.items()})
    _check_items(runs)
    by_criterion = {name: {POOLED if pool else part.criterion: part for part in of} for name, of in found.items()}
    first, *others = by_criterion.values()
    shared = [name for name in first if all(name in other for other in others)]
    if not shared:
        has = "; ".join(f"{name} has {', '.join(map(repr, of))}" for name, of in by_criterion.items())
        raise FitError(f"no criterion is in every run: {has}")
    matched: dict[str, list[_AnyPart]] = {name: [] for name in runs}
    unmatched: dict[str, dict[str, int]] = {name: {} for name in runs}
    notes = [
        f"{name}: the criterion {other!r} is not in every run and is left out"
        for name, of in by_criterion.items()
        for other in of
        if other not in shared
    ]
    for name in shared:
        usable = {run: of[name] for run, of in by_criterion.items()}
        if all(not len(part) and getattr(part, "n_free_text", 0) for part in usable.values()):
            # Nothing is chosen between texts that all count as right, in any run.
            for run, part in usable.items():
                matched[run].append(part)
                unmatched[run][name] = 0
            continue
        for run, part in _common(runs, usable, name).items():
            matched[run].append(part)
            count = unmatched[run][name] = len(usable[run]) - len(part)
            if count:
                label = f"{run}, {name}" if len(shared) > 1 else run
                notes.append(f"{label}: {count} items can be used in this run but not in every run, and are left out")
    return Matched(matched, unmatched, notes)


def _parts(run: RunLike, criterion: str | None, *, pool: bool) -> list[_AnyPart]:
    if not has_choices(run):
        return list(parts(run, criterion, pool=pool))
    from probes.choices.parts import choice_parts

    return list(choice_parts(run, criterion, pool=pool))


def _check_items(runs: Mapping[str, RunLike]) -> None:
    """Refuse runs that say different things of the same item."""
    known: dict[_Key, tuple[str, Item, str, tuple[float, ...]]] = {}
    for name, run in runs.items():
        columns = zip(
            run.ids, run.criteria, run.items, run.groups, np.asarray(run.human, dtype=np.float64), strict=True
        )
        for id_, criterion, item, group, row in columns:
            scores = tuple(sorted(row[np.isfinite(row)].tolist()))
            known.setdefault((id_, criterion), (name, item, str(group), scores))
            first, other, its_group, its_scores = known[id_, criterion]
            fields, choices, worth = other.fields, other.choices, other.choice_scores
            what = None
            # A template may use fields that another has no use for; how a task is asked may differ, with and without
            # a chain of thought.
            asked = {field: text for field, text in item.fields.items() if not item.choices or field != PROMPT}
            if texts := [field for field, text in asked.items() if fields.get(field, text) != text]:
                what = f"another text in {texts[0]!r}"
            elif item.choices != choices:
                what = f"the choices {_named(item.choices)} instead of {_named(choices)}"
            elif item.choice_scores and worth and item.choice_scores != worth:
                what = f"the scores of choices {_listed(item.choice_scores)} instead of {_listed(worth)}"
            elif scores and its_scores and scores != its_scores:
                what = f"the human scores {_listed(scores)} instead of {_listed(its_scores)}"
            elif str(group) != its_group:
                what = f"the group {str(group)!r} instead of {its_group!r}"
            if what is not None:
                raise FitError(
                    f"the item {id_!r} has {what} in {name}, unlike in {first}: runs are compared on the same items, "
                    "matched by id and criterion; give other items other ids, or capture one of the runs again"
                )


def _named(choices: Sequence[str]) -> str:
    return ", ".join(map(repr, choices[:4])) + (", ..." if len(choices) > 4 else "") if choices else "none"


def _listed(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:g}" for score in scores)


def _common(runs: Mapping[str, RunLike], usable: Mapping[str, _AnyPart], criterion: str) -> dict[str, _AnyPart]:
    """One criterion of every run, on the items that all can use, in the order of the first."""
    # An item that was selected twice is matched with its like, the first with the first and the second with the second.
    places: dict[str, dict[tuple[str, str, int], int]] = {}
    for name, part in usable.items():
        ids, criteria, seen = list(runs[name].ids), list(runs[name].criteria), Counter[_Key]()
        places[name] = {}
        for place, row in enumerate(part.rows.tolist()):
            key = ids[row], criteria[row]
            places[name][(*key, seen[key])] = place
            seen[key] += 1
    first = next(iter(places))
    keys = [key for key in places[first] if all(key in of for of in places.values())]
    if bare := next((name for name, part in usable.items() if not len(part.rows)), None):
        raise FitError(f"no item of {bare} can be compared with human scores: {usable[bare].without}")
    if not keys:
        examples = "; ".join(f"{name} has {next(iter(of))[0]!r}" for name, of in places.items() if of)
        what = f" of criterion {criterion!r}" if criterion else ""
        raise FitError(f"the runs share no usable item{what}, matched by id: {examples or 'they have none'}")
    chosen = {name: np.array([of[key] for key in keys], dtype=np.int64) for name, of in places.items()}
    groups, note = _groups(runs, {name: usable[name].rows[order] for name, order in chosen.items()})
    return {name: part.take(chosen[name], criterion, groups, note) for name, part in usable.items()}


def _groups(
    runs: Mapping[str, RunLike], rows: Mapping[str, Int[np.ndarray, " used"]]
) -> tuple[Int[np.ndarray, " used"], str | None]:
    """Groups of the common items, put together where any run shows its judge the same text in two of them."""
    first = next(iter(rows))
    groups = np.asarray(runs[first].groups).astype(str)[rows[first]]
    note = None
    for name, of_run in rows.items():
        items = runs[name].items
        joined = join_groups(groups, [shown_texts(items[row]) for row in of_run.tolist()])
        groups, note = joined.groups, joined.note or note
    return groups, note

"""What is said about a comparison: the line under its tables, and what was found between several runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probes.choices.length import per_note
from probes.comparison import _plain, _signed, _with_interval
from probes.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import pandas as pd

    from probes.comparison import Comparison

_SHOWN = 6  # settings that differ, of one run
_LISTED = 3  # judges on one side of the baseline


def metric_words(found: Comparison, criterion: str) -> str:
    """What judges are compared by."""
    if found.metric == "spearman":
        return "Spearman with human scores"
    at_random = found.table[found.table["criterion"] == criterion]["chance"].iloc[0]
    return f"accuracy of held-out answers (chance {_plain(at_random)})"


def answer_lines(found: Comparison, criterion: str) -> list[str]:
    """How calibrated the model's own answers are, and from which layer on they stay."""
    lines = []
    rows = found.table[(found.table["criterion"] == criterion) & (found.table["judge"] == "final")]
    for row in rows.to_dict("records"):
        lines.append(
            f"- Calibration of final: ECE {_plain(row['ece'])} [{_plain(row['ece_lo'])}, {_plain(row['ece_hi'])}], "
            f"Brier score {_plain(row['brier'])} a choice."
        )
    if len(found.stability):
        for row in found.stability[found.stability["criterion"] == criterion].to_dict("records"):
            last = found.by_layer["layer"].iloc[found.by_layer["layer_index"].argmax()]
            lines.append(
                f"- The final answer stays from layer {row['median']} of {last} on in half of {row['n_used']} items "
                f"(quartiles {row['q25']} and {row['q75']}); the last layer alone decides {row['last_only']:.0%}."
            )
    return lines


def published_lines(found: Comparison) -> list[str]:
    """What generated texts are worth, by one published metric of each task; nothing where none were generated."""
    if not len(found.published):
        return []
    texts = found.published[(found.published["of"] == "text") & (found.published["n_items"] > 0)]
    lines = ["Generated texts, scored as published (--table published has all):"] if len(texts) else []
    runs = ["run"] if "run" in texts else []
    for row in (
        texts.sort_values("preferred", ascending=False, na_position="last", kind="stable")
        .drop_duplicates([*runs, "task"])
        .sort_index()
        .to_dict("records")
    ):
        name = ", ".join(str(row[part]) for part in [*runs, "task"])
        missing = f", {row['n_missing']} without a text" if row["n_missing"] else ""
        note = f"; {row['note']}" if row["note"] else ""
        lines.append(f"- {name}: {row['metric']} {_plain(row['value'])} of {row['n_items']} items{missing}{note}.")
    return lines


def protocol_line(folds: int, repeats: int, resamples: int, level: float, metric: str = "spearman") -> str:
    """How the numbers of a table came about."""
    if metric == "accuracy":
        return (
            f"Accuracy, Brier score a choice, ECE (15 buckets) and cross-entropy of answers held out in {folds} folds, "
            f"mean of {repeats} repeats; {level:.0%} intervals from {resamples:,} resamples of the groups, conditional "
            "on the fitted judges."
        )
    return (
        f"Spearman: mean of the coefficients within {folds} folds, {repeats} repeats; {level:.0%} intervals from "
        f"{resamples:,} resamples of the groups, conditional on the fitted judges."
    )


def footnote(found: Comparison) -> str:
    """The protocol, items used of how many, and human lines, for a caption."""
    settings = found.settings
    if found.table.empty:
        return "Metrics as published; no item offers anything to choose from."
    folds = sorted({int(n) for n in found.table["n_folds"]})
    lines = [protocol_line(folds[-1], settings["repeats"], settings["resamples"], found.level, found.metric)]
    labels = "human scores" if found.metric == "spearman" else "labelled items"
    lines.append(f"Labels: {labels} that the fit of a fold sees.")
    if "per" in found.by_layer:
        per = next(filter(None, found.by_layer["per"]))
        lines.append(per_note(per).strip())
    lines += [_items(found, criterion) for criterion in found.criteria]
    if found.baseline is not None:
        n_tests = int(found.table["n_tests"].max())
        lines.append(
            f"Difference: paired, to {_reference(found)}; two-sided p by paired permutation, Holm's correction over "
            f"{n_tests} tests{' a criterion' if len(found.criteria) > 1 else ''}."
        )
    return " ".join(lines)


def _items(found: Comparison, criterion: str) -> str:
    of_criterion = found.table[found.table["criterion"] == criterion]
    first = of_criterion.iloc[0]
    used = f"{int(first['n_used']):,} of {int(first['n_total']):,} items used"
    if of_criterion["n_total"].nunique() > 1:
        totals = dict(zip(of_criterion["run"], of_criterion["n_total"], strict=True))
        listed = ", ".join(f"{run} {total:,}" for run, total in totals.items())
        used = f"{int(first['n_used']):,} items used that all runs share (there are: {listed})"
    name = f"{criterion}: " if len(found.criteria) > 1 else ""
    human = _human(found.human_lines, criterion)
    return f"{name}{used}, in {int(first['n_groups']):,} groups{human}."


def _human(lines: pd.DataFrame, criterion: str) -> str:
    if not len(lines):
        return ""
    of_criterion = lines[lines["criterion"] == criterion].drop_duplicates("line").set_index("line")["value"]
    if np.isnan(of_criterion["attainable"]):
        return ""
    human, attainable = (_plain(of_criterion[line]) for line in ("human", "attainable"))
    return f"; one rater against the others {human}, attainable {attainable}"


def _reference(found: Comparison) -> str:
    name = found.baseline or ""
    return f"{name} of the same run" if found.each and name not in set(found.table["difference_to"]) else name


def runs_paragraph(found: Comparison, criterion: str) -> str:
    """What was found between the runs, in one criterion."""
    table = found.table[found.table["criterion"] == criterion]
    first = table.iloc[0]
    name = f"{criterion}: " if criterion else ""
    lines = [
        f"{name}{len(found.each)} runs on the same {first['n_used']} items in {first['n_groups']} groups, "
        f"{found.settings['repeats']} x {first['n_folds']} folds; {metric_words(found, criterion)}, {found.level:.0%} "
        "intervals."
    ]
    lines += [f"- {line}" for line in _runs(found, criterion)]
    lines.append(f"- {_differences(found, table, criterion)}")
    if len(found.prompts):
        lines += [f"- {_prompts(row)}" for row in found.prompts.to_dict("records") if row["criterion"] == criterion]
    if human := _human(found.human_lines, criterion):
        lines.append(f"- Humans: {human.removeprefix('; ')}.")
    return "\n".join(lines)


def _runs(found: Comparison, criterion: str) -> list[str]:
    rows = found.runs[found.runs["criterion"] == criterion].to_dict("records")
    said = []
    for row in rows:
        settings = row["differs"].split("; ") if row["differs"] else []
        more = f" and {len(settings) - _SHOWN} more" if len(settings) > _SHOWN else ""
        differs = f"; differs from {rows[0]['run']} in {', '.join(settings[:_SHOWN])}{more}" if settings else ""
        said.append(f"{row['run']}: {row['n_used']} of {row['n_total']} items used{differs}.")
    return said


def _differences(found: Comparison, table: pd.DataFrame, criterion: str) -> str:
    tested = table[table["p_holm"].notna()]
    reference = _reference(found)
    estimates = found.evidence[criterion].estimates
    at = f" ({_with_interval(estimates[reference])})" if reference in estimates else ""
    if tested.empty:
        return f"Nothing can be set against {reference}{at}."
    clear = tested[tested["p_holm"] <= 1 - found.level]
    sides = []
    for what, of_side in (("above", clear[clear["difference"] > 0]), ("below", clear[clear["difference"] < 0])):
        listed = [
            f"{row['run']}:{row['judge']} "
            + _signed(Interval(row["difference"], row["difference_lo"], row["difference_hi"]))
            for row in of_side.sort_values("difference", ascending=what == "below").to_dict("records")
        ]
        more = ["..."] if len(listed) > _LISTED else []
        sides.append(f"{len(listed)} {what}" + (f" ({', '.join(listed[:_LISTED] + more)})" if listed else ""))
    return (
        f"Of {len(tested)} judges set against {reference}{at}, with Holm-corrected p of {1 - found.level:.2g} at most: "
        f"{'; '.join(sides)}; {len(tested) - len(clear)} cannot be told from it."
    )


def _prompts(row: Mapping[Hashable, Any]) -> str:
    numbers = {name: _plain(row[name]) for name in ("mean", "min", "max")}
    spread = {name: _small(row[name]) for name in ("sd", "sd_sampling", "sd_corrected", "se")}
    return (
        f"{row['judge']} under {row['n_prompts']} prompts of one model: {numbers['mean']} on average, from "
        f"{numbers['min']} ({row['min_run']}) to {numbers['max']} ({row['max_run']}). Standard deviation between these "
        f"prompts {spread['sd']} ({row['df']} degrees of freedom); equally good prompts would show "
        f"{spread['sd_sampling']} by sampling, which leaves {spread['sd_corrected']}. Sampling error of one prompt "
        f"{spread['se']}."
    )


def _small(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.3f}"

"""How much a judge's agreement depends on its prompt, beside how much it depends on the items."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from probes.intervals import UNDEFINED, Interval, interval, mean_over_folds
from probes.origin import origin_of
from probes.same_model import named_alike

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from probes.choices.evidence import ChoiceEvidence
    from probes.evidence import Evidence
    from probes.runlike import RunLike

# What of a judge's description follows from its template.
_OF_TEMPLATE = ("template", "score_tokens")


class PromptSpread(NamedTuple):
    """A statistic under several prompts.

    Attributes:
        mean: Over the prompts, with its interval over resamples of the items.
        sd: Standard deviation between the prompts, with k - 1 degrees of freedom.
        sd_sampling: What that would be, on average, if the prompts were equally good and differed by sampling only.
        sd_corrected: What is left of ``sd`` without it, not below 0.
        se: Sampling standard error of one prompt, mean over the prompts.
    """

    mean: Interval
    sd: float
    sd_sampling: float
    sd_corrected: float
    se: float


def prompt_spread(replicates: Float[np.ndarray, "prompt resample"], n_groups: int, level: float = 0.95) -> PromptSpread:
    r"""Spread between prompts, and how much of it sampling explains.

    With :math:`T_p` the statistic under prompt p of k, :math:`T_p^b` the same in resample b (one draw of the groups for
    all prompts) and bars for means over prompts,

    .. math::
        S^2 = \frac{1}{k - 1} \sum_p (T_p - \bar T)^2, \qquad
        V = \frac{1}{k - 1} \sum_p \mathrm{Var}_b(T_p^b - \bar T^b) \, \frac{G}{G - 1}, \qquad
        \mathrm{sd_{corrected}} = \sqrt{\max(0, S^2 - V)} .

    :math:`T_p = \theta_p + e_p` gives :math:`E[S^2]` as the variance between the :math:`\theta_p` plus
    :math:`\frac{1}{k - 1} \sum_p \mathrm{Var}(e_p - \bar e)`, which V estimates: the method of moments. The prompts see
    the same items, so that their errors go together and V is less than the variance of one prompt; deviations, which
    are paired, take care of that. (The usual moment estimator of a variance component, with dependent errors;
    DerSimonian and Laird 1986, Controlled Clinical Trials 7(3), has the independent case.)

    Args:
        replicates: The statistic of every prompt on the sample (column 0) and on the same resamples of the groups.
        n_groups: Number of groups G that were resampled.
        level: Coverage of the interval of the mean.

    Returns:
        The spread over the prompts whose statistic is defined; NaN where fewer than two are.
    """
    found = replicates[np.isfinite(replicates[:, 0])]
    missing = float("nan")
    k, factor = len(found), n_groups / max(1, n_groups - 1)
    if not k:
        return PromptSpread(UNDEFINED, missing, missing, missing, missing)
    # A resample in which one prompt has no coefficient cannot be paired.
    drawn = found[:, 1:][:, np.isfinite(found[:, 1:]).all(axis=0)]
    if drawn.shape[1] < 2 or n_groups < 2:
        drawn = np.full((k, 2), np.nan)
    of_mean = interval(np.concatenate([found[:, :1], drawn], axis=1).mean(axis=0), n_groups, level)
    se = float(np.sqrt(drawn.var(axis=1, ddof=1) * factor).mean())
    if k < 2:
        return PromptSpread(of_mean, missing, missing, missing, se)
    observed = float(found[:, 0].var(ddof=1))
    sampling = float((drawn - drawn.mean(axis=0)).var(axis=1, ddof=1).sum() * factor / (k - 1))
    corrected = float(np.sqrt(max(0.0, observed - sampling))) if np.isfinite(sampling) else missing
    return PromptSpread(of_mean, float(np.sqrt(observed)), float(np.sqrt(sampling)), corrected, se)


def prompt_families(runs: Mapping[str, RunLike]) -> list[list[str]]:
    """Runs that differ in nothing but their template (few-shot messages and prefill belong to it), in families.

    Model, condition, decoding, dtype and scale are then the same. Of runs with one template the first counts. A run
    that does not say what its judge is belongs to no family.
    """
    families: dict[str, dict[str, str]] = {}
    for (name, run), named in zip(runs.items(), named_alike(runs.values()), strict=True):
        judge = named["judge"]
        if not judge or not origin_of(run):
            continue
        rest = {setting: value for setting, value in judge.items() if setting not in _OF_TEMPLATE}
        family = json.dumps([named["model_hash"], rest], sort_keys=True, default=str)
        template = json.dumps(judge.get("template"), sort_keys=True, default=str)
        families.setdefault(family, {}).setdefault(template, name)
    return [list(family.values()) for family in families.values() if len(family) > 1]


def prompt_rows(
    runs: Mapping[str, RunLike],
    table: pd.DataFrame,
    evidence: Mapping[str, Evidence | ChoiceEvidence],
    metric: str = "spearman",
) -> list[dict[str, Any]]:
    """Rows of the table of prompts: one a family of prompts, criterion and judge.

    Args:
        runs: By name.
        table: Judges of all runs, with columns ``run``, ``criterion``, ``judge``, ``lens`` and that of the metric.
        evidence: By criterion; its judges are called ``run:judge``.
        metric: What judges are compared by.
    """
    rows = []
    for family in prompt_families(runs):
        of_family = table[table["run"].isin(family)]
        for (criterion, judge), of_judge in of_family.groupby(["criterion", "judge"], sort=False):
            of = evidence[str(criterion)]
            names = [f"{run}:{judge}" for run in of_judge["run"]]
            found = prompt_spread(
                np.stack([mean_over_folds(of.coefficients[name]) for name in names]), of.n_groups, of.level
            )
            defined = of_judge[of_judge[metric].notna()].sort_values(metric, kind="stable")
            low, high = (None, None) if defined.empty else (defined.iloc[0], defined.iloc[-1])
            rows.append(
                {
                    "criterion": criterion,
                    "prompts": ", ".join(family),
                    "judge": judge,
                    "lens": of_judge["lens"].iloc[0],
                    "metric": metric,
                    "n_prompts": len(defined),
                    "df": max(0, len(defined) - 1),
                    "mean": found.mean.value,
                    "mean_lo": found.mean.lo,
                    "mean_hi": found.mean.hi,
                    "sd": found.sd,
                    "sd_sampling": found.sd_sampling,
                    "sd_corrected": found.sd_corrected,
                    "se": found.se,
                    "min": float("nan") if low is None else low[metric],
                    "min_run": "" if low is None else low["run"],
                    "max": float("nan") if high is None else high[metric],
                    "max_run": "" if high is None else high["run"],
                    "n_used": of_judge["n_used"].iloc[0],
                }
            )
    return rows

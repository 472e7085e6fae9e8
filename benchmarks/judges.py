"""Judges compared on all captured sets: ``python -m benchmarks.judges --runs runs/sets --out runs/judges``.

The sets are those of ``benchmarks.human_sets``; ``--control runs/random`` names captures of an untrained model. A set
is written as soon as it is done, and not done again; ``benchmarks.judges_report`` makes the tables of docs/judges.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

import probes
from probes.aggregate import DEFAULT_JUDGE, get_aggregator
from probes.align import spearman
from probes.comparing import compare
from probes.curves import learning_curve, transfer
from probes.protocol import make_folds, out_of_fold, within_fold
from probes.runlike import parts

if TYPE_CHECKING:
    from probes.comparison import Comparison
    from probes.runlike import RunLike

# The ten rows of LAGER's ablation, the same on the norm lens where that is another judge, and what labels give without
# other layers.
ABLATION: Final = (
    *("vscore", "final", "uniform-max", "uniform", "prob-uniform-max", "prob-uniform"),
    *("lager-max", "lager", "prob-tuned-max", "prob-tuned"),
)
BASELINES: Final = ("final-ridge", "best-layer-ridge", "text-ridge")
# What the default could have been.
CANDIDATES: Final = (
    *("uniform", "uniform@norm", "uniform@tuned", "prob-uniform", "whitened", "agreement"),
    *("lager", "lager@norm", "lager@tuned", "prob-tuned", "lager-schedule", "lager-released", "calibrated"),
    *("slope-ridge", "logit-ridge", "logit-ridge@raw", "low-rank-ridge", "spectral-ridge", "spectral-ridge@raw"),
    DEFAULT_JUDGE,
)
DEVELOPMENT: Final = ("demo", "words", "vader_amazon")
CURVES: Final = (
    *("final", "final-ridge", "best-layer-ridge", "text-ridge", "lager@norm", "calibrated"),
    *("slope-ridge", "logit-ridge", "low-rank-ridge", "spectral-ridge", DEFAULT_JUDGE),
)


class Permuted:
    """A run whose human scores were dealt out anew among the items of each criterion: nothing can be learnt."""

    def __init__(self, run: RunLike, seed: int = 0) -> None:
        self._run = run
        rng, place = np.random.default_rng(seed), np.arange(len(run.ids))
        criteria = np.asarray(run.criteria)
        for name in np.unique(criteria):
            rows = np.flatnonzero(criteria == name)
            place[rows] = rng.permutation(rows)
        self.human, self.human_value = run.human[place], run.human_value[place]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


def against(found: Comparison, first: str, *others: str) -> list[dict[str, Any]]:
    """The paired difference between a judge and the best of others, a row a criterion."""
    rows = []
    for criterion in found.criteria:
        estimates = found.evidence[criterion].estimates
        best = max(others, key=lambda judge: -np.inf if np.isnan(estimates[judge].value) else estimates[judge].value)
        gain = found.difference(first, best, criterion)
        rows.append(
            {"criterion": criterion, "judge": first, "over": best, "gain": gain.value, "lo": gain.lo, "hi": gain.hi}
        )
    return rows


def few_labels(run: RunLike, resamples: int) -> pd.DataFrame:
    """The default with few labels, against each judge that it could be replaced with, on the same draws."""
    found = []
    for over in ("final", "lager@norm", *BASELINES):
        curve = learning_curve(run, [DEFAULT_JUDGE], sizes=(20, 50, 100), reference=over, resamples=resamples)
        # The value of the other one, by which the best of several is chosen.
        other = curve[curve["judge"] == over.partition("@")[0]].set_index(["criterion", "n_labels"])["value"]
        default = curve[curve["judge"] == DEFAULT_JUDGE].assign(over=over)
        keys = pd.MultiIndex.from_frame(default[["criterion", "n_labels"]])
        found.append(default.assign(other=other.reindex(keys).to_numpy()))
    return pd.concat(found)


def deals(run: RunLike, n_deals: int = 20) -> pd.DataFrame:
    """Spearman of the default where human scores were dealt out anew, time and again."""
    aggregator, rows = get_aggregator(DEFAULT_JUDGE), []
    for seed in range(n_deals):
        shuffled: Any = Permuted(run, seed)
        for part in parts(shuffled):
            folds = make_folds(part.y, part.groups, 5, 1, seed)
            found = out_of_fold(aggregator, part.logits[aggregator.reads], part.y, part.groups, folds)
            value = within_fold(spearman, found.scores, part.y, folds)
            rows.append({"criterion": part.criterion, "deal": seed, "value": value})
    return pd.DataFrame(rows)


def study(run: RunLike, resamples: int) -> dict[str, pd.DataFrame]:
    """All tables of one set."""
    found = compare(
        run, list(dict.fromkeys([*ABLATION, *BASELINES, *CANDIDATES, "residual-ridge"])), resamples=resamples
    )
    shuffled: Any = Permuted(run)
    control = compare(shuffled, ["final", "final-ridge", DEFAULT_JUDGE, "residual-ridge"], resamples=resamples)
    return {
        "table": found.table,
        "lines": found.human_lines,
        "calibration": found.calibration,
        "gains": pd.DataFrame(
            [
                *against(found, DEFAULT_JUDGE, *BASELINES),
                *against(found, DEFAULT_JUDGE, "lager", "lager@norm"),
                *against(found, "residual-ridge", DEFAULT_JUDGE),
            ]
        ),
        "curves": learning_curve(run, CURVES, resamples=resamples),
        "permuted": control.table,
        "few": few_labels(run, resamples),
        "deals": deals(run),
    }


def main() -> None:
    """Write the tables of every set, then the transfer between all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/sets"))
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/judges"))
    parser.add_argument("--control", type=Path, help="Captures of an untrained model.")
    parser.add_argument("--transfer", action="store_true", help="Only the transfer between sets.")
    parser.add_argument("--resamples", type=int, default=1000)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = [path for path in sorted(asked.runs.glob("*.h5")) if not asked.sets or path.stem in asked.sets]
    if asked.transfer:
        runs = {path.stem: probes.open_run(path) for path in paths if path.stem != "demo"}
        transfer(runs, DEFAULT_JUDGE, resamples=asked.resamples).to_csv(asked.out / "transfer.csv", index=False)
        return
    for path in paths:
        folder = asked.out / path.stem
        if folder.is_dir():
            continue
        start = time.perf_counter()
        with probes.open_run(path) as run:
            tables = study(run, asked.resamples)
        folder.mkdir()
        for name, table in tables.items():
            table.assign(set=path.stem).to_csv(folder / f"{name}.csv", index=False)
        sys.stdout.write(f"{path.stem}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()
    for path in sorted(asked.control.glob("*.h5")) if asked.control else []:
        with probes.open_run(path) as run:
            judges = ["final", *BASELINES, DEFAULT_JUDGE, "residual-ridge"]
            found = compare(run, judges, resamples=asked.resamples)
        found.table.assign(set=path.stem).to_csv(asked.out / f"untrained-{path.stem}.csv", index=False)


if __name__ == "__main__":
    main()

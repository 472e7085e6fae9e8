"""Judges compared on all captured sets: ``python -m benchmarks.judges --runs runs/sets --out runs/judges``.

The sets are those of ``benchmarks.human_sets``. The default judge was chosen on ``words`` and ``vader_amazon`` alone,
among some twenty variants; on all others it is tested.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import probes
from probes.comparing import compare
from probes.curves import learning_curve, transfer

if TYPE_CHECKING:
    from probes.runlike import RunLike

DEFAULT = "spectral-ridge"
JUDGES = (
    "final",
    "final-ridge",
    "best-layer-ridge",
    "uniform",
    "lager",
    "lager@norm",
    "slope-ridge",
    "logit-ridge",
    DEFAULT,
)
DEVELOPMENT = ("words", "vader_amazon")


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


def compared(run: RunLike, judges: tuple[str, ...], resamples: int) -> pd.DataFrame:
    """The table of a comparison, with the human lines."""
    found = compare(run, list(judges), resamples=resamples)
    return found.table


def main() -> None:
    """Write the tables that the documentation cites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/sets"))
    parser.add_argument("--out", type=Path, default=Path("runs/judges"))
    parser.add_argument("--resamples", type=int, default=1000)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    paths = sorted(asked.runs.glob("*.h5"))
    tables, curves, controls, runs = [], [], [], {}
    for path in paths:
        start = time.perf_counter()
        run = probes.open_run(path)
        runs[path.stem] = run
        tables.append(compared(run, JUDGES, asked.resamples).assign(set=path.stem))
        curves.append(learning_curve(run, resamples=asked.resamples).assign(set=path.stem))
        shuffled: Any = Permuted(run)
        controls.append(compared(shuffled, ("final", "final-ridge", DEFAULT), asked.resamples).assign(set=path.stem))
        sys.stdout.write(f"{path.stem}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()
    frames = {
        "table": pd.concat(tables),
        "curves": pd.concat(curves),
        "permuted": pd.concat(controls),
        "transfer": transfer(runs, DEFAULT, resamples=asked.resamples),
    }
    for name, frame in frames.items():
        frame.to_csv(asked.out / f"{name}.csv", index=False)
    table = frames["table"]
    table["row"] = table["set"] + "/" + table["criterion"].astype(str)
    table["name"] = [
        judge if lens != "norm" or judge != "lager" else "lager@norm"
        for judge, lens in zip(table["judge"], table["lens"], strict=True)
    ]
    sys.stdout.write(table.pivot_table(index="row", columns="name", values="spearman").round(3).to_string() + "\n")
    curve = frames["curves"]
    at_100 = curve[(curve["n_labels"] == 100) & (curve["judge"] == DEFAULT)]
    sys.stdout.write(at_100.drop(columns=["judge", "lens"]).round(3).to_string(index=False) + "\n")
    permuted = frames["permuted"]
    sys.stdout.write(
        permuted[["set", "criterion", "judge", "spearman", "spearman_lo", "spearman_hi"]]
        .round(3)
        .to_string(index=False)
        + "\n"
    )


if __name__ == "__main__":
    main()

"""The tables of docs/judges.md, from what ``benchmarks.judges`` wrote: ``python -m benchmarks.judges_report``.

Markdown on stdout. Numbers as in papers, without the zero in front; a criterion of a set is a row of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from benchmarks.judges import ABLATION, BASELINES, CANDIDATES, DEVELOPMENT
from probes.aggregate import DEFAULT_JUDGE, get_aggregator

if TYPE_CHECKING:
    from collections.abc import Iterable

# What the default may lose to the recalibrated last layer, and how wide an interval can still be called an answer.
MARGIN: Final = 0.03
WIDEST: Final = 0.10
N_LABELS: Final = 100


def number(value: float, sign: str = "") -> str:
    """``.43``, or ``--`` where there is none."""
    return "--" if np.isnan(value) else f"{value:{sign}.2f}".replace("0.", ".", 1)


def with_interval(value: float, lo: float, hi: float, sign: str = "") -> str:
    """``.43 [.37, .49]``."""
    return f"{number(value, sign)} [{number(lo, sign)}, {number(hi, sign)}]"


def markdown(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table with its title; the first column is text."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([f"### {title}", "", *lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def verdict(value: float, lo: float, hi: float) -> str:
    """What an interval of a gain says."""
    if np.isnan(value):
        return "undefined"
    if lo > 0:
        return "gain"
    if hi < 0:
        return "loss"
    return "no loss" if lo > -MARGIN and hi - lo <= WIDEST else "inconclusive"


class Tables:
    """All sets, with a name for each of their criteria."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = {path.parent.name for path in folder.glob("*/table.csv")}
        order = [*(name for name in DEVELOPMENT if name in names), *sorted(names - set(DEVELOPMENT))]
        self.read = {
            name: pd.concat([self._read(folder / of / f"{name}.csv") for of in order], ignore_index=True)
            for name in ("table", "lines", "gains", "curves", "permuted", "calibration", "few", "deals")
        }
        self.rows = list(dict.fromkeys(self.read["table"]["row"]))
        self.sets = dict(zip(self.read["table"]["row"], self.read["table"]["set"], strict=True))

    @staticmethod
    def _read(path: Path) -> pd.DataFrame:
        table = pd.read_csv(path).fillna({"criterion": ""})
        several = table["criterion"].nunique() > 1
        table["row"] = table["set"] + ("/" + table["criterion"].astype(str) if several else "")
        if "judge" in table and "lens" in table:
            table["spec"] = [_spec(judge, lens) for judge, lens in zip(table["judge"], table["lens"], strict=True)]
        return table

    def spearman(self) -> pd.DataFrame:
        """Rows by judges."""
        return self.read["table"].pivot_table(index="row", columns="spec", values="spearman").loc[self.rows]


def _spec(judge: str, lens: str) -> str:
    name = judge.partition("@")[0]
    return name if get_aggregator(name).lens == lens else f"{name}@{lens}"


def main_table(of: Tables) -> str:
    """Every set: what humans reach, what labels give without other layers, what layers give."""
    spearman, gains = of.spearman(), of.read["gains"]
    lines = of.read["lines"].pivot_table(index="row", columns="line", values="value").reindex(of.rows)
    whole = of.read["table"].set_index(["row", "spec"])
    plain = ["final", "final-ridge", "best-layer-ridge", "text-ridge", "uniform"]
    rows = []
    for row in of.rows:
        default = whole.loc[(row, DEFAULT_JUDGE)]
        gain = gains[(gains["row"] == row) & (gains["judge"] == DEFAULT_JUDGE)]
        rows.append(
            [
                f"*{row}*" if of.sets[row] in DEVELOPMENT else row,
                f"{default['n_used']}",
                *(number(lines.loc[row].get(line, np.nan)) for line in ("human", "attainable")),
                *(number(spearman.loc[row, judge]) for judge in plain),
                number(np.nanmax(spearman.loc[row, ["lager", "lager@norm"]])),
                with_interval(default["spearman"], default["spearman_lo"], default["spearman_hi"]),
                *(
                    f"{with_interval(one['gain'], one['lo'], one['hi'], '+')} {one['over']}"
                    for _, one in gain.iterrows()
                ),
                number(spearman.loc[row, "residual-ridge"]),
            ]
        )
    head = ["set", "n", "human", "attainable", *plain, "lager", DEFAULT_JUDGE]
    return markdown("All sets", [*head, "over the best without layers", "over lager", "residual-ridge"], rows)


def at_few_labels(of: Tables) -> str:
    """The default against what it could be replaced with, on the same draws of 100 labels; then counts by size."""
    few = of.read["few"]
    at = few[few["n_labels"] == N_LABELS].set_index(["row", "over"])
    rows = []
    for row in [one for one in of.rows if one in at.index]:
        found = at.loc[row]
        best = found.loc[list(BASELINES), "other"].idxmax()
        cells = [(found.loc[over], over) for over in ("final-ridge", best, "final", "lager@norm")]
        gains = [(one["gain"], one["gain_lo"], one["gain_hi"]) for one, _ in cells]
        texts = [f"{with_interval(*gain, sign='+')} {verdict(*gain)}" for gain in gains]
        texts[1] += f", {best}"
        rows.append([row, f"{found['n_test'].iloc[0]}", number(found["value"].iloc[0]), *texts])
    head = ["set", "n test", DEFAULT_JUDGE, "over final-ridge", "over the best without layers", "over final"]
    table = markdown(f"At {N_LABELS} labels", [*head, "over lager@norm"], rows)
    counts = []
    for size, of_size in few.groupby("n_labels"):
        tallies = []
        for over in ("final", "lager@norm", "final-ridge", "text-ridge"):
            said = [
                verdict(one["gain"], one["gain_lo"], one["gain_hi"])
                for _, one in of_size[of_size["over"] == over].iterrows()
            ]
            tallies.append(f"{said.count('gain')} / {said.count('loss')} of {len(said)}")
        counts.append([str(size), *tallies])
    head = ["labels", "final", "lager@norm", "final-ridge", "text-ridge"]
    return table + "\n" + markdown("Gains and losses of the default, by labels", head, counts)


def curves_table(of: Tables) -> str:
    """Mean over the sets that have all sizes."""
    curves = of.read["curves"]
    sizes = sorted(curves["n_labels"].unique())
    whole = curves.groupby("row")["n_labels"].nunique() == len(sizes)
    used = curves[curves["row"].isin(whole[whole].index) & ~curves["set"].isin(DEVELOPMENT)]
    mean = used.groupby(["spec", "n_labels"])["value"].mean().unstack()
    rows = [[judge, *(number(mean.loc[judge, size]) for size in sizes)] for judge in curves["spec"].unique()]
    title = f"Learning curves, mean over {used['row'].nunique()} criteria of the sets that were not developed on"
    return markdown(title, ["labels", *map(str, sizes)], rows)


def leave_one_out(of: Tables) -> str:
    """Which candidate the other sets would have chosen, and how it does on the set that is left out."""
    spearman = of.spearman()[[one for one in CANDIDATES if one in of.spearman()]]
    # Sets count once, however many criteria they have; the demo is part of the words.
    by_set = spearman.groupby(pd.Series(of.sets)).mean()
    rows = []
    for name in [one for one in dict.fromkeys(of.sets.values()) if one != "demo"]:
        others = by_set.drop(index=[name, "demo"], errors="ignore").mean()
        chosen = str(others.idxmax())
        best = str(by_set.loc[name].idxmax())
        rows.append(
            [
                name,
                chosen,
                number(by_set.loc[name, chosen]),
                number(by_set.loc[name, DEFAULT_JUDGE]),
                f"{best} {number(by_set.loc[name, best])}",
            ]
        )
    mean = by_set.drop(index="demo", errors="ignore").mean().sort_values(ascending=False)
    order = markdown("Candidates, mean over sets", ["judge", "mean"], [[str(k), number(v)] for k, v in mean.items()])
    head = ["set left out", "chosen on the others", "it there", DEFAULT_JUDGE, "best there"]
    return order + "\n" + markdown("Leaving one set out", head, rows)


def ablation(of: Tables) -> str:
    """The ten rows of the paper's table, on the lens that the paper defines them on."""
    spearman = of.spearman()
    rows = [[row, *(number(spearman.loc[row, judge]) for judge in ABLATION)] for row in of.rows]
    return markdown("LAGER's ablation", ["set", *ABLATION], rows)


def controls(of: Tables) -> str:
    """Permuted human scores, and a model that was never trained."""
    permuted = of.read["permuted"].set_index(["row", "spec"])
    judges = list(dict.fromkeys(of.read["permuted"]["spec"]))
    deals = of.read["deals"].groupby("row")["value"].agg(["mean", "std"])
    rows = []
    for row in of.rows:
        found = [permuted.loc[(row, judge)] for judge in judges]
        cells = [with_interval(one["spearman"], one["spearman_lo"], one["spearman_hi"]) for one in found]
        rows.append([row, *cells, f"{number(deals.loc[row, 'mean'])} ({number(deals.loc[row, 'std'])})"])
    head = ["set", *judges, f"{DEFAULT_JUDGE}, mean of 20 deals (sd)"]
    text = markdown("Control: human scores dealt out anew", head, rows)
    for path in sorted(of.folder.glob("untrained-*.csv")):
        table = Tables._read(path)
        text += "\n" + markdown(
            f"Control: an untrained model on {path.stem.removeprefix('untrained-')}",
            ["judge", "Spearman", "over the best without layers"],
            [
                [
                    one["spec"],
                    with_interval(one["spearman"], one["spearman_lo"], one["spearman_hi"]),
                    with_interval(
                        one["gain_over_baseline"], one["gain_over_baseline_lo"], one["gain_over_baseline_hi"], "+"
                    ),
                ]
                for _, one in table.iterrows()
            ],
        )
    return text


def transfer(of: Tables) -> str:
    """Fitted on a row, tested on a column."""
    path = of.folder / "transfer.csv"
    if not path.is_file():
        return ""
    table = pd.read_csv(path)
    names = list(dict.fromkeys(table["tested_on"]))
    matrix = table.pivot_table(index="fitted_on", columns="tested_on", values="value").loc[names, names]
    rows = [[name, *(number(value) for value in matrix.loc[name])] for name in names]
    final = table.drop_duplicates("tested_on").set_index("tested_on")["final"]
    rows.append(["final (no labels)", *(number(final[name]) for name in names)])
    return markdown("Transfer of the default", ["fitted on", *names], rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="Where benchmarks.judges wrote.")
    of = Tables(parser.parse_args().out)
    makers = (main_table, at_few_labels, curves_table, leave_one_out, ablation, transfer, controls)
    sys.stdout.write("\n".join(make(of) for make in makers))


if __name__ == "__main__":
    main()

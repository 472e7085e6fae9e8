"""Agreement of items, within groups and of systems, against literal loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from probes.comparing import compare
from probes.evidence import Evidence
from probes.intervals import DIFFERENCE, interval
from probes.items import Item
from probes.levels import _mean_ranks, level_rows
from probes.protocol import group_resamples, make_folds
from tests.fake_run import FakeRun

RESAMPLES = 12


def evidence(n_items=96, size=6, seed=0, repeats=2):
    """Two judges of items in groups, human scores being few whole numbers, and the system of each item."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n_items) // size
    y = np.clip(np.round(3 + rng.normal(size=n_items)), 1, 5)
    folds = make_folds(y, groups, 3, repeats)
    scores = {
        "final": np.broadcast_to(np.round(y + rng.normal(size=n_items)), folds.fold.shape),
        "other": y + rng.normal(size=folds.fold.shape),
    }
    systems = [f"s{i % size}" for i in range(n_items)]
    return Evidence.gather(scores, {}, y, groups, folds, RESAMPLES, 0.95, seed), systems


def rows_of(found, systems, sources=None, judges=("final", "other"), n_total=100):
    rows = level_rows(found, judges, found.groups if sources is None else sources, systems, RESAMPLES, n_total)
    return pd.DataFrame(rows).set_index(["judge", "level"])


def spearman(a, b):
    return np.nan if np.ptp(a) == 0 or np.ptp(b) == 0 or len(a) < 3 else stats.spearmanr(a, b).statistic


def as_interval(row, name=""):
    columns = (name, f"{name}_lo", f"{name}_hi") if name else ("value", "lo", "hi")
    return tuple(row[column] for column in columns)


def test_item_level_is_what_other_tables_say():
    found, systems = evidence()
    rows = rows_of(found, systems)
    for judge in ("final", "other"):
        of = found.estimates[judge]
        assert as_interval(rows.loc[(judge, "item")]) == (of.value, of.lo, of.hi)
        gain = found.difference(judge, "final")
        assert as_interval(rows.loc[(judge, "item")], "gain_over_final") == (gain.value, gain.lo, gain.hi)
    assert rows.loc[("other", "item"), ["n_units", "n_units_total", "n_used", "n_total"]].tolist() == [96, 100, 96, 100]


def test_group_level_is_the_mean_of_scipys_coefficients_within_groups_that_can_be_ranked():
    found, systems = evidence()
    found.y[:6] = 4.0  # of the first group humans say nothing
    found.scores["other"][:, 6:12] = 2.5 + 1e-12 * np.arange(6)  # of the second the judge says nothing but rounding
    drawn, _ = group_resamples(found.groups, RESAMPLES, found.seed)
    places = np.arange(96).reshape(16, 6)
    cells = {
        judge: np.array([[spearman(np.round(scores[at], 8), found.y[at]) for at in places] for scores in of])
        for judge, of in found.scores.items()
    }

    def means(of):
        return np.array([np.nansum(of * counts) / (np.isfinite(of) * counts).sum() for counts in drawn])

    rows = rows_of(found, systems)
    for judge in ("final", "other"):
        row = rows.loc[(judge, "group")]
        expected = interval(means(cells[judge]), 15)
        assert as_interval(row) == pytest.approx((expected.value, expected.lo, expected.hi))
        gain = interval(means(cells[judge] - cells["final"]), 15, limit=DIFFERENCE)
        assert as_interval(row, "gain_over_final") == pytest.approx((gain.value, gain.lo, gain.hi))
        used = int(np.isfinite(cells[judge]).any(axis=0).sum())
        assert row[["n_units", "n_units_total", "n_used"]].tolist() == [used, 16, 6 * used]
    assert rows.loc[("other", "group"), "n_units"] == 14


def test_groups_are_ranked_as_the_run_names_them_and_resampled_as_joined():
    found, systems = evidence()
    halves = np.arange(96) // 3  # two sources in each group, as where they share a text
    row = rows_of(found, systems, sources=halves).loc[("other", "group")]
    expected = np.nanmean(
        [
            [spearman(of[3 * g : 3 * g + 3], found.y[3 * g : 3 * g + 3]) for g in range(32)]
            for of in found.scores["other"]
        ]
    )
    assert row["value"] == pytest.approx(expected)
    assert row["n_units_total"] == 32


def test_system_level_ranks_means_within_folds_of_every_resample():
    found, systems = evidence()
    systems[0] = systems[50] = None
    drawn, code = group_resamples(found.groups, RESAMPLES, found.seed)

    def of_resample(judge, weights):
        values = []
        for repeat, test in found.folds.tests():
            table = pd.DataFrame({"s": systems, "x": found.scores[judge][repeat], "y": found.y}).iloc[test]
            table = table.loc[table.index.repeat(weights[test])].dropna(subset="s")
            means = table.groupby("s")[["x", "y"]].mean().round(9)
            values.append(spearman(means["x"], means["y"]))
        return np.array(values)

    rows = rows_of(found, systems)
    of_final = np.stack([of_resample("final", weights) for weights in drawn[:, code]], axis=1)
    for judge in ("final", "other"):
        values = np.stack([of_resample(judge, weights) for weights in drawn[:, code]], axis=1)
        row = rows.loc[(judge, "system")]
        expected = interval(np.nanmean(values, axis=0), 16)
        assert as_interval(row) == pytest.approx((expected.value, expected.lo, expected.hi))
        gain = interval(np.nanmean(values - of_final, axis=0), 16, limit=DIFFERENCE)
        assert as_interval(row, "gain_over_final") == pytest.approx((gain.value, gain.lo, gain.hi))
        assert row[["n_units", "n_units_total", "n_used", "n_total"]].tolist() == [6, 6, 94, 100]


def test_systems_with_the_same_scores_in_another_order_are_ties():
    values = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.9])
    belongs = np.repeat(np.eye(3), [3, 3, 1], axis=0).T
    assert len({values[:3].sum(), values[3:6].sum()}) == 2
    ranks = _mean_ranks(values, belongs, np.ones((7, 1)), belongs.sum(axis=1, keepdims=True))
    assert ranks[:, 0].tolist() == [-0.5, -0.5, 1.0]


def test_a_judge_that_knows_sources_only_ranks_items_but_no_responses_and_no_systems():
    rng = np.random.default_rng(3)
    groups, of_system = np.arange(400) // 8, np.arange(400) % 8
    y = rng.normal(size=50)[groups] + 0.5 * rng.normal(size=8)[of_system] + 0.2 * rng.normal(size=400)
    folds = make_folds(y, groups, 5, 1)
    scores = {"final": (rng.normal(size=400) * 0.1 + rng.permutation(y))[None], "source": np.zeros((1, 400))}
    means = np.array([y[groups == g].mean() for g in range(50)])
    scores["source"] = (means[groups] + 0.01 * rng.normal(size=400))[None]
    found = Evidence.gather(scores, {}, y, groups, folds, RESAMPLES, 0.95, 0)
    rows = rows_of(found, [f"s{i}" for i in of_system], judges=["source"])
    assert rows.loc[("source", "item"), "value"] > 0.7
    assert abs(rows.loc[("source", "group"), "value"]) < 0.15
    assert abs(rows.loc[("source", "system"), "value"]) < 0.5


def test_levels_that_the_run_has_no_data_for_are_left_out():
    found, systems = evidence(size=2)
    assert rows_of(found, [None] * 96).index.get_level_values("level").tolist() == ["item", "item"]
    assert rows_of(found, systems).index.get_level_values("level").unique().tolist() == ["item"]  # two systems
    three = [f"s{i % 3}" for i in range(96)]
    assert rows_of(found, three).index.get_level_values("level").unique().tolist() == ["item", "system"]


def test_undefined_levels_are_nan_with_no_units():
    found, systems = evidence()
    found.scores["other"][:] = 2.0
    rows = rows_of(found, systems).loc["other"]
    for level in ("group", "system"):
        assert rows.loc[level, ["value", "lo", "hi", "gain_over_final"]].isna().all()
        assert rows.loc[level, ["n_units", "n_used"]].tolist() == [0, 0]


class WithSystems(FakeRun):
    @property
    def items(self):
        return [Item(id=name, fields={"response": name}, system=f"s{i % 4}") for i, name in enumerate(self.ids)]


def test_a_comparison_has_a_table_of_levels():
    found = compare(
        WithSystems(120, group=4, criteria=["x"] * 60 + ["y"] * 60), ["final"], folds=3, repeats=1, resamples=20
    )
    assert found.levels.columns.tolist() == [
        "criterion", "judge", "lens", "level", "metric", "value", "lo", "hi", "gain_over_final", "gain_over_final_lo",
        "gain_over_final_hi", "n_units", "n_units_total", "n_used", "n_total",
    ]  # fmt: skip
    assert found.levels["level"].tolist() == ["item", "group", "system"] * 2
    assert found.levels["criterion"].tolist() == ["x"] * 3 + ["y"] * 3
    assert found.levels["n_units_total"].tolist() == [60, 15, 4] * 2
    assert found.levels["value"][0] == found.table["spearman"][0]

"""Tables of figures: their numbers against literal loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cosine as cosine_distance
from scipy.special import softmax

from probes.calibration import ece, kl, targets
from probes.errors import FitError
from probes.figures import tables
from probes.store import open_run
from tests.fake_run import FakeRun
from tests.valid_run import write_valid

VALUES = np.arange(1.0, 6.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("tables") / "run.h5", n_items=30)


def test_layer_scores_are_the_expected_value_of_each_layer():
    run = FakeRun(12, 3, criteria=["a", "b"] * 6)
    run.human_value[4] = np.nan
    table = tables.layer_scores(run, "raw", "a")
    assert len(table) == 6 * 4
    for row in table.to_dict("records"):
        item = run.ids.index(row["item"])
        assert item % 2 == 0
        weights = np.exp(run.logits["raw"][item, row["layer_index"]].astype(float))
        assert row["score"] == pytest.approx(sum(weights * VALUES) / sum(weights))
        assert row["layer"] == run.layers[row["layer_index"]]
        np.testing.assert_equal(row["human"], run.human_value[item])


def test_distributions_are_means_over_items_with_both_a_reading_and_a_rater():
    run = FakeRun(20, 2)
    run.human[3], run.logits["norm"][5] = np.nan, np.nan
    table = tables.score_distributions(run)
    used = [item for item in range(20) if item not in (3, 5)]
    assert set(table["n_used"]) == {18}
    assert set(table["n_total"]) == {20}
    histogram = np.zeros(5)
    for item in used:  # a score between two labels counts for both
        for score in run.human[item].astype(float):
            below = min(int(score) - 1, 3)
            histogram[below] += (below + 2 - score) / 3 / len(used)
            histogram[below + 1] += (score - below - 1) / 3 / len(used)
    for layer, rows in table.groupby("layer_index"):
        probs = softmax(run.logits["norm"][used, layer].astype(float), axis=1)
        np.testing.assert_allclose(rows["share"], probs.mean(axis=0))
        np.testing.assert_allclose(rows["raters"], histogram, atol=1e-6)
        assert rows["kl"].iloc[0] == pytest.approx(kl(probs, targets(run.human[used].astype(float), VALUES)))


def test_distributions_without_raters_are_of_all_captured_items():
    run = FakeRun(8, 2)
    run.human[:] = np.nan
    run.logits["norm"][0] = np.nan
    table = tables.score_distributions(run)
    assert set(table["n_used"]) == {7}
    assert table[["raters", "kl"]].isna().all(axis=None)
    run.logits["norm"][:] = np.nan
    with pytest.raises(FitError, match="no item with both a reading and a human score"):
        tables.score_distributions(run)


def test_bins_of_the_last_layer_add_up_to_its_ece():
    run = FakeRun(90, 3)
    table = tables.reliability_bins(run, ["final", "spectral-ordinal"])
    final = table[table["judge"] == "final"]
    probs = softmax(run.logits["norm"][:, -1].astype(float), axis=1)
    target = targets(run.human.astype(float), VALUES)
    gap = (final["count"] * (final["confidence"] - final["accuracy"]).abs()).sum() / 90
    assert final["ece"].iloc[0] == pytest.approx(gap) == pytest.approx(ece(probs, target))
    for row in final.to_dict("records"):
        members = [i for i in range(90) if row["bin_lo"] < probs[i].max() <= row["bin_hi"]]
        assert row["count"] == len(members)
        assert row["confidence"] == pytest.approx(np.mean([probs[i].max() for i in members]))
        assert row["accuracy"] == pytest.approx(np.mean([target.shares[i, probs[i].argmax()] for i in members]))
    held_out = table[table["judge"] == "spectral-ordinal"]
    assert set(held_out["labels_used"]) == {72}
    assert held_out["count"].sum() == 90


def test_judges_that_give_numbers_have_no_reliability():
    with pytest.raises(FitError, match="slope-ridge gives a number and no distribution"):
        tables.reliability_bins(FakeRun(60, 3), ["slope-ridge"])
    run = FakeRun(60, 3, criteria=["a", "b"] * 30)
    with pytest.raises(FitError, match="choose a criterion for the reliability: a, b"):
        tables.reliability_bins(run, ["final"])


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("block", [1, 700, 1 << 30])
def test_similarity_is_the_mean_cosine_whatever_the_blocks(path, centred, block, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_BYTES", block)
    with open_run(path) as run:
        states = np.stack([run.item_residual(layer) for layer in run.layers]).astype(float)
        table = tables.layer_similarity(run, centred=centred)
    there = np.isfinite(states).all(axis=(0, 2))
    assert there.sum() == 29  # one prompt is too long
    states = states[:, there]
    if centred:
        states = states - states.mean(axis=1, keepdims=True)
    for row in table.to_dict("records"):
        pairs = zip(states[row["layer_index"]], states[row["other_index"]], strict=True)
        assert row["cosine"] == pytest.approx(np.mean([1 - cosine_distance(a, b) for a, b in pairs]), abs=1e-9)
        assert (row["n_used"], row["n_total"]) == (29, 30)
    assert len(table) == 16


def test_similarity_holds_few_states_at_once(path, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 4 * 8 * 8 * 5)
    sizes = []
    read = tables._states
    monkeypatch.setattr(tables, "_states", lambda run, rows: sizes.append(len(rows)) or read(run, rows))
    with open_run(path) as run:
        tables.layer_similarity(run)
    assert max(sizes) == 5


def test_a_layer_that_is_the_same_for_all_items_has_no_centred_cosine():
    table = tables.layer_similarity(FakeRun(10, 3), centred=True)
    undefined = (table["layer"] == "embed") | (table["other"] == "embed")
    assert (table["cosine"].isna() == undefined).all()
    run = FakeRun(4, 2)
    run.has_item_residuals = False
    with pytest.raises(FitError, match="holds no residual states of items: capture with residuals"):
        tables.layer_similarity(run)


def test_mass_is_median_and_quartiles_over_items(path):
    with open_run(path) as run:
        table = tables.scale_mass(run)
        mass = run.extra("scale_mass")
    for index, row in enumerate(table.to_dict("records")):
        of_layer = mass[np.isfinite(mass[:, index]), index].astype(float)
        assert [row["lo"], row["value"], row["hi"]] == pytest.approx(np.percentile(of_layer, [25, 50, 75]).tolist())
        assert (row["n_used"], row["n_total"]) == (29, 30)


def test_without_the_mass_of_all_layers_there_is_that_of_the_last(tmp_path):
    with open_run(write_valid(tmp_path / "run.h5", extras=())) as run:
        table = tables.scale_mass(run)
        assert table["value"].notna().tolist() == [False, False, False, True]
        assert table["value"].iloc[-1] == pytest.approx(np.nanmedian(run.final_mass))
        assert tables.scale_mass(run.select(layers=[1, 2]))["value"].isna().all()
    with pytest.raises(FitError, match="holds no probability of the scale"):
        tables.scale_mass(FakeRun(4, 2))


def test_one_item_has_its_distribution_at_every_layer_and_its_prompt(path):
    with open_run(path) as run:
        table = tables.item_distributions(run, "item-5", "raw")
        logits = run.item_logits("raw")[5].astype(float)
        np.testing.assert_allclose(table["prob"].to_numpy().reshape(4, 5), softmax(logits, axis=1))
        np.testing.assert_allclose(table["score"].to_numpy()[::5], softmax(logits, axis=1) @ VALUES)
        assert tables.prompt_text(run, "item-5") == "Wort 5: naïve 判断"  # the template shows the response alone
        with pytest.raises(FitError, match="no reading of the item 'item-3'"):
            tables.item_distributions(run, "item-3")
        with pytest.raises(FitError, match="has no item 'x': its first is 'item-0', of 30"):
            tables.item_distributions(run, "x")
    assert tables.prompt_text(FakeRun(3, 2), "i1") == "response: text of i1"


def test_a_criterion_or_lens_that_is_not_there_is_one_line():
    with pytest.raises(FitError, match="^the run has no criterion 'c': it has 'a', 'b'$"):
        tables.layer_scores(FakeRun(4, 2, criteria=["a", "b"] * 2), criterion="c")
    with pytest.raises(FitError, match="has no lens 'tuned'"):
        tables.score_distributions(FakeRun(4, 2), "tuned")

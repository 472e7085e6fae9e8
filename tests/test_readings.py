"""Several readings an item: samples, pairs in both orders, and what they say about the item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import probes
from probes.errors import RunFileError
from probes.store.readings import Readings, Status
from probes.store.writer import RunWriter
from probes.token_table import TokenTable
from tests.fake_run import LAYERS, fake_header, fake_shard

if TYPE_CHECKING:
    from probes.store.header import Header

OK, NO_SCORE, TOO_LONG, NON_FINITE = Status.OK, Status.NO_SCORE, Status.TOO_LONG, Status.NON_FINITE


def written(path, header: Header, *shards):
    with RunWriter.open(path, header, "plan") as writer:
        for number, data in enumerate(shards):
            writer.write_shard(number, data)
        writer.write_run({})
    return probes.open_run(path)


def pair_header(n_items: int = 2, scale: str = "A=1,B=0", first_label: str = "A", **changes) -> Header:
    n = 2 * n_items
    return fake_header(
        n_items,
        n_readings=n,
        n_prompts=n,
        scale=scale,
        attrs={"pairwise": True, "first_label": first_label},
        reading_item=np.repeat(np.arange(n_items), 2),
        reading_swapped=np.tile([False, True], n_items),
        **changes,
    )


def logits_of(rows) -> np.ndarray:
    """The same logits at every layer: ``[reading, label] -> [reading, layer, label]``."""
    return np.repeat(np.asarray(rows, dtype=np.float32)[:, None], len(LAYERS), axis=1)


def test_a_direct_run_has_one_reading_an_item(tmp_path):
    header = fake_header(3)
    run = written(tmp_path / "run.h5", header, fake_shard(header, [2, 0]))
    assert run.readings.item.tolist() == [0, 1, 2]
    assert run.readings.sample.tolist() == [0, 0, 0]
    assert not run.readings.swapped.any()
    assert not run.pairwise
    assert run.item_status.tolist() == run.status.tolist() == [OK, Status.NOT_CAPTURED, OK]
    assert run.item_logits("norm").tobytes() == run.score_logits("norm").tobytes()
    assert run.n_tokens.tolist() == [2, 3, 4]
    assert run.position.tolist() == [1, 2, 3]
    with pytest.raises(RunFileError) as error:
        run.position_bias()
    assert str(error.value) == (
        f"{tmp_path / 'run.h5'} judges single responses; only a pairwise run has a position bias"
    )


def test_samples_are_averaged_where_they_were_read(tmp_path):
    header = fake_header(
        3,
        n_readings=6,
        reading_item=np.repeat([0, 1, 2], 2),
        reading_sample=np.tile([0, 1], 3),
        scale="no=0,yes=1",
    )
    logits = logits_of([[1, 2], [3, 6], [5, 7], [0, 0], [9, 9], [9, 9]])
    status = [OK, OK, OK, NO_SCORE, NON_FINITE, NO_SCORE]
    run = written(tmp_path / "run.h5", header, fake_shard(header, range(6), logits, status))
    assert run.item_status.tolist() == [OK, OK, NON_FINITE]
    assert run.item_logits()[:, 1].tolist()[:2] == [[2, 4], [5, 7]]
    assert np.isnan(run.item_logits()[2]).all()
    assert run.item_logits().dtype == np.float32
    # Samples share their prompt, in the file and in memory.
    assert run.n_tokens.tolist() == [2, 2, 3, 3, 4, 4]
    prompts = run.token_ids
    assert [ids[0] for ids in prompts] == [0, 0, 1, 1, 2, 2]
    assert np.shares_memory(prompts[2], prompts[3])


def test_a_pair_has_the_mean_of_its_two_log_odds(tmp_path):
    header = pair_header(2)
    # Labels in order of value: B, A. Given order: log-odds of A, the first response, are 2 and -1.
    # Swapped order: A now names the second response, so its log-odds for the first response are -(-3) and -(2).
    logits = logits_of([[0, 2], [3, 0], [1, 0], [0, 2]])
    run = written(tmp_path / "run.h5", header, fake_shard(header, range(4), logits))
    assert run.pairwise
    assert run.readings.swapped.tolist() == [False, True, False, True]
    found = run.item_logits()[:, -1]
    np.testing.assert_array_equal(found, [[0, 2.5], [1.5, 0]])
    np.testing.assert_array_equal(found[:, 1] - found[:, 0], [(2 + 3) / 2, (-1 - 2) / 2])
    # Every order is a prompt of its own.
    assert [ids[0] for ids in run.token_ids] == [0, 1, 2, 3]


def test_a_tie_stays_a_tie_when_the_order_is_reversed(tmp_path):
    header = pair_header(1, scale="A=-1,tie=0,B=1")
    run = written(tmp_path / "run.h5", header, fake_shard(header, [0, 1], logits_of([[1, 5, 2], [8, 7, 4]])))
    np.testing.assert_array_equal(run.item_logits()[0, 0], [2.5, 6, 5])


def test_a_pair_needs_both_orders(tmp_path):
    header = pair_header(3)
    logits = logits_of([[0, 1]] * 6)
    status = [OK, TOO_LONG, NO_SCORE, NON_FINITE, OK, OK]
    run = written(tmp_path / "run.h5", header, fake_shard(header, range(6), logits, status))
    assert run.item_status.tolist() == [TOO_LONG, NO_SCORE, OK]
    assert np.isnan(run.item_logits()[:2]).all()
    assert np.isfinite(run.item_logits()[2]).all()
    assert run.position_bias()["n"].tolist() == [1, 1, 1]


def test_sampled_pairs_count_whole_samples_only():
    readings = Readings(
        item=np.zeros(6, dtype=np.int32),
        sample=np.array([0, 1, 2, 0, 1, 2], dtype=np.int32),
        swapped=np.array([False] * 3 + [True] * 3),
        status=np.array([OK, NO_SCORE, OK, OK, OK, OK], dtype=np.uint8),
        n_items=1,
    )
    assert readings.counted.tolist() == [True, False, True, True, False, True]
    logits = np.array([[0, 1], [9, 9], [0, 3], [2, 0], [9, 9], [4, 0]], dtype=np.float32)[:, None]
    np.testing.assert_array_equal(readings.item_logits(logits)[0, 0], [0, (1 + 3 + 2 + 4) / 4])


@pytest.mark.parametrize(("scale", "sign"), [("A=1,B=0", 1), ("A=0,B=1", -1)])
def test_the_bias_is_positive_where_the_response_shown_first_is_preferred(tmp_path, scale, sign):
    # Log-odds of A over B: layer 0 always takes what comes first, layer 1 always the better response, which is the
    # first of item 0 and the second of item 1, layer 2 leans to the second place more than it knows.
    odds = np.array([[4, 2, -3], [2, -2, -1], [1, -1, -3], [1, 1, -3]], dtype=np.float32)
    logits = np.stack([0 * odds, sign * odds], axis=-1)
    header = pair_header(2, scale)
    run = written(tmp_path / "run.h5", header, fake_shard(header, range(4), logits))
    found = run.position_bias("norm")
    expected = pd.DataFrame(
        {
            "layer": LAYERS,
            "n": [2, 2, 2],
            "bias": [2.0, 0.0, -2.5],
            "sd": [np.std([3, 1], ddof=1), 0.0, np.std([-2, -3], ddof=1)],
            "flipped": [1.0, 0.0, 1.0],
        }
    )
    pd.testing.assert_frame_equal(found, expected)


def test_no_pair_in_both_orders_gives_no_bias(tmp_path):
    header = pair_header(1)
    run = written(tmp_path / "run.h5", header, fake_shard(header, [0, 1], status=[OK, NO_SCORE]))
    found = run.position_bias()
    assert found["n"].tolist() == [0, 0, 0]
    assert found[["bias", "sd", "flipped"]].isna().all(axis=None)


def test_prompts_and_readings_must_fit_together():
    with pytest.raises(ValueError) as error:
        fake_header(3, n_prompts=2)
    assert str(error.value) == "2 prompts, but the readings name 3: pass one for each"
    with pytest.raises(ValueError, match="unknown extra 'mass': choose among scale_mass, entropy"):
        fake_header(3, extras=["mass"])


def test_the_hash_of_an_item_covers_its_id_and_all_its_prompts():
    def hashes(*prompts, **changes):
        return pair_header(token_ids=TokenTable.from_lists(prompts), **changes).item_hashes

    plain = hashes([1, 2], [3], [4], [5])
    assert plain == hashes([1, 2], [3], [4], [5])
    assert len(set(plain)) == 2
    # Another second prompt, another cut between the prompts, and another order change the first item alone.
    for other in (hashes([1, 2], [9], [4], [5]), hashes([1], [2, 3], [4], [5]), hashes([3], [1, 2], [4], [5])):
        assert other[0] != plain[0]
        assert other[1] == plain[1]
    direct = fake_header(2)
    assert direct.item_hashes[0] != fake_header(1, items=direct.items[1:]).item_hashes[0]

"""From shards to the run file: optional readings, generated text, resuming, bounded blocks."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest

import probes
from probes.errors import RunFileError
from probes.store import merge
from probes.store.readings import Status
from probes.store.writer import RunWriter
from tests.fake_run import D_MODEL, LAYERS, fake_header, fake_shard
from tests.test_capture import datasets

EXTRAS = ("scale_mass", "entropy", "last_positions", "response_mean")
BACK = 2
# Two shards whose rows interleave and are in no order; reading 5 is never captured.
ROWS = ([6, 0, 3], [4, 1, 2])
N = 7
ANSWERS = {0: "Score: 4", 1: "", 2: "判断 🙂", 3: "naïve", 4: "5", 6: "x" * 300}


def ids_of(row: int) -> np.ndarray:
    """Generated tokens of a reading: as many as its number."""
    return np.arange(row, dtype=np.int32) + 10 * row


def extras_of(rows) -> dict[str, np.ndarray]:
    rows, n = np.asarray(rows, dtype=np.float32), len(LAYERS)
    layers = rows[:, None] + np.arange(n, dtype=np.float32) / 4
    states = np.repeat(layers[:, :, None], D_MODEL, axis=2)
    back = np.stack([states + 8 * k for k in range(BACK)], axis=1)
    return {"scale_mass": layers, "entropy": -layers, "last_positions": back, "response_mean": states / 3}


def full_header(**changes):
    return fake_header(N, **{"extras": EXTRAS, "lenses": ("raw", "norm")} | changes)


def full_shard(header, rows, **changes):
    found = {
        "extras": {name: values for name, values in extras_of(rows).items() if name in header.extras},
        "position": np.array([100 + row for row in rows]),
        "generated": [ids_of(row) for row in rows],
        "texts": [ANSWERS[row] for row in rows],
    }
    return fake_shard(header, rows, **found | changes)


def write_run(path, header, shards=ROWS, *, finish=True, **changes):
    with RunWriter.open(path, header, "plan") as writer:
        done = writer.finished
        for number, rows in enumerate(shards):
            if number not in done:
                writer.write_shard(number, full_shard(header, rows, **changes))
        if finish:
            writer.write_run({"note": {"a": 1}})
    return probes.open_run(path)


@pytest.fixture(params=["finished", "unfinished"])
def run(request, tmp_path):
    """The same readings from the run file and from the folder of a capture that is not over."""
    with write_run(tmp_path / "run.h5", full_header(), finish=request.param == "finished") as opened:
        assert opened.is_complete is (request.param == "finished")
        yield opened


def test_rows_come_in_order_of_readings(run):
    assert run.status.tolist() == [0, 0, 0, 0, 0, Status.NOT_CAPTURED, 0]
    captured = [0, 1, 2, 3, 4, 6]
    expected = fake_shard(full_header(), captured)
    np.testing.assert_array_equal(run.residual()[captured], expected.residual)
    np.testing.assert_array_equal(run.score_logits("raw")[captured], expected.score_logits["raw"])
    np.testing.assert_array_equal(run.final_mass[captured], captured)
    assert np.isnan(run.residual()[5]).all()
    assert np.isnan(run.final_mass[5])
    # What was not captured keeps what was known beforehand: the end of its prompt.
    assert run.position.tolist() == [100, 101, 102, 103, 104, run.n_tokens[5] - 1, 106]


def test_extras_are_read_whole_by_layer_and_by_reading(run):
    assert run.extras == EXTRAS
    for name, expected in extras_of(range(N)).items():
        expected[5] = np.nan
        found = run.extra(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=name)
        by_layer = expected[:, :, 1] if name == "last_positions" else expected[:, 1]
        np.testing.assert_array_equal(run.extra(name, layer="1"), by_layer, err_msg=name)
        np.testing.assert_array_equal(run.extra(name, readings=[4, 1, 4], layer=1), by_layer[[4, 1, 4]], err_msg=name)
        mask = np.arange(N) % 2 == 0
        np.testing.assert_array_equal(run.extra(name, readings=mask), expected[mask], err_msg=name)


def test_generated_tokens_and_texts_are_ragged(run):
    expected = [ids_of(row) if row in ANSWERS else np.empty(0) for row in range(N)]
    found = run.generated_ids
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    assert run.generated_text == [ANSWERS.get(row, "") for row in range(N)]


def test_what_was_not_captured_says_how_to_get_it(tmp_path):
    path, header = tmp_path / "run.h5", fake_header(N, extras=["entropy"])
    for finish in (False, True):
        run = write_run(path, header, finish=finish, generated=None, texts=None, position=None)
        assert run.position.tolist() == (run.n_tokens - 1).tolist()
        assert run.extra("entropy").shape == (N, len(LAYERS))
        for name, option in (
            ("scale_mass", "mass=True"),
            ("last_positions", "last_positions=4"),
            ("response_mean", "response_mean=True"),
        ):
            with pytest.raises(RunFileError) as error:
                run.extra(name)
            assert str(error.value) == f"{run.path} holds no {name}; capture again with {option}"
        with pytest.raises(RunFileError) as error:
            run.extra("mass")
        assert str(error.value) == (
            f"{run.path}: unknown extra reading 'mass'; there are scale_mass, entropy, last_positions, response_mean"
        )
        with pytest.raises(RunFileError, match="has no layer 9; its layers are embed, 1, 2"):
            run.extra("entropy", layer=9)
        for generated in ("generated_ids", "generated_text"):
            with pytest.raises(RunFileError) as error:
                getattr(run, generated)
            assert str(error.value) == (
                f"{run.path} holds nothing generated: its judge was read at the end of the prompt"
            )
        run.close()


def test_every_dataset_is_flat_and_has_the_checksum_of_its_bytes(tmp_path):
    write_run(tmp_path / "run.h5", full_header()).close()
    with h5py.File(tmp_path / "run.h5") as file:
        seen = {}

        def check(name, node):
            if isinstance(node, h5py.Dataset):
                assert node.attrs["sha256"] == hashlib.sha256(node[()].tobytes()).hexdigest(), name
                assert node.fletcher32, name
                assert node.dtype.kind in "iufS", name
                seen[name] = node

        file.visititems(check)
        for name in EXTRAS:
            chunks = seen[f"capture/{name}"].chunks
            assert chunks[2 if name == "last_positions" else 1] == 1
        assert seen["generation/text/values"].dtype == np.uint8
        assert seen["generation/token_ids/offsets"].shape == (N + 1,)
        assert seen["readings/position"].dtype == np.int32
        assert json.loads(file.attrs["note"]) == {"a": 1}
        assert not file.attrs["pairwise"]


def test_bfloat16_states_are_stored_as_bits_and_means_are_not(tmp_path):
    header = full_header(residual_dtype="bfloat16", attrs=None)
    run = write_run(tmp_path / "run.h5", header)
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["capture/last_positions"].dtype == np.uint16
        assert file["capture/last_positions"].attrs["dtype"] == "bfloat16"
        assert file["capture/response_mean"].dtype == np.float32
    # Quarters below 16 are exact in bfloat16.
    np.testing.assert_array_equal(run.extra("last_positions")[:5], extras_of(range(5))["last_positions"])
    assert np.isnan(run.extra("last_positions")[5]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_last_positions_without_residuals_have_the_type_of_the_weights(tmp_path, dtype):
    header = full_header(residual_dtype=None, attrs={"dtype": dtype})
    with write_run(tmp_path / "run.h5", header) as run, pytest.raises(RunFileError, match="holds no residuals"):
        run.residual()
    with h5py.File(tmp_path / "run.h5") as file:
        assert file["capture/last_positions"].attrs["dtype"] == dtype
        assert file["capture/last_positions"].dtype == (np.uint16 if dtype == "bfloat16" else np.float32)


def test_rows_without_a_score_are_nan_whatever_they_hold(tmp_path):
    header = full_header()
    status = np.array([Status.OK, Status.NO_SCORE, Status.OK], dtype=np.uint8)
    shard = full_shard(header, ROWS[0], status=status)
    before = shard.residual.copy()
    with RunWriter.open(tmp_path / "run.h5", header, "plan") as writer:
        writer.write_shard(0, shard)
        writer.write_run({})
    np.testing.assert_array_equal(shard.residual, before)
    run = probes.open_run(tmp_path / "run.h5")
    assert run.status[0] == Status.NO_SCORE
    for values in (run.residual(), run.score_logits("raw"), run.final_mass, *map(run.extra, EXTRAS)):
        assert np.isnan(values[0]).all()
        assert np.isfinite(values[[3, 6]]).all()
    # What was said without giving a score is worth reading.
    assert run.generated_text[0] == ANSWERS[0]


def test_the_bytes_do_not_depend_on_blocks_shards_or_order(tmp_path, monkeypatch):
    header = full_header()
    write_run(tmp_path / "whole.h5", header).close()
    write_run(tmp_path / "other.h5", header, shards=([0, 1], [4, 2, 6], [3])).close()
    assert datasets(tmp_path / "other.h5") == datasets(tmp_path / "whole.h5")
    monkeypatch.setattr(merge, "_BLOCK_BYTES", 64)
    write_run(tmp_path / "small.h5", header).close()
    assert datasets(tmp_path / "small.h5") == datasets(tmp_path / "whole.h5")


def test_an_unfinished_run_with_text_resumes_to_the_same_bytes(tmp_path):
    header = full_header()
    write_run(tmp_path / "whole.h5", header).close()
    path = tmp_path / "run.h5"
    write_run(path, header, ROWS[:1], finish=False).close()
    with probes.open_run(path) as partial:
        assert partial.generated_text[6] == ANSWERS[6]
        assert partial.generated_text[4] == ""
        assert partial.item_status.tolist() == [0, 4, 4, 0, 4, 4, 0]
    write_run(path, header).close()
    assert datasets(path) == datasets(tmp_path / "whole.h5")
    assert not path.with_name("run.h5.partial").exists()


def test_an_unfinished_run_with_other_extras_is_refused(tmp_path):
    path = tmp_path / "run.h5"
    write_run(path, full_header(), ROWS[:1], finish=False).close()
    with pytest.raises(RunFileError, match="holds an unfinished run that differs in extra readings; resume it"):
        write_run(path, full_header(extras=("entropy",)))


def test_shards_may_be_written_from_another_thread(tmp_path):
    header, path = full_header(), tmp_path / "run.h5"
    write_run(tmp_path / "whole.h5", header).close()
    with RunWriter.open(path, header, "plan") as writer:
        for number, rows in enumerate(ROWS):
            thread = threading.Thread(target=writer.write_shard, args=(number, full_shard(header, rows)))
            thread.start()
            thread.join()
        writer.write_run({"note": {"a": 1}})
    assert datasets(path) == datasets(tmp_path / "whole.h5")


def test_a_run_of_empty_answers_only(tmp_path):
    header = full_header()
    empty = {"generated": [np.empty(0, dtype=np.int32)] * 3, "texts": [""] * 3}
    for finish in (False, True):
        with write_run(tmp_path / "run.h5", header, finish=finish, **empty) as run:
            assert run.generated_text == [""] * N
            assert [len(ids) for ids in run.generated_ids] == [0] * N


def test_shards_that_are_cut_short_or_foreign_are_refused(tmp_path):
    header, path = full_header(), tmp_path / "run.h5"
    write_run(path, header, finish=False).close()
    shard = path.with_name("run.h5.partial") / "shard-00001.h5"
    whole = shard.read_bytes()
    with probes.open_run(path) as run:
        shard.write_bytes(whole[:2500])
        with pytest.raises(RunFileError, match=r"cannot read .*shard-00001.h5 \(it is cut short\); resume the capture"):
            run.residual()
    with pytest.raises(RunFileError, match=r"shard-00001.h5 cannot be read as HDF5"):
        probes.open_run(path)
    shard.write_bytes(whole)
    with h5py.File(shard, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(RunFileError, match="is a link to elsewhere"):
        probes.open_run(path)
    with h5py.File(shard, "r+") as file:
        del file["elsewhere"]
        file.create_dataset("chunked", data=np.arange(10), chunks=(5,))
    with pytest.raises(RunFileError, match="chunked is stored in chunks"):
        probes.open_run(path)


def test_memory_does_not_grow_with_the_number_of_readings(tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "_BLOCK_BYTES", 4 << 20)
    wide = np.zeros((200, len(LAYERS), 1024), dtype=np.float32)
    peaks = []
    for n in (400, 4000):
        header, rows = fake_header(n), np.random.default_rng(0).permutation(n).reshape(-1, 200)
        with RunWriter.open(tmp_path / f"{n}.h5", header, "plan") as writer:
            for number, some in enumerate(rows):
                writer.write_shard(number, replace(fake_shard(header, some), residual=wide))
            tracemalloc.start()
            writer.write_run({})
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] + 4000 * 64, "a block, and some whole numbers a reading"

"""A run for other tools: the same numbers everywhere, and no more of them read than are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file

from probes.cli import main
from probes.errors import RunFileError
from probes.fitted import expected_values
from probes.items import Item, Items
from probes.store import export
from probes.store.format import bfloat16_bits
from probes.store.run import Run
from tests.fake_run import D_MODEL, LAYERS, fake_header, fake_shard
from tests.test_readings import logits_of, pair_header, written
from tests.test_shards import ANSWERS, EXTRAS, N, full_header, write_run

ITEMS = Items(
    [
        Item(id="a", fields={"response": "x"}, criterion="c", group="g", system="s", split="test", human=(1, 2)),
        Item(id="b", fields={"response": "y"}, human=(4,)),
        Item(id="ü", fields={"response": "z"}),
    ]
)


@pytest.fixture(params=["finished", "unfinished"])
def run(request, tmp_path):
    """Seven readings with everything that can be captured; the sixth was not."""
    with write_run(tmp_path / "run.h5", full_header(), finish=request.param == "finished") as opened:
        yield opened


@pytest.fixture
def rated(tmp_path):
    """Three items: rated by two, by one and by nobody; the second was not captured."""
    values = np.array([1.5, 4.0, np.nan])
    header = fake_header(3, items=ITEMS, human_value=values, residual_dtype="bfloat16")
    with written(tmp_path / "run.h5", header, fake_shard(header, [0, 2])) as opened:
        yield opened


def test_the_table_has_one_row_a_reading(rated):
    table = export.to_pandas(rated)
    assert table["id"].tolist() == ["a", "b", "ü"]
    assert table.loc[0, ["criterion", "group", "system", "split"]].tolist() == ["c", "g", "s", "test"]
    assert table.loc[1, ["criterion", "group", "system", "split"]].tolist() == [""] * 4
    assert table["status"].tolist() == ["ok", "not_captured", "ok"]
    assert table["reading"].tolist() == [0, 1, 2]
    assert table["sample"].tolist() == [0, 0, 0]
    assert table["n_tokens"].tolist() == [2, 3, 4]
    assert table["position"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(table["final_mass"], [0, np.nan, 2])
    np.testing.assert_array_equal(table["human"], [1.5, 4, np.nan])
    np.testing.assert_array_equal(table["human_value"], [1.5, 4, np.nan])
    assert table["n_raters"].tolist() == [2, 1, 0]
    last = rated.score_logits("norm")[:, -1]
    np.testing.assert_allclose(table["expected"], expected_values(last, np.arange(1.0, 6.0)))
    assert table["label"].isna().tolist() == [False, True, False]
    assert table.loc[2, "label"] == "12345"[last[2].argmax()]
    assert "swapped" not in table
    assert "generated_text" not in table


def test_the_table_of_pairs_says_which_order_was_shown(tmp_path):
    header = pair_header()
    logits = logits_of([[2, 0], [0, 1], [1, 0], [0, 3]])
    with written(tmp_path / "run.h5", header, fake_shard(header, [0, 1, 2, 3], logits)) as run:
        table = run.to_pandas()
    assert table["id"].tolist() == ["i0", "i0", "i1", "i1"]
    assert table["swapped"].tolist() == [False, True, False, True]
    # Labels ascend by value: B is worth 0, A is worth 1.
    assert table["label"].tolist() == ["B", "A", "B", "A"]


def test_the_table_holds_generated_text(run):
    assert export.to_pandas(run)["generated_text"].tolist() == [ANSWERS.get(row, "") for row in range(N)]


def test_a_run_without_numbers_is_a_table_as_well(tmp_path):
    header = fake_header(2, status=np.array([2, 2], dtype=np.uint8))
    with written(tmp_path / "run.h5", header) as run:
        table = export.to_pandas(run)
        assert table["status"].tolist() == ["too_long", "too_long"]
        assert table[["final_mass", "expected", "label"]].isna().all().all()
        assert table["label"].dtype == table["id"].dtype
        assert "residual" not in export.to_xarray(run)
        export.to_parquet(run, tmp_path / "t.parquet")
        assert pd.read_parquet(tmp_path / "t.parquet")["status"].tolist() == ["too_long", "too_long"]
        with pytest.raises(RunFileError, match="holds no numbers"):
            export.to_safetensors(run, tmp_path / "t.safetensors")


def test_the_layer_table_has_one_row_a_reading_and_layer(rated):
    table = export.layer_table(rated)
    assert len(table) == 3 * len(LAYERS)
    assert table["layer"].tolist() == [*LAYERS] * 3
    assert table["layer_index"].tolist() == [0, 1, 2] * 3
    assert table["reading"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert table["id"].tolist() == ["a"] * 3 + ["b"] * 3 + ["ü"] * 3
    found = table[(table["id"] == "ü") & (table["layer"] == "1")].iloc[0]
    logits = rated.score_logits("norm")[2, 1].astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found[[f"p_{label}" for label in "12345"]].astype(float), chances)
    np.testing.assert_allclose(found["expected"], chances @ np.arange(1, 6))
    assert table["expected"].isna().sum() == len(LAYERS)


@pytest.mark.parametrize("block", [1, 32 << 20])
def test_parquet_holds_the_table_and_the_logits(run, tmp_path, monkeypatch, block):
    monkeypatch.setattr(export, "_BLOCK_BYTES", block)
    path = tmp_path / "out" / "run.parquet"
    export.to_parquet(run, path)
    expected = export.to_pandas(run)
    stored = pd.read_parquet(path)
    pd.testing.assert_frame_equal(stored[[*expected]], expected)
    file = parquet.ParquetFile(path)
    assert file.num_row_groups == (N if block == 1 else 1)
    columns = [f"logits.{lens}.{layer}" for lens in ("raw", "norm") for layer in LAYERS]
    assert [*stored] == [*expected, *columns]
    for lens in ("raw", "norm"):
        logits = run.score_logits(lens)
        for number, layer in enumerate(LAYERS):
            column = stored[f"logits.{lens}.{layer}"]
            assert column.isna().tolist() == [row == 5 for row in range(N)]
            found = np.stack([np.full(5, np.nan) if cell is None else cell for cell in column])
            np.testing.assert_array_equal(found, logits[:, number])
    assert str(file.schema_arrow.field("logits.raw.1").type).startswith("fixed_size_list")
    provenance = json.loads(file.schema_arrow.metadata[b"provenance"])
    assert provenance["judge_hash"] == "judge"
    assert provenance["config"] == {"model": "fake"}
    assert provenance["layers"] == list(LAYERS)
    assert provenance["is_complete"] is run.is_complete


@pytest.mark.parametrize("block", [1, 32 << 20])
def test_csv_holds_the_table(run, tmp_path, monkeypatch, block):
    monkeypatch.setattr(export, "_BLOCK_BYTES", block * (4 << 10))
    export.to_csv(run, tmp_path / "run.csv")
    expected = export.to_pandas(run)
    found = pd.read_csv(tmp_path / "run.csv", keep_default_na=False, na_values={"expected": "", "final_mass": ""})
    assert [*found] == [*expected]
    assert found["generated_text"].tolist() == expected["generated_text"].tolist()
    np.testing.assert_allclose(found["expected"], expected["expected"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [1, 32 << 20])
def test_safetensors_hold_the_same_bits(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(export, "_BLOCK_BYTES", block)
    header = fake_header(3, items=ITEMS, residual_dtype=dtype, human_value=np.array([1.5, 4.0, np.nan]))
    path = tmp_path / "run.safetensors"
    with written(tmp_path / "run.h5", header, fake_shard(header, [0, 2])) as run:
        export.to_safetensors(run, path)
        tensors = load_file(path)
        for layer in LAYERS:
            found, expected = tensors[f"residual.{layer}"], run.residual(layer=layer)
            assert found.dtype == getattr(torch, dtype)
            if dtype == "bfloat16":
                np.testing.assert_array_equal(found.view(torch.uint16).numpy(), bfloat16_bits(expected))
            else:
                np.testing.assert_array_equal(found.numpy().view(np.uint32), expected.view(np.uint32))
        expected = {
            "score_logits.norm": run.score_logits("norm"),
            "final_mass": run.final_mass,
            "human": run.human,
            "human_value": run.human_value,
            "readings.item": run.readings.item,
            "readings.sample": run.readings.sample,
            "readings.position": run.position,
            "readings.status": run.status,
            "readings.swapped": run.readings.swapped,
        }
        assert set(tensors) == {*expected, *(f"residual.{layer}" for layer in LAYERS)}
        for name, values in expected.items():
            np.testing.assert_array_equal(tensors[name].numpy(), values, err_msg=name)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["ids"]) == ["a", "b", "ü"]
    assert json.loads(metadata["layers"]) == list(LAYERS)
    assert json.loads(metadata["labels"]) == [*"12345"]
    assert json.loads(metadata["provenance"])["residual_dtype"] == dtype
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert start % 8 == 0
    for name, values in tensors.items():  # each lies where memory can be mapped as its type
        assert json.loads(raw[8:start])[name]["data_offsets"][0] % values.element_size() == 0, name


def test_safetensors_of_some_layers_and_items(run, tmp_path):
    path = tmp_path / "run.safetensors"
    export.to_safetensors(run.select(items=[1, 5]), path, layers=["2", "embed"])
    tensors = load_file(path)
    assert {name for name in tensors if name.startswith("residual")} == {"residual.embed", "residual.2"}
    np.testing.assert_array_equal(tensors["residual.2"].numpy(), run.residual(layer=2, readings=[1, 5]))
    np.testing.assert_array_equal(tensors["score_logits.raw"].numpy(), run.score_logits("raw")[[1, 5]][:, [2, 0]])
    assert tensors["readings.item"].tolist() == [0, 1]


def test_a_run_without_residuals_has_no_safetensors(tmp_path):
    header = fake_header(2, residual_dtype=None)
    shard = replace(fake_shard(header, [0, 1]), residual=None)
    with (
        written(tmp_path / "run.h5", header, shard) as run,
        pytest.raises(RunFileError, match="holds no residuals; capture again with residuals=True"),
    ):
        export.to_safetensors(run, tmp_path / "run.safetensors")
    assert not list(tmp_path.glob("*.safetensors*"))


def test_too_many_ids_for_safetensors_are_refused(rated, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LONGEST_HEADER", 100)
    with pytest.raises(RunFileError, match="ids of 3 items do not fit into a safetensors header; select fewer items"):
        export.to_safetensors(rated, tmp_path / "run.safetensors")


def test_an_export_that_fails_leaves_what_was_there(run, tmp_path, monkeypatch):
    path = tmp_path / "run.parquet"
    path.write_text("before")

    def broken(*_, **__):
        raise RuntimeError("stop")

    monkeypatch.setattr(Run, "score_logits", broken)
    with pytest.raises(RuntimeError, match="stop"):
        export.to_parquet(run, path)
    assert path.read_text() == "before"
    assert not list(tmp_path.glob("*.writing"))


@pytest.mark.parametrize("suffix", ["safetensors", "parquet", "csv"])
def test_exports_read_a_block_at_a_time(tmp_path, monkeypatch, suffix):
    n = 300
    header = fake_header(n)
    monkeypatch.setattr(export, "_BLOCK_BYTES", 1 << 10 if suffix == "safetensors" else 1 << 18)
    counts = read_counts(monkeypatch)
    with written(tmp_path / "run.h5", header, fake_shard(header, np.arange(n))) as run:
        counts.clear()
        export.export(run, tmp_path / f"run.{suffix}")
    assert {name for name, _ in counts} >= {"score_logits"} | ({"residual"} if suffix == "safetensors" else set())
    assert max(shape[0] for _, shape in counts) <= 64


def read_counts(monkeypatch):
    """Which layers and how many readings are read through a run, and of what."""
    counts = []
    for name in ("residual", "score_logits", "extra"):
        original = getattr(Run, name)

        def counted(self, *arguments, _original=original, _name=name, **named):
            values = _original(self, *arguments, **named)
            if len(values):
                counts.append((_name, values.shape))
            return values

        monkeypatch.setattr(Run, name, counted)
    return counts


def test_xarray_has_named_axes_and_the_same_numbers(run):
    found = run.to_xarray()
    assert dict(found.sizes) == {
        "item": N,
        "reading": N,
        "layer": 3,
        "label": 5,
        "rater": 1,
        "d_model": D_MODEL,
        "back": 2,
    }
    np.testing.assert_array_equal(found.residual, run.residual())
    for lens in ("raw", "norm"):
        np.testing.assert_array_equal(found[f"score_logits_{lens}"], run.score_logits(lens))
    for name in EXTRAS:
        np.testing.assert_array_equal(found[name], run.extra(name))
    np.testing.assert_array_equal(found.final_mass, run.final_mass)
    assert found.residual.dims == ("reading", "layer", "d_model")
    assert found.last_positions.dims == ("reading", "back", "layer", "d_model")
    assert found.back.values.tolist() == [-1, 0]
    assert found.layer.values.tolist() == list(LAYERS)
    assert found.label.values.tolist() == [*"12345"]
    assert found.value.values.tolist() == [1, 2, 3, 4, 5]
    assert found.status.values.tolist() == run.status.tolist()
    provenance = json.loads(found.attrs["provenance"])
    assert provenance["judge_hash"] == found.attrs["judge_hash"] == "judge"


def test_xarray_joins_readings_to_their_items(rated):
    found = export.to_xarray(rated)
    assert found.residual.dtype == np.float32
    np.testing.assert_array_equal(found.residual.sel(layer="2"), rated.residual(layer=2))
    np.testing.assert_array_equal(found.human_value.isel(item=found.item_number), [1.5, 4, np.nan])
    np.testing.assert_array_equal(found.human.sel(item="a"), [1, 2])
    assert found["id"].values.tolist() == ["a", "b", "ü"]
    assert found.criterion.values.tolist() == ["c", "", ""]


def test_xarray_reads_what_is_indexed_and_no_more(run, monkeypatch):
    counts = read_counts(monkeypatch)
    found = export.to_xarray(run)
    repr(found)
    part = found.residual.sel(layer="2").isel(reading=slice(0, 3))
    assert counts == []
    np.testing.assert_array_equal(part.values, run.residual()[:3, 2])
    assert counts[0] == ("residual", (3, 1, D_MODEL))
    counts.clear()
    for key in (
        {"reading": 4},
        {"layer": slice(None, None, -1)},
        {"layer": [2, 0, 2], "reading": [6, 0, 6, 5]},
        {"reading": slice(5, 1, -2), "d_model": 1},
        {"reading": slice(0, 0)},
        {"layer": slice(0, 0)},
        {"d_model": [3, 1], "layer": 0, "reading": -1},
    ):
        expected = run.residual()
        for axis, name in enumerate(("reading", "layer", "d_model")):
            chosen = np.arange(expected.shape[axis])[key.get(name, slice(None))]
            expected = expected.take(np.atleast_1d(chosen), axis)
        values = found.residual.isel(key).values
        np.testing.assert_array_equal(values, expected.reshape(values.shape), err_msg=str(key))
    counts.clear()
    values = found.last_positions.isel(back=-1, reading=[2, 1], layer=0).values
    assert counts == [("extra", (2, 2, 1, D_MODEL))]
    np.testing.assert_array_equal(values, run.extra("last_positions")[[2, 1], -1, 0])


def test_the_command_line_exports(run, tmp_path, capsys):
    for suffix in ("parquet", "csv", "safetensors"):
        main(["export", str(run.path), "--out", str(tmp_path / f"run.{suffix}"), "--layer", "1"])
        assert capsys.readouterr().out == f"{tmp_path / 'run'}.{suffix}\n"
    assert "logits.raw.1" in pd.read_parquet(tmp_path / "run.parquet")
    assert "logits.raw.2" not in pd.read_parquet(tmp_path / "run.parquet")
    assert "residual.1" in load_file(tmp_path / "run.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run.path), "--out", "run.xlsx"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: cannot export to run.xlsx: give the file a name that ends in .parquet, .csv, .safetensors\n"
    )


def test_exports_need_no_torch(run, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import probes\n"
        f"run = probes.open_run({str(run.path)!r})\n"
        f"for suffix in ('parquet', 'csv', 'safetensors'): probes.export(run, {str(tmp_path / 'x')!r} + '.' + suffix)\n"
        "run.to_xarray().residual[0].values\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

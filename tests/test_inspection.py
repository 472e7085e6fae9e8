"""``probes inspect`` and ``probes verify`` on the command line, and what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import probes
from probes.errors import RunFileError
from probes.inspection import inspect_run
from probes.inspection_text import format_inspection
from tests.test_cli import run as command
from tests.valid_run import stamp, write_valid


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("inspect") / "run.h5", dtype="bfloat16")


@pytest.fixture
def copy(run_path, tmp_path):
    return Path(shutil.copy(run_path, tmp_path / "run.h5"))


def rewrite(path: Path, **changes) -> Path:
    """Change JSON attributes of a run."""
    with h5py.File(path, "r+") as file:
        for name, value in changes.items():
            old = json.loads(file.attrs[name]) if name in file.attrs else None
            file.attrs[name] = json.dumps(old | value if isinstance(value, dict) and old else value)
    return path


def test_a_run_on_one_screen(run_path, tmp_path):
    lines = format_inspection(inspect_run(run_path)).splitlines()
    assert lines[0] == f"run         {run_path}"
    assert lines[1].startswith("            format version 1, 1")
    assert lines[2:12] == [
        "model       tiny, revision main",
        "            bfloat16, weights 0123456789ab",
        "prompt      template rubric, condition direct",
        "scale       1..5, human scores -4 to 4",
        "items       4 of 6 used; 1 too long, 1 without human scores",
        "            2 criteria (clarity, depth); 3 groups; 3 systems; 2 splits (test, fit); 2 raters",
        "readings    5 captured, 1 too long",
        "layers      d_model 8; embed, 1 .. 3",
        "lenses      raw, norm",
        "extras      scale_mass, entropy, last_positions, response_mean",
    ]
    assert lines[12].startswith("on disk     last_positions bfloat16 784 bytes, response_mean float32 784 bytes, ")
    assert lines[-4:] == [
        "captured    2026-01-02T03:04:05+00:00 on cpu, attention sdpa",
        "with        h5py 3.16.0, numpy 2.4.6, probes 0.1.0, python 3.11.7",
        "deviation   final logits 1.0e-06",
        "allowed     logits 1.0e-04 x the largest logit, 1.0e-04 at least",
    ]


def test_pairs_and_samples_say_so(tmp_path):
    pairs = format_inspection(inspect_run(write_valid(tmp_path / "pairs.h5", "pairs")))
    assert "A=0,tie=0.5,B=1, human scores 0 to 1; pairs, A = first is better" in pairs
    assert "items       5 of 6 used; 1 without human scores" in pairs
    assert "readings    12 captured" in pairs
    sampled = format_inspection(inspect_run(write_valid(tmp_path / "samples.h5", "generated")))
    assert "condition generate, temperature 0, 2 samples" in sampled


def test_an_unfinished_run(tmp_path):
    write_valid(tmp_path / "run.h5", finish=False)
    found = inspect_run(tmp_path / "run.h5")
    assert not found.is_complete
    lines = format_inspection(found).splitlines()
    assert lines[0] == f"run         {tmp_path / 'run.h5.partial'}"
    assert lines[1].startswith("            unfinished: 4 of 6 readings finished, ")
    assert lines[1].endswith("; the same command resumes it")
    assert "on disk     1 finished shard, " in "\n".join(lines)
    assert "items       2 of 6 used; 1 too long, 2 not captured, 1 without human scores" in lines


def test_a_run_that_has_only_begun(tmp_path):
    write_valid(tmp_path / "run.h5", finish=False)
    manifest = tmp_path / "run.h5.partial" / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(text | {"shards": {}}))
    assert "unfinished: 1 of 6 readings finished" in format_inspection(inspect_run(tmp_path / "run.h5"))


def test_a_merged_run_names_its_parts(copy):
    part = {"created": "2026-01-01T00:00:00+00:00", "config": {}, "versions": {}, "deviations": {}, "n_items": 2}
    rewrite(copy, parts=[part] * 3)
    assert "parts       3: 2 items of 2026-01-01T00:00:00+00:00, 2 items of 2026" in format_inspection(
        inspect_run(copy)
    )


def test_everything_at_once_still_fits_on_a_screen(copy):
    long = "long " * 60
    part = {"created": long, "config": {}, "versions": {}, "deviations": {}, "n_items": 2}
    rewrite(
        copy,
        parts=[part] * 30,
        config={"model": long, "revision": long, "quantization": "8bit", "device": long},
        versions={f"package-{k}": "1.2.3" for k in range(30)},
        deviations={f"measure_{k}": 0.1 for k in range(30)} | {"fallback": [long] * 4},
        tolerances={"residual": 1e-5},
    )
    folder = copy.parent / ("deep" * 40)
    folder.mkdir()
    lines = format_inspection(inspect_run(shutil.move(copy, folder))).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert lines[0].endswith("/run.h5")


def test_what_is_printed_holds_no_control_characters(copy):
    rewrite(copy, config={"model": "\x1b[2J\x07judge", "device": "cpu\r"})
    shown = format_inspection(inspect_run(copy))
    assert shown.replace("\n", "").isprintable()
    assert "\\x1b[2J\\x07judge" in shown


def test_a_selection_of_layers_names_them(copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["layers"] = '["1", "3"]'
    assert "layers      d_model 8; 1, 3 of embed, 1 .. 3" in format_inspection(inspect_run(copy))


def test_the_description_is_json(run_path, capsys):
    assert command("inspect", run_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items_by_status"] == {"ok": 5, "too_long": 1}
    assert found["n_used"] == 4
    assert found["splits"] == {"test": 3, "fit": 3}
    assert found["attrs"]["config"]["model"] == "tiny"
    assert found["attrs"]["layers"] == ["embed", "1", "2", "3"]
    sizes = {name: (dtype, size) for name, dtype, size in found["datasets"]}
    assert sizes["capture/residual"][0] == "bfloat16"
    with h5py.File(run_path) as file:
        assert sizes["capture/residual"][1] == file["capture/residual"].id.get_storage_size()


def test_the_command_prints_what_the_function_finds(run_path, capsys):
    assert command("inspect", run_path) == 0
    assert capsys.readouterr().out == format_inspection(probes.inspect_run(run_path)) + "\n"


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert command("inspect", tmp_path / "none.h5") == 2
    assert capsys.readouterr().err.startswith(f"error: no such file: {tmp_path / 'none.h5'}; give the path")
    with pytest.raises(RunFileError, match="no such file"):
        inspect_run(tmp_path / "none.h5")


def test_a_status_that_does_not_exist_asks_to_verify(copy):
    with h5py.File(copy, "r+") as file:
        file["readings/status"][0] = 9
    with pytest.raises(RunFileError, match="a reading has the status 9, which no run has; see `probes verify`"):
        inspect_run(copy)


@pytest.mark.parametrize("flags", [[], ["--untrusted"]], ids=["trusted", "untrusted"])
def test_verify_lists_faults_and_exits_with_two(copy, capsys, flags):
    assert command("verify", copy, *flags) == 0
    assert capsys.readouterr().out == f"{copy}: no faults\n"
    assert command("verify", copy, "--json", *flags) == 0
    assert json.loads(capsys.readouterr().out) == []
    with h5py.File(copy, "r+") as file:
        del file.attrs["created"]
        values = file["capture/entropy"][()]
        values[1] = np.nan
        file["capture/entropy"][...] = values
    stamp(copy)
    assert command("verify", copy, *flags) == 2
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[:2] == [
        "/@created: is missing",
        "/capture/entropy row 1 (item 'item-1'): has status 0 but is not finite",
    ]
    assert command("verify", copy, "--json", *flags) == 2
    assert json.loads(capsys.readouterr().out)[0] == {"where": "/@created", "what": "is missing"}


def test_verify_of_no_file_is_one_line(tmp_path, capsys):
    assert command("verify", tmp_path / "none.h5") == 2
    assert capsys.readouterr().err.startswith("error: no such file: ")

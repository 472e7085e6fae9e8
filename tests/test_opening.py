"""Opening a capture that finishes at that very moment: its folder goes, and its file is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import probes
from probes.errors import RunFileError
from probes.store import opening
from probes.store.lock import remove_folder
from tests.valid_run import write_valid


@pytest.fixture
def unfinished(tmp_path):
    """The folder of an unfinished capture, and a function that finishes it."""
    write_valid(tmp_path / "run.h5", finish=False)
    whole = write_valid(tmp_path / "elsewhere.h5")

    def finish():
        if whole.exists():
            whole.replace(tmp_path / "run.h5")
            remove_folder(tmp_path / "run.h5.partial")

    return tmp_path / "run.h5.partial", finish


# What is called on the way, from the first look at the path to the last shard.
MOMENTS = ("partial_folder", "open_partial", "read_manifest", "open_checked", "check_format", "ShardReader")


@pytest.mark.parametrize("name", ["run.h5", "run.h5.partial"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_capture_that_finishes_while_it_is_opened(unfinished, monkeypatch, moment, before, name):
    folder, finish = unfinished
    called = getattr(opening, moment)

    def wrapped(*args, **options):
        if before:
            finish()
        result = called(*args, **options)
        finish()
        return result

    monkeypatch.setattr(opening, moment, wrapped)
    with probes.open_run(folder.with_name(name)) as run:
        assert run.n_items == 6
        assert str(run.path) in {str(folder), str(folder.with_name("run.h5"))}


def test_between_two_looks_at_the_path(unfinished, monkeypatch):
    folder, finish = unfinished
    is_dir = Path.is_dir

    def look(path):
        found = is_dir(path)
        if path == folder:
            finish()
        return found

    monkeypatch.setattr(Path, "is_dir", look)
    for name in ("run.h5", "run.h5.partial"):
        with probes.open_run(folder.with_name(name)) as run:
            assert run.path.name == "run.h5"


def test_what_is_not_there_is_named(tmp_path):
    for name in ("run.h5", "run.h5.partial"):
        with pytest.raises(RunFileError) as error:
            probes.open_run(tmp_path / name)
        assert str(error.value).startswith(f"no such file: {tmp_path / name}; ")


def test_a_damaged_folder_is_not_passed_over_for_an_older_file(unfinished):
    folder, _ = unfinished
    write_valid(folder.with_name("run.h5").with_suffix(".old")).replace(folder.with_name("run.h5"))
    (folder / "header.h5").write_bytes(b"torn")
    with pytest.raises(RunFileError, match=r"header\.h5"):
        probes.open_run(folder)
    with probes.open_run(folder.with_name("run.h5")) as run:
        assert run.path.name == "run.h5"

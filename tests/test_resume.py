"""Runs that were cut short, damaged, changed or finished before: what is captured again, and what is refused."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

import probes
from probes.capturing import passes, pipeline
from probes.capturing.engine import Engine
from probes.capturing.job import Settings, make_header, prepare
from probes.errors import RunFileError
from probes.store.format import Status
from tests import tiny
from tests.test_capture import TEMPLATE, datasets, make_judge


def test_a_finished_run_is_not_captured_again(booted, tmp_path, monkeypatch):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items, path).close()
    before = path.read_bytes()
    monkeypatch.setattr(Engine, "states", lambda *args: pytest.fail("captured again"))
    probes.capture(judge, items, path).close()
    assert path.read_bytes() == before
    with pytest.raises(RunFileError) as error:
        probes.capture(judge, items[:5], path)
    assert str(error.value) == (
        f"{path} exists and differs in items (20 there, 5 asked for, 0 of them new); choose another path, or "
        "overwrite=True (--overwrite) to replace it"
    )


def test_overwrite_replaces_a_run(booted, tmp_path):
    judge, path = make_judge(booted), tmp_path / "run.h5"
    probes.capture(judge, tiny.word_items(), path).close()
    assert len(probes.capture(judge, tiny.word_items(5), path, overwrite=True).items) == 5


def test_an_interrupted_run_resumes_to_the_same_bytes(booted, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 3)
    judge, items = make_judge(booted), tiny.word_items()
    whole = probes.capture(judge, items, tmp_path / "whole.h5", batch_tokens=60)
    original, calls = Engine.run_packed, [0]

    def dies(self, prompts, *options):
        calls[0] += 1
        if calls[0] == 7:
            raise KeyboardInterrupt
        return original(self, prompts, *options)

    path = tmp_path / "run.h5"
    monkeypatch.setattr(Engine, "run_packed", dies)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(judge, items, path, batch_tokens=60)
    assert not path.exists()
    with probes.open_run(path) as partial:
        assert not partial.is_complete
        done = partial.status == Status.OK
        assert 0 < done.sum() < len(items)
        np.testing.assert_array_equal(partial.score_logits("norm")[done], whole.score_logits("norm")[done])
        assert np.isnan(partial.residual(layer="2")[~done]).all()
    rerun = []
    monkeypatch.setattr(Engine, "run_packed", lambda self, p, *options: rerun.extend(p) or original(self, p, *options))
    resumed = probes.capture(judge, items, path, batch_tokens=60)
    assert datasets(path) == datasets(tmp_path / "whole.h5")
    assert resumed.is_complete
    assert not path.with_name("run.h5.partial").exists()
    assert len(rerun) == (~done).sum(), (
        "exactly the unfinished items run again, and the first pass is not checked twice"
    )


def test_a_killed_process_resumes(tmp_path):
    """SIGKILL between two shards; the same command finishes the run with equal bytes."""
    tiny.save_model(tmp_path / "model")
    script = textwrap.dedent(
        """
        import os, signal, sys
        import probes
        from probes.capturing import plan
        from probes.store.writer import RunWriter
        from tests import tiny
        from tests.test_capture import TEMPLATE
        plan._SHARD_ROWS = 3
        kill_at = int(sys.argv[2])
        close = RunWriter.close_shard
        def killed(self, number, shard):
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            close(self, number, shard)
        RunWriter.close_shard = killed
        model, path = sys.argv[3], sys.argv[1]
        tokenizer = tiny.tokenizer()
        judge = probes.Judge.load(model, tokenizer=tokenizer, template=TEMPLATE, human_range="-4..4")
        probes.capture(judge, tiny.word_items(), path, batch_tokens=60)
        """
    )

    def start(path, kill_at):
        command = [sys.executable, "-c", script, str(path), str(kill_at), str(tmp_path / "model")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    killed = start(tmp_path / "run.h5", 2)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "run.h5.partial").glob("shard-*.h5"))) == 2
    again = start(tmp_path / "run.h5", -1)
    assert again.returncode == 0, again.stderr
    assert start(tmp_path / "whole.h5", -1).returncode == 0
    assert datasets(tmp_path / "run.h5") == datasets(tmp_path / "whole.h5")


def test_a_damaged_shard_runs_again(booted, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 3)
    judge, items = make_judge(booted), tiny.word_items()
    probes.capture(judge, items, tmp_path / "whole.h5", batch_tokens=60)
    path = tmp_path / "run.h5"
    monkeypatch.setattr(pipeline.RunWriter, "write_run", tiny.interrupted)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(judge, items, path, batch_tokens=60)
    monkeypatch.undo()
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 3)
    shards = sorted((tmp_path / "run.h5.partial").glob("shard-*.h5"))
    shards[0].unlink()
    torn = bytearray(shards[1].read_bytes())
    torn[len(torn) // 2] ^= 0xFF
    shards[1].write_bytes(torn)
    shards[2].write_bytes(shards[2].read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        probes.capture(judge, items, path, batch_tokens=60)
    assert caplog.text.count("is missing or damaged; its passes run again") == 3
    assert datasets(path) == datasets(tmp_path / "whole.h5")


def test_an_unfinished_run_of_another_judge_is_refused(booted, tmp_path, monkeypatch):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    monkeypatch.setattr(pipeline.RunWriter, "write_run", tiny.interrupted)
    with pytest.raises(KeyboardInterrupt):
        probes.capture(judge, items, path)
    monkeypatch.undo()
    other = make_judge(booted, template=replace(TEMPLATE, user="How good is {{ response }}?"))
    with pytest.raises(RunFileError) as error:
        probes.capture(other, items, path)
    assert str(error.value) == (
        f"{path}.partial holds an unfinished run that differs in judge.template.user, the items or their prompts; "
        f"resume it with the settings it was started with, or remove {path}.partial to start again"
    )
    assert probes.capture(other, items, path, overwrite=True).judge_hash == other.digest()


def test_a_second_writer_is_refused_at_once(booted, tmp_path):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    job = prepare(judge, items, Settings(("norm",)))
    header = make_header(job)
    with pipeline.RunWriter.open(path, header, job.plan.digest()), pytest.raises(RunFileError) as error:
        probes.capture(judge, items, path)
    assert str(error.value) == f"another process is writing {path}; wait for it, or choose another output path"


def regrouped(items: probes.Items) -> probes.Items:
    """The same prompts with other human scores and groups; the means stay."""
    changed = [replace(item, group="g", human=(sum(item.human) / 2,) * 2) for item in items]
    return probes.Items(changed, raters="identity")


def test_corrected_scores_and_groups_are_never_lost(booted, tmp_path, monkeypatch):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.RunWriter, "write_run", tiny.interrupted)
        with pytest.raises(KeyboardInterrupt):
            probes.capture(judge, items, path)
    run = probes.capture(judge, regrouped(items), path)
    assert set(run.groups) == {"g"}
    assert run.items.raters == "identity"
    np.testing.assert_array_equal(run.human, regrouped(items).human)
    with pytest.raises(
        RunFileError, match=r"raters \(\"identity\", now \"slots\"\), the human scores, .* of 20 items \(first 'calm'\)"
    ):
        probes.capture(judge, items, path)


def test_writing_beside_the_computation_keeps_order_and_errors():
    done: list[int] = []
    with passes.Background(threaded=True) as background:
        for number in range(5):
            background.run(done.append, number)
    assert done == list(range(5))
    with pytest.raises(OSError, match="disk full"), passes.Background(threaded=True) as background:  # noqa: PT012
        background.run(lambda: (_ for _ in ()).throw(OSError("disk full")))
        background.run(done.append, 5)
    assert done == list(range(5))

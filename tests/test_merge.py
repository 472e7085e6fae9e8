"""Runs that are extended, merged and selected from: nothing is captured twice, and no number changes."""

from __future__ import annotations

import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest

import probes
from probes.capturing import pipeline
from probes.capturing.engine import Engine
from probes.errors import FitError, RunFileError
from probes.store import disk
from probes.store import merge as merging
from probes.store.lock import locked
from probes.store.merge import merge
from probes.store.values import Values
from probes.store.verify import verify
from probes.store.writer import RunWriter
from tests import tiny
from tests.fake_run import LAYERS, fake_header, fake_shard
from tests.test_capture import datasets, make_judge


@pytest.fixture
def counted(monkeypatch):
    """Prompts that the engine computes."""
    original, seen = Engine.run_packed, []

    def run_packed(self, prompts, *options):
        seen.extend(prompts)
        return original(self, prompts, *options)

    monkeypatch.setattr(Engine, "run_packed", run_packed)
    return seen


def row_ids(reading):
    """Generated token ids of a reading, none of every third."""
    return np.full(reading % 3, reading)


def fake(path, n_items=6, *, readings=None, first=0, finish=True, **changes):
    """A run of items ``i<first>, ...`` with numbers that depend on the reading alone."""
    items = probes.Items(
        [
            probes.Item(
                id=f"i{first + k}",
                fields={"response": f"w{k}"},
                criterion="ab"[k % 2],
                group=f"g{k // 2}",
                system="xyz"[k % 3],
                split="train" if k < n_items // 2 else "test",
                human=tuple(float(1 + (k + r) % 5) for r in range(1 + k % 2)),
            )
            for k in range(n_items)
        ]
    )
    value = np.array([np.mean(item.human) for item in items])
    header = fake_header(n_items, n_readings=readings, **{"items": items, "human_value": value, **changes})
    with RunWriter.open(path, header, "plan") as writer:
        n = len(header.status)
        for number, rows in enumerate(np.array_split(np.random.default_rng(0).permutation(n), min(n, 3))):
            said = (
                {} if readings is None else {"generated": [row_ids(r) for r in rows], "texts": [f"é{r}" for r in rows]}
            )
            writer.write_shard(number, fake_shard(header, rows, **said))
        if not finish:
            return probes.open_run(f"{path}.partial")
        writer.write_run({"deviations": {"final_logits": 0.125 * (1 + first)}})
    return probes.open_run(path)


def same(part, whole, readings):
    """Whether a run holds what some readings of another hold."""
    np.testing.assert_array_equal(part.residual(), whole.residual(readings=readings))
    np.testing.assert_array_equal(part.score_logits("norm"), whole.score_logits("norm", readings))
    np.testing.assert_array_equal(part.final_mass, whole.final_mass[readings])
    np.testing.assert_array_equal(part.position, whole.position[readings])
    np.testing.assert_array_equal(part.status, whole.status[readings])
    assert [ids.tolist() for ids in part.token_ids] == [whole.token_ids[r].tolist() for r in readings]


# Extending


def test_a_run_is_extended_and_what_was_there_is_not_captured_again(booted, tmp_path, counted):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    base = probes.capture(judge, items[:8], path)
    states, ids = base.residual(), base.ids
    counted.clear()
    # Known items among the new ones, in another order.
    asked = probes.Items([*items[6:14], items[0]])
    run = probes.capture(judge, asked, path, extend=True)
    assert len(counted) == 6
    assert run.ids == ids + items[8:14].ids
    np.testing.assert_array_equal(run.residual()[:8], states)
    whole = probes.capture(judge, items[:14], tmp_path / "whole.h5")
    np.testing.assert_allclose(run.residual(), whole.residual(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run.human, whole.human)
    assert run.item_hashes == whole.item_hashes
    assert [part["n_items"] for part in run.attr("parts")] == [8, 6]
    assert verify(path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "whole.h5"]


def test_extending_by_nothing_leaves_the_file_alone(booted, tmp_path, counted):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items, path).close()
    before = path.read_bytes()
    counted.clear()
    assert probes.capture(judge, items[3:5], path, extend=True).ids == items.ids
    assert path.read_bytes() == before
    assert not counted


def test_a_run_is_extended_by_a_lens(booted, tmp_path, counted):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:9], path, lenses=["norm"]).close()
    counted.clear()
    run = probes.capture(judge, items[:9], path, lenses=["raw"], extend=True)
    assert not counted
    assert run.attr("lenses") == ["norm", "raw"]
    both = probes.capture(judge, items[:9], tmp_path / "both.h5")
    np.testing.assert_allclose(run.score_logits("raw"), both.score_logits("raw"), rtol=1e-5)
    # And by a lens and items at once.
    more = probes.capture(judge, items, path, lenses=["norm"], extend=True)
    assert more.attr("lenses") == ["norm", "raw"]
    assert np.isfinite(more.score_logits("raw")).all()
    assert verify(path) == []


def test_extension_refuses_what_has_changed_and_names_it(booted, tmp_path):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:5], path, residuals=False, lenses=["norm"]).close()
    before = path.read_bytes()
    options = {"residuals": False, "lenses": ["norm"], "extend": True}

    def refusal(judge=judge, items=items, **changes):
        with pytest.raises(RunFileError) as error:
            probes.capture(judge, items, path, **options | changes)
        assert str(error.value).startswith(f"{path} exists and differs in ")
        return str(error.value).split("differs in ")[1].split("; ")[0]

    changed = [replace(items[0], human=(4.0, 4.0)), replace(items[1], fields={"response": "other"}), *items[2:]]
    assert refusal(items=probes.Items(changed)) == (
        f"the prompts of 1 items (first {items[1].id!r}), the human scores, texts or labels of 2 items "
        f"(first {items[0].id!r})"
    )
    template = replace(judge.template, user="How good is {{ response }}?")
    assert refusal(replace(judge, template=template)).startswith("judge.template.user, the prompts of 5 items")
    assert refusal(mass=True) == 'extra readings ([], now ["scale_mass"])'
    assert refusal(residuals=True) == 'type of the residuals ("none", now "float32")'
    assert refusal(lenses=["raw"]) == "lenses (without residuals raw cannot be computed)"
    with pytest.raises(RunFileError, match="choose one of them"):
        probes.capture(judge, items, path, extend=True, overwrite=True)
    with pytest.raises(RunFileError, match=r"items \(5 there, 20 asked for, 15 of them new\); extend=True"):
        probes.capture(judge, items, path, residuals=False, lenses=["norm"])
    assert path.read_bytes() == before


def test_an_extension_that_was_cut_short_goes_on(booted, tmp_path, monkeypatch, counted):
    monkeypatch.setattr("probes.capturing.plan._SHARD_ROWS", 3)
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:5], path, batch_tokens=60).close()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "write_run", tiny.interrupted)
        with pytest.raises(KeyboardInterrupt):
            probes.capture(judge, items, path, batch_tokens=60, extend=True)
    assert path.read_bytes() == before
    counted.clear()
    run = probes.capture(judge, items, path, batch_tokens=60, extend=True)
    assert not counted
    assert run.ids == items.ids


def test_an_unfinished_extension_is_never_taken_for_a_leftover(booted, tmp_path, monkeypatch, caplog):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:5], path).close()
    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "write_run", tiny.interrupted)
        with pytest.raises(KeyboardInterrupt):
            probes.capture(judge, items, path, extend=True)
    probes.capture(judge, items[:5], path).close()
    assert "run.h5.partial holds an unfinished capture of other items or another judge; it stays" in caplog.text
    with probes.open_run(f"{path}.partial") as partial:
        assert partial.ids == items[5:].ids
    with locked(path):
        probes.capture(judge, items[:5], path).close()  # needs no lock


def test_a_run_that_somebody_else_wrote_meanwhile_is_not_replaced(booted, tmp_path, monkeypatch):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:5], path).close()
    original = pipeline.missing_items

    def raced(run, asked, *, extend):
        missing = original(run, asked, extend=extend)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "missing_items", original)
            probes.capture(judge, items[:9], path, extend=True).close()
        return missing

    monkeypatch.setattr(pipeline, "missing_items", raced)
    with pytest.raises(RunFileError, match=r"another process wrote .*run.h5 meanwhile; give the same command again"):
        probes.capture(judge, items, path, extend=True)
    monkeypatch.undo()
    assert probes.capture(judge, items, path, extend=True).ids == items.ids


def test_what_cannot_be_added_is_refused_before_the_first_pass(booted, tmp_path, counted):
    judge, items, path = make_judge(booted), tiny.word_items(), tmp_path / "run.h5"
    probes.capture(judge, items[:5], path, last_positions=3).close()
    counted.clear()
    for extend in (True, False):
        with pytest.raises(RunFileError, match=r"differs in last positions \(3, now 2\)"):
            probes.capture(judge, items[:5], path, last_positions=2, extend=extend)
        with pytest.raises(RunFileError, match=r"length limit \(.*, now 10\)"):
            probes.capture(judge, items[:5], path, last_positions=3, max_tokens=10, extend=extend)
    with probes.open_run(path) as run:
        merge([run.select(layers=["2", "3"])], tmp_path / "late.h5").close()
    with pytest.raises(RunFileError, match="differs in layers"):
        probes.capture(judge, items, tmp_path / "late.h5", last_positions=3, extend=True)
    assert not counted


# Merging


def test_merged_runs_hold_the_items_of_all(tmp_path):
    a, b = fake(tmp_path / "a.h5"), fake(tmp_path / "b.h5", 5, first=6)
    run = merge([a, b], tmp_path / "ab.h5")
    assert run.ids == a.ids + b.ids
    same(run.select(items=a.ids), a, np.arange(6))
    same(run.select(items=range(6, 11)), b, np.arange(5))
    np.testing.assert_array_equal(run.human_value, np.concatenate([a.human_value, b.human_value]))
    parts = run.attr("parts")
    assert [part["n_items"] for part in parts] == [6, 5]
    assert run.attr("deviations")["final_logits"] == max(p["deviations"]["final_logits"] for p in parts) == 0.875
    three = merge([run, fake(tmp_path / "c.h5", 2, first=20)], tmp_path / "abc.h5")
    assert [part["n_items"] for part in three.attr("parts")] == [6, 5, 2]


def pair_options(n_items):
    """Pairs in both orders, two samples each."""
    readings = np.arange(4 * n_items)
    return {
        "readings": len(readings),
        "scale": "A=1,tie=2,B=3",
        "attrs": {"pairwise": True, "first_label": "A"},
        "n_prompts": 2 * n_items,
        "reading_item": readings // 4,
        "reading_sample": readings % 2,
        "reading_swapped": readings // 2 % 2 == 1,
        "extras": (),
    }


def test_pairs_samples_and_generated_answers_are_merged_and_selected(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_BLOCK_BYTES", 64)
    a, b = fake(tmp_path / "a.h5", 3, **pair_options(3)), fake(tmp_path / "b.h5", 2, first=3, **pair_options(2))
    run = merge([a, b], tmp_path / "ab.h5")
    assert run.readings.item.tolist() == [k // 4 for k in range(20)]
    assert run.generated_text == a.generated_text + b.generated_text
    assert [ids.tolist() for ids in run.generated_ids] == [ids.tolist() for ids in a.generated_ids + b.generated_ids]
    np.testing.assert_array_equal(run.item_logits(), np.concatenate([a.item_logits(), b.item_logits()]))
    part = run.select(items=["i4", "i1"])
    rows = [*range(16, 20), *range(4, 8)]
    assert part.ids == ("i4", "i1")
    assert part.generated_text == [run.generated_text[row] for row in rows]
    np.testing.assert_array_equal(part.item_logits(), run.item_logits()[[4, 1]])
    same(part, run, rows)
    written = merge([part], tmp_path / "part.h5")
    assert written.generated_text == part.generated_text
    same(written, run, rows)


def test_what_does_not_go_together_is_named(tmp_path):
    a = fake(tmp_path / "a.h5")
    other = fake(tmp_path / "b.h5", 3, first=6, attrs={"judge": {"dtype": "bfloat16"}}, residual_dtype="bfloat16")
    with pytest.raises(RunFileError) as error:
        merge([a, other], tmp_path / "out.h5")
    assert str(error.value) == (
        f'{a.path} and {other.path} differ in judge ("judge", now {{"dtype": "bfloat16"}}), residual_dtype ("float32", '
        'now "bfloat16"); only runs of the same judge, captured in the same way, go into one file'
    )
    twice = fake(tmp_path / "c.h5", 4, first=5)
    with pytest.raises(RunFileError, match=r"both hold the item 'i5' \(1 in all\); select what to take from each"):
        merge([a, twice], tmp_path / "out.h5")
    assert merge([a, twice.select(items=[1, 2, 3])], tmp_path / "out.h5").ids == a.ids + twice.ids[1:]
    with pytest.raises(RunFileError, match="exists; choose another path, or overwrite=True"):
        merge([a], tmp_path / "out.h5")
    with pytest.raises(RunFileError, match="nothing to merge"):
        merge([], tmp_path / "none.h5")
    bare = fake(tmp_path / "bare.h5", first=50, residual_dtype=None)
    with pytest.raises(RunFileError, match="holds neither the lens 'raw' nor residuals"):
        merge([bare], tmp_path / "none.h5", lenses=["norm", "raw"])
    assert not (tmp_path / "none.h5").exists()


def test_a_run_without_any_reading_is_merged_and_an_unfinished_one_is_not(tmp_path):
    a, part = fake(tmp_path / "a.h5"), fake(tmp_path / "b.h5", 3, first=6, finish=False)
    nothing = fake_header(2, items=probes.Items([probes.Item(id=f"n{k}", fields={}) for k in range(2)]))
    with RunWriter.open(tmp_path / "c.h5", nothing, "plan") as writer:
        writer.write_run({})
    with probes.open_run(tmp_path / "c.h5") as empty:
        run = merge([empty, a], tmp_path / "all.h5")
    assert (run.status == 0).tolist() == [False] * 2 + [True] * 6
    assert np.isnan(run.residual(items=["n0", "n1"])).all()
    same(run.select(items=a.ids), a, np.arange(6))
    with pytest.raises(RunFileError, match="b.h5.partial is unfinished; finish the capture before it is merged"):
        merge([a, part], tmp_path / "out.h5")
    with pytest.raises(RunFileError, match="merge takes runs, got 'a.h5'; open it with probes.open_run"):
        merge(["a.h5"], tmp_path / "out.h5")


def test_parts_of_a_selection_are_not_told(tmp_path):
    a, b = fake(tmp_path / "a.h5"), fake(tmp_path / "b.h5", 3, first=6)
    both = merge([a, b], tmp_path / "ab.h5")
    assert "parts" not in merge([both.select(items=["i1", "i7"])], tmp_path / "two.h5").header().attrs


def test_one_writer_a_file(tmp_path):
    a = fake(tmp_path / "a.h5")
    with locked(tmp_path / "out.h5"), pytest.raises(RunFileError, match="another process is writing"):
        merge([a], tmp_path / "out.h5")
    fake(tmp_path / "b.h5", finish=False)
    with pytest.raises(RunFileError, match="b.h5.partial holds an unfinished capture; finish it, remove it, or choose"):
        merge([a], tmp_path / "b.h5")
    assert merge([a], tmp_path / "a.h5", overwrite=True).ids == a.ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5.partial", "out.h5.partial"]


def test_ctrl_c_while_a_file_is_written_leaves_nothing_half(tmp_path, monkeypatch):
    """libhdf5 calls back for every write, and an exception there would be swallowed or crash the process."""
    a, writes = fake(tmp_path / "a.h5"), [0]
    monkeypatch.setattr(disk, "watch", lambda moment, action, path: writes.__setitem__(0, writes[0] + 1))
    merge([a], tmp_path / "whole.h5")
    total = writes[0]
    for at in range(1, total, max(1, total // 40)):
        writes[0] = 0

        def press(moment, action, path, at=at):
            writes[0] += 1
            if writes[0] == at:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(disk, "watch", press)
        with pytest.raises(KeyboardInterrupt):
            merge([a], tmp_path / "out.h5")
        monkeypatch.setattr(disk, "watch", None)
        left = {path.name for path in tmp_path.iterdir()} - {"a.h5", "whole.h5"}
        left -= {"out.h5.partial", "out.h5.partial.removed"}  # the next command removes them
        # Whoever presses when the file has its name already finds it whole.
        assert left <= {"out.h5"}
        if left:
            assert datasets(tmp_path / "out.h5") == datasets(tmp_path / "whole.h5")
            (tmp_path / "out.h5").unlink()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_compressed_runs_hold_the_same_numbers(tmp_path):
    a = fake(tmp_path / "a.h5", residual_dtype="bfloat16")
    packed = merge([a], tmp_path / "packed.h5", compress=True)
    assert datasets(packed.path) == datasets(a.path)
    with h5py.File(packed.path) as file:
        dataset = file["capture/residual"]
        assert (dataset.compression, dataset.shuffle, dataset.fletcher32) == ("gzip", True, True)


# Selecting


@pytest.mark.parametrize("finish", [True, False])
def test_a_selection_is_a_run_of_some_items(tmp_path, finish):
    run = fake(tmp_path / "run.h5", 12, finish=finish)
    assert run.select(split="test").ids == tuple(f"i{k}" for k in range(6, 12))
    assert run.select(criterion="a", system=["x", "y"]).ids == ("i0", "i4", "i6", "i10")
    assert run.select(group=["g0", "g5"]).select(criterion="b").ids == ("i1", "i11")
    part = run.select(items=np.arange(12) % 4 == 1, layers=["embed", 2])
    assert part.ids == ("i1", "i5", "i9")
    assert part.layers == ("embed", "2")
    assert part.n_items == len(part.items) == len(part.human) == 3
    np.testing.assert_array_equal(part.residual(), run.residual(readings=[1, 5, 9])[:, [0, 2]])
    np.testing.assert_array_equal(part.residual(layer=2), run.residual(layer=2, readings=[1, 5, 9]))
    np.testing.assert_array_equal(part.residual(items=["i9"], layer="embed"), run.residual("embed", [9]))
    np.testing.assert_array_equal(part.score_logits("raw"), run.score_logits("raw")[[1, 5, 9]][:, [0, 2]])
    np.testing.assert_array_equal(part.human, run.human[[1, 5, 9]])
    assert part.item_hashes == tuple(run.item_hashes[k] for k in (1, 5, 9))
    np.testing.assert_array_equal(part.n_tokens, run.n_tokens[[1, 5, 9]])
    if not finish:
        return
    written = merge([part], tmp_path / "part.h5")
    np.testing.assert_array_equal(written.residual(), part.residual())
    assert (written.layers, written.ids, written.item_hashes) == (part.layers, part.ids, part.item_hashes)


def test_selecting_reads_no_numbers(tmp_path, monkeypatch):
    run = fake(tmp_path / "run.h5", 12)
    monkeypatch.setattr(Values, "_numbers", lambda *args: pytest.fail("numbers were read"))
    part = run.select(split="test", layers=[1, 2])
    assert len(part.status) == 6


def test_a_selection_is_analysed_like_a_run(tmp_path):
    run = fake(tmp_path / "run.h5", 12)
    part = run.select(criterion="a")
    np.testing.assert_array_equal(part.scores("layer:1").value, run.scores("layer:1").value[::2])
    assert part.scores().probs.shape == (6, 5)
    with pytest.raises(FitError, match=r"selection without the last layer \(2\)"):
        run.select(layers=["embed", "1"]).scores("layer:1")
    with pytest.raises(FitError, match="slope-ridge needs human scores to fit"):
        run.scores("slope-ridge")


def test_items_stand_for_their_readings(tmp_path):
    run = fake(tmp_path / "run.h5", 3, **pair_options(3))
    np.testing.assert_array_equal(run.residual(items=["i2", "i0"]), run.residual(readings=[*range(8, 12), *range(4)]))
    np.testing.assert_array_equal(run.score_logits(items=[-1]), run.score_logits(readings=range(8, 12)))


def test_bad_selections_are_one_line(tmp_path):
    run = fake(tmp_path / "run.h5", 12)
    for options, message in (
        ({"split": "dev"}, "has no item of split 'dev'; it has 'test', 'train'"),
        ({"criterion": "a", "items": ["i1"]}, "the selection is empty; 12 items to choose from"),
        ({"items": ["i1", "who"]}, "has no item 'who'"),
        ({"items": [3, 12]}, "has no item number 12; there are 12"),
        ({"items": [True, False]}, "the mask has 2 entries for 12 items"),
        ({"items": [[1]]}, "give items as a list of whole numbers or as a mask, got [[1]]"),
        ({"items": [0.9, 1.9]}, "give items as a list of whole numbers or as a mask, got [0.9, 1.9]"),
        ({"layers": [3]}, "has no layer 3; its layers are embed, 1, 2"),
        ({"layers": []}, "no layer is selected"),
    ):
        with pytest.raises(RunFileError) as error:
            run.select(**options)
        assert message in str(error.value)
        assert str(error.value).startswith(str(run.path))
    with pytest.raises(RunFileError, match="choose readings or items, not both"):
        run.residual(readings=[0], items=[0])
    several = fake(run.path.with_name("pairs.h5"), 3, **pair_options(3))
    for readings, message in (
        (np.array([False, False, True]), "the mask has 3 entries for 12 readings"),
        ([12], "has no reading number 12; there are 12"),
        ([0.5], "give readings as a list of whole numbers or as a mask"),
    ):
        with pytest.raises(RunFileError, match=message):
            several.residual(readings=readings)
    assert several.residual(readings=[]).shape == (0, len(LAYERS), 4)

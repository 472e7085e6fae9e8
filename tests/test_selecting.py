"""One rule for what is asked of a run: in the order asked for, as often as asked for, from every reader alike."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.torch import load_file

import probes
from probes.capturing.job import Settings, prepare
from probes.capturing.memory import MemoryRun
from probes.errors import FitError, ItemError, RunFileError
from probes.figures import tables
from probes.store import columns, export
from probes.store.format import from_bfloat16_bits
from probes.store.merge import merge
from probes.store.verify import verify
from tests import test_choices_capture, tiny
from tests.many_runs import write_run
from tests.test_capture import make_judge
from tests.valid_run import KINDS, LAYERS, write_valid

if TYPE_CHECKING:
    from probes.store.run import Run

N = 6
same = np.testing.assert_array_equal


@dataclass
class World:
    """Everything that is known of a run: its numbers, taken from the file by h5py alone, and ways to read them."""

    runs: dict[str, Run]
    arrays: dict[str, dict[str, np.ndarray]]

    @staticmethod
    def truth(path, folder_run=None) -> dict[str, np.ndarray]:
        with h5py.File(path) as file:
            found = {}
            file.visititems(
                lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None
            )
        for name in ("capture/residual", "capture/last_positions"):
            if name in found and found[name].dtype == np.uint16:
                found[name] = from_bfloat16_bits(found[name])
        if folder_run is not None:  # what is not captured yet is NaN, or says nothing
            missing = folder_run.status == 4
            for name, values in found.items():
                if name.startswith("capture/choice_logprob"):
                    values[missing[found["choices/item"]]] = np.nan
                elif name.startswith("capture/"):
                    values[missing] = np.nan
            found["readings/status"] = folder_run.status
        return found


def halves(run: Run, folder) -> Run:
    """The same run once more, put together of two that hold its items in another order."""
    odd, even = (merge([run.select(items=[*range(k, N, 2)][::-1])], folder / f"{k}.h5") for k in (1, 0))
    with odd, even:
        return merge([odd, even], folder / "merged.h5")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    found: dict[str, World] = {}
    with ExitStack() as stack:
        for kind in KINDS:
            folder = tmp_path_factory.mktemp(kind)
            dtype = "bfloat16" if kind == "pairs" else "float32"
            path = write_valid(folder / "run.h5", kind, dtype=dtype)
            whole = stack.enter_context(probes.open_run(path))
            part = stack.enter_context(
                probes.open_run(write_valid(folder / "part.h5", kind, dtype=dtype, finish=False))
            )
            merged = stack.enter_context(halves(whole, folder))
            runs = {
                "file": whole,
                "folder": part,
                "merged": merged.select(items=whole.ids),
                "selection": whole.select(items=[5, 4, 0, 1, 1, 3, 2, 0]).select(items=[2, 3, 6, 5, 1, 0]),
                "layers": whole.select(layers=["3", "embed", 1, 2, 1]).select(layers=LAYERS),
            }
            finished = World.truth(path)
            arrays = dict.fromkeys(runs, finished) | {"folder": World.truth(path, part)}
            found[kind] = World(runs, arrays)
        yield found


@st.composite
def selections(draw):
    """Item numbers in any order, the same in one of the forms that readers take, and layers or None for all."""
    form = draw(st.sampled_from(["numbers", "ids", "mask", "slice", "array", "range"]))
    if form == "mask":
        mask = draw(st.lists(st.booleans(), min_size=N, max_size=N))
        return np.flatnonzero(mask).tolist(), lambda run: mask, _layers(draw)
    if form in ("slice", "range"):
        start, stop, step = draw(st.integers(0, N)), draw(st.integers(0, N)), draw(st.sampled_from([1, 2, -1]))
        numbers = list(range(start, stop, step))
        bounds = slice(start, stop, step) if form == "slice" else range(start, stop, step)
        if max(numbers, default=0) >= N:  # a slice goes no further than there are items
            numbers, bounds = numbers[1:], bounds if form == "slice" else bounds[1:]
        return numbers, lambda run: bounds, _layers(draw)
    given = draw(st.lists(st.integers(-N, N - 1), max_size=9))
    numbers = [number % N for number in given]
    if form == "ids":
        return numbers, lambda run: [run.ids[number] for number in numbers], _layers(draw)
    return numbers, lambda run: given if form == "numbers" else np.array(given, dtype=np.int64), _layers(draw)


def _layers(draw):
    return draw(st.none() | st.lists(st.sampled_from(LAYERS), min_size=1, max_size=5))


def rows_of(truth, numbers):
    """Readings of items, item by item, and which of the items each is of."""
    rows = [np.flatnonzero(truth["readings/item"] == number) for number in numbers]
    item = np.repeat(np.arange(len(numbers)), [len(of) for of in rows])
    return np.concatenate([np.zeros(0, np.int64), *rows]), item


def choices_of(truth, numbers):
    """Rows of the choices of items, item by item."""
    offsets = truth["choices/offsets"]
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(offsets[n], offsets[n + 1]) for n in numbers)])


def texts_of(truth, name, rows):
    values, offsets = truth[f"{name}/values"], truth[f"{name}/offsets"]
    return [values[offsets[row] : offsets[row + 1]] for row in rows]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("source", ["file", "folder", "merged", "selection", "layers"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_what_is_asked_for(worlds, kind, source, tmp_path_factory):
    run, truth = worlds[kind].runs[source], worlds[kind].arrays[source]
    folder = tmp_path_factory.mktemp("out")

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(selections())
    def check(case):
        numbers, form, layers = case
        check_readers(run, truth, numbers, form(run), LAYERS if layers is None else layers)
        if not numbers:
            with pytest.raises(RunFileError, match="the selection is empty; 6 items to choose from"):
                run.select(items=form(run))
            return
        part = run.select(items=form(run), layers=layers)
        check_selection(part, run, truth, numbers, LAYERS if layers is None else layers)
        check_tables(part, truth, numbers, folder)

    check()


def check_readers(run, truth, numbers, form, layers):
    """Readers that take a selection, each against plain indexing."""
    rows, _ = rows_of(truth, numbers)
    place = [LAYERS.index(layer) for layer in layers]
    shown = run.select(layers=layers)
    for given_ in ({"items": form}, {"readings": rows}, {"readings": (rows - len(truth["readings/item"])).tolist()}):
        same(run.residual(**given_), truth["capture/residual"][rows])
        same(shown.residual(**given_), truth["capture/residual"][rows][:, place])
        same(shown.residual(layers[0], **given_), truth["capture/residual"][rows][:, place[0]])
        for name in run.extras:
            axis = 2 if name == "last_positions" else 1
            same(run.extra(name, **given_), truth[f"capture/{name}"][rows])
            same(shown.extra(name, **given_), truth[f"capture/{name}"][rows].take(place, axis))
        for lens in () if run.has_choices else ("raw", "norm"):
            stored = truth[f"capture/score_logits/{lens}"][rows]
            same(run.score_logits(lens, **given_), stored)
            same(shown.score_logits(lens, **given_), stored[:, place])
            close(run.readout.score_logits(run.residual(**given_), lens), stored)
    if run.has_choices:
        for lens in ("raw", "norm"):
            stored = truth[f"capture/choice_logprob/{lens}"][choices_of(truth, numbers)]
            same(run.choice_logprob(lens, form), stored)
            same(shown.choice_logprob(lens, items=form), stored[:, place])


def check_selection(part, run, truth, numbers, layers):
    """A run of the chosen items says of itself what the whole one says of them."""
    rows, item = rows_of(truth, numbers)
    place = [LAYERS.index(layer) for layer in layers]
    assert part.layers == tuple(layers)
    assert (part.n_items, len(part.items)) == (len(numbers), len(numbers))
    assert part.ids == tuple(truth["items/id"][number].decode() for number in numbers)
    assert [one.id for one in part.items] == list(part.ids)
    assert part.item_hashes == tuple(truth["items/items_hash"][number].decode() for number in numbers)
    same(part.human, truth["items/human"][numbers])
    same(part.human_value, truth["items/human_value"][numbers])
    same(part.readings.item, item)
    for name in ("sample", "swapped", "status"):
        same(getattr(part.readings, name), truth[f"readings/{name}"][rows])
    prompts = texts_of(truth, "prompts/token_ids", truth["readings/prompt"][rows])
    assert [ids.tolist() for ids in part.token_ids] == [ids.tolist() for ids in prompts]
    same(part.n_tokens, [len(ids) for ids in prompts])
    same(part.final_mass, truth["capture/final_mass"][rows])
    same(part.residual(), truth["capture/residual"][rows][:, place])
    if part.is_complete:
        same(part.position, truth["readings/position"][rows])
        header = part.header()
        assert header.item_hashes == part.item_hashes
        same(header.readings.item, item)
        assert [header.token_ids[prompt].tolist() for prompt in header.reading_prompt.tolist()] == [
            p.tolist() for p in prompts
        ]
    if "generation/text" in part and part.is_complete:
        assert part.generated_text == [bytes(t).decode() for t in texts_of(truth, "generation/text", rows)]
        same(np.concatenate(part.generated_ids), np.concatenate(texts_of(truth, "generation/token_ids", rows)))
        backwards = np.arange(len(rows))[::-1]
        found = part.generated("generation/text", backwards)
        assert [bytes(t) for t in found] == [bytes(t) for t in texts_of(truth, "generation/text", rows[::-1])]
    if part.has_choices:
        chosen = choices_of(truth, numbers)
        assert part.choices.labels == tuple(
            bytes(text).decode() for text in texts_of(truth, "choices/label", chosen.tolist())
        )
        same(part.choices.scores, truth["choices/score"][chosen])
        same(part.choices.n_tokens, truth["choices/n_tokens"][chosen])
        tokens = texts_of(truth, "choices/token_ids", chosen)
        assert [part.choices.tokens[k].tolist() for k in range(len(chosen))] == [ids.tolist() for ids in tokens]
        same(part.choice_logprob(), truth["capture/choice_logprob/norm"][chosen][:, place])
    else:
        same(part.item_logits(), run.item_logits()[numbers][:, place])


def check_tables(part, truth, numbers, folder):
    """Tables, named axes and exports of a selection hold its numbers, in its order."""
    rows, item = rows_of(truth, numbers)
    ids = [part.ids[number] for number in item]
    found, frame = part.to_xarray(), part.to_pandas()
    assert found["id"].values.tolist() == frame["id"].tolist() == ids
    assert found["layer"].values.tolist() == list(part.layers)
    same(found["residual"], part.residual())
    same(found["residual"][::-1, 0], part.residual()[::-1, 0])
    same(found["residual"][[0, -1, 0], [0, -1]], part.residual()[[0, -1, 0]][:, [0, -1]])
    same(frame["reading"], np.arange(len(rows)))
    same(frame["final_mass"], truth["capture/final_mass"][rows])
    export.to_safetensors(part, folder / "out.safetensors")
    tensors = load_file(folder / "out.safetensors")
    for layer in part.layers:
        same(tensors[f"residual.{layer}"].float(), part.residual(layer))
    same(tensors["readings.item"], item)
    written = folder / "out.parquet"
    export.to_parquet(part, written)
    table = parquet.read_table(written).to_pandas()
    assert table["id"].tolist() == ids
    layers = export.layer_table(part)
    if part.has_choices:
        chosen = choices_of(truth, numbers)
        logprob = part.choice_logprob()
        same(found["choice_logprob_norm"], logprob)
        same(found["choice_logprob_norm"][::-1], logprob[::-1])
        same(layers["logprob"], logprob.reshape(-1))
        texts = [bytes(text).decode() for text in texts_of(truth, "choices/label", chosen)]
        assert layers["choice"].tolist() == np.repeat(texts, len(part.layers)).tolist()
        same(tensors["choice_logprob.norm"], logprob)
        assert [text for of in table["choices"] for text in of] == texts
        last = truth["capture/choice_logprob/norm"][:, LAYERS.index(part.layers[-1])]
        offsets = truth["choices/offsets"]
        for number, label, of in zip(
            numbers, frame["label"], table[f"choice_logprob.norm.{part.layers[-1]}"], strict=True
        ):
            start, stop = int(offsets[number]), int(offsets[number + 1])
            if np.isnan(last[start]):
                assert pd.isna(label)
                assert of is None
                continue
            best = start + int(np.argmax(last[start:stop]))
            assert label == bytes(texts_of(truth, "choices/label", [best])[0]).decode()
            same(of, last[start:stop])
    else:
        logits = part.score_logits()
        same(found["score_logits_norm"], logits)
        same(tensors["score_logits.norm"], logits)
        spread = np.exp(logits.astype(np.float64))
        expected = (spread / spread.sum(-1, keepdims=True)) @ np.array(part.scale.values)
        close(layers["expected"], expected.reshape(-1))
        close(frame["expected"], expected[:, -1])
        last = table[f"logits.norm.{part.layers[-1]}"]
        for row, stored in zip(logits[:, -1], last, strict=True):
            assert stored is None if np.isnan(row).any() else np.array_equal(stored, row)


@pytest.mark.parametrize("choices", [False, True])
def test_a_run_in_memory_is_the_same_as_what_is_selected_from_a_file(booted, tmp_path, choices):
    judge = (test_choices_capture.make_judge if choices else make_judge)(booted)
    items = test_choices_capture.choice_items(8) if choices else tiny.word_items()[:8]
    memory = MemoryRun(prepare(judge, items, Settings(("norm",))), layer="1")
    memory.capture(show_progress=False)
    with probes.capture(judge, items, tmp_path / "run.h5", lenses=("norm",)) as run:
        order = [6, 0, 3, 3, 7, 1]
        part = run.select(items=order)
        close(memory.item_residual("1")[order], part.item_residual("1"))
        if choices:
            rows = np.concatenate([memory.choices.rows([number]) for number in order])
            close(memory.choice_logprob()[rows], part.choice_logprob())
            same(run.choice_logprob(items=order), part.choice_logprob())
        else:
            close(memory.item_logits("norm")[order], part.item_logits())
            same(run.score_logits(items=order), part.score_logits())


@pytest.mark.parametrize("source", ["file", "folder", "selection"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_refused_alike(worlds, kind, source):
    run = worlds[kind].runs[source]
    readers = [lambda items: run.select(items=items), lambda items: run.residual(items=items)]
    readers.append(
        lambda items: run.choice_logprob(items=items) if kind == "choices" else run.score_logits("norm", None, items)
    )
    for items, message in (
        ([0, N], "has no item number 6; there are 6"),
        ([-N - 1], "has no item number -7; there are 6"),
        (["item-1", "item-x"], "has no item 'item-x'"),
        ([True] * (N - 1), "the mask has 5 entries for 6 items"),
        ([0.5], "give items as a list of whole numbers or as a mask, got [0.5]"),
        ([[1]], "give items as a list of whole numbers or as a mask, got [[1]]"),
    ):
        told = set()
        for read in readers:
            with pytest.raises(RunFileError) as error:
                read(items)
            told.add(str(error.value))
        assert len(told) == 1
        assert message in told.pop()
    n = len(run.status)
    wrong = [lambda rows: run.residual(readings=rows), lambda rows: run.stored("residual", rows)]
    wrong += [lambda rows: run.generated("generation/text", rows)] if kind == "generated" else []
    for read in wrong:
        for rows in ([0, n], [-n - 1], np.array([n])):
            with pytest.raises(RunFileError, match="has no reading number"):
                read(rows)


def test_only_chunks_that_hold_what_is_asked_for_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("probes.store.merge.CHUNK_BYTES", 256)  # chunks of sixteen choices
    with probes.open_run(write_valid(tmp_path / "run.h5", "choices", n_items=400)) as written:
        merged = merge([written], tmp_path / "again.h5")
    monkeypatch.setattr(columns, "_STRETCH_BYTES", 1)
    read, plain = [], columns._stretch
    monkeypatch.setattr(
        columns, "_stretch", lambda data, low, high, at: read.append(high - low) or plain(data, low, high, at)
    )
    with merged as run:
        rows = run.choices.rows([390, 2, 390])
        found = run.choice_logprob(items=[390, 2, 390])
        assert sum(read) <= 64
        same(found, run.choice_logprob()[rows])


def test_files_are_written_in_the_order_asked_for(tmp_path):
    with probes.open_run(write_valid(tmp_path / "run.h5", "pairs")) as run:
        with merge([run.select(items=[4, 1, 3], layers=["3", "1", "3"])], tmp_path / "part.h5") as part:
            assert part.ids == ("item-4", "item-1", "item-3")
            assert part.layers == ("1", "3")  # the format has them in the order of the model
            same(part.residual(), run.residual(items=[4, 1, 3])[:, [1, 3]])
            same(part.item_logits(), run.item_logits()[[4, 1, 3]][:, [1, 3]])
        assert verify(tmp_path / "part.h5") == []
        with pytest.raises(RunFileError, match="run.h5: the item 'item-1' is selected 2 times; a file holds each item"):
            merge([run.select(items=[1, 4, 1])], tmp_path / "twice.h5")
        assert not (tmp_path / "twice.h5").exists()
        judged = run.select(items=[1, 4, 1])
        with pytest.raises(ItemError, match="unique"):
            probes.Items(judged.items)
    assert json.loads(h5py.File(tmp_path / "part.h5").attrs["layers"]) == ["1", "3"]


def scored(folder, n_items=60):
    return probes.open_run(write_run(folder / "run.h5", "plain", n_items=n_items))


def test_judges_and_figures_read_layers_in_the_order_of_the_model(tmp_path):
    with scored(tmp_path) as run:
        shuffled, ordered = run.select(layers=["3", "embed", "1", "3"]), run.select(layers=["embed", "1", "3"])
        options = {"folds": 2, "repeats": 1, "resamples": 100, "pool": True}
        for read in (
            lambda of: probes.compare(of, ["final", "uniform", "slope-ridge"], **options).table,
            lambda of: probes.by_layer(of, **options),
            lambda of: probes.layer_tests(of, **options),
            lambda of: probes.learning_curve(of, ["final", "slope-ridge"], sizes=[20], draws=2, pool=True),
            tables.layer_scores,
            tables.score_distributions,
            tables.layer_similarity,
            tables.scale_mass,
            lambda of: tables.item_distributions(of, "item-4"),
            lambda of: of.scores("uniform").probs,
        ):
            pd.testing.assert_frame_equal(pd.DataFrame(read(shuffled)), pd.DataFrame(read(ordered)))
        fitted = probes.fit(shuffled, "slope-ridge", pool=True)
        same(fitted.score(shuffled).value, probes.fit(ordered, "slope-ridge", pool=True).score(ordered).value)
        pd.testing.assert_frame_equal(probes.score(fitted, shuffled), probes.score(fitted, ordered))
        pages = [probes.report(of, tmp_path / f"{k}.html", resamples=100) for k, of in enumerate((shuffled, ordered))]
        assert pages[0].read_text() == pages[1].read_text()
        with pytest.raises(FitError, match=r"selection without the last layer \(3\)"):
            run.select(layers=["2", "1"]).scores("final")


def test_an_item_that_is_selected_twice_counts_twice_and_stays_in_one_group(tmp_path):
    with scored(tmp_path) as run:
        part = run.select(items=[5, 3, 5, 0])
        whole = run.scores("final").value
        same(part.scores("final").value, whole[[5, 3, 5, 0]])
        assert part.groups[0] == part.groups[2]
        # An id stands for the first item that bears it.
        same(part.score_logits(items=["item-5", "item-0"]), run.score_logits(items=[5, 0]))
        again = part.select(items=["item-5", "item-3"])
        assert again.ids == ("item-5", "item-3")
        assert again.items[:1].ids == ("item-5",)
        assert part.items[1:].ids == ("item-3", "item-5", "item-0")
        shown = tables.layer_scores(part)
        assert shown["item"].drop_duplicates().tolist() == ["item-5", "item-3", "item-5 (2)", "item-0"]
        probes.figures.score_map(shown)


def test_runs_are_compared_on_items_as_often_as_they_are_selected(tmp_path):
    options = {"folds": 2, "repeats": 1, "resamples": 100, "pool": True}
    with scored(tmp_path) as run:
        part = run.select(items=[*range(59, -1, -1), 5, 5, 8])
        found = probes.compare({"a": part, "b": run.select(items=[5, 5, 8, *range(60)])}, ["final"], **options)
        assert not [note for note in found.warnings if "not in every run" in note]
        found = probes.compare({"a": part, "b": run}, ["final"], **options)
        told = [note for note in found.warnings if "not in every run" in note]
        assert told == ["a: 3 items can be used in this run but not in every run, and are left out"]

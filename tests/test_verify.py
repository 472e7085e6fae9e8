"""Verifying a run: a right one has no faults, and whatever is broken in one is named, alone."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import probes
from probes.errors import RunFileError
from probes.store import spec, structure
from probes.store.faults import Faults
from probes.store.format import raw_bytes
from probes.store.structure import attributes_digest
from probes.store.verify import verify
from tests import tiny
from tests.test_capture import make_judge
from tests.valid_run import KINDS, SHA, stamp, write_valid

PAGE = (Path(__file__).parent.parent / "docs" / "file-format.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    return {kind: write_valid(folder / f"{kind}.h5", kind) for kind in KINDS}


@pytest.fixture
def copies(runs, tmp_path):
    """Copies of the runs that a test may break."""
    return {kind: Path(shutil.copy(path, tmp_path)) for kind, path in runs.items()}


def sign(file: h5py.File, *paths: str) -> None:
    """Give datasets the checksum of what they hold now."""
    for path in paths:
        file[path].attrs["sha256"] = hashlib.sha256(raw_bytes(file[path][()])).hexdigest()


def put(path: str, where, value):
    """A change of some elements of a dataset, with its checksum."""

    def change(file: h5py.File) -> None:
        values = file[path][()]
        values[where] = value
        file[path][...] = values
        sign(file, path)

    return change


def replace(path: str, values, **options):
    """A change of a whole dataset, with its checksum."""

    def change(file: h5py.File) -> None:
        old = dict(file[path].attrs)
        new = values(file[path][()]) if callable(values) else np.asarray(values)
        del file[path]
        made = file.create_dataset(path, data=new, **({"fletcher32": True, "chunks": True} | options))
        made.attrs.update(old)
        sign(file, path)

    return change


def attr(owner: str, name: str, value):
    """A change of an attribute; None removes it."""

    def change(file: h5py.File) -> None:
        if value is None:
            del file[owner].attrs[name]
        else:
            file[owner].attrs[name] = value

    return change


def said(name: str, **changes):
    """A change of what a JSON attribute says; of the judge together with its hash."""

    def change(file: h5py.File) -> None:
        value = json.loads(file.attrs[name]) | changes
        value = {key: entry for key, entry in value.items() if entry is not ...}
        text = json.dumps(value, sort_keys=True)
        file.attrs[name] = text
        if name == "judge":
            file.attrs["judge_hash"] = hashlib.sha256(text.encode()).hexdigest()

    return change


def remove(path: str):
    def change(file: h5py.File) -> None:
        del file[path]

    return change


def broken(path: Path, *changes) -> list[str]:
    with h5py.File(path, "r+") as file:
        before = file.attrs["sha256"]
        for change in changes:
            change(file)
        if file.attrs["sha256"] == before:
            file.attrs["sha256"] = attributes_digest(file)
    return [str(fault) for fault in verify(path)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_run_has_no_faults(tmp_path, kind, dtype):
    path = write_valid(tmp_path / "run.h5", kind, dtype=dtype)
    assert verify(path) == []
    assert verify(write_valid(tmp_path / "small.h5", kind, dtype=dtype, compress=True)) == []


def test_what_capture_writes_has_no_faults(tmp_path, booted):
    path = tmp_path / "run.h5"
    options = {"mass": True, "entropy": True, "last_positions": 2, "response_mean": True}
    probes.capture(make_judge(booted), tiny.word_items(), path, **options).close()
    assert [str(fault) for fault in verify(path)] == []


def test_a_run_without_residuals_extras_or_numbers_has_no_faults(tmp_path):
    assert verify(write_valid(tmp_path / "none.h5", residual_dtype=None, extras=())) == []
    path = write_valid(tmp_path / "empty.h5")
    with h5py.File(path, "r+") as file:
        del file["capture"]
        put("/readings/status", slice(None), 4)(file)
    stamp(path)
    assert verify(path) == []


def test_a_selection_of_layers_has_no_faults(runs, copies):
    def select(file):
        file.attrs["layers"] = json.dumps(["embed", "2"])
        for path in ("residual", "score_logits/raw", "score_logits/norm", "scale_mass", "entropy", "response_mean"):
            replace(f"/capture/{path}", lambda values: values[:, [0, 2]])(file)
        replace("/capture/last_positions", lambda values: values[:, :, [0, 2]])(file)

    assert broken(copies["plain"], select) == []


ATTRIBUTES = [
    (attr("/", "format", "other"), "/@format: is 'other', not 'probes-run'"),
    (attr("/", "format_version", 2), "/@format_version: is 2; this package checks version 1"),
    (attr("/", "created", None), "/@created: is missing"),
    (attr("/", "created", 7), "/@created: is of type int64, not text of variable length"),
    (attr("/", "n_layers", "3"), "/@n_layers: is of type str, not int"),
    (attr("/", "n_layers", -1), "/@n_layers: is -1, which is no number of layers"),
    (attr("/", "pairwise", 0), "/@pairwise: is of type int64, not bool"),
    (attr("/", "config", "{"), "/@config: is not JSON (Expecting property name enclosed in double quotes: line 1"),
    (attr("/", "config", "[]"), "/@config: is no JSON object"),
    (attr("/", "versions", "[" * 100_000), "/@versions: is not JSON (maximum recursion depth exceeded"),
    (said("config", model=...), "/@config: does not say model"),
    (attr("/", "tolerances", None), "/@tolerances: is missing"),
    (attr("/", "deviations", None), "/@deviations: is missing"),
    (attr("/", "model_hash", "abc"), "/@model_hash: is no SHA-256: 64 digits of 0-9, a-f"),
    (attr("/", "model_hash_v1", "abc"), "/@model_hash_v1: is no SHA-256: 64 digits of 0-9, a-f"),
    (attr("/", "model_hash", SHA[::-1]), "/@model_hash: differs from what judge says of its weights"),
    (attr("/", "judge_hash", SHA), "/@judge_hash: is 0123456789ab..., but that of the judge is "),
    (said("judge", tokenizer="short"), "/@judge: has no SHA-256 as tokenizer"),
    (said("judge", dtype="float16"), "/@dtype: differs from what judge says of its dtype"),
    (attr("/", "layers", '["embed", "2", "1", "3"]'), "/@layers: is not a part of embed, 1 .. 3 in this order, each"),
    (attr("/", "lenses", '["raw", "norm", "norm"]'), "/@lenses: must name each of raw, norm at most once, and nothing"),
    (
        attr("/", "extras", '["scale_mass", "entropy", "last_positions", "response_mean", 4]'),
        "/@extras: must name each",
    ),
    (attr("/", "parts", '[{"created": ""}]'), "/@parts: does not say config, versions, deviations, n_items"),
    (attr("/", "parts", "[1]"), "/@parts: holds something that is no JSON object"),
    (attr("/", "sha256", SHA), "/@sha256: is 0123456789ab..., but that of all attributes is "),
    (attr("/", "mood", "good"), "/@mood: is no attribute of format version 1"),
    (attr("/", "mood\x1b[31m", "good"), "/@mood\\x1b[31m: is no attribute of format version 1"),
    (attr("/items", "mood", "good"), "/items@mood: is no attribute of format version 1"),
    (attr("/items/human", "raters", "some"), "/items/human@raters: is 'some'; it must be slots or identity"),
    (attr("/readout", "eps", None), "/readout@eps: is missing"),
    (attr("/readout", "eps", -1.0), "/readout@eps: is -1.0; it must be a number from 0 on"),
    (attr("/readout", "logit_scale", np.inf), "/readout@logit_scale: is inf; it must be a number"),
    (attr("/readout", "softcap", -1.0), "/readout@softcap: is -1.0; it must be a number above 0, or NaN for none"),
    (attr("/readout", "norm_type", "batch"), "/readout@norm_type: is 'batch'; it must be none, rms or layer"),
    (attr("/readout", "order", "unembed"), "/readout@order: is 'unembed'; it must be 'norm, unembed, logit_scale, so"),
    (attr("/", "readout_hash", SHA), "/@readout_hash: is not that of /readout, which is "),
    (attr("/capture/residual", "dtype", "bfloat16"), "/capture/residual@dtype: is 'bfloat16', but float32 is stored"),
    (attr("/capture/residual", "dtype", None), "/capture/residual@dtype: is missing"),
    (attr("/items/id", "sha256", None), "/items/id@sha256: is missing"),
]


@pytest.mark.parametrize(("change", "fault"), ATTRIBUTES)
def test_a_wrong_attribute_is_named(copies, change, fault):
    (found,) = broken(copies["plain"], change)
    assert found.startswith(fault)


def test_text_that_is_not_utf8_is_named(copies):
    def change(file):
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(h5py.h5t.VARIABLE)
        kind.set_cset(h5py.h5t.CSET_UTF8)
        del file.attrs["created"]
        made = h5py.h5a.create(file.id, b"created", kind, h5py.h5s.create(h5py.h5s.SCALAR))
        made.write(np.array(b"\xff\xfe", dtype=object))

    assert broken(copies["plain"], change) == ["/@created: is not UTF-8"]


def test_a_scale_that_is_none_is_named(copies):
    found = broken(copies["plain"], attr("/", "scale", '{"labels": ["1"]}'))
    assert found[0] == "/@scale: does not say values, human_range, case, bare"
    assert found[1] == "/@scale: is no scale ('human_range')"
    found = broken(copies["pairs"], said("scale", human_range=[-5, 5]))
    assert "/@scale: differs from what judge says of its scale" in found
    assert any(fault.startswith("/items/human_value row 0 (item 'item-0'): is ") for fault in found)


def unsigned(change):
    """A change of a dataset that leaves its checksum as it was."""

    def kept(file):
        before = {name: file[name].attrs["sha256"] for name in datasets(file)}
        change(file)
        for name, sha in before.items():
            file[name].attrs["sha256"] = sha

    return kept


def datasets(file) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
    return found


STRUCTURE = [
    (remove("/items/split"), "/items/split: is missing"),
    (remove("/capture/entropy"), "/capture/entropy: is missing"),
    (remove("/capture/score_logits/raw"), "/capture/score_logits/raw: is missing"),
    (lambda file: file.create_group("more"), "/more: is not in format version 1"),
    (
        attr("/", "extras", '["entropy", "last_positions", "response_mean"]'),
        "/capture/scale_mass: is there, but the run",
    ),
    (
        replace("/items/human_value", lambda values: values.astype(np.float32)),
        "/items/human_value: has the type float32, not float64 (<f8)",
    ),
    (
        replace("/capture/final_mass", lambda values: values.astype(">f4")),
        "/capture/final_mass: has the type >f4, not float32 (<f4)",
    ),
    (
        replace("/capture/entropy", lambda values: values[:, :-1]),
        "/capture/entropy: has the shape [6, 3], not [reading, layer] = [6, 4]",
    ),
    (
        replace("/capture/scale_mass", lambda values: values[0]),
        "/capture/scale_mass: has the shape [4], not [reading, layer] = [6, 4]",
    ),
    (
        replace("/capture/final_mass", lambda values: values, fletcher32=False),
        "/capture/final_mass: has no fletcher32 filter",
    ),
    (
        unsigned(put("/capture/entropy", (1, 2), 0.25)),
        "/capture/entropy: its values have the SHA-256 ",
    ),
    (unsigned(put("/items/system", 1, b"x")), "/items/system: its values have the SHA-256 "),
]


@pytest.mark.parametrize(("change", "fault"), STRUCTURE)
def test_a_wrong_structure_is_named(copies, change, fault):
    (found,) = broken(copies["plain"], change)
    assert found.startswith(fault)


CONTENTS = [
    ("plain", put("/items/split", 1, b"\xff"), "/items/split row 1: is not UTF-8"),
    ("plain", put("/items/human", (1, 0), 7), "/items/human row 1 (item 'item-1'): has the score 7, outside the human"),
    ("plain", put("/items/human", (1, 0), np.inf), "/items/human row 1 (item 'item-1'): has the score inf, outside"),
    ("plain", put("/items/human_value", 1, 3.25), "/items/human_value row 1 (item 'item-1'): is 3.25; the mean of its"),
    ("plain", put("/items/human_value", 2, 3.0), "/items/human_value row 2 (item 'item-2'): is 3; the mean of its h"),
    ("plain", put("/items/human_value", 1, np.nan), "/items/human_value row 1 (item 'item-1'): is nan; the mean of "),
    ("plain", put("/items/items_hash", 3, SHA.encode()), "/items/items_hash row 3 (item 'item-3'): is not the hash o"),
    (
        "pairs",
        put("/prompts/token_ids/values", 0, 9),
        "/items/items_hash row 0 (item 'item-0'): is not the hash of its",
    ),
    ("plain", put("/items/fields/values", 0, ord("[")), "/items/fields/values row 0 (item 'item-0'): is not JSON (Exp"),
    ("plain", put("/items/fields/values", 3, 0xFF), "/items/fields/values row 0 (item 'item-0'): is not UTF-8"),
    ("plain", put("/items/fields/offsets", 0, 1), "/items/fields/offsets: runs from 1 to"),
    ("plain", put("/readings/sample", 1, -1), "/readings/sample row 1 (item 'item-1'): is -1, below 0"),
    ("plain", put("/readings/swapped", 3, 2), "/readings/swapped row 3 (item 'item-3'): is 2, not 0 or 1"),
    ("plain", put("/readings/position", 0, 2), "/readings/position row 0 (item 'item-0'): is 2; its prompt and answer"),
    ("plain", put("/readings/position", 0, -1), "/readings/position row 0 (item 'item-0'): is -1; its prompt and answ"),
    ("generated", put("/readings/position", 0, 5), "/readings/position row 0 (item 'item-0'): is 5; its prompt and"),
    ("plain", put("/readings/prompt", 2, 1), "/readings/prompt row 2 (item 'item-2'): is 1; that of its item and ord"),
    ("plain", put("/readings/prompt", 2, 77), "/readings/prompt row 2 (item 'item-2'): is 77; that of its item and o"),
    ("generated", put("/readings/sample", 1, 0), "/readings/item row 1 (item 'item-0'): is sample 0 of its item once"),
    ("pairs", attr("/", "first_label", "tie"), "/@first_label: is 'tie', no outer label of the scale (A or B)"),
    ("pairs", attr("/", "first_label", None), "/@first_label: is missing"),
    ("generated", said("judge", condition="direct"), "/generation: is there, but the judge was read at the end of the"),
    (
        "generated",
        put("/generation/text/values", 3, 0x80),
        "/generation/text/values row 1 (item 'item-0'): is not UTF-8",
    ),
    ("plain", put("/capture/residual", (1, 1, 2), np.inf), "/capture/residual row 1 (item 'item-1'): has status 0 but"),
    ("plain", put("/capture/entropy", (1, 1), np.nan), "/capture/entropy row 1 (item 'item-1'): has status 0 but is n"),
    ("plain", put("/capture/entropy", (3, 1), 0), "/capture/entropy row 3 (item 'item-3'): has numbers, though its st"),
    ("plain", put("/capture/last_positions", (3, 1, 1, 1), 0), "/capture/last_positions row 3 (item 'item-3'): has nu"),
    ("plain", put("/capture/final_mass", 1, 1.5), "/capture/final_mass row 1 (item 'item-1'): is no share between 0"),
    ("plain", put("/capture/scale_mass", (1, 0), -0.5), "/capture/scale_mass row 1 (item 'item-1'): is no share betwe"),
    (
        "plain",
        put("/capture/score_logits/norm", (5, -1, 2), 4.0),
        "/capture/score_logits/norm row 5 (item 'item-5'): is ",
    ),
    (
        "plain",
        put("/capture/score_logits/raw", (5, -1, 2), 4.0),
        "/capture/score_logits/raw row 5 (item 'item-5'): is ",
    ),
]


@pytest.mark.parametrize(("kind", "change", "fault"), CONTENTS)
def test_wrong_contents_are_named(copies, kind, change, fault):
    (found,) = broken(copies[kind], change)
    assert found.startswith(fault)


def test_bfloat16_rows_are_checked_as_bits(tmp_path):
    path = write_valid(tmp_path / "run.h5", dtype="bfloat16")
    found = broken(path, put("/capture/residual", (1, 1, 2), 0x7F80), put("/capture/residual", (3, 0, 0), 0x7FC1))
    assert found == [
        "/capture/residual row 1 (item 'item-1'): has status 0 but is not finite",
        "/capture/residual row 3 (item 'item-3'): has numbers, though its status is not 0; they must be NaN",
    ]
    path = write_valid(tmp_path / "other.h5", dtype="bfloat16")
    found = broken(path, put("/capture/residual", (1, -1, 2), 0x4000))
    assert len(found) == 2
    for fault, lens in zip(found, ("raw", "norm"), strict=True):
        assert fault.startswith(f"/capture/score_logits/{lens} row 1 (item 'item-1'): is ")
        assert fault.endswith(" off what the last residual state and /readout give")


READOUT = [
    (put("/readout/unembed_bias", 1, np.nan), "/readout/unembed_bias row 1: is not finite"),
    (put("/readout/label_index", 1, 7), "/readout/label_index row 1: is 7, but the scale has labels 0 to 4"),
    (put("/readout/label_index", 1, 0), "/readout/label_index: gives the labels [2, 0, 1, 1, 1] tokens; all need equa"),
    (put("/readout/token_ids", 1, 10), "/readout/token_ids: has a token id below 0, or one twice"),
]


@pytest.mark.parametrize(("change", "fault"), READOUT)
def test_a_wrong_readout_is_named(copies, change, fault):
    (found,) = broken(copies["plain"], change)
    assert found.startswith(fault)


def test_a_readout_that_changed_is_not_that_of_its_hash(copies):
    found = broken(copies["plain"], put("/readout/norm_bias", 0, 0.5))
    assert found[0].startswith("/@readout_hash: is not that of /readout, which is ")
    assert found[1].startswith("/capture/score_logits/norm row 0 (item 'item-0'): is ")
    assert found[1].endswith(" off what the last residual state and /readout give")
    assert found[4:] == ["/capture/score_logits/norm: and 2 more"]


def test_one_cause_may_show_in_several_places(copies):
    twice = broken(copies["plain"], put("/items/id", 1, b"item-0"))
    assert twice[0] == "/items/id row 1: is 'item-0', as row 0 is"
    assert twice[1].startswith("/items/items_hash row 1 (item 'item-0'): is not the hash")
    falls = broken(copies["generated"], put("/generation/token_ids/offsets", 2, 99))
    assert "/generation/token_ids/offsets row 3: is 10, less than the 99 before" in falls
    half = broken(copies["pairs"], put("/readings/swapped", 1, 0))
    assert "/readings/item row 1 (item 'item-0'): is sample 0 of its item once more, after row 0" in half
    assert "/readings/swapped row 0 (item 'item-0'): is 0, and sample 0 lacks the other order" in half
    far = broken(copies["plain"], put("/readings/item", 4, 9))
    assert "/readings/item row 4: is 9, but there are items 0 to 5" in far
    assert "/items/id row 4 (item 'item-4'): has no reading" in far


def test_unknown_status_and_status_without_numbers(copies):
    found = broken(copies["plain"], put("/readings/status", 5, 6))
    assert found[0] == "/readings/status row 5 (item 'item-5'): is 6, but there are 0 to 5"
    assert "/capture/residual row 5 (item 'item-5'): has numbers, though its status is not 0; they must be NaN" in found
    found = broken(copies["pairs"], remove("/capture"))
    assert found[0] == "/readings/status row 0 (item 'item-0'): is 0, but there is no /capture"
    assert found[3] == "/readings/status: and 9 more"


def test_missing_parts_of_what_was_generated_are_named(copies):
    found = broken(copies["generated"], remove("/generation/token_ids"))
    assert found == ["/generation/token_ids/values: is missing", "/generation/token_ids/offsets: is missing"]
    found = broken(copies["generated"], remove("/generation"), put("/readings/position", slice(None), 0))
    assert found == ["/generation: is missing, but the judge answered in text"]


def test_every_fault_is_named(copies):
    found = broken(
        copies["plain"],
        attr("/", "created", None),
        remove("/items/split"),
        put("/items/human", (1, 0), 7),
        put("/capture/entropy", (1, 1), np.nan),
        unsigned(put("/capture/scale_mass", (0, 0), 0.25)),
    )
    assert [fault.partition(":")[0] for fault in found] == [
        "/@created",
        "/items/split",
        "/items/human row 1 (item 'item-1')",
        "/capture/scale_mass",
        "/capture/entropy row 1 (item 'item-1')",
    ]


def test_faults_of_one_kind_are_counted(tmp_path):
    path = write_valid(tmp_path / "run.h5", n_items=30)
    found = broken(path, put("/capture/entropy", slice(5, 25), np.inf))
    assert found == [
        *(f"/capture/entropy row {k} (item 'item-{k}'): has status 0 but is not finite" for k in (5, 6, 7)),
        "/capture/entropy: and 17 more",
    ]


def test_faults_of_one_kind_are_counted_across_blocks():
    faults = Faults()
    for start in range(0, 100, 10):
        faults.add_rows("/x", np.arange(start, start + 10), lambda row: "is wrong")
    assert [str(fault) for fault in faults.found()] == [
        *(f"/x row {k}: is wrong" for k in range(3)),
        "/x: and 97 more",
    ]


def test_small_blocks_find_the_same(copies, monkeypatch):
    changes = [
        put("/generation/text/values", 3, 0x80),
        put("/capture/entropy", (7, 1), np.nan),
        put("/prompts/token_ids/values", 4, -3),
        put("/items/fields/values", 0, ord("[")),
        unsigned(put("/capture/scale_mass", (0, 0), 0.25)),
    ]
    before = broken(copies["generated"], *changes)
    assert len(before) == 6
    monkeypatch.setattr(structure, "BLOCK_BYTES", 16)
    assert [str(fault) for fault in verify(copies["generated"])] == before


def test_a_damaged_chunk_is_named_and_the_rest_is_still_checked(copies):
    path = copies["plain"]
    with h5py.File(path) as file:
        chunk = file["capture/entropy"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 2] ^= 1
    path.write_bytes(data)
    found = broken(path, put("/items/human", (1, 0), 7))
    assert found[0].startswith("/items/human row 1")
    assert found[1] == (
        "/capture/entropy rows 0 to 5: cannot be read (Can't synchronously read data (filter returned failure during "
        "read))"
    )
    assert len(found) == 2


def test_what_is_no_run_at_all(tmp_path, copies):
    with pytest.raises(RunFileError, match=r"no such file: .*none.h5; give the path"):
        verify(tmp_path / "none.h5")
    path = copies["plain"]
    path.write_bytes(path.read_bytes()[:5000])
    (fault,) = verify(path)
    assert "cannot be read as HDF5" in fault.what
    path.write_text("hello")
    (fault,) = verify(path)
    assert "it does not start as an HDF5 file does" in fault.what
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    found = [str(fault) for fault in verify(path)]
    assert {"/@format: is missing", "/items/id: is missing", "/x: is not in format version 1"} <= set(found)


def test_nothing_is_read_from_an_unsafe_file(copies):
    def plant(file):
        file["items/link"] = h5py.SoftLink("/items/id")
        file["more"] = h5py.ExternalLink("/etc/passwd", "/")
        file.attrs["created"] = 7

    assert broken(copies["plain"], plant) == [
        "/items/link: is a link to elsewhere, which a run never holds",
        "/more: is a link to elsewhere, which a run never holds",
    ]


def test_an_unfinished_run(tmp_path):
    write_valid(tmp_path / "run.h5", finish=False)
    folder = tmp_path / "run.h5.partial"
    assert verify(folder) == verify(folder, untrusted=True) == verify(tmp_path / "run.h5") == []
    manifest = folder / "manifest.json"
    text = json.loads(manifest.read_text())
    text["shards"]["4"] = text["shards"]["0"]
    manifest.write_text(json.dumps(text))
    with h5py.File(folder / "header.h5", "r+") as file:
        attr("/", "created", None)(file)
    shard = folder / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes() + b"x")
    found = [str(fault) for fault in verify(folder)]
    assert found[0] == "header.h5 /@created: is missing"
    assert re.fullmatch(
        r"shard-00000.h5: has the SHA-256 \w{12}..., not \w{12}...; resume the capture to write it again", found[1]
    )
    assert found[2].startswith("shard-00004.h5: cannot be read (No such file")
    assert len(found) == 3
    (folder / "header.h5").unlink()
    assert str(verify(folder)[0]) == "header.h5: is missing"
    manifest.write_text("{")
    assert str(verify(folder)[0]).startswith("manifest.json: cannot be read (Expecting property name")
    manifest.unlink()
    assert [str(fault) for fault in verify(folder)] == ["manifest.json: is missing; a folder without it is no run"]


def table(heading: str) -> list[list[str]]:
    """Rows of the table below a heading of the page, without their last column, the meaning."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("`", "") for cell in row[:-1]] for row in rows[2:]]


def test_the_page_has_every_dataset_of_the_specification():
    documented = [tuple(row) for row in table("Datasets")]
    specified = [
        (entry.path, entry.dtype, f"[{', '.join(entry.shape)}]", entry.needed.replace("`", ""))
        for entry in spec.DATASETS
    ]
    assert sorted(documented) == sorted(specified)


def test_the_page_has_every_attribute_of_the_specification():
    documented = [tuple(row) for row in table("Attributes")]
    specified = [(entry.owner, entry.name, entry.dtype, entry.needed) for entry in spec.ATTRIBUTES]
    assert sorted(documented) == sorted(specified)

"""Reading layers and rows of stored datasets: the same numbers as plain h5py, fast, and never damaged ones."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.errors import RunFileError
from probes.store import columns
from probes.store.format import from_bfloat16_bits

SHAPE = (40, 3, 5)


def write(path, *, chunks=(7, 1, 5), dtype=np.float32, shape=SHAPE, **options):
    """A dataset of different numbers, and these numbers."""
    values = np.arange(np.prod(shape), dtype=np.int64).astype(dtype).reshape(shape)
    with h5py.File(path, "w") as file:
        file.create_dataset("capture/residual", data=values, chunks=chunks, **options)
    return values


def expected(values, rows, index, decode):
    rows = np.arange(len(values)) if rows is None else rows
    found = values[rows.astype(int)][(slice(None), *index)]
    return from_bfloat16_bits(found) if decode and found.dtype == np.uint16 else found


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    n_rows = shape[0]
    chunked = all(shape) and draw(st.booleans())
    options = {}
    if chunked:
        options = {
            "chunks": tuple(draw(st.integers(1, size)) for size in shape),
            "fletcher32": draw(st.booleans()),
            "shuffle": draw(st.booleans()),
            "compression": draw(st.sampled_from([None, "gzip"])),
        }
    rows = None
    if draw(st.booleans()):
        numbers = st.integers(-n_rows, n_rows - 1) if n_rows else st.just(0)
        rows = np.array(draw(st.lists(numbers, max_size=20 if n_rows else 0)), dtype=np.int64)
        rows = np.sort(rows) if draw(st.booleans()) else rows
    index = tuple(
        draw(st.integers(0, size - 1) if size and draw(st.booleans()) else st.just(slice(None)))
        for size in shape[1 : draw(st.integers(1, len(shape)))]
    )
    return shape, draw(st.sampled_from([np.float32, np.uint16, np.uint8])), options, rows, index


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from([1, 64, 1 << 20]), st.booleans())
def test_rows_and_columns_are_those_of_plain_indexing(case, stretch, decode):
    shape, dtype, options, rows, index = case
    values = np.arange(np.prod(shape), dtype=np.int64).astype(dtype).reshape(shape)
    with (
        pytest.MonkeyPatch.context() as patch,
        h5py.File("memory", "w", driver="core", backing_store=False) as file,
    ):
        patch.setattr(columns, "_STRETCH_BYTES", stretch)
        dataset = file.create_dataset("x", data=values, **options)
        found = columns.read(dataset, rows, index, decode=decode)
    wanted = expected(values, rows, index, decode)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(None, id="all"),
        pytest.param(np.arange(5, 30), id="run"),
        pytest.param(np.array([2, 3, 9, 39]), id="ascending"),
        pytest.param(np.array([39, 2, 2, 20, 2]), id="repeated"),
        pytest.param(np.array([5, 5, 6, 6]), id="repeated in order"),
        pytest.param(np.array([-1, 0, -40]), id="from the end"),
        pytest.param(np.array([], dtype=np.float64), id="none"),
        pytest.param(np.array([3, 1], dtype=np.uint8), id="unsigned"),
    ],
)
def test_rows_come_in_the_order_asked_for(tmp_path, rows, dtype):
    values = write(tmp_path / "x.h5", dtype=dtype, fletcher32=True)
    with h5py.File(tmp_path / "x.h5") as file:
        dataset = file["capture/residual"]
        for index in ((), (1,), (slice(None), 4)):
            for decode in (False, True):
                found = columns.read(dataset, rows, index, decode=decode)
                np.testing.assert_array_equal(found, expected(values, rows, index, decode))


def test_chunks_that_were_never_written_read_as_the_fill_value():
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", SHAPE, np.float32, chunks=(7, 1, 5), fillvalue=np.nan)
        dataset[8, 1] = 1
        found = columns.read(dataset, np.array([8, 30]), (1,))
    np.testing.assert_array_equal(found, [[1] * 5, [np.nan] * 5])


def test_a_row_that_does_not_exist_is_refused(tmp_path):
    write(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        for row in (40, -41):
            with pytest.raises(RunFileError) as error:
                columns.read(file["capture/residual"], np.array([0, row]))
            assert str(error.value) == (f"{tmp_path / 'x.h5'}: there is no reading {row}, it has 40 and 0 is the first")


def test_a_flipped_byte_is_found_where_it_is_and_nothing_else_is_read(tmp_path):
    path = tmp_path / "x.h5"
    values = write(path, fletcher32=True)
    with h5py.File(path) as file:
        # Readings 7 to 13 of the second layer.
        offset = next(
            info.byte_offset
            for info in map(file["capture/residual"].id.get_chunk_info, range(18))
            if info.chunk_offset == (7, 1, 0)
        )
    damaged = bytearray(path.read_bytes())
    damaged[offset + 9] ^= 1
    path.write_bytes(damaged)
    others = np.setdiff1d(np.arange(40), np.arange(7, 14))
    with h5py.File(path) as file:
        dataset = file["capture/residual"]
        for layer in (0, 2):
            np.testing.assert_array_equal(columns.read(dataset, None, (layer,)), values[:, layer])
        np.testing.assert_array_equal(columns.read(dataset, others, (1,)), values[others, 1])
        with pytest.raises(RunFileError) as error:
            columns.read(dataset, np.array([30, 12, 2, 9]), (1,))
        assert str(error.value) == (
            f"{path}: /capture/residual is damaged in readings 9 to 12 (filter returned failure during read); "
            "restore a copy or capture it again"
        )
        with pytest.raises(RunFileError, match="is damaged in readings 7 to 13"):
            columns.read(dataset, None, (1,))

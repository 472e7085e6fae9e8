"""Reading a run file, and what lossless compression of its residuals would save and cost.

`python -m benchmarks.runfile` takes three minutes; `--full` takes sizes of real studies and 3 GB of disk.
Everything is read from the page cache, each way in turn, and of the rounds the fastest counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

import probes
from probes import demo
from probes.store import columns
from probes.store.format import CHUNK_BYTES, bfloat16_bits, from_bfloat16_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LAYERS = 3
LONG = 3.0  # seconds
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "deflate 1": {"compression": 1},
    "shuffle, deflate 1": {"compression": 1, "shuffle": True},
    "deflate 4": {"compression": 4},
    "shuffle, deflate 4": {"compression": 4, "shuffle": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="100,000 readings a file instead of 10,000")
    parser.add_argument("--words", type=int, default=300, help="words to capture for the compression")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed")
    options = parser.parse_args()
    readings = 100_000 if options.full else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for d_model, dtype in ((576, "bfloat16"), (4096, "bfloat16"), (2048, "float32")):
            reading(folder / "read.h5", readings, d_model, dtype, options.rounds)
        chunk_sizes(folder / "chunks.h5", readings, options.rounds)
        for dtype in ("float32", "bfloat16"):
            path = captured(folder, options.words, dtype)
            with h5py.File(path) as file:
                states = file["capture/residual"][:]
            compression(folder, f"{options.words} words, {dtype}", states, options.rounds)
            verifying(path, options.rounds)
        shape = (300, 31, 576)
        compression(folder, "random normal numbers, float32", normal(shape, "float32"), options.rounds)
        compression(folder, "random normal numbers, bfloat16", normal(shape, "bfloat16"), options.rounds)


def reading(path: Path, readings: int, d_model: int, dtype: str, rounds: int) -> None:
    """Print how long one layer and some rows of it take, and how long with h5py's own indexing."""
    with written(path, readings, d_model, dtype) as dataset:
        rng = np.random.default_rng(0)
        rows = {
            "one layer, all readings": None,
            "one layer, first half": np.arange(readings // 2),
            "one layer, 90 % at random": np.sort(rng.choice(readings, readings * 9 // 10, replace=False)),
            "one layer, 10 % at random": np.sort(rng.choice(readings, readings // 10, replace=False)),
            "one layer, 50 at random": np.sort(rng.choice(readings, 50, replace=False)),
            "one layer, in any order": rng.permutation(readings),
            "all layers, 100 in a row": np.arange(readings // 2, readings // 2 + 100),
        }
        print(f"\n{readings:,} readings, d_model {d_model}, {dtype}: seconds as float32, with stored GB/s")
        print(f"  {'':28}{'probes':>9}{'GB/s':>7}{'h5py':>10}{'ratio':>8}")
        for name, which in rows.items():
            index = () if name.startswith("all") else (1,)
            ours, plain = fastest(
                {
                    "probes": partial(columns.read, dataset, which, index, decode=True),
                    "h5py": partial(indexed, dataset, which, index),
                },
                rounds,
            ).values()
            n_rows = readings if which is None else len(which)
            size = n_rows * d_model * dataset.dtype.itemsize * (1 if index else LAYERS)
            print(f"  {name:28}{ours:9.4f}{size / ours / 1e9:7.2f}{plain:10.4f}{ours / plain:8.2f}")
    path.unlink()


def indexed(dataset: h5py.Dataset, rows: np.ndarray | None, index: tuple[int, ...]) -> np.ndarray:
    """What ``columns.read`` gives, by h5py alone."""
    if rows is None:
        values = dataset[(slice(None), *index)]
    else:
        wanted, inverse = np.unique(rows, return_inverse=True)
        values = dataset[(wanted, *index)][inverse]
    return from_bfloat16_bits(values) if values.dtype == np.uint16 else values


def chunk_sizes(path: Path, readings: int, rounds: int) -> None:
    """Print what the size of a chunk does to the three ways of reading."""
    print(f"\nChunks (now {CHUNK_BYTES >> 10} KiB): seconds for {readings:,} readings, d_model 576, bfloat16")
    print(f"  {'KiB':>6}{'a layer':>10}{'50 at random':>14}{'100, all layers':>17}")
    some = np.sort(np.random.default_rng(0).choice(readings, 50, replace=False))
    for size in (1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22):
        with written(path, readings, 576, "bfloat16", size) as dataset:
            found = fastest(
                {
                    "layer": partial(columns.read, dataset, None, (1,), decode=True),
                    "some": partial(columns.read, dataset, some, (1,), decode=True),
                    "items": partial(columns.read, dataset, np.arange(100), decode=True),
                },
                rounds,
            )
        print(f"  {size >> 10:6}{found['layer']:10.4f}{found['some']:14.4f}{found['items']:17.4f}")
        path.unlink()


def captured(folder: Path, words: int, dtype: str) -> Path:
    """A run of the demo's words."""
    judge = probes.Judge.load(
        demo.MODEL, template=demo.TEMPLATE, scale=demo.SCALE, human_range=demo.HUMAN_RANGE, dtype=dtype
    )
    path = folder / f"{dtype}.h5"
    probes.capture(judge, probes.vader_words(words), path, show_progress=False).close()
    return path


def compression(folder: Path, name: str, states: np.ndarray, rounds: int) -> None:
    """Print size, and speed of writing and reading, with each filter."""
    path, megabytes = folder / "compressed.h5", states.nbytes / 1e6
    print(f"\nLossless compression of {name} ({megabytes:.0f} MB): share of the size, MB/s")
    print(f"  {'':20}{'size':>7}{'write':>9}{'read':>9}")
    for label, filters in FILTERS.items():
        wrote = fastest({"write": partial(store, path, states, filters)}, rounds)["write"]
        with h5py.File(path) as file:
            dataset = file["residual"]
            size = dataset.id.get_storage_size() / states.nbytes
            read = fastest({"read": partial(each_layer, dataset)}, rounds)["read"]
        print(f"  {label:20}{size:7.2f}{megabytes / wrote:9.0f}{megabytes / read:9.0f}")


def store(path: Path, states: np.ndarray, filters: Mapping[str, Any]) -> None:
    n_rows, _, d_model = states.shape
    chunks = (min(n_rows, CHUNK_BYTES // (d_model * states.itemsize)), 1, d_model)
    with h5py.File(path, "w") as file:
        file.create_dataset("residual", data=states, chunks=chunks, fletcher32=True, **filters)


def each_layer(dataset: h5py.Dataset) -> None:
    for layer in range(dataset.shape[1]):
        columns.read(dataset, None, (layer,), decode=True)


def verifying(path: Path, rounds: int) -> None:
    """Print how long it takes to check a run file."""
    if importlib.util.find_spec("probes.store.verify") is None:
        return
    from probes.store.verify import verify

    gigabytes = path.stat().st_size / 1e9
    seconds = fastest({"verify": partial(verify, path)}, rounds)["verify"]
    print(f"  checking it: {seconds:.2f} s, {seconds / gigabytes:.1f} s a GB")


@contextmanager
def written(
    path: Path, readings: int, d_model: int, dtype: str, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[h5py.Dataset]:
    """A dataset of random states in a file, chunked as a run file is."""
    kind = np.dtype("u2" if dtype == "bfloat16" else "f4")
    step = min(readings, chunk_bytes // (d_model * kind.itemsize))
    shape, chunks = (readings, LAYERS, d_model), (step, 1, d_model)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("capture/residual", shape, kind, chunks=chunks, fletcher32=True)
        for start in range(0, readings, step):
            dataset[start : start + step] = normal((min(step, readings - start), LAYERS, d_model), dtype)
    # HDF5 keeps no chunk from one round to the next.
    with h5py.File(path, rdcc_nbytes=0) as file:
        yield file["capture/residual"]


def normal(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return bfloat16_bits(values) if dtype == "bfloat16" else values


def fastest(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, the best of some rounds in which they take turns; what takes long is done twice.

    Not once: memory that a process has never touched before can cost more than the reading.
    """
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds):
        for name, way in ways.items():
            if turn > 1 and best[name] > LONG:
                continue
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()

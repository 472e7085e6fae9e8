"""From runs to one file that is fast to read by layer, in bounded memory.

Every run file is written here: a finished capture from its shards, an extended run from the file that was there and
the new shards, a merged one from several files, and a selection from one.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.differences import differences
from probes.errors import RunFileError
from probes.layer_order import in_model_order
from probes.lens import check_lenses
from probes.same_model import named_like
from probes.store import disk
from probes.store.format import CHUNK_BYTES, blank, raw_bytes, write_array
from probes.store.header import Header, join_headers, write_header
from probes.store.lock import locked, remove_folder
from probes.store.opening import open_run
from probes.store.run import Run
from probes.store.structure import attributes_digest
from probes.store.values import layer_axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import h5py

# Readings are copied in blocks of at most so many bytes.
_BLOCK_BYTES = 32 << 20
_DEFLATE_LEVEL = 1


def merge(
    runs: Sequence[Run],
    out: str | Path,
    *,
    lenses: Sequence[str] | None = None,
    compress: bool = False,
    overwrite: bool = False,
) -> Run:
    """Write the items of one or several runs into one file.

    Args:
        runs: Runs of the same judge and of disjoint items, whole or selected (``run.select(split="test")``); items
            are written in the order of the runs, and within each in its own, layers in that of the model.
        out: File to write.
        lenses: Lenses whose score logits are stored; those of the first run unless given. One that a run lacks is
            computed from its residuals.
        compress: Compress the numbers without loss.
        overwrite: Replace an existing file.

    Returns:
        The new run, opened.

    Raises:
        RunFileError: The runs do not go together (every difference is named), the file exists, or the disk is full.
    """
    out = Path(out)
    if not runs:
        raise RunFileError("there is nothing to merge; give at least one run")
    for run in runs:
        if not isinstance(run, Run):
            raise RunFileError(f"merge takes runs, got {run!r}; open it with probes.open_run")
        if not run.is_complete:
            raise RunFileError(f"{run.path} is unfinished; finish the capture before it is merged")
    if lenses is not None:
        check_lenses(lenses)
    with disk.failures_named(out):
        disk.make_folder(out.parent)
    # The lock is that of a capture, so that neither gets into the way of the other.
    with locked(out) as folder:
        if (folder / "manifest.json").exists():
            raise RunFileError(f"{folder} holds an unfinished capture; finish it, remove it, or choose another path")
        try:
            if out.exists() and not overwrite:
                raise RunFileError(f"{out} exists; choose another path, or overwrite=True (--overwrite) to replace it")
            write_run(runs, out, lenses=lenses, compress=compress)
        finally:
            remove_folder(folder)
    return open_run(out)


def write_run(
    runs: Sequence[Run],
    out: Path,
    *,
    lenses: Sequence[str] | None = None,
    compress: bool = False,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Write runs into one file under a temporary name, and rename it when it has reached the disk.

    Args:
        runs: As in ``merge``.
        out: File to write; replaced at once or not at all.
        lenses: As in ``merge``.
        compress: As in ``merge``.
        attrs: Root attributes of the last run that its own file does not have yet.

    Raises:
        RunFileError: As in ``merge``.
    """
    runs = [in_model_order(run) for run in runs]  # as the format has layers
    headers = [run.header() for run in runs]
    headers[-1] = replace(headers[-1], attrs=headers[-1].attrs | dict(attrs or {}))
    _check_compatible(runs, headers)
    lenses = tuple(dict.fromkeys(lenses or headers[0].lenses))
    joined = replace(join_headers(headers, _joined_attrs(headers)), lenses=lenses)
    for run in runs:
        if missing := [lens for lens in lenses if lens not in run.lenses]:
            if run.has_choices:
                raise RunFileError(f"{run.path} lacks the lens {missing[0]!r}, which choices need at capture")
            raise RunFileError(f"{run.path} holds neither the lens {missing[0]!r} nor residuals; leave that lens out")
    disk.check_space(out, _size(runs, joined))
    temporary = out.with_name(f"{out.name}.writing")
    with disk.failures_named(out):
        try:
            with disk.h5_file(temporary, "w") as file:
                write_header(file, joined)
                _write_numbers(file, runs, joined, compress=compress)
                file.attrs["sha256"] = attributes_digest(file)
            disk.publish(temporary, out)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _size(runs: Sequence[Run], header: Header) -> int:
    """About as many bytes as the file will take, uncompressed."""
    n_bytes = 8 * len(header.token_ids.values) + 200 * len(header.items)
    n_bytes += sum(len(text) for item in header.items for text in item.fields.values())
    for run in runs:
        for name in _names(header) if "final_mass" in run else ():
            like = run.stored(name, np.arange(0))
            n_bytes += len(run.status) * _nbytes(like.shape[1:], like.dtype)
    if header.choices is not None:
        n_bytes += 4 * len(header.choices) * len(header.layers) * len(header.lenses)
    return n_bytes


def _names(header: Header) -> list[str]:
    """Datasets below ``/capture``."""
    residual = ["residual"] if header.residual_dtype else []
    lenses = () if header.choices is not None else header.lenses
    return [*residual, *(f"score_logits/{lens}" for lens in lenses), "final_mass", *header.extras]


def _check_compatible(runs: Sequence[Run], headers: Sequence[Header]) -> None:
    seen: dict[str, Path] = {}
    for run, header in zip(runs, headers, strict=True):
        named = replace(header, attrs=named_like(header.attrs, headers[0].attrs))
        differ = differences(_identity(headers[0]), _identity(named))
        if differ:
            raise RunFileError(
                f"{runs[0].path} and {run.path} differ in {', '.join(differ)}; only runs of the same judge, captured "
                "in the same way, go into one file"
            )
        if twice := [name for name, count in Counter(header.items.ids).items() if count > 1]:
            raise RunFileError(
                f"{run.path}: the item {twice[0]!r} is selected {header.items.ids.count(twice[0])} times; a file holds "
                "each item once, so select it once"
            )
        if both := [name for name in header.items.ids if name in seen]:
            raise RunFileError(
                f"{seen[both[0]]} and {run.path} both hold the item {both[0]!r} ({len(both)} in all); select what "
                "to take from each"
            )
        seen |= {name: run.path for name in header.items.ids}  # noqa: C420 - typed


def _identity(header: Header) -> dict[str, Any]:
    """What runs must have in common to go into one file."""
    attrs = header.attrs
    identity: dict[str, Any] = {
        "judge": attrs.get("judge") or attrs["judge_hash"],
        "model_hash": attrs["model_hash"],
        "readout_hash": attrs["readout_hash"],
        "layers": list(header.layers),
        "extras": list(header.extras),
        "residual_dtype": header.residual_dtype,
        "last positions": attrs.get("config", {}).get("extras", {}).get("last_positions", 0),
        "raters": header.items.raters,
    }
    if header.items.raters == "identity":
        identity["number of raters"] = header.items.n_raters
    return identity


def _joined_attrs(headers: Sequence[Header]) -> dict[str, Any]:
    """Root attributes of the result: those of the first run, and what every part says about itself."""
    attrs = {"deviations": {}} | headers[0].attrs  # an unfinished run does not know them yet
    if len(headers) == 1:
        return attrs
    parts: list[dict[str, Any]] = []
    for header in headers:
        own = {name: header.attrs.get(name) for name in ("created", "config", "versions", "deviations")}
        parts += header.attrs.get("parts") or [own | {"n_items": len(header.items)}]
    attrs["parts"] = parts
    # Under today's hash of the model, where any of them knows it: that of earlier versions moves with transformers.
    newest = next((header.attrs for header in headers if header.attrs.get("model_hash_v1")), attrs)
    attrs = named_like(attrs, newest) | {name: newest[name] for name in ("model_hash_v1",) if name in newest}
    worst = max(float((part["deviations"] or {}).get("final_logits", 0.0)) for part in parts)
    attrs["deviations"] = dict(attrs.get("deviations") or {}) | {"final_logits": worst}
    if known := {name: one for header in headers for name, one in header.items.about.items()}:
        attrs["config"] = attrs["config"] | {"tasks": known}  # each part brings the tasks of its items
    attrs["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return attrs


def _write_numbers(file: h5py.File, runs: Sequence[Run], header: Header, *, compress: bool) -> None:
    """Everything below ``/capture`` and ``/generation``, if anything was captured at all."""
    known = [run for run in runs if "final_mass" in run]
    if not known:
        return
    for name in _names(header):
        like = known[0].stored(name, np.arange(0))
        shape = (len(header.status), *like.shape[1:])
        chunks = _chunks(shape, like.dtype.itemsize, layer_axis(name))
        # Whole chunks a block, so that no chunk is written twice.
        n_block = chunks[0] * max(1, _BLOCK_BYTES // _nbytes((chunks[0], *shape[1:]), like.dtype))
        blocks = (
            _rows(runs, name, like, start, min(start + n_block, shape[0])) for start in range(0, shape[0], n_block)
        )
        dataset = _write_blocks(file, f"capture/{name}", shape, like.dtype, chunks, blocks, compress=compress)
        if name in ("residual", "last_positions"):
            dataset.attrs["dtype"] = "bfloat16" if like.dtype == np.uint16 else "float32"
    for lens in () if header.choices is None else header.lenses:
        _write_choices(file, lens, runs, header, compress=compress)
    for name in ("generation/token_ids", "generation/text"):
        if name in known[0]:
            _write_ragged(file, name, runs, compress=compress)


def _write_choices(file: h5py.File, lens: str, runs: Sequence[Run], header: Header, *, compress: bool) -> None:
    """Log-likelihoods of the choices of all runs, some items at a time."""
    assert header.choices is not None
    shape = len(header.choices), len(header.layers)

    def blocks() -> Iterator[np.ndarray]:
        for run in runs:
            assert run.choices is not None
            ends = run.choices.offsets[1:] * 4 * shape[1]
            cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]), _BLOCK_BYTES)[1:])
            for first, last in pairwise(np.unique([0, *cuts, run.n_items])):
                if "final_mass" in run:
                    yield run.choice_logprob(lens, np.arange(first, last))
                else:  # nothing of this run was captured
                    n_choices = int(run.choices.offsets[last] - run.choices.offsets[first])
                    yield np.full((n_choices, shape[1]), np.nan, np.float32)

    rows = max(1, min(shape[0], CHUNK_BYTES // (4 * shape[1])))
    name = f"capture/choice_logprob/{lens}"
    _write_blocks(file, name, shape, np.dtype(np.float32), (rows, shape[1]), blocks(), compress=compress)


def _chunks(shape: tuple[int, ...], itemsize: int, axis: int | None) -> tuple[int, ...]:
    """A chunk holds one layer of many readings, since analyses read layer by layer."""
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    layers = shape[axis] if axis is not None else 1
    fit = max(1, min(shape[0], CHUNK_BYTES * layers // row_bytes, _BLOCK_BYTES // row_bytes))
    return tuple(1 if number == axis else size for number, size in enumerate((fit, *shape[1:])))


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _rows(runs: Sequence[Run], name: str, like: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows of a dataset of all runs, one after the other."""
    pieces, begin = [], 0
    for run in runs:
        end = begin + len(run.status)
        if begin < stop and start < end:
            rows = np.arange(max(start, begin), min(stop, end)) - begin
            if "final_mass" in run:
                pieces.append(run.stored(name, rows))
            else:  # nothing of this run was captured
                pieces.append(np.full((len(rows), *like.shape[1:]), blank(like.dtype), like.dtype))
        begin = end
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _write_ragged(file: h5py.File, name: str, runs: Sequence[Run], *, compress: bool) -> None:
    lengths = [run.generated_lengths(name) for run in runs]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    dtype = next(run.generated(name, np.arange(1))[0].dtype for run in runs if name in run)

    def blocks() -> Iterator[np.ndarray]:
        for run, counts in zip(runs, lengths, strict=True):
            ends = np.cumsum(counts)
            # Readings at which a block is full.
            cuts = np.searchsorted(ends, np.arange(0, ends[-1], _BLOCK_BYTES // dtype.itemsize)[1:])
            for first, last in pairwise(np.unique([0, *cuts, len(counts)])):
                if ends[last - 1] > (ends[first - 1] if first else 0):
                    yield np.concatenate(run.generated(name, np.arange(first, last)))

    total = int(offsets[-1])
    chunks = (max(1, min(total, CHUNK_BYTES // dtype.itemsize)),)
    _write_blocks(file, f"{name}/values", (total,), dtype, chunks, blocks(), compress=compress)
    write_array(file, f"{name}/offsets", offsets)


def _write_blocks(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: tuple[int, ...],
    blocks: Iterable[np.ndarray],
    *,
    compress: bool,
) -> h5py.Dataset:
    """Write a dataset block by block along its first axis, with fletcher32 and the SHA-256 of its bytes."""
    options: dict[str, Any] = {"chunks": chunks, "fletcher32": True} if all(shape) else {}
    if compress and options:
        options |= {"shuffle": True, "compression": "gzip", "compression_opts": _DEFLATE_LEVEL}
    dataset = file.create_dataset(name, shape, dtype, track_times=False, **options)
    sha, start = hashlib.sha256(), 0
    for block in blocks:
        disk.stop_if_interrupted()
        dataset[start : start + len(block)] = block
        sha.update(raw_bytes(block))
        start += len(block)
        del block  # before the next one is read
    dataset.attrs["sha256"] = sha.hexdigest()
    return dataset

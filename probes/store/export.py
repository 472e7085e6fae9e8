"""A run for other tools: pandas, xarray, Parquet, CSV and safetensors.

Tables have one row a reading and are joined with the texts of the items (``run.items.to_pandas()``) on ``id``.
Files are written block by block, under a temporary name until they are whole.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from scipy.special import softmax

from probes.errors import RunFileError
from probes.fitted import expected_values
from probes.kinds import require_run
from probes.progress import progress
from probes.store import disk
from probes.store.export_choices import choice_layers, choice_lists, choice_rows, most_likely, table_of
from probes.store.format import TEXT_COLUMNS, bfloat16_bits, raw_bytes
from probes.store.provenance import provenance
from probes.store.readings import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd
    import xarray as xr

    from probes.store.run import Run

_BLOCK_BYTES: Final = 32 << 20
# Of a row of the table without its score logits; generated texts are what is long in it.
_ROW_BYTES: Final = 4 << 10


def export(run: Run, path: str | Path) -> None:
    """Write a run, or what was selected from one, in the format that the file's suffix names.

    Args:
        run: The run; an unfinished one is exported as far as it goes.
        path: ``.parquet`` (``to_parquet``), ``.csv`` (``to_csv``) or ``.safetensors`` (``to_safetensors``); an
            existing file is replaced.

    Raises:
        RunFileError: The suffix is none of these, the run lacks what the format holds, or it cannot be written.
    """
    require_run(run)
    writers = {".parquet": to_parquet, ".csv": to_csv, ".safetensors": to_safetensors}
    suffix = Path(path).suffix
    if suffix not in writers:
        raise RunFileError(f"cannot export to {path}: give the file a name that ends in {', '.join(writers)}")
    writers[suffix](run, path)


def to_pandas(run: Run) -> pd.DataFrame:
    """One row a reading.

    Returns:
        Columns ``reading`` (its number); ``id, criterion, group, system, split`` of its item, empty text where there
        is none; ``sample`` (number); ``swapped`` (only for pairs: whether the responses were shown in swapped
        order); ``status`` (``ok, no_score, too_long, non_finite, not_captured, error``); ``n_tokens`` (prompt);
        ``position`` of the token whose state was read; ``final_mass`` (share of the vocabulary's probability on
        the scale, 0 to 1); ``expected`` (expected value of the run's last layer, on the scale of the label
        values) and ``label`` (its most probable label), both under the ``norm`` lens, or the run's only one, and
        of a pair for the responses as they were shown; ``human`` (mean over the raters, on the human scale);
        ``human_value`` (mapped onto label values); ``n_raters``; ``generated_text``, where text was generated.
        NaN, or None for a label, where there is nothing.

        Of a run of choices, ``final_mass`` is the probability of all choices of the item. Instead of ``expected``
        and ``label`` there are ``n_choices``; ``label``, the choice that is most likely at the last layer, of equal
        ones the first; ``grade``, what that choice is worth; and ``p_label``, its probability among the choices of
        the item. The three columns of human scores are there only if any item has one.

    Raises:
        RunFileError: The run is damaged.
    """
    return next(frame for _, frame in _frames(run, max(1, len(run.status))))


def layer_table(run: Run, lens: str = "norm") -> pd.DataFrame:
    """One row a reading and layer; of a run of choices, one row a choice and layer.

    Returns:
        Columns ``reading, id, layer, layer_index``; ``expected``, on the scale of the label values; and one column
        ``p_<label>`` for the probability of each label. NaN where there is no number.

        Of a run of choices, columns ``reading, id``; ``choice``, its text; ``score``, what it is worth; ``layer,
        layer_index``; ``logprob``, its log-likelihood in nats; and ``p``, its probability among the choices of the
        item.

    Raises:
        RunFileError: As ``Run.score_logits``, or ``Run.choice_logprob``.
    """
    import pandas as pd

    if run.has_choices:
        return choice_layers(run, lens)
    logits = run.score_logits(lens).astype(np.float64)
    n_readings, n_layers, _ = logits.shape
    reading, layer = np.repeat(np.arange(n_readings), n_layers), np.tile(np.arange(n_layers), n_readings)
    probabilities = softmax(logits, axis=-1).reshape(n_readings * n_layers, -1)
    columns: dict[str, Any] = {
        "reading": reading,
        "id": np.array(run.ids, dtype=object)[run.readings.item[reading]],
        "layer": np.array(run.layers, dtype=object)[layer],
        "layer_index": layer,
        "expected": probabilities @ np.asarray(run.scale.values),
    }
    return pd.DataFrame(columns | {f"p_{label}": probabilities[:, k] for k, label in enumerate(run.scale.labels)})


def to_xarray(run: Run) -> xr.Dataset:
    """Everything with named axes; what is large is read when it is asked for, and no more of it than that.

    ``ds.residual.sel(layer="12").isel(reading=slice(0, 100))`` reads a hundred states. The run must stay open.

    Returns:
        Coordinates ``item`` (id) with ``criterion, group, system, split``; ``reading`` (number) with ``id``, that
        of its item; ``layer``; ``label`` with ``value``; ``rater``; ``back`` (positions before the one read, 0 is
        the one read). Variables, where the run has them: ``residual [reading, layer, d_model]``,
        ``score_logits_<lens> [reading, layer, label]`` of every lens, ``scale_mass`` and ``entropy`` (nats)
        ``[reading, layer]``, ``last_positions [reading, back, layer, d_model]``, ``response_mean [reading, layer,
        d_model]``, ``final_mass [reading]``, all float32 and NaN where there is no number; ``item_number, sample,
        swapped, status`` (number of ``Status``), ``position, n_tokens`` ``[reading]``; ``human [item, rater]``,
        ``human_value`` and ``item_status [item]``. The attribute ``provenance`` is JSON.

        Of a run of choices, instead of ``label``: the coordinate ``choice`` (number) with ``choice_id``, that of its
        item, ``choice_label``, its text, and ``choice_score``, what it is worth; the variables ``choice_logprob_<lens>
        [choice, layer]`` of every lens, in nats, and ``choice_n_tokens [choice]``. What is human is there only if any
        item has a human score.
    """
    from probes.store.lazy import to_dataset

    return to_dataset(run)


def to_csv(run: Run, path: str | Path) -> None:
    """Write the table of ``to_pandas`` as CSV.

    Raises:
        RunFileError: The run is damaged, or the file cannot be written.
    """
    with _published(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for rows, frame in _shown(run, _BLOCK_BYTES // _ROW_BYTES):
            frame.to_csv(file, index=False, header=rows[0] == 0)


def to_parquet(run: Run, path: str | Path) -> None:
    """Write the table of ``to_pandas`` and the stored score logits as Parquet.

    A lens and layer is one column ``logits.<lens>.<layer>``, a list of one float32 a label, so that pandas, polars
    and DuckDB read just the layers that are asked for. Rows without numbers are null. The key ``provenance`` of
    the schema's metadata is JSON.

    Of a run of choices, the lists have an entry a choice: ``choices``, the texts; ``choice_scores``, what each is
    worth, null where nobody has said so; and instead of logits ``choice_logprob.<lens>.<layer>``.

    Raises:
        RunFileError: The run is damaged, or the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    lenses = run.attr("lenses") if "final_mass" in run else []
    n_labels = int(table_of(run).counts.max()) if run.has_choices else len(run.scale.labels)
    row_bytes = 4 * n_labels * len(run.layers) * len(lenses) + _ROW_BYTES

    def table(rows: np.ndarray, frame: pd.DataFrame) -> Any:
        columns: dict[Any, Any] = {}
        for name, column in frame.items():
            kind = pa.from_numpy_dtype(column.dtype) if column.dtype.kind in "biuf" else pa.string()
            columns[name] = pa.array(column, kind, from_pandas=True)
        is_missing = run.status[rows] != Status.OK
        if run.has_choices:
            columns |= choice_lists(run, lenses, run.readings.item[rows], is_missing)
            return pa.table(columns, metadata={"provenance": provenance(run)})
        missing = pa.array(is_missing)
        for lens in lenses:
            logits = run.score_logits(lens, rows)
            for number, layer in enumerate(run.layers):
                flat = pa.array(logits[:, number].reshape(-1))
                columns[f"logits.{lens}.{layer}"] = pa.FixedSizeListArray.from_arrays(flat, n_labels, mask=missing)
        return pa.table(columns, metadata={"provenance": provenance(run)})

    with _published(Path(path)) as temporary:
        tables = (table(rows, frame) for rows, frame in _shown(run, max(1, _BLOCK_BYTES // row_bytes)))
        first = next(tables)
        with parquet.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            for following in tables:
                writer.write_table(following)


def to_safetensors(run: Run, path: str | Path, layers: Sequence[str | int] | None = None) -> None:
    """Write residuals and score logits as safetensors.

    Tensors: ``residual.<layer> [reading, d_model]``, as stored (bfloat16 stays bfloat16); ``score_logits.<lens>
    [reading, layer, label]`` of the stored lenses; ``final_mass [reading]``; ``readings.item``,
    ``readings.sample``, ``readings.position``, ``readings.status`` and ``readings.swapped`` ``[reading]``;
    ``human [item, rater]`` and ``human_value [item]``. NaN where there is no number. The metadata holds, as JSON,
    ``ids`` (of the items), ``layers``, ``labels`` and ``provenance``.

    Of a run of choices, instead of score logits: ``choice_logprob.<lens> [choice, layer]``; ``choices.offsets
    [item + 1]``, as the choices of item i are the rows ``offsets[i]`` to ``offsets[i + 1]``; ``choices.score`` and
    ``choices.n_tokens`` ``[choice]``; and ``labels`` are the texts of all choices, in this order. What is human is
    there only if any item has a human score.

    Args:
        run: The run.
        path: File to write; replaced if it exists.
        layers: Names on the layer axis; all unless given.

    Raises:
        RunFileError: Residuals were not stored, there is no such layer, the ids are too many for the format, or the
            file cannot be written.
    """
    run = run if layers is None else run.select(layers=layers)
    run.residual(layer=run.layers[-1], readings=np.arange(0))  # says what is missing before a file is begun
    # Wide types first, so that every tensor is aligned.
    tensors = sorted(_tensors(run), key=lambda one: -one.dtype.itemsize)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "ids": json.dumps(run.ids),
            "layers": json.dumps(run.layers),
            "labels": json.dumps(table_of(run).labels if run.has_choices else run.scale.labels),
            "provenance": provenance(run),
        }
    }
    end = 0
    for one in tensors:
        start, end = end, end + math.prod(one.shape) * one.dtype.itemsize
        header[one.name] = {"dtype": _NAMES[one.dtype.str], "shape": one.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise RunFileError(
            f"cannot export {run.path}: the ids {'and choices ' if run.has_choices else ''}of {len(run.ids)} items do "
            "not fit into a safetensors header; select fewer items"
        )
    total = sum(one.shape[0] for one in tensors)
    with (
        _published(Path(path)) as temporary,
        temporary.open("wb") as file,
        progress("exporting", total, "rows") as advance,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for one in tensors:
            step = max(1, _BLOCK_BYTES // (math.prod(one.shape[1:]) * one.dtype.itemsize))
            for start in range(0, one.shape[0], step):
                rows = np.arange(start, min(start + step, one.shape[0]))
                file.write(raw_bytes(np.ascontiguousarray(one.read(rows), dtype=one.dtype)))
                advance(len(rows))


# uint16 holds the bits of bfloat16.
_NAMES: Final = {"<f8": "F64", "<f4": "F32", "<i8": "I64", "<i4": "I32", "<u2": "BF16", "|u1": "U8"}
# What the reference implementation accepts.
_LONGEST_HEADER: Final = 100_000_000


class _Tensor(NamedTuple):
    """What is written under a name, and how some of its rows are read."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]


def _tensors(run: Run) -> Iterator[_Tensor]:
    n_readings, n_layers = len(run.status), len(run.layers)
    is_bits = run.attr("residual_dtype") == "bfloat16"

    def residual(layer: str) -> Callable[[np.ndarray], np.ndarray]:
        def read(rows: np.ndarray) -> np.ndarray:
            values = run.residual(layer=layer, readings=rows)
            return bfloat16_bits(values) if is_bits else values

        return read

    def logits(lens: str) -> Callable[[np.ndarray], np.ndarray]:
        if run.has_choices:
            return lambda rows: choice_rows(run, lens, rows)
        return lambda rows: run.score_logits(lens, rows)

    for layer in dict.fromkeys(run.layers):  # a name stands for one tensor, however often the layer is selected
        dtype = np.dtype("<u2" if is_bits else "<f4")
        yield _Tensor(f"residual.{layer}", dtype, (n_readings, run.readout.d_model), residual(layer))
    shape = (len(table_of(run)), n_layers) if run.has_choices else (n_readings, n_layers, len(run.scale.labels))
    for lens in run.attr("lenses"):
        name = "choice_logprob" if run.has_choices else "score_logits"
        yield _Tensor(f"{name}.{lens}", np.dtype("<f4"), shape, logits(lens))
    whole: dict[str, tuple[np.ndarray, str]] = {
        "final_mass": (run.final_mass, "<f4"),
        "readings.item": (run.readings.item, "<i4"),
        "readings.sample": (run.readings.sample, "<i4"),
        "readings.position": (run.position, "<i4"),
        "readings.status": (run.status, "|u1"),
        "readings.swapped": (run.readings.swapped, "|u1"),
    }
    if has_human(run):
        whole |= {"human": (run.human, "<f4"), "human_value": (run.human_value, "<f8")}
    if run.has_choices:
        table = table_of(run)
        whole["choices.offsets"] = table.offsets, "<i8"
        whole["choices.score"] = table.scores, "<f8"
        whole["choices.n_tokens"] = table.n_tokens, "<i4"
    for name, (values, kind) in whole.items():
        if values.size:
            yield _Tensor(name, np.dtype(kind), values.shape, values.__getitem__)


def has_human(run: Run) -> bool:
    """Whether what is human is shown: always but of a run of choices, which mostly has no human scores at all."""
    return not run.has_choices or bool(np.isfinite(run.human).any())


def _shown(run: Run, step: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    with progress("exporting", len(run.status), "readings") as advance:
        for rows, frame in _frames(run, step):
            yield rows, frame
            advance(len(rows))


def _frames(run: Run, step: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """The table of ``to_pandas`` in blocks of so many readings, each with their numbers."""
    import pandas as pd

    items, readings = run.items, run.readings
    texts = {name: np.array(items.column(name), dtype=object) for name in TEXT_COLUMNS}
    scores = {
        "human": items.human_mean,
        "human_value": run.human_value,
        "n_raters": np.isfinite(run.human).sum(axis=1),
    }
    scores = scores if has_human(run) else {}
    statuses = np.array([status.name.lower() for status in Status], dtype=object)
    is_captured = "final_mass" in run
    last = run.select(layers=run.layers[-1]) if is_captured else None
    lens = "norm" if "norm" in run.lenses else next(iter(run.lenses), "")
    for start in range(0, len(run.status), step):
        rows = np.arange(start, min(start + step, len(run.status)))
        of = readings.item[rows]
        columns: dict[str, Any] = {"reading": rows, **{name: column[of] for name, column in texts.items()}}
        columns["sample"] = readings.sample[rows]
        if run.pairwise:
            columns["swapped"] = readings.swapped[rows]
        columns |= {
            "status": statuses[run.status[rows]],
            "n_tokens": run.n_tokens[rows],
            "position": run.position[rows],
            "final_mass": run.final_mass[rows] if is_captured else np.full(len(rows), np.nan, dtype=np.float32),
            **(most_likely(run, last, lens, of) if run.has_choices else _expected(run, last, lens, rows)),
            **{name: column[of] for name, column in scores.items()},
        }
        if "generation/text" in run:
            columns["generated_text"] = run.answer_texts(rows)
        yield rows, pd.DataFrame(columns)


def _expected(run: Run, last: Run | None, lens: str, rows: np.ndarray) -> dict[str, Any]:
    """What the last layer says of some readings: the expected value, and the most probable label."""
    import pandas as pd

    labels = np.array(run.scale.labels, dtype=object)
    text_type = pd.Series(labels).dtype  # depends on the version of pandas
    logits = np.full((len(rows), len(labels)), np.nan)
    if last is not None:
        logits = last.score_logits(lens, rows)[:, 0]
    known = ~np.isnan(logits).any(axis=1)
    return {
        "expected": expected_values(logits, np.asarray(run.scale.values)),
        "label": pd.Series(np.where(known, labels[logits.argmax(axis=1)], None), dtype=text_type),
    }


@contextmanager
def _published(path: Path) -> Iterator[Path]:
    """A temporary file that gets its name when it is written and has reached the disk."""
    temporary = path.with_name(f"{path.name}.writing")
    with disk.failures_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            disk.publish(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

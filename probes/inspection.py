"""What a run is, on one screen: judge, items used and not used and why, layers, sizes, provenance."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from probes.choices.ragged import sums
from probes.errors import RunFileError
from probes.kinds import require_path
from probes.store.opening import open_partial, open_run
from probes.store.readings import Status
from probes.store.safety import open_checked
from probes.store.shards import partial_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from probes.choices.table import ChoiceTable
    from probes.items import Items
    from probes.store.run import Run


@dataclass(frozen=True)
class ChoiceCounts:
    """How many choices the items of a run have.

    Attributes:
        n_choices: Choices of all items.
        fewest: Choices of the item with the fewest.
        most: Choices of the item with the most.
        mean: Choices an item.
        fewest_tokens: Tokens of the shortest choice that are scored.
        most_tokens: Tokens of the longest choice that are scored.
        mean_tokens: Tokens a choice.
        n_free_text: Items whose choices all count as right, so that nothing is chosen between them.
    """

    n_choices: int
    fewest: int
    most: int
    mean: float
    fewest_tokens: int
    most_tokens: int
    mean_tokens: float
    n_free_text: int


@dataclass(frozen=True)
class Inspection:
    """What a run says about itself, and counts of what it holds.

    Attributes:
        path: File, or folder of an unfinished run.
        is_complete: Whether its capture is over.
        n_bytes: Size on disk.
        attrs: Root attributes, JSON parsed.
        d_model: Width of the residual stream.
        n_items: Number of items.
        items_by_status: How many items have numbers (``ok``), and how many have none for which reason.
        n_unlabelled: Items without human scores; of choices, items of whose choices none is worth something, or of
            one of which it is not known.
        n_used: Items with numbers that are labelled; of choices, less those of free text.
        n_raters: Columns of the human scores.
        readings_by_status: How many readings have numbers, and how many have none for which reason.
        n_samples: Samples an item, at most.
        criteria: Items by criterion.
        splits: Items by split.
        systems: Items by system.
        n_groups: Number of groups; an item without one is a group of its own.
        datasets: Name, type and bytes on disk of every dataset; of an unfinished run, of every file.
        choices: The choices of the items; None where the labels of a scale are the answers.
        n_cut_off: Answers that were as long as allowed before they came to an end.
    """

    path: str
    is_complete: bool
    n_bytes: int
    attrs: dict[str, Any]
    d_model: int
    n_items: int
    items_by_status: dict[str, int]
    n_unlabelled: int
    n_used: int
    n_raters: int
    readings_by_status: dict[str, int]
    n_samples: int
    criteria: dict[str, int]
    splits: dict[str, int]
    systems: dict[str, int]
    n_groups: int
    datasets: list[tuple[str, str, int]]
    choices: ChoiceCounts | None = None
    n_cut_off: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        return asdict(self)


def inspect_run(path: str | Path) -> Inspection:
    """Describe a run; none of its numbers are read.

    Args:
        path: ``run.h5``, or the ``.partial`` folder of a capture that is running or was cut short.

    Raises:
        RunFileError: There is no such run, or it is damaged.
    """
    require_path(path)
    path = Path(path)
    if not path.exists() and partial_folder(path).is_dir():
        path = partial_folder(path)
    if path.is_dir():
        # A run of which nothing is finished yet is worth a look as well.
        with open_partial(path) as run:
            return _inspect(run, sorted(_files(path)))
    with open_run(path) as run:
        return _inspect(run, list(_datasets(path)))


def _inspect(run: Run, datasets: list[tuple[str, str, int]]) -> Inspection:
    item_status, items, table = run.item_status, run.items, run.choices
    labelled = ~np.isnan(run.human_value)
    free_text = np.zeros(len(items), dtype=bool)
    if table is not None:
        labelled = sums(table.scores, table.offsets) > 0  # a NaN is not above 0
        free_text = np.array([item.is_free_text for item in items])
    attrs = dict(run.header().attrs) | {"layers": list(run.layers), "residual_dtype": run.attr("residual_dtype")}
    for name in ("lenses", "extras"):
        attrs[name] = list(run.attr(name))
    files = run.path.iterdir() if run.path.is_dir() else [run.path]
    return Inspection(
        path=str(run.path),
        is_complete=run.is_complete,
        n_bytes=sum(file.stat().st_size for file in files),
        attrs={name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()},
        d_model=run.readout.d_model,
        n_items=len(items),
        items_by_status=_by_status(item_status),
        n_unlabelled=int((~labelled).sum()),
        n_used=int((labelled & ~free_text & (item_status == Status.OK)).sum()),
        n_raters=run.human.shape[1] if not np.isnan(run.human).all() else 0,
        readings_by_status=_by_status(run.status),
        n_samples=int(run.readings.sample.max(initial=0)) + 1,
        criteria=_counts(items.column("criterion")),
        splits=_counts(items.column("split")),
        systems=_counts(items.column("system")),
        n_groups=len(set(items.groups)),
        datasets=datasets,
        choices=None if table is None else _choices(table, items),
        n_cut_off=int(run.cut_off.sum()),
    )


def _choices(table: ChoiceTable, items: Items) -> ChoiceCounts:
    counts, tokens = table.counts, table.n_tokens
    return ChoiceCounts(
        n_choices=len(table),
        fewest=int(counts.min()),
        most=int(counts.max()),
        mean=float(counts.mean()),
        fewest_tokens=int(tokens.min()),
        most_tokens=int(tokens.max()),
        mean_tokens=float(tokens.mean()),
        n_free_text=sum(item.is_free_text for item in items),
    )


def _by_status(status: np.ndarray) -> dict[str, int]:
    counts = np.bincount(status, minlength=len(Status)).tolist()
    if len(counts) > len(Status):
        raise RunFileError(f"a reading has the status {len(counts) - 1}, which no run has; see `probes verify`")
    return {state.name.lower(): counts[state] for state in Status if counts[state]}


def _counts(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the empty one left out."""
    return {name: count for name, count in Counter(names).most_common() if name}


def _datasets(path: Path) -> list[tuple[str, str, int]]:
    found = []
    with open_checked(path) as file:

        def note(name: str, node: h5py.HLObject) -> None:
            if isinstance(node, h5py.Dataset):
                dtype = "bfloat16" if node.attrs.get("dtype") == "bfloat16" else str(node.dtype)
                found.append((name, dtype, int(node.id.get_storage_size())))

        file.visititems(note)
    return found


def _files(folder: Path) -> list[tuple[str, str, int]]:
    return [(file.name, "file", file.stat().st_size) for file in folder.glob("*.h5")]

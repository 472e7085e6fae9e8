"""The demo: the whole job on the embedded judge and its human scores, in one folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from probes.comparison import Comparison

logger = logging.getLogger(__name__)

MODEL = "smollm2-135m"
TEMPLATE = "words"
SCALE = "1..5"
HUMAN_RANGE = (-4.0, 4.0)


def run_demo(
    out: Path, *, n_words: int = 450, seed: int = 0, echo: Callable[[str], None], show_progress: bool | None = None
) -> Comparison:
    """Capture, fit, compare and draw, on words that ten people each have rated.

    Args:
        out: Folder for ``run.h5``, ``judges/``, ``comparison.csv`` and the figures.
        n_words: Number of words.
        seed: Seed of the word sample and of the folds.
        echo: Receives what is printed.
        show_progress: Progress bar on or off; on a terminal unless given.

    Returns:
        The comparison, for notebooks.
    """
    from probes.capturing import capture
    from probes.comparing import DEFAULT_JUDGES, compare
    from probes.demo_items import vader_words
    from probes.judge import Judge
    from probes.tables import format_table

    items = vader_words(n_words, seed)
    logger.info("loading the judge %s", MODEL)
    judge = Judge.load(MODEL, template=TEMPLATE, scale=SCALE, human_range=HUMAN_RANGE, dtype="float32")
    logger.info("judging %d words, each rated by ten people", len(items))
    with capture(judge, items, out / "run.h5", show_progress=show_progress) as run:
        logger.info("comparing judges on held-out words")
        found = compare(run, [*DEFAULT_JUDGES, "residual-ridge"], seed=seed)
    written = [out / "run.h5", *save_comparison(found, out), *draw(found, out)]
    echo(format_table(found.table))
    echo("\n" + found.summary())
    echo("\nWritten:")
    for path in written:
        echo(f"  {path}")
    return found


def save_comparison(found: Comparison, out: Path) -> list[Path]:
    """Write the table and the fitted judges; return what to look at."""
    table = out / "comparison.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    found.table.to_csv(table, index=False)
    for spec, judge in found.judges.items():
        judge.save(out / "judges" / f"{spec.replace(':', '-')}.json")
    return [table, out / "judges"]


def draw(
    found: Comparison,
    out: Path,
    formats: Sequence[str] = ("png", "pdf"),
    names: Sequence[str] = ("alignment", "weights"),
) -> list[Path]:
    """Draw and save figures of a comparison; return their paths."""
    from probes import figures
    from probes.errors import FigureError

    makers = {"alignment": _alignment, "weights": _weights}
    if unknown := [name for name in names if name not in makers]:
        raise FigureError(f"no figure {unknown[0]!r}: choose one of {', '.join(makers)}")
    paths: list[Path] = []
    for criterion in found.criteria:
        suffix = f"-{criterion}" if len(found.criteria) > 1 else ""
        for name in names:
            paths += figures.save(makers[name](found, criterion), out / f"{name}{suffix}", tuple(formats))
    return paths


def _alignment(found: Comparison, criterion: str) -> Figure:
    from probes import figures

    layers = found.by_layer[found.by_layer["criterion"] == criterion]
    # The last layer under the norm lens is what the model itself says.
    last = layers[(layers["lens"] == "norm") & (layers["layer_index"] == layers["layer_index"].max())]
    lines = found.human_lines[found.human_lines["criterion"] == criterion].set_index("line")["value"]
    return figures.alignment(layers, final=float(last["value"].iloc[0]), attainable=float(lines["attainable"]))


def _weights(found: Comparison, criterion: str) -> Figure:
    from probes import figures

    table = found.weights[found.weights["criterion"] == criterion]
    # Weights that are not learned, or lie on one layer, need no picture.
    learned = found.table[found.table["labels_used"] > 0]["judge"]
    return figures.weights(table[table["judge"].isin(found.multi_layer) & table["judge"].isin(learned)])

"""The demo: the whole job on the embedded judge and its human scores, in one folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
        out: Folder for ``run.h5``, ``judges/``, ``comparison.csv``, the figures and ``report.html``.
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
    from probes.reporting import report
    from probes.tables import format_table

    items = vader_words(n_words, seed)
    logger.info("loading the judge %s", MODEL)
    judge = Judge.load(MODEL, template=TEMPLATE, scale=SCALE, human_range=HUMAN_RANGE, dtype="float32")
    logger.info("judging %d words, each rated by ten people", len(items))
    with capture(judge, items, out / "run.h5", show_progress=show_progress) as run:
        logger.info("comparing judges on held-out words")
        found = compare(run, [*DEFAULT_JUDGES, "residual-ridge"], seed=seed)
        written = [out / "run.h5", *save_comparison(found, out), *draw(found, out)]
        written.append(report(run, out / "report.html", comparison=found))
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


def draw(found: Comparison, out: Path) -> list[Path]:
    """Draw and save the two figures of the demo; return their paths."""
    from probes import figures
    from probes.figures.drawing import of_comparison

    paths: list[Path] = []
    for criterion in found.criteria:
        suffix = f"-{criterion}" if len(found.criteria) > 1 else ""
        for name in ("alignment", "weights"):
            paths += figures.save(of_comparison(found, name, criterion), out / f"{name}{suffix}", ("png", "pdf"))
    return paths

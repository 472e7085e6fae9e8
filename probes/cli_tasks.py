"""What the command line makes of the names of published tasks."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import ProbesError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from probes.items import Items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """Tasks that are asked of a model.

    Attributes:
        items: Their questions.
        template: The template of their suite.
        stop: What ends a generated answer; None for the usual.
    """

    items: Items
    template: str
    stop: list[str] | None


def read_tasks(
    names: Sequence[str],
    folder: Path | None,
    *,
    shots: int | None,
    condition: str,
    seed: int,
    limit: int | None,
) -> Asked:
    """Load tasks by name or path, with the prompts that go with a condition: reasoning has chains of thought.

    Args:
        names: Names, paths or patterns.
        folder: Where the suites lie.
        shots: Worked examples in a prompt; as published if not given.
        condition: How the model is read.
        seed: Draws the worked examples and questions, if it is not 0; else they are drawn as published.
        limit: At most so many questions of each task, drawn at random.

    Raises:
        ProbesError: A task cannot be loaded, or the tasks are of several suites.
    """
    from probes.tasks import items_of, load_tasks
    from probes.tasks.task import PUBLISHED_SEED

    tasks = load_tasks(list(names), folder)
    suites = list(dict.fromkeys(task.suite for task in tasks))
    if len(suites) > 1:
        raise ProbesError(
            f"the tasks are of {' and '.join(suites)}, whose prompts end in different ways; capture one suite a run"
        )
    for leaf in (leaf for task in tasks for leaf in task.leaves):
        for note in leaf.notes:
            logger.info("%s: %s", leaf.name, note)
    items = items_of(
        tasks,
        shots=shots,
        chain_of_thought=condition == "reasoning",
        seed=seed or PUBLISHED_SEED,
        limit=limit,
    )
    stops = {leaf.stop_string for task in tasks for leaf in task.leaves}
    stop = stops.pop() if len(stops) == 1 else None
    return Asked(items, suites[0], [stop] if stop else None)

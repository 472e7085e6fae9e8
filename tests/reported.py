"""Run files with a judgement in their layers, for reports, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.items import Item, Items
from probes.scale import Scale
from probes.store import open_run
from probes.store.readings import Status
from probes.store.writer import RunWriter
from tests.fake_run import FakeRun, fake_header, fake_shard

if TYPE_CHECKING:
    from pathlib import Path

    from probes.store import Run

# What tries to leave the place where it is shown: elements, attributes, ends of lines and strings, other directions.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg/onload=alert(3)><!--",
    "line\u2028and\u2029paragraph",
    "\u202egnitirw rehto eht\u2066",
    "bell \x07 escape \x1b delete \x7f next \x85 {{ 7 * 7 }} ${alert(4)}",
    "</title></style></textarea><!-- <script",
)


def written_run(
    path: Path,
    *,
    n_items: int = 60,
    n_layers: int = 2,
    scale: Scale | None = None,
    criteria=("",),
    labelled=None,
    status=None,
    texts=None,
    ids=None,
    groups=None,
    model: str = "tiny",
    template: dict | None = None,
    signal=None,
) -> Run:
    """A run under the norm lens, open.

    Args:
        path: Where to write it.
        n_items: Number of items; criteria take turns.
        n_layers: Blocks.
        scale: 1..5 unless given.
        criteria: Names of criteria.
        labelled: Which items have human scores; all unless given.
        status: Of every reading; all captured unless given.
        texts: Fields of every item; a few words unless given.
        ids: Of the items.
        groups: Of the items.
        model: Name of the model.
        template: Of the judge.
        signal: How much of the hidden quality each layer shows; see ``FakeRun``.
    """
    scale = scale or Scale.parse("1..5")
    fake = FakeRun(n_items, n_layers, signal=[0, *[1] * n_layers] if signal is None else signal)
    n_labels = len(scale.labels)
    labelled = np.ones(n_items, dtype=bool) if labelled is None else labelled
    status = np.zeros(n_items, dtype=np.uint8) if status is None else np.asarray(status, dtype=np.uint8)
    span = scale.human_range[1] - scale.human_range[0]
    rated = scale.human_range[0] + span * (fake.human.astype(np.float64) - 1) / 4
    items = [
        Item(
            id=ids[k] if ids else f"i{k}",
            fields=texts[k] if texts else {"response": f"answer number {k}"},
            criterion=criteria[k % len(criteria)],
            group=groups[k] if groups else f"g{k // 2}",
            human=tuple(rated[k].tolist()) if labelled[k] else (),
        )
        for k in range(n_items)
    ]
    human_value = np.where(labelled, scale.to_value(Items(items).human_mean), np.nan)
    header = fake_header(
        n_items=n_items,
        items=Items(items),
        human_value=human_value,
        layers=fake.layers,
        lenses=("norm",),
        residual_dtype=None,
        attrs={
            "n_layers": n_layers,
            "created": "2026-01-02T03:04:05+00:00",
            "scale": scale.to_dict(),
            "config": {"model": model, "revision": "main", "items": "items.jsonl", "device": "cpu"},
            "judge": {"template": template or {"name": "plain", "user": "Rate: {{ response }}"}, "condition": "direct"},
            "versions": {"probes": "0.1.0"},
        },
    )
    logits = fake.logits["norm"][:, :, :n_labels].copy()
    logits[status != 0] = np.nan
    shard = fake_shard(header, np.arange(n_items), logits, status)
    shard = type(shard)(**{**vars(shard), "residual": None})
    with RunWriter.open(path, header, "plan") as writer:
        writer.write_shard(0, shard)
        writer.write_run({"deviations": {"final_logits": 1e-6}})
    return open_run(path)


def hostile_run(path: Path, n_items: int = 48) -> Run:
    """A run whose every name and text is somebody's attempt on the page."""
    labels = ("</script><script>alert(8)</script>", "<img src=x onerror=alert(9)>", "\u202e3", "4\u2028th", "5&amp;")
    return written_run(
        path,
        n_items=n_items,
        scale=Scale(labels, (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 5.0)),
        criteria=HOSTILE[:2],
        ids=[f"{HOSTILE[k % len(HOSTILE)]} {k}" for k in range(n_items)],
        groups=[f"{HOSTILE[(k // 4) % len(HOSTILE)]} {k // 4}" for k in range(n_items)],
        texts=[
            {HOSTILE[1]: HOSTILE[(k + 1) % len(HOSTILE)], "response": f"{HOSTILE[k % 7]} {k}"} for k in range(n_items)
        ],
        status=[Status.TOO_LONG if k == 5 else Status.OK for k in range(n_items)],
        labelled=np.arange(n_items) != 7,
        model=HOSTILE[6],
        template={"name": HOSTILE[2], "user": "Rate: {{ response }}" + HOSTILE[0]},
    )

"""Runs made of numbers: what the analysis reads, and run files, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.items import Item, Items
from probes.lens import Readout
from probes.scale import Scale
from probes.store.format import FORMAT, FORMAT_VERSION
from probes.store.header import Header
from probes.store.readings import Status
from probes.store.shard_writer import ShardData
from probes.token_table import TokenTable

if TYPE_CHECKING:
    from pathlib import Path

D_MODEL = 4
LAYERS = ("embed", "1", "2")


class FakeRun:
    """Layers whose tilt towards the high labels follows a hidden quality that raters see with noise.

    ``signal`` says how much of it each layer shows; a layer's error is shared by all its labels, so layers can
    help each other. ``embed`` is the same for every item, as it is in a direct capture.
    """

    def __init__(
        self,
        n_items: int = 120,
        n_layers: int = 6,
        *,
        signal=None,
        scale: str = "1..5",
        group: int = 2,
        raters: int = 3,
        noise: float = 0.7,
        seed: int = 0,
        criteria=None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.scale = Scale.parse(scale)
        values = np.asarray(self.scale.values)
        tilt = (values - values.mean()) / values.std()
        signal = np.linspace(0, 1, n_layers + 1) if signal is None else np.asarray(signal, dtype=float)
        quality = rng.normal(size=n_items)
        error = rng.normal(size=(n_items, n_layers + 1)) * 0.7
        logits = (quality[:, None] * signal + error)[:, :, None] * tilt
        logits += rng.normal(size=(n_layers + 1, len(values)))
        logits += 0.2 * rng.normal(size=logits.shape)
        logits[:, 0] = logits[0, 0]
        self.logits = {"norm": logits.astype(np.float32), "raw": (20 * logits).astype(np.float32)}
        self.lenses = ("raw", "norm")
        self.layers = ("embed", *map(str, range(1, n_layers + 1)))
        self.n_layers = n_layers
        rated = quality[:, None] + noise * rng.normal(size=(n_items, raters))
        step = values.std()
        self.human = np.clip(values.mean() + step * rated, values[0], values[-1]).astype(np.float32)
        self.human_value = self.human.astype(np.float64).mean(axis=1)
        self.groups = np.array([f"g{i // group}" for i in range(n_items)], dtype=object)
        self.texts: dict[str, str] = {}  # of items that do not have a text of their own
        self.ids = [f"i{i}" for i in range(n_items)]
        self.criteria = [""] * n_items if criteria is None else criteria
        # Some directions of every layer's state show the quality, more of it than the layer's logits do.
        direction = rng.normal(size=(n_layers + 1, 8))
        self.states = (signal[:, None] * quality[:, None, None] * direction).astype(np.float32)
        self.states += rng.normal(size=self.states.shape).astype(np.float32)
        self.states[:, 0] = self.states[0, 0]
        self.has_item_residuals = True
        self.path: Path | None = None
        self.judge_hash, self.model_hash, self.readout_hash = "judge", "model", "readout"

    @property
    def items(self):
        return [Item(id=name, fields={"response": self.texts.get(name, f"text of {name}")}) for name in self.ids]

    def item_logits(self, lens: str):
        return self.logits[lens]

    def item_residual(self, layer: str):
        return self.states[:, self.layers.index(layer)]


def fake_header(
    n_items: int = 3, *, n_readings: int | None = None, scale: str = "1..5", attrs=None, **changes
) -> Header:
    """Header of a run of items ``i0, i1, ...`` whose prompt number p is ``[p, 100, 101, ...]``, of 2 + p % 3 tokens."""
    labels = Scale.parse(scale)
    n_readings = n_items if n_readings is None else n_readings
    n_prompts = changes.pop("n_prompts", n_items)
    index = np.arange(len(labels.labels))
    readout = Readout(
        token_ids=index,
        label_index=index,
        unembed_rows=np.ones((len(index), D_MODEL), dtype=np.float32),
        unembed_bias=np.zeros(len(index), dtype=np.float32),
        norm_type="none",
        norm_weight=np.ones(D_MODEL, dtype=np.float32),
        norm_bias=np.zeros(D_MODEL, dtype=np.float32),
        eps=1e-5,
    )
    known = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "judge_hash": "judge",
        "model_hash": "model",
        "readout_hash": readout.digest(),
        "scale": labels.to_dict(),
        "config": {"model": "fake"},
        "n_layers": len(LAYERS) - 1,
        "dtype": "float32",
    }
    settings = {
        "items": Items([Item(id=f"i{k}", fields={"response": f"w{k}"}) for k in range(n_items)]),
        "token_ids": TokenTable.from_lists([[p, *range(100, 101 + p % 3)] for p in range(n_prompts)]),
        "human_value": np.full(n_items, np.nan),
        "readout": readout,
        "layers": LAYERS,
        "lenses": ("norm",),
        "residual_dtype": "float32",
        "status": np.full(n_readings, Status.NOT_CAPTURED, dtype=np.uint8),
        "attrs": known | (attrs or {}),
    }
    return Header(**settings | changes)


def fake_shard(header: Header, rows, logits=None, status=None, **changes) -> ShardData:
    """Numbers of some readings: random, but a function of the reading alone."""
    rows = np.asarray(rows)
    n_labels = header.readout.n_labels

    def numbers(*shape):
        return np.stack([np.random.default_rng(int(row)).normal(size=shape) for row in rows]).astype(np.float32)

    return ShardData(
        rows=rows,
        status=np.full(len(rows), Status.OK, dtype=np.uint8) if status is None else np.asarray(status, dtype=np.uint8),
        residual=numbers(len(LAYERS), D_MODEL),
        score_logits={
            lens: numbers(len(LAYERS), n_labels) if logits is None else np.asarray(logits, dtype=np.float32)
            for lens in header.lenses
        },
        final_mass=rows.astype(np.float32),
        deviation=0.0,
        **changes,
    )

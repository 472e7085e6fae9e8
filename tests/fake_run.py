"""A run made of numbers: what the analysis reads, without a model or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probes.scale import Scale

if TYPE_CHECKING:
    from pathlib import Path


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
        rated = quality[:, None] + noise * rng.normal(size=(n_items, raters))
        step = values.std()
        self.human = np.clip(values.mean() + step * rated, values[0], values[-1]).astype(np.float32)
        self.human_value = self.human.astype(np.float64).mean(axis=1)
        self.groups = np.array([f"g{i // group}" for i in range(n_items)], dtype=object)
        self.ids = [f"i{i}" for i in range(n_items)]
        self.criteria = [""] * n_items if criteria is None else criteria
        self.path: Path | None = None
        self.judge_hash, self.model_hash, self.readout_hash = "judge", "model", "readout"

    def item_logits(self, lens: str):
        return self.logits[lens]

"""Several runs of the same scored items, in memory and as files, without a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from probes.errors import RunFileError
from probes.store.readings import Status
from probes.store.writer import RunWriter
from tests.fake_run import FakeRun
from tests.valid_run import valid_header, valid_shard

if TYPE_CHECKING:
    from pathlib import Path

    from probes.scale import Scale


def asked(template: str) -> dict:
    """Description of a judge that was asked with a template."""
    return {
        "weights": "w",
        "template": {"name": template, "user": f"{template} {{{{ response }}}}", "shots": []},
        "score_tokens": {"lead_ids": []},
        "condition": "direct",
        "dtype": "float32",
    }


class DescribedRun(FakeRun):
    """A fake run that says what its judge is, with noise of its own in the logits."""

    def __init__(
        self, template: str = "plain", *, noisy: float = 0.0, noise_seed: int = 1, judge=None, criteria=None
    ) -> None:
        super().__init__(n_items=90, n_layers=3, criteria=criteria)
        self.described = {"judge": asked(template) | (judge or {}), "config": {"model": "fake"}}
        rng = np.random.default_rng(noise_seed)
        for lens, logits in self.logits.items():
            noise = noisy * np.abs(logits).std() * rng.normal(size=logits.shape)
            self.logits[lens] = (logits + noise).astype(np.float32)

    def attr(self, name: str):
        if name not in self.described:
            raise RunFileError(name)
        return self.described[name]

    def take(self, rows) -> DescribedRun:
        """Some of its items, in the order given; in place."""
        rows = np.asarray(rows)
        self.logits = {lens: logits[rows] for lens, logits in self.logits.items()}
        self.human, self.human_value, self.groups = self.human[rows], self.human_value[rows], self.groups[rows]
        self.ids, self.criteria = ([of[row] for row in rows] for of in (self.ids, self.criteria))
        return self

    def on(self, scale: Scale) -> DescribedRun:
        """The same human scores on another scale; in place."""
        self.scale = scale
        rated = self.human.astype(np.float64)
        self.human_value = scale.to_value(rated.mean(axis=1))
        n_labels = len(scale.labels)
        tilt = (np.arange(n_labels) - (n_labels - 1) / 2)[None, None]
        self.logits = {
            lens: (logits[:, :, -1:] - logits[:, :, :1]).astype(np.float32) * tilt.astype(np.float32)
            for lens, logits in self.logits.items()
        }
        return self


def write_run(path: Path, template: str, *, noisy: float = 0.0, n_items: int = 60, seed: int = 0) -> Path:
    """A run file whose judge was asked with a template, with noise of its own in the logits."""
    header = valid_header(n_items=n_items, extras=())
    judge = header.attrs["judge"] | {"template": {"name": template, "user": f"{template} {{{{ response }}}}"}}
    digest = hashlib.sha256(json.dumps(judge, sort_keys=True).encode()).hexdigest()
    header = replace(header, attrs={**header.attrs, "judge": judge, "judge_hash": digest})
    rows = np.flatnonzero(header.status == Status.NOT_CAPTURED)
    shard = valid_shard(header, rows)
    rng = np.random.default_rng(seed)
    for lens, logits in shard.score_logits.items():
        noise = noisy * logits.std() * rng.normal(size=logits.shape)
        shard.score_logits[lens] = (logits + noise).astype(np.float32)
    with RunWriter.open(path, header, "plan") as writer:
        writer.write_shard(0, shard)
        writer.write_run({"deviations": {"final_logits": 1e-6}}, compress=False)
    return path

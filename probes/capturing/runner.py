"""Running the passes of a plan, after checking on the first one that the short cuts change nothing."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, UInt8

from probes.capturing.engine import Engine, PassResult, Pending, joined, native_attention, picked
from probes.capturing.support import Deviation, deviation, logit_tolerance, reset_positions
from probes.capturing.trie import common_prefix
from probes.errors import ModelError
from probes.store.format import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from probes.capturing.job import Job
    from probes.judge import Judge
    from probes.store.writer import RunWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """How passes are laid out, and whose attention they run.

    Attributes:
        layout: ``packed`` (shared prefixes once) or ``batched`` (one padded row a prompt).
        attention: ``native`` (the model's own) or ``bridge`` (TransformerLens' eager one).
    """

    layout: str
    attention: str

    def __str__(self) -> str:
        return f"{self.layout} prompts and {self.attention} attention"


@dataclass(frozen=True, eq=False)
class PassRows:
    """What a pass read, one row a reading.

    Attributes:
        prompts: Prompt numbers; all samples of the first, then of the next.
        result: Numbers.
        status: One ``Status`` a reading.
        position: Position whose state was read ``[reading]``; the last of the prompt unless given.
        generated: Generated token ids; None where nothing was generated.
        texts: Generated text.
    """

    prompts: Sequence[int]
    result: PassResult
    status: UInt8[np.ndarray, " reading"]
    position: Int[np.ndarray, " reading"] | None = None
    generated: list[Int[np.ndarray, " _"]] | None = None
    texts: list[str] | None = None


def _pass_rows(prompts: Sequence[int], started: Sequence[Pending]) -> PassRows:
    result = joined([pending.result() for pending in started])
    return PassRows(prompts, result, np.full(len(prompts), Status.OK, dtype=np.uint8))


# From the fastest to the plainest.
_WAYS = (Way("packed", "native"), Way("batched", "native"), Way("batched", "bridge"))


class Runner:
    """Runs the passes of a plan.

    Args:
        job: Judge, prompts and plan.
        writer: Keeps the decisions of the first pass, so that a resumed run keeps to them.
    """

    def __init__(self, job: Job, writer: RunWriter) -> None:
        self._judge = job.judge
        self._plan = job.plan
        self._prompts = job.table.tokens
        self._spans = None if job.table.spans is None else job.table.spans.tolist()
        self._sharing_note = job.sharing_note
        self._writer = writer
        self.engine = Engine(job.judge.bridge, job.judge.readout, job.settings.extras)
        self.way = _WAYS[-1]
        self._first: list[Pending] = []

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Choose the fastest way that gives the same states, and keep the model in it for the time of a block."""
        notes = self._writer.notes or self._choose()
        self._writer.write_notes(notes)
        with self.going(Way(notes["layout"], notes["attention"])):
            yield

    def run_shard(self, shard: int) -> Iterator[PassRows]:
        """The passes of a shard, one after the other."""
        if not self._first:
            self.engine.forget()
        if self.way.layout == "packed":
            groups: list[Sequence[int]] = [self._plan.passes[number] for number in self._plan.shards[shard]]
        else:
            rows = self._plan.rows(shard)
            groups = self._batches(sorted(rows, key=lambda row: (-len(self._prompts[row]), row)))
        before: tuple[Sequence[int], list[Pending]] | None = None
        for group in groups:
            started, self._first = self._first or self._start(group), []
            # The device computes these while what it has finished is brought over.
            if before is not None:
                yield _pass_rows(*before)
            before = group, started
        if before is not None:
            yield _pass_rows(*before)

    @contextlib.contextmanager
    def going(self, way: Way) -> Iterator[None]:
        """Keep the model in a way for the time of a block."""
        before, self.way = self.way, way
        native = self._judge.attention or self._judge.kernel
        try:
            with native_attention(self._judge.bridge, native if way.attention == "native" else None):
                yield
        finally:
            self.way = before

    def stop_packing(self, reason: str) -> None:
        """Go on with whole prompts, and write down why."""
        logger.warning("%s; falling back", reason)
        self.way = _WAYS[1]
        notes = self._writer.notes
        self._writer.write_notes(notes | {"layout": self.way.layout, "fallback": [*notes["fallback"], reason]})

    def _batches(self, rows: Sequence[int]) -> list[Sequence[int]]:
        """Rows in order of falling length, cut where padded rows would exceed the budget of a pass."""
        batches: list[Sequence[int]] = []
        start = 0
        for stop in range(1, len(rows) + 1):
            longest = len(self._prompts[rows[start]])
            if stop == len(rows) or (stop + 1 - start) * longest > self._plan.batch_tokens:
                batches.append(rows[start:stop])
                start = stop
        return batches

    def _start(self, rows: Sequence[int]) -> list[Pending]:
        """Send one pass off; where it does not fit into memory, in halves."""
        prompts = [self._prompts[row] for row in rows]
        spans = None if self._spans is None else [self._spans[row] for row in rows]
        reset_positions(self._judge.bridge)
        try:
            if self.way.layout == "packed":
                return [self.engine.run_packed(prompts, self._judge.kernel, spans)]
            return [self.engine.run_batched(prompts, spans)]
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Outside the handler, whose traceback would keep the failed pass alive.
        torch.cuda.empty_cache()
        logger.warning("a pass of %d prompts does not fit into memory; running it in halves", len(rows))
        half = len(rows) // 2
        return self._start(rows[:half]) + self._start(rows[half:])

    def _choose(self) -> dict[str, Any]:
        """Compare the first pass with one-by-one passes through the full bridge, and fall back where they differ.

        Two prompts of the pass, among them the one that shares most, are read alone, with nothing shared and the
        bridge's own attention: the plainest path there is. In half precision that attention rounds elsewhere, so
        there the reference is the model's own.
        """
        judge, plan = self._judge, self._plan
        rows = plan.passes[0]
        if len(rows) == 1 and len(plan.shards[0]) > 1:
            rows = rows + plan.passes[1]
        probe = self._probes(rows)
        reference = joined([self._alone(rows[i]) for i in probe])
        self._check_readout(reference)
        reasons: list[str] = []
        plain = self._plain_deviation([rows[i] for i in probe], reference)
        for way in _WAYS:
            if way.layout == "packed" and self._sharing_note:
                reasons.append(self._sharing_note)
                continue
            started, result = self._try(way, rows, reasons)
            if result is None:
                continue
            found = deviation(picked(result, probe), reference, judge.readout)
            if found.within(judge.dtype):
                if way.layout == "packed" and rows == plan.passes[0]:
                    # The first pass is done in the way that all others will be, so it need not be repeated.
                    self._first = started
                return _notes(way, found, plain, reasons)
            reasons.append(
                f"with {way}, states differ from one-by-one capture by {found.residual:.2g} "
                f"(logits by {found.norm_logits:.2g})"
            )
            logger.warning("%s; falling back", reasons[-1])
        raise ModelError(f"{'; '.join(reasons)}: capture this model with batch_tokens=1 (--batch-tokens 1)")

    def _probes(self, rows: Sequence[int]) -> list[int]:
        """Two prompts of a pass to check: the one that shares most with another, and the shortest of the rest."""
        prompts = [self._prompts[row] for row in rows]
        shared = [0, *(common_prefix(a, b) for a, b in pairwise(prompts))]
        # Without sharing, the longest.
        most = max(range(len(rows)), key=lambda i: (shared[i] if self._plan.share else 0, len(prompts[i])))
        others = sorted((i for i in range(len(rows)) if i != most), key=lambda i: len(prompts[i]))
        return [most, *others[:1]]

    def _alone(self, row: int) -> PassResult:
        """One prompt in the plainest way that fits into memory."""
        prompts = [self._prompts[row]]
        spans = None if self._spans is None else [self._spans[row]]
        reset_positions(self._judge.bridge)
        if self._judge.dtype == "float32":
            try:
                return self.engine.run_batched(prompts, spans).result()
            except torch.OutOfMemoryError:
                pass
            # The bridge's attention needs memory quadratic in the length of the prompt.
            torch.cuda.empty_cache()
            logger.warning("the first check runs with the model's own attention: memory is short")
        with self.going(_WAYS[1]):
            return self.engine.run_batched(prompts, spans).result()

    def _plain_deviation(self, rows: Sequence[int], reference: PassResult) -> Deviation | None:
        """What batching alone changes where rounding is coarse: the same prompts in one padded batch."""
        if self._judge.dtype == "float32" or len(rows) < 2:
            return None
        with self.going(_WAYS[1]):
            together = [pending.result() for pending in self._start(rows)]
        return deviation(joined(together), reference, self._judge.readout)

    def _try(self, way: Way, rows: Sequence[int], reasons: list[str]) -> tuple[list[Pending], PassResult | None]:
        self.engine.forget()
        try:
            with self.going(way):
                if way.layout == "packed":
                    started = self._start(rows)
                    return started, joined([pending.result() for pending in started])
                order = sorted(range(len(rows)), key=lambda i: -len(self._prompts[rows[i]]))
                batches = self._batches([rows[i] for i in order])
                results = [pending.result() for batch in batches for pending in self._start(batch)]
                return [], picked(joined(results), np.argsort(order))
        except torch.OutOfMemoryError:
            raise
        except (ModelError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            if way == _WAYS[-1]:
                raise
            reasons.append(f"{way} do not run: {' '.join(str(error).split())[:200]}")
            logger.warning("%s; falling back", reasons[-1])
            return [], None

    def _check_readout(self, reference: PassResult) -> None:
        found = readout_deviation(self._judge, reference)
        if not found <= logit_tolerance(self._judge.dtype, float(np.abs(reference.token_logits).max())):
            raise ModelError(
                f"the logits of {self._judge.name} do not follow from its last residual state (they differ by "
                f"{found:.3g}): something acts between the last block and the output that a lens cannot reproduce"
            )


def readout_deviation(judge: Judge, result: PassResult) -> float:
    """Largest deviation of the ``norm`` lens at the last layer from the model's own logits."""
    ours = judge.readout.token_logits(result.residual[:, -1], "norm")
    finite = np.isfinite(result.token_logits) & np.isfinite(ours)
    return float(np.max(np.abs(ours - result.token_logits), where=finite, initial=0.0))


def _notes(way: Way, found: Deviation, plain: Deviation | None, reasons: Sequence[str]) -> dict[str, Any]:
    notes = {
        "layout": way.layout,
        "attention": way.attention,
        "fallback": list(reasons),
        "first_pass_residual": found.residual,
        "first_pass_norm_logits": found.norm_logits,
    }
    if plain is not None:
        # What one-by-one and batched passes of the model itself differ by, to judge the numbers above by.
        notes |= {"plain_batch_residual": plain.residual, "plain_batch_norm_logits": plain.norm_logits}
    return notes

"""Running the passes of a plan, after checking on the first one that the short cuts change nothing."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.capturing.engine import Engine, PassResult, native_attention
from probes.capturing.plan import rows_that_fit
from probes.capturing.support import Deviation, deviation, logit_tolerance
from probes.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from probes.capturing.plan import Plan
    from probes.judge import Judge
    from probes.store.writer import RunWriter

logger = logging.getLogger(__name__)


class Runner:
    """Runs the passes of a plan.

    Args:
        judge: The judge.
        plan: Which prompts share which pass.
        prompts: Token ids of every reading.
        writer: Keeps the decisions of the first pass, so that a resumed run keeps to them.
    """

    def __init__(self, judge: Judge, plan: Plan, prompts: Sequence[Sequence[int]], writer: RunWriter) -> None:
        self._judge = judge
        self._plan = plan
        self._prompts = prompts
        self._writer = writer
        self._engine = Engine(judge.bridge, judge.readout)
        self._cache: Any = None
        self._first: PassResult | None = None

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Choose the fastest way that gives the same states, and keep the model in it for the time of a block."""
        notes = self._writer.notes or self._choose()
        self._writer.write_notes(notes)
        attention = self._judge.attention if notes["attention"] == "native" else None
        with native_attention(self._judge.bridge, attention):
            if notes["prefix_shared"]:
                self._cache = self._engine.prefix_cache(self._plan.prefix)
            yield

    def run(self, rows: Sequence[int], advance: Callable[[int], None] = lambda _: None) -> PassResult:
        """One pass of the plan; where it does not fit into memory, in halves."""
        import torch

        if self._first is not None and rows == self._plan.passes[0]:
            result, self._first = self._first, None
            advance(len(rows))
            return result
        start = len(self._plan.prefix) if self._cache is not None else 0
        # A plan made for a shared prefix puts more prompts into a pass than fit when they are computed whole.
        fit = rows_that_fit(max(len(self._prompts[row]) for row in rows), start, self._plan.batch_tokens)
        if len(rows) > fit:
            parts = [rows[first : first + fit] for first in range(0, len(rows), fit)]
            return joined([self.run(part, advance) for part in parts])
        prompts = [self._prompts[row][start:] for row in rows]
        try:
            done = self._engine.run(prompts, self._cache)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            torch.cuda.empty_cache()
            logger.warning("a pass of %d prompts does not fit into memory; running it in halves", len(rows))
            half = len(rows) // 2
            return joined([self.run(rows[:half], advance), self.run(rows[half:], advance)])
        advance(len(rows))
        return done

    def _choose(self) -> dict[str, Any]:
        """Compare the first pass with one-by-one passes through the full bridge, and fall back where they differ.

        The first pass holds the longest prompts. Its longest and shortest are read alone, with the bridge's own
        attention and without a shared prefix: the plainest path there is.
        """
        judge, plan = self._judge, self._plan
        rows = plan.passes[0]
        probe = sorted({0, len(rows) - 1})
        reference = joined([self._alone(rows[i]) for i in probe])
        self._check_readout(reference)
        found: Deviation | None = None
        for attention, shared in _ATTEMPTS:
            if (shared and not plan.prefix) or (attention == "native" and judge.attention is None):
                continue
            result = self._try(rows, attention, shared)
            if result is None:
                continue
            found = deviation(picked(result, probe), reference, judge.readout)
            if found.within(judge.dtype):
                # The first pass is done in the way that all others will be, so it need not be repeated.
                self._first = result
                return _notes(attention, shared, found)
            logger.warning(
                "with %s attention%s, states differ from one-by-one capture by %.2g (logits by %.2g); falling back",
                attention,
                " and a shared prefix" if shared else "",
                found.residual,
                found.norm_logits,
            )
        assert found is not None  # the last attempt runs the same code as the reference
        raise ModelError(
            f"this model's states depend on how its prompts are batched (by {found.residual:.2g} relative, logits by "
            f"{found.norm_logits:.2g}); capture it with batch_tokens=1 (--batch-tokens 1)"
        )

    def _alone(self, row: int) -> PassResult:
        """One prompt in the plainest way that fits into memory."""
        import torch

        engine, prompts = Engine(self._judge.bridge, self._judge.readout), [self._prompts[row]]
        try:
            return engine.run(prompts)
        except torch.OutOfMemoryError:
            # The bridge's attention needs memory quadratic in the length of the prompt.
            torch.cuda.empty_cache()
            logger.warning("the first check runs with the model's own attention: memory is short")
            with native_attention(self._judge.bridge, self._judge.attention):
                return engine.run(prompts)

    def _try(self, rows: Sequence[int], attention: str, shared: bool) -> PassResult | None:
        native = attention == "native"
        try:
            with native_attention(self._judge.bridge, self._judge.attention if native else None):
                self._cache = self._engine.prefix_cache(self._plan.prefix) if shared else None
                return self.run(rows)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            if not native:
                raise
            logger.warning("%s attention does not run here (%s); falling back", attention, error)
            return None
        finally:
            self._cache = None

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


# From the fastest to the plainest way to run a pass: attention, and whether the prefix is shared.
_ATTEMPTS = (("native", True), ("native", False), ("bridge", True), ("bridge", False))


def _notes(attention: str, shared: bool, found: Deviation) -> dict[str, Any]:
    return {
        "attention": attention,
        "prefix_shared": shared,
        "first_pass_residual": found.residual,
        "first_pass_norm_logits": found.norm_logits,
    }


def picked(result: PassResult, rows: Sequence[int]) -> PassResult:
    """Some rows of a pass."""
    index = list(rows)
    return PassResult(result.residual[index], result.token_logits[index], result.scale_mass[index])


def joined(results: Sequence[PassResult]) -> PassResult:
    """Rows of several passes, one after the other."""
    return PassResult(
        np.concatenate([result.residual for result in results]),
        np.concatenate([result.token_logits for result in results]),
        np.concatenate([result.scale_mass for result in results]),
    )

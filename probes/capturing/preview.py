"""What a capture would do, without doing it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.capturing.engine import Engine, Extras, native_attention
from probes.capturing.job import Settings, prepare, usual_lenses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Items
    from probes.judge import Judge


@dataclass(frozen=True)
class Preview:
    """What a capture would do.

    Attributes:
        first_prompt: The first prompt, exactly as the model sees it.
        first_n_tokens: Its number of tokens.
        n_items: Number of items.
        n_readings: Readings: items, times the orders of a pair, times the answers to each.
        n_too_long: Prompts that exceed the length limit; they are kept, with status ``too_long``.
        n_passes: Forward passes.
        tokens_before: Tokens that one-by-one capture would compute.
        tokens_after: Tokens that the plan computes.
        answer_tokens: Tokens that would be generated at most.
        n_bytes: Size of the arrays of the run file.
        seconds: Estimated time, from one timed pass; generated tokens count as many as prompt tokens.
        sharing_note: Why shared prefixes are not computed once; empty where they are.
    """

    first_prompt: str
    first_n_tokens: int
    n_items: int
    n_readings: int
    n_too_long: int
    n_passes: int
    tokens_before: int
    tokens_after: int
    answer_tokens: int
    n_bytes: int
    seconds: float
    sharing_note: str


def preview(
    judge: Judge,
    items: Items,
    *,
    lenses: Sequence[str] | None = None,
    residuals: bool = True,
    mass: bool = False,
    entropy: bool = False,
    last_positions: int = 0,
    response_mean: bool = False,
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    share_prefix: bool = True,
) -> Preview:
    """Say what ``capture`` would do, with the first prompt as the model will see it."""
    extras = Extras(mass, entropy, last_positions, response_mean)
    job = prepare(
        judge, items, Settings(usual_lenses(judge, lenses), residuals, extras, batch_tokens, max_tokens, share_prefix)
    )
    plan, judge = job.plan, job.judge
    answers = (job.n_readings - len(plan.too_long) * job.samples) * (
        judge.decoding.max_new_tokens if judge.decoding else 0
    )
    engine = Engine(judge.bridge, judge.readout)
    sample = [job.table.tokens[0][-256:]]
    with native_attention(judge.bridge, judge.attention):
        engine.run_batched(sample).result()  # the first pass of a process pays for more than itself
        start = time.perf_counter()
        engine.run_batched(sample).result()
        rate = len(sample[0]) / (time.perf_counter() - start)
    return Preview(
        first_prompt=job.table.first.text,
        first_n_tokens=len(job.table.first.token_ids),
        n_items=len(items),
        n_readings=job.n_readings,
        n_too_long=len(plan.too_long),
        n_passes=len(plan.passes),
        tokens_before=plan.tokens_before,
        tokens_after=plan.tokens_after,
        answer_tokens=answers,
        n_bytes=job.n_bytes,
        seconds=(plan.tokens_after + answers) / rate,
        sharing_note=job.sharing_note,
    )

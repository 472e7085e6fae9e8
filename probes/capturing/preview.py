"""What a capture would do, without doing it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probes.capturing.engine import Engine, Extras, native_attention
from probes.capturing.job import Job, Settings, prepare, usual_lenses
from probes.choices.metrics import chance
from probes.locate import running_text
from probes.spanned import FIELD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Item, Items
    from probes.judge import Judge


@dataclass(frozen=True)
class Preview:
    """What a capture would do.

    Attributes:
        first_prompt: The first prompt, exactly as the model sees it.
        first_n_tokens: Its number of tokens.
        n_items: Number of items.
        n_groups: Groups that they are in; an item without one is a group of its own.
        n_labelled: Items with human scores, or with choices of which somebody has said what they are worth.
        fields: Texts of items, and the criterion, that prompts show.
        unused_fields: Texts that no prompt shows; ``text-ridge`` reads them all the same. None of either where the
            tokenizer does not say which token holds which text.
        n_readings: Readings: items, times the orders of a pair, times the answers to each.
        n_too_long: Prompts that exceed the length limit; they are kept, with status ``too_long``.
        n_passes: Forward passes.
        tokens_before: Tokens that one-by-one capture would compute.
        tokens_after: Tokens that the plan computes.
        answer_tokens: Tokens that would be generated at most.
        n_bytes: Size of the arrays of the run file.
        seconds: Estimated time, from one timed pass; generated tokens count as many as prompt tokens.
        sharing_note: Why shared prefixes are not computed once; empty where they are.
        choices: How many an item has at least and at most, and how many tokens each; None where labels are scored.
        first_choices: Those of the first item, as far as they are scored.
        chance: Accuracy of choosing at random; None where labels are scored or nobody has said what is right.
    """

    first_prompt: str
    first_n_tokens: int
    n_items: int
    n_groups: int
    n_labelled: int
    fields: tuple[str, ...]
    unused_fields: tuple[str, ...]
    n_readings: int
    n_too_long: int
    n_passes: int
    tokens_before: int
    tokens_after: int
    answer_tokens: int
    n_bytes: int
    seconds: float
    sharing_note: str
    choices: ChoiceCounts | None = None
    first_choices: tuple[str, ...] = ()
    chance: float | None = None


class ChoiceCounts(NamedTuple):
    """How many choices there are, and how long they are."""

    n_choices: int
    fewest: int
    most: int
    shortest: int
    longest: int


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
    shown, unused = _fields(job)
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
        n_groups=len(set(items.groups.tolist())),
        n_labelled=sum(_is_labelled(item) for item in items),
        fields=shown,
        unused_fields=unused,
        n_readings=job.n_readings,
        n_too_long=len(plan.too_long),
        n_passes=len(plan.passes),
        tokens_before=plan.tokens_before,
        tokens_after=plan.tokens_after,
        answer_tokens=answers,
        n_bytes=job.n_bytes,
        seconds=(plan.tokens_after + answers) / rate,
        sharing_note=job.sharing_note,
        **_of_choices(job),
    )


def _is_labelled(item: Item) -> bool:
    return bool(np.isfinite(item.human).any() or (item.choices and np.isfinite(item.choice_scores).any()))


def _fields(job: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts that prompts show, and those that none does."""
    if job.table.parts is None:
        return (), ()
    names = [name.removeprefix(FIELD) for name in job.table.parts.names if name.startswith(FIELD)]
    shown = {field: None for name in names for field in name.split("+")}
    known = {field: None for item in job.items for field in item.fields}
    return tuple(shown), tuple(field for field in known if field not in shown)


def _of_choices(job: Job) -> dict[str, Any]:
    """What a preview says of choices."""
    table = job.table.choices
    if table is None:
        return {}
    decode = running_text(job.judge.tokenizer)
    counts, lengths = table.counts, table.n_tokens
    # Free text is no choice, and an item of which nobody knows what is right has no accuracy.
    of = [number for number, item in enumerate(job.items) if _is_labelled(item) and not item.is_free_text]
    judged = table.select(np.array(of, dtype=np.int64))
    return {
        "choices": ChoiceCounts(
            len(table), *(int(n) for n in (counts.min(), counts.max(), lengths.min(), lengths.max()))
        ),
        "first_choices": tuple(decode(table.tokens[row].tolist()) for row in table.rows([0]).tolist()),
        "chance": chance(np.nan_to_num(judged.scores), judged.offsets) if of else None,
    }

"""What a capture will do: prompts, readings, plan, and everything that the run says about itself beforehand."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import platform
import warnings
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import h5py
import numpy as np
from jaxtyping import Int

from probes.capturing.engine import Extras
from probes.capturing.plan import Behind, Plan, make_plan
from probes.capturing.support import free_tokens, length_class, packing_refusal, tolerances
from probes.errors import ItemError, ProbesError
from probes.lens import LENSES, check_lenses
from probes.prompt_table import check_pair
from probes.quantization import pass_dependence
from probes.store.format import FORMAT, FORMAT_VERSION, Status
from probes.store.header import Header
from probes.store.shards import partial_folder
from probes.untouched import check_untouched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from probes.items import Items
    from probes.judge import Judge
    from probes.prompt_table import PromptTable

logger = logging.getLogger(__name__)

# A shard is what a killed run can lose, and what is written anew where one is damaged.
_SHARD_BYTES = 256 << 20
_PACKAGES = ("probes", "torch", "transformers", "transformer-lens", "h5py", "numpy")


@dataclass(frozen=True)
class Settings:
    """How to capture, apart from judge and items. None of it changes a number that is stored.

    Attributes:
        lenses: Lenses whose score logits are stored.
        residuals: Store the residual states.
        extras: What to read besides.
        batch_tokens: Tokens that one pass computes; chosen by free memory unless given.
        max_tokens: Longest prompt to capture, if lower than the model's own limit.
        share_prefix: Compute shared prefixes once, where the architecture allows.
    """

    lenses: Sequence[str]
    residuals: bool = True
    extras: Extras = Extras()  # noqa: RUF009 - frozen
    batch_tokens: int | None = None
    max_tokens: int | None = None
    share_prefix: bool = True


@dataclass(frozen=True, eq=False)
class Job:
    """A capture, ready to run.

    Attributes:
        judge: The judge.
        items: The items.
        table: Their prompts.
        plan: Which prompts share which pass.
        settings: As asked for.
        sharing_note: Why shared prefixes are not computed once; empty where they are.
    """

    judge: Judge
    items: Items
    table: PromptTable
    plan: Plan
    settings: Settings
    sharing_note: str

    @property
    def samples(self) -> int:
        """Readings a prompt."""
        return self.judge.decoding.samples if self.judge.decoding else 1

    @property
    def n_readings(self) -> int:
        """All readings: every sample of every prompt."""
        return len(self.table.item) * self.samples

    @property
    def n_bytes(self) -> int:
        """Size of all numbers in the run file."""
        judge, extras, layers = self.judge, self.settings.extras, len(self.judge.layers)
        word, states = (2 if judge.dtype == "bfloat16" else 4), layers * judge.d_model
        reading = 4 * layers * (len(judge.scale.labels) * len(self.settings.lenses) + extras.mass + extras.entropy)
        reading += word * states * (self.settings.residuals + extras.last_positions)
        choices = 0 if self.table.choices is None else len(self.table.choices) * len(self.settings.lenses)
        return self.n_readings * (reading + 4 * states * extras.response_mean) + 4 * layers * choices

    def readings(self, prompts: Sequence[int]) -> Int[np.ndarray, " reading"]:
        """Reading numbers of some prompts: all samples of the first, then of the next."""
        return (np.asarray(prompts, dtype=np.int64)[:, None] * self.samples + np.arange(self.samples)).reshape(-1)


def usual_lenses(judge: Judge, lenses: Sequence[str] | None) -> tuple[str, ...]:
    """The lenses asked for; unless given all, or ``norm`` alone where choices are scored.

    Of choices each lens costs as much as the first: a log-sum-exp over the vocabulary at every layer.
    """
    if lenses is not None:
        check_lenses(lenses)
        return tuple(lenses)
    return LENSES if judge.scale.has_labels else ("norm",)


def prepare(judge: Judge, items: Items, settings: Settings, path: Path | None = None) -> Job:
    """Render the prompts and plan the passes; what nobody has set of a judge's decoding is fitted to the items.

    Args:
        judge: The judge.
        items: The items.
        settings: How to capture.
        path: Run file; an unfinished one there keeps the batch size that it was started with.

    Raises:
        ItemError: A human score lies outside the scale's human range, or an item lacks a field of the pair.
        ScoreTokenError: The scale cannot be read with this tokenizer.
        TemplateError: The template does not fit an item.
        ProbesError: An extra reading does not go with the judge's condition.
        ModelError: The model has hooks, or its bridge has processed its weights.
    """
    # Everything that reads states begins here, and hooks may have come since the judge was loaded.
    check_untouched(judge.bridge)
    check_lenses(settings.lenses)
    _check_choices(judge, items, settings)
    if not settings.lenses and not settings.residuals:
        raise ProbesError("with neither a lens nor residuals nothing would be stored; choose one of them")
    if judge.decoding and (settings.extras.last_positions or settings.extras.response_mean):
        raise ProbesError(
            "last_positions and response_mean are read in the condition direct only; leave them out, or capture the "
            "prompts once more with condition direct"
        )
    check_pair(judge.template, judge.scale)
    _check_human(judge, items)
    table = judge.prompt_table(items, spans=settings.extras.response_mean)
    if table.forged:
        first, token = next(iter(table.forged.items()))
        logger.info(
            "%d of %d items contain control tokens of the model (first: %r in %r); they are read as text",
            len(table.forged),
            len(items),
            token,
            first,
        )
    shortest = int(table.tokens.lengths.min())
    if settings.extras.last_positions > shortest:
        raise ItemError(
            f"{items.source}: the shortest prompt has {shortest} tokens, fewer than the "
            f"{settings.extras.last_positions} last positions asked for; ask for fewer"
        )
    alone = pass_dependence(judge.bridge.original_model.config)
    note = alone or ("switched off" if not settings.share_prefix else packing_refusal(judge.bridge)) or ""
    batch_tokens = 1 if alone else settings.batch_tokens or _recorded_batch_tokens(path) or free_tokens(judge.bridge)
    behind = None if table.choices is None else Behind.of(table.tokens, table.choices)
    limits = [limit for limit in (judge.max_positions, settings.max_tokens) if limit is not None]
    if judge.decoding is not None and judge.decoding.usual and table.choices is not None and behind is not None:
        longest, room = table.choices.n_tokens.max(), (table.tokens.lengths + behind.longest).max()
        decoding = judge.decoding.fitted(
            table.choices.labels, int(longest), min(limits) - int(room) if limits else None
        )
        if decoding.max_new_tokens > judge.decoding.max_new_tokens:
            logger.info(
                "answers may have %d tokens, as an accepted one has %d (max_new_tokens, --max-new-tokens)",
                decoding.max_new_tokens,
                longest,
            )
        judge = replace(judge, decoding=decoding)
    answer_tokens = judge.decoding.max_new_tokens if judge.decoding else 0
    row_bytes = len(judge.layers) * judge.d_model * 4 * (1 + settings.extras.last_positions)
    plan = make_plan(
        table.tokens,
        batch_tokens=batch_tokens,
        max_tokens=min(limits) - answer_tokens if limits else None,
        share=not note,
        shard_rows=max(1, _SHARD_BYTES // row_bytes),
        answer_tokens=answer_tokens,
        answers=judge.decoding.samples if judge.decoding else 1,
        length_class=length_class(judge.bridge),
        behind=behind,
    )
    return Job(judge, items, table, plan, settings, note)


def _check_choices(judge: Judge, items: Items, settings: Settings) -> None:
    """Refuse what does not go with choices, and choices that nobody would read."""
    if judge.scale.has_labels:
        if items.has_choices:
            raise ItemError(
                f"{items.source}: the items have choices of their own, but the judge answers on the scale "
                f"{judge.scale}; give it the scale choices (--scale choices), or items without choices"
            )
        return
    if not items.has_choices:
        raise ItemError(
            f"{items.source}: the judge chooses between the choices of an item, and the items have none; name their "
            "column (--choices), or give the judge a scale such as 1..5"
        )
    extras = settings.extras
    if extras.mass or extras.entropy or extras.last_positions or extras.response_mean:
        raise ProbesError("with choices, no extra readings are taken; leave mass, entropy and the others out")
    if judge.decoding is not None and judge.decoding.samples > 1:
        raise ProbesError("with choices, one answer an item is read; leave samples out")
    if not settings.lenses:
        raise ProbesError("without a lens no choice is scored, and it cannot be done afterwards; name one")


def _recorded_batch_tokens(path: Path | None) -> int | None:
    """Batch size of an unfinished run: what memory is free today must not change a plan that was begun."""
    header = None if path is None else partial_folder(path) / "header.h5"
    if header is None or not header.is_file():
        return None
    try:
        with h5py.File(header, "r") as file:
            return int(json.loads(file.attrs["config"])["batch_tokens"])
    except (OSError, KeyError, ValueError):
        return None  # a torn header is written again


def _check_human(judge: Judge, items: Items) -> None:
    low, high = judge.scale.human_range
    for item in items:
        for score in item.human:
            if not judge.scale.contains_human(score):
                raise ItemError(
                    f"{items.source}: item {item.id!r} has the human score {score:g}, outside the human range "
                    f"{low:g}..{high:g} of the scale; give the scale the range of your raters (--human-range)"
                )


def make_header(job: Job) -> Header:
    """What the run says about itself before the first pass."""
    judge, items, plan, settings = job.judge, job.items, job.plan, job.settings
    status = np.full(len(job.table.item) * job.samples, Status.NOT_CAPTURED, dtype=np.uint8)
    status[job.readings(plan.too_long)] = Status.TOO_LONG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no raters is NaN, as wanted
        mean = np.nanmean(items.human, axis=1, dtype=np.float64) if items.n_raters else np.full(len(items), np.nan)
    config = {
        "model": judge.name,
        "revision": judge.revision,
        "quantization": judge.quantization,
        "device": str(judge.bridge.cfg.device),
        "attention": judge.attention or judge.kernel,
        "seed": judge.decoding.seed if judge.decoding else None,
        "items": items.source,
        "batch_tokens": plan.batch_tokens,
        "max_tokens": plan.max_tokens,
        "share_prefix": plan.share,
        "sharing_note": job.sharing_note,
        "tokens_before": plan.tokens_before,
        "tokens_after": plan.tokens_after,
        "system_turn": job.table.first.system_turn,
        "extras": asdict(settings.extras),
        "tasks": items.about,
    }
    attrs = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "judge": judge.describe(),
        "judge_hash": judge.digest(),
        "model_hash": judge.weights_hash,
        **({"model_hash_v1": judge.weights_hash_v1} if judge.weights_hash_v1 else {}),
        "readout_hash": judge.readout.digest(),
        "scale": judge.scale.to_dict(),
        "dtype": judge.dtype,
        "n_layers": judge.n_layers,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "tolerances": tolerances(judge.dtype),
        "pairwise": judge.template.pair is not None,
        "first_label": judge.template.first_label,
    }
    stored = "bfloat16" if judge.dtype == "bfloat16" else "float32"
    wanted = {
        "scale_mass": "mass",
        "entropy": "entropy",
        "last_positions": "last_positions",
        "response_mean": "response_mean",
    }
    return Header(
        items=items,
        token_ids=job.table.tokens,
        human_value=judge.scale.to_value(mean),
        readout=judge.readout,
        layers=judge.layers,
        lenses=settings.lenses,
        residual_dtype=stored if settings.residuals else None,
        status=status,
        attrs=attrs,
        reading_item=np.repeat(job.table.item, job.samples),
        reading_sample=np.tile(np.arange(job.samples), len(job.table.item)),
        reading_swapped=np.repeat(job.table.swapped, job.samples),
        extras=[name for name, option in wanted.items() if getattr(settings.extras, option)],
        choices=job.table.choices,
        parts=job.table.parts,
    )

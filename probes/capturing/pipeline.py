"""Capture: items through a judge into a run file."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.capturing.engine import Engine, PassResult, native_attention
from probes.capturing.plan import Plan, make_plan
from probes.capturing.runner import Runner, joined, readout_deviation
from probes.capturing.support import batching_refusal, logit_tolerance, prefix_sharing_refusal, tolerances
from probes.errors import ItemError, RunFileError
from probes.lens import LENSES, check_lenses
from probes.progress import progress
from probes.store.format import FORMAT, FORMAT_VERSION, Header, Status
from probes.store.run import Run, open_run
from probes.store.writer import RunWriter, ShardData
from probes.token_table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Items
    from probes.judge import Judge
    from probes.prompts import Prompt

logger = logging.getLogger(__name__)

# Below this share of the vocabulary's probability, a judge does not answer in its scale.
LOW_MASS = 0.2


@dataclass(frozen=True)
class Preview:
    """What a capture would do, without doing it.

    Attributes:
        first_prompt: The first prompt, exactly as the model sees it.
        first_n_tokens: Its number of tokens.
        n_items: Number of items.
        n_too_long: Items that exceed the length limit; they are kept, with status ``too_long``.
        n_passes: Forward passes.
        tokens_before: Tokens that one-by-one capture would compute.
        tokens_after: Tokens that the plan computes, padding included.
        n_bytes: Size of the arrays of the run file.
        seconds: Estimated time, from one timed pass.
        prefix_note: Why the shared prefix is not computed once; empty where it is.
    """

    first_prompt: str
    first_n_tokens: int
    n_items: int
    n_too_long: int
    n_passes: int
    tokens_before: int
    tokens_after: int
    n_bytes: int
    seconds: float
    prefix_note: str


@dataclass(frozen=True, eq=False)
class _Job:
    prompts: list[Prompt]
    plan: Plan
    prefix_note: str


def capture(
    judge: Judge,
    items: Items,
    path: str | Path,
    *,
    lenses: Sequence[str] = LENSES,
    residuals: bool = True,
    batch_tokens: int = 4096,
    max_tokens: int | None = None,
    share_prefix: bool = True,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Capture the residual stream of every layer at the score position, and the score logits, of every item.

    A killed capture is resumed by the same call, and a finished one of the same judge and items is returned as it
    is. Nothing is dropped: readings without numbers are NaN rows with a status.

    Args:
        judge: The judge.
        items: The items.
        path: Run file to write; while the capture runs, ``<path>.partial/`` holds the finished shards.
        lenses: Lenses whose score logits are stored; others can be computed later where residuals are stored.
        residuals: Store the residual states (float32, or the model's bfloat16 bit by bit).
        batch_tokens: Tokens in one pass, padding included.
        max_tokens: Longest prompt to capture, if lower than the model's own limit.
        share_prefix: Compute the tokens with which all prompts start once, where the architecture allows.
        overwrite: Replace an existing run file.
        show_progress: Progress bar on or off; on a terminal and in notebooks unless given.

    Returns:
        The run, opened.

    Raises:
        RunFileError: The run file exists and is of another judge or other items, or an unfinished run differs.
        ScoreTokenError: The scale cannot be read with this tokenizer.
        ModelError: The model's logits do not follow from its last residual state.
        ItemError: A human score lies outside the scale's human range.
    """
    path = Path(path)
    check_lenses(lenses)
    job = _prepare(judge, items, batch_tokens, max_tokens, share_prefix)
    header = _header(judge, items, job, lenses, residuals, {"batch_tokens": batch_tokens})
    if path.exists() and not overwrite:
        return _existing(path, header)
    with RunWriter.open(path, header, job.plan.digest(), restart=overwrite) as writer:
        if job.prefix_note:
            logger.info("prompts are computed whole: %s", job.prefix_note)
        _run_passes(judge, job, writer, lenses, residuals, show_progress)
        attrs = {
            "deviations": {
                **writer.notes,
                "final_logits": max((entry["deviation"] for entry in writer.finished.values()), default=0.0),
            }
        }
        writer.consolidate(attrs)
    run = open_run(path)
    _report(run)
    return run


def _existing(path: Path, header: Header) -> Run:
    """The finished run at this path, if it is the one that was asked for."""
    run = open_run(path)
    asked = {
        "the judge": (run.judge_hash, header.attrs["judge_hash"]),
        "the items or their human scores": (
            (run.item_hashes, run.items.digest(), run.items.raters),
            (header.item_hashes, header.items.digest(), header.items.raters),
        ),
        "the lenses": (tuple(run.attr("lenses")), tuple(header.lenses)),
        "the residuals": (run.attr("residual_dtype"), header.residual_dtype or "none"),
    }
    differ = [name for name, (there, wanted) in asked.items() if there != wanted]
    if differ:
        run.close()
        raise RunFileError(
            f"{path} exists and differs in {', '.join(differ)}; choose another path, or overwrite=True (--overwrite) "
            "to replace it"
        )
    logger.info("%s is captured already", path)
    return run


def preview(
    judge: Judge,
    items: Items,
    *,
    lenses: Sequence[str] = LENSES,
    residuals: bool = True,
    batch_tokens: int = 4096,
    max_tokens: int | None = None,
    share_prefix: bool = True,
) -> Preview:
    """Say what ``capture`` would do, with the first prompt as the model will see it."""
    import time

    check_lenses(lenses)
    job = _prepare(judge, items, batch_tokens, max_tokens, share_prefix)
    plan = job.plan
    word = 2 if judge.dtype == "bfloat16" else 4
    states = len(judge.layers) * judge.d_model * word if residuals else 0
    logits = len(judge.layers) * len(judge.scale.labels) * 4 * len(lenses)
    engine = Engine(judge.bridge, judge.readout)
    sample = [job.prompts[0].token_ids[-256:]]
    with native_attention(judge.bridge, judge.attention):
        engine.run(sample)  # the first pass of a process pays for more than itself
        start = time.perf_counter()
        engine.run(sample)
        rate = len(sample[0]) / (time.perf_counter() - start)
    return Preview(
        first_prompt=job.prompts[0].text,
        first_n_tokens=len(job.prompts[0].token_ids),
        n_items=len(items),
        n_too_long=len(plan.too_long),
        n_passes=len(plan.passes),
        tokens_before=plan.tokens_before,
        tokens_after=plan.tokens_after,
        n_bytes=len(items) * (states + logits),
        seconds=plan.tokens_after / rate,
        prefix_note=job.prefix_note,
    )


def _prepare(judge: Judge, items: Items, batch_tokens: int, max_tokens: int | None, share_prefix: bool) -> _Job:
    low, high = judge.scale.human_range
    for item in items:
        for score in item.human:
            if not judge.scale.contains_human(score):
                raise ItemError(
                    f"{items.source}: item {item.id!r} has the human score {score:g}, outside the human range "
                    f"{low:g}..{high:g} of the scale; give the scale the range of your raters (--human-range)"
                )
    prompts = judge.prompts(items)
    config = judge.bridge.original_model.config
    note = "" if share_prefix else "switched off"
    if share_prefix and (refusal := prefix_sharing_refusal(config)):
        note = refusal
    limits = [limit for limit in (judge.max_positions, max_tokens) if limit is not None]
    plan = make_plan(
        [prompt.token_ids for prompt in prompts],
        batch_tokens=1 if batching_refusal(config) else batch_tokens,
        max_tokens=min(limits) if limits else None,
        share_prefix=not note,
    )
    return _Job(prompts, plan, note)


def _header(
    judge: Judge, items: Items, job: _Job, lenses: Sequence[str], residuals: bool, options: dict[str, Any]
) -> Header:
    status = np.full(len(items), Status.NOT_CAPTURED, dtype=np.uint8)
    status[list(job.plan.too_long)] = Status.TOO_LONG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no raters is NaN, as wanted
        mean = np.nanmean(items.human, axis=1, dtype=np.float64) if items.n_raters else np.full(len(items), np.nan)
    packages = ("probes", "torch", "transformers", "transformer-lens", "h5py", "numpy")
    config = {
        "model": judge.name,
        "revision": judge.revision,
        "device": str(judge.bridge.cfg.device),
        "items": items.source,
        "share_prefix": not job.prefix_note,
        "prefix_note": job.prefix_note,
        "max_tokens": job.plan.max_tokens,
        "system_turn": job.prompts[0].system_turn,
        **options,
    }
    attrs = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "judge": judge.describe(),
        "judge_hash": judge.digest(),
        "model_hash": judge.weights_hash,
        "readout_hash": judge.readout.digest(),
        "scale": judge.scale.to_dict(),
        "dtype": judge.dtype,
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "tolerances": tolerances(judge.dtype),
    }
    stored = None if not residuals else "bfloat16" if judge.dtype == "bfloat16" else "float32"
    return Header(
        items=items,
        token_ids=TokenTable.from_lists(prompt.token_ids for prompt in job.prompts),
        human_value=judge.scale.to_value(mean),
        readout=judge.readout,
        layers=judge.layers,
        lenses=lenses,
        residual_dtype=stored,
        status=status,
        attrs=attrs,
    )


def _run_passes(
    judge: Judge,
    job: _Job,
    writer: RunWriter,
    lenses: Sequence[str],
    residuals: bool,
    show_progress: bool | None,
) -> None:
    plan = job.plan
    finished = writer.finished
    todo = [number for number in range(len(plan.shards)) if number not in finished]
    if not todo:
        return
    if finished:
        done = sum(entry["rows"] for entry in finished.values())
        logger.info("resuming: %d of %d items are captured already", done, len(job.prompts))
    runner = Runner(judge, job.plan, [prompt.token_ids for prompt in job.prompts], writer)
    total = sum(len(plan.passes[number]) for shard in todo for number in plan.shards[shard])
    with runner.ready(), progress("capturing", total, "items", enabled=show_progress) as advance:
        for shard in todo:
            rows = [row for number in plan.shards[shard] for row in plan.passes[number]]
            results = [runner.run(plan.passes[number], advance) for number in plan.shards[shard]]
            data = _shard_data(judge, rows, joined(results), lenses, residuals)
            writer.write_shard(shard, data)


def _shard_data(
    judge: Judge, rows: Sequence[int], result: PassResult, lenses: Sequence[str], residuals: bool
) -> ShardData:
    deviation = readout_deviation(judge, result)
    largest = np.nanmax(np.abs(result.token_logits), initial=0.0, where=np.isfinite(result.token_logits))
    if deviation > (allowed := logit_tolerance(judge.dtype, float(largest))):
        logger.warning(
            "the norm lens at the last layer misses the model's own logits by %.2g (allowed %.2g); the run records it",
            deviation,
            allowed,
        )
    readout = judge.readout
    logits = {lens: readout.score_logits(result.residual, lens) for lens in lenses}
    finite = np.isfinite(result.residual).all(axis=(1, 2)) & np.isfinite(result.token_logits).all(axis=1)
    for values in logits.values():
        finite &= np.isfinite(values).all(axis=(1, 2))
    for array in (result.residual, result.scale_mass, *logits.values()):
        array[~finite] = np.nan
    return ShardData(
        rows=np.array(rows),
        status=np.where(finite, Status.OK, Status.NON_FINITE).astype(np.uint8),
        residual=result.residual if residuals else None,
        score_logits=logits,
        final_mass=result.scale_mass,
        deviation=deviation,
    )


def _report(run: Run) -> None:
    """Say what was not captured, and whether the judge answers in its scale at all."""
    for status in Status:
        count = int((run.status == status).sum())
        if count and status is not Status.OK:
            logger.warning("%d of %d items have no numbers: %s", count, len(run.status), status.name.lower())
    captured = run.status == Status.OK
    if not captured.any():
        return
    mass = float(np.mean(run.final_mass[captured]))
    logger.info("the scale holds %.2f of the vocabulary's probability at the last layer", mass)
    if mass < LOW_MASS:
        logger.warning(
            "the scale holds only %.3f of the vocabulary's probability at the last layer: the judge does not answer "
            "in the scale; give few-shot examples or a prefill such as `Score:`",
            mass,
        )

"""Capture: items through a judge into a run file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from probes.capturing.engine import Extras
from probes.capturing.existing import missing_items
from probes.capturing.job import Job, Settings, make_header, prepare, usual_lenses
from probes.capturing.passes import run_passes
from probes.errors import RunFileError
from probes.kinds import require_items, require_judge, require_path
from probes.store import disk
from probes.store.format import Status
from probes.store.lock import locked, remove_leftover
from probes.store.merge import write_run
from probes.store.opening import open_run
from probes.store.safety import starts_as_hdf5
from probes.store.shards import partial_folder
from probes.store.writer import RunWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.choices.table import ChoiceTable
    from probes.items import Items
    from probes.judge import Judge
    from probes.store.run import Run

logger = logging.getLogger(__name__)

# Below this share of the vocabulary's probability, a judge does not answer in its scale.
LOW_MASS = 0.2


def capture(
    judge: Judge,
    items: Items,
    path: str | Path,
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
    compress: bool = False,
    extend: bool = False,
    overwrite: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Capture the residual stream of every layer at the score position, and the score logits, of every item.

    A killed capture is resumed by the same call, and a finished one of the same judge and items is returned as it
    is. Ctrl-C stops after the current pass; a second one stops at once. Nothing is dropped: readings without numbers
    are NaN rows with a status.

    Args:
        judge: The judge.
        items: The items.
        path: Run file to write; while the capture runs, ``<path>.partial/`` holds the finished shards.
        lenses: Lenses whose score logits are stored; unless given all. Others can be computed later where residuals
            are stored. Where choices are scored, lenses of their log-likelihoods: ``norm`` unless given, and no other
            can be had later.
        residuals: Store the residual states (float32, or the model's bfloat16 bit by bit).
        mass: Also the share of the full vocabulary's probability on the scale, per layer.
        entropy: Also the entropy of the full vocabulary's distribution, per layer.
        last_positions: Also the residual states at so many positions up to the score position.
        response_mean: Also the mean residual state over the tokens of the response.
        batch_tokens: Tokens that one pass computes; chosen by free memory unless given.
        max_tokens: Longest prompt to capture, if lower than the model's own limit.
        share_prefix: Compute shared prefixes once, where the architecture allows.
        compress: Compress the numbers in the run file without loss.
        extend: Add what an existing run of the same judge lacks: items that it does not hold go behind those that
            it holds, which are not captured again and must not have changed, and lenses are computed for all.
        overwrite: Replace an existing run file.
        show_progress: Progress bar on or off; on a terminal and in notebooks unless given.

    Returns:
        The run, opened.

    Raises:
        RunFileError: The run file exists and is of another judge or other items, an unfinished run differs, another
            process writes it, or the disk is full or read-only.
        KeyboardInterrupt: After Ctrl-C; the message says what is kept.
        ScoreTokenError: The scale cannot be read with this tokenizer.
        ModelError: The model's logits do not follow from its last residual state, or one prompt exceeds memory.
        ItemError: A human score lies outside the scale's human range.
    """
    require_judge(judge)
    require_items(items)
    require_path(path)
    path = Path(path)
    check_place(path, overwrite=overwrite)
    extras = Extras(mass, entropy, last_positions, response_mean)
    lenses = usual_lenses(judge, lenses)
    settings = Settings(lenses, residuals, extras, batch_tokens, max_tokens, share_prefix)
    if extend and overwrite:
        raise RunFileError("extend adds to a run and overwrite replaces it; choose one of them")
    before = disk.state_of(path)
    job = prepare(judge, items, settings, None if overwrite else path)
    base = None
    if path.exists() and not overwrite:
        base = open_run(path)
        try:
            missing = missing_items(base, make_header(job), extend=extend)
            lenses = tuple(dict.fromkeys([*base.attr("lenses"), *lenses]))
            if not len(missing):
                return _relensed(base, lenses, before, compress=compress)
            logger.info("%s holds %d of %d items already", path, len(items) - len(missing), len(items))
            if len(missing) < len(items) or lenses != tuple(settings.lenses):
                job = prepare(job.judge, items.select(missing), replace(settings, lenses=lenses), path)
        except BaseException:
            base.close()
            raise
    try:
        _capture(job, path, base, before, restart=overwrite, compress=compress, show_progress=show_progress)
    finally:
        if base is not None:
            base.close()
    run = open_run(path)
    _report(run)
    return run


def check_place(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a place that holds something else than a run, or is named as a file of another kind.

    Raises:
        RunFileError: A capture cannot be written there.
    """
    if path.suffix.lower() in _OTHER_KINDS:
        raise RunFileError(
            f"{path}: a capture writes an HDF5 file; call it {path.with_suffix('.h5').name}, and make tables of it "
            "with `probes export` or `probes score`"
        )
    if (there := next((folder for folder in path.parents if folder.exists()), None)) and not there.is_dir():
        raise RunFileError(f"{there} is a file, and {path} cannot be written in it; choose another path")
    if path.is_dir():
        raise RunFileError(f"{path} is a folder; give the path of a file, such as {path / 'run.h5'}")
    if path.is_file() and not starts_as_hdf5(path) and not (overwrite and not path.stat().st_size):
        # A damaged run may be replaced; anything else is somebody's data.
        raise RunFileError(
            f"{path} exists and is not a run, so it is not replaced; choose another path, or remove the file first"
        )


_OTHER_KINDS: Final = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".md", ".yaml", ".yml"}


def _capture(
    job: Job,
    path: Path,
    base: Run | None,
    before: disk.State,
    *,
    restart: bool,
    compress: bool,
    show_progress: bool | None,
) -> None:
    """Capture what is missing, and write the run file."""
    # The shards, the file that they become, and the file that it replaces are there at the same time.
    there = sum(file.stat().st_size for file in partial_folder(path).glob("*.h5"))
    with disk.failures_named(path):
        disk.make_folder(path.parent)
    disk.check_space(path, 2 * job.n_bytes + (0 if base is None else path.stat().st_size) - there)
    with RunWriter.open(path, make_header(job), job.plan.digest(), restart=restart) as writer:
        disk.check_unchanged(path, before)
        try:
            run_passes(job, writer, show_progress=show_progress)
            final = max((entry["deviation"] for entry in writer.finished.values()), default=0.0)
            attrs = {"deviations": {**writer.notes, "final_logits": final}}
            writer.write_run(attrs, base=base, compress=compress)
        except disk.WriteFailed as error:
            raise disk.WriteFailed(f"{error}; {writer.kept}") from error


def _relensed(run: Run, lenses: tuple[str, ...], before: disk.State, *, compress: bool) -> Run:
    """A run that lacks no item, with these lenses."""
    path = run.path
    if lenses == tuple(run.attr("lenses")):
        logger.info("%s is captured already", path)
    else:
        with run, locked(path):
            disk.check_unchanged(path, before)
            write_run([run], path, lenses=lenses, compress=compress)
        run = open_run(path)
    remove_leftover(run)
    return run


def _report_choices(run: Run, choices: ChoiceTable) -> None:
    """Say how likely the model is to give one of the choices, where there is anything to choose."""
    of_choice = np.array([not item.is_free_text for item in run.items], dtype=bool) & (run.item_status == Status.OK)
    if not of_choice.any():
        return
    tokens = np.add.reduceat(choices.n_tokens, choices.offsets[:-1]) / choices.counts
    held = run.final_mass[of_choice].astype(np.float64)
    mass, length = float(held.mean()), tokens[of_choice]
    # The probability of a long text is small whoever says it. What float32 cannot hold is taken for the least it can.
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    a_token = float((np.maximum(held, smallest) ** (1 / length)).mean())
    apart = f" ({a_token:.3f} a token)" if (length > 1).any() else ""
    if a_token >= LOW_MASS:
        logger.info("the choices hold %.3f of the probability of all answers at the last layer%s", mass, apart)
        return
    logger.warning(
        "the choices hold only %.3f of the probability of all answers at the last layer%s: the model would rather say "
        "something else; put worked examples or a list of the choices into the prompt, or correct what stands between "
        "prompt and choice (the template's separator)",
        mass,
        apart,
    )


def _report(run: Run) -> None:
    """Say what was not captured, and whether the judge answers in its scale at all."""
    for status in Status:
        count = int((run.status == status).sum())
        if count and status is not Status.OK:
            what = "items" if len(run.status) == len(run.items) else "readings"
            logger.warning("%d of %d %s have no numbers: %s", count, len(run.status), what, status.name.lower())
    if cut_off := int(run.cut_off.sum()):
        logger.warning(
            "%d of %d answers were cut off at %d tokens: what was read is kept, but their texts lack their end; allow "
            "more tokens (max_new_tokens, --max-new-tokens)",
            cut_off,
            len(run.status),
            run.attr("judge")["decoding"]["max_new_tokens"],
        )
    captured = run.status == Status.OK
    if not captured.any():
        return
    if run.choices is not None:
        _report_choices(run, run.choices)
        return
    mass = float(np.mean(run.final_mass[captured]))
    logger.info("the scale holds %.2f of the vocabulary's probability at the last layer", mass)
    if mass < LOW_MASS:
        logger.warning(
            "the scale holds only %.3f of the vocabulary's probability at the last layer: the judge does not answer "
            "in the scale; give few-shot examples or a prefill such as `Score:`",
            mass,
        )
    if run.attr("pairwise"):
        last = run.position_bias("norm" if "norm" in run.lenses else run.lenses[0]).iloc[-1]
        logger.info(
            "at the last layer, the response shown first gains %.2f in log-odds by its position (%d pairs; %.0f %% "
            "change their winner with the order)",
            last["bias"],
            last["n"],
            100 * last["flipped"],
        )

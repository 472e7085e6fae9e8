"""The command line. Every command is one function of the Python API with the same arguments.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 bad input (one line:
what, where, what to do), 1 anything else.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from probes import cli_comparing, cli_plot, cli_report, cli_runs, cli_scoring
from probes.cli_options import (
    CONDITION,
    DTYPE,
    ITEMS,
    MODEL,
    SAMPLES,
    SCALE,
    SEED,
    TEMPERATURE,
    TEMPLATE,
    AsJson,
    Bare,
    BatchTokens,
    Case,
    ChoicesColumn,
    Config,
    ControlTokensFlag,
    CriterionColumn,
    Device,
    DeviceMap,
    Fields,
    GroupColumn,
    HfSplit,
    HumanColumns,
    HumanRange,
    IdColumn,
    Judges,
    Limit,
    MaxNewTokens,
    MaxTokens,
    QuantizationFlag,
    Revision,
    Rule,
    RunPath,
    SharePrefix,
    Shots,
    SplitColumn,
    Stop,
    SystemColumn,
    TargetAs,
    TargetColumn,
    Tasks,
    TasksFolder,
    TrustRemoteCode,
    human_columns,
    named_fields,
)
from probes.cli_text import format_preview
from probes.errors import ProbesError

app = typer.Typer(
    name="probes",
    help="Probe the layers of LLM judges: capture them, weigh them, compare them with human raters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from probes import __version__

        typer.echo(f"probes {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and results.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    del version
    logging.getLogger("probes").setLevel(logging.WARNING if quiet else logging.INFO)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo"),
    words: Annotated[int, typer.Option(min=100, help="Number of words to judge.")] = 450,
    seed: Annotated[int, typer.Option(help="Seed of the word sample and of the folds.")] = 0,
) -> None:
    """Run the whole job on the embedded judge and human scores: capture, fit, compare, draw."""
    from probes.demo import run_demo

    run_demo(out, n_words=words, seed=seed, echo=typer.echo)


@app.command()
def capture(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run file to write.")],
    items: Annotated[str | None, ITEMS] = None,
    task: Tasks = None,
    tasks: TasksFolder = None,
    shots: Shots = None,
    model: Annotated[str, MODEL] = "smollm2-135m",
    template: Annotated[str | None, TEMPLATE] = None,
    scale: Annotated[str | None, SCALE] = None,
    control_tokens: ControlTokensFlag = False,
    human_range: HumanRange = None,
    case: Case = False,
    bare: Bare = False,
    condition: Annotated[str, CONDITION] = "direct",
    rule: Rule = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    samples: Annotated[int, SAMPLES] = 1,
    temperature: Annotated[float, TEMPERATURE] = 0.0,
    seed: Annotated[int, SEED] = 0,
    field: Fields = None,
    id: IdColumn = "id",
    criterion: CriterionColumn = "criterion",
    group: GroupColumn = "group",
    system: SystemColumn = "system",
    split: SplitColumn = "split",
    human: HumanColumns = None,
    choices: ChoicesColumn = None,
    target: TargetColumn = None,
    target_as: TargetAs = None,
    identified: Annotated[bool, typer.Option("--identified-raters", help="Column k is always one person.")] = False,
    hf_split: HfSplit = None,
    limit: Limit = None,
    dtype: Annotated[str, DTYPE] = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    quantization: QuantizationFlag = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    lens: Annotated[list[str] | None, typer.Option(help="Lens to store: raw, norm. Repeatable; both.")] = None,
    residuals: Annotated[
        bool, typer.Option(help="Store the residual states; without them no lens can be added later.")
    ] = True,
    mass: Annotated[bool, typer.Option("--mass", help="Store the scale's probability at every layer.")] = False,
    entropy: Annotated[bool, typer.Option("--entropy", help="Store the entropy at every layer.")] = False,
    last_positions: Annotated[int, typer.Option(min=0, help="Store the states of so many last positions.")] = 0,
    response_mean: Annotated[bool, typer.Option("--response-mean", help="Store the response's mean state.")] = False,
    batch_tokens: BatchTokens = None,
    max_tokens: MaxTokens = None,
    share_prefix: SharePrefix = True,
    compress: Annotated[bool, typer.Option("--compress", help="Compress the numbers without loss.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="Add what an existing run lacks: items, lenses.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Feed items to a judge and write one run file.

    Unless given, the template is rubric and the scale 1..5; of tasks, those of the task.
    """
    del config  # its values arrived through the other flags
    from probes.capturing import capture as run_capture
    from probes.capturing import preview
    from probes.capturing.pipeline import check_place
    from probes.cli_tasks import read_tasks
    from probes.judge import Judge
    from probes.lens import check_lenses
    from probes.prompts import load_template
    from probes.readers import read_items
    from probes.scale import CHOICES, Scale

    if (items is None) == (not task):
        raise ProbesError("give either items to judge (--items), or a task to solve (--task)")
    text = scale or (CHOICES if task or choices else "1..5")
    labels = Scale.parse(text, human_range, case=case, bare=bare)
    choosing: dict[str, Any] = {"choices": choices, "target": target, "target_as": target_as}
    if items is None:
        asked = read_tasks(task or [], tasks, shots=shots, condition=condition, seed=seed, limit=limit)
        records, template, stop = asked.items, template or asked.template, stop or asked.stop
    else:
        records = read_items(
            items,
            fields=named_fields(field),
            id=id,
            criterion=criterion,
            group=group,
            system=system,
            split=split,
            human=human_columns(human),
            **choosing,
            scale=labels,
            raters="identity" if identified else "slots",
            hf_split=hf_split,
            limit=limit,
        )
    # Cheap checks come before minutes of loading.
    check_lenses(lens or ())
    if not dry_run:
        check_place(out, overwrite=overwrite)
    chosen = load_template(template or "rubric")
    chosen = replace(chosen, control_tokens=control_tokens or chosen.control_tokens)
    chosen.messages(records[0], labels)
    # The names of conditions and quantisations are checked where they are used.
    named: dict[str, Any] = {"condition": condition, "quantization": quantization}
    judge = Judge.load(
        model,
        template=chosen,
        scale=labels,
        rule=rule,
        max_new_tokens=max_new_tokens,
        stop=stop,
        samples=samples,
        temperature=temperature,
        seed=seed,
        dtype=dtype,
        device=device,
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **named,
    )
    options: dict[str, Any] = {
        "lenses": tuple(lens) if lens else None,
        "residuals": residuals,
        "mass": mass,
        "entropy": entropy,
        "last_positions": last_positions,
        "response_mean": response_mean,
        "batch_tokens": batch_tokens,
        "max_tokens": max_tokens,
        "share_prefix": share_prefix,
    }
    if dry_run:
        shown = preview(judge, records, **options)
        typer.echo(json.dumps(vars(shown)) if as_json else format_preview(shown, judge))
        return
    written = run_capture(judge, records, out, compress=compress, extend=extend, overwrite=overwrite, **options)
    with written as run:
        counts = {"path": str(run.path), "items": len(run.item_status), "captured": int((run.item_status == 0).sum())}
        if condition != "direct":
            counts["cut_off"] = int(run.cut_off.sum())
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(f"{counts['path']}: {counts['captured']} of {counts['items']} items captured")


@app.command()
def fit(
    run: RunPath,
    judge: Judges = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the fitted judges.")] = Path("judges"),
    criterion: Annotated[str | None, typer.Option(help="Only items of this criterion.")] = None,
    config: Config = None,
) -> None:
    """Fit judges on all human scores of a run and save each as JSON."""
    del config
    from probes.comparing import check_judge, usual_judges
    from probes.comparing import fit as run_fit
    from probes.store import open_run

    with open_run(run) as opened:
        for spec in judge or ():
            check_judge(opened, spec)  # so that none is fitted where another is misspelt
        for spec in judge or usual_judges(opened):
            typer.echo(str(run_fit(opened, spec, criterion=criterion).save(out / f"{_file_name(spec)}.json")))


cli_comparing.add_to(app)
cli_plot.add_to(app)
cli_report.add_to(app)
cli_scoring.add_to(app)
cli_runs.add_to(app)


def _file_name(spec: str) -> str:
    """A judge's name as a file name on every system (``layer:12`` is none on Windows)."""
    return spec.replace(":", "-")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, turn bad input into one line and exit code 2."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    logger = logging.getLogger("probes")
    logger.handlers = [handler]
    logger.propagate = False
    try:
        status = app(arguments, prog_name="probes", standalone_mode=False)
    except ProbesError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None
    except _UsageError as error:
        message = error.format_message().strip()
        # Without any argument the help was shown, and there is no message.
        if message:
            command = error.ctx.command_path if error.ctx else "probes"
            sys.stderr.write(f"error: {' '.join(message.split()).rstrip('.')}; see `{command} --help`\n")
        raise SystemExit(2) from None
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        sys.stderr.write(f"error: {message}; check free space and permissions, or choose another path\n")
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # typer answers Ctrl-C with this number
        sys.stderr.write("interrupted; the same command starts again, a capture where it stopped\n")
    if isinstance(status, int) and status:
        raise SystemExit(status)


_INTERRUPTED = 130
# Typer brings its own copy of click, so the base class of its usage errors is reached through one of them.
_UsageError: Any = typer.BadParameter.__mro__[2]


class _Plain(logging.Formatter):
    """Messages as they are, warnings marked."""

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return mark + record.getMessage()

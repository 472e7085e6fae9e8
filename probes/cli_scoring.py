"""The command that scores new items with a fitted judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    Bare,
    BatchTokens,
    Case,
    Config,
    CriterionColumn,
    Device,
    DeviceMap,
    Fields,
    GroupColumn,
    HfSplit,
    HumanColumns,
    HumanRange,
    IdColumn,
    Limit,
    MaxNewTokens,
    MaxTokens,
    QuantizationFlag,
    Revision,
    Rule,
    SharePrefix,
    SplitColumn,
    SystemColumn,
    TrustRemoteCode,
    human_columns,
    named_fields,
)
from probes.errors import ProbesError

if TYPE_CHECKING:
    from probes.artefact import FittedJudge
    from probes.scale import Scale


Fitted = Annotated[Path, typer.Option("--judge", help="A fitted judge: a file that `probes fit` wrote.")]
RunFile = Annotated[Path | None, typer.Option("--run", help="Instead of items: a run, scored without a model.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="File to write: .jsonl, .csv or .parquet; stdout unless given.")
]


def score(
    context: typer.Context,
    judge: Fitted,
    items: Annotated[str | None, ITEMS] = None,
    run: RunFile = None,
    out: Out = None,
    model: Annotated[str | None, MODEL] = None,
    template: Annotated[str | None, TEMPLATE] = None,
    scale: Annotated[str | None, SCALE] = None,
    human_range: HumanRange = None,
    case: Case = False,
    bare: Bare = False,
    condition: Annotated[str | None, CONDITION] = None,
    rule: Rule = None,
    max_new_tokens: MaxNewTokens = None,
    samples: Annotated[int | None, SAMPLES] = None,
    temperature: Annotated[float | None, TEMPERATURE] = None,
    seed: Annotated[int | None, SEED] = None,
    field: Fields = None,
    id: IdColumn = "id",
    criterion: CriterionColumn = "criterion",
    group: GroupColumn = "group",
    system: SystemColumn = "system",
    split: SplitColumn = "split",
    human: HumanColumns = None,
    hf_split: HfSplit = None,
    limit: Limit = None,
    dtype: Annotated[str | None, DTYPE] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quantization: QuantizationFlag = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    batch_tokens: BatchTokens = None,
    max_tokens: MaxTokens = None,
    share_prefix: SharePrefix = True,
    config: Config = None,
) -> None:
    """Score new items with a fitted judge; model, template, scale and condition are those of its fit unless given."""
    del config
    from probes.artefact import FittedJudge
    from probes.readers import read_items
    from probes.scoring import check_suffix, json_lines, write_scores
    from probes.scoring import score as run_score
    from probes.store import open_run

    if out is not None:
        check_suffix(out)
    fitted = FittedJudge.load(judge)
    settings: dict[str, Any] = {
        "model": model,
        "template": template,
        "scale": _scale(fitted, scale, human_range, case=case, bare=bare),
        "condition": condition,
        "rule": rule,
        "max_new_tokens": max_new_tokens,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "quantization": quantization,
        "revision": revision,
        "trust_remote_code": trust_remote_code or None,
    }
    changes = {name: value for name, value in settings.items() if value is not None}
    if (items is None) == (run is None):
        raise ProbesError("give either items to score (--items), or a run that was captured before (--run)")
    if run is not None:
        if idle := _given(context) - {"judge", "run", "out", "config"}:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
            raise ProbesError(f"a run is scored as it is; leave out {flags}, or give --items instead of --run")
        with open_run(run) as opened:
            table = run_score(fitted, opened)
    else:
        records = read_items(
            items or "",
            fields=named_fields(field),
            id=id,
            criterion=criterion,
            group=group,
            system=system,
            split=split,
            human=human_columns(human),
            hf_split=hf_split,
            limit=limit,
        )
        table = run_score(
            fitted,
            records,
            fitted.load_judge(**changes),
            batch_tokens=batch_tokens,
            max_tokens=max_tokens,
            share_prefix=share_prefix,
        )
    if out is None:
        for line in json_lines(table):
            typer.echo(line)
    else:
        write_scores(table, out)
        typer.echo(f"{out}: {int((table['status'] == 'ok').sum())} of {len(table)} items scored")


def _given(context: typer.Context) -> set[str]:
    """Names of the flags that were given, on the command line or in a config file."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _scale(fitted: FittedJudge, text: str | None, human_range: str | None, *, case: bool, bare: bool) -> Scale | None:
    """The scale that the flags give; None where they leave that of the fit."""
    from probes.scale import Scale, parse_range

    if text is not None:
        return Scale.parse(text, human_range, case=case, bare=bare)
    if human_range is None and not case and not bare:
        return None
    scale = Scale.from_dict(dict(fitted.scale))
    span = scale.human_range if human_range is None else parse_range(human_range)
    return replace(scale, human_range=span, case=case or scale.case, bare=bare or scale.bare)


def add_to(app: typer.Typer) -> None:
    """Give an application this command."""
    app.command()(score)

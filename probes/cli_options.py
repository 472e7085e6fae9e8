"""Arguments that several commands share, and config files that give a command its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from probes.errors import ProbesError, did_you_mean
from probes.sources import describe


class ConfigError(ProbesError, ValueError):
    """A config file that cannot be used."""


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a command's flags from a YAML file; flags on the command line win."""
    if path is None:
        return None
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {path}: {error.strerror or error}; check the path (--config)"
        ) from None
    except yaml.YAMLError as error:
        from probes.prompts import yaml_problem

        raise ConfigError(f"{path}{yaml_problem(error)}; correct the file (--config)") from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path}: expected lines such as `limit: 100`, got {describe(data)}; write one for each flag (--config)"
        )
    known = {parameter.name for parameter in context.command.params} - {"config"}
    settings = {str(key).replace("-", "_"): value for key, value in data.items()}
    if unknown := sorted(set(settings) - known):
        flags = sorted(str(name) for name in known)
        near = did_you_mean(unknown[0], flags)
        raise ConfigError(
            f"{path}: `{context.info_name}` has no setting {', '.join(unknown)}{near}; it has {', '.join(flags)}"
        )
    by_name = {parameter.name: parameter for parameter in context.command.params}
    context.default_map = {name: _setting(path, name, value, by_name[name]) for name, value in settings.items()}
    return path


def _setting(path: Path, name: str, value: Any, flag: Any) -> Any:
    """One value of a config file, as its flag takes it."""
    several = getattr(flag, "multiple", False)
    values = value if several and isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, (list, dict)):
            raise ConfigError(f"{path}: {name} takes one value, got {one!r}")
        if isinstance(one, bool) and not getattr(flag, "is_flag", False):
            raise ConfigError(f"{path}: {name} takes a text, got {one!r}; put quotes around it")
    return [str(one) for one in values] if several else value


Config = Annotated[
    Path | None, typer.Option(callback=_read_config, is_eager=True, help="YAML file with this command's flags.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run file that `probes capture` wrote.")]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", help="A judge, e.g. final, layer:12, lager@norm, slope-ridge. Repeat for several."),
]
Per = Annotated[
    str | None,
    typer.Option(
        help="What log-likelihoods of choices are divided by in tables and figures of layers: token, byte or char; as "
        "the judges do unless given."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# What commands share in their own ways: required or not, with a default or without.
ITEMS = typer.Option("--items", help="Items: .jsonl, .csv, .tsv, .parquet, a data set folder or hub id.")
MODEL = typer.Option("--model", help="Hub id, folder, .gguf file, or smollm2-135m.")
TEMPLATE = typer.Option("--template", help="Template name or YAML file.")
SCALE = typer.Option("--scale", help="1..5, 0..9, A..E, yes/no, LABEL=VALUE,..., or choices (those of each item).")
CONDITION = typer.Option("--condition", help="direct, generate (a short answer) or reasoning.")
SAMPLES = typer.Option("--samples", min=1, help="Answers an item; several need a temperature.")
TEMPERATURE = typer.Option("--temperature", min=0, help="0 takes the likeliest token each time.")
SEED = typer.Option("--seed", help="Seed of the samples, and of what is drawn of tasks (0: as published, 42).")
DTYPE = typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")

ControlTokensFlag = Annotated[
    bool,
    typer.Option("--control-tokens", help="Let the texts of items make control tokens of the chat, as <|im_end|>."),
]
HumanRange = Annotated[str | None, typer.Option(help="Range of the human scores, e.g. -4..4.")]
Case = Annotated[bool, typer.Option("--case", help="Also count capitalised labels.")]
Bare = Annotated[bool, typer.Option("--bare", help="Only count the exact text of a label.")]
Rule = Annotated[
    str | None, typer.Option(help="Which generated label is the score: first, anchor, anchor:REGEX or last.")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens generated at most; 10 (generate) or 512 (reasoning) unless given, of tasks 64 or 512, more where "
        "accepted answers are longer.",
    ),
]
Fields = Annotated[list[str] | None, typer.Option(help="Text field: NAME or NAME=COLUMN. Repeatable.")]
IdColumn = Annotated[str, typer.Option(help="Column of the ids.")]
CriterionColumn = Annotated[str, typer.Option(help="Column of the criterion.")]
GroupColumn = Annotated[str, typer.Option(help="Column of the group.")]
SystemColumn = Annotated[str, typer.Option(help="Column of the system.")]
SplitColumn = Annotated[str, typer.Option(help="Column of the split.")]
HumanColumns = Annotated[list[str] | None, typer.Option(help="Column of human scores; repeat: one a rater.")]
ChoicesColumn = Annotated[
    str | None, typer.Option("--choices", help="Column of each item's choices: a list, or {choice: score}.")
]
TargetColumn = Annotated[
    str | None, typer.Option("--target", help="Column that says which choice is right: its text, number, or scores.")
]
TargetAs = Annotated[
    str | None,
    typer.Option(help="How the target names a choice: text or number (from 0); what fits all, unless given."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="Instead of items: a task, e.g. bbh/navigate, bigbench/riddle_sense. Repeatable."),
]
TasksFolder = Annotated[Path | None, typer.Option("--tasks", help="Folder of the suites; or set PROBES_TASKS.")]
Shots = Annotated[
    int | None, typer.Option(min=0, help="Worked examples in a task's prompts; as published if not given.")
]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends a generated answer to a task. Repeatable.")]
HfSplit = Annotated[str | None, typer.Option(help="Split of a Hugging Face data set.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many items; of each task so many drawn at random (--seed).")
]
Device = Annotated[str | None, typer.Option(help="For example cuda:0.")]
DeviceMap = Annotated[str | None, typer.Option(help="Passed to transformers instead of a device, e.g. auto.")]
QuantizationFlag = Annotated[str | None, typer.Option(help="8bit or 4bit: quantise while loading.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Tokens in one pass; chosen by free memory unless given.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest prompt to read.")]
SharePrefix = Annotated[bool, typer.Option(help="Compute what prompts start with in common once.")]


def named_fields(pairs: list[str] | None) -> dict[str, str] | None:
    """Columns of the text fields, from ``NAME`` and ``NAME=COLUMN``."""
    if not pairs:
        return None
    return {name: column or name for name, _, column in (pair.partition("=") for pair in pairs)}


def human_columns(columns: list[str] | None) -> str | list[str]:
    """Columns of the human scores, as ``read_items`` takes them."""
    return "human" if not columns else columns[0] if len(columns) == 1 else columns

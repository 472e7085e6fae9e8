"""Arguments that several commands share, and config files that give a command its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from probes.errors import ProbesError


class ConfigError(ProbesError, ValueError):
    """A config file that cannot be used."""


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take a command's flags from a YAML file; flags on the command line win."""
    if path is None:
        return None
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `flag: value` lines, got {type(data).__name__}")
    known = {parameter.name for parameter in context.command.params} - {"config"}
    settings = {str(key).replace("-", "_"): value for key, value in data.items()}
    if unknown := sorted(set(settings) - known):
        flags = ", ".join(sorted(str(name) for name in known))
        raise ConfigError(f"{path}: `{context.info_name}` has no setting {', '.join(unknown)}; it has {flags}")
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
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

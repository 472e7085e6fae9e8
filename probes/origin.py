"""Where a fitted judge comes from: what it takes to load the judge of its run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probes.differences import differences
from probes.errors import FitError, ProbesError, RunFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probes.runlike import RunLike


def origin_of(run: RunLike) -> dict[str, Any]:
    """Model, revision and dtype of a run's judge, and how it was asked.

    Returns:
        ``model`` and ``revision`` as given at capture, ``quantization`` as found, and ``judge`` as
        ``Judge.describe`` gives it. Empty for runs that do not say.
    """
    judge, config = _attr(run, "judge"), _attr(run, "config")
    if not judge or "model" not in config:
        return {}
    return {name: config.get(name) for name in ("model", "revision", "quantization")} | {"judge": judge}


def changed_settings(origin: Mapping[str, Any], judge: Mapping[str, Any] | None) -> list[str]:
    """Settings in which the judge of a run differs from an origin, by name; empty where either does not say."""
    before = origin.get("judge")
    return differences(before, judge) if before and judge else []


def judge_arguments(origin: Mapping[str, Any], scale: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``Judge.load`` that load the judge of an origin again, with changes.

    A changed condition brings its own defaults of decoding; a changed model has no revision unless one is given.

    Args:
        origin: From ``origin_of``.
        scale: Description of the scale.
        changes: Arguments that win.

    Raises:
        FitError: The origin does not name a model or template and neither do the changes, or is damaged.
    """
    from probes.decoding import Decoding
    from probes.prompts import Template
    from probes.scale import Scale

    found: dict[str, Any] = {}
    try:
        judge = origin.get("judge") or {}
        if origin:
            found = {"model": str(origin["model"]), "revision": origin.get("revision"), "dtype": judge["dtype"]}
            found |= {"template": Template.from_dict(judge["template"]), "condition": judge["condition"]}
        found["scale"] = Scale.from_dict(dict(scale))
        if judge.get("decoding"):
            decoding = Decoding.from_dict(judge["decoding"])
            found |= {name: getattr(decoding, name) for name in _DECODING}
    except (KeyError, TypeError, AttributeError, ValueError, ProbesError) as error:
        raise FitError(f"the judge is damaged: its origin cannot be read ({error}); fit it again") from None
    if changes.get("condition", found.get("condition")) != found.get("condition"):
        found = {name: value for name, value in found.items() if name not in _DECODING}
    if "model" in changes:
        found.pop("revision", None)
    if missing := [name for name in ("model", "template") if name not in found | dict(changes)]:
        flags = " and ".join(f"{name} (--{name})" for name in missing)
        raise FitError(f"the judge does not say what it was fitted with: give its {flags}")
    return found | dict(changes)


_DECODING = ("rule", "max_new_tokens", "samples", "temperature", "seed", "stop")


def _attr(run: RunLike, name: str) -> dict[str, Any]:
    """An attribute of a run that is a JSON object; empty for runs without it."""
    attr = getattr(run, "attr", None)
    try:
        found = attr(name) if attr is not None else None
    except RunFileError:
        found = None
    return found if isinstance(found, dict) else {}

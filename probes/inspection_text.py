"""A run on one screen, as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from probes.scale import Scale
from probes.store.safety import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from probes.inspection import ChoiceCounts, Inspection

_WIDTH: Final = 100
_HEIGHT: Final = 24
_INDENT: Final = 12
_NAMES: Final = 4  # of criteria, splits and parts that are named one by one


def format_inspection(run: Inspection) -> str:
    """At most 24 lines of at most 100 columns."""
    rows = [
        ("run", _path(run.path)),
        ("", _state(run)),
        *_judge(run),
        *_items(run),
        ("layers", _layers(run)),
        ("lenses", ", ".join(map(shown, run.attrs["lenses"])) or "none stored"),
        ("extras", ", ".join(map(shown, run.attrs["extras"])) or "none"),
        ("on disk", _sizes(run)),
        *_provenance(run),
        *_deviations(run.attrs),
    ]
    room = _HEIGHT - len(rows)
    lines: list[str] = []
    for name, text in rows:
        # Two lines where one is not enough, as long as all of it stays on one screen.
        wrapped = textwrap.wrap(text, _WIDTH - _INDENT, max_lines=2 if room else 1, placeholder=" ...") or [""]
        room -= len(wrapped) - 1
        lines += [f"{label:<{_INDENT}}{part}".rstrip() for label, part in zip((name, ""), wrapped, strict=False)]
    return "\n".join(lines)


def _path(path: str) -> str:
    """The end of a long path."""
    text = path if path.isprintable() else ascii(path)[1:-1]
    return text if len(text) <= _WIDTH - _INDENT else f"...{text[-(_WIDTH - _INDENT - 3) :]}"


def _state(run: Inspection) -> str:
    size = _bytes(run.n_bytes)
    if run.is_complete:
        return f"format version {run.attrs.get('format_version')}, {size}"
    total = sum(run.readings_by_status.values())
    done = total - run.readings_by_status.get("not_captured", 0)
    return f"unfinished: {done:,} of {total:,} readings finished, {size}; the same command resumes it"


def _judge(run: Inspection) -> list[tuple[str, str]]:
    attrs, config, judge = run.attrs, run.attrs.get("config", {}), run.attrs.get("judge", {})
    model = f"{shown(config.get('model'))}"
    if config.get("revision"):
        model += f", revision {shown(config['revision'])}"
    if config.get("quantization"):
        model += f", {shown(config['quantization'])}"
    template = judge.get("template") or {}
    decoding = judge.get("decoding") or {}
    how = f"template {shown(template.get('name', '?'))}, condition {shown(judge.get('condition', '?'))}"
    if decoding:
        how += f", temperature {decoding.get('temperature', 0):g}, {run.n_samples} samples"
    pairs = f"; pairs, {shown(attrs['first_label'])} = first is better" if attrs.get("pairwise") else ""
    return [
        ("model", model),
        ("", f"{shown(attrs.get('dtype'))}, weights {shown(attrs['model_hash'])[:12]}"),
        ("prompt", how),
        _scale(run, pairs) if run.choices is None else _choices(run.choices),
    ]


def _scale(run: Inspection, pairs: str) -> tuple[str, str]:
    scale = Scale.from_dict(run.attrs["scale"])
    low, high = scale.human_range
    return "scale", f"{shown(scale)}, human scores {low:g} to {high:g}{pairs}"


def _choices(found: ChoiceCounts) -> tuple[str, str]:
    """Where items have choices, there is no scale."""

    def span(low: int, high: int, mean: float, what: str) -> str:
        return f"{low:,} {what}" if low == high else f"{low:,} to {high:,} {what} (mean {mean:.1f})"

    an_item = span(found.fewest, found.most, found.mean, "an item")
    tokens = span(found.fewest_tokens, found.most_tokens, found.mean_tokens, "tokens a choice")
    return "choices", f"{found.n_choices:,}; {an_item}; {tokens}"


def _items(run: Inspection) -> list[tuple[str, str]]:
    without = [f"{n:,} {_why(name)}" for name, n in run.items_by_status.items() if name != "ok"]
    lacking = "without human scores" if run.choices is None else "unlabelled"
    without += [f"{run.n_unlabelled:,} {lacking}"] if run.n_unlabelled else []
    if run.choices is not None and run.choices.n_free_text:
        without.append(f"{run.choices.n_free_text:,} of free text")
    readings = ", ".join(f"{n:,} {_why(name)}" for name, n in run.readings_by_status.items())
    if run.n_cut_off:
        most = run.attrs["judge"]["decoding"]["max_new_tokens"]
        readings += f"; {run.n_cut_off:,} answers cut off at {most:,} tokens"
    of = [
        _named("criteria", "criterion", run.criteria),
        f"{run.n_groups:,} groups",
        f"{len(run.systems):,} systems",
        _named("splits", "split", run.splits),
    ]
    # Choices are mostly right or wrong, and nobody has rated anything.
    of += [f"{run.n_raters} raters"] if run.choices is None or run.n_raters else []
    return [
        ("items", f"{run.n_used:,} of {run.n_items:,} used" + (f"; {', '.join(without)}" if without else "")),
        ("", "; ".join(of)),
        ("readings", readings),
    ]


def _why(status: str) -> str:
    return {"ok": "captured"}.get(status, status.replace("_", " "))


def _named(several: str, one: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return f"no {several}"
    text = f"{len(counts):,} {several if len(counts) > 1 else one}"
    return f"{text} ({', '.join(map(shown, counts))})" if len(counts) <= _NAMES else text


def _layers(run: Inspection) -> str:
    names, n_layers = run.attrs["layers"], run.attrs.get("n_layers")
    every = n_layers is not None and len(names) == n_layers + 1
    text = f"embed, 1 .. {n_layers}" if every else f"{', '.join(map(shown, names))} of embed, 1 .. {n_layers}"
    return f"d_model {run.d_model:,}; {text}"


def _sizes(run: Inspection) -> str:
    if not run.is_complete:
        shards = [size for name, _, size in run.datasets if name.startswith("shard-")]
        return f"{len(shards)} finished shard{'' if len(shards) == 1 else 's'}, {_bytes(sum(shards))}"
    big = sorted(run.datasets, key=lambda dataset: -dataset[2])[:6]
    return ", ".join(f"{name.removeprefix('capture/')} {dtype} {_bytes(size)}" for name, dtype, size in big)


def _provenance(run: Inspection) -> list[tuple[str, str]]:
    attrs, config = run.attrs, run.attrs.get("config", {})
    parts = attrs.get("parts") or []
    where = f"on {shown(config.get('device'))}, attention {shown(config.get('attention'))}"
    rows = [
        ("captured", f"{shown(attrs.get('created'))} {where}"),
        ("with", ", ".join(f"{shown(name)} {shown(version)}" for name, version in attrs.get("versions", {}).items())),
    ]
    if parts:
        named = [f"{part['n_items']:,} items of {shown(part['created'])}" for part in parts[:_NAMES]]
        more = f" and {len(parts) - _NAMES} more" if len(parts) > _NAMES else ""
        rows.append(("parts", f"{len(parts)}: {', '.join(named)}{more}"))
    return rows


def _deviations(attrs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What two ways to compute the same numbers differed by, beside what is allowed."""
    found, allowed = attrs.get("deviations") or {}, attrs.get("tolerances") or {}
    rows = []
    if numbers := {name: value for name, value in found.items() if isinstance(value, float)}:
        rows.append(("deviation", ", ".join(f"{shown(name).replace('_', ' ')} {v:.1e}" for name, v in numbers.items())))
    rules = [f"residual {allowed['residual']:.1e}"] if "residual" in allowed else []
    if {"norm_logits_per_unit", "norm_logits_least_unit"} <= set(allowed):
        unit, least = allowed["norm_logits_per_unit"], allowed["norm_logits_least_unit"]
        rules.append(f"logits {unit:.1e} x the largest logit, {unit * least:.1e} at least")
    if rules:
        rows.append(("allowed", ", ".join(rules)))
    if found.get("fallback"):
        rows.append(("fallback", "; ".join(map(shown, found["fallback"]))))
    return rows


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n} bytes"

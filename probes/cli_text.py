"""What the command line prints: previews and tables as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.capturing.preview import Preview
    from probes.judge import Judge


def format_preview(shown: Preview, judge: Judge) -> str:
    """What a capture would do, as text: labels, first prompt, and what it costs."""
    orders, samples = _per_item(judge)
    readings = f"{shown.n_readings:,}"
    if orders * samples > 1:
        each = [f"{count} {what}" for count, what in ((orders, "orders"), (samples, "samples")) if count > 1]
        readings += f" ({' x '.join([f'{shown.n_items:,} items', *each])})"
    lines = [
        _answers(shown, judge),
        "",
        "First prompt, as the model sees it:",
        "-" * 72,
        shown.first_prompt,
        "-" * 72,
        f"tokens of it   {shown.first_n_tokens}",
        f"items          {shown.n_items}" + (f" ({shown.n_too_long} prompts too long)" if shown.n_too_long else ""),
        f"of these       {shown.n_labelled:,} labelled, in {shown.n_groups:,} groups",
        *([f"fields         {_fields(shown)}"] if shown.fields or shown.unused_fields else []),
        f"readings       {readings}",
        f"tokens         {shown.tokens_before:,} one by one, {_as_planned(shown)}",
        *([f"generated      {shown.answer_tokens:,} tokens at most"] if judge.decoding else []),
        f"passes         {shown.n_passes:,}",
        f"run file       {shown.n_bytes / 1e6:,.1f} MB",
        f"time           about {shown.seconds:,.0f} s on this machine",
    ]
    return "\n".join(lines)


def _answers(shown: Preview, judge: Judge) -> str:
    """What the judge may answer: labels and what they are worth, or choices and what chance gives."""
    scale = judge.scale
    if shown.choices is None:
        worth = ", ".join(f"{label} = {value:g}" for label, value in zip(scale.labels, scale.values, strict=True))
        low, high = scale.human_range
        return f"Labels: {worth}; human scores {low:g} to {high:g}."
    counts = shown.choices
    first = " | ".join(map(repr, shown.first_choices))
    at_random = "" if shown.chance is None else f"; chance gives {shown.chance:.3f}"
    return (
        f"Choices: {counts.n_choices:,}, {_span(counts.fewest, counts.most)} an item, scored by "
        f"{_span(counts.shortest, counts.longest)} tokens each{at_random}; of the first item: {first}."
    )


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _fields(shown: Preview) -> str:
    unused = f"; shown in no prompt: {', '.join(shown.unused_fields)}" if shown.unused_fields else ""
    return f"{', '.join(shown.fields) or 'none'}{unused}"


def _as_planned(shown: Preview) -> str:
    if shown.sharing_note:
        return f"{shown.tokens_after:,} in padded passes; shared prefixes are not used: {shown.sharing_note}"
    saving = 1 - shown.tokens_after / max(1, shown.tokens_before)
    return f"{shown.tokens_after:,} with every shared prefix computed once ({saving:.0%} saved)"


def _per_item(judge: Judge) -> tuple[int, int]:
    """Orders in which an item is shown, and answers to each."""
    return (1 if judge.template.pair is None else 2), (judge.decoding.samples if judge.decoding else 1)

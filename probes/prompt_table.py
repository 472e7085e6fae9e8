"""Prompts of a whole data set: token ids in flat arrays, and what each prompt is of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jaxtyping import Bool, Int

from probes.errors import ItemError, TemplateError
from probes.spanned import FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from probes.choices.table import ChoiceTable
    from probes.items import Item
    from probes.prompt_parts import PromptParts
    from probes.prompts import Template
    from probes.rendering import Prompt
    from probes.scale import Scale
    from probes.token_table import TokenTable

_RESPONSE = "response"


@dataclass(frozen=True, eq=False)
class PromptTable:
    """Prompts of a data set.

    Attributes:
        tokens: Token ids.
        item: Item number of each ``[prompt]``.
        swapped: Whether the two responses of a pair are shown in swapped order ``[prompt]``.
        parts: Which tokens of each prompt are which part of it; None where the tokenizer does not say which token holds
            which text.
        spans: First token of the response and one behind its last ``[prompt, 2]``; None unless asked for.
        forged: Items whose texts spell control tokens, with the first of them; they were tokenised as text.
        first: The first prompt, with its text.
        choices: What is scored behind each prompt; None where the labels of a scale are.
    """

    tokens: TokenTable
    item: Int[np.ndarray, " prompt"]
    swapped: Bool[np.ndarray, " prompt"]
    spans: Int[np.ndarray, "prompt 2"] | None
    first: Prompt
    choices: ChoiceTable | None = None
    parts: PromptParts | None = None
    forged: Mapping[str, str] = field(default_factory=dict)


def check_pair(template: Template, scale: Scale) -> None:
    """Refuse a scale that cannot say which response of a pair is better.

    Raises:
        TemplateError: The template's ``first_label`` is at neither end of the scale.
    """
    labels = scale.labels
    if template.pair is not None and not labels:
        raise TemplateError(f"template {template.name!r} judges pairs, which needs a scale with labels, e.g. A=1,B=0")
    if template.pair is not None and template.first_label not in (labels[0], labels[-1]):
        raise TemplateError(
            f"template {template.name!r} says {template.first_label!r} where the response shown first is better, which "
            f"is not the lowest or highest label of the scale {scale}; choose another scale, e.g. A=1,B=0"
        )


def swapped(item: Item, pair: tuple[str, str]) -> Item:
    """The item with its two responses exchanged.

    Raises:
        ItemError: The item lacks one of them.
    """
    first, second = pair
    if missing := [name for name in pair if name not in item.fields]:
        raise ItemError(f"item {item.id!r} has no field {missing[0]!r}, which the template's pair names")
    return replace(item, fields={**item.fields, first: item.fields[second], second: item.fields[first]})


def response_span(prompt: Prompt, item: Item) -> tuple[int, int]:
    """Tokens that hold any part of the item's ``response``: the first, and one behind the last.

    Where a prompt shows the response more than once, these are the tokens of the first time.

    Raises:
        ItemError: The item has no response, its prompt does not show it, or the tokenizer does not say where.
    """
    if prompt.token_parts is None:
        raise ItemError("this tokenizer does not say which token holds which text; leave response_mean out")
    for span in prompt.token_parts:
        if span.part == FIELD + _RESPONSE:
            return span.start, span.stop
    raise ItemError(
        f"item {item.id!r}: its prompt does not show its {_RESPONSE!r}, or only together with other fields, so "
        "the mean over the response's tokens (response_mean) is not defined; leave it out, or show {{ response }} in "
        "the template"
    )

"""Which tokens of a choice are scored: those that it adds to the prompt, found by tokenising both together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probes.encoding import encode, encode_all
from probes.errors import ItemError
from probes.rendering import Prompt, refuse_forged
from probes.spanned import CHOICE, Span, SpannedText
from probes.token_table import common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Item

# The rule of ``told_apart``, as judges describe it. Runs captured without one scored all tokens of a choice.
CHOICE_TOKENS: Final = "apart"
# What a chain of thought ends in (arXiv 2210.09261, appendix of exemplars): the choices follow these words.
ANSWER_ANCHOR: Final = r"(?i)\bthe answer is\b:?"
_ANSWER_LEAD: Final = "So the answer is"


def choices_behind(tokenizer: Any, prompt: Prompt, item: Item, separator: str) -> tuple[Prompt, list[list[int]]]:
    """The prompt as far as no choice changes its tokens, and the tokens of each choice behind it.

    A prompt that ends in a space is tokenised otherwise once a word follows, so that the last tokens of the prompt may
    belong to the choices. All choices of an item start at the same token, which leaves the ratios of their
    probabilities what they are.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: The rendered prompt.
        item: Its choices are scored.
        separator: Text between prompt and choice.

    Raises:
        ItemError: A choice adds no token.
    """
    front = prompt.spanned
    texts = [front, *(front + separator + SpannedText.of(choice, CHOICE) for choice in item.choices)]
    encoded = encode_all(tokenizer, texts, special_tokens=False, control_tokens=prompt.control_tokens)
    for tokens in encoded:
        refuse_forged(item, tokens)
    plain, *whole = (np.array(tokens.token_ids, dtype=np.int64) for tokens in encoded)
    special = len(prompt.token_ids) - len(plain)  # tokens in front that the text does not produce
    start = min(common_prefix(plain, ids) for ids in whole)
    if shortest := [choice for choice, ids in zip(item.choices, whole, strict=True) if len(ids) <= start]:
        raise ItemError(
            f"item {item.id!r}: the choice {shortest[0]!r} adds no token to its prompt; give it a text that the "
            "tokenizer tells apart"
        )
    kept = prompt.token_ids[: special + start]
    if not kept:
        # Nothing stands in front of the first token; models are trained to start behind one of these.
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise ItemError(f"item {item.id!r} has an empty prompt, and the tokenizer has no token to start with")
        kept = (int(first),)
    parts = None if prompt.token_parts is None else _cut(prompt.token_parts, len(kept))
    forged = next((tokens.forged for tokens in encoded if tokens.forged), "")
    return replace(prompt, token_ids=tuple(kept), token_parts=parts, forged=forged), [
        ids[start:].tolist() for ids in whole
    ]


def choices_after_reasoning(tokenizer: Any, item: Item, separator: str, *, control_tokens: bool) -> list[list[int]]:
    """Tokens of an item's choices behind "So the answer is", whatever was generated in front of it.

    Raises:
        ItemError: A choice spells a control token, and the tokenizer cannot take it as text.
    """
    lead = np.array(encode(tokenizer, _ANSWER_LEAD, special_tokens=False), dtype=np.int64)
    front = SpannedText(_ANSWER_LEAD + (separator or " "))
    texts = [front + SpannedText.of(choice, CHOICE) for choice in item.choices]
    encoded = encode_all(tokenizer, texts, special_tokens=False, control_tokens=control_tokens)
    for tokens in encoded:
        refuse_forged(item, tokens)
    whole = [np.array(tokens.token_ids, dtype=np.int64) for tokens in encoded]
    return [ids[common_prefix(lead, ids) :].tolist() for ids in whole]


def _cut(parts: Sequence[Span], length: int) -> tuple[Span, ...]:
    """Parts of a prompt that now ends here."""
    return tuple(Span(span.part, span.start, min(span.stop, length)) for span in parts if span.start < length)


def told_apart(tokens: Sequence[Sequence[int]], *, lead: bool) -> tuple[list[int], list[list[int]]]:
    """What the choices of an item share at their start, and those of their tokens that tell them apart.

    What all choices end in says nothing about which of them is meant, but costs each another likelihood: in ``(A)`` and
    ``(B)`` the closing parenthesis, which outweighs the letter at layers that know nothing of it. It is not scored,
    unless a choice would become part of another without it (``3.`` and ``35.``): a text is never less likely than what
    goes on from it, so that the shorter one would always win. What all start in has one probability for all, which no
    choice between them sees. Every choice keeps a token at least.

    Args:
        tokens: Of each choice.
        lead: Whether what they start in may go to the prompt; nothing is taken from their start otherwise.
    """
    if len(tokens) < 2:
        return [], [list(choice) for choice in tokens]
    most = min(map(len, tokens)) - 1
    start = _shared(tokens, most) if lead else 0
    behind = [list(choice[start:]) for choice in tokens]
    tail = _shared([choice[::-1] for choice in behind], most - start)
    nested = _nested(behind)
    while tail and _nested([choice[:-tail] for choice in behind]) != nested:
        tail -= 1
    return list(tokens[0][:start]), [choice[: len(choice) - tail] for choice in behind]


def _shared(tokens: Sequence[Sequence[int]], most: int) -> int:
    """With how many tokens all start, ``most`` at most."""
    return next((place for place in range(most) if len({choice[place] for choice in tokens}) > 1), most)


def _nested(tokens: Sequence[Sequence[int]]) -> list[bool]:
    """Of every two choices, whether the second starts with all of the first."""
    return [second[: len(first)] == first for first in tokens for second in tokens]

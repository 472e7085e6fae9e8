"""Texts into tokens: special tokens in front exactly once, none behind, and none made by the texts of items."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.control_tokens import ForgedTokenError, control_tokens_of
from probes.spanned import SHOT, Span, SpannedText

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        token_ids: The tokens.
        spans: The spans of the text but those within few-shot examples, in tokens: each from the first to one behind
            the last token that holds any of its characters. None where they were not asked for, or the tokenizer does
            not say which token holds which.
        forged: A control token that data of the text would have made, had it not been tokenised as text; else empty.
        refused: Why the tokenizer cannot take it as text, in which case it did become a control token; else empty.
    """

    token_ids: list[int]
    spans: tuple[Span, ...] | None = None
    forged: str = ""
    refused: str = ""


def encode(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    """Token ids of a text in which every word is ours; see ``encode_all``."""
    return encode_all(tokenizer, [SpannedText(text)], special_tokens=special_tokens)[0].token_ids


def encode_all(
    tokenizer: Any,
    texts: Sequence[SpannedText],
    *,
    special_tokens: bool,
    control_tokens: bool = False,
    spans: bool = False,
) -> list[Encoded]:
    """Tokens of texts.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: The texts.
        special_tokens: Whether to put in front what the tokenizer puts there. What it puts behind (some append an
            end-of-sequence token, which would become the position that is read) is left out in any case.
        control_tokens: Whether data may make control tokens.
        spans: Whether to find the tokens of spans.
    """
    options = {"verbose": False, "return_attention_mask": False}
    plain = [text.text for text in texts]
    batch = tokenizer(plain, add_special_tokens=False, **options)
    ids: list[list[int]] = batch["input_ids"]
    full: list[list[int]] = tokenizer(plain, add_special_tokens=True, **options)["input_ids"] if special_tokens else ids
    guard = control_tokens_of(tokenizer)
    found = []
    for number, text in enumerate(texts):
        own, encoding = ids[number], batch.encodings[number] if getattr(batch, "encodings", None) else None
        forged = "" if control_tokens else guard.forged(text, own)
        refused = ""
        if forged:
            try:
                encoding = guard.encode(text)
                own = encoding.ids
            except ForgedTokenError as error:
                refused = str(error)
        front = _front(ids[number], full[number])
        if forged and front is None:
            refused = "it tokenises a text otherwise behind its special tokens"
        # What stands in front of the text is not part of it. Where it cannot be told apart, all is taken.
        token_ids = full[number] if front is None else front + own
        places = None
        if spans and encoding is not None:
            places = _in_tokens(text.spans, encoding.offsets, len(token_ids) - len(own))
        found.append(Encoded(token_ids, places, forged, refused))
    return found


def _front(ids: list[int], full: list[int]) -> list[int] | None:
    """What stands in front of the tokens of a text; None where they are not there as they are."""
    for start in range(len(full) - len(ids) + 1):
        if full[start : start + len(ids)] == ids:
            return full[:start]
    return None


def _in_tokens(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], shift: int) -> tuple[Span, ...]:
    """Spans of characters as spans of tokens; those of which no token holds a character are left out."""
    low, high = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T
    found = []
    for part, start, stop in spans:
        if part.startswith(SHOT):
            continue
        inside = ((low < stop) & (high > start)).nonzero()[0]
        if len(inside):
            found.append(Span(part, int(inside[0]) + shift, int(inside[-1]) + 1 + shift))
    return tuple(found)

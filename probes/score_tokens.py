"""Score tokens: which vocabulary ids spell the labels, found by tokenising the prompt with each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int

from probes.encoding import encode_all
from probes.errors import ScoreTokenError
from probes.locate import generated_spellings, running_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.rendering import Prompt
    from probes.scale import Scale


@dataclass(frozen=True, eq=False)
class ScoreTokens:
    """Ids of the score tokens of a scale, in the context of a prompt.

    Attributes:
        token_ids: One id a spelling ``[token]``; label by label, ascending.
        label_index: The label that each id spells ``[token]``; equally many ids a label.
        spellings: The text of each id.
        lead_ids: Tokens with which every label starts (SmolLM2 writes " 1" as a space and "1"). They are
            appended to every prompt, and the read moves behind them.
    """

    token_ids: Int[np.ndarray, " token"]
    label_index: Int[np.ndarray, " token"]
    spellings: tuple[str, ...]
    lead_ids: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {
            "token_ids": self.token_ids.tolist(),
            "label_index": self.label_index.tolist(),
            "spellings": list(self.spellings),
            "lead_ids": list(self.lead_ids),
        }


# Of a scale without labels.
NO_TOKENS: Final = ScoreTokens(np.empty(0, np.int64), np.empty(0, np.int64), ())


def find_score_tokens(tokenizer: Any, prompt: Prompt, scale: Scale, separator: str = "") -> ScoreTokens:
    """Find the score tokens of a scale behind a prompt.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: A rendered prompt; the labels are tokenised in its context.
        scale: The labels, and which spellings count.
        separator: Text between the prompt and the label.

    Raises:
        ScoreTokenError: A label has no single-token spelling, two labels share an id, the labels differ in
            their number of spellings, or a label changes the tokens of the prompt itself.
    """
    exact = [_continuation(tokenizer, prompt, separator + label) for label in scale.labels]
    lead = _common_lead(exact)
    spelled: list[dict[int, str]] = []
    rejected: list[str] = []
    for label, own in zip(scale.labels, exact, strict=True):
        found: dict[int, str] = {}
        for text in _spellings(label, separator, scale):
            tokens = own if text == separator + label else _continuation(tokenizer, prompt, text)
            if len(tokens) == len(lead) + 1 and tokens[: len(lead)] == lead:
                found.setdefault(tokens[-1], text)
        if not found:
            rejected.append(f"{label!r} ({len(own) - len(lead)} tokens: {_show(tokenizer, own[len(lead) :])})")
        spelled.append(found)
    if rejected:
        raise ScoreTokenError(
            f"no single token spells the labels {', '.join(rejected[:3])}"
            f"{f' and {len(rejected) - 3} more' if len(rejected) > 3 else ''}; choose labels that are one token each, "
            "for example 1..5 or A..E (--scale)"
        )
    _refuse_ambiguous(scale, spelled)
    pairs = [(token, label) for label, found in enumerate(spelled) for token in found]
    return ScoreTokens(
        token_ids=np.array([token for token, _ in pairs], dtype=np.int64),
        label_index=np.array([label for _, label in pairs], dtype=np.int64),
        spellings=tuple(text for found in spelled for text in found.values()),
        lead_ids=tuple(lead),
    )


def generated_tokens(tokenizer: Any, scale: Scale) -> ScoreTokens:
    """The score tokens of a scale in generated text, where a label may follow a space or not.

    Forms that not every label has (only some are a token with a leading space) are left out, since they would
    favour some labels.

    Raises:
        ScoreTokenError: A label is not a single token in any form, or the labels share none.
    """
    found = generated_spellings(tokenizer, scale)
    text = running_text(tokenizer)
    forms: dict[tuple[bool, bool], dict[int, int]] = {}
    for token, label in found.items():
        spelled = text([token])
        form = (spelled.startswith(" "), spelled.strip() == scale.labels[label])
        forms.setdefault(form, {})[label] = token
    whole = [tokens for tokens in forms.values() if len(tokens) == len(scale.labels)]
    if not whole:
        missing = [label for number, label in enumerate(scale.labels) if number not in found.values()]
        raise ScoreTokenError(
            f"no single token spells {', '.join(missing) or 'every label in one form'} in generated text; choose "
            "labels that are one token each, for example 1..5 or A..E"
        )
    pairs = sorted((label, token) for tokens in whole for label, token in tokens.items())
    return ScoreTokens(
        token_ids=np.array([token for _, token in pairs], dtype=np.int64),
        label_index=np.array([label for label, _ in pairs], dtype=np.int64),
        spellings=tuple(text([token]) for _, token in pairs),
    )


def _spellings(label: str, separator: str, scale: Scale) -> list[str]:
    """Texts that may spell a label, the exact one first."""
    # With or without a leading space merged into the token: the one that was asked for, then the other.
    starts = [separator]
    if not scale.bare and separator in {"", " "}:
        starts.append("" if separator else " ")
    forms = [label, label[0].upper() + label[1:]] if scale.case else [label]
    return list(dict.fromkeys(start + form for form in forms for start in starts))


def _continuation(tokenizer: Any, prompt: Prompt, text: str) -> list[int]:
    """Tokens that a text adds behind the prompt."""
    start = list(prompt.token_ids)
    # The prompt's own special tokens in front are not produced by its text, so they are set aside.
    plain, longer = (
        encoded.token_ids
        for encoded in encode_all(
            tokenizer,
            [prompt.spanned, prompt.spanned + text],
            special_tokens=False,
            control_tokens=prompt.control_tokens,
        )
    )
    special = start[: len(start) - len(plain)]
    whole = special + longer
    if whole[: len(start)] != start:
        raise ScoreTokenError(
            f"the label text {text!r} changes the tokens of the prompt in front of it: {_show(tokenizer, start[-4:])} "
            f"becomes {_show(tokenizer, whole[max(0, len(start) - 4) :])}; end the template where a token ends, "
            "for example without a trailing space"
        )
    return whole[len(start) :]


def _common_lead(continuations: Sequence[list[int]]) -> list[int]:
    """Tokens with which every continuation starts, leaving at least one token of each."""
    length = min(map(len, continuations)) - 1
    lead = 0
    while lead < length and len({tokens[lead] for tokens in continuations}) == 1:
        lead += 1
    return continuations[0][:lead]


def _refuse_ambiguous(scale: Scale, spelled: Sequence[dict[int, str]]) -> None:
    owner: dict[int, str] = {}
    for label, found in zip(scale.labels, spelled, strict=True):
        for token, text in found.items():
            if token in owner:
                raise ScoreTokenError(
                    f"the labels {owner[token]!r} and {label!r} share the token {token} ({text!r}); "
                    "choose labels that the tokenizer tells apart"
                )
            owner[token] = label
    counts = [len(found) for found in spelled]
    if len(set(counts)) > 1:
        shown = ", ".join(
            f"{label!r}: {list(found.values())}" for label, found in zip(scale.labels, spelled, strict=True)
        )
        raise ScoreTokenError(
            f"the labels have unequal numbers of spellings ({shown}), which would favour some; "
            "use bare=True to count the exact text only"
        )


def _show(tokenizer: Any, tokens: Sequence[int]) -> str:
    return " ".join(repr(text) for text in tokenizer.convert_ids_to_tokens(list(tokens)))

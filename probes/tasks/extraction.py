"""What of a generated text is its answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

_ANSWER: Final = re.compile(r"\bthe answer is\b:?", re.IGNORECASE)
# A model that goes on after its answer asks itself the next question.
_NEXT_QUESTION: Final = re.compile(r"\n\s*Q:")
# A period ends the answer unless it stands inside of something, as in 3.5.
_SENTENCE_END: Final = re.compile(r"\.(?=\s|$)")

# A regular expression, whose first match counts, or its group if it has one; or a function from text to answer.
Extract: TypeAlias = str | Callable[[str], str]


def extract_answer(text: str) -> str | None:
    """The answer that a chain of thought ends in: what follows the last "the answer is", up to a period or line end.

    What stands behind the next "Q:" does not count. The released prompts of BIG-Bench Hard (arXiv 2210.09261) end each
    chain of thought so; the code that read the answers was not released.

    Args:
        text: What was generated, or a worked example.

    Returns:
        The answer without white space around it; None where the words are missing or nothing follows them.
    """
    own = _NEXT_QUESTION.split(text, maxsplit=1)[0]
    starts = list(_ANSWER.finditer(own))
    if not starts:
        return None
    return _clean(own[starts[-1].end() :]) or None


def first_line(text: str) -> str:
    """The answer where no reasoning was asked for: the first line that is not empty, without its last period."""
    return _clean(text.strip())


def answer_of(text: str) -> str:
    """The answer in a text with or without reasoning: behind "the answer is", else the first line."""
    found = extract_answer(text)
    return first_line(text) if found is None else found


def postprocess(text: str, stop_string: str | None = None, output_regex: str | None = None) -> str:
    """The answer in a generated text by the rules of a BIG-bench task (bigbench/models/model_utils.py).

    Args:
        text: What was generated.
        stop_string: The text ends behind its first occurrence, which stays; one at the very start does not count.
        output_regex: The first match counts, or its group if it has one; nothing if there is no match.
    """
    if stop_string and (found := text.find(stop_string)) > 0:
        text = text[: found + len(stop_string)]
    if output_regex:
        match = re.search(output_regex, text)
        if match is None:
            return ""
        return (match.group(1) or "") if match.re.groups else match.group()
    return text


def regex_fault(regex: str) -> str | None:
    """Why a text cannot be the expression of an answer; None where it can."""
    try:
        groups = re.compile(regex).groups
    except re.error as error:
        return f"is no regular expression ({error}); correct it"
    return f"has {groups} groups and may have one; write (?:...) for the others" if groups > 1 else None


def _clean(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip()

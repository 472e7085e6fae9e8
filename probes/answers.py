"""Where a generated answer ends, and where in it a chain of thought comes to its answer."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from probes.locate import ScoreRule

# No character takes more tokens than UTF-8 takes bytes.
LONGEST_CHARACTER: Final = 4


def stopped_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop text starts, once an answer has begun; None where none is there."""
    begun = len(text) - len(text.lstrip())
    places = [place for one in stop if (place := text.find(one, begun)) >= 0]
    return min(places, default=None)


def is_answered(text: str, anchor: re.Pattern[str]) -> bool:
    """Whether the line in which an answer is given has come to its end."""
    match = anchor.search(text)
    return match is not None and "\n" in text[match.end() :].lstrip()


class AnswerFinder:
    """Follows one generation that is to choose between choices, token by token.

    It ends at a stop text, or at the end of the line in which the answer is given. What a model makes up behind that,
    often the next question, is not part of its answer.

    Args:
        rule: Its anchor stands in front of the answer ("the answer is"); the first one counts.
        decode: Text of a few tokens within running text; see ``locate.running_text``.
        stop: Texts that end an answer, once it has begun.
    """

    def __init__(self, rule: ScoreRule, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._anchor = re.compile(rule.anchor)
        self._decode = decode
        self._stop = tuple(stop)
        self._text = ""
        self._starts: list[int] = []  # where the text of each token starts
        self._partial: list[int] = []  # tokens that end within a character
        self._finished = False

    def feed(self, token_id: int) -> bool:
        """Take the next generated token; whether the answer is complete."""
        if self._finished:
            return True
        self._starts.append(len(self._text))
        self._partial.append(int(token_id))
        text = self._decode(self._partial)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(self._partial) == LONGEST_CHARACTER:
            self._text += text
            self._partial.clear()
        self._finished = is_answered(self._text, self._anchor) or stopped_at(self._text, self._stop) is not None
        return self._finished

    @property
    def anchored(self) -> int | None:
        """Number of generated tokens up to the end of the anchor; None where there is none."""
        match = self._anchor.search(self._text)
        return None if match is None else bisect_left(self._starts, match.end())

    def result(self) -> None:
        """No single token is the answer."""

    def may_be_score(self, step: int) -> bool:
        """No state that emitted a token is kept."""
        del step
        return False

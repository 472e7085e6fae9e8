"""Text that knows what its stretches came from: which are the texts of an item, which the template's own words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Parts that somebody else wrote: an item's texts, and what few-shot examples show and answer.
FIELD: Final = "field:"
SHOT: Final = "shot:"
CHOICE: Final = "choice"
SYSTEM, SHOTS, USER, SCALE, PREFILL = "system", "shots", "user", "scale", "prefill"


class Span(NamedTuple):
    """A stretch of a text, and the part of the prompt that it is.

    Attributes:
        part: ``system``, ``shots`` (all few-shot turns), ``user`` (the item's turn), ``scale``, ``prefill``,
            ``field:NAME`` (a text of the item, ``criterion`` among them), ``shot:NAME`` (a text of an example),
            ``choice``. Where one expression shows several fields, their names are joined by ``+``.
        start: First character.
        stop: One behind the last.
    """

    part: str
    start: int
    stop: int

    @property
    def is_data(self) -> bool:
        """Whether it is data rather than words of the template, so that it must not speak as the chat does."""
        return self.part.startswith((FIELD, SHOT)) or self.part == CHOICE


@dataclass(frozen=True)
class SpannedText:
    """A text with its spans.

    Attributes:
        text: The text.
        spans: Its spans; they may nest.
        loose: Data that is somewhere in the text, but nobody knows where.
    """

    text: str
    spans: tuple[Span, ...] = ()
    loose: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, part: str = "") -> SpannedText:
        """A text that is one part throughout, or the template's own words."""
        return cls(text, (Span(part, 0, len(text)),) if part and text else ())

    @classmethod
    def joined(cls, pieces: Iterable[SpannedText | str]) -> SpannedText:
        """Pieces, one behind the other."""
        texts: list[str] = []
        spans: list[Span] = []
        loose: list[str] = []
        length = 0
        for piece in pieces:
            if isinstance(piece, SpannedText):
                loose += piece.loose
                spans += [Span(part, start + length, stop + length) for part, start, stop in piece.spans]
                piece = piece.text
            texts.append(piece)
            length += len(piece)
        return cls("".join(texts), tuple(spans), tuple(loose))

    def __add__(self, other: SpannedText | str) -> SpannedText:
        return SpannedText.joined([self, other])

    def strip(self) -> SpannedText:
        """Without white space at both ends."""
        start = len(self.text) - len(self.text.lstrip())
        text = self.text.strip()
        cut = (Span(span.part, max(0, span.start - start), min(len(text), span.stop - start)) for span in self.spans)
        return SpannedText(text, tuple(span for span in cut if span.start < span.stop), self.loose)

    def within(self, part: str) -> SpannedText:
        """The same text as a whole part, which stands behind the spans inside it."""
        return replace(self, spans=(*self.spans, *SpannedText.of(self.text, part).spans))

    def renamed(self, old: str, new: str) -> SpannedText:
        """With another beginning of the names of parts."""
        spans = (
            span._replace(part=new + span.part.removeprefix(old)) if span.part.startswith(old) else span
            for span in self.spans
        )
        return replace(self, spans=tuple(spans))

    def data(self) -> list[tuple[int, int]]:
        """Where data stands, as ascending stretches that do not touch."""
        found: list[tuple[int, int]] = []
        for start, stop in sorted((span.start, span.stop) for span in self.spans if span.is_data):
            if found and start <= found[-1][1]:
                found[-1] = found[-1][0], max(stop, found[-1][1])
            else:
                found.append((start, stop))
        return found

    def own_words(self) -> Iterator[tuple[int, int]]:
        """Where the template's own words stand: everything between the data."""
        start = 0
        for low, high in self.data():
            if start < low:
                yield start, low
            start = high
        if start < len(self.text):
            yield start, len(self.text)

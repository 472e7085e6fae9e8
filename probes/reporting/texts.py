"""The texts of the items, each part stored once however often it occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from probes.errors import ProbesError
from probes.prompts import Template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probes.items import Item
    from probes.scale import Scale
    from probes.store import Run

# Bytes of all texts of a report; above, the longest are cut.
MAX_BYTES: Final = 4_000_000
_MOST_OCCURRENCES: Final = 4


class Texts:
    """A table of texts that are stored once; sources and instructions recur in every other prompt."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Number of a text in the table."""
        return self._number.setdefault(text, len(self._number))

    def cut(self, most: int = MAX_BYTES) -> tuple[list[str], dict[str, int]]:
        """The table within so many bytes, and how many characters each cut text has lost, by its number."""
        texts = list(self._number)
        sizes = sorted(len(text.encode()) for text in texts)
        if sum(sizes) <= most:
            return texts, {}
        # The one length that fits: shorter texts stay whole, all others share what these leave over.
        room = most
        for place, size in enumerate(sizes):
            if size * (len(sizes) - place) > room:
                room //= len(sizes) - place
                break
            room -= size
        kept = [text.encode()[:room].decode(errors="ignore") for text in texts]
        lost = {
            str(number): len(text) - len(part)
            for number, (text, part) in enumerate(zip(texts, kept, strict=True))
            if len(part) < len(text)
        }
        return kept, lost


def prompts(run: Run, items: Sequence[Item], texts: Texts) -> list[list[list[Any]]] | None:
    """Turns of every item's prompt as ``[role, [numbers of texts]]``; None where the run does not hold its template.

    The turns are what the template says. What the model's chat template puts around them is only in the token ids.
    """
    try:
        template = Template.from_dict(run.attr("judge")["template"])
        return _turns(template, run.scale, items, texts)
    except (KeyError, TypeError, ProbesError):
        return None


def _turns(template: Template, scale: Scale, items: Sequence[Item], texts: Texts) -> list[list[list[Any]]]:
    shared: set[str] = set()
    found = []
    for item in items:
        messages, prefill = template.messages(item, scale)
        turns = [(message["role"], message["content"]) for message in messages]
        turns += [("assistant", prefill)] if prefill else []
        # Turns that recur are stored whole; of the others, what an item does not say itself is the same in many.
        shared = shared or {content for _, content in turns[:-1]}
        own = sorted(filter(None, item.fields.values()), key=len, reverse=True)
        found.append(
            [
                [role, [texts.add(part) for part in ([content] if content in shared else _split(content, own))]]
                for role, content in turns
            ]
        )
    return found


def _split(text: str, own: Sequence[str]) -> list[str]:
    """A text in parts, an item's own words apart from what is around them."""
    for number, words in enumerate(own):
        if 0 < text.count(words) <= _MOST_OCCURRENCES:
            parts: list[str] = []
            for place, around in enumerate(text.split(words)):
                parts += [words] if place else []
                parts += _split(around, own[number + 1 :])
            return parts
    return [text] if text else []

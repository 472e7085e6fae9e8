"""Prompts: from an item to the exact text that the model reads, and its tokens.

What a template renders goes through the model's own chat template exactly once.
"""

from __future__ import annotations

import datetime
import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from probes.encoding import encode_all
from probes.errors import ItemError, TemplateError
from probes.prompts import Turn
from probes.spanned import PREFILL, SHOTS, SYSTEM, USER, Span, SpannedText

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from probes.encoding import Encoded
    from probes.items import Item
    from probes.prompts import Template
    from probes.scale import Scale

SystemTurn = Literal["none", "own", "merged"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: What the model reads, chat template included.
        token_ids: Its tokens, special tokens included exactly once.
        tail: The text behind the item's own words; equal tails tokenise a label alike.
        system_turn: Whether the system text had a turn of its own or was merged into the first user turn.
        parts: Which stretches of the text are which part of the prompt, in characters.
        token_parts: The same in tokens; None where the tokenizer does not say which token holds which text.
        forged: A control token that the item's texts spell and that was tokenised as text; empty where none.
        control_tokens: Whether data may make control tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    tail: str = ""
    system_turn: SystemTurn = "none"
    parts: tuple[Span, ...] = ()
    token_parts: tuple[Span, ...] | None = None
    forged: str = ""
    control_tokens: bool = False

    @property
    def spanned(self) -> SpannedText:
        """The text with its parts."""
        return SpannedText(self.text, self.parts)


def render(tokenizer: Any, template: Template, item: Item, scale: Scale) -> Prompt:
    """Render an item for a tokenizer; see ``render_all``."""
    return next(render_all(tokenizer, template, [item], scale))


def render_all(tokenizer: Any, template: Template, items: Iterable[Item], scale: Scale) -> Iterator[Prompt]:
    """Render items for a tokenizer, one at a time into memory.

    Models that refuse a system turn (or drop it silently) get the system text in front of the first user
    turn. Models without a chat template get the turns as paragraphs, and the tokenizer's own special tokens.

    Raises:
        TemplateError: The template does not fit an item, or the chat template refuses the messages.
        ItemError: An item spells a control token, and the tokenizer cannot take it as text.
    """
    # The chat template writes BOS itself where the model wants one; a second one changes every state.
    special_tokens = template.plain or not getattr(tokenizer, "chat_template", None)
    writer = _Writer(tokenizer, template, scale)
    for batch in batched(items, _BATCH):
        written = [writer.write(item) for item in batch]
        encoded = encode_all(
            tokenizer,
            [text for text, _, _ in written],
            special_tokens=special_tokens,
            control_tokens=template.control_tokens,
            spans=True,
        )
        for item, (text, tail, system_turn), tokens in zip(batch, written, encoded, strict=True):
            refuse_forged(item, tokens)
            yield Prompt(
                text.text,
                tuple(tokens.token_ids),
                tail or text.text[-_TAIL:],
                system_turn,
                text.spans,
                tokens.spans,
                tokens.forged,
                template.control_tokens,
            )


def refuse_forged(item: Item, tokens: Encoded) -> None:
    """Refuse an item that spells a control token which the tokenizer cannot take as text.

    Raises:
        ItemError: It is one.
    """
    if tokens.refused:
        raise ItemError(
            f"item {item.id!r} contains {tokens.forged!r}, a control token of the model, and its tokenizer cannot take "
            f"it as text ({tokens.refused}); remove it from the item, or let items make control tokens "
            "(`control_tokens: true` in the template)"
        )


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of so many items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class _Writer:
    """Writes items as a model reads them, and knows where in the text their parts stand."""

    def __init__(self, tokenizer: Any, template: Template, scale: Scale) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._scale = scale
        self._frames: dict[tuple[str, ...], str | None] = {}

    def write(self, item: Item) -> tuple[SpannedText, str, SystemTurn]:
        """A prompt, what of it stands behind the item's own words, and where its system text went."""
        template = self._template
        if template.plain:
            # Not stripped: published prompts end where they end.
            user = template.render_user(item, self._scale).within(USER)
            return user + template.render_prefill(item, self._scale).within(PREFILL), "", "none"
        turns, prefill = template.turns(item, self._scale)
        prefill = prefill.within(PREFILL)
        has_system = turns[0].role == "system"
        wholes = [*([SYSTEM] if has_system else []), *[SHOTS] * (len(turns) - 1 - has_system), USER]
        turns = [Turn(turn.role, turn.content.within(part)) for turn, part in zip(turns, wholes, strict=True)]
        system_turn: SystemTurn = "own" if has_system else "none"
        if not getattr(self._tokenizer, "chat_template", None):
            chat = _paragraphs(turns)
        else:
            found, error = self._apply(turns)
            if has_system and (found is None or turns[0].content.text not in found):
                turns = _merge_system(turns)
                found, merged_error = self._apply(turns)
                error = error or merged_error
                system_turn = "merged"
            if found is None:
                raise TemplateError(
                    f"the model's chat template refuses template {template.name!r} at item {item.id!r}: {error}"
                )
            chat = self._placed(turns, found)
        text = _with_shots(chat) + prefill
        ends = [span.stop for span in text.spans if span.part == USER]
        return text, text.text[ends[-1] :] if ends else "", system_turn

    def _apply(self, turns: Sequence[Turn]) -> tuple[str | None, str]:
        return _apply_chat_template(self._tokenizer, [(turn.role, turn.content.text) for turn in turns], self._template)

    def _placed(self, turns: Sequence[Turn], chat: str) -> SpannedText:
        """What the chat template made of turns, with their parts.

        Where it put a turn is seen from what it makes of a name in the turn's place, not searched for. Most chat
        templates write every turn as it is, so that one frame of names fits all items. Some change a turn (strip the
        reasoning of an earlier answer): then each turn is located on its own, between what stands in front of it and
        behind it whatever it says.
        """
        roles = tuple(turn.role for turn in turns)
        names = [_name(number) for number in range(len(turns))]
        if roles not in self._frames:
            self._frames[roles] = _apply_chat_template(
                self._tokenizer, list(zip(roles, names, strict=True)), self._template
            )[0]
        if (frame := self._frames[roles]) is not None:
            pieces = re.split(f"({'|'.join(map(re.escape, names))})", frame)
            placed = SpannedText.joined(
                turns[names.index(piece)].content if piece in names else piece for piece in pieces
            )
            if placed.text == chat:
                return placed
        return replace(
            SpannedText.joined(self._located(turns, number, chat) for number in range(len(turns))), text=chat
        )

    def _located(self, turns: Sequence[Turn], number: int, chat: str) -> SpannedText:
        """The parts of one turn in a chat, as a text that is empty, since all turns are located in the same chat."""
        content = turns[number].content
        named = [turn if k != number else Turn(turn.role, SpannedText(_name(k))) for k, turn in enumerate(turns)]
        before, name, behind = (self._apply(named)[0] or "").partition(_name(number))
        start, stop = len(before), len(chat) - len(behind)
        if not (name and start <= stop and chat.startswith(before) and chat.endswith(behind)):
            return SpannedText("", loose=_data(content))
        if chat[start:stop] == content.text:
            return SpannedText("", SpannedText.joined([before, content]).spans)
        # The chat template changed the turn, so that only its ends are known.
        wholes = [span.part for span in content.spans if span.part in (SYSTEM, SHOTS, USER)]
        return SpannedText("", tuple(Span(part, start, stop) for part in wholes if start < stop), _data(content))


def _data(content: SpannedText) -> tuple[str, ...]:
    return tuple(content.text[start:stop] for start, stop in content.data())


def _name(number: int) -> str:
    """What stands for the content of a turn while it is located: no chat template treats it in any special way."""
    return f"turn{number}of7c1f3e"


def _with_shots(chat: SpannedText) -> SpannedText:
    """A chat with all of its few-shot turns as one more part."""
    shots = [span for span in chat.spans if span.part == SHOTS]
    if not shots:
        return chat
    rest = tuple(span for span in chat.spans if span.part != SHOTS)
    whole = Span(SHOTS, min(span.start for span in shots), max(span.stop for span in shots))
    return replace(chat, spans=(*rest, whole))


def _paragraphs(turns: Sequence[Turn]) -> SpannedText:
    # A question and its answer stand on neighbouring lines; a blank line ends each pair.
    return SpannedText.joined(
        piece for turn in turns for piece in (turn.content, "\n" if turn.role == "user" else "\n\n")
    )


def _merge_system(turns: Sequence[Turn]) -> list[Turn]:
    system, first, *rest = turns
    return [Turn("user", SpannedText.joined([system.content, "\n\n", first.content])), *rest]


_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_FIXED_DATE = datetime.date(2024, 7, 26)
# Where a prompt ends in the item's own words, so many characters stand for its tail.
_TAIL = 24


# Texts that are tokenised in one call: fast tokenizers spread them over the cores.
_BATCH = 256


def _apply_chat_template(
    tokenizer: Any, turns: Sequence[tuple[str, str]], template: Template
) -> tuple[str | None, str]:
    options = dict(template.chat_options)
    if isinstance(tokenizer.chat_template, str) and "strftime_now" in tokenizer.chat_template:
        # Some chat templates print today's date; a run must not depend on the day, so they get a fixed one.
        options["chat_template"] = _TODAY.sub(lambda m: repr(_FIXED_DATE.strftime(m[2])), tokenizer.chat_template)
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # chat templates are foreign code and fail in any way
        return None, " ".join(str(error).split())
    return str(text), ""

"""Where in generated tokens the score is, by a rule that is stored with the run.

The text is cut into atoms: words and numbers with everything that makes them another word or number (``4.5``,
``-4``, ``1-5``, ``5-point``, ``don't``, ``A-``, ``4%``). A label counts only where it is a whole atom, and not where it
is what the score is out of (``4/5``, ``4 out of 5``). Of these labels a rule takes one:

* ``first``: the first. Numbers and the article "A" in running text count too, so it suits bare answers only.
* ``last``: the last of the finished text (LAGER takes the last label token, whole atom or not).
* ``anchor``: the first that stands directly behind an anchor (``Score:``), with only punctuation, markup, white space
  and bracketed remarks between, and that does not open a range or a list (``Score: 1-5``, ``Score: 1 to 5``,
  ``Score: yes/no`` repeat the instruction). An anchor followed by anything else is passed over, so the anchor
  that counts is the last one in front of the label, and what comes after the label cannot change it.

Where the chosen label is not exactly one token that spells it (10 written as "1" and "0", or "4." as one token), its
state has no reading: the result is None, and not another label that the judge did not mean.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

from probes.answers import LONGEST_CHARACTER
from probes.encoding import encode
from probes.errors import ProbesError, ScoreTokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from probes.scale import Scale

RuleKind = Literal["anchor", "last", "first"]
_KINDS: Final[tuple[RuleKind, ...]] = get_args(RuleKind)

# "Score:", "**Score**:", "Final score (1-5) =", "my rating is", '"overall_score":', "| Score |", "<score>", "# Score".
DEFAULT_ANCHOR = (
    r"(?i)(?<![^\W_])(?:score|rating)(?![^\W_])"
    r"(?:>|[\s*_\"'`]*(?:[(\[][^)\]\n]{0,40}[)\]])?[*_\"'`\t ]*(?:[:\uff1a=|\n\u2013\u2014-]|is\b))"
)
# How far in front of a label an anchor may start.
_REACH = 2000

# Chinese, Japanese and Korean write no spaces: their runs are atoms of their own, so that 4 is one in "4分".
_WIDE = r"\u3040-\ud7ff"
_LETTER = rf"[^\W_{_WIDE}]"
# Hyphens, the en dash and the minus sign join what they touch, or are its sign; the apostrophe joins too.
_HYPHEN = r"\u2010\u2011\u2013\u2212-"
_JOINER = rf"(?:['\u2019{_HYPHEN}]|(?<=\d)[.,])"
_ATOM = re.compile(
    rf"(?<!{_LETTER})[+{_HYPHEN}]?{_LETTER}+(?:{_JOINER}(?:(?<![.,])|(?=\d)){_LETTER}+)*[+%{_HYPHEN}]?|[{_WIDE}]+"
)
# An atom may still grow where the text ends here.
_OPEN = re.compile(rf"{_JOINER}?\Z")
_NUMBER = re.compile(rf"[+{_HYPHEN}]?\d")
_OUT_OF = re.compile(r"(?:\d[\s*_\"'`]*/|\bout\s+of)[\s*_\"'`]*\Z", re.IGNORECASE)
# Between an anchor and its label. Atomic, because a bracket fits two of the alternatives.
_GAP = re.compile(r"(?>\\[a-z]+|[(\[<][^()\[\]<>\n]{0,40}[)\]>]|[\W_]){0,60}+")
# Between the members of a range or list, all on one line.
_GLUE = re.compile(rf"(?:[^\S\n]|[*_\"'`,/|&~…\u2014{_HYPHEN}]|\.{{2,3}})*")
_MARKUP = re.compile(r"[\s*_\"'`]+")
_CONNECTIVES = {"to", "or", "and", "through"}


@dataclass(frozen=True)
class ScoreRule:
    """How the score is found in generated text; see the module.

    Attributes:
        kind: ``anchor``, ``last`` or ``first``.
        anchor: Regular expression of what stands in front of the score; only ``anchor`` uses it.
    """

    kind: RuleKind = "anchor"
    anchor: str = DEFAULT_ANCHOR

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        try:
            empty = re.compile(self.anchor).search("")
        except re.error as error:
            raise ProbesError(f"the anchor {self.anchor!r} is not a regular expression: {error}") from None
        if empty:
            raise ProbesError(f"the anchor {self.anchor!r} matches empty text, so it is everywhere: give it some text")

    @classmethod
    def parse(cls, text: str) -> ScoreRule:
        """Read ``anchor``, ``last``, ``first`` or ``anchor:REGEX``.

        Raises:
            ProbesError: The text is none of these, or the expression is not valid.
        """
        kind, colon, anchor = text.strip().partition(":")
        if colon and kind == "anchor":
            return cls("anchor", anchor)
        return cls(_check_kind(text.strip()))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``from_dict`` reads it back."""
        return {"kind": self.kind, "anchor": self.anchor}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScoreRule:
        """Rebuild a rule from ``to_dict``."""
        return cls(_check_kind(data["kind"]), data["anchor"])

    def __str__(self) -> str:
        return self.kind if self.kind != "anchor" or self.anchor == DEFAULT_ANCHOR else f"anchor:{self.anchor}"


def _check_kind(kind: str) -> RuleKind:
    for known in _KINDS:
        if kind == known:
            return known
    raise ProbesError(f"unknown score rule {kind!r}: choose anchor, anchor:REGEX, last or first")


@dataclass(frozen=True)
class Located:
    """The score in a generation.

    Attributes:
        step: Number of the score token among the generated tokens; the state that emitted it is one before.
        label: Number of the label on the scale.
    """

    step: int
    label: int


class _Progress(NamedTuple):
    cursor: int  # everything before it is decided
    found: Located | None = None
    settled: bool = False


class ScoreFinder:
    """Finds the score of one generation, token by token.

    Args:
        rule: Which label is the score.
        scale: The labels.
        spellings: Token id -> label, of the tokens whose states can be read; see ``generated_spellings``.
        decode: Text of a few tokens within running text; see ``running_text``.
        prefill: Text that the answer starts with before anything is generated; an anchor may stand there.

    Raises:
        ScoreTokenError: A label is not one word or number.
    """

    def __init__(
        self,
        rule: ScoreRule,
        scale: Scale,
        spellings: Mapping[int, int],
        decode: Callable[[Sequence[int]], str],
        prefill: str = "",
    ) -> None:
        self._rule = rule
        self._anchor = re.compile(rule.anchor)
        self._forms = _label_forms(scale)
        self._spellings = spellings
        self._decode = decode
        self._text = prefill
        self._prefilled = len(prefill)
        self._ids: list[int] = []
        self._starts: list[int] = []  # where the text of each token starts
        self._partial: list[int] = []  # tokens that end within a character
        self._progress = _Progress(cursor=0)
        for form in self._forms:
            if _ATOM.fullmatch(form) is None:
                raise ScoreTokenError(
                    f"the label {form!r} cannot be told apart in generated text; choose labels that are one word or "
                    "number each, or the condition direct"
                )

    def feed(self, token_id: int) -> bool:
        """Take the next generated token.

        Returns:
            Whether the score is certain, whatever follows; later tokens are then ignored.
        """
        if not self._progress.settled:
            self._append(int(token_id))
            self._progress = self._scan(self._text, finished=False)
        return self._progress.settled

    def result(self) -> Located | None:
        """The score if the generation ends here; None where there is none, or none that can be read."""
        if self._progress.settled:
            return self._progress.found
        rest = self._decode(self._partial) if self._partial else ""
        return self._scan(self._text + rest, finished=True).found

    def may_be_score(self, step: int) -> bool:
        """Whether a token generated so far is the score, or may still turn out to be."""
        cursor, found, settled = self._progress
        if found is not None and found.step == step:
            return True
        return not settled and (step + 1 >= len(self._starts) or self._starts[step + 1] > cursor)

    def _append(self, token: int) -> None:
        self._ids.append(token)
        self._starts.append(len(self._text))
        self._partial.append(token)
        text = self._decode(self._partial)
        # A character of several tokens is credited to the one that completes it.
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(self._partial) == LONGEST_CHARACTER:
            self._text += text
            self._partial.clear()

    def _scan(self, text: str, *, finished: bool) -> _Progress:
        """Decide about the atoms from the cursor on, as far as the text allows."""
        cursor, found, _ = self._progress
        for atom in _ATOM.finditer(text, cursor):
            if not finished and _OPEN.match(text, atom.end()):
                return _Progress(cursor, found)
            # On a scale without signs, +1 is a 1.
            form = atom[0] if atom[0] in self._forms else atom[0].removeprefix("+")
            if form in self._forms and atom.start() >= self._prefilled and not _is_out_of(text, atom.start()):
                chosen = self._is_score(text, atom.start(), atom.end(), finished=finished)
                if chosen is None:
                    return _Progress(cursor, found)
                if chosen:
                    found = self._reading(atom.end() - len(form), self._forms[form])
                    if self._rule.kind != "last":
                        return _Progress(atom.end(), found, settled=True)
            cursor = atom.end()
        # Only a sign can stand in front of an atom, so the rest need not be read again.
        return _Progress(max(cursor, len(text) - 1), found)

    def _is_score(self, text: str, start: int, end: int, *, finished: bool) -> bool | None:
        """Whether the rule takes this label; None while that depends on what follows."""
        if self._rule.kind != "anchor":
            return True
        anchors = self._anchor.finditer(text, max(0, start - _REACH), start)
        if not any(_GAP.fullmatch(text, anchor.end(), start) for anchor in anchors):
            return False
        listed = self._opens_list(text, start, end, finished=finished)
        return None if listed is None else not listed

    def _opens_list(self, text: str, start: int, end: int, *, finished: bool) -> bool | None:
        """Whether a label is the first of a range or list; None while that depends on what follows.

        A dash or "to" makes one of two members. A comma or a space does of three only ("yes, no issues"), and so does
        a slash between numbers ("4/5").
        """
        weak = {"", ",", "/"} if _NUMBER.match(text, start) else {"", ","}
        first_joint, connected = None, False
        while True:
            atom = _ATOM.search(text, end)
            glue = text[end : atom.start() if atom else len(text)]
            if _GLUE.fullmatch(glue) is None or (finished and atom is None):
                return False
            if atom is None or not (finished or _OPEN.match(text, atom.end()) is None):
                return None
            end = atom.end()
            if atom[0].lower() in _CONNECTIVES and not connected:
                connected = True
                continue
            if atom[0] not in self._forms and _NUMBER.match(atom[0]) is None:
                return False
            joint = _MARKUP.sub("", glue)
            if connected or joint not in weak or joint == first_joint:
                return True
            if first_joint is not None:
                return False
            first_joint = joint

    def _reading(self, start: int, label: int) -> Located | None:
        step = bisect_right(self._starts, start) - 1
        return Located(step, label) if self._spellings.get(self._ids[step]) == label else None


def locate(
    token_ids: Iterable[int],
    rule: ScoreRule,
    scale: Scale,
    spellings: Mapping[int, int],
    decode: Callable[[Sequence[int]], str],
    prefill: str = "",
) -> Located | None:
    """Apply a rule to a finished generation; the same answer that ``ScoreFinder`` gives while it is made."""
    finder = ScoreFinder(rule, scale, spellings, decode, prefill)
    for token in token_ids:
        finder._append(int(token))
    return finder.result()


def running_text(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """A function from a few token ids to their text within running text, leading space included."""
    # At the start of a text, SentencePiece decoders drop the space; behind another token they keep it.
    before = encode(tokenizer, "a", special_tokens=False)
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    skip = len(tokenizer.decode(before, **options))

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode([*before, *token_ids], **options))[skip:]

    return decode


def generated_spellings(tokenizer: Any, scale: Scale) -> dict[int, int]:
    """The tokens that spell a label wherever it is generated: token id -> label.

    With and without a leading space, whatever ``scale.bare`` says, since the model chooses; with capitals where
    ``scale.case`` says so. A label that is never one token has no entry. Byte-fallback tokens are left out: they
    decode to a label, but no tokenizer writes one so.
    """
    decode = running_text(tokenizer)
    found: dict[int, int] = {}
    for form, label in _label_forms(scale).items():
        # How byte-level and SentencePiece vocabularies write a token, then whatever the tokenizer itself makes of it.
        candidates = tokenizer.convert_tokens_to_ids([mark + form for mark in ("", " ", "Ġ", "▁")])
        encoded = (encode(tokenizer, space + form, special_tokens=False) for space in ("", " "))
        candidates += [ids[0] for ids in encoded if len(ids) == 1]
        for token in candidates:
            if token is not None and decode([token]) in {form, " " + form}:
                found[int(token)] = label
    return dict(sorted(found.items()))


def _is_out_of(text: str, start: int) -> bool:
    """Whether the number that starts here is the best that could be had ("4/5", "4 out of 5")."""
    return _OUT_OF.search(text, max(0, start - 20), start) is not None


def _label_forms(scale: Scale) -> dict[str, int]:
    """Texts that count as a label; an exact one wins over the capitalised form of another."""
    forms = {label: index for index, label in enumerate(scale.labels)}
    if scale.case:
        for index, label in enumerate(scale.labels):
            forms.setdefault(label[0].upper() + label[1:], index)
    return forms

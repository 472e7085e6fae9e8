"""A small human-rated item set that needs no download: the word list inside the vaderSentiment package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import ItemError
from probes.items import Item, Items

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BIN_WIDTH = 0.5
_LOW, _HIGH = -4.0, 4.0
_WORD = re.compile(r"[a-z]{3,}")
_SUFFIXES = re.compile(
    r"(nesses|ness|ments|ment|ations|ation|ities|ity|ingly|edly|ings|ing|iest|iers|ier|ies|ied|ists|ist|isms|ism"
    r"|fully|fulness|ful|lessly|less|ably|able|ible|ously|ous|ives|ive|ers|ors|er|or|est|ed|en|ly|al|es|s)$"
)


def vader_words(
    n: int = 450,
    seed: int = 0,
    *,
    exclude: Sequence[str] = ("wonderful", "agony", "tolerable", "annoying", "pleased"),
) -> Items:
    """Words with ten human ratings of their sentiment each, from -4 to 4 (Hutto and Gilbert, 2014).

    Lower-case words of three letters and more are drawn evenly over the range of the mean rating, in bins
    half a point wide: every bin gives the same number of words, a bin that holds fewer gives all it has, and
    the other bins make up for it, again evenly. Which words, and their order, depends on the seed and the
    installed list alone. Words that the list holds twice, with two sets of ratings, are left out.

    Args:
        n: Number of words.
        seed: Another seed draws other words.
        exclude: Words that must not appear, such as the examples in a prompt, and neither may their families.

    Returns:
        Items with the field ``response``, the criterion ``sentiment``, ten raters in slots, and the word
        family as ``group``, so that ``annoy`` and ``annoying`` never sit on both sides of a split. Families
        are an approximation, see `families`.

    Raises:
        ItemError: The package is missing, its list has another layout, or it holds fewer than ``n`` words.
    """
    path = _lexicon_path()
    ratings = _read_lexicon(path)
    family = families([*ratings, *exclude])
    banned = {family[word] for word in exclude}
    usable = {word: scores for word, scores in ratings.items() if family[word] not in banned}
    if not 1 <= n <= len(usable):
        raise ItemError(f"vaderSentiment holds {len(usable)} usable words, so n must be 1..{len(usable)}, got {n}")

    def rank(word: str) -> str:
        # A hash rather than a random generator: the same words whatever the version of numpy.
        return hashlib.sha256(f"{seed}:{word}".encode()).hexdigest()

    bins: dict[int, list[str]] = {}
    for word in sorted(usable, key=rank):
        bins.setdefault(_bin_of(usable[word]), []).append(word)
    quota = _even_quota({number: len(words) for number, words in bins.items()}, n)
    chosen = [word for number, words in bins.items() for word in words[: quota[number]]]
    return Items(
        [
            Item(
                id=f"vader-{word}",
                fields={"response": word},
                criterion="sentiment",
                group=family[word],
                human=usable[word],
            )
            for word in sorted(chosen, key=rank)
        ],
        raters="slots",
        source="vaderSentiment word list",
    )


def families(words: Iterable[str]) -> dict[str, str]:
    """Group words that look like forms of one word; a family is called after its shortest member.

    Two words are joined if they share the first five letters, or the stem left after cutting common English
    endings (``hate``, ``hating``); chains of such pairs make a family. An approximation: it joins some
    strangers (``depress``, ``deprive``) and misses forms that differ early (``good``, ``better``), by a
    prefix (``happy``, ``unhappy``) or in very short words (``die``, ``died``).
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    ordered = sorted(set(words), key=lambda word: (len(word), word))
    for word in ordered:
        for key in (f"stem {_stem(word)}", f"start {word[:5]}"):
            parent[root(key)] = root(f"word {word}")
    names: dict[str, str] = {}
    for word in ordered:
        names.setdefault(root(f"word {word}"), word)
    return {word: names[root(f"word {word}")] for word in ordered}


def _stem(word: str) -> str:
    word = re.sub("ie[sd]$", "y", word)
    while len(shorter := _SUFFIXES.sub("", word)) >= 3 and shorter != word:
        word = shorter
    word = word[:-1] if word[-1] in "eyi" and len(word) > 3 else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _lexicon_path() -> Path:
    # find_spec does not run the package, whose import needs requests.
    spec = importlib.util.find_spec("vaderSentiment")
    if spec is None or not spec.submodule_search_locations:
        raise ItemError("the demo's words come from the package vaderSentiment; run `pip install vaderSentiment`")
    path = Path(spec.submodule_search_locations[0]) / "vader_lexicon.txt"
    if not path.is_file():
        raise ItemError(f"{path}: no such file; the demo needs vaderSentiment 3.3.2 or a version of its layout")
    return path


def _read_lexicon(path: Path) -> Mapping[str, tuple[float, ...]]:
    ratings: dict[str, tuple[float, ...]] = {}
    counts: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        try:
            scores = tuple(float(score) for score in json.loads(cells[3]))
        except (IndexError, ValueError, TypeError):
            scores = ()
        if len(cells) != 4 or not scores or not all(_LOW <= score <= _HIGH for score in scores):
            raise ItemError(
                f"{path}, line {number}: expected token, mean, deviation and [ratings] separated by tabs; "
                "the demo needs vaderSentiment 3.3.2 or a version of its layout"
            )
        if _WORD.fullmatch(cells[0]):
            counts[cells[0]] += 1
            ratings[cells[0]] = scores
    return {word: scores for word, scores in ratings.items() if counts[word] == 1}


def _bin_of(scores: Sequence[float]) -> int:
    mean = sum(scores) / len(scores)
    last = round((_HIGH - _LOW) / _BIN_WIDTH) - 1
    return min(last, int((mean - _LOW) / _BIN_WIDTH))


def _even_quota(supply: Mapping[int, int], n: int) -> dict[int, int]:
    """Share ``n`` evenly over bins of limited supply; what does not divide goes to the lowest bins first."""
    quota = dict.fromkeys(sorted(supply), 0)
    left = n
    while left:
        open_bins = [number for number in quota if quota[number] < supply[number]]
        share = left // len(open_bins)
        # Bins that are still open hold the same number each, until the last round hands out what is left.
        for number in open_bins if share else open_bins[:left]:
            give = min(max(share, 1), supply[number] - quota[number])
            quota[number] += give
            left -= give
    return quota

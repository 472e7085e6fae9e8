"""The prompts that captures are timed on: three ways in which the prompts of an evaluation share their tokens."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import probes

if TYPE_CHECKING:
    from collections.abc import Sequence

# Where data lie that this package does not ship: next to the checkout, unless the environment says otherwise.
DATA = Path(os.environ.get("PROBES_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data")

_CRITERIA = {
    "coherence": "Is the summary well structured and well organised, with sentences that build on one another?",
    "consistency": "Does the summary state only facts that the article supports?",
    "fluency": "Is each sentence grammatical and free of formatting problems?",
    "relevance": "Does the summary contain the important content of the article and nothing redundant?",
}
# Tokens of the first two articles of SummEval, and of four summaries of each.
_ARTICLES = {553: (72, 94, 61, 64), 396: (59, 89, 70, 87)}

# The criterion comes last, so that its article and its summary are shared with the other criteria.
_SUMMARIES = probes.Template(
    "summaries",
    system="You rate a summary by one criterion and answer with a score only.",
    user=(
        "## Task\n{{ task }}\n\n## Article\n{{ context }}\n\n## Summary\n{{ response }}\n\n"
        "## Criterion\n{{ criterion }}: {{ criterion_text }}\n\n"
        "Answer with one number, from 1 (the worst) to 5 (the best), and nothing else."
    ),
    prefill="Score:",
)
# The item's own words come first: behind the marker of the turn, nothing is shared.
_STRANGERS = probes.Template("strangers", system="{{ opening }}", user="{{ response }}", prefill="Score:")


@dataclass(frozen=True)
class PromptSet:
    """Items with the template and scale that make prompts of them."""

    title: str
    items: probes.Items
    template: probes.Template
    scale: probes.Scale

    def judge(self, base: probes.Judge) -> probes.Judge:
        """A judge of this set with the model of another."""
        return probes.Judge.load(base.bridge, tokenizer=base.tokenizer, template=self.template, scale=self.scale)


def summaries(data: Path = DATA, *, quick: bool = False) -> PromptSet:
    """Two articles, four summaries of each, four criteria: SummEval where it lies at hand, else its lengths."""
    path = data / "items" / "summeval.jsonl"
    items = list(probes.read_items(path)) if path.is_file() else _generated_summaries()
    articles = list(dict.fromkeys(item.group for item in items))[: 1 if quick else 2]
    systems = list(dict.fromkeys(item.system for item in items))[: 2 if quick else 4]
    criteria = sorted({item.criterion for item in items})[: 2 if quick else 4]
    chosen = [i for i in items if i.group in articles and i.system in systems and i.criterion in criteria]
    source = "SummEval" if path.is_file() else "generated text of SummEval's lengths"
    title = f"A, articles x summaries x criteria ({source})"
    return PromptSet(title, probes.Items(chosen), _SUMMARIES, probes.Scale.parse("1..5"))


def strangers(*, quick: bool = False) -> PromptSet:
    """Prompts of 150 to 700 tokens that share nothing."""
    n = 3 if quick else 24
    lengths = [140 + 550 * k // (n - 1) for k in range(n)]
    random.Random(0).shuffle(lengths)
    items = [
        probes.Item(f"stranger-{k}", {"opening": _WORDS[k].capitalize(), "response": filler(length, seed=k)})
        for k, length in enumerate(lengths)
    ]
    return PromptSet("B, nothing shared", probes.Items(items), _STRANGERS, probes.Scale.parse("1..5"))


def words(*, quick: bool = False) -> PromptSet:
    """Single words behind five worked examples, as in the demo."""
    items = probes.vader_words(8 if quick else 400)
    scale = probes.Scale.parse("1..5", (-4.0, 4.0))
    return PromptSet("C, words behind the demo's examples", items, probes.load_template("words"), scale)


def shared_once(prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """What is left where every common beginning is computed once.

    Returns:
        Tokens, and pairs of a token with itself or one in front of it in its prompt.
    """
    tokens = pairs = 0
    previous: Sequence[int] = ()
    for prompt in sorted(prompts):
        # In sorted order, a prompt shares most with the one in front of it.
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, prompt, strict=False)))
        tokens += len(prompt) - shared
        pairs += sum(range(shared + 1, len(prompt) + 1))
        previous = prompt
    return tokens, pairs


_WORDS = (  # noqa: SIM905
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man"
).split()


def filler(n_tokens: int, seed: int) -> str:
    """Text without meaning, of about so many tokens: each of its words is one in most vocabularies."""
    draw = random.Random(seed).random
    drawn = [_WORDS[int(draw() * len(_WORDS))] for _ in range(n_tokens)]
    return " ".join("." if k % 12 == 11 else word for k, word in enumerate(drawn))


def _generated_summaries() -> list[probes.Item]:
    return [
        probes.Item(
            id=f"{article}-{system}-{criterion}",
            fields={
                "task": "Summarise the article.",
                "context": filler(article, seed=article),
                "response": filler(length, seed=100 * article + length),
                "criterion_text": text,
            },
            criterion=criterion,
            group=str(article),
            system=str(system),
        )
        for article, summary_lengths in _ARTICLES.items()
        for system, length in enumerate(summary_lengths)
        for criterion, text in _CRITERIA.items()
    ]

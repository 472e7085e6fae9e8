"""Ten sets of human scores and the demo's word list, captured with one judge each: what judges are compared on.

``python -m benchmarks.human_sets --out runs/sets`` captures what is not captured yet. The data are not part of this
package; ``--data`` or ``PROBES_DATA`` name their folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

import probes
from benchmarks.prompt_sets import DATA


@dataclass(frozen=True)
class HumanSet:
    """A set and the question that its judge is asked.

    Attributes:
        question: What to rate; ``{{ response }}`` and ``{{ context }}`` are the item's texts.
        shots: Worked examples, ours and not the set's: fields and the answer.
        human_range: Range of the human scores; from ``sets.json`` for all but the words.
        limit: Items at most, whole groups at a time in the order of the file.
    """

    question: str
    shots: tuple[tuple[dict[str, str], str], ...]
    human_range: str
    limit: int = 3100

    def template(self, name: str) -> probes.Template:
        """The prompt template."""
        shots = [{"fields": fields, "answer": answer} for fields, answer in self.shots]
        return probes.Template.from_dict({"name": name, "user": self.question, "shots": shots})


def _texts(*pairs: tuple[str, str]) -> tuple[tuple[dict[str, str], str], ...]:
    return tuple(({"response": text}, answer) for text, answer in pairs)


_SENTIMENT = (
    "Rate the sentiment of this {kind} on a scale from 1 to 5, where 1 is very negative, 3 is neutral and 5 is very "
    "positive. Reply with the number only. {Kind}: {{{{ response }}}}"
)


def _sentiment(kind: str, *pairs: tuple[str, str]) -> HumanSet:
    return HumanSet(_SENTIMENT.format(kind=kind, Kind=kind.capitalize()), _texts(*pairs), "-4..4")


# The rubric that the sets of long texts are asked with, without examples: they would not fit a small judge.
_QUALITY = (
    "{{ task }}\n\n{{ context }}\n\n{{ response }}\n\nRate the text above by one criterion, from 1 (the worst) to 5 "
    "(the best). {{ criterion_text }} Reply with the number only."
)

SETS: Final = {
    "demo": HumanSet("", (), "-4..4", limit=450),  # the demo's own template
    "words": HumanSet("", (), "-4..4"),
    "vader_amazon": _sentiment(
        "product review sentence",
        ("This is the best phone I have ever owned.", "5"),
        ("It broke after two days and nobody answered my mail.", "1"),
        ("The box holds a charger and a cable.", "3"),
        ("The keys are a bit too small for my fingers.", "2"),
        ("Setting it up was quite easy.", "4"),
    ),
    "vader_movies": _sentiment(
        "movie review sentence",
        ("A masterpiece that moves you from the first scene to the last.", "5"),
        ("Two wasted hours of dull jokes and worse acting.", "1"),
        ("The story is set in a small town in the north.", "3"),
        ("The plot loses its way in the second half.", "2"),
        ("The young cast is pleasant to watch.", "4"),
    ),
    "vader_nyt": _sentiment(
        "newspaper sentence",
        ("The rescue was a triumph, and the whole city celebrated.", "5"),
        ("The attack killed dozens and left families in despair.", "1"),
        ("The committee meets on Tuesday in the town hall.", "3"),
        ("Critics complain that the plan comes too late.", "2"),
        ("The new library has been welcomed by its neighbours.", "4"),
    ),
    "vader_tweets": _sentiment(
        "short message",
        ("best day ever!!! love you all", "5"),
        ("this is awful, i hate everything about it", "1"),
        ("on the bus, back at six", "3"),
        ("kind of tired of this weather", "2"),
        ("nice lunch with my sister :)", "4"),
    ),
    "emobank": HumanSet(
        "{{ criterion_text }} Rate it on a scale from 1 to 5, where 1 is the lowest, 3 is the middle and 5 is the "
        "highest. Reply with the number only. Text: {{ response }}",
        tuple(
            ({"criterion_text": question, "response": text}, answer)
            for question, text, answer in (
                ("How negative or positive does the text make a reader feel?", "They won, and everybody cheered.", "5"),
                ("How calm or excited does the text make a reader feel?", "The lake lay still in the morning.", "1"),
                ("How controlled or in control does the text make a reader feel?", "Take the second door.", "3"),
                ("How negative or positive does the text make a reader feel?", "The shop was closed again.", "2"),
                ("How calm or excited does the text make a reader feel?", "Hurry, the train is leaving!", "4"),
            )
        ),
        "1..5",
    ),
    "concreteness": HumanSet(
        'Rate how concrete the word "{{ response }}" is on a scale from 1 to 5, where 1 is very abstract and 5 is very '
        "concrete. Reply with the number only.",
        _texts(("hammer", "5"), ("justice", "1"), ("crowd", "4"), ("season", "3"), ("effort", "2")),
        "1..5",
    ),
    "sick": HumanSet(
        "Rate how related in meaning two sentences are on a scale from 1 to 5, where 1 is unrelated and 5 is the same. "
        "Reply with the number only. First: {{ context }} Second: {{ response }}",
        tuple(
            ({"context": first, "response": second}, answer)
            for first, second, answer in (
                ("A man is cooking rice.", "Rice is being cooked by a man.", "5"),
                ("A dog sleeps on the sofa.", "Two teams play in the rain.", "1"),
                ("A woman is singing.", "A woman is singing on a stage.", "4"),
                ("Children run through a field.", "A child stands near a house.", "3"),
                ("A boy rides a bicycle.", "A boy is eating an apple.", "2"),
            )
        ),
        "1..5",
    ),
    "usr_topical": HumanSet(_QUALITY, (), "1..5"),
    "usr_persona": HumanSet(_QUALITY, (), "1..5"),
    "summeval": HumanSet(_QUALITY, (), "1..5", limit=960),
}

_WORDS: Final = ("demo", "words")


def items_of(name: str, data: Path, limit: int) -> probes.Items:
    """The items of a set: whole groups, in the order in which they begin, up to a limit."""
    if name in _WORDS:
        return probes.vader_words(limit)
    items = probes.read_items(data / "items" / f"{name}.jsonl")
    counts = Counter(items.groups.tolist())
    sizes = np.cumsum(list(counts.values()))
    chosen = set(list(counts)[: int(np.searchsorted(sizes, limit, side="right"))])
    return items.select([group in chosen for group in items.groups])


def capture_set(name: str, base: probes.Judge, data: Path, out: Path, limit: int | None = None) -> probes.Run:
    """Capture a set with a judge's model, or open what has been captured."""
    asked = SETS[name]
    template = "words" if name in _WORDS else asked.template(name)
    judge = probes.Judge.load(
        base.bridge, tokenizer=base.tokenizer, template=template, scale="1..5", human_range=asked.human_range
    )
    return probes.capture(
        judge, items_of(name, data, min(limit or asked.limit, asked.limit)), out / f"{name}.h5", lenses=("raw", "norm")
    )


def random_weights(base: probes.Judge, seed: int = 0) -> probes.Judge:
    """A judge of the same architecture and tokenizer that has never been trained: the control."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(base.bridge.original_model.config)
    return probes.Judge.load(model, tokenizer=base.tokenizer)


def main() -> None:
    """Capture the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("runs/sets"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--random-weights", action="store_true", help="The model untrained, as a control.")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    base = probes.Judge.load(asked.model)
    if asked.random_weights:
        base = random_weights(base)
    for name in asked.sets:
        start = time.perf_counter()
        with capture_set(name, base, asked.data, asked.out, asked.limit) as run:
            mass = float(run.final_mass[run.status == 0].mean())
            sys.stdout.write(f"{name}: {run.n_items} items, mass {mass:.2f}, {time.perf_counter() - start:.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

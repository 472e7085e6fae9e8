"""How a judge decodes in the conditions ``generate`` and ``reasoning``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from probes.choice_tokens import ANSWER_ANCHOR
from probes.errors import ProbesError
from probes.locate import ScoreRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Condition = Literal["direct", "generate", "reasoning"]
CONDITIONS: Final[tuple[Condition, ...]] = get_args(Condition)

# A score and what stands around it; LAGER generates as many (arXiv 2508.03550, released code). Reasoning is free text.
_NEW_TOKENS: Final = {"generate": 10, "reasoning": 512}
# An answer in free text, where there is no scale.
_ANSWER_TOKENS: Final = {"generate": 64, "reasoning": 512}
# A blank line ends an answer: what follows in a few-shot prompt is the next example.
_STOP: Final = ("\n\n",)


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded, and where in them the score is.

    Attributes:
        rule: Which generated label is the score.
        max_new_tokens: Tokens that are generated at most.
        samples: Answers an item.
        temperature: 0 takes the likeliest token each time.
        seed: Together with item and sample, the seed of each answer.
        stop: Texts that end an answer, where choices are scored.
        usual: Which of ``max_new_tokens`` and ``stop`` nobody has set, so that they may be fitted to the items.

    Raises:
        ProbesError: A number is out of range.
    """

    rule: ScoreRule
    max_new_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    usual: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.samples < 1:
            raise ProbesError("max_new_tokens and samples must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ProbesError(f"the temperature must be 0 or a positive number, got {self.temperature}")
        if self.samples > 1 and self.temperature == 0:
            raise ProbesError(
                f"{self.samples} samples at temperature 0 would all be equal; give a temperature (--temperature 1)"
            )

    @classmethod
    def of(
        cls,
        condition: Condition,
        rule: str | ScoreRule | None = None,
        max_new_tokens: int | None = None,
        *,
        choices: bool = False,
        **options: Any,
    ) -> Decoding | None:
        """Decoding of a condition; None for ``direct``, which generates nothing.

        Args:
            condition: How the judge is read.
            rule: Which generated label is the score, or what leads to the answer.
            max_new_tokens: Tokens that are generated at most.
            choices: Whether choices are scored, and not the labels of a scale.
            **options: Other attributes.

        Raises:
            ProbesError: There is no such condition, or an option is out of range.
        """
        if condition not in CONDITIONS:
            raise ProbesError(f"unknown condition {condition!r}: choose one of {', '.join(CONDITIONS)}")
        if condition == "direct":
            samples, temperature = options.get("samples", 1), options.get("temperature", 0)
            if rule is not None or max_new_tokens is not None or samples != 1 or temperature != 0:
                raise ProbesError("the condition direct generates nothing; choose generate or reasoning (--condition)")
            return None
        unset: set[str] = set()
        if choices:
            unset = {"stop"} - options.keys()
            options = {"stop": _STOP} | options
            rule = ScoreRule("anchor", ANSWER_ANCHOR) if rule is None else rule
        if rule is None:
            # A bare answer has no anchor in front of it.
            rule = "first" if condition == "generate" else "anchor"
        found = rule if isinstance(rule, ScoreRule) else ScoreRule.parse(rule)
        if max_new_tokens is None:
            max_new_tokens = (_ANSWER_TOKENS if choices else _NEW_TOKENS)[condition]
            unset |= {"max_new_tokens"} if choices else set()
        return cls(found, max_new_tokens, usual=frozenset(unset), **options)

    def fitted(self, accepted: Iterable[str], longest: int, room: int | None) -> Decoding:
        """The same, with what nobody has set such that every accepted answer can be written down.

        Args:
            accepted: Texts that may be answered, of all items. A usual stop that is part of one would cut it.
            longest: Tokens of the longest of them. Answers may have twice as many, rounded up to a power of two, where
                the usual number is less than that.
            room: Tokens that fit behind the longest prompt; None for any number. What is usual stays allowed.
        """
        most, stop = self.max_new_tokens, self.stop
        if "max_new_tokens" in self.usual and 2 * longest > most:
            wanted = 1 << (2 * longest - 1).bit_length()
            most = max(most, wanted if room is None else min(wanted, room))
        if "stop" in self.usual:
            stop = tuple(one for one in stop if not any(one in text for text in accepted))
        return replace(self, max_new_tokens=most, stop=stop, usual=frozenset())

    def generator(self, item_id: str, sample: int) -> np.random.Generator:
        """Random numbers of one answer: the same in whatever batch it is decoded."""
        digest = hashlib.sha256(f"{self.seed}\0{item_id}\0{sample}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16])))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``from_dict`` reads it back."""
        settings = {**asdict(self), "rule": self.rule.to_dict()}
        # Only where there are any, which leaves the hashes of all other judges as they are.
        del settings["stop"], settings["usual"]
        return settings | ({"stop": list(self.stop)} if self.stop else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decoding:
        """Rebuild from ``to_dict``."""
        return cls(**{**data, "rule": ScoreRule.from_dict(data["rule"]), "stop": tuple(data.get("stop", ()))})

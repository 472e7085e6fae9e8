"""The judge: model, tokenizer, template, scale and condition, under one hash."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from probes.choice_tokens import CHOICE_TOKENS, choices_after_reasoning, choices_behind, told_apart
from probes.choices.table import ChoiceTable
from probes.decoding import Condition, Decoding
from probes.errors import ItemError, ScoreTokenError
from probes.prompt_parts import PromptParts
from probes.prompt_table import PromptTable, check_pair, response_span, swapped
from probes.prompts import Template, load_template
from probes.rendering import Prompt, render, render_all
from probes.same_model import judge_digest
from probes.scale import Scale, parse_range
from probes.score_tokens import NO_TOKENS, ScoreTokens, find_score_tokens, generated_tokens
from probes.token_table import TokenTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from probes.items import Item, Items
    from probes.lens import Readout
    from probes.locate import ScoreRule
    from probes.quantization import Quantization
    from probes.spanned import Span

logger = logging.getLogger(__name__)

# What a capture reads; part of the judge's hash because numbers of another mode must not be mixed in.
CAPTURE_MODE: Final = "raw weights; blocks.0.hook_in and every blocks.i.hook_out at the score position"


@dataclass(eq=False)
class Judge:
    """A judge that is ready to be captured.

    Attributes:
        bridge: TransformerLens' ``TransformerBridge`` around the model.
        tokenizer: The model's tokenizer.
        template: Turns an item into a prompt.
        scale: The labels and their values.
        name: What the model was loaded from.
        weights_hash: SHA-256 over the model's weights and what of its config changes numbers, when it was loaded.
        revision: Hub revision, if one was asked for.
        attention: The model's own attention implementation, which captures run; None keeps the bridge's.
        condition: ``direct`` reads at the end of the prompt; ``generate`` and ``reasoning`` where a score was emitted.
        decoding: How answers are decoded; None in the condition ``direct``.
        quantization: How the weights are packed; None where they are not.
    """

    bridge: Any
    tokenizer: Any
    template: Template
    scale: Scale
    name: str
    weights_hash: str
    revision: str | None = None
    attention: str | None = None
    condition: Condition = "direct"
    decoding: Decoding | None = None
    quantization: str | None = None
    _tokens: ScoreTokens | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        model: Any = "smollm2-135m",
        *,
        template: str | Path | Template = "rubric",
        scale: str | Scale = "1..5",
        human_range: tuple[float, float] | str | None = None,
        condition: Condition = "direct",
        rule: str | ScoreRule | None = None,
        max_new_tokens: int | None = None,
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] | None = None,
        tokenizer: Any = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: Any = None,
        quantization: Quantization | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> Judge:
        """Load a judge.

        Args:
            model: Hub id, local folder, ``.gguf`` file, ``smollm2-135m``, a loaded Hugging Face model, or a
                ``TransformerBridge``.
            template: Name of a template that comes with the package, a YAML file, or a ``Template``.
            scale: A ``Scale``, or text such as ``1..5``, ``0..9``, ``A..E``, ``yes/no``; ``choices`` for items that
                have choices of their own.
            human_range: Range of the human scores, for example ``-4..4``; that of the scale unless given.
            condition: ``direct`` reads at the end of the prompt. ``generate`` and ``reasoning`` decode an answer and
                read where its score was emitted; they differ in ``rule`` and ``max_new_tokens`` only.
            rule: Which generated label is the score: ``first`` (for ``generate``), ``anchor`` (for ``reasoning``),
                ``last``, or ``anchor:REGEX``.
            max_new_tokens: Tokens generated at most: 10 for ``generate``, 512 for ``reasoning``. Where choices are
                scored, 64 or 512, or twice as many as the longest choice has, rounded up to a power of two.
            samples: Answers an item; more than one needs a temperature.
            temperature: 0 takes the likeliest token each time.
            seed: Seed of the samples.
            stop: Texts that end an answer where choices are scored; a blank line unless given.
            tokenizer: For a loaded model whose tokenizer cannot be found by name.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
            device: For example ``cuda:0``.
            device_map: Passed on to transformers, instead of ``device``.
            quantization: ``8bit`` or ``4bit`` packs the weights with bitsandbytes while they are loaded.
            revision: Hub revision.
            trust_remote_code: Allow the model's own Python code to run.

        Raises:
            ModelError: The model cannot be loaded.
            TemplateError: The template cannot be read.
            ScaleError: The scale cannot be read.
        """
        from probes.models import load_model

        # Cheap checks come before minutes of loading.
        chosen = load_template(template)
        if not isinstance(scale, Scale):
            labels = Scale.parse(scale, human_range)
        elif human_range is None:
            labels = scale
        else:
            low, high = human_range if isinstance(human_range, tuple | list) else parse_range(human_range)
            labels = replace(scale, human_range=(float(low), float(high)))
        options: dict[str, Any] = {"samples": samples, "temperature": temperature, "seed": seed}
        if stop is not None:
            options["stop"] = tuple(stop)
        decoding = Decoding.of(condition, rule, max_new_tokens, choices=not labels.has_labels, **options)
        check_pair(chosen, labels)
        loaded = load_model(
            model,
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        if not chosen.plain and not getattr(loaded.tokenizer, "chat_template", None):
            logger.info(
                "%s has no chat template: turns are written as paragraphs; an instruction-tuned model has one",
                loaded.name,
            )
        return cls(
            bridge=loaded.bridge,
            tokenizer=loaded.tokenizer,
            template=chosen,
            scale=labels,
            name=loaded.name,
            weights_hash=loaded.weights_hash,
            revision=revision,
            attention=loaded.attention,
            condition=condition,
            decoding=decoding,
            quantization=loaded.quantization,
        )

    def __repr__(self) -> str:
        from probes.reprs import judge_line

        return judge_line(self)

    def _repr_html_(self) -> str:
        from probes.reprs import of_judge

        return of_judge(self)

    @property
    def n_layers(self) -> int:
        """Number of blocks L; the layer axis has L + 1 entries."""
        return int(self.bridge.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names along the layer axis: ``embed, 1, ..., L``."""
        return ("embed", *(str(layer) for layer in range(1, self.n_layers + 1)))

    @property
    def dtype(self) -> str:
        """Data type of the weights, for example ``float32``."""
        return str(self.bridge.original_model.dtype).removeprefix("torch.")

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model takes; None where it sets no limit."""
        config = self.bridge.original_model.config
        # Multimodal models keep their language model's settings one level down.
        limit = getattr(getattr(config, "text_config", None) or config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def render(self, item: Item) -> Prompt:
        """The prompt of one item, without the tokens with which every label starts."""
        return render(self.tokenizer, self.template, item, self.scale)

    @property
    def kernel(self) -> str:
        """What computes the model's own attention in packed prompts: ``sdpa``, or ``eager`` where SDPA cannot."""
        fast = getattr(self.bridge.original_model, "_supports_sdpa", False) and self.attention != "eager"
        return "sdpa" if fast else "eager"

    def prompts(self, items: Items | Sequence[Item]) -> list[Prompt]:
        """Prompts of all items, ready to be read at their last token; see ``prompt_table``."""
        return list(self._prompts(items))

    def prompt_table(self, items: Items | Sequence[Item], *, spans: bool = False) -> PromptTable:
        """Token ids of all prompts, in flat arrays: one prompt an item, or two where pairs are judged.

        Where every label starts with the same tokens, these are appended here. The score tokens are found
        behind the first prompt; every prompt that ends in other text is checked against them.

        Args:
            items: The items.
            spans: Also find the tokens of each item's ``response``.

        Raises:
            TemplateError: The template does not fit an item.
            ScoreTokenError: The scale cannot be read behind a prompt.
            ItemError: The response of an item is not in its prompt.
        """
        values, lengths, where = array("i"), array("q"), array("q")
        first: Prompt | None = None
        parts: list[tuple[Span, ...]] = []
        forged: dict[str, str] = {}
        of_choices: list[list[int]] | None = None if self.scale.has_labels else []
        for prompt, (_, item) in zip(self._prompts(items), self._shown(items), strict=True):
            if of_choices is not None:
                prompt, found = self._choices(prompt, item)
                of_choices += found
            first = first or prompt
            values.extend(prompt.token_ids)
            lengths.append(len(prompt.token_ids))
            if prompt.token_parts is not None:
                parts.append(prompt.token_parts)
            if prompt.forged:
                forged.setdefault(item.id, prompt.forged)
            if spans:
                where.extend(response_span(prompt, item))
        assert first is not None  # there are no empty Items
        pairs = self.template.pair is not None
        n_prompts = len(lengths)
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, dtype=np.int64))])
        return PromptTable(
            tokens=TokenTable(np.frombuffer(values, dtype=np.int32), offsets),
            item=np.arange(n_prompts) // (2 if pairs else 1),
            swapped=np.arange(n_prompts) % 2 == 1 if pairs else np.zeros(n_prompts, dtype=bool),
            spans=np.frombuffer(where, dtype=np.int64).reshape(-1, 2) if spans else None,
            first=first,
            choices=None if of_choices is None else ChoiceTable.of(items, TokenTable.from_lists(of_choices)),
            parts=PromptParts.from_lists(parts) if len(parts) == n_prompts else None,
            forged=forged,
        )

    def _choices(self, prompt: Prompt, item: Item) -> tuple[Prompt, list[list[int]]]:
        """The prompt of an item, and the tokens of its choices."""
        if not item.choices:
            raise ItemError(f"item {item.id!r} has no choices; give it some, or the judge a scale such as 1..5")
        separator = self.template.answer_separator
        if self.condition == "reasoning":
            tokens = choices_after_reasoning(
                self.tokenizer, item, separator, control_tokens=self.template.control_tokens
            )
        else:
            prompt, tokens = choices_behind(self.tokenizer, prompt, item, separator)
        if item.is_free_text:
            return prompt, tokens  # nothing is chosen: the likelihood of the whole text is what counts
        # What a model writes itself starts where the prompt ends, not behind what the choices start in.
        lead, tokens = told_apart(tokens, lead=self.condition == "direct")
        return replace(prompt, token_ids=(*prompt.token_ids, *lead)), tokens

    def _shown(self, items: Items | Sequence[Item]) -> Iterator[tuple[Item, Item]]:
        """Items as their prompts show them, behind what they are: pairs once in each order."""
        for item in items:
            yield item, item
            if self.template.pair is not None:
                yield item, swapped(item, self.template.pair)

    def _prompts(self, items: Items | Sequence[Item]) -> Iterator[Prompt]:
        direct = self.condition == "direct"
        if not self.scale.has_labels:
            self._set_tokens(NO_TOKENS)
            yield from render_all(self.tokenizer, self.template, items, self.scale)
            return
        tokens = None if direct else self._set_tokens(generated_tokens(self.tokenizer, self.scale))
        separator = self.template.answer_separator
        tails: set[str] = set()
        shown = (item for _, item in self._shown(items))
        rendered = render_all(self.tokenizer, self.template, shown, self.scale)
        for prompt, (item, _) in zip(rendered, self._shown(items), strict=True):
            if direct and prompt.tail not in tails:
                tails.add(prompt.tail)
                found = find_score_tokens(self.tokenizer, prompt, self.scale, separator)
                if tokens is None:
                    tokens = self._set_tokens(found)
                elif found.to_dict() != tokens.to_dict():
                    raise ScoreTokenError(
                        f"behind item {item.id!r} the labels are other tokens ({found.spellings}) than behind the "
                        f"first item ({tokens.spellings}); end the template in fixed text"
                    )
            lead = self.score_tokens.lead_ids
            # The tokens are those of the separator where there is one; a space alone may decode to nothing.
            text = (separator or self.tokenizer.decode(list(lead))) if lead else ""
            yield replace(prompt, text=prompt.text + text, token_ids=prompt.token_ids + lead)

    def _set_tokens(self, tokens: ScoreTokens) -> ScoreTokens:
        self._tokens = tokens
        self.__dict__.pop("readout", None)
        return tokens

    @property
    def score_tokens(self) -> ScoreTokens:
        """Ids of the labels' tokens; known once prompts have been rendered.

        Raises:
            ScoreTokenError: No prompt has been rendered yet.
        """
        if self._tokens is None:
            raise ScoreTokenError("the score tokens depend on the prompt; call judge.prompts(items) first")
        return self._tokens

    @cached_property
    def readout(self) -> Readout:
        """Final norm, output rows of the score tokens, logit scale and soft-cap."""
        from probes.capturing.readout import extract_readout

        return extract_readout(self.bridge, self.score_tokens)

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 over vocabulary, merges and special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = self.tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        # How the last call padded or truncated is no part of the tokenizer.
        vocabulary = {key: value for key, value in state.items() if key not in {"padding", "truncation"}}
        parts = [json.dumps(vocabulary, sort_keys=True), str(self.tokenizer.special_tokens_map)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def weights_hash_v1(self) -> str:
        """Hash that versions up to 0.1 gave the model; empty where it is not known."""
        from probes.models import first_hash

        return first_hash(self.bridge, self.weights_hash)

    @property
    def chat_template_hash(self) -> str:
        """SHA-256 of the tokenizer's chat template; of the empty text where it has none."""
        text = getattr(self.tokenizer, "chat_template", None) or ""
        return hashlib.sha256(
            (text if isinstance(text, str) else json.dumps(text, sort_keys=True)).encode()
        ).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Everything that the judge's hash covers, JSON-ready."""
        return {
            "weights": self.weights_hash,
            "tokenizer": self.tokenizer_hash,
            "chat_template": self.chat_template_hash,
            "template": self.template.to_dict(),
            "scale": self.scale.to_dict(),
            "score_tokens": self.score_tokens.to_dict(),
            "condition": self.condition,
            "decoding": self.decoding.to_dict() if self.decoding else None,
            "dtype": self.dtype,
            "capture_mode": CAPTURE_MODE,
            # Only with choices, which leaves the hashes of all other judges as they are.
            **({} if self.scale.has_labels else {"choice_tokens": CHOICE_TOKENS}),
        }

    def digest(self) -> str:
        """SHA-256 of ``describe()``: runs of equal digest may be resumed, extended and merged."""
        return judge_digest(self.describe())

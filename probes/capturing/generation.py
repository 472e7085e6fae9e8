"""Generated answers: decode until the score is certain, and read the states of the position that emitted it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from probes.answers import LONGEST_CHARACTER, AnswerFinder
from probes.capturing.decoders import Decoder, PackedDecoder, PlainDecoder, Step
from probes.capturing.results import ChoiceRow, PassResult, joined, picked
from probes.capturing.runner import PassRows, Runner
from probes.capturing.support import Way, deviation, in_halves, length_class, reset_positions
from probes.locate import Located, ScoreFinder, running_text
from probes.store.format import Status
from probes.token_table import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from probes.capturing.job import Job

# From the fastest to the plainest: all answers of a pass together, one at a time with the model's own cache, or
# every step from the start.
_MODES = ("packed", "cached", "recomputed")


@dataclass(eq=False)
class Answer:
    """An answer in the making.

    Attributes:
        prompt: Prompt number.
        finder: Looks for the score.
        random: Random numbers of this answer.
        tokens: What was generated, without the token that ends it.
        read: States, logits and mass at steps that may have emitted the score.
        located: The score, once the answer is finished.
    """

    prompt: int
    finder: ScoreFinder | AnswerFinder
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    read: dict[int, PassResult] = field(default_factory=dict)
    located: Located | None = None

    def take(self, token: int, ends: set[int]) -> bool:
        """Append a token; whether the answer goes on."""
        if token in ends:
            return False
        self.tokens.append(token)
        return not self.finder.feed(token)

    def forget_ruled_out(self) -> None:
        """Drop what was read at steps that cannot be the score any more."""
        self.read = {step: result for step, result in self.read.items() if self.finder.may_be_score(step)}


class Generator:
    """Runs the passes of a plan for a judge that generates its answers.

    Args:
        job: Judge, prompts and plan.
        runner: Knows how passes are laid out.
    """

    def __init__(self, job: Job, runner: Runner) -> None:
        assert job.judge.decoding is not None
        self._job = job
        self._runner = runner
        self._decoding = job.judge.decoding
        tokens = job.judge.score_tokens
        self._spellings = dict(zip(tokens.token_ids.tolist(), tokens.label_index.tolist(), strict=True))
        self._text = running_text(job.judge.tokenizer)
        self._ends = end_tokens(job.judge)
        self._length_class = length_class(job.judge.bridge)
        usual = "packed" if runner.way.layout == "packed" else "cached"
        self._mode = runner.notes.get("answers", usual)
        self._checked = "answers" in runner.notes
        # An answer of the last batch that went on longest, its last step, and what was read there.
        self._witness: tuple[Answer, int, PassResult]

    def run_shard(self, shard: int) -> Iterator[PassRows]:
        """The passes of a shard, one after the other."""
        self._runner.computed = []
        self._runner.engine.forget()
        for number in self._job.plan.shards[shard]:
            rows = self._job.plan.passes[number]
            answers = self._answers(rows)
            if not self._checked:
                answers = self._check(rows, answers)
            yield self._result(rows, answers)

    def _answers(self, rows: Sequence[int]) -> list[Answer]:
        """Answers to some prompts; where they do not fit into memory, to half of them at a time."""
        return in_halves(self._decode, rows, "a batch of answers")

    def _decode(self, rows: Sequence[int]) -> list[Answer]:
        judge, engine, samples = self._job.judge, self._runner.engine, self._decoding.samples
        reset_positions(judge.bridge)
        answers = {row: [self._new(row, sample) for sample in range(samples)] for row in rows}
        together = [row for row in rows if self._mode == "packed" and not self._changes_class(row)]
        if together:
            prompts = [self._job.table.tokens[row] for row in together]
            decoder = PackedDecoder(engine, prompts, samples, judge.kernel)
            self._finish(decoder, [answer for row in together for answer in answers[row]])
        for row in rows:
            if row in together:
                continue
            # Position embeddings that change with length would not fit those in a cache.
            cached = self._mode != "recomputed" and not self._changes_class(row)
            for answer in answers[row]:
                self._finish(PlainDecoder(engine, self._job.table.tokens[row], cached=cached), [answer])
        return [answer for row in rows for answer in answers[row]]

    def _changes_class(self, row: int) -> bool:
        """Whether a prompt with its answer may get other position embeddings than the prompt alone."""
        length = len(self._job.table.tokens[row])
        return self._length_class(length) != self._length_class(length + self._decoding.max_new_tokens)

    def _new(self, prompt: int, sample: int) -> Answer:
        judge, item = self._job.judge, self._job.items[int(self._job.table.item[prompt])]
        # The two orders of a pair are two prompts of one item, and their answers are independent.
        key = f"{item.id}\0swapped" if self._job.table.swapped[prompt] else item.id
        prefill = judge.template.render_prefill(item, judge.scale).text
        finder: ScoreFinder | AnswerFinder
        if judge.scale.has_labels:
            finder = ScoreFinder(self._decoding.rule, judge.scale, self._spellings, self._text, prefill)
        else:
            finder = AnswerFinder(self._decoding.rule, self._text, self._decoding.stop)
        return Answer(prompt, finder, self._decoding.generator(key, sample))

    def _finish(self, decoder: Decoder, answers: Sequence[Answer]) -> None:
        """Decode answers together, until each is certain of its score, ends, or is as long as allowed."""
        going = np.ones(len(answers), dtype=bool)
        batch = list(answers)
        step = decoder.start()
        for number in range(self._decoding.max_new_tokens):
            tokens = self._choose(step, batch)
            self._read(step, batch, tokens, going, number)
            if not self._checked:
                first = int(np.flatnonzero(going)[0])
                self._witness = batch[first], number, self._rows(step, [first])[0]
            for row in np.flatnonzero(going):
                going[row] = batch[row].take(int(tokens[row]), self._ends)
                batch[row].forget_ruled_out()
            if not going.any() or number + 1 == self._decoding.max_new_tokens:
                break
            # Moving what is kept costs as much as a few steps, so it waits until a quarter is done.
            if going.mean() <= 0.75:
                decoder.keep(going)
                tokens, batch = tokens[going], [answer for answer, goes in zip(batch, going, strict=True) if goes]
                going = np.ones(len(batch), dtype=bool)
            step = decoder.step(tokens)
        for answer in answers:
            answer.located = answer.finder.result()

    def _choose(self, step: Step, batch: Sequence[Answer]) -> Int[np.ndarray, " answer"]:
        """The next token of every answer: the likeliest, or one drawn at the temperature."""
        if self._decoding.temperature == 0:
            return np.asarray(step.logits.argmax(-1).cpu())
        chance = (step.logits.double() / self._decoding.temperature).softmax(-1).cumsum(-1)
        draw = torch.tensor([answer.random.random() for answer in batch], dtype=chance.dtype, device=chance.device)
        # The total differs from one by rounding.
        chosen = torch.searchsorted(chance, (draw * chance[:, -1])[:, None], right=True)[:, 0]
        return np.asarray(chosen.clamp(max=chance.shape[1] - 1).cpu())

    def _read(
        self, step: Step, batch: Sequence[Answer], tokens: Int[np.ndarray, " answer"], going: Any, number: int
    ) -> None:
        """Keep what emitted a token that may be the score."""
        rows = [int(row) for row in np.flatnonzero(going) if int(tokens[row]) in self._spellings]
        if not rows:
            return
        for row, result in zip(rows, self._rows(step, rows), strict=True):
            batch[row].read[number] = result

    def _rows(self, step: Step, rows: Sequence[int]) -> list[PassResult]:
        """What emits the next token of some answers, on the host, each by itself."""
        engine = self._runner.engine
        with torch.inference_mode():
            residual = step.residual[rows]
            found = engine.of_score_tokens(step.logits[rows]) | engine.over_vocabulary(residual)
            arrays = {name: values.float().cpu().numpy() for name, values in found.items()}
            states = residual.float().cpu().numpy()
        logits, mass = arrays.pop("token_logits"), arrays.pop("final_mass")
        return [
            # Copies, since views would hold on to the states of all.
            PassResult(
                states[k : k + 1].copy(),
                logits[k : k + 1],
                mass[k : k + 1],
                {n: v[k : k + 1] for n, v in arrays.items()},
            )
            for k in range(len(rows))
        ]

    def _result(self, rows: Sequence[int], answers: Sequence[Answer]) -> PassRows:
        judge, lengths = self._job.judge, self._job.table.tokens.lengths
        if not judge.scale.has_labels:
            return self._choices(rows, answers)
        results, status, position = [], [], []
        for answer in answers:
            located = answer.located
            results.append(self._nothing() if located is None else answer.read[located.step])
            status.append(Status.NO_SCORE if located is None else Status.OK)
            last = int(lengths[answer.prompt]) - 1
            position.append(last if located is None else last + located.step)
        return PassRows(
            rows,
            joined(results),
            np.array(status, dtype=np.uint8),
            np.array(position, dtype=np.int32),
            [np.array(answer.tokens, dtype=np.int32) for answer in answers],
            [str(judge.tokenizer.decode(answer.tokens, skip_special_tokens=True)) for answer in answers],
        )

    def _choices(self, rows: Sequence[int], answers: Sequence[Answer]) -> PassRows:
        """The choices of every item: behind its prompt, or behind the reasoning that leads to its answer."""
        judge, prompts = self._job.judge, self._job.table.tokens
        behind: dict[int, np.ndarray] = {}
        for answer in answers:
            assert isinstance(answer.finder, AnswerFinder)
            cut = answer.finder.anchored if judge.condition == "reasoning" else 0
            if cut is not None:
                behind[answer.prompt] = np.append(prompts[answer.prompt], answer.tokens[:cut]).astype(np.int32)
        read: dict[int, PassResult] = {}
        if behind:
            found = self._runner.read_choices(list(behind), list(behind.values()))
            read = {row: picked(found, [number]) for number, row in enumerate(behind)}
        return PassRows(
            rows,
            joined([read[row] if row in read else self._no_choices(row) for row in rows]),
            np.array([Status.OK if row in read else Status.NO_SCORE for row in rows], dtype=np.uint8),
            np.array([len(behind.get(row, prompts[row])) - 1 for row in rows], dtype=np.int32),
            [np.array(answer.tokens, dtype=np.int32) for answer in answers],
            [self._written(answer) for answer in answers],
        )

    def _written(self, answer: Answer) -> str:
        """The text of an answer, as it stands behind the prompt as it was rendered.

        Choices may change the last tokens of a prompt, a space mostly. These are cut off, and answers start with them.
        """
        judge, table = self._job.judge, self._job.table
        special = set(judge.tokenizer.all_special_ids)
        rendered = judge.render(self._job.items[int(table.item[answer.prompt])]).token_ids
        kept = table.tokens[answer.prompt].tolist()
        if judge.condition == "reasoning" or set(rendered) <= special:  # nothing was cut, or nothing is in front
            return str(judge.tokenizer.decode(answer.tokens, skip_special_tokens=True))
        # Some tokens more, so that no character is cut in two.
        start = max(0, common_prefix(np.array(rendered), np.array(kept)) - LONGEST_CHARACTER)
        whole = self._text([token for token in kept[start:] + answer.tokens if token not in special])
        prompt = self._text([token for token in rendered[start:] if token not in special])
        same = zip(whole, prompt + judge.template.answer_separator, strict=False)
        return whole[len(list(takewhile(lambda pair: pair[0] == pair[1], same))) :]

    def _no_choices(self, row: int) -> PassResult:
        """The row of an item whose reasoning led to no answer."""
        choices = self._job.table.choices
        assert choices is not None
        n_tokens = choices.n_tokens[choices.rows([row])]
        shape = len(n_tokens), len(self._job.judge.layers)
        logprob = {lens: np.full(shape, np.nan, dtype=np.float32) for lens in self._job.settings.lenses}
        return replace(self._nothing(), choices=(ChoiceRow(logprob, n_tokens, 0.0, 0.0),))

    def _nothing(self) -> PassResult:
        """The row of an answer without a score."""
        judge, extras = self._job.judge, self._job.settings.extras
        layers = len(judge.layers)
        names = [name for name, wanted in (("scale_mass", extras.mass), ("entropy", extras.entropy)) if wanted]

        def blank(*shape: int) -> Float[np.ndarray, "row *rest"]:
            return np.full((1, *shape), np.nan, dtype=np.float32)

        return PassResult(
            blank(layers, judge.d_model),
            blank(len(judge.readout.token_ids)),
            blank(),
            {name: blank(layers) for name in names},
        )

    def _check(self, rows: Sequence[int], answers: list[Answer]) -> list[Answer]:
        """Compute the last step of an answer again in one pass; where it differs, answer in a plainer way."""
        while self._mode != "recomputed":
            answer, step, ours = self._witness
            if step == 0:
                return answers  # what emits the first token is no decoding yet; a later pass goes further
            whole = np.append(self._job.table.tokens[answer.prompt], answer.tokens[:step]).astype(np.int32)
            reset_positions(self._job.judge.bridge)
            with self._runner.going(Way("single", self._runner.way.attention)):
                reference = self._runner.engine.run_batched([whole]).result()
            found = deviation(ours, reference, self._job.judge.readout)
            if found.within(self._job.judge.dtype):
                break
            plainer = _MODES[_MODES.index(self._mode) + 1]
            self._runner.fall_back(
                f"{self._mode} answers differ by {found.residual:.2g} from what one pass gives", answers=plainer
            )
            self._mode = plainer
            answers = self._answers(rows)
        self._checked = True
        return answers


def end_tokens(judge: Any) -> set[int]:
    """Tokens that end an answer, as the model and its tokenizer declare them."""
    model = judge.bridge.original_model
    declared = [getattr(model.config, "eos_token_id", None), judge.tokenizer.eos_token_id]
    declared.append(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    ends: set[int] = set()
    for entry in declared:
        ends |= set(entry) if isinstance(entry, (list, tuple)) else set() if entry is None else {int(entry)}
    return ends

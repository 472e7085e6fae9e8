"""Captures of the embedded judge, against bare passes of the same tokens and against what else people run.

`python -m benchmarks.capture` measures everything (half an hour on two cores), `--quick` a small part of it, to
see that it works. Run it alone: two busy torch processes on two cores are many times slower than one.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

import probes
from benchmarks import baselines, prompt_sets
from benchmarks.baselines import Found
from benchmarks.meter import Meter, matrix_rate, pass_operations
from probes.capturing.support import RESIDUAL_TOLERANCE, logit_tolerance
from probes.models import convert_gguf, embedded_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BATCH_TOKENS = 4096
OURS, BARE, SAME, LAGER = "ours", "bare, one by one", "bare, same tokens", "LAGER's way"
LENS, HOOKS, PLAIN = "TransformerLens logit_lens", "TransformerLens hooks", "plain batches"


@dataclass(frozen=True)
class Measure:
    """A ratio of two rows' times, or of a part of one, and what it must reach."""

    prompt_set: str
    over: str
    under: str
    target: float
    at_least: bool = False


MEASURES = (
    Measure("A", LAGER, OURS, 28, at_least=True),
    Measure("A", LENS, OURS, 8, at_least=True),
    Measure("A", OURS, SAME, 1.15),
    Measure("B", OURS, BARE, 1.08),
    Measure("C", PLAIN, OURS, 3.5, at_least=True),
)
OUTSIDE_TARGET = 0.04
# Times of the baselines over bare passes one by one, as first measured. One that is far from it is not what it was
# (another version, another machine), and ratios to it would say nothing about captures.
EXPECTED = {LAGER: 5.7, LENS: 1.6, HOOKS: 1.3}
EXPECTED_WITHIN = 0.2


@dataclass
class Row:
    """A way to compute a prompt set, and what was measured of it.

    Attributes:
        run: Does it; returns what it read, or the run file that holds it.
        slow: Takes part in the first rounds only.
        meters: One a round.
        residual: Largest deviation of residuals from one-by-one passes, relative to the layer's norm.
        logits: Largest absolute deviation of ``norm`` logits.
        deviates: Whether either exceeds the tolerances.
    """

    run: Callable[[], Found | Path]
    slow: bool = False
    meters: list[Meter] = field(default_factory=list)
    residual: float | None = None
    logits: float | None = None
    deviates: bool = False

    def seconds(self, *, check: bool = False) -> float:
        """Median of the rounds, with or without the check of a capture's first pass."""
        return median(meter.total if check else meter.unchecked for meter in self.meters)

    def compare(self, found: Found | Path, reference: Found, rows: Sequence[int]) -> None:
        """Keep the largest deviation of any round."""
        if isinstance(found, Path):
            with probes.open_run(found) as run:
                found = Found(run.residual(), run.score_logits("norm"))
        if found.residual is not None and reference.residual is not None:
            ours = found.residual[rows]
            wanted = reference.residual[:, : ours.shape[1]]
            relative = np.linalg.norm(ours - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
            self.residual = float(np.maximum(self.residual or 0.0, relative.max()))  # NaN stays NaN
            self.deviates |= not relative.max() <= RESIDUAL_TOLERANCE
        if found.norm_logits is not None and reference.norm_logits is not None:
            ours = found.norm_logits[rows]
            wanted = reference.norm_logits[:, -ours.shape[1] :]
            difference = float(np.abs(ours - wanted).max())
            self.logits = float(np.maximum(self.logits or 0.0, difference))
            self.deviates |= not difference <= logit_tolerance("float32", float(np.abs(wanted).max()))


class Bench:
    """One prompt set under all its rows.

    Args:
        name: A, B or C.
        prompt_set: Its items.
        base: The judge whose model is used.
        plain: The same model without a bridge.
        folder: Where run files go.
        quick: Whether the set is too small for its ratios to be judged.
    """

    def __init__(
        self, name: str, prompt_set: prompt_sets.PromptSet, base: probes.Judge, plain: Any, folder: Path, *, quick: bool
    ) -> None:
        self.name, self.title, self.items, self.quick = name, prompt_set.title, prompt_set.items, quick
        self.judge, self.plain, self.folder = prompt_set.judge(base), plain, folder
        self.prompts = [prompt.token_ids for prompt in self.judge.prompts(self.items)]
        self.tokens = sum(map(len, self.prompts))
        self.shared_tokens, self.pairs = prompt_sets.shared_once(self.prompts)
        self.shapes: list[tuple[int, int]] = []
        # One by one, hundreds of words take longer than everything else: forty of them must do to compare.
        self.compared = range(0, len(self.prompts), max(1, len(self.prompts) // 40))
        readout = self.judge.readout
        bridge = self.judge.bridge
        self.rows = {OURS: Row(self.capture)}
        if name == "C":
            self.rows[PLAIN] = Row(lambda: baselines.padded(plain, self.prompts, readout, BATCH_TOKENS), slow=True)
        else:
            self.rows[BARE] = Row(lambda: baselines.bare(plain, self.prompts, readout), slow=name == "A")
        if name == "A":
            self.rows[SAME] = Row(lambda: baselines.bare_passes(plain, self.shapes))
            self.rows[HOOKS] = Row(lambda: baselines.hooks(bridge, self.prompts, readout), slow=True)
            self.rows[LENS] = Row(lambda: baselines.transformer_lens(bridge, self.prompts, readout), slow=True)
            self.rows[LAGER] = Row(lambda: baselines.lager(plain, self.prompts, readout), slow=True)

    def capture(self) -> Path:
        """What this benchmark is about, end to end, from items to a closed run file."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "run.h5"
        probes.capture(self.judge, self.items, path, batch_tokens=BATCH_TOKENS, show_progress=False).close()
        return path

    def prepare(self) -> None:
        """Warm up, learn which passes a capture runs, and compute the reference."""
        meter = Meter(self.judge.bridge)
        meter.time(self.capture)
        self.shapes = bare_shapes(meter.shapes, self.shared_tokens)
        prompts = [self.prompts[row] for row in self.compared]
        self.reference = baselines.padded(self.plain, prompts, self.judge.readout, 1)

    def round(self, number: int, slow_rounds: int) -> None:
        """Time every row once, so that a slow spell of the machine hits all alike."""
        for name, row in self.rows.items():
            if row.slow and number >= slow_rounds:
                continue
            meter = Meter(self.judge.bridge)
            found = meter.time(row.run)
            row.meters.append(meter)
            row.compare(found, self.reference, self.compared)
            print(f"{self.name}, round {number + 1}: {name}, {meter.total:.1f} s", file=sys.stderr, flush=True)

    def ratio(self, measure: Measure, *, check: bool = False) -> float:
        """A measure's value."""
        return self.rows[measure.over].seconds(check=check) / self.rows[measure.under].seconds(check=check)

    def validity(self, name: str) -> str:
        """Whether a row may stand in a ratio: empty if so, else the word to print instead."""
        if self.rows[name].deviates:
            return "DEVIATES"
        if name in EXPECTED and not self.quick:
            off = self.rows[name].seconds() / self.rows[BARE].seconds() / EXPECTED[name] - 1
            return "" if abs(off) <= EXPECTED_WITHIN else "INVALID"
        return ""


def bare_shapes(captured: list[tuple[int, int]], shared_tokens: int) -> list[tuple[int, int]]:
    """Rows and tokens of bare passes over what is left of a prompt set when every common beginning counts once.

    Args:
        captured: Passes of the capture; taken over where they compute what is left and (almost) nothing else.
        shared_tokens: How many tokens are left.
    """
    if sum(rows * length for rows, length in captured) <= 1.01 * shared_tokens:
        return captured
    whole, rest = divmod(shared_tokens, BATCH_TOKENS)
    return [(1, BATCH_TOKENS)] * whole + [(1, rest)] * bool(rest)


def print_rows(bench: Bench, rate: float) -> None:
    saved = f"{bench.tokens:,} tokens one by one, {bench.shared_tokens:,} with every common beginning once"
    print(f"\n{bench.title}: {len(bench.prompts)} prompts, {saved}")
    print(f"{'':28}{'seconds':>9}{'/ bare':>8}{'rounds':>8}{'residual':>10}{'logits':>10}")
    for name, row in bench.rows.items():
        bare = f"{row.seconds() / bench.rows[BARE].seconds():.2f}" if BARE in bench.rows else ""
        deviations = "".join(f"{'' if value is None else f'{value:.1e}':>10}" for value in (row.residual, row.logits))
        mark = bench.validity(name)
        print(f"{name:28}{row.seconds():9.2f}{bare:>8}{len(row.meters):8}{deviations}  {mark}")
    ours = bench.rows[OURS]
    passes = ours.meters[-1].shapes
    computed = sum(rows * length for rows, length in passes)
    forward = median(meter.forward for meter in ours.meters)
    share = pass_operations(bench.plain, bench.shared_tokens, bench.pairs) / forward / rate
    print(f"{'the check of ours, besides':28}{median(meter.check for meter in ours.meters):9.2f}")
    print(
        f"ours computes {computed:,} tokens in {len(passes)} passes; what is needed of them, "
        f"at {share:.0%} of the rate of a matrix product"
    )


def print_measures(benches: Sequence[Bench]) -> None:
    print(f"\n{'':60}{'target':>10}{'measured':>10}{'with check':>12}")

    def line(text: str, target: str, values: Sequence[str], passed: bool | None) -> None:
        verdict = "" if passed is None or bench.quick else "pass" if passed else "FAIL"
        print(f"{text:60}{target:>10}{values[0]:>10}{values[1]:>12}  {verdict}")

    for bench in benches:
        for measure in (m for m in MEASURES if m.prompt_set == bench.name):
            text = f"{bench.name}: {measure.over} / {measure.under}"
            target = f"{'>=' if measure.at_least else '<='} {measure.target:g}"
            if bad := bench.validity(measure.over) or bench.validity(measure.under):
                line(text, target, (bad, ""), None if bad == "INVALID" else False)
                continue
            value, with_check = bench.ratio(measure), bench.ratio(measure, check=True)
            passed = value >= measure.target if measure.at_least else value <= measure.target
            line(text, target, (f"{value:.2f}", f"{with_check:.2f}"), passed)
        outside = median(meter.outside for meter in bench.rows[OURS].meters)
        text = f"{bench.name}: ours, share of time outside the model's forward"
        line(text, f"<= {OUTSIDE_TARGET:.0%}", (f"{outside:.1%}", ""), outside <= OUTSIDE_TARGET)
        for name in (name for name in EXPECTED if name in bench.rows):
            value = bench.rows[name].seconds() / bench.rows[BARE].seconds()
            text = f"{bench.name}: {name} / {BARE}"
            line(text, f"~ {EXPECTED[name]}", (f"{value:.2f}", ""), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="ABC", help="prompt sets to measure, such as AB")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the fast rows")
    parser.add_argument("--slow-rounds", type=int, default=2, help="rounds of the rows that take minutes")
    parser.add_argument("--quick", action="store_true", help="few prompts and one round; ratios mean little then")
    parser.add_argument("--data", type=Path, default=prompt_sets.DATA, help="folder with items/summeval.jsonl")
    options = parser.parse_args()
    rounds, slow_rounds = (1, 1) if options.quick else (options.rounds, options.slow_rounds)

    transformers.utils.logging.disable_progress_bar()
    base = probes.Judge.load("smollm2-135m", dtype="float32")
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        convert_gguf(embedded_gguf()), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    makers: dict[str, Callable[..., prompt_sets.PromptSet]] = {
        "A": functools.partial(prompt_sets.summaries, options.data),
        "B": prompt_sets.strangers,
        "C": prompt_sets.words,
    }
    with tempfile.TemporaryDirectory() as folder:
        made = {name: makers[name](quick=options.quick) for name in options.sets}
        benches = [
            Bench(name, prompt_set, base, plain, Path(folder), quick=options.quick) for name, prompt_set in made.items()
        ]
        rates = measure(benches, rounds, slow_rounds)
    rate = median(rates)
    print(
        f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a float32 matrix product of 2,048^3; "
        f"medians of the rounds"
    )
    for bench in benches:
        print_rows(bench, rate)
    print_measures(benches)
    print(
        "\nSeconds and measured ratios are without the check of a capture's first pass, which has a fixed cost; "
        "`with check` is the whole call.\nresidual, logits: largest deviation from one-by-one passes (C: of forty "
        "prompts), relative to the layer's norm and absolute."
    )


def measure(benches: Sequence[Bench], rounds: int, slow_rounds: int) -> list[float]:
    """Fill the rows of the benches, in turns, and return the machine's rates in between."""
    for bench in benches:
        bench.prepare()
    matrix_rate()
    rates = []
    for number in range(rounds):
        rates += [matrix_rate() for _ in range(3)]
        for bench in benches:
            bench.round(number, slow_rounds)
    return rates


if __name__ == "__main__":
    main()

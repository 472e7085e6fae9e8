"""Capture against bare forward passes of the same prompts, on the embedded judge.

Baseline: plain transformers, one prompt a pass, SDPA attention, logits of the last position only, nothing kept.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import transformers

import probes
from probes.models import convert_gguf, embedded_gguf


def main(n_words: int = 48) -> None:
    judge = probes.Judge.load("smollm2-135m", template="words", human_range="-4..4", dtype="float32")
    items = probes.vader_words(n_words)
    prompts = [torch.tensor([prompt.token_ids]) for prompt in judge.prompts(items)]
    plain = transformers.AutoModelForCausalLM.from_pretrained(convert_gguf(embedded_gguf()), dtype=torch.float32).eval()

    def bare() -> None:
        with torch.inference_mode():
            for prompt in prompts:
                plain(prompt, logits_to_keep=1, use_cache=False)

    def capture(**options: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            probes.capture(judge, items, Path(folder) / "run.h5", show_progress=False, **options).close()

    contestants = {
        "bare passes (baseline)": bare,
        "capture, prompts whole": lambda: capture(share_prefix=False),
        "capture, shared prefix": capture,
    }
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(3):  # interleaved, so that a slow spell of the machine hits all alike
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    tokens = sum(prompt.shape[1] for prompt in prompts)
    print(f"{n_words} prompts, {tokens:,} tokens; best of 3")
    for name, seconds in best.items():
        print(f"{name:24} {seconds:7.1f} s   {seconds / best['bare passes (baseline)']:5.2f} x")


if __name__ == "__main__":
    main()

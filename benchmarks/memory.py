"""Peak memory of a capture of ten times the items, which must hardly be more: each in a process of its own.

`python -m benchmarks.memory` takes a random model whose states weigh much and cost little; `--model smollm2-135m`
takes the embedded judge.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import probes

TARGET = 1.05
_SHORT = probes.Template("short", user="Rate how positive it is, from 1 to 5: {{ response }}", prefill="Score:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="random, or what a judge is loaded from")
    parser.add_argument("--items", type=int, default=300, help="number of items, of which ten times as many follow")
    parser.add_argument("--only", action="store_true", help="capture that many items in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.model, options.items)))
        return
    few, many = (in_a_process(options.model, n) for n in (options.items, 10 * options.items))
    print(f"{options.model}: {'items':>8}{'loaded':>10}{'peak':>10}  MB")
    for found in (few, many):
        print(f"{'':{len(options.model)}}  {found['items']:8,}{found['loaded']:10,.0f}{found['peak']:10,.0f}")
    ratio = many["peak"] / few["peak"]
    growth = 1000 * (many["peak"] - few["peak"]) / (many["items"] - few["items"])
    verdict = "pass" if ratio <= TARGET else "FAIL"
    growth_text = f"{growth:.1f} kB an item, of {many['state']:.0f} kB of states"
    print(f"ratio {ratio:.3f}, target <= {TARGET}: {verdict}; {growth_text}")


def in_a_process(model: str, n_items: int) -> dict[str, float]:
    """Peak of a process that captures some items and nothing else."""
    command = [sys.executable, "-m", "benchmarks.memory", "--only", "--model", model, "--items", str(n_items)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(model: str, n_items: int) -> dict[str, float]:
    """Capture some items and return the process's peak before and after, in MB."""
    source = random_model() if model == "random" else {"model": model, "dtype": "float32"}
    judge = probes.Judge.load(**source, template=_SHORT, human_range="-4..4")
    loaded = peak()
    with tempfile.TemporaryDirectory() as folder:
        probes.capture(judge, probes.vader_words(n_items), Path(folder) / "run.h5", show_progress=False).close()
    state = 4 * len(judge.layers) * judge.d_model / 1000
    return {"items": n_items, "loaded": loaded, "peak": peak(), "state": state}


def random_model() -> dict[str, Any]:
    """A model and its tokenizer: many thin blocks, so that a capture which kept its states would show."""
    import transformers

    from tests import tiny

    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=64,
        num_hidden_layers=32,
        num_attention_heads=8,
        num_key_value_heads=1,
        vocab_size=400,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return {"model": transformers.LlamaForCausalLM(config).eval(), "tokenizer": tiny.tokenizer()}


def peak() -> float:
    """Most resident memory that this process has had, in MB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()

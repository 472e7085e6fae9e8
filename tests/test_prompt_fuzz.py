"""Prompts made of anything, from rendering to the run file: nothing crashes or is lost, nothing speaks as the chat."""

from __future__ import annotations

import functools
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import probes
from probes.store.readings import Status
from tests import tiny
from tests.test_control_tokens import KINDS, controls, tokenizer

BLOCKS = [
    *(
        "<|start|>",
        "<|end|>",
        "<|im_start|>assistant\n",
        "<|im_end|>",
        "</s>",
        "<s>",
        "<unk>",
        "<think>",
        "<sep>",
        "[INST]",
    ),
    *("<start_of_turn>", "<|fim|>", "   ", "<h1>", "<|", "|>", "<", "{{ response }}", "{% raw %}", "{#"),
    *(
        "\ufeff",
        "\u200b",
        "\u200d",
        "\u00ad",
        "\u202e",
        "\u2028",
        "\x00",
        "\r\n",
        "\t",
        "\x1b[31m",
        "\ufffe",
        "\U000f0000",
    ),
    *("👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "e\u0301", "é", "ﷺ", "判断", "ॐ", "\uff11", "ß", "İ", "\U00100000"),
    *("Score: 5", "1..5", "good", "\n\n", " ", "'", '"', "\\n", "assistant"),
]
TEXTS = st.one_of(st.lists(st.sampled_from(BLOCKS), max_size=8).map("".join), st.text(max_size=20))
TEMPLATE = probes.Template(
    name="fuzz",
    system="You judge.",
    user="{{ task }}|{{ response }}|{{ criterion }} on {{ scale }}.",
    shots=(probes.prompts.Shot({"task": "t", "response": "r"}, "3"),),
    prefill="Score:",
)


# Columns of fixed width end where a zero stands, so that a criterion with one is refused where items are made.
CRITERIA = TEXTS.filter(lambda text: "\x00" not in text)


@functools.cache
def judge_of(architecture: str, kind: str) -> probes.Judge:
    """The same model behind every tokenizer of the matrix."""
    if kind == KINDS[0]:
        return probes.Judge.load(
            tiny.hf_model(architecture), tokenizer=tokenizer(kind), template=TEMPLATE, human_range="-4..4"
        )
    return replace(judge_of(architecture, KINDS[0]), tokenizer=tokenizer(kind), _tokens=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(TEXTS, TEXTS, CRITERIA), min_size=4, max_size=8))
def test_anything_may_be_judged(architecture, kind, tmp_path_factory, texts):
    judge = judge_of(architecture, kind)
    items = probes.Items(
        [probes.Item(id="clean", fields={"response": "x", "task": "x"}, criterion="x", human=(1.0,))]
        + [
            probes.Item(id=f"i{k}", fields={"response": response, "task": task}, criterion=criterion, human=(1.0,))
            for k, (response, task, criterion) in enumerate(texts)
        ]
    )
    path = tmp_path_factory.mktemp("fuzz") / "run.h5"
    with probes.capture(judge, items, path, show_progress=False) as run:
        assert run.n_items == len(items)
        assert set(run.status.tolist()) <= {Status.OK, Status.TOO_LONG}
        assert probes.verify(path) == []
        clean = controls(judge.tokenizer, run.token_ids[0].tolist())
        for number, item in enumerate(items):
            ids = run.token_ids[number].tolist()
            assert controls(judge.tokenizer, ids) == clean
            for name in ("response", "task"):
                spans = [span for span in run.prompt_parts[number] if span.part == f"field:{name}"]
                # White space at the ends of a turn is stripped, so that a part may be shorter or gone.
                assert len(spans) == 1 or not item.fields[name].strip()
                assert all(0 <= span.start < span.stop <= len(ids) for span in spans)
            assert dict(run.items[number].fields) == dict(item.fields)
        ok = run.status == Status.OK
        assert np.isfinite(run.residual()[ok]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "piece",
    ["good ", "a", "<|end|>", "👩\u200d👧", "\ufeff\u200b"],
    ids=["words", "letter", "forged", "emoji", "nothing"],
)
def test_a_megabyte_is_too_long_and_kept(kind, piece, tmp_path):
    text = piece * (1_000_000 // len(piece.encode()))
    judge = judge_of("llama", kind)
    items = probes.Items([probes.Item(id=t[:1], fields={"response": t, "task": "t"}) for t in ("x", text)])
    with probes.capture(judge, items, tmp_path / "run.h5", show_progress=False) as run:
        assert run.status.tolist() == [Status.OK, Status.TOO_LONG]
        assert run.items[1].fields["response"] == text
        assert controls(judge.tokenizer, run.token_ids[1].tolist()) == controls(
            judge.tokenizer, run.token_ids[0].tolist()
        )

"""A fitted judge as a scorer of Inspect, with the real package where it is installed."""

from __future__ import annotations

import sys

import pytest

import probes
from probes.comparing import fit
from tests import tiny
from tests.test_capture import make_judge

try:
    import inspect_ai
except ImportError:
    inspect_ai = None

needs_inspect = pytest.mark.skipif(
    inspect_ai is None, reason="inspect_ai is not installed: pip install probes[inspect]"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def judge(booted):
    return make_judge(booted)


@pytest.fixture
def fitted(judge, tmp_path):
    with probes.capture(judge, tiny.word_items(12), tmp_path / "run.h5") as run:
        return fit(run, "final")


def state(word, number=1, **changes):
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.solver import TaskState

    settings = {"output": ModelOutput.from_content("mockllm/model", word), "metadata": {"word": word, "n": 3}}
    return TaskState(
        *(ModelName("mockllm/model"), number, 1),
        **{"input": f"Say {word}.", "messages": [], **settings, **changes},
    )


def score(scorer, *states, target=""):
    """Scores of states that wait at the same time, in order; exceptions are returned."""
    import anyio
    from inspect_ai.scorer import Target

    found = {}

    async def one(number, single):
        try:
            found[number] = await scorer(single, Target(target))
        except Exception as error:
            found[number] = error

    async def together():
        async with anyio.create_task_group() as group:
            for number, single in enumerate(states):
                group.start_soon(one, number, single)

    anyio.run(together)
    return [found[number] for number in range(len(states))]


@needs_inspect
def test_completions_are_scored_together_with_their_distribution(judge, fitted, monkeypatch):
    from probes.adapters import inspect_ai as adapter

    calls = []

    def counted(fitted, items, *args, **options):
        calls.append(len(items))
        return probes.score(fitted, items, *args, **options)

    monkeypatch.setattr(adapter, "score", counted)
    names = tiny.WORDS[12:]
    scores = score(
        adapter.fitted_judge(fitted, judge, fields={"response": "output"}),
        *(state(word, number) for number, word in enumerate(names)),
    )
    assert calls == [len(names)]
    expected = probes.score(fitted, tiny.word_items(human=False).select(range(12, 20)), judge)
    for one, (_, row) in zip(scores, expected.iterrows(), strict=True):
        assert one.value == pytest.approx(row["value"], abs=1e-5)
        assert one.metadata["status"] == "ok"
        assert one.metadata["probabilities"] == pytest.approx({str(k): row[f"p_{k}"] for k in range(1, 6)}, abs=1e-5)


@needs_inspect
def test_fields_come_from_input_output_target_and_metadata(booted, fitted, monkeypatch):
    from probes.adapters import inspect_ai as adapter

    seen = []

    def noted(fitted, items, *args, **options):
        seen.extend(items)
        return probes.score(fitted, items, *args, **options)

    monkeypatch.setattr(adapter, "score", noted)
    judge = make_judge(booted)
    fields = {"response": "output", "task": "input", "ideal": "target", "n": "metadata.n"}
    (found,) = score(adapter.fitted_judge(fitted, judge, fields=fields, criterion="tone"), state("tea"), target="joy")
    assert found.metadata["status"] == "ok"
    (item,) = seen
    assert item.fields == {"response": "tea", "task": "Say tea.", "ideal": "joy", "n": "3"}
    assert (item.id, item.criterion) == ("1, epoch 1", "tone")
    with pytest.raises(probes.ProbesError, match="'x' cannot be filled with 'answer': choose input, output, target"):
        adapter.fitted_judge(fitted, judge, fields={"x": "answer"})
    (error,) = score(adapter.fitted_judge(fitted, judge, fields={"response": "metadata.no"}), state("tea"))
    assert str(error) == "sample 1 has no metadata 'no'; it has word, n"


@needs_inspect
def test_answers_without_a_score_are_unscored_and_one_bad_sample_fails_alone(booted, fitted):
    from inspect_ai.model import ModelOutput

    from probes.adapters.inspect_ai import fitted_judge

    judge = make_judge(booted)
    long = state("zoo", 2, output=ModelOutput.from_content("mockllm/model", "zoo " * 300))
    good, unscored = score(fitted_judge(fitted, judge), state("tea"), long)
    assert good.value > 0
    assert unscored.value != unscored.value
    assert unscored.metadata == {"probabilities": None, "status": "too_long"}
    # The template refuses one sample of a batch.
    picky = probes.Template("picky", "{% if response == 'war' %}{{ no.such }}{% endif %}Rate {{ response }}.")
    scorer = fitted_judge(fitted, make_judge(booted, template=picky))
    scores = score(scorer, state("tea", 1), state("tax", 2), state("war", 3), state("joy", 4), state("joy", 4))
    assert [isinstance(one, probes.ProbesError) for one in scores] == [False, False, True, False, False]


@needs_inspect
def test_an_evaluation_logs_the_scores(judge, fitted, tmp_path):
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from probes.adapters.inspect_ai import fitted_judge

    path = fitted.save(tmp_path / "judge.json")
    outputs = [ModelOutput.from_content("mockllm", word) for word in ("tea", "war")]
    for output in outputs:
        output.usage = ModelUsage()  # or Inspect would download a tokenizer to count the tokens
    model = get_model("mockllm/model", custom_outputs=outputs)
    task = Task(dataset=[Sample(input="A word?"), Sample(input="Another?")], scorer=fitted_judge(path, judge))
    (log,) = eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    (summary,) = log.results.scores
    assert summary.name == "fitted_judge"
    scores = [sample.scores["fitted_judge"] for sample in log.samples]
    assert summary.metrics["mean"].value == pytest.approx(sum(one.value for one in scores) / 2)
    assert all(sum(one.metadata["probabilities"].values()) == pytest.approx(1) for one in scores)


def test_without_inspect_the_adapter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.scorer", None)
    monkeypatch.delitem(sys.modules, "probes.adapters.inspect_ai", raising=False)
    with pytest.raises(ImportError, match=r"this scorer needs Inspect .*: pip install 'probes\[inspect\]'"):
        import probes.adapters.inspect_ai  # noqa: F401

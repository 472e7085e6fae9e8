"""Choices of different lengths: what layers are worth once log-likelihoods are divided by it, and who says so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from typer.testing import CliRunner

import probes
from probes.choices.data import PERS
from probes.choices.judges import get_choice_judge
from probes.cli import app
from probes.comparing import by_layer, compare, fit, layer_tests, score
from probes.figures import tables
from probes.figures.drawing import Material, draw, of_comparison
from probes.reporting.choices import item_rows
from probes.tasks import metrics as published
from tests.fake_choices import FakeChoices
from tests.fake_run import FakeRun
from tests.test_choices_judges import refuses
from tests.valid_run import write_valid

FAST = {"folds": 3, "repeats": 1, "resamples": 60}


def of_lengths(n_items=90):
    """Choices of 1 to 3 tokens, of letters of one to four bytes; early layers know their length alone."""
    run = FakeChoices(n_items, labels=None, signal=[0, 0, 0, 0, 1, 2, 2], tasks=("a", "b"))
    letters = "xéさ𝄞"
    items = []
    for number, item in enumerate(run.items):
        rng = np.random.default_rng(number)
        names = tuple(
            f"{k} " + letters[int(rng.integers(4))] * int(rng.integers(1, 9)) for k in range(len(item.choices))
        )
        items.append(probes.Item(**{**item.__dict__, "choices": names}))
    run.set_items(items)
    length = run.choices.n_tokens[:, None]
    run.logprob = (run.logprob - 40 * length * (np.arange(7) < 4)).astype(np.float32)
    return run


@pytest.fixture(scope="module")
def run():
    return of_lengths()


def lengths(run, per):
    if per == "token":
        return run.choices.n_tokens
    return np.array([len(label.encode()) if per == "byte" else len(label) for label in run.choices.labels])


@pytest.fixture(scope="module")
def divided(run):
    return {per: run.logprob / lengths(run, per)[:, None] for per in PERS if per}


def items_of(run, criterion):
    return [k for k, name in enumerate(run.criteria) if name == criterion]


def accuracy(run, values, criterion):
    """By hand, as an evaluation harness does it: the first of the largest."""
    return np.mean(
        [
            [run.choices.scores[run.rows(k)][values[run.rows(k), layer].argmax()] for layer in range(7)]
            for k in items_of(run, criterion)
        ],
        axis=0,
    )


def test_judges_divide_by_tokens_bytes_and_characters(run, divided):
    for per, values in divided.items():
        judge = get_choice_judge(f"final:per_{per}=1")
        assert judge.per == per
        assert judge.spec == f"final:per_{per}=1"
        found = score(run, judge.spec)
        for item in range(run.n_items):
            assert found.choice[item] == values[run.rows(item), -1].argmax()
    # The names of evaluation harnesses: acc_norm divides by characters, acc_bytes by bytes.
    label = run.choices.labels
    assert any(len(one) != len(one.encode()) for one in label)
    refuses("by tokens or by bytes", score, run, "final:per_byte=1,per_char=1")


def test_a_judge_that_divides_by_characters_is_saved_and_read(run, tmp_path):
    judge = fit(run, "slope-ridge:per_char=1", criterion="a")
    again = probes.FittedJudge.load(judge.save(tmp_path / "judge.json"))
    np.testing.assert_array_equal(again.score(run).logp, judge.score(run).logp)


@pytest.mark.parametrize("per", ["token", "byte", "char"])
def test_layers_are_what_their_divided_log_likelihoods_say(run, divided, per):
    layers = by_layer(run, per=per, **FAST)
    assert set(layers["per"]) == {per}
    values = divided[per].astype(np.float64)
    for criterion in ("a", "b"):
        of = layers[layers["criterion"] == criterion].set_index(["metric", "layer_index"])["value"]
        np.testing.assert_allclose(of["accuracy"], accuracy(run, values, criterion))
        rows = np.concatenate([np.arange(run.rows(k).start, run.rows(k).stop) for k in items_of(run, criterion)])
        offsets = np.concatenate([[0], np.cumsum(run.choices.counts[items_of(run, criterion)])])
        for index in range(7):
            one = values[rows, index], run.choices.scores[rows], offsets
            assert of["brier", index] == pytest.approx(published.brier(*one))
            assert of["ece", index] == pytest.approx(published.ece(*one))
        chosen = [[values[run.rows(k), layer].argmax() for layer in range(7)] for k in items_of(run, criterion)]
        for index in range(7):
            stays = [all(one == row[-1] for one in row[index:]) for row in chosen]
            assert of["stable", index] == pytest.approx(np.mean(stays))
    macro = layers[layers["criterion"] == "macro"].set_index(["metric", "layer_index"])["value"]
    np.testing.assert_allclose(macro["accuracy"], (accuracy(run, values, "a") + accuracy(run, values, "b")) / 2)
    tests = layer_tests(run, per=per, **FAST)
    of_a = tests[tests["criterion"] == "a"]["difference"]
    expected = accuracy(run, values, "a")
    np.testing.assert_allclose(of_a, expected[:-1] - expected[-1], atol=1e-12)
    # Whole log-likelihoods are what they were, in a table of the same columns.
    assert "per" not in by_layer(run, **FAST)


def test_layers_of_a_comparison_are_divided_as_its_judges_are(run, divided):
    found = compare(run, ["final:per_byte=1", "text-ridge"], **FAST)
    assert set(found.by_layer["per"]) == set(found.stability["per"]) == set(found.shape["per"]) == {"byte"}
    assert found.by_layer.equals(by_layer(run, per="byte", **FAST))
    last = found.by_layer.query("metric == 'accuracy' and layer == '6' and criterion == 'a'")["value"].item()
    table = found.table[found.table["criterion"] == "a"].set_index("judge")
    assert last == pytest.approx(table.loc["final:per_byte=1", "accuracy"])
    chosen = [[divided["byte"][run.rows(k), layer].argmax() for layer in range(7)] for k in items_of(run, "a")]
    since = [next(k for k in range(7) if all(one == row[-1] for one in row[k:])) for row in chosen]
    stable = found.stability.set_index("criterion")
    assert stable.loc["a", "median_index"] == int(np.quantile(since, 0.5, method="inverted_cdf"))
    assert "bytes" in found.footnote
    # What is asked for wins over what the judges do.
    assert set(compare(run, ["final:per_byte=1"], per="char", **FAST).by_layer["per"]) == {"char"}
    assert "per" not in compare(run, ["final"], **FAST).by_layer


def test_judges_that_divide_differently_leave_layers_whole_and_that_is_said(run):
    found = compare(run, ["final", "final:per_char=1"], **FAST)
    assert "per" not in found.by_layer
    (said,) = [one for one in found.warnings if "--per" in one and "judges" in one]
    assert "whole log-likelihoods" in said
    assert not [
        one for one in compare(run, ["final", "final:per_char=1"], per="char", **FAST).warnings if "judges" in one
    ]


def test_where_early_layers_choose_the_shortest_that_is_said(run):
    found = compare(run, ["final"], **FAST)
    (said,) = [one for one in found.warnings if one.startswith("a: ") and "shortest" in one]
    varied, picks, chance = 0, np.zeros(3), 0.0
    for item in items_of(run, "a"):
        tokens = run.choices.n_tokens[run.rows(item)]
        if tokens.min() == tokens.max():
            continue
        varied += 1
        chance += (tokens == tokens.min()).mean()
        picks += [tokens[run.logprob[run.rows(item), layer].argmax()] == tokens.min() for layer in range(3)]
    share = picks / varied
    assert share.min() > 0.9
    low, high = (f"{one:.0%}" for one in (share.min(), share.max()))
    between = low if low == high else f"{low} to {high}"
    assert said == (
        f"a: of the first 3 layers (embed to 2), 3 choose one of the shortest choices in {between} of {varied} items "
        f"whose choices differ in length (at random {chance / varied:.0%}): their accuracy is about length; divide by "
        "it with per='token', 'byte' or 'char' (--per char)"
    )
    assert said in found.summary()
    assert not [one for one in compare(run, ["final"], per="token", **FAST).warnings if "shortest" in one]


def test_choices_of_one_length_need_no_note():
    assert not [one for one in compare(FakeChoices(60), ["final"], **FAST).warnings if "length" in one]


def test_dividing_that_prefers_the_longest_is_said_as_well():
    run = of_lengths()
    # One likely token makes up for many unlikely ones only where it is one of few.
    run.logprob = np.full_like(run.logprob, -5.0)
    run.logprob += np.random.default_rng(0).normal(size=run.logprob.shape).astype(np.float32) * 0.01
    found = compare(run, ["final"], per="token", **FAST)
    (said,) = [one for one in found.warnings if one.startswith("a: ") and "longest" in one]
    assert said.endswith("their accuracy is about length, although log-likelihoods are divided by tokens")


def test_the_figure_of_layers_follows_the_judge_that_was_asked_for(run, divided, tmp_path):
    material = Material({"toy": run}, ["final:per_byte=1"], criterion="a")
    figure = of_comparison(material.comparison, "alignment", "a")
    (ax,) = figure.axes
    (curve,) = [line for line in ax.lines if not line.get_label().startswith("_")]
    np.testing.assert_allclose(curve.get_ydata(), accuracy(run, divided["byte"], "a"))
    levels = {line.get_label(): line.get_ydata()[0] for line in ax.lines if line.get_label().startswith("_")}
    assert levels["_final layer"] == pytest.approx(accuracy(run, divided["byte"], "a")[-1])
    said = " ".join(" ".join(text.get_text() for text in [*figure.texts, *ax.texts]).split())
    assert "log-likelihoods per byte" in said
    plt.close(figure)
    table = tables.item_choices(run, "i3", per="char")
    values = divided["char"][run.rows(3), -1].astype(float)
    shown = table[table["layer"] == "6"]["prob"]
    np.testing.assert_allclose(shown, np.exp(values) / np.exp(values).sum(), rtol=1e-5)
    drawn = list(draw(material, ["alignment", "item"], tmp_path, ("png",)))
    assert all(one.paths for one in drawn)


def test_what_is_not_divided_is_refused(run):
    refuses("per is 'word': choose one of token, byte, char", by_layer, run, per="word")
    refuses("per is 'word': choose one of token, byte, char", compare, run, ["final"], per="word")
    for call in (compare, by_layer, layer_tests):
        refuses(
            "per is about choices of items, and the run has the labels of a scale", call, FakeRun(40, 3), per="byte"
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_valid(tmp_path_factory.mktemp("lengths") / "task.h5", "choices", n_items=120)


class TestCommandLine:
    def table(self, path, *flags):
        few = ["--resamples", "100", "--folds", "2", "--repeats", "1", "--judge", "final"]
        few = few[: -2 if "layer" in " ".join(flags) else None]
        done = CliRunner().invoke(app, ["compare", str(path), *few, *flags])
        assert done.exit_code == 0, done.output
        return done.output

    def test_tables_of_layers_are_divided(self, path, tmp_path):
        with probes.open_run(path) as run:
            expected = by_layer(run, per="byte", resamples=100, folds=2, repeats=1)
        said = self.table(path, "--table", "layers", "--per", "byte", "--out", str(tmp_path / "layers.csv"))
        found = pd.read_csv(tmp_path / "layers.csv")
        np.testing.assert_allclose(found["value"], expected["value"])
        assert set(found["per"].dropna()) == {"byte"}
        assert "divided by the bytes of each choice" in said
        for name in ("layer-tests", "stability", "shape"):
            assert "byte" in self.table(path, "--table", name, "--per", "byte")

    def test_figures_and_the_report_take_it(self, path, tmp_path):
        done = CliRunner().invoke(
            app,
            ["plot", str(path), "--figure", "alignment", "--per", "char", "--out", str(tmp_path), "--format", "svg"],
        )
        assert done.exit_code == 0, done.output
        assert "per character" in next(tmp_path.glob("alignment*.svg")).read_text()
        out = tmp_path / "report.html"
        done = CliRunner().invoke(
            app, ["report", str(path), "--per", "char", "--judge", "final", "--resamples", "100", "--out", str(out)]
        )
        assert done.exit_code == 0, done.output
        page = out.read_text()
        assert "--per char" in page
        assert "last layer says, per character" in page

    def test_a_length_that_there_is_not_is_named(self, path):
        done = CliRunner().invoke(app, ["compare", str(path), "--per", "word"])
        assert done.exit_code != 0

    def test_items_of_the_report_are_divided(self, path):
        with probes.open_run(path) as run:
            _, rows = item_rows(run, 1000, 0, "char")
            logprob, offsets = run.choice_logprob("norm"), run.choices.offsets
            said = rows.set_index("item")["last layer says, per character"]
            for number, item in enumerate(run.items):
                of_item = logprob[offsets[number] : offsets[number + 1], -1]
                if np.isfinite(of_item).all():
                    chosen = (of_item / [len(choice) for choice in item.choices]).argmax()
                    assert said[item.id] == item.choices[chosen]

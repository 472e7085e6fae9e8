"""Ridges on states and texts: errors of left-out groups, coefficients, columns of text, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from probes import ridge_recipes
from probes.aggregate import States, get_aggregator
from probes.errors import FitError
from probes.fitting.text import fit_text, n_columns_of, text_columns
from probes.fitting.wide import SHARES, fit_wide
from probes.runlike import layer_logits
from tests.fake_run import FakeRun


@pytest.mark.parametrize("shape", [(40, 7), (25, 60)])
@pytest.mark.parametrize("group", [1, 3])
def test_left_out_errors_and_weights_are_those_of_literal_fits(shape, group):
    rng = np.random.default_rng(1)
    columns = rng.normal(size=shape) + 2
    y = columns[:, 0] + rng.normal(size=len(columns))
    groups = np.arange(len(y)) // group
    found = fit_wide(columns, y, groups)
    squares = np.linalg.svd(columns - columns.mean(axis=0), compute_uv=False) ** 2
    unit = squares[squares > 1e-9].mean()
    errors = []
    for share in SHARES:
        total = 0.0
        for name in np.unique(groups):
            # Sums of squares of a fit without a group, about its own mean: scikit-learn's ridge with an intercept.
            fit = Ridge(alpha=share * unit).fit(columns[groups != name], y[groups != name])
            total += ((fit.predict(columns[groups == name]) - y[groups == name]) ** 2).sum()
        errors.append(total / len(y))
    assert found.error == pytest.approx(min(errors), rel=1e-6)
    assert found.penalty == pytest.approx(SHARES[int(np.argmin(errors))] * unit)
    whole = Ridge(alpha=found.penalty).fit(columns, y)
    np.testing.assert_allclose(found.coef, whole.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.intercept - found.mean @ found.coef, whole.intercept_, rtol=1e-6)


def test_one_group_has_nothing_to_leave_out():
    rng = np.random.default_rng(0)
    found = fit_wide(rng.normal(size=(20, 3)), rng.normal(size=20), np.zeros(20))
    assert np.isinf(found.error)
    assert np.abs(found.coef).max() < 0.01


def test_residual_ridge_finds_the_layer_and_reads_more_than_its_logits(monkeypatch):
    run = FakeRun(200, 4, group=2, signal=[0, 0.2, 1.5, 0.1, 0.1])
    logits = layer_logits(run, "norm")
    fit, test = np.arange(120), np.arange(120, 200)
    judge = get_aggregator("residual-ridge").fit(logits.select(fit), run.human_value[fit], run.groups[fit])
    assert judge.notes["layer"] == judge.layer_of_states == "2"
    assert judge.layer_weights().tolist() == [0, 0, 1, 0, 0]
    found = spearmanr(judge.predict(logits.select(test)).value, run.human_value[test]).statistic
    best = get_aggregator("best-layer-ridge").fit(logits.select(fit), run.human_value[fit], run.groups[fit])
    assert found > spearmanr(best.predict(logits.select(test)).value, run.human_value[test]).statistic
    # The layer is chosen on some of the items, the weights are those of all of them.
    monkeypatch.setattr(ridge_recipes, "_CHOICE_ITEMS", 50)
    fewer = get_aggregator("residual-ridge").fit(logits.select(fit), run.human_value[fit], run.groups[fit])
    assert fewer.notes == judge.notes | {"n_chosen_on": 50}
    np.testing.assert_allclose(fewer.params["coef"], judge.params["coef"])


def test_residual_ridge_says_what_is_missing():
    run = FakeRun()
    with pytest.raises(FitError, match="^residual-ridge reads residual states, which are not there"):
        get_aggregator("residual-ridge").fit(
            replace(layer_logits(run, "norm"), states=None), run.human_value, run.groups
        )
    run.states[:] = 1.0
    with pytest.raises(FitError) as caught:
        get_aggregator("residual-ridge").fit(layer_logits(run, "norm"), run.human_value, run.groups)
    assert str(caught.value) == ("residual-ridge cannot be fitted: every layer is in the same state for all 120 items")


def texts():
    good, bad = ["fine", "lovely", "excellent"], ["poor", "awful", "dreadful"]
    rng = np.random.default_rng(0)
    y = rng.integers(1, 6, 120).astype(float)
    fields = []
    for score in y:
        words = [str(rng.choice(good if rng.random() < score / 6 else bad)) for _ in range(6)]
        fields.append({"task": "the same for all", "response": " ".join(words), "context": "x" * int(score)})
    return fields, y


def test_columns_of_text_are_lengths_and_tfidf():
    fields, y = texts()
    found, recipe = fit_text(fields, y, np.arange(120))
    assert recipe["fields"] == ["context", "response"]
    columns = text_columns(fields, recipe)
    assert columns.shape == (120, n_columns_of(recipe)) == (120, len(found.coef))
    joined = [f"{item['context']}\n{item['response']}" for item in fields]
    word = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"\b\w+\b", min_df=2, max_features=1000, sublinear_tf=True
    ).fit_transform(joined)
    np.testing.assert_allclose(columns[:, -word.shape[1] :], word.toarray())
    lengths = np.log1p([[len(i["context"]), 1, len(i["response"]), 6] for i in fields])
    spread = np.where(lengths.std(axis=0) > 0, lengths.std(axis=0), 1)
    np.testing.assert_allclose(columns[:, :4], lengths / spread)


def test_text_ridge_learns_from_words_alone_and_knows_new_ones():
    fields, y = texts()
    run = FakeRun()
    logits = replace(layer_logits(run, "norm"), fields=fields)
    judge = get_aggregator("text-ridge").fit(logits.select(np.arange(80)), y[:80], np.arange(80))
    scores = judge.predict(logits.select(np.arange(80, 120)))
    assert scores.probs is None
    assert spearmanr(scores.value, y[80:]).statistic > 0.5
    assert (judge.layer_weights() == 0).all()
    strange = replace(logits.select(np.arange(1)), fields=[{"response": "zyzzyva 9", "context": ""}])
    assert np.isfinite(judge.predict(strange).value).all()


def test_text_ridge_says_what_is_missing():
    run, aggregator = FakeRun(), get_aggregator("text-ridge")
    logits = layer_logits(run, "norm")
    same = replace(logits, fields=[{"response": "all alike"}] * 120)
    with pytest.raises(FitError, match="^text-ridge cannot be fitted: all items have the same texts$"):
        aggregator.fit(same, run.human_value, run.groups)
    with pytest.raises(FitError, match="^text-ridge reads the texts of the items"):
        aggregator.fit(replace(logits, fields=None), run.human_value, run.groups)


def test_texts_without_any_repeated_ngram_are_judged_by_their_length():
    fields = [{"response": chr(0x4E00 + k) * (k + 1)} for k in range(40)]
    found, recipe = fit_text(fields, np.arange(40.0), np.arange(40))
    assert recipe["terms"]["word"] == []
    assert spearmanr(text_columns(fields, recipe) @ found.coef, np.arange(40)).statistic > 0.9


def test_large_groups_do_not_hide_the_layer():
    run = FakeRun(3600, 6, group=1200, signal=[0, 0.1, 0.1, 0.1, 0.1, 1.5, 0.1])
    judge = get_aggregator("residual-ridge").fit(layer_logits(run, "norm"), run.human_value, run.groups)
    assert judge.notes["layer"] == "5"
    with pytest.raises(FitError) as caught:
        get_aggregator("residual-ridge").fit(layer_logits(run, "norm"), run.human_value, np.zeros(3600))
    assert str(caught.value) == (
        "residual-ridge leaves out a group at a time to choose a layer, and all 3600 items are of one"
    )


def test_items_without_the_fields_and_states_of_another_size_are_refused():
    fields, y = texts()
    run = FakeRun()
    logits = replace(layer_logits(run, "norm"), fields=fields)
    judge = get_aggregator("text-ridge").fit(logits, y, np.arange(120))
    with pytest.raises(FitError, match="^text-ridge was fitted on the field 'context', which no item has"):
        judge.predict(replace(logits, fields=[{"response": "fine"}] * 120))
    of_states = get_aggregator("residual-ridge").fit(logits, run.human_value, run.groups)
    with pytest.raises(FitError, match="^residual-ridge was fitted on 8 numbers an item, not on 5"):
        of_states.predict(replace(logits, states=States(lambda index: run.states[:, index, :5])))

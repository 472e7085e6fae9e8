# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where in the network a judgement forms
#
# The other notebooks average over items. This one follows single words through the layers: what would the judge say if it
# stopped here, and from which layer on does it no longer change its mind? At the end stands what this does not show.

# %% tags=["parameters"]
N_WORDS = 450  # fewer are quicker, and have wider intervals

# %%
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import spearmanr

import probes
from probes.tables import format_table

path = Path(f"runs/words-{N_WORDS}.h5")
if not path.exists():  # the run of the first notebook; this is the only step that needs the model
    judge = probes.Judge.load("smollm2-135m", template="words", scale="1..5", human_range="-4..4")
    probes.capture(judge, probes.vader_words(N_WORDS), path, mass=True)
run = probes.open_run(path)
run

# %% [markdown]
# ## Three words
#
# One that the raters liked, one in the middle, and one that they did not.

# %%
human = run.human_value  # on the scale of the labels, 1 to 5
for word in ("excellence", "hard", "horrific"):
    print(f"{word:12} {human[run.ids.index(f'vader-{word}')]:.2f}")

# %% [markdown]
# Each column is a layer, each row a label, and the line is the expected score. Triangles are the ten raters. Below stands
# what the judge was asked.


# %%
def formation(word):
    name = f"vader-{word}"
    table = probes.figures.tables.item_distributions(run, name)
    raters = run.scale.to_value(run.human[run.ids.index(name)])
    return probes.figures.item(table, prompt=probes.figures.tables.prompt_text(run, name), human=raters)


formation("excellence")

# %%
formation("hard")

# %%
formation("horrific")

# %% [markdown]
# The three pictures are nearly one. What moves the distribution from layer to layer is the same for every word, and what the
# word itself does to it is small beside that: the last layer says about 3 to all of them, and more to *horrific* than to *hard*.
# The word is there all the same, as the next sections show, but one has to look at differences between words.
#
# ## Is it an answer at all?
#
# The distributions above are over five digits only. How much of the *whole* vocabulary's probability do these digits have
# at each layer? Where it is next to nothing, a layer's "score" is a choice between five things that the layer would not
# say.

# %%
mass = probes.figures.tables.scale_mass(run)
probes.figures.mass(mass)

# %%
silent = mass[mass["value"] < 0.5]
print(f"most of the probability is on the digits after layer {silent['layer'].iloc[-1]}, for good (median over words)")

# %% [markdown]
# ## Where does the score settle?
#
# There are two things that can settle. The *level* of a word's score is what one sees above. Its *standing* is where it is among
# the other words at the same layer: the score less the layer's mean, over the layer's standard deviation. For every word we take
# the first layer from which on its level stays within a quarter of a point of the last layer's, or its standing within half a
# standard deviation. Both are definitions, with thresholds that we have chosen, so other thresholds stand beside them.

# %%
values = np.asarray(run.scale.values)
logits = run.item_logits("norm").astype(np.float64)
scores = softmax(logits, axis=-1) @ values  # item, layer
spread = scores.std(axis=0)
moves = spread > 1e-5  # not the embedding, which is the same token for every word
standing = np.where(moves, (scores - scores.mean(axis=0)) / np.where(moves, spread, 1), np.inf)


def settles(values, within):
    """First layer from which on the value of each word stays so near to the last one."""
    near = np.abs(values - values[:, -1:]) <= within
    return values.shape[1] - np.cumprod(near[:, ::-1], axis=1).sum(axis=1)


def group_interval(statistic, resamples=500, seed=0):
    """Value and 95 % percentile interval of a statistic of some rows, drawing whole groups of words anew."""
    codes, names = pd.factorize(run.groups)
    rows = [np.flatnonzero(codes == code) for code in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([rows[group] for group in rng.integers(len(rows), size=len(rows))]))
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return {"value": statistic(np.arange(len(codes))), "lo": low, "hi": high}


table = []
for what, of, thresholds in (("level", scores, (0.25, 0.5)), ("standing", standing, (0.5, 1.0))):
    for within in thresholds:
        layer = settles(of, within)
        found = group_interval(lambda rows, layer=layer: layer[rows].mean())
        low, high = np.quantile(layer, (0.1, 0.9))
        table.append({"what": what, "within": within} | found | {"10 %": low, "90 %": high})
print(format_table(pd.DataFrame(table), digits=2))

# %% [markdown]
# `value` is the mean over words, with its interval; the last two columns say between which layers most words lie. The level is
# moved about by the very last blocks, for all words alike. The standing comes earlier, and not at one layer for all.
#
# ## From where on do layers agree?
#
# With the last layer, and with the raters: these are two questions. Beside them the standard deviation of the scores, since an
# order among scores that hardly differ is worth little.

# %%
rows = []
for index in (1, 5, 10, 15, 20, 22, 24, 26, 28, 30):
    last = group_interval(lambda rows, i=index: spearmanr(scores[rows, i], scores[rows, -1]).statistic, 200)
    raters = group_interval(lambda rows, i=index: spearmanr(scores[rows, i], human[rows]).statistic, 200)
    row = {"layer": run.layers[index]}
    for name, found in (("with_last", last), ("with_raters", raters)):
        row |= {name: found["value"], f"{name}_lo": found["lo"], f"{name}_hi": found["hi"]}
    rows.append(row | {"sd_of_scores": spread[index]})
print(format_table(pd.DataFrame(rows), digits=2))

# %% [markdown]
# The map shows the standing of all words at once, the best-rated at the top, beside that of the raters' means; all in standard
# deviations. Agreement is a column that goes from light at the top to dark at the bottom, as the strip of the raters does.

# %%
words = probes.figures.tables.layer_scores(run)
words["score"] = standing.ravel()
words.loc[~np.isfinite(words["score"]), "score"] = np.nan
words["human"] = (words["human"] - human.mean()) / human.std()
probes.figures.score_map(words, limits=(-2, 2))

# %% [markdown]
# ## The logit lens against a tuned one
#
# The norm lens reads early states with an output matrix that was trained for the last one. Some of what looks like "not
# yet decided" may be a layer that speaks another dialect. A tuned lens learns one small map per layer, from the layer's
# label logits to the last layer's, without any human score. If early layers were only misread, it would bring them near.
# The table is about words that the lens was not fitted on; `kl` is the divergence from the last layer in nats.

# %%
tuned = probes.tuned_lens(run)
shown = tuned[tuned["layer"].isin(["1", "5", "10", "15", "20", "25", "28", "29"])]
print(format_table(shown, ["layer", "kl_norm", "kl_tuned", "gain", "n_used"], digits=3))

# %% [markdown]
# The divergence falls at all layers to next to nothing, which looks like a success. But an affine map of five logits gets the
# *average* distribution right whatever the layer knows, and the last layer says nearly the same of all words, so that being near
# to it is easy. Compare `kl_tuned` with what a lens would reach that always answers the average of the last layer:

# %%
last = softmax(logits[:, -1], axis=-1)
average = last.mean(axis=0)
ignorant = (last * (np.log(last) - np.log(average))).sum(axis=1).mean()
print(f"always the last layer's average: {ignorant:.4f} nats")
better = tuned[tuned["kl_tuned"] < 0.5 * ignorant]
print("layers that come at least twice as near:", ", ".join(better["layer"]))

# %% [markdown]
# At all other layers the tuned lens says, more or less, the average. Early layers are not misread by the norm lens: what the last
# layer says of a word cannot be had from their label logits by any map of this kind.

# %% [markdown]
# ## Decodable, but not expressed
#
# A lens shows what a layer would *say*. What the state of a layer *holds* can be more: here a ridge regression is fitted on
# the states of single layers, and scored on words of other families.

# %%
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict

rows = []
for layer in ("1", "10", "20", "25", "30"):
    states = run.residual(layer=layer).astype(np.float64)
    states = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-9)
    ridge = RidgeCV(alphas=np.logspace(1, 5, 9))
    predicted = cross_val_predict(ridge, states, human, groups=run.groups, cv=GroupKFold(5))
    index = run.layers.index(layer)
    decoded = group_interval(lambda rows, p=predicted: spearmanr(p[rows], human[rows]).statistic, 200)
    expressed = group_interval(lambda rows, i=index: spearmanr(scores[rows, i], human[rows]).statistic, 200)
    row = {"layer": layer}
    for name, found in (("expressed", expressed), ("decodable", decoded)):
        row |= {name: found["value"], f"{name}_lo": found["lo"], f"{name}_hi": found["hi"]}
    rows.append(row)
print(format_table(pd.DataFrame(rows), digits=2))

# %% [markdown]
# Far more can be read out of the states than the digits show, and earlier. (For a comparison by the full protocol, with
# the layer chosen inside the folds, take the judge `residual-ridge`, as in [compare_judges](compare_judges.ipynb).)
#
# ## What this shows, and what it does not
#
# - It shows what one linear readout finds at one position: the last one before the score. A judgement may be present
#   at the position of the word itself long before it is moved here.
# - "Settles at layer k" is about this lens. Another lens, another threshold, another answer.
# - Decodable does not mean used. That a ridge finds the rating in a state does not show that the model reads it from
#   there. That needs interventions: change the state and see whether the score changes.
# - Intervals are about other words of this kind. They know nothing of other prompts, models or lenses.
# - It is one model of 135 million parameters and one task. Whether depth means the same elsewhere has to be seen there.
#
# ## What to read next
#
# - [compare_judges](compare_judges.ipynb): which of these differences hold on held-out words.
# - [docs/methods.md](../docs/methods.md), sections 2 and 3: the layer axis and the lenses, exactly.
# - nostalgebraist (2020), *interpreting GPT: the logit lens*; Belrose et al. (2023), *Eliciting latent predictions from
#   transformers with the tuned lens*, arXiv 2303.08112; Hewitt and Liang (2019), *Designing and interpreting probes with control
#   tasks*, arXiv 1909.03368, on what a probe's success means.

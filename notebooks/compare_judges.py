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
# # Final layer or all layers? A comparison with statistics
#
# A judge that mixes all layers agrees better with human raters than the last layer does. Before one says that other layers
# know more, there are easier explanations to rule out: it has seen labels, the texts alone would do, or it was luck. This
# notebook goes through them one at a time.

# %% tags=["parameters"]
N_WORDS = 450  # fewer are quicker, and have wider intervals

# %%
from pathlib import Path

import numpy as np

import probes
from probes.tables import format_table

path = Path(f"runs/words-{N_WORDS}.h5")
if not path.exists():  # the run of the first notebook; this is the only step that needs the model
    judge = probes.Judge.load("smollm2-135m", template="words", scale="1..5", human_range="-4..4")
    probes.capture(judge, probes.vader_words(N_WORDS), path, mass=True)
run = probes.open_run(path)
run

# %% [markdown]
# ## The judges
#
# | judge | labels | what it may use |
# | --- | --- | --- |
# | `final` | none | the last layer, as the model answers |
# | `lager@norm` | yes | all layers, weights that are positive and add up to one |
# | `final-ridge` | yes | the last layer only, recalibrated |
# | `best-layer-ridge` | yes | one layer, whichever is best on the fit items |
# | `text-ridge` | yes | the words themselves and no model |
# | `spectral-ordinal` | yes | all layers: the default |
#
# Words are divided into five folds, families of words kept together, and that five times over. Each word is scored by
# judges that were fitted without its fold. The number is the mean of Spearman's coefficient within the folds.

# %%
judges = ["final", "lager@norm", "final-ridge", "best-layer-ridge", "text-ridge", "spectral-ordinal"]
found = probes.compare(run, judges)
found

# %%
print(found.summary())

# %% [markdown]
# ## `final` is the wrong baseline
#
# Against `final` nearly everything that has seen labels looks good, also judges that never look at another layer:

# %%
probes.figures.forest(found.table, of="gain_over_final")

# %% [markdown]
# `final-ridge` gains because labels tell it what the model's "3" means to the raters. That has nothing to do with other
# layers. So the question is what a judge gains over the best judge *without other layers that has seen as many labels*, one
# of `final-ridge`, `best-layer`, `best-layer-ridge` and `text-ridge`. The table names it in the column `baseline`.

# %%
probes.figures.forest(found.table, of="gain_over_baseline")

# %% [markdown]
# ## Does it need the model at all?
#
# `text-ridge` sees lengths, letters and words and nothing else. On isolated words it has little to go by. On longer texts it
# can be hard to beat ([docs/judges.md](../docs/judges.md) has sets where it wins), and then nothing has been shown about the
# layers.

# %%
over_text = found.difference("spectral-ordinal", "text-ridge")
print(f"over text-ridge: {over_text.value:+.2f} [{over_text.lo:+.2f}, {over_text.hi:+.2f}]")

# %% [markdown]
# ## Differences are paired
#
# Both judges are scored on the same words, and hard words are hard for both. Resamples of the words are shared, so that
# what they have in common drops out. Looking at whether two intervals overlap throws this away. Compare the widths:

# %%
table = found.table.set_index("judge")
apart = {name: (table.loc[name, "spearman_hi"] - table.loc[name, "spearman_lo"]) / 2 for name in judges}
for first, second in (("spectral-ordinal", "best-layer-ridge"), ("best-layer-ridge", "final-ridge")):
    one = found.difference(first, second)
    print(
        f"{first} minus {second}: {one.value:+.2f} [{one.lo:+.2f}, {one.hi:+.2f}], half width {(one.hi - one.lo) / 2:.3f}; "
        f"as if unpaired {np.hypot(apart[first], apart[second]):.3f}; permutation p = {found.test(first, second):.4f}"
    )

# %% [markdown]
# The p-value is of another kind than the interval: how often would swapping the two judges' ranks, group by group, give a
# difference as large? It is never 0: with B permutations it cannot fall below 1/(B + 1).
#
# ## One layer better than the last?
#
# Thirty layers are thirty tests, and the best of thirty looks good by chance. Each layer is tested against the last one,
# and `p_holm` is corrected for all of them.

# %%
tests = probes.layer_tests(run)
norm = tests[tests["lens"] == "norm"].sort_values("difference", ascending=False)
print(format_table(norm.head(6), ["layer", "difference", "p", "p_holm", "n_used"], digits=2))

# %% [markdown]
# A layer whose `p` is small and whose `p_holm` is not is one that would have been reported by somebody who did not count.
#
# The usual band around a curve is pointwise: each layer's interval holds by itself. If you want to say something about the
# whole curve, or about the layer that you picked because it is the highest, take the simultaneous band, which is wider.

# %%
probes.figures.alignment(probes.by_layer(run, band="simultaneous"))

# %% [markdown]
# ## How many labels does it take?
#
# Every judge is fitted on the first 10, 20, 50 ... labels of twenty random orders, and tested on the other half of the
# words. Here intervals include the draw of the labels.

# %%
curve = probes.learning_curve(
    run, ["final", "final-ridge", "best-layer-ridge", "spectral-ordinal"], sizes=(10, 20, 50, 100, 200)
)
probes.figures.learning_curve(curve)

# %%
print(format_table(curve[curve["judge"] == "spectral-ordinal"], ["n_labels", "value", "gain", "n_test"], digits=2))

# %% [markdown]
# `gain` is the difference to `final-ridge` with as many labels, which is poor itself when labels are few. With ten labels
# the last layer as it is, which needs none, is as good a choice; with some dozens the other layers pay.
#
# ## Are early layers only misread?
#
# Perhaps the lens is to blame: the output matrix was trained for the last layer. The tuned lens maps the label logits of
# each layer to those of the last, without human scores. The table shows, on held-out words, how far each layer is from the
# last before and after, in nats.

# %%
tuned = probes.tuned_lens(run)
print(format_table(tuned[tuned["layer_index"] % 5 == 0], ["layer", "kl_norm", "kl_tuned", "gain", "lowered"], digits=3))
print(f"lowered at {tuned['lowered'].sum()} of {len(tuned)} layers")

# %% [markdown]
# Does it help a judge? A mixture with equal weights, under either lens:

# %%
lenses = probes.compare(run, ["uniform@norm", "uniform@tuned"], repeats=2, resamples=500)
gain = lenses.difference("uniform@tuned", "uniform@norm")
print(f"uniform: tuned minus norm {gain.value:+.2f} [{gain.lo:+.2f}, {gain.hi:+.2f}]")

# %% [markdown]
# ## Expressed and decodable
#
# All judges so far read what layers say through the score tokens: what is *expressed*. `residual-ridge` reads the whole
# state of one layer, 576 numbers: what is *decodable*. It is an upper line for one layer, and a probe rather than a judge
# in the model's own words. A gap between the two is knowledge that the model does not put into its digits.

# %%
probe = probes.compare(run, ["spectral-ordinal", "residual-ridge"], repeats=1, resamples=1000)
gap = probe.difference("residual-ridge", "spectral-ordinal")
print(format_table(probe.table, ["judge", "labels_used", "n_used", "spearman"], digits=2))
print(f"decodable minus expressed: {gap.value:+.2f} [{gap.lo:+.2f}, {gap.hi:+.2f}]")

# %% [markdown]
# ## Probabilities
#
# Ranks are half of the matter. `final` may rank words fairly and still be far too sure of itself. On the diagonal a judge
# is as sure as it is right.

# %%
probes.figures.reliability(probes.figures.tables.reliability_bins(run))

# %%
print(format_table(found.calibration, ["judge", "ece", "brier", "nll"], digits=2))

# %% [markdown]
# Judges that give a number only have no probabilities, hence `--`.
#
# ## What the intervals know, and what they do not
#
# They are about *other words of this kind*, drawn family by family. They are **conditional on the fitted judges**: nothing is
# fitted anew in a resample, so they do not say how much other labels would change the fits (the learning curve does).
# They know nothing about other prompts, models or raters, and each is for one comparison, not for the best of a table. How
# the words were divided into folds is a small part of it. Five divisions:

# %%
for seed in range(5):
    one = probes.compare(run, ["spectral-ordinal"], seed=seed, repeats=1, resamples=200)
    row = one.table.iloc[0]
    print(f"seed {seed}: {row['spearman']:.3f} [{row['spearman_lo']:.2f}, {row['spearman_hi']:.2f}]")

# %% [markdown]
# ## What may be said
#
# That on such words, with this model and prompt, a mixture of layers agrees better with raters than anything the last
# layer or the texts give with as many labels; by how much, and how sure that is. Not that layers are better judges in general: on tasks that the
# model cannot follow the same comparison comes out at nothing.
#
# ## What to read next
#
# - [docs/methods.md](../docs/methods.md), section 8: the protocol, what cannot leak, how often intervals hold the truth.
# - [docs/judges.md](../docs/judges.md): eleven sets of human scores, and which judge to take.
# - [docs/comparing.md](../docs/comparing.md): several models, prompts and conditions on the same items.
# - [paper_figures](paper_figures.ipynb): these figures and tables for print.

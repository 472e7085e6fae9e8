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
# # A first look: from items to the layer-wise curve
#
# A judge reads an item and emits a score. We capture what each of its layers says at that moment, and ask which layers
# agree with human raters. The judge is SmolLM2-135M, which is installed with the project; the items are words that ten
# people each have rated from very negative to very positive. Nothing is downloaded, and no GPU is needed.

# %% tags=["parameters"]
N_WORDS = 450  # fewer are quicker, and have wider intervals

# %%
from pathlib import Path

import probes

items = probes.vader_words(N_WORDS)
items

# %% [markdown]
# Words of one family (*annoy*, *annoying*) are one **group**. Groups are never divided between fitting and testing.
#
# The template turns an item into a prompt. Five worked examples show the judge that a digit is wanted. They are the same
# for all items, so they are computed once. `preview` says what a capture would do, without doing it.

# %%
judge = probes.Judge.load("smollm2-135m", template="words", scale="1..5", human_range="-4..4")
judge

# %%
plan = probes.preview(judge, items)
print(plan.first_prompt[-260:])
print("---")
print(f"{plan.tokens_before:,} tokens one by one, {plan.tokens_after:,} as planned")

# %% [markdown]
# The capture writes one file. Of every word it keeps the residual state of all layers at the position where the judge is
# about to say its digit, and the logits of the five digits there. From here on the model is no longer needed. If the file
# is there already, it is opened; if it was interrupted, it goes on.

# %%
run = probes.capture(judge, items, Path(f"runs/words-{N_WORDS}.h5"), mass=True)
run

# %%
print("states of layer 22:", run.residual(layer=22).shape)
print("score logits:", run.score_logits("norm").shape, "for reading, layer, label")
print(f"the digits hold {run.final_mass.mean():.2f} of the probability of all words that the judge could say")

# %% [markdown]
# ## Which layers agree with the raters?
#
# Under the *norm* lens each layer's state goes through the model's own final norm and output matrix, as if the model
# stopped there. The *raw* lens leaves the norm out. Either way we get a distribution over the five digits, its expected
# value is the layer's score, and we ask how well that ranks the words (Spearman's coefficient). Early layers know nothing
# about the score; the agreement appears in the last third.

# %%
found = probes.compare(run, ["final", "final-ridge", "best-layer-ridge", "text-ridge", "spectral-ordinal"])
lines = found.human_lines.set_index("line")["value"]
probes.figures.alignment(found.by_layer, attainable=lines["attainable"], human=lines["human"])

# %% [markdown]
# Two lines show what could be reached: *one rater* is how well one person agrees with the nine others, *attainable* is
# what the noise in the mean of ten people would leave to a perfect judge.
#
# ## A judge that listens to all layers
#
# `final` is the last layer, which is what one gets from the model by asking it. `spectral-ordinal`, the default, mixes the
# logits of all layers. It learns from human scores of *other* words: each word is scored by fits that have seen neither it
# nor its family. A judge that learns from labels must be held against judges that learn from as many labels without other
# layers (`final-ridge`, `best-layer-ridge`) and without any model (`text-ridge`).

# %%
found

# %%
print(found.summary())

# %% [markdown]
# Brackets are 95 % intervals. They are about other words of this kind, for the judges as they were fitted here.
#
# ## One judge to take away
#
# The fitted judge is a small file. It scores new items, or another run of the same model.

# %%
fitted = found.judges["spectral-ordinal"]
fitted.save("runs/words-judge.json")
fitted

# %%
new = probes.Items(
    [probes.Item(word, {"response": word}) for word in ("delightful", "okay", "spoon", "funeral", "atrocity")]
)
probes.score(fitted, new, judge).round(2)

# %% [markdown]
# `value` is on the scale 1 to 5, and so are the columns `p_1` to `p_5`.
#
# ## What to read next
#
# - [compare_judges](compare_judges.ipynb): how sure one can be, and of what.
# - [paper_figures](paper_figures.ipynb): figures and tables from this run, without the model.
# - [own_model_and_rubric](own_model_and_rubric.ipynb): your own items, prompt, scale and model.
# - [where_a_judgement_forms](where_a_judgement_forms.ipynb): single words on their way through the layers.
# - [docs/judges.md](../docs/judges.md): the same on eleven sets of human scores, where it works and where it does not.

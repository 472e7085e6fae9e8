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
# people each have rated from very negative to very positive.

# %%
import tempfile
from pathlib import Path

import probes

items = probes.vader_words(120)
items.to_pandas().head()

# %% [markdown]
# The template turns an item into a prompt. Five worked examples show the judge that a digit is wanted. They are the same
# for all items, so they are computed once.

# %%
judge = probes.Judge.load("smollm2-135m", template="words", scale="1..5", human_range="-4..4")
plan = probes.preview(judge, items)
print(plan.first_prompt[-260:])
print(f"{plan.tokens_before:,} tokens one by one, {plan.tokens_after:,} as planned")

# %% [markdown]
# The capture writes one file. From here on the model is no longer needed.

# %%
run = probes.capture(judge, items, Path(tempfile.mkdtemp()) / "run.h5")
run

# %% [markdown]
# Under the *norm* lens each layer's state goes through the model's own final norm and output matrix, as if the model
# stopped there. Early layers know nothing about the score; the agreement appears in the last third.

# %%
probes.figures.alignment(probes.by_layer(run, resamples=500))

# %% [markdown]
# One layer is seldom the best witness. A signed mixture of all layers, fitted on labels of other words, agrees far better
# with the raters than the last layer does, and better than that layer recalibrated on as many labels.

# %%
found = probes.compare(run, ["final", "final-ridge", "slope-ridge"], resamples=500)
print(found.summary())

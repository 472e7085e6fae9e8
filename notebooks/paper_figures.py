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
# # Figures and tables for a paper, from a saved run
#
# A run holds everything that the analysis needs. This notebook opens one and makes figures and a LaTeX table, without the
# model: on a laptop, months later, or for a run that somebody else has captured.

# %% tags=["parameters"]
N_WORDS = 450  # fewer are quicker, and have wider intervals

# %%
import sys
from pathlib import Path

import probes
from probes.figures import tables
from probes.tables import to_latex

path = Path(f"runs/words-{N_WORDS}.h5")
if not path.exists():  # the run of the first notebook; this is the only step that needs the model
    judge = probes.Judge.load("smollm2-135m", template="words", scale="1..5", human_range="-4..4")
    probes.capture(judge, probes.vader_words(N_WORDS), path, mass=True)
run = probes.open_run(path)
run

# %% [markdown]
# ## Numbers first
#
# Every figure is drawn from a tidy table, and no figure computes a statistic of its own. So what is in the figure can be
# looked up, and you can draw it otherwise.

# %%
found = probes.compare(
    run,
    ["final", "uniform@norm", "lager@norm", "final-ridge", "best-layer-ridge", "text-ridge", "spectral-ordinal"],
    baseline="final-ridge",
)
print("torch was needed:", "torch" in sys.modules)
found.by_layer.tail(3)

# %% [markdown]
# ## Layer by layer
#
# One column of a two-column paper wide, the colours told apart by colour-blind readers, and the lines by their dashes in
# grey. The caption says of how many items, and what the band is.

# %%
lines = found.human_lines.set_index("line")["value"]
curve = probes.figures.alignment(found.by_layer, attainable=lines["attainable"], human=lines["human"])
curve

# %% [markdown]
# `save` writes PNG, PDF and SVG, with fonts in them. The same figure gives the same bytes, so that a figure in a repository
# changes only when its numbers do.

# %%
figures = Path("runs/figures")
first = [path.read_bytes() for path in probes.figures.save(curve, figures / "layers")]
again = [path.read_bytes() for path in probes.figures.save(curve, figures / "layers")]
print([path.name for path in sorted(figures.glob("layers.*"))], "same bytes:", first == again)

# %% [markdown]
# ## What the judges gain
#
# A forest plot of paired differences to the last layer recalibrated on as many labels. An interval that crosses the line
# leaves open whether there is a gain.

# %%
probes.figures.forest(found.table)

# %% [markdown]
# ## What the layers say, and how the raters used the scale
#
# How often each label would be given, over the histogram of the raters, with the divergence of the two.

# %%
probes.figures.distributions(tables.score_distributions(run), layers=[1, 20, 30])

# %% [markdown]
# ## How sure a judge may be
#
# The reliability diagram of the last layer and of the default judge, on held-out items.

# %%
probes.figures.reliability(tables.reliability_bins(run))

# %% [markdown]
# ## Weights of the layers
#
# What judges learned. Neighbouring layers say nearly the same, and a penalty divides a weight among them, so that single
# bars are no importances.

# %%
learned = found.weights[found.weights["judge"].isin(["lager@norm", "spectral-ordinal"])]
probes.figures.weights(learned)

# %% [markdown]
# ## How alike the layers are
#
# Mean cosine of the residual states of every two layers, after what all items share has been taken off.

# %%
probes.figures.similarity(tables.layer_similarity(run, centred=True))

# %% [markdown]
# ## Several panels, and changes of your own
#
# Every function takes `ax=` and gives a matplotlib figure, so that titles, sizes and limits are yours.

# %%
import matplotlib.pyplot as plt

page, (left, right) = plt.subplots(1, 2, figsize=(7.0, 2.9), layout="constrained")
norm = found.by_layer[found.by_layer["lens"] == "norm"]
probes.figures.alignment(norm, ax=left, caption=False)
probes.figures.forest(found.table, ax=right, caption=False)
left.text(-0.2, 1.05, "a", transform=left.transAxes, fontweight="bold")
right.text(-0.3, 1.05, "b", transform=right.transAxes, fontweight="bold")
probes.figures.save(page, figures / "page", "pdf")
# %% [markdown]
# ## The table
#
# As LaTeX, with the rules of `booktabs`. The footnote says how the numbers came about: statistic, folds, intervals, and
# how many items were used. `write_table` writes `.tex`, `.md` or, with all columns and digits, `.csv`.

# %%
columns = ["judge", "labels_used", "spearman", "difference", "p_holm"]
print(to_latex(found.table, columns, note=found.footnote, caption="Agreement with ten raters.", label="tab:judges"))

# %%
for name in ("judges.tex", "judges.md", "judges.csv"):
    probes.write_table(found.table, figures / name, note=found.footnote)
print(sorted(path.name for path in figures.iterdir()))

# %% [markdown]
# ## The same without a notebook
#
# ```text
# probes plot runs/words-450.h5 --figure all --out figures
# probes compare runs/words-450.h5 --baseline final-ridge --out judges.tex
# ```
#
# ## What to read next
#
# - [compare_judges](compare_judges.ipynb): what may be said about these numbers.
# - [docs/comparing.md](../docs/comparing.md): several runs in one table, all columns.
# - [docs/file-format.md](../docs/file-format.md): how to read a run without this package.

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
# # Your own items, rubric and model
#
# This notebook judges something that the package has never heard of: how polite a message is. It makes a file of items,
# a template and a scale, looks at the prompt before anything is computed, captures a run, and scores new messages with
# the judge that comes out of it. In the end it says how another model is named.
#
# The messages and their scores are made up for this notebook, and there are few of them. They show how it is done, not
# what a model can do.

# %%
import json
from pathlib import Path

import probes
from probes.tables import format_table

folder = Path("runs/own")
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Items
#
# One JSON object a line: texts, human scores, and what the items share. Two people (A and B) have scored each message
# from 0, rude, to 10, very polite. Each request is worded twice. Wordings of one request are not independent, so they are
# one **group**: a group is never divided between fitting and testing, and intervals are about groups.

# %%
records = """
door    | Would you be so kind as to close the door?                          | 9  | 10
door    | Shut the door, idiot.                                               | 0  | 1
salt    | Could you pass the salt, please?                                    | 8  | 8
salt    | Salt. Now.                                                          | 1  | 2
report  | Thank you so much for the report, it was a pleasure to read.        | 10 | 9
report  | Your report is garbage and everyone knows it.                       | 0  | 0
seat    | Excuse me, is this seat taken?                                      | 8  | 9
seat    | Move. That is my seat.                                              | 2  | 1
music   | Would you mind turning the music down a little?                     | 8  | 8
music   | Turn that noise off before I do it for you.                         | 1  | 1
call    | I am sorry to bother you, may I call you later today?               | 9  | 9
call    | Why do you never pick up the phone?                                 | 3  | 2
help    | I would be very grateful for your help with this form.              | 9  | 10
help    | Do this form for me.                                                | 4  | 3
late    | I apologise for being late, thank you for waiting.                  | 9  | 9
late    | So what if I am late? Stop whining.                                 | 1  | 0
coffee  | May I have a coffee, please?                                        | 8  | 9
coffee  | Get me a coffee and be quick about it.                              | 2  | 1
meeting | It was kind of you to move the meeting for me.                      | 9  | 9
meeting | Nobody cares about your stupid meeting.                             | 0  | 0
book    | Might I borrow this book when you have finished it?                 | 9  | 8
book    | Give me that book.                                                  | 3  | 3
mail    | Please let me know if you have any questions.                       | 8  | 7
mail    | Read the mail before you ask silly questions.                       | 2  | 1
road    | Could you tell me the way to the station, please?                   | 8  | 9
road    | Hey you, where is the station?                                      | 4  | 3
food    | The dinner was lovely, thank you for having us.                     | 10 | 9
food    | This tastes awful, who cooked it?                                   | 1  | 2
work    | Whenever you have a moment, could you look at my draft?             | 9  | 9
work    | I want this draft checked by noon.                                  | 4  | 4
ticket  | Two tickets, please.                                                | 7  | 6
ticket  | Two tickets.                                                        | 4  | 5
""".strip().splitlines()

with (folder / "messages.jsonl").open("w", encoding="utf-8") as file:
    for number, line in enumerate(records):
        topic, text, a, b = (part.strip() for part in line.split("|"))
        record = {"id": f"m{number:02d}", "group": topic, "text": text, "rater_a": int(a), "rater_b": int(b)}
        file.write(json.dumps(record) + "\n")

# %% [markdown]
# Columns are called what you call them: `fields` says which hold texts, `human` which hold scores. With `scale` every
# score is checked against the range of the raters as it is read; `raters="identity"` says that each column is one person.

# %%
scale = probes.Scale.parse("1..5", human_range="0..10")
items = probes.read_items(
    folder / "messages.jsonl", fields=["text"], human=["rater_a", "rater_b"], raters="identity", scale=scale
)
items

# %% [markdown]
# ## Scale
#
# The scale is what the judge may say, `1..5`. The raters used another one, 0 to 10. The two are tied by a line: 0 is worth
# 1, and 10 is worth 5. Scores as given and scores as mapped are both kept. Other scales are written `A..E`, `yes/no`,
# `poor/fair/good` or `A=4,B=3,C=1`.

# %%
scale

# %% [markdown]
# ## Template
#
# A template is Jinja2 text in a YAML file. It sees the fields of the item and the scale. Small models need worked examples
# (`shots`) to see what is asked of them. None of the examples may be among the items. A template that names a field which
# an item lacks is an error, not an empty space.

# %%
(folder / "politeness.yaml").write_text(
    """
user: |-
  How polite is this message, from {{ scale.labels[0] }} (rude) to {{ scale.labels[-1] }} (very polite)?
  Message: {{ text }}
  Reply with the number only.
shots:
- fields: {text: "I would like to thank you for your patience, dear colleague."}
  answer: "5"
- fields: {text: "Get lost, you fool."}
  answer: "1"
- fields: {text: "Here is the file."}
  answer: "3"
- fields: {text: "Hurry up with that."}
  answer: "2"
- fields: {text: "Thanks for the file."}
  answer: "4"
""",
    encoding="utf-8",
)
judge = probes.Judge.load("smollm2-135m", template=folder / "politeness.yaml", scale=scale)
judge

# %% [markdown]
# ## Dry run
#
# Before a long capture, look at what would be done: the first prompt exactly as the model will see it, how many tokens
# there are, how many are left when what prompts share is computed once, the size of the file, the time it takes. On the
# command line this is `probes capture --dry-run`.

# %%
plan = probes.preview(judge, items)
print(plan.first_prompt[-330:])
print("---")
print(f"{plan.n_items} items, {plan.n_too_long} too long for the model")
print(f"{plan.tokens_before:,} tokens one by one, {plan.tokens_after:,} with shared prefixes")
print(f"{plan.n_bytes / 1e6:.1f} MB")

# %% [markdown]
# The tokens that are read for each label are found in the prompt itself, since many tokenizers spell "5" in one way and
# " 5" in another. Check them: every label should have the same number of spellings, and each should look right.

# %%
for number, spelling in zip(judge.score_tokens.token_ids, judge.score_tokens.spellings, strict=True):
    print(f"token {number} is {spelling!r}")

# %% [markdown]
# ## Capture
#
# Then the run, and the first number to look at: how much of the whole vocabulary's probability is on the labels. If the
# model would rather say something else, the distribution over the labels is about a question that it did not answer.
# Below .2 a warning says so. The cure is mostly the prompt: worked examples, or a `prefill` such as `Score:`.

# %%
run = probes.capture(judge, items, folder / "messages.h5", mass=True)
print(f"probability on the scale: {run.final_mass.mean():.2f} on average, {run.final_mass.min():.2f} at least")
run

# %%
probes.figures.mass(probes.figures.tables.scale_mass(run))

# %% [markdown]
# ## Does it agree with the raters?
#
# With 32 messages in 16 groups the intervals are wide, and the note under the table says that they are rough. The gain
# over `final` is one thing; look also at *over baseline*, the gain over the best judge without other layers that has seen
# as many labels, and at `text-ridge`, which has read no model at all. As long as their intervals hold zero, nothing has
# been shown about the layers. A few hundred labelled items are a better start.

# %%
found = probes.compare(run, ["final", "final-ridge", "text-ridge", "spectral-ordinal"])
found

# %% [markdown]
# The raters are people, so each can be looked at: who is generous (`offset`, in label values), and how well one agrees with the
# other. With two of them the two rows mirror each other.

# %%
print(format_table(found.raters, ["rater", "mean", "offset", "spearman", "n_used"], digits=2))

# %% [markdown]
# ## Scoring new messages
#
# A fitted judge is a file. It remembers how the model was asked, so that new items need no more than the file:
# `probes score --judge politeness.json --items new.jsonl` does the same as this.

# %%
found.judges["spectral-ordinal"].save(folder / "politeness.json")
fitted = probes.FittedJudge.load(folder / "politeness.json")
fitted

# %%
new = probes.Items(
    [
        probes.Item("n1", {"text": "Could I ask you for a small favour, please?"}),
        probes.Item("n2", {"text": "You again. What do you want?"}),
        probes.Item("n3", {"text": "The train leaves at nine."}),
    ]
)
scores = probes.score(fitted, new, judge)  # without `judge` it loads the model that the file names
scores["on the raters' scale"] = judge.scale.to_human(scores["value"].to_numpy())
scores.round(2)

# %% [markdown]
# `value` is on the scale of the labels, 1 to 5, and the last column on that of the raters. The probabilities say how
# unsure it is: where they spread over several labels, a value in the middle means "I cannot tell" rather than "3".

# %% [markdown]
# ## Another model
#
# `Judge.load` and `--model` take
#
# - a Hugging Face id, `Judge.load("Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16", device="cuda:0")`;
# - a folder that `save_pretrained` wrote, `Judge.load("models/mine")`;
# - a GGUF file, `Judge.load("models/mine-Q4_K_M.gguf")`;
# - in Python also a loaded Hugging Face model, or TransformerLens' `TransformerBridge`.
#
# Here is a folder, made on the spot: a Llama with two layers and random weights, with the tokenizer of the judge above. It
# knows nothing, and it shows what that looks like: hardly any probability on the scale (which is what the warning is
# about), and every label as likely as any other.

# %%
import transformers

config = transformers.LlamaConfig(
    vocab_size=len(judge.tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=1024,
)
transformers.utils.logging.disable_progress_bar()
transformers.set_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained(folder / "tiny")
judge.tokenizer.save_pretrained(folder / "tiny")

other = probes.Judge.load(folder / "tiny", template=folder / "politeness.yaml", scale=scale)
other

# %%
import logging

logging.getLogger("probes").setLevel(logging.ERROR)  # the warning is what we are here to see in numbers
nothing = probes.capture(other, items, folder / "tiny.h5")
print(f"probability on the scale: {nothing.final_mass.mean():.5f}")
print("first message, last layer:", nothing.scores("final").probs[0].round(2))

# %% [markdown]
# The same items, judged by two models, can be compared with paired intervals. So can prompts, conditions and scales.

# %%
both = probes.compare(
    {"smollm2": run, "tiny": nothing}, ["final", "spectral-ordinal"], baseline="smollm2:spectral-ordinal", resamples=500
)
print(format_table(both.table, ["run", "judge", "labels_used", "n_used", "spearman", "difference"], digits=2))

# %% [markdown]
# A fitted judge belongs to its model. What does not go with it is refused before anything is computed: another model,
# another scale, other score tokens.

# %%
try:
    probes.score(fitted, new, other)
except probes.ProbesError as error:
    print(error)

# %% [markdown]
# ## What to read next
#
# - [docs/scoring.md](../docs/scoring.md): fitted judges, on the command line and as a scorer of Inspect.
# - [docs/methods.md](../docs/methods.md), sections 4 and 5: score tokens and scales, exactly.
# - [docs/comparing.md](../docs/comparing.md): several prompts of one judge, several models.
# - [compare_judges](compare_judges.ipynb): what to make of the intervals.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # List operations: a transformer that can be understood completely
#
# `Max(3, 7, 1)` is 7, `Second(3, 7, 1)` is 7 too, and `Last(3, 7, 1)` is 1. Five operations on a
# short list of numbers are the smallest task on which a transformer has to do what it is made
# for: look at the right places. Here one learns it **within seconds**, is asked only what it has
# **never seen**, and shows where it looks.
#
# Ten steps, to be run from top to bottom. All figures below come from this very run.

# %% [markdown]
# ## What you can change
#
# `size` says how many examples there are: 1,000 (small), 10,000 (medium) or 100,000 (large).
# `items` and `max_value` make it harder: try `2-20` and `99`. Anything else has a name too and
# goes into `more`.

# %% tags=["parameters"]
minutes: float = 0.75  # the whole budget: start, training, scoring, export and pictures
run: str = ""  # name of the run; the same name continues it; empty: the task and the time
root: str = "."  # where submissions/ and checkpoints/ are
size: str = "small"  # how many examples: small (1,000), medium (10,000) or large (100,000)
items: str = "3"  # how many items a list has, 2 to 20: a number, or a range such as 2-20
max_value: int = 9  # the values are 0 to this, at most 99
seed: int = 0  # of weights, order, and which input is in which part
epochs: int | None = None  # end after so many; None: train to the deadline
batch_size: int | None = None  # examples in a batch; None: 64
lr: float | None = None  # peak learning rate of the layers' matrices; None: 0.01
more: dict = {}  # any other setting by name, such as {"test_items": "4-8", "nhead": 2}

# %% [markdown]
# ## Start the clock
#
# The deadline is absolute and counts everything. Nothing starts unless it still fits in front of
# it, and there is a floor submission before the first training step.

# %%
import timebox
from timebox import show
from timebox.tasks.listops import show as listops

dials = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
chosen = {"size": size, "items": items, "max_value": max_value, "seed": seed}
chosen |= {name: value for name, value in dials.items() if value is not None}
chosen |= {"log_every_seconds": max(2, 2 * minutes)}
session = timebox.start("listops", minutes=minutes, run=run, root=root, **(chosen | more))
task, folder = session.task, session.folder

# %% [markdown]
# ## Step 1: the dataset
#
# As many examples of each operation as of any other, and of each length of list as far as there
# are so many different lists.

# %%
listops.operations(task, folder)

# %% [markdown]
# A model sees numbers, one for each *token*: the operation, the items, and the end of the list.
# Brackets and commas would tell it nothing more. Each value has a token of its own, so the whole
# answer is predicted, not its first digit; and the model is not told that 7 comes after 6.

# %%
listops.samples(task)

# %% [markdown]
# ## Step 2: training, validation and test
#
# *Different inputs* are split first, 80 / 10 / 10. Three digits make only 1,000 lists for each
# operation, so a larger dataset of them has to repeat itself: it repeats inputs within the
# training part, and no other. The count of inputs that two parts share must be 0.

# %%
print(f"Inputs in more than one part: {task.data.overlap()}")
listops.split(task)

# %% [markdown]
# What could be had without understanding anything? Each rule below answers in one way, whatever is
# asked. The best of them on the training part, which stands first, is the floor submission.

# %%
floor = task.score(None, session.clock.share(20), None)
listops.rules(task)

# %% [markdown]
# ## Step 3: batches and masks
#
# Lists of different lengths are padded to the longest of their batch. The mask is 1 where there
# is something to attend to; padding is never attended to, and what stands there changes nothing.
# Lists of one length need no padding: start with `items="2-6"` to see some.

# %%
listops.batch(task)

# %% [markdown]
# ## Step 4: the model
#
# Each token becomes a vector. In every layer the tokens first look at each other (*attention*),
# then each is worked on by itself (*mlp*). In the end the vector of the operation's token is
# compared with each possible answer (*head*). Where a token stands turns its queries and keys,
# which takes no parameters.

# %%
show.parts(task.model())

# %% [markdown]
# Nearly all of it is in the layers. Matrix by matrix:

# %%
listops.layers(task.model())

# %% [markdown]
# ## Step 5: one question before training
#
# From tokens to an answer: the shapes on the way, then the likeliest five answers. Nothing was
# learned yet, so every answer is about as likely as any other.

# %%
first = listops.questions(task)[3]
before = listops.untrained(task)
listops.shapes(task, before, first)

# %% [markdown]
# The right answer is marked, if it is among them.

# %%
listops.top(task, before, folder, [first], "before")

# %% [markdown]
# ## Step 6: how it will be trained
#
# By default the matrices of the layers are stepped by Muon, all else by AdamW.

# %%
listops.setup(task, session.settings)

# %% [markdown]
# Where the clock ends the run, the learning rate follows the clock, not a number of steps: it
# rises quickly, stays, and falls to zero right at the end. On a slower machine the run takes fewer
# steps and is annealed all the same. Where `epochs` end it, the rate follows these.

# %%
show.schedule(session)

# %% [markdown]
# ## Step 7: train
#
# A line every few seconds; with each evaluation the answer to one of the validation inputs. To
# stop early, use the stop button or make a file called `stop` in the run's folder: the run still
# scores, exports and saves.

# %%
result = timebox.fit(session)
print(f"{result['status']} ({result['reason']}) after {result['steps']:,} steps")

# %% [markdown]
# ## Step 8: the test
#
# With the weights that were best on the validation part, on inputs that the model has never seen.

# %%
listops.accuracy(task, folder)

# %% [markdown]
# Where there are few different inputs, *all* of those that neither trained the model nor chose
# its weights are asked: `all unseen` tells 99.2% from 99.6%, which 100 test inputs cannot. Below
# it, the rules without understanding.

# %%
show.results(session)

# %% [markdown]
# ## Step 9: answers, and how sure they are
#
# A test input of each operation, with the five likeliest answers.

# %%
model = listops.trained(task, session.checkpoints)
listops.top(task, model, folder, listops.questions(task), "after")

# %% [markdown]
# What it got wrong, the surest first. Rare answers are the hard ones: of the 1,000 lists of three
# digits, `Max` is 0 for `0, 0, 0` alone, and where that one is in the test, no training example
# of `Max` ever had this answer.

# %%
listops.mistakes(task, folder)

# %% [markdown]
# ## Step 10: where it looks
#
# These are the weights by which the model really mixes its tokens, head by head. Each row adds up
# to 1 and says where its token takes from; the **first row** is the operation's, and from there
# the answer is read. The entropy of that row says how widely it looks: 0 bits is one place,
# log2(n) bits is all n tokens alike. Below a third of the most possible we call it *focused*,
# above two thirds *distributed*, between them *mixed*.

# %%
listops.attention(task, model, folder, first)

# %% [markdown]
# One question may be an accident, so here are all heads with the mean over the test inputs. One
# would expect a focused look for First, Second and Last, and a distributed one for Max and Min.
# See whether that is so: several heads can share the work, a wide look that does no harm is
# never unlearned, and for Max one place is enough once it is known which item is the largest.

# %%
listops.patterns(task, model, folder)

# %% [markdown]
# ## Ask it yourself
#
# Lists with one item more than any that it was trained on (but never more than 20). Put your own
# questions in their place.

# %%
asked = listops.longer(task)  # or your own, such as ["Max(1, 2, 3)", "Last(4, 0)"]
listops.top(task, model, folder, asked, "asked")

# %% [markdown]
# ## What it learned, minute by minute

# %%
show.curves(session, floor["exact"])

# %% [markdown]
# ## Where the minutes went

# %%
show.minutes(session)

# %% [markdown]
# ## What you leave with

# %%
task.check(folder)
print("submission.json is valid")
show.kept(session)

# %% [markdown]
# ## Going on
#
# A run that was stopped, or killed, goes on from its last checkpoint under the same `run` name,
# here or on another machine. A finished one has annealed to its end: its weights can begin a new
# run.

# %%
print(result["command"])

# %% [markdown]
# ## What to try next
#
# * **More data.** `size="medium"` trains on 4,000 of the 5,000 different inputs.
# * **A harder task.** `items="2-20"`, `max_value=99`, `size="large"` and `minutes=5`.
# * **Longer lists than it has seen.** `items="2-10"`, `size="large"`, and
#   `more={"test_items": "11-20"}`: the bars of step 8 then show how far it carries.
# * **The classic recipe.** `more={"recipe": "guide"}`: Adam at one rate, batches of 32, 10 epochs.
# * **Fewer heads.** `more={"nhead": 1}`, then look at step 10 again.

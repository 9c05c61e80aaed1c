# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ARC in a fixed number of minutes
#
# [ARC-AGI](https://arcprize.org) shows a few pairs of coloured grids and asks for the output of
# one more input. Each task follows a rule of its own. This notebook trains a small transformer
# on **every demonstration pair there is**, spends the **whole budget**, and has a **valid
# submission from its first seconds on**, which is only ever replaced by a better one.
#
# Run it from top to bottom. All figures below come from this very run.

# %% [markdown]
# ## What you can change
#
# `preset` is the one dial: `small` learns something within minutes on a CPU, `orcasword` wants a
# GPU and hours. Anything else has a name too and goes into `more`.

# %% tags=["parameters"]
minutes: float = 5.0  # the whole budget: start, training, scoring, export and pictures
run: str = ""  # name of the run; the same name continues it; empty: the task and the time
root: str = "."  # where submissions/ and checkpoints/ are
preset: str = "small"  # size of the model: small or orcasword
seed: int = 0  # of weights, order and augmentation
data_dir: str = ""  # folder with the competition's files; empty: those mounted, else the library's
version: str = "2025"  # year of the library's data: 2025 (ARC-AGI-2) or 2024 (ARC-AGI-1)
more: dict = {}  # any other setting by name, such as {"lr": 0.01, "max_steps": 500}

# %% [markdown]
# ## Start the clock
#
# The deadline is absolute and counts everything. Nothing starts unless it still fits in front of
# it, and there is a floor submission before the first training step.

# %%
import timebox
from timebox import show
from timebox.tasks.arc import show as arc

chosen = {"preset": preset, "seed": seed, "data_dir": data_dir, "version": version, **more}
session = timebox.start("arc", minutes=minutes, run=run, root=root, **chosen)

# %% [markdown]
# ## What a puzzle looks like
#
# Inputs above, outputs below; the last column is the question. Before reading on, try one: which
# rule turns every input of a puzzle into its output?

# %%
arc.examples(session.task, session.folder)

# %% [markdown]
# A demonstration pair is a training example, from whichever set it comes: its output is given
# with the task. The *tests* of the training tasks choose the best weights, the tests of the
# evaluation tasks are what we report, and neither is ever trained on.

# %%
overlap = session.task.data.overlap()
print(f"{session.task.data.examples:,} training examples; judged items among them: {overlap}")
arc.sets(session.task)

# %% [markdown]
# ## How it is scored, and what no model scores
#
# An answer counts only if **every cell and the size** are right, and there are two attempts for
# each. `cell accuracy` is the share of right cells (0 where the size is wrong): it moves earlier
# than the score, but looks far better than it is. The floor submission is made of trivial rules
# alone, such as "turn it upside down", where all demonstrations agree on one.

# %%
floor = session.task.score(None, session.clock.share(20), None)
show.table({"floor, validation": floor})

# %% [markdown]
# ## A valid submission already exists
#
# If everything stopped now, this file could be handed in.

# %%
session.task.check(session.folder)
print(f"{session.folder / 'submission.json'}: checked and valid")

# %% [markdown]
# ## The model
#
# One token for each cell of a canvas that is large enough for the answer. All cells look at all
# cells, several layers deep; each cell then says its colour, or "outside" where the answer does
# not reach, so the size is predicted with it. What the task demands sits in one learned vector
# for each task. Every visit shows a pair turned, mirrored and recoloured afresh.

# %%
show.parts(session.task.model())

# %% [markdown]
# ## The schedule
#
# Where the clock ends the run, the learning rate follows the clock, not a number of steps: on a
# slower machine the run takes fewer steps and is annealed all the same.

# %%
show.schedule(session)

# %% [markdown]
# ## Train
#
# One line every few seconds. To stop early, use the stop button or make a file called `stop` in
# the run's folder: the run still scores, exports and saves.

# %%
result = timebox.fit(session)
print(f"{result['status']} ({result['reason']}) after {result['steps']:,} steps")

# %% [markdown]
# ## What it learned, minute by minute

# %%
show.curves(session, floor["exact"])

# %% [markdown]
# ## Where the minutes went

# %%
show.minutes(session)

# %% [markdown]
# ## Results
#
# On the evaluation set, whose answers were opened only now. `competition` is the official rule:
# the share of test outputs that either attempt solves. `exact` is the first attempt alone.

# %%
show.results(session)

# %% [markdown]
# ## Right and wrong, side by side
#
# Solved puzzles first, then the nearest misses. A mark shows a wrong cell; one is enough to fail.

# %%
arc.answers(session.task, session.folder)

# %% [markdown]
# ## What you leave with

# %%
session.task.check(session.folder)
print("submission.json is valid")
show.kept(session)

# %% [markdown]
# ## Going on
#
# A run that was stopped, or killed, goes on from its last checkpoint under the same `run` name,
# here or on another machine. A finished one has annealed to its end: its weights can begin a new
# run. One that is to be annealed over several sessions gets `total_hours` at its start.

# %%
print(result["command"])

# %% [markdown]
# ## What to try next
#
# * **More time.** `minutes=60` is worth more than any change of the settings.
# * **More model.** `preset="orcasword"` on a GPU.
# * **More votes.** `more={"views": 256}`: each view of an input, turned and recoloured, has a vote.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The long Collatz step, digit by digit
#
# Take an odd number. While it is odd, make it (3n + 1) / 2; then halve it until it is odd again.
# That is one *long step*: simple to say, and known to be hard for a transformer in a peculiar way
# ([Charton and Narayanan, 2025](https://arxiv.org/abs/2511.10811)). Here a small one learns it
# within a **fixed number of minutes**, and shows what it understood and what it did not.
#
# Run it from top to bottom. All figures below come from this very run.

# %% [markdown]
# ## What you can change
#
# `base` is the dial to play with: 24, 16 or 32 are learned well, 10 less so, 3 and 11 hardly.
# Anything else has a name too and goes into `more`, such as `d_model` or `num_layers`.

# %% tags=["parameters"]
minutes: float = 10.0  # the whole budget: start, training, scoring, export and pictures
run: str = ""  # name of the run; the same name continues it; empty: the task and the time
root: str = "."  # where submissions/ and checkpoints/ are
base: int = 24  # of the digits, 2 to 1000
range_max: int | None = None  # the largest number, up to 10**12; None: 2**24
distribution: str | None = None  # uniform, or log (as many of each length); None: uniform
order: str | None = None  # which digit is read and written first: least or most; None: least
architecture: str | None = None  # decoder or encoder-decoder; None: decoder
recipe: str = ""  # guide or paper: their settings where none is given here; empty: ours
seed: int = 0  # of weights, numbers and their order
more: dict = {}  # any other setting by name, such as {"d_model": 256, "batch_size": 512}

# %% [markdown]
# ## Start the clock
#
# The deadline is absolute and counts everything. Nothing starts unless it still fits in front of
# it, and there is a floor submission before the first training step.

# %%
import timebox
from timebox import show
from timebox.tasks.collatz import show as collatz

asked = {"base": base, "range_max": range_max, "distribution": distribution, "order": order}
asked |= {"architecture": architecture, "recipe": recipe, "seed": seed}
chosen = {name: value for name, value in asked.items() if value is not None} | more
session = timebox.start("collatz", minutes=minutes, run=run, root=root, **chosen)

# %% [markdown]
# ## What a long step is
#
# Up while the number is odd, `k` times; then down while it is even, `k'` times. Numbers that take
# the same `k` and `k'` all follow one formula: the result is (3^k n + 3^k - 2^k) / 2^(k + k'). So
# the arithmetic is one multiplication and one division. What differs is *which* one.

# %%
collatz.steps(session.folder)

# %% [markdown]
# Both lengths are read off the last binary digits: `k` is the number of ones at the end of n,
# `k'` needs a few digits more. Half of the odd numbers have k = 1, a quarter k = 2, and so on,
# and the same holds for k'. A quarter of all has k = k' = 1, and not one in 500 needs
# k + k' = 14 or more.

# %% [markdown]
# ## What the model sees
#
# Digits in the base, each a token; padding and the end of an answer have tokens of their own.
# It writes the result digit by digit after its own digits, until it writes the end.

# %%
collatz.digits(session.task, session.folder)

# %% [markdown]
# ## What it learns from, and what it is asked
#
# No number that is asked was ever trained on: which part a number belongs to is fixed by a hash
# of the number itself. The validation numbers choose the best weights, the test numbers are what
# we report. Each of them counts once. With `distribution="log"` training draws the few small
# numbers again and again, so there they are much rarer among the judged numbers than in training.

# %%
overlap = session.task.data.overlap()
print(f"{session.task.data.examples:,} examples an epoch; judged numbers among them: {overlap}")
collatz.sets(session.task)

# %% [markdown]
# ## How it is scored, and what no model scores
#
# An answer counts only if **every digit and the end** are right. The floor submission takes every
# number for one with k = k' = 1 and answers (3n + 1) / 4, which is right for a quarter of them.

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
# A transformer reads all digits of the number, then writes the answer from left to right.

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
# `exact` is the score. `token accuracy teacher forced` is the share of right digits when the
# digits before are given: it is high long before a single number is right. To stop early, use the
# stop button or make a file called `stop` in the run's folder.

# %%
result = timebox.fit(session)
print(f"{result['status']} ({result['reason']}) after {result['steps']:,} steps")

# %% [markdown]
# ## What it learned, minute by minute

# %%
show.curves(session, floor["exact"])

# %% [markdown]
# ## One class after the other
#
# Not all numbers get a little better together. Group them by their last binary digits: a group is
# nearly all wrong, then within a short time nearly all right, and the groups come in the order of
# k + k'. The score climbs a ladder whose steps can be computed beforehand: 25%, 50%, 68.75%, ...

# %%
collatz.learning(session.folder)

# %% [markdown]
# The ladder in numbers, with the test numbers' accuracy at each level. A level counts as learned
# when more than 95% of each of its classes are right.

# %%
collatz.rungs(session.folder)

# %% [markdown]
# ## Where it is right now
#
# On the test numbers, by k + k'.

# %%
collatz.levels(session.folder)

# %% [markdown]
# And by k and k' apart. What is right and what is wrong meet along a diagonal.

# %%
collatz.loops(session.folder)

# %% [markdown]
# ## The errors, and why they are what they are
#
# The paper, with 300 million examples, found more than nine wrong answers in ten to be a *right*
# calculation with the *wrong loop lengths*. An answer that is twice the truth has one halving too
# few: the model took the number for one of a class that it knows already. Where the ratio is near
# (3/2)^a, it counted too few or too many ups. What is hard in the end is control, to know how
# often to loop, and not arithmetic.
#
# A model trained for minutes is not there yet. It also gets the digits of the rare classes wrong
# when it has the loop lengths right: such an answer has the right size, within a few percent of
# the truth. In a run that we measured (base 24, 10 minutes, 92% exact) only 2% of the errors were
# wrong loop lengths. The table says which errors this run makes.
#
# In a base like 24 the last digit tells n modulo 8, which settles the easiest class at a glance;
# in an odd base every digit is needed to know a single binary one, which is why bases 3 and 11
# are so hard.

# %%
collatz.errors(session.folder)

# %% [markdown]
# From an answer one can often tell for which k and k' it was calculated. Are they the number's?

# %%
collatz.lengths(session.folder)

# %% [markdown]
# ## Where the minutes went

# %%
show.minutes(session)

# %% [markdown]
# ## Results
#
# On the test numbers. `loop lengths told`: answers that some k and k' explain; in these,
# `k exact` and `k prime exact` say how often they are the number's own. `wrong loop lengths`: the
# share of the wrong answers that are a right calculation for other loop lengths.

# %%
show.results(session)

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
# * **Another base.** `base=16` or `32`, then `base=11` or `3`: same model, same minutes, and a
#   ladder that is climbed or not.
# * **More time, with a larger model.** Each step of the ladder halves what is left, and costs more
#   than the one before: `minutes=20` and
#   `more={"d_model": 192, "nhead": 6, "lr": 0.02, "balance": 0.5}`.
# * **A small world.** `range_max=10000` has 5,000 odd numbers, of which 4,000 are trained on: the
#   held-out ones show how much of a good training loss was learned by heart.
# * **Larger numbers.** `range_max=1000000000000`, as in the paper; with `distribution="log"` it
#   is trained on numbers of every length alike, and still judged by long ones above all.
# * **The other order.** `order="most"`: the model must write the first digit before it has done
#   any carry.
# * **The recipes of others.** `recipe="guide"` or `recipe="paper"`.

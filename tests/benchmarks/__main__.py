"""`make bench`: speed as ratios within one run, so that a slow or busy machine matters little.

1. Training pairs per second of the `orcasword` preset against the guide's loop, same parameters.
2. What the loop costs over a bare PyTorch loop that takes the same steps.
3. What a checkpoint costs, against the training time it protects.
4. Seconds from the command to a valid submission.
5. Seconds of listops training until every test input is answered, against the guide's recipe.
6. Collatz examples made and trained on per second, against the guide's loop written plainly.

`make bench ARGS=collatz` runs those whose name has the word.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.collatz import examples_made, examples_trained
from tests.benchmarks.guide import GuideLoop, GuideModel
from tests.benchmarks.listops import seconds_to_perfect
from timebox.checkpoint import Store
from timebox.device import pick
from timebox.loop import train
from timebox.run import Run
from timebox.session import prepare
from timebox.settings import Settings
from timebox.step import take
from timebox.tasks import load_task
from timebox.world import World


def main() -> None:
    """Run every benchmark and print one line for each."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = pick("auto", "auto", "off", 600)
    print(f"{device.name}, {device.dtype}, torch {torch.__version__}", flush=True)
    own = [pairs_per_second, loop_overhead, checkpoint_cost, start_up]
    for benchmark in (*own, seconds_to_perfect, examples_made, examples_trained):
        home = f"{benchmark.__module__}.{benchmark.__name__}"
        if not all(word in home for word in sys.argv[1:]):
            continue
        name, value, aim, detail = benchmark(device)
        print(f"{name:<34}{value:>10}   aim {aim:<16}{detail}", flush=True)


def bare(task, device):
    """Model, optimizer and a function that takes the step of a given number, and nothing else."""
    torch.manual_seed(0)
    model = task.model().to(device.type)
    optimizer = task.optimizer(model, Settings())
    scaler, world = device.scaler(), World()

    def step(number: int) -> int:
        taken = take(model, optimizer, scaler, device, world, task.data.batch(number), 1.0, 1)
        return taken.examples

    return model, optimizer, step


def pairs_per_second(device):
    """Alternate blocks of both, so that whatever else the machine does hits both alike."""
    task = load_task("arc", preset="orcasword")
    model, _, step = bare(task, device)
    guide = GuideLoop()
    pairs = [pair for puzzle in task.data.puzzles for pair in puzzle.demos]
    order = np.random.default_rng(0).permutation(len(pairs))
    step(0)
    guide.step(pairs[0])
    ours = theirs = our_seconds = their_seconds = 0.0
    # Batches come in random order of size, so a block of them is a fair sample of an epoch.
    for block in range(6):
        began = time.perf_counter()
        for number in range(1 + 5 * block, 6 + 5 * block):
            ours += step(number)
        our_seconds += time.perf_counter() - began
        began = time.perf_counter()
        for i in order[4 * block : 4 * block + 4]:
            guide.step(pairs[i])
            theirs += 1
        their_seconds += time.perf_counter() - began
    ours, theirs = ours / our_seconds, theirs / their_seconds
    mine = sum(p.numel() for p in model.parameters()) / 1e6
    his = sum(p.numel() for p in GuideModel().parameters()) / 1e6
    detail = f"{ours:.1f} pairs/s ({mine:.2f} M) against {theirs:.2f} ({his:.2f} M)"
    return "training speed over the guide's", f"{ours / theirs:.1f} x", ">= 10 x", detail


def loop_overhead(device, steps: int = 40, rounds: int = 3):
    """The same steps by `train` and bare, in turn; the fastest round of each counts.

    Evaluation, export and checkpoints are work of their own and left out; deciding, logging and
    run.json are the loop's and count.
    """
    own, plain = [], []
    with tempfile.TemporaryDirectory() as root:
        for number in range(rounds):
            settings = Settings(hours=1, max_steps=steps, log_every_seconds=10, compile="off")
            task = load_task("arc", preset="small")
            session = prepare(task, settings, f"bench{number}", root, say=lambda text: None)
            run = Run(session)
            before = session.clock.spent()
            train(run)
            after = session.clock.spent()
            session.close()
            own.append(sum(after[name] - before.get(name, 0.0) for name in ("train", "setup")))

            _, _, step = bare(task, device)
            began = time.perf_counter()
            for number in range(steps):
                step(number)
            plain.append(time.perf_counter() - began)
    ratio = min(own) / min(plain)
    detail = f"{1000 * min(own) / steps:.1f} ms a step against {1000 * min(plain) / steps:.1f}"
    return "loop over a bare PyTorch loop", f"{100 * (ratio - 1):+.1f} %", "< 2 %", detail


def checkpoint_cost(device, rounds: int = 5):
    """Saving the `orcasword` preset with its optimizer: seconds, against those of one step."""
    task = load_task("arc", preset="orcasword")
    model, optimizer, step = bare(task, device)
    began = time.perf_counter()
    for number in range(3):
        step(number)
    step_seconds = (time.perf_counter() - began) / 3
    state = {
        "format": 1,
        "position": {"step": 0},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            store.save(state)
            seconds.append(time.perf_counter() - began)
        size = (Path(folder) / "last.pt").stat().st_size
    cost = sorted(seconds)[rounds // 2]
    # A 5-minute run saves at least every 75 s.
    detail = f"{cost:.2f} s for {size / 1e6:.0f} MB = {cost / step_seconds:.1f} steps"
    return "checkpoints in a 5-minute run", f"{100 * cost / 75:.2f} %", "< 5 % of time", detail


def start_up(device):
    """From the command, in a new process, to a submission that stands and was checked."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "timebox", "run", "arc", "--no-notebook", "--minutes", "1"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--run", "r", "--root", root], stdout=subprocess.PIPE, text=True
        )
        try:
            for line in process.stdout:
                if line.startswith("Valid from now on"):
                    break
            seconds = time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    return "command to valid submission", f"{seconds:.1f} s", "< 60 s", "without a notebook"


if __name__ == "__main__":
    main()

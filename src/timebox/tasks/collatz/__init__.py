"""Collatz: write the result of a long Collatz step, digit by digit, in a number base.

What has to be learned is how often the two loops of the step run, which is read off the last
binary digits of the number (Charton and Narayanan, 2025). Every score is the free-running answer
as a whole, on numbers that are never trained on.
"""

from __future__ import annotations

from typing import Literal

from timebox import optim
from timebox.settings import check_heads, within
from timebox.task import Task
from timebox.tasks.collatz.data import CollatzData
from timebox.tasks.collatz.export import Predictions
from timebox.tasks.collatz.model import Decoder, EncoderDecoder

SESSION_OPTIONS = ("class_bits",)  # what is told of a model, not what it is
RECIPES = {
    # ARKHE's training guide (github.com/monigarr/ARKHE): the range and the schedule it names.
    "guide": {
        "base": 24, "range_min": 1, "range_max": 10_000, "order": "most",
        "architecture": "encoder-decoder", "d_model": 512, "nhead": 8, "num_layers": 6,
        "decoder_layers": 1, "batch_size": 32,
        "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.0,
        "warmup": 0.0, "cooldown": 0.0, "epochs": 20, "eval_every_epochs": 1,
        "save_every_epochs": 5, "select": "loss", "plateau_patience": 3, "plateau_factor": 0.5,
        "patience": 5,
    },
    # What Charton and Narayanan train, on 300 million numbers.
    "paper": {
        "base": 24, "range_min": 1, "range_max": 10**12, "order": "most",
        "architecture": "encoder-decoder", "d_model": 512, "nhead": 8, "num_layers": 4,
        "decoder_layers": 1, "batch_size": 256,
        "optimizer": "adamw", "lr": 3e-5, "weight_decay": 0.0,
        "warmup": 0.0, "cooldown": 0.0, "max_steps": 300_000_000 // 256,
    },
}  # fmt: skip


def task(
    seed: int = 0,
    base: int = 24,
    range_min: int = 1,
    range_max: int = 2**24,
    distribution: Literal["uniform", "log"] = "uniform",
    order: Literal["least", "most"] = "least",
    architecture: Literal["decoder", "encoder-decoder"] = "decoder",
    d_model: int = 128,
    nhead: int = 4,
    num_layers: int = 3,
    decoder_layers: int = 1,
    batch_size: int = 256,
    adam_lr: float = 3e-3,
    epoch_examples: int = 300_000,
    validation_numbers: int = 2_000,
    test_numbers: int = 10_000,
    class_bits: int = 5,
    balance: float = 0.0,
) -> Task:
    """The Collatz task.

    `base`: of the digits. `range_min`, `range_max`: numbers are the odd ones between; at most
    10^12. `distribution`: of the numbers, "uniform" or "log" (uniform in the logarithm). `order`
    of the digits: "least" or "most" significant first. `architecture`: "decoder" (one stack over
    input and answer, `num_layers` deep) or "encoder-decoder" (`num_layers` and `decoder_layers`);
    `d_model` wide with `nhead` heads. `adam_lr`: peak rate of what Muon does not step, ten times
    that for embeddings; with optimizer=adamw of everything where no `lr` is given. An epoch is
    `epoch_examples` numbers where the range is too large to be listed (see `CollatzData`).
    `balance`: above 0, training draws numbers of the rare classes more often, up to 1.
    `class_bits`: accuracy is told for the classes of n modulo 2^class_bits, at most 8.
    """
    check_heads(d_model, nhead)
    within("num_layers", num_layers, 1, 1000)
    within("decoder_layers", decoder_layers, 1, 1000)
    within("class_bits", class_bits, 1, 8)
    within("adam_lr", adam_lr, 1e-8, 1)
    data = CollatzData(
        range_min=range_min, range_max=range_max, base=base, order=order,
        distribution=distribution, batch_size=batch_size, epoch_examples=epoch_examples,
        validation_numbers=validation_numbers, test_numbers=test_numbers, seed=seed,
        balance=balance,
    )  # fmt: skip
    predictions = Predictions(data, class_bits)

    def model():
        size = base, data.input_length, data.answer_length, d_model, nhead, num_layers
        if architecture == "decoder":
            return Decoder(*size)
        return EncoderDecoder(*size, decoder_layers)

    return Task(
        name="collatz",
        metric="exact",
        better=+1,
        data=data,
        model=model,
        optimizer=lambda model, settings: optim.build(
            model, settings, lr=0.03, adam_lr=adam_lr, embedding_lr=10 * adam_lr
        ),
        score=predictions.score,
        export=predictions.export,
        report=predictions.report,
        check=predictions.check,
        validation_loss=True,
    )

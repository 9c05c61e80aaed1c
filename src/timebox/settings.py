"""Every setting of the loop, its default, and who may set it to what."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class SettingError(ValueError):
    """A setting that cannot be used: says which, what it was, and what was expected."""


def session(default: Any) -> Any:
    """A setting that may change between the sessions of one run (budget and cadence)."""
    return field(default=default, metadata={"session": True})


@dataclass(frozen=True)
class Settings:
    """What `fit` is asked to do. Unknown names are refused; 0 means "no limit" or "by itself"."""

    hours: float = session(5 / 60)  # this session, counted from its start
    total_hours: float = session(0.0)  # all sessions of the run; 0: this session is the last
    epochs: int = session(0)  # end after so many epochs; 0: no limit
    max_steps: int = session(0)  # end after so many steps; 0: no limit
    patience: int = session(0)  # evaluations without improvement before an early stop; 0: never
    select: Literal["metric", "loss"] = "metric"  # by which validation judges what is better
    plateau_patience: int = 0  # evaluations without improvement until the rate falls; 0: never
    plateau_factor: float = 0.5  # by which it then falls
    save_every_minutes: float = session(30.0)  # at least three in a short run; cost capped at 5%
    save_every_epochs: int = session(0)  # keep a checkpoint of each n-th epoch, epoch-N.pt
    eval_every_minutes: float = session(0.0)  # 0: as often as 1 to 3% of the time pays for
    eval_every_epochs: int = session(0)  # evaluate at the end of each n-th epoch instead
    eval_items: int = session(0)  # validation items per evaluation; 0: as many as are cheap
    grace_seconds: float = session(15.0)  # for the last score and export after a stop request
    log_every_seconds: float = session(15.0)  # one line of progress, one of metrics.jsonl
    keep_top: int = session(3)  # checkpoints kept by validation score, the best included
    sinks: tuple[str, ...] = session(())  # where metrics go beside metrics.jsonl; timebox.sinks
    optimizer: Literal["muon", "adamw"] = "muon"  # for the matrices; all else is AdamW's
    lr: float = 0.0  # peak rate of the matrices; 0: the task's own
    weight_decay: float = 0.1  # decoupled, so it follows the rate
    warmup: float = 0.02  # share of progress in which the rate rises
    cooldown: float = 0.6  # share of progress in which it falls to zero
    clip: float = 1.0  # largest gradient norm
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = session("auto")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = session("auto")
    compile: Literal["auto", "on", "off"] = session("auto")
    weights_from: str = session("")  # a checkpoint file to start from: its weights only

    def __post_init__(self):
        for name in ("hours", "log_every_seconds", "save_every_minutes", "clip"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name} must be greater than 0, not {getattr(self, name)}")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise SettingError(f"{f.name} must be a number from 0 on, not {value}")
        if not 0 < self.plateau_factor < 1:
            raise SettingError(
                f"plateau_factor must lie between 0 and 1, not be {self.plateau_factor:g}"
            )
        if self.seed >= 2**32:
            raise SettingError(f"seed must be less than 2**32, not {self.seed}")
        if self.warmup + self.cooldown > 1:
            raise SettingError(
                f"warmup {self.warmup} and cooldown {self.cooldown} are shares of one run: "
                "together at most 1"
            )
        if self.total_hours and self.total_hours < self.hours:
            raise SettingError(
                f"total_hours {self.total_hours:g} spans all sessions, so it cannot be less than "
                f"hours {self.hours:g}, which is this one"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with the run that continues it."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("session")
        }


# What other trainers call some of these settings.
ALSO = {"learning_rate": "lr", "num_epochs": "epochs"}


def own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with each setting under our own name; one that is given twice is refused."""
    for other, name in ALSO.items():
        if other in given and name in given:
            raise SettingError(f"{other} is another name of {name}: give one of them")
    return {ALSO.get(name, name): value for name, value in given.items()}


def parameters(function: Callable) -> dict[str, Any]:
    """Name and type of everything that can be set by name on `function` or dataclass."""
    hints = typing.get_type_hints(function)
    return {n: hints.get(n, str) for n in inspect.signature(function).parameters}


def check_names(given: Mapping[str, Any], known: typing.Iterable[str], what: str) -> None:
    """Refuse any name that is not known, with the nearest one that is."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            everything = ", ".join(sorted(known))
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {everything}"
            raise SettingError(f"there is no {what} {name!r}{hint}")


def within(name: str, value: float, least: float, most: float) -> None:
    """Refuse the `value` of the setting `name` unless it is from `least` to `most`."""
    if not least <= value <= most:
        raise SettingError(f"{name} must be from {least:,} to {most:,}, not {value:,}")


def check_heads(d_model: int, nhead: int) -> None:
    """Refuse a width that so many heads cannot share; see `nn.SelfAttention`."""
    within("d_model", d_model, 1, 16_384)
    within("nhead", nhead, 1, 1024)
    if d_model % (4 * nhead):
        raise SettingError(
            f"d_model {d_model} must be a multiple of 4 times nhead {nhead}: each head's part must "
            "be a multiple of 4"
        )


def cast(name: str, value: Any, kind: Any) -> Any:
    """`value` (maybe the text of a command line) as `kind`, or a SettingError that says why not."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingError(f"{name} must be one of {', '.join(choices)}, not {value!r}{hint}")
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None or value == "None":
            return None
        return cast(name, value, next(k for k in typing.get_args(kind) if k is not type(None)))
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise SettingError(f"{name} must be true or false, not {value!r}")
    if kind in (int, float):
        try:
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or number != number:
            raise SettingError(f"{name} must be a number, not {value!r}")
        if kind is float:
            return number
        if number != int(number) if abs(number) != float("inf") else True:
            raise SettingError(f"{name} must be a whole number, not {value!r}")
        return int(number)
    if kind is str:
        return str(value)
    if kind == tuple[str, ...]:
        words = value.split(",") if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) for w in words):
            raise SettingError(f"{name} must be a list of words, not {value!r}")
        return tuple(word.strip() for word in words if word.strip())
    return value


def cast_all(given: Mapping[str, Any], function: Callable, what: str) -> dict[str, Any]:
    """`given` with every name known to `function` and every value of its type."""
    known = parameters(function)
    check_names(given, known, what)
    return {name: cast(name, value, known[name]) for name, value in given.items()}

"""`robustcli.train` in Python: the call that the verb makes, and what it left as objects.

`train` has more than 50 lines because its docstring is the reference that a caller reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustcli.cli.call import Call
from robustcli.config.overlay import Override
from robustcli.errors import UsageError
from robustcli.foreign import foreign_fault
from robustcli.jobs.train import train as train_run
from robustcli.jobs.verb_flags import TrainFlags
from robustcli.models.source import load_model
from robustcli.records.read import read_rows
from robustcli.records.train import TrainRow
from robustcli.runtime.restored import process_as_before
from robustcli.terminal.console import Console, Tabular
from robustcli.terminal.progress import Bar, Silent

_ORIGIN = "train()"
#: Words of the command line -> the keys that they set.
_KEYS = {
    "eps": "ball.eps",
    "norm": "ball.norm",
    "epochs": "train.epochs",
    "minutes": "train.minutes",
    "batch_size": "train.batch_size",
}


@dataclass(frozen=True)
class Training:
    """Result of `train`.

    Args:
        run: its directory, with all that `robustcli train` writes.
        model: of the best checkpoint, in eval mode on the CPU; pixels in [0, 1] -> logits.
        best, last: "epoch", "clean_acc" and "robust_acc" on the validation images, in [0, 1], robust under
            the validation attack; where bounds are trained also "verified_acc".
        checkpoint: the directory of the best weights.
        rows: one for each validation, as in metrics.jsonl.
        steps: optimiser steps done. ended: "budget", or what ended it before.
        alarms: names of what looked wrong. notes: what must be said beside the numbers.
    """

    run: Path
    model: nn.Module = field(repr=False)
    best: Mapping[str, Any]
    last: Mapping[str, Any]
    checkpoint: Path
    rows: Sequence[TrainRow] = field(repr=False)
    steps: int
    ended: str
    alarms: Sequence[Any]
    notes: Sequence[str]

    @property
    def clean_acc(self) -> float | None:
        """Of the best checkpoint."""
        accuracy: float | None = self.best["clean_acc"]
        return accuracy

    @property
    def robust_acc(self) -> float | None:
        """Of the best checkpoint; None where no attack validates."""
        accuracy: float | None = self.best["robust_acc"]
        return accuracy


def train(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | Mapping[str, Any] | None = None,
    data: str | Mapping[str, Any] | None = None,
    eps: float | str | Mapping[str, float | str] | None = None,
    norm: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    override_resume: Sequence[str] = (),
    smoke: bool = False,
    report: bool = True,
    plugin: str | None = None,
    allow_pickle: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **settings: Any,
) -> Training:
    """Adversarial training as `robustcli train` does it: the same settings, run directory and records.

    Args:
        config: the name of a shipped configuration, a file, or a mapping of settings; None = the defaults.
        model: a registered name, run:DIR to fine-tune, torchvision:NAME@WEIGHTS, or file.py:factory (runs
            that code, as `plugin` does).
        data: a data set by name, folder:PATH, csv:PATH, npz:PATH, hf:PATH or wds:PATH.
        eps: radius in pixel units of [0, 1], 8/255 or "8/255"; norm: linf, l2, l1, or l0, whose eps is
            a number of pixels. A union of balls, trained by `train.union`, is {"linf": "8/255", "l2": 0.5}.
        steps: of the attack. epochs, minutes: budgets. batch_size: images of a step.
        out: the directory of the run; None = runs/train/NAME-N.
        resume: go on with the run in `out`, or of this name; override_resume: keys that may change.
        overwrite: replace the run in `out`. smoke: made tiny, some seconds. report: leave a report.html.
        allow_pickle: weights may be read from a .pt file, in a process of its own.
        settings: further keys of the configuration: seed=1, objective="trades", adversary={"name": "pgd",
            "steps": 5}, train={"optimizer": {"lr": 0.05}}, or **{"train.optimizer.lr": 0.05}.
        say: told one line at a time what the command line would show.

    Nothing is printed. Generators, threads, determinism and signal handlers are afterwards as they were; one
    training runs at a time in a process, and other threads wait. SIGTERM and Ctrl-C in the main thread save
    and end it.

    Raises RobustCliError: ConfigError with all mistakes in `problems`, UsageError, DataError,
    CheckpointError, NumericsError, ResourceError, LockError, Interrupted; `exit_code` is that of the verb.
    """
    if isinstance(eps, Mapping):
        balls = [{"norm": name, "eps": radius} for name, radius in eps.items()]
        settings, eps = {"ball": balls, **settings}, None
    words = {"eps": eps, "norm": norm, "epochs": epochs, "minutes": minutes, "batch_size": batch_size}
    named = "data.name" if isinstance(data, str) else "data"
    given = {_KEYS[name]: value for name, value in words.items()} | {"model": model, named: data, "out": out}
    given = {key: value for key, value in given.items() if value is not None}
    source = None if config is None or isinstance(config, Mapping) else str(config)
    base = config if isinstance(config, Mapping) else {}
    call = _Call(source, {**base, **given, **settings}, _Told(say), steps=steps, smoke=smoke, plugin=plugin)
    flags = TrainFlags(
        resume=resume,
        overwrite=overwrite,
        override_resume=tuple(override_resume),
        plugin=call.plugin(),
        allow_pickle=allow_pickle,
        report=report and call.reports(),
    )
    with process_as_before(), _explained():
        document = train_run(call.load(), call.console, flags)
        return _training(document, flags.plugin)


def _training(document: Mapping[str, Any], plugin: str | None) -> Training:
    """The `train` document and what lies in its run, as one object."""
    run = Path(document["run"])
    rows = [row for row in read_rows(run / "metrics.jsonl") if isinstance(row, TrainRow)]
    return Training(
        run=run,
        model=load_model(f"run:{run}", plugin=plugin),
        best=document["best"],
        last=document["last"],
        checkpoint=Path(document["checkpoint"]),
        rows=rows,
        steps=document["steps"],
        ended=document["ended"],
        alarms=document["alarms"],
        notes=document.get("notes", []),
    )


@contextmanager
def _explained() -> Iterator[None]:
    """A failure of the user's code becomes E-PLUGIN, as on the command line."""
    try:
        yield
    except BaseException as error:
        fault = foreign_fault(error)
        if fault is None or fault is error:
            raise
        raise fault from error


class _Call(Call):
    """The call of the verb, with settings from Python in place of flags.

    source: a configuration's name or file. settings: dotted key -> value; of `plugin`, `steps` and `smoke`
    as the flags.
    """

    def __init__(
        self,
        source: str | None,
        settings: Mapping[str, Any],
        console: Console,
        *,
        steps: int | None,
        smoke: bool,
        plugin: str | None,
    ) -> None:
        flags = {"steps": None if steps is None else str(steps), "smoke": smoke, "plugin": plugin}
        super().__init__("train", {**flags, "set": None, "words": None}, console)
        self._source = source
        self._settings = [Override(key, _text(key, value), _ORIGIN) for key, value in _leaves(settings)]

    def source(self) -> str | None:
        """See `Call`."""
        return self._source

    def settings(self) -> list[Override]:
        """See `Call`."""
        return self._settings


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all settings; a method, which is a mapping with a name, is one value."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and "name" not in value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _text(key: str, value: Any) -> str:
    """A value as the command line would have it. Raises UsageError for what no configuration can hold."""
    if isinstance(value, (str, Path)):
        text = str(value)
        return json.dumps(text) if text.lstrip().startswith(("[", "{", '"', "'")) else text
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        hint = "a network is named FILE.py:factory, and images npz:PATH or folder:PATH: a run records names"
        what = f"{key}={type(value).__name__} is no setting"
        raise UsageError(what, where=_ORIGIN, hint=hint, code="E-VALUE") from None


def _plain(value: Any) -> Any:
    """A path as text, a number of numpy as one of Python. Raises TypeError."""
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError


class _Told(Console):
    """Prints nothing; messages go to `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def result(self, text: str) -> None:
        """Nothing to do: the caller has the result."""

    def table(self, table: Tabular) -> None:
        """Nothing to do."""

    @contextmanager
    def progress(
        self, total: int | None, description: str, *, unit: str = "", done: int = 0
    ) -> Iterator[Bar]:
        """No bar."""
        yield Silent()

    def _message(self, text: str) -> None:
        self._say(text)

"""All runs below a directory, each by a glance: what it was, how it ended, its numbers, its size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from robustcli.config.threats import stated_ball
from robustcli.errors import RobustCliError, UsageError
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.paired import asked
from robustcli.store.identity import NAME as IDENTITY
from robustcli.store.inventory import files_below, is_folder
from robustcli.store.lock import NAME as LOCK
from robustcli.store.lock import may_be_held

_DEEPEST = 4  # folders below the one that was named
_RUN_DEPTH = 2  # runs/VERB/NAME: what lies there and is no run is told of
_SHOWN = 3  # attacks by name


@dataclass(frozen=True)
class Skipped:
    """A directory that is not shown, and why."""

    path: Path
    reason: str

    @property
    def line(self) -> str:
        """For the console."""
        return f"skipped {self.path}: {self.reason}"


@dataclass(frozen=True)
class Numbers:
    """What a run measured, as far as its document says it; None and "" for what it does not.

    clean_acc, robust_acc, certified_acc: fractions in [0, 1]; of a training those of its best validation.
    intervals: name -> [low, high] at 95 %.
    """

    data: str = ""
    split: str = ""
    model: str = ""
    norm: str = ""
    eps: float | None = None
    attack: str = ""
    n: int | None = None
    clean_acc: float | None = None
    robust_acc: float | None = None
    certified_acc: float | None = None
    intervals: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Listed:
    """One run of a table.

    Args:
        run: read by a glance. state: running, killed, preempted, failed or done. when: of its last change of
        state. numbers: what it measured.
    """

    run: Dossier
    state: str
    when: datetime
    numbers: Numbers

    @property
    def path(self) -> Path:
        """Of the run."""
        return self.run.path

    @cached_property
    def size(self) -> int:
        """Bytes of all its files; links count by themselves."""
        return sum(_size(self.path / name) for name in files_below(self.path))

    @property
    def reliability(self) -> str:
        """ok, suspect, invalid; partial where numbers are not final; "" where there is nothing to doubt."""
        if self.state != "done" or self.run.document.get("partial"):
            return "partial" if self.numbers.robust_acc is not None else ""
        if self.numbers.clean_acc is None and self.numbers.robust_acc is None:
            return ""
        return self.run.reliability

    @property
    def asked(self) -> str:
        """Equal for two runs that were asked for the same attacks, see `reporting.paired.asked`."""
        return asked(self.run)

    def to_json(self) -> dict[str, Any]:
        """The run as the documents of `runs` have it."""
        return {
            "run": str(self.path),
            "verb": self.run.verb,
            "name": self.path.name,
            "state": self.state,
            "code": self.run.code,
            "when": self.when.isoformat(timespec="seconds"),
            **asdict(self.numbers),
            "reliability": self.reliability or None,
            "bytes": self.size,
        }


def find(root: Path) -> tuple[list[Listed], list[Skipped]]:
    """(the runs below a directory, what lies there and is none), each in the order of their paths.

    Links are not followed, and what lies inside a run belongs to it. Raises UsageError where `root` is no
    directory, OSError where it cannot be read.
    """
    if not root.is_dir():
        raise UsageError("no such directory", where=str(root), hint="name the directory that holds the runs")
    found: list[Listed] = []
    skipped: list[Skipped] = []
    for path, is_run in _places(root, 0):
        if not is_run:
            skipped.append(Skipped(path, "no run of robustcli"))
            continue
        try:
            found.append(listed(path))
        except (RobustCliError, OSError, TypeError, ValueError, AttributeError) as error:
            skipped.append(Skipped(path, str(error)))
    return found, skipped


def listed(path: Path) -> Listed:
    """One run. Errors as `Dossier.glance`; TypeError, ValueError or AttributeError for a strange document."""
    run = Dossier.glance(path)
    state = run.state or "unknown"
    if state == "running" and not may_be_held(path):
        state = "killed"
    found = Listed(run, state, _when(path), _numbers(run))
    # What a table asks for later is asked for here, where a run that cannot answer is skipped.
    _ = found.reliability, found.asked
    return found


def _places(folder: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """(directory, whether it looks like a run), the runs and the foreign ones at the depth of runs."""
    if (folder / IDENTITY).is_file() or ((folder / LOCK).is_file() and (folder / "status.json").is_file()):
        yield folder, True
        return
    inner = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_folder(path))
    below = [place for path in inner if depth < _DEEPEST for place in _safely(path, depth + 1)]
    yield from below
    if depth == _RUN_DEPTH and not below:
        yield folder, False


def _safely(folder: Path, depth: int) -> list[tuple[Path, bool]]:
    try:
        return list(_places(folder, depth))
    except OSError:  # it may not be read, or is gone by now
        return [(folder, False)]


def _when(path: Path) -> datetime:
    for place in (path / "status.json", path):
        try:
            return datetime.fromtimestamp(place.stat().st_mtime, timezone.utc)
        except FileNotFoundError:
            continue
    return datetime.fromtimestamp(0, timezone.utc)


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _numbers(run: Dossier) -> Numbers:
    document = run.document
    if run.verb == "train":
        return _of_training(run)
    if run.verb == "demo":
        document = (document.get("models") or {}).get("robust") or {}
    data, model = (run.config.get(key) or {} for key in ("data", "model"))
    ball = document.get("ball") or stated_ball(run.config.get("ball"))
    return Numbers(
        data=_text(document.get("data") or data.get("name")),
        split=_text(document.get("split")),
        model=_text(document.get("model") or model.get("name")),
        norm=_text(document.get("norm") or ball.get("norm")),
        eps=_number(document.get("eps", ball.get("eps"))),
        attack=_attacks(document),
        n=document.get("n"),
        clean_acc=_number(document.get("clean_acc")),
        robust_acc=_number(document.get("robust_acc")),
        certified_acc=_number(document.get("verified")),
        intervals={k: v for k, v in _intervals(document).items() if k.endswith("_acc")},
    )


def _of_training(run: Dossier) -> Numbers:
    data, model, train = (run.config.get(key) or {} for key in ("data", "model", "train"))
    ball = stated_ball(run.config.get("ball"))
    best, attack = run.document.get("best") or {}, train.get("val_attack") or {}
    return Numbers(
        data=_text(data.get("name")),
        split="validation",
        model=_text(model.get("name")),
        norm=_text(ball.get("norm")),
        eps=_number(ball.get("eps")),
        attack=_labelled(attack) if best else "",
        clean_acc=_number(best.get("clean_acc")),
        robust_acc=_number(best.get("robust_acc")),
        certified_acc=_number(best.get("verified_acc")),
    )


def _attacks(document: Mapping[str, Any]) -> str:
    """The attacks in a word or a few: the name of the list that they belong to, where they share one."""
    entries = document.get("attacks") or ()
    names = [_text(entry.get("name") if isinstance(entry, Mapping) else entry) for entry in entries]
    lists = {name.partition(":")[0] for name in names if ":" in name}
    if len(lists) == 1 and all(":" in name for name in names):
        return lists.pop()
    more = f" +{len(names) - _SHOWN}" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _labelled(attack: Mapping[str, Any]) -> str:
    steps = attack.get("steps")
    return f"{attack.get('name')}-{steps}" if steps else _text(attack.get("name"))


def _intervals(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("intervals")
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """A number; None for anything else, such as the accuracies of several models."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

"""One run read back: all that its verb has written. Reports, gates, claims and comparisons stand on it.

Nothing here computes a number of the model. What no record holds is not known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from robustcli.errors import DataError, UsageError, printable
from robustcli.records.alarm import Alarm, reliability
from robustcli.records.eval import EvalRow
from robustcli.records.read import AnyRow, read_rows
from robustcli.records.sample import SampleRow
from robustcli.regular import open_regular, read_bytes

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
Row = TypeVar("Row", bound=AnyRow)
_LIMIT = 1 << 28  # bytes of one document
_NAMED = 3  # runs in a message
_RECORDS = ("metrics", "sweep", "transfer", "guard")  # .jsonl; the samples are read when asked for
#: Runs that lie inside a run of another verb.
_PARTS = ("natural", "robust", "attack", "train", "guard", "update")


@dataclass(frozen=True)
class Dossier:
    """One run directory.

    Args:
        path: of the run. verb: that wrote it, such as "guard eval". id: of the run, "" for none.
        state: running, done, preempted or failed. code: its exit code; None while it runs.
        config: the resolved configuration as a tree. environment: env.json. document: summary.json.
        rows: of all records of the run but its samples, in the order of their files.
        parts: the runs inside, by name: those of a `demo` or of a `guard update`.

    A file that the run has not written is empty here: a mapping without keys, no rows.
    """

    path: Path
    verb: str
    id: str
    state: str
    code: int | None
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    document: Mapping[str, Any]
    rows: Sequence[AnyRow]
    parts: Mapping[str, Dossier] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Dossier:
        """The run in a directory.

        Raises UsageError (exit 2) for a path that is no run of ours, DataError E-RECORD (exit 3) for a file
        of it that does not hold what a run writes.
        """
        run = cls.glance(path)
        return replace(
            run,
            environment=_json(path / "env.json"),
            rows=[row for name in _RECORDS for row in _rows(path / f"{name}.jsonl")],
            parts={name: cls.read(path / name) for name in _PARTS if (path / name / "run.json").is_file()},
        )

    @classmethod
    def glance(cls, path: Path) -> Dossier:
        """The run without its rows, its parts and its environment: what a table of many runs needs.

        It takes milliseconds. Errors as `read`.
        """
        from robustcli.store.identity import identity_of
        from robustcli.store.status import read_status

        identity = identity_of(path) if path.is_dir() else None
        if identity is None:
            raise _no_run(path)
        status, document = read_status(path), _json(path / "summary.json")
        return cls(
            path=path,
            verb=str(document.get("verb", identity.verb)),
            id=identity.id,
            state=str(status.get("state", "")),
            code=status.get("code"),
            config=_yaml(path / "config.resolved.yaml"),
            environment={},
            document=document,
            rows=(),
        )

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name

    @property
    def measured(self) -> bool:
        """Whether the run has ended well and left its document."""
        return self.state == "done" and self.code == 0 and bool(self.document)

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """Name -> hash, of the first record: what the numbers belong to. One line is read for a `glance`."""
        if self.rows:
            return getattr(self.rows[0], "hashes", {})
        found = _first_line(self.path / "metrics.jsonl").get("hashes")
        return found if isinstance(found, dict) else {}

    def of(self, kind: type[Row]) -> list[Row]:
        """The rows of one class, in their order."""
        return [row for row in self.rows if isinstance(row, kind)]

    def eval_row(self, kind: str) -> EvalRow | None:
        """The first row "clean" or "worst" of an evaluation; None where the run has none."""
        return next((row for row in self.of(EvalRow) if row.kind == kind), None)

    @cached_property
    def samples(self) -> list[AnyRow]:
        """The rows of samples.jsonl: `SampleRow` of an evaluation, or those of a certificate or a guard."""
        return _rows(self.path / "samples.jsonl")

    @property
    def answers(self) -> list[SampleRow]:
        """The samples of an evaluation; [] where the run has none of that kind."""
        return [row for row in self.samples if isinstance(row, SampleRow)]

    @property
    def alarms(self) -> list[Alarm]:
        """The alarms of an evaluation. Those of a training are lines: see `notes`.

        Raises DataError E-RECORD for one that no evaluation writes.
        """
        try:
            return [Alarm.from_json(alarm) for alarm in self._alarms if isinstance(alarm, Mapping)]
        except (TypeError, ValueError) as error:
            raise _unreadable(self.path / "summary.json", f"an alarm without sense: {error}") from error

    @property
    def target(self) -> str | int | None:
        """The class that the attacks wanted, a name or a rule; None where any wrong one counts."""
        goal: str | int | None = (self.config.get("eval") or {}).get("target")
        return goal

    @property
    def notes(self) -> list[str]:
        """What the run says in words: the alarms of a training, and what a table says below it."""
        lines = [alarm for alarm in self._alarms if isinstance(alarm, str)]
        return [*lines, *self.document.get("notes", ())]

    @property
    def _alarms(self) -> Sequence[Any]:
        told = self.document.get("alarms")
        return told if isinstance(told, list) else ()  # `demo guard` counts the alarms of its detector

    @property
    def reliability(self) -> str:
        """ok, suspect or invalid: what its document says, and never better than its alarms."""
        follows = reliability(self.alarms)
        said = str(self.document.get("reliability", follows))
        return follows if said == "ok" or follows == "invalid" else said

    @property
    def partial(self) -> str:
        """``partial 3/8 shards`` where the numbers are those of a part; "" where they are final."""
        told = self.document.get("partial")
        if told is None:
            return ""
        parts = told if isinstance(told, Mapping) else {}
        return f"partial {parts.get('shards', '?')}/{parts.get('of', '?')} shards"

    @property
    def pictures(self) -> list[Path]:
        """The PNG files that the verb has drawn."""
        return sorted((self.path / "plots").glob("*.png"))


def _first_line(path: Path) -> Mapping[str, Any]:
    """The JSON object on the first line of a file; {} where no such line stands there."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            found = json.loads(file.readline(_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _no_run(path: Path) -> UsageError:
    """The refusal; its hint names the runs inside, such as those of several seeds."""
    inside = sorted(path.glob("*/run.json")) if path.is_dir() else []
    hint = "name a run directory"
    if inside:
        hint = f"name the runs in it: {' '.join(str(file.parent) for file in inside[:_NAMED])}"
    return UsageError("no run of robustcli", where=str(path), hint=hint)


def _rows(path: Path) -> list[AnyRow]:
    return read_rows(path) if path.is_file() else []


def _json(path: Path) -> Mapping[str, Any]:
    return _mapping(path, json.loads)


def _yaml(path: Path) -> Mapping[str, Any]:
    return _mapping(path, lambda text: _LOADER(text).get_single_data())


def _mapping(path: Path, parse: Any) -> Mapping[str, Any]:
    """The mapping in a file; {} without the file. Raises DataError E-RECORD for anything else."""
    if not path.is_file():
        return {}
    try:
        found = parse(read_bytes(path, _LIMIT).decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(path, printable(str(error))) from error
    if not isinstance(found, dict):
        raise _unreadable(path, f"a {type(found).__name__} stands there")
    return found


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot read a file of the run: {reason}",
        where=str(path),
        hint="runs are written by robustcli and not edited by hand",
        code="E-RECORD",
    )

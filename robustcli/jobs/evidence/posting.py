"""Where a gate's outcome goes: files for services, the job's summary and annotations of GitHub."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from robustcli import __version__
from robustcli.errors import RobustCliError, printable
from robustcli.foreign import foreign_fault
from robustcli.gating.junit import junit
from robustcli.gating.sarif import sarif
from robustcli.gating.verdict import Outcome
from robustcli.gating.words import badge, gate_markdown, workflow_commands
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained
from robustcli.terminal.console import Console

#: Written into the files before anything is measured: a gate that is killed leaves no old verdict behind.
_UNENDED = "the gate did not come to its end"


@dataclass(frozen=True)
class GateFiles:
    """Files that a gate writes, None for none: JUnit XML, SARIF, the endpoint of a badge."""

    junit: str | None = None
    sarif: str | None = None
    badge: str | None = None


class Posting:
    """Posts the outcome that it holds when the block ends, in whatever way it ends.

    An exception makes it an outcome without a verdict, and goes on. `outcome` is replaced by whoever knows
    more. Raises ResourceError where a file cannot be written, before anything is measured.
    """

    def __init__(self, files: GateFiles, outcome: Outcome, console: Console) -> None:
        self.files, self.outcome, self.console = files, outcome, console

    def __enter__(self) -> Posting:
        self._write(replace(self.outcome, error=_UNENDED))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._post()
            return
        self.outcome = replace(self.outcome, error=_line(error))
        with suppress(RobustCliError):  # the first failure is the one to report
            self._post()

    def _post(self) -> None:
        self._write(self.outcome)
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            with explained(Path(path)), open(path, "a", encoding="utf-8") as file:
                file.write(gate_markdown(self.outcome))
        if os.environ.get("GITHUB_ACTIONS"):
            for command in workflow_commands(self.outcome, source_root()):
                self.console.error(command)  # GitHub reads commands from stderr too; stdout is for JSON

    def _write(self, outcome: Outcome) -> None:
        writers: dict[str | None, Callable[[Outcome], str]] = {
            self.files.junit: junit,
            self.files.sarif: lambda shown: sarif(shown, __version__, source_root()),
            self.files.badge: badge,
        }
        for path, text in writers.items():
            if path is not None:
                target = Path(path)
                with explained(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, text(outcome).encode())


def source_root() -> Path:
    """The root of the checked out sources: what the CI says, else the working directory."""
    told = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR")
    return Path(told) if told else Path.cwd()


def _line(error: BaseException) -> str:
    """A failure in one line, without a traceback. What a user's code raises is its fault, whatever it is."""
    known = foreign_fault(error) or error
    if isinstance(known, RobustCliError):
        return known.line()
    return printable(f"{type(error).__name__}: {str(error)[:300]}")

"""Where a gate's outcome goes: files for services, the job's summary and annotations of GitHub."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from robustcli import __version__
from robustcli.errors import Interrupted, RobustCliError, UsageError, printable
from robustcli.foreign import foreign_fault
from robustcli.gating.junit import junit
from robustcli.gating.sarif import sarif
from robustcli.gating.verdict import Outcome
from robustcli.gating.words import badge, gate_markdown, workflow_commands
from robustcli.store.atomic import write_atomic
from robustcli.store.disk import explained
from robustcli.store.identity import NAME as IDENTITY
from robustcli.terminal.console import Console

#: Written into the files before anything is measured: a gate that is killed leaves no old verdict behind.
_UNENDED = "the gate did not come to its end"
_VERDICT = "gate.md"
_REPORT = ("report.html", "summary.md", "model_card.md", "bom.cdx.json")


@dataclass(frozen=True)
class GateFiles:
    """Files that a gate writes, None for none.

    junit: JUnit XML. sarif: SARIF 2.1.0. badge: the endpoint of a badge.
    report: directory of the report of the run that was judged, with the verdicts as gate.md.
    """

    junit: str | None = None
    sarif: str | None = None
    badge: str | None = None
    report: str | None = None


class Posting:
    """Posts the outcome that it holds when the block ends, in whatever way it ends.

    An exception makes it an outcome without a verdict, and goes on. `outcome` is replaced by whoever knows
    more. Raises ResourceError where a file cannot be written, and UsageError for a report's directory that
    holds something else, before anything is measured.

    Whoever has just measured the run sets `check` to False: the report need not compare code, model and data
    with what they were then.
    """

    def __init__(self, files: GateFiles, outcome: Outcome, console: Console) -> None:
        self.files, self.outcome, self.console = files, outcome, console
        self.check = True

    def __enter__(self) -> Posting:
        started = replace(self.outcome, error=_UNENDED)
        self._write(started, report=False)  # also where the directory of the report is refused
        if self.files.report is not None:
            _cleared(Path(self.files.report))
            self._write(started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._post(self._report())
            return
        self.outcome = replace(self.outcome, error=_line(error))
        with suppress(RobustCliError):  # the first failure is the one to report
            self._post("" if isinstance(error, (KeyboardInterrupt, Interrupted)) else self._report())

    def _report(self) -> str:
        """Write the report of the run, whatever the verdict; returns its summary. A failure is a warning."""
        if self.files.report is None or not self.outcome.run:
            return ""
        try:
            from robustcli.jobs.evidence.report import write_report  # late: it draws pictures

            run, folder = Path(self.outcome.run), Path(self.files.report)
            written = write_report([run], folder, check=self.check)
            return written.summary.read_text("utf-8")
        except Exception as error:  # whatever it is, the verdict stands
            self.console.warn(f"no report was written: {_line(error)}")
            return ""

    def _post(self, report: str) -> None:
        """The files, the summary of the job with that of the report, the annotations."""
        self._write(self.outcome)
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            with explained(Path(path)), open(path, "a", encoding="utf-8") as file:
                file.write("\n".join(filter(None, (gate_markdown(self.outcome), report))))
        if os.environ.get("GITHUB_ACTIONS"):
            for command in workflow_commands(self.outcome, source_root()):
                self.console.error(command)  # GitHub reads commands from stderr too; stdout is for JSON

    def _write(self, outcome: Outcome, *, report: bool = True) -> None:
        writers: dict[str | None, Callable[[Outcome], str]] = {
            self.files.junit: junit,
            self.files.sarif: lambda shown: sarif(shown, __version__, source_root()),
            self.files.badge: badge,
        }
        if report and self.files.report:
            writers[os.path.join(self.files.report, _VERDICT)] = gate_markdown
        for path, text in writers.items():
            if path:
                target = Path(path)
                with explained(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, text(outcome).encode())


def _cleared(folder: Path) -> None:
    """Remove the report of an earlier gate: beside a new verdict it would speak of another run.

    Raises UsageError for a file, and for a directory with something else in it; a run may hold its report.
    """
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError("--report is a file", where=str(folder), hint="name a directory")
        if not folder.is_dir() or (folder / IDENTITY).is_file():
            return
        if (folder / _VERDICT).is_file():
            for name in _REPORT:
                (folder / name).unlink(missing_ok=True)
        elif any(folder.iterdir()) and not (folder / _REPORT[0]).is_file():
            raise UsageError(
                "--report is not empty and holds no report",
                where=str(folder),
                hint="choose another directory",
            )


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

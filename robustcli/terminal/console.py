"""What the user sees: results on stdout, progress and messages on stderr, one JSON document when asked.

A reader that goes away, as in ``robustcli eval CONFIG | head``, changes neither the work nor its exit code:
the rest of the text is dropped.
"""

from __future__ import annotations

import errno
import json as _json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, Protocol

from robustcli.errors import ResourceError
from robustcli.terminal.progress import Amount, Bar, Heartbeat, Silent, live_bar
from robustcli.terminal.streams import DOCUMENT_FILE, clean, is_terminal, write

SCHEMA_VERSION = 1
_GONE = {errno.EPIPE, errno.ECONNRESET, errno.EBADF}  # errors of a stream whose reader is gone
if os.name == "nt":
    _GONE.add(errno.EINVAL)


class Tabular(Protocol):
    """A table that can be shown, such as `reporting.tables.Table`."""

    def rich(self, width: int) -> Any:
        """A Rich renderable, for a terminal of `width` columns."""

    def markdown(self) -> str:
        """Plain lines, for a pipe or a file."""


class Console:
    """All output of one command.

    Args:
        json: stdout carries exactly one JSON document and nothing else; `result` and `table` are silent.
        quiet: no messages and no progress; warnings, errors and results stay.
        verbose: `detail` lines as well.

    On a terminal: Rich tables and a live bar. Otherwise: markdown tables of any width, plain lines, no ANSI,
    and one progress line every 10 % or 30 s. Text that the stream's encoding lacks is written as escapes;
    control characters (terminal escapes in file or class names) as well.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        self._printed_document = False
        self._live: Any = None  # the Rich console of a running bar: lines go above it

    # messages: stderr

    def info(self, text: str) -> None:
        """A line about what is going on; not with `quiet`."""
        if not self.quiet:
            self._message(text)

    def detail(self, text: str) -> None:
        """A line for the curious; only with `verbose`."""
        if self.verbose and not self.quiet:
            self._message(text)

    def warn(self, text: str) -> None:
        """A line that is shown even with `quiet`."""
        self._message(f"warning: {text}")

    def error(self, text: str) -> None:
        """The one line of a failure (`RobustCliError.line()`), always shown."""
        self._message(text)

    # results: stdout

    def result(self, text: str) -> None:
        """Plain text that is the answer. Raises ResourceError E-DISK when stdout is a full disk."""
        if not self.json:
            self._print(clean(text) + "\n")

    def table(self, table: Tabular) -> None:
        """A table that is the answer: Rich on a terminal, markdown elsewhere. Raises as `result`."""
        if self.json:
            return
        if is_terminal(sys.stdout):
            self._print(_rendered(table))
        else:
            self._print(table.markdown().rstrip("\n") + "\n")

    def document(self, document: Mapping[str, Any]) -> bool:
        """The one JSON document, with ``schema_version``; returns whether it was printed.

        Only the first document is printed, and none without `json`. NaN and Inf become null, since readers
        take them in different ways. Raises TypeError for what JSON cannot hold, ResourceError as `result`.
        """
        if not self.json or self._printed_document:
            return False
        complete = {"schema_version": SCHEMA_VERSION, **document}
        text = _json.dumps(_plain(complete), allow_nan=False)  # ASCII only: safe in any locale
        self._printed_document = True
        if path := os.environ.get(DOCUMENT_FILE):
            _store(path, text + "\n")
        else:
            self._print(text + "\n")
        return True

    # progress

    @contextmanager
    def progress(
        self, total: int | None, description: str, *, unit: str = "", done: int = 0
    ) -> Iterator[Bar]:
        """``with console.progress(1200, "training") as bar: bar.advance(loss="0.31")``

        Shows the rate and the time left, on stderr.

        Args:
            total: units to do; None or 0 when unknown.
            description: what the units are for.
            unit: name of a unit, in front of their number; "" where the description says it.
            done: units done before, by the run that this one resumes; they do not count for the rate.
        """
        if self.quiet:
            yield Silent()
        elif self._live is not None or not is_terminal(sys.stderr):  # one live bar at a time
            yield Heartbeat(self.info, Amount(total or 0, unit), description, done)
        else:
            with live_bar(sys.stderr, Amount(total or 0, unit), description, done) as (bar, self._live):
                try:
                    yield bar
                finally:
                    self._live = None

    # writing

    def _message(self, text: str) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.print(Text(clean(text)), soft_wrap=True)
        else:
            write(sys.stderr, clean(text) + "\n")

    def _print(self, text: str) -> None:
        error = write(sys.stdout, text)
        if error is not None and error.errno not in _GONE:
            raise _unwritten(error, "stdout")


def _store(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritten(error, path) from error


def _unwritten(error: OSError, where: str) -> ResourceError:
    hint = "free some space, or send it elsewhere"
    return ResourceError(f"cannot write the result: {error.strerror}", where=where, hint=hint, code="E-DISK")


def _rendered(table: Tabular) -> str:
    """A table as text with ANSI for the width of the terminal."""
    from rich.console import Console as RichConsole

    terminal = RichConsole(file=sys.stdout, force_terminal=True, highlight=False, markup=False, emoji=False)
    with terminal.capture() as captured:
        terminal.print(table.rich(terminal.width))
    return captured.get()


def _plain(value: Any) -> Any:
    """`value` in terms of JSON: paths as text, numpy scalars as numbers, NaN and Inf as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

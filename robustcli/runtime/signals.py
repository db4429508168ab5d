"""Stop requests: a signal only sets a flag; the work stops where it is safe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from robustcli.errors import Interrupted

if sys.platform != "win32":
    import termios

_WATCHED = (signal.SIGTERM, signal.SIGINT)
_active: list[StopFlag] = []


def heed() -> None:
    """Raises Interrupted when the innermost StopFlag of this process was asked to stop.

    For long work that is not given a flag; any thread may call it.
    """
    if _active:
        _active[-1].check()


class StopFlag:
    """``with StopFlag() as stop:`` SIGTERM or SIGINT sets a flag; ``stop.check()`` raises between two steps.

    A second SIGINT ends the process at once with status 130; the last checkpoint stays whole, since saves are
    atomic. Outside the main thread no handler can be installed: there only `request` sets the flag. The
    handlers of before come back on exit. A forked child dies of SIGTERM and ignores SIGINT, to which its
    parent reacts.

    Attributes:
        signum: the signal that asked for a stop; None before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._interrupts = 0
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._terminal: list[Any] | None = None

    def request(self, signum: int = signal.SIGTERM) -> None:
        """Ask for a stop as a signal would; the first request decides the exit code."""
        if self.signum is None:
            self.signum = int(signum)

    def check(self) -> None:
        """Raises Interrupted (exit 128 + signal) when a stop was asked for."""
        if self.signum is not None:
            name = signal.Signals(self.signum).name
            raise Interrupted(f"stopped by {name}", signum=self.signum, hint="resume with --resume")

    def __enter__(self) -> StopFlag:
        self._pid = os.getpid()
        _active.append(self)
        self._terminal = _terminal_state()
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _active.remove(self)
        for number, before in self._before.items():
            if before is None:  # installed by C code, cannot be put back
                before = signal.SIG_DFL
            signal.signal(number, before)
        self._before.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        self._interrupts += signum == signal.SIGINT
        if self._interrupts >= 2:
            _restore_terminal(self._terminal)
            os._exit(130)
        self.request(signum)


def _terminal_state() -> list[Any] | None:
    if sys.platform == "win32":
        return None
    try:
        return termios.tcgetattr(2)
    except (termios.error, OSError):  # not a terminal, or closed
        return None


def _restore_terminal(state: list[Any] | None) -> None:
    """Put back the terminal's settings, and show the cursor, which a progress bar may have hidden."""
    if state is None or sys.platform == "win32":
        return
    try:
        termios.tcsetattr(2, termios.TCSANOW, state)
        os.write(2, b"\x1b[?25h\n")
    except (termios.error, OSError):
        return  # the terminal went away

"""Code that is not ours: which failures are its own. Users' files run under a module name of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from robustcli.errors import RobustCliError, UsageError, out_of_memory, printable

MODULE = "robustcli_plugin_"  # how the module name of a user's file begins
PLUGIN = "plugin:"  # how the name of a model, and the arch of its network, begin that a user's code makes
_OURS = "robustcli."
_ADAPTER = "robustcli.models.contract.reading"  # calls a network for the one that holds it
_INSTALLED = {"site-packages", "dist-packages"}


def foreign_fault(error: BaseException | None) -> UsageError | None:
    """E-PLUGIN for a failure of a user's code, with file:line; None for any other failure.

    `SystemExit` is always one: no code of ours raises it inside a verb. Any other exception is one when it
    comes out of a user's file, or out of a user's network below the last frame of ours. Signals, a lack of
    memory and failures that code of ours has explained are none. An error class of ours that a user's file
    raises is one: our exit codes say nothing of that file.
    """
    if error is None or isinstance(error, KeyboardInterrupt) or out_of_memory(error):
        return None
    if isinstance(error, RobustCliError) and not _raised_by_users(error):
        return None
    place = _place(error)
    if not place and not isinstance(error, SystemExit):
        return None
    text = next(iter(str(error).splitlines()), "")
    fault = UsageError(
        printable(f"the user's code ended in {type(error).__name__}: {text[:300]}".rstrip(": ")),
        where=place,
        hint="mend it there; --debug shows the traceback, and crash.log where a run had begun",
        code="E-PLUGIN",
    )
    fault.__cause__ = error
    return fault


@contextmanager
def staying() -> Iterator[None]:
    """A `SystemExit` of the user's code inside becomes E-PLUGIN: it ends no program, and passes no gate."""
    try:
        yield
    except SystemExit as error:
        raise foreign_fault(error) or error from error


def ended_by_user_code(error: BaseException | None) -> bool:
    """Whether this is a failure of a user's code, explained already or not yet."""
    if isinstance(error, RobustCliError) and error.code == "E-PLUGIN" and error.__cause__ is not None:
        return True
    return foreign_fault(error) is not None


def _raised_by_users(error: BaseException) -> bool:
    """Whether the line that raised it stands in a user's file."""
    frames = list(_frames(error))
    return bool(frames) and _is_users(frames[-1][0], _folders())


def _place(error: BaseException) -> str:
    """file:line in the user's code that an exception comes out of; empty for one that comes out of ours."""
    folders, frames = _folders(), list(_frames(error))
    for depth in range(len(frames) - 1, -1, -1):
        frame, line = frames[depth]
        if _is_users(frame, folders):
            return f"{frame.f_code.co_filename}:{line}"
        if _module(frame).startswith(_OURS) and _module(frame) != _ADAPTER:
            deepest, line = frames[-1]
            below = depth < len(frames) - 1 and _runs_users_network(frame)
            return f"{deepest.f_code.co_filename}:{line}" if below else ""
    return ""


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """(frame, line) of the traceback, from the caller to where it was raised."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lineno
        trace = trace.tb_next


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_users(frame: FrameType, folders: set[str]) -> bool:
    """Whether a frame is of a user's file, or of a file beside it that is no installed package."""
    name, file = _module(frame), frame.f_code.co_filename
    if name.startswith(MODULE):
        return True
    if name.startswith(_OURS) or not folders or _INSTALLED & set(file.split(os.sep)):
        return False
    return any(file.startswith(folder + os.sep) for folder in folders)


def _folders() -> set[str]:
    """The folders of all users' files that were run in this process."""
    files = [
        getattr(module, "__file__", "")
        for name, module in list(sys.modules.items())
        if name.startswith(MODULE)
    ]
    return {os.path.dirname(file) for file in files if file}


def _runs_users_network(frame: FrameType) -> bool:
    """Whether the frame is a method of a network of ours that holds a user's."""
    arch = getattr(frame.f_locals.get("self"), "arch", "")
    return isinstance(arch, str) and arch.startswith(PLUGIN)

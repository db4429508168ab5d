"""The entry point: every way a command can end becomes a documented exit code and one line."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustcli.errors import RobustCliError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Before the interrupt handler stands, only this module is imported."""
    try:
        signal.signal(signal.SIGINT, _interrupt)
        if argv is None:
            _speak_utf8()
        code = run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        _say("error[E-INTERRUPTED]: stopped by SIGINT")
        code = 130
    except BrokenPipeError:
        code = 0
    _leave(code)


def _speak_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding, as in cron and containers.

    There a name such as `bären` would be bytes without a meaning. Where the command line or the directory
    holds names in another encoding, the locale is right.
    """
    if sys.platform == "win32" or sys.getfilesystemencoding() == "utf-8":
        return
    try:
        for name in (os.getcwdb(), *map(os.fsencode, sys.argv)):
            name.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupt(signum: int, frame: Any) -> None:
    """Ctrl-C before the work guards itself (`StopFlag`): nothing to save, so leave at once.

    A KeyboardInterrupt would not do: a compiled module aborts, or raises another error, while it is imported.
    """
    text = "stopped by SIGINT"
    with suppress(OSError):  # a reader that went away
        os.write(2, f"error[E-INTERRUPTED]: {text}\n".encode())
        if "--json" in sys.argv:
            error = f'{{"code": "E-INTERRUPTED", "exit": 130, "message": "{text}", "hint": ""}}'
            os.write(_answers(), f'{{"schema_version": 1, "ok": false, "error": {error}}}\n'.encode())
    os._exit(130)


def _answers() -> int:
    """The descriptor for the JSON document: stdout, or the file of our launcher (`terminal.streams`)."""
    path = os.environ.get("ROBUSTCLI_DOCUMENT_FILE")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if path else 1


def run(argv: list[str]) -> int:
    """The exit code of one command line."""
    from robustcli.errors import RobustCliError

    try:
        from robustcli.cli.app import build

        return int(build()(args=argv, prog_name="robustcli", standalone_mode=False) or 0)
    except RobustCliError as error:
        return fail(error, argv)
    except KeyboardInterrupt:
        from robustcli.errors import Interrupted

        return fail(Interrupted("stopped by SIGINT", signum=2), argv)
    except BrokenPipeError:
        raise
    except BaseException as error:  # noqa: BLE001 - the last line of defence: it maps everything to a code
        return _translate(error, argv)


def _translate(error: BaseException, argv: list[str]) -> int:
    """The exit code for what is no failure of ours: Typer's own exceptions, memory, and bugs."""
    from robustcli.errors import RobustCliError, origin

    if isinstance(error, SystemExit):  # Typer's, around a help text: 1 when its reader went away
        return 0 if error.code in (None, 0, 1) else 2
    if _is_a(error, "Exit"):
        return int(getattr(error, "exit_code", 0))
    known = _explained(error)
    if known is not None:
        return fail(known, argv)
    bug = RobustCliError(
        f"{type(error).__name__}: {str(error)[:300]}",
        where=origin(error)[1],
        hint="a bug: run again with --debug and report it",
    )
    return fail(bug, argv, error)


def _is_a(error: BaseException, name: str) -> bool:
    """Whether a class of the error has this name: Typer may bring its own copy of Click's classes."""
    return name in {kind.__name__ for kind in type(error).__mro__}


def _explained(error: BaseException) -> RobustCliError | None:
    """A foreign exception as a failure of ours; None for a bug."""
    from robustcli.errors import (
        Interrupted,
        ResourceError,
        UsageError,
        out_of_memory,
        refused_value,
        system_refusal,
    )

    text = str(error)
    if _is_a(error, "Abort"):
        return Interrupted("aborted", signum=2)
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "robustcli") or "robustcli"
        return UsageError(error.format_message().rstrip("."), hint=f"see {path} --help")
    if out_of_memory(error) or _unmapped(error):
        first = (text or "out of memory").splitlines()[0]
        return ResourceError(
            f"out of memory: {first[:200]}",
            hint="lower --batch-size, or choose a smaller model",
            code="E-OOM",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full()
    if _torchvision_differs(error):
        return ResourceError(
            "torch and torchvision do not match",
            hint="install both from one place: pip install --force-reinstall torchvision",
            code="E-TORCHVISION",
        )
    if isinstance(error, ValueError) and text.lstrip().startswith("Invalid log settings"):  # of torch
        what = f"TORCH_LOGS={os.environ.get('TORCH_LOGS', '')[:80]!r} is nothing that this PyTorch knows"
        return UsageError(what, where="environment", hint="unset TORCH_LOGS, or see TORCH_LOGS=help")
    if refused_value(error):
        return UsageError(text[:300], code="E-VALUE")
    return system_refusal(error)


def _full() -> RobustCliError:
    from robustcli.errors import ResourceError

    hint = "free some space, or send it elsewhere"
    return ResourceError("cannot write the result: no space left", where="stdout", hint=hint, code="E-DISK")


def _unmapped(error: BaseException | None) -> bool:
    """Whether a library found no room in memory while it was imported; others wrap the loader's words."""
    if error is None:
        return False
    loading = isinstance(error, (ImportError, OSError)) and "failed to map segment" in str(error)
    return loading or _unmapped(error.__cause__)


def _torchvision_differs(error: BaseException) -> bool:
    """Whether torchvision was built for another torch."""
    if isinstance(error, ImportError):
        return "torchvision" in str(error)
    return isinstance(error, RuntimeError) and "torchvision::nms" in str(error)


def fail(error: RobustCliError, argv: list[str], cause: BaseException | None = None) -> int:
    """Print a failure: one line on stderr, with --json one document on stdout, with --debug the traceback."""
    from robustcli.errors import RobustCliError, printable

    code = _failing(error.exit_code)
    if "--debug" in argv:
        import traceback

        traceback.print_exception(cause or error)
    problems: list[str] = getattr(error, "problems", None) or []
    for problem in problems:
        _say(f"error[{error.code}]: {printable(problem)}")
    if not problems:
        _say(error.line())
    if "--json" in argv:
        from robustcli.terminal.console import Console

        message = "; ".join(problems or filter(None, (error.what, error.where)))
        explained = {"code": error.code, "exit": code, "message": message, "hint": error.hint}
        with suppress(RobustCliError):  # a full disk behind stdout: the first failure is the one to report
            Console(json=True).document({"ok": False, "error": explained})
    return code


def _failing(code: object) -> int:
    """A documented code of a failure: 0 is no failure, and 1 is a gate that was not met."""
    from robustcli.errors import FAILURES, RobustCliError

    return code if isinstance(code, int) and code in FAILURES else RobustCliError.exit_code


def _say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError, UnicodeError):
        _mute(sys.stderr)


def _leave(code: int) -> None:
    """Flush and exit; a reader that went away does not change the code, and a full disk makes 0 a 6."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError) as error:
            _mute(stream)
            if stream is sys.stdout and getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                code = code or fail(_full(), [])
    sys.exit(code)


def _mute(stream: Any) -> None:
    """Keep the interpreter's own last flush from failing on a closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError, AttributeError):
        return

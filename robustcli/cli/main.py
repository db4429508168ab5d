"""The entry point: every way a command can end becomes a documented exit code and one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit. Nothing but this module is imported before the interrupt handler stands."""
    try:
        signal.signal(signal.SIGINT, _interrupt)
        code = run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        _say("error[E-INTERRUPTED]: stopped by SIGINT")
        code = 130
    except BrokenPipeError:
        code = 0
    _leave(code)


def _interrupt(signum: int, frame: Any) -> None:
    """Ctrl-C before the work guards itself (`StopFlag`): nothing to save, so leave at once.

    A KeyboardInterrupt would not do: compiled modules abort, or turn it into an error of their own, when it meets them in their import.
    """
    text = "stopped by SIGINT"
    with suppress(OSError):  # a reader that went away
        os.write(2, f"error[E-INTERRUPTED]: {text}\n".encode())
        if "--json" in sys.argv:
            error = f'{{"code": "E-INTERRUPTED", "exit": 130, "message": "{text}", "hint": ""}}'
            os.write(1, f'{{"schema_version": 1, "ok": false, "error": {error}}}\n'.encode())
    os._exit(130)


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
    """Typer's own exceptions, memory, disk, and bugs."""
    from robustcli.errors import (
        Interrupted,
        ResourceError,
        RobustCliError,
        UsageError,
        origin,
        out_of_memory,
        refused_value,
    )

    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    if "Exit" in kinds:
        return int(getattr(error, "exit_code", 0))
    if "Abort" in kinds:
        return fail(Interrupted("aborted", signum=2), argv)
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "robustcli") or "robustcli"
        return fail(UsageError(error.format_message().rstrip("."), hint=f"see {path} --help"), argv)
    text = str(error)
    if out_of_memory(error):
        first = text.splitlines()[0] if text else "out of memory"
        return fail(
            ResourceError(
                f"out of memory: {first[:200]}",
                hint="lower --batch-size, or choose a smaller model",
                code="E-OOM",
            ),
            argv,
        )
    if isinstance(error, ImportError) and ("torchvision" in text or "torchvision::nms" in text):
        return fail(_torchvision(), argv)
    if isinstance(error, RuntimeError) and "torchvision::nms" in text:
        return fail(_torchvision(), argv)
    if refused_value(error):
        return fail(UsageError(text[:300], code="E-VALUE"), argv)
    code = RobustCliError(
        f"{type(error).__name__}: {text[:300]}",
        where=origin(error)[1],
        hint="a bug: run again with --debug and report it",
    )
    return fail(code, argv, error)


def _torchvision() -> Any:
    from robustcli.errors import ResourceError

    return ResourceError(
        "torch and torchvision do not match",
        hint="install both from one place: pip install --force-reinstall torchvision",
        code="E-TORCHVISION",
    )


def fail(error: Any, argv: list[str], cause: BaseException | None = None) -> int:
    """Print a failure: one line on stderr, with --json one document on stdout, with --debug the traceback."""
    if "--debug" in argv:
        import traceback

        traceback.print_exception(cause or error)
    problems = getattr(error, "problems", None) or []
    for problem in problems:
        _say(f"error[{error.code}]: {_clean(problem)}")
    if not problems:
        _say(error.line())
    if "--json" in argv:
        from robustcli.terminal.console import Console

        message = (
            "; ".join(problems) if problems else "; ".join(part for part in (error.what, error.where) if part)
        )
        document = {
            "ok": False,
            "error": {"code": error.code, "exit": error.exit_code, "message": message, "hint": error.hint},
        }
        Console(json=True).document(document)
    return int(error.exit_code)


def _clean(text: str) -> str:
    from robustcli.errors import printable

    return printable(text)


def _say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError, UnicodeError):
        _mute(sys.stderr)


def _leave(code: int) -> None:
    """Flush and exit; a reader that went away does not change the code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            _mute(stream)
    sys.exit(code)


def _mute(stream: Any) -> None:
    """Keep the interpreter's own last flush from failing on a closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError, AttributeError):
        return

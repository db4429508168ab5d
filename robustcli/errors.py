"""Every failure a user may see: one class, one line, one documented exit code.

The printed form is ``error[E-XXX]: what; where; what to do`` (see docs/exit-codes.md).
"""

from __future__ import annotations

import errno

#: Exit codes of failures, as docs/exit-codes.md has them: 0 is none, and 1 is a gate that was not met.
FAILURES = frozenset((*range(2, 11), 70, 130, 143))


class RobustCliError(Exception):
    """A failure that is explained to the user in one line.

    Args:
        what: the fault, in plain words, without a trailing full stop.
        where: file:line, path, key or step; empty when there is none.
        hint: what the user can do about it.
        code: stable identifier, ``E-...``; the class gives a default.
    """

    exit_code: int = 70
    code: str = "E-INTERNAL"

    def __init__(self, what: str, *, where: str = "", hint: str = "", code: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint
        if code is not None:
            self.code = code

    def line(self) -> str:
        """``error[E-XXX]: what; where; hint`` on one line, control characters shown as escapes."""
        text = "; ".join(part for part in (self.what, self.where, self.hint) if part)
        return printable(f"error[{self.code}]: {text}")

    def __str__(self) -> str:
        return "; ".join(part for part in (self.what, self.where, self.hint) if part)


class UsageError(RobustCliError):
    """Wrong command line (exit 2)."""

    exit_code, code = 2, "E-USAGE"


class ConfigError(RobustCliError):
    """Wrong configuration (exit 2); `problems` holds one entry per fault, all found in one pass."""

    exit_code, code = 2, "E-CONFIG"

    def __init__(
        self,
        what: str,
        *,
        problems: list[str] | None = None,
        where: str = "",
        hint: str = "",
        code: str | None = None,
    ) -> None:
        super().__init__(what, where=where, hint=hint, code=code)
        self.problems: list[str] = problems if problems is not None else []


class DataError(RobustCliError):
    """Wrong or unreadable data (exit 3)."""

    exit_code, code = 3, "E-DATA"


class CheckpointError(RobustCliError):
    """Wrong, damaged or foreign weights (exit 4)."""

    exit_code, code = 4, "E-CKPT"


class NumericsError(RobustCliError):
    """NaN or Inf where a number must be (exit 5). `elsewhere`: on another rank, whose message tells more."""

    exit_code, code = 5, "E-NAN"
    elsewhere: bool = False


class ResourceError(RobustCliError):
    """Missing memory, disk, device or optional package (exit 6)."""

    exit_code, code = 6, "E-RESOURCE"


class GoneError(ResourceError):
    """Somebody has removed what a live run writes into (exit 6)."""

    code = "E-GONE"


class LockError(RobustCliError):
    """The run directory belongs to another live process (exit 7)."""

    exit_code, code = 7, "E-LOCK"


class PeerError(RobustCliError):
    """Another process of a distributed run was lost, or does not answer (exit 8)."""

    exit_code, code = 8, "E-PEER"


class PolicyError(RobustCliError):
    """Refused for safety (exit 9)."""

    exit_code, code = 9, "E-POLICY"


class UnreliableError(RobustCliError):
    """The evaluation is suspect or invalid, and --strict was given (exit 10)."""

    exit_code, code = 10, "E-UNRELIABLE"


class Interrupted(RobustCliError):
    """Stopped by a signal after a clean save: exit 130 for SIGINT, 143 for SIGTERM."""

    exit_code, code = 130, "E-INTERRUPTED"

    def __init__(self, what: str, *, signum: int, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.signum = signum
        self.exit_code = 128 + signum
        self.code = "E-PREEMPTED" if signum == 15 else "E-INTERRUPTED"


def origin(error: BaseException) -> tuple[str, str]:
    """(module, file.py:line) where an exception was raised; empty strings when nobody knows."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", ""
    return str(
        trace.tb_frame.f_globals.get("__name__", "")
    ), f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


def refused_value(error: BaseException | None) -> bool:
    """Whether a function of ours refused a value, such as steps: 0: the user's to mend (exit 2), no bug."""
    return (
        isinstance(error, ValueError)
        and not isinstance(error, RobustCliError)
        and origin(error)[0].startswith("robustcli.")
    )


#: PyTorch's allocator for the CPU; CUDA itself, when somebody else holds the GPU; cuBLAS.
_NO_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: MemoryError, or a RuntimeError of PyTorch, CUDA or cuBLAS that says so."""
    named = any(
        kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__
    )  # without importing torch
    return (
        named
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))
    )


def system_refusal(error: BaseException | None) -> ResourceError | None:
    """E-PATH for what the operating system refuses: no permission, a name too long, a loop of links, no such
    user, no temporary directory. None for any other exception.

    It is asked at the one place where all verbs end, so that no path needs a check of its own. A descriptor
    that is not open (EBADF) is a bug.
    """
    if isinstance(error, OSError) and error.errno not in (None, errno.EBADF):
        reason, path = error.strerror or type(error).__name__, error.filename
        where = "" if path is None else str(path)
    elif isinstance(error, (RuntimeError, ValueError)) and _is_about_a_path(error):
        reason, where = str(error), ""
    else:
        return None
    return ResourceError(
        f"the system refuses: {reason}",
        where=where,
        hint="check that the path is right and that you may use it",
        code="E-PATH",
    )


def _is_about_a_path(error: BaseException) -> bool:
    """Whether Python itself refused a path: ~nosuchuser, a loop of links, a NUL or a lone surrogate in it."""
    text = str(error)
    if isinstance(error, UnicodeEncodeError):
        return "surrogates not allowed" in text
    return origin(error)[0] == "pathlib" or "embedded null" in text


def exit_code_of(error: BaseException) -> int:
    """The documented exit code of a failure that is no SystemExit: 70 for what nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if out_of_memory(error):
        return ResourceError.exit_code
    if refused_value(error):
        return UsageError.exit_code
    if system_refusal(error) is not None:
        return ResourceError.exit_code
    code: int = getattr(error, "exit_code", 70)
    return code


def printable(text: str) -> str:
    """`text` on one line: line breaks become spaces, other control characters become ``\\xNN``."""
    text = text.replace("\r", " ").replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

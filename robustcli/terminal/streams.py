"""Writing to stdout and stderr: no locale, no closed pipe and no full disk ends in a traceback."""

from __future__ import annotations

import os
from typing import Any

from robustcli.errors import printable

#: Variable that names a file for the one JSON document, in place of stdout; our launcher sets it for rank 0.
DOCUMENT_FILE = "ROBUSTCLI_DOCUMENT_FILE"


def is_terminal(stream: Any) -> bool:
    """Whether a person sees the stream: a terminal that understands more than plain lines."""
    try:
        return stream is not None and bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def clean(text: str) -> str:
    """`text` with control characters as escapes; its line breaks and tabs stay."""
    return "\n".join(_clean_line(line) for line in str(text).split("\n"))


def _clean_line(line: str) -> str:
    return "\t".join(printable(cell) for cell in line.split("\t"))


def write(stream: Any, text: str, *, flush: bool = True) -> OSError | None:
    """Write `text`, with escapes for what the stream's encoding lacks.

    Returns the error of a failed write; from then on the stream leads nowhere.
    """
    if stream is None:  # closed before the start
        return None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if flush:
            stream.flush()
    except OSError as error:
        silence(stream)
        return error
    except ValueError:  # closed meanwhile
        return None
    return None


def silence(stream: Any) -> None:
    """Point the descriptor to nowhere.

    The interpreter's last flush then cannot fail again and change the exit code.
    """
    try:
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError, AttributeError):  # not a real file
        return
    try:
        os.dup2(nowhere, number)
    finally:
        os.close(nowhere)


class Forgiving:
    """A stream that outlives its terminal: Rich must not stop the work when the window was closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        write(self._stream, text, flush=False)
        return len(text)

    def flush(self) -> None:
        write(self._stream, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

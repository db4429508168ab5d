"""The text of a config file, read without trusting the file, and how messages name it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from robustcli.errors import ConfigError

MAX_BYTES = 1 << 20
SUFFIXES = (".yaml", ".yml")


def display(path: Path) -> str:
    """`path` as messages name it: relative where it lies below the working directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_text(path: Path) -> str:
    """UTF-8 text of a regular file of at most 1 MiB. Raises ConfigError; a FIFO or a device never blocks."""
    name = display(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise problem("not a regular file", name)
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise problem("a directory, not a config file", name) from None
    except (OSError, ValueError) as error:
        raise problem(f"cannot be read: {reason(error)}", name) from None
    if len(data) > MAX_BYTES:
        raise problem("larger than 1 MiB: not a config", name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise problem(f"not UTF-8 text (byte 0x{data[error.start]:02x})", f"{name}:{line}") from None


def problem(what: str, where: str = "") -> ConfigError:
    """A ConfigError with this one problem."""
    text = ": ".join(filter(None, (where, what)))
    return ConfigError(text, problems=[text])


def reason(error: Exception) -> str:
    """The system's words for a failed file operation."""
    return getattr(error, "strerror", None) or str(error)

"""What the system says of the machine, without torch; asking never fails."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answer_or_reason(question: Callable[[], Any]) -> tuple[Any, str]:
    """(answer, "") or (None, why not): a driver, a missing file or an odd build may raise anything."""
    try:
        return question(), ""
    except Exception as error:  # noqa: BLE001  (drivers raise anything; the reason is returned, not lost)
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def cpu_name() -> str:
    """Model name of the CPU, or the architecture where the system does not tell."""
    named = re.search(
        r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", system_text("/proc/cpuinfo"), re.MULTILINE
    )
    if named:
        return named[1].strip()
    return answer_or_reason(platform.machine)[0] or "unknown"


def cores() -> int | None:
    """CPU cores that this process may use, where the system tells; else those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, None when the system does not tell."""
    version = re.search(
        r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", system_text("/proc/driver/nvidia/version")
    )
    if version is None:
        return None
    return version[1]


def system_text(path: str) -> str:
    """What a file of the system says; empty when it cannot be read."""
    return answer_or_reason(lambda: Path(path).read_text("utf-8", "replace"))[0] or ""

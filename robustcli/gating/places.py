"""How the files that services read name a line of the thresholds: relative to the root of the sources."""

from __future__ import annotations

import os
from pathlib import Path


def below(file: str, root: Path) -> str | None:
    """`file` relative to `root`, with forward slashes; None where it lies elsewhere."""
    try:
        return Path(os.path.abspath(file)).relative_to(os.path.abspath(root)).as_posix()
    except ValueError:
        return None

"""How the files that services read name a line of the thresholds: relative to the root of the sources."""

from __future__ import annotations

import os
from pathlib import Path


def below(file: str, root: Path) -> str | None:
    """`file` relative to `root`, with forward slashes; None where it lies elsewhere.

    A root may be named through a link, and the file as the working directory really is, or the other way.
    """
    for absolute in (os.path.abspath, os.path.realpath):
        try:
            return Path(absolute(file)).relative_to(absolute(root)).as_posix()
        except ValueError:
            continue
    return None

"""Which code this is: a hash over its files."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over the path and content of every ``robustcli/**/*.py``.

    ``unknown`` where the source cannot be read, as inside a zip.
    """
    return hash_tree(PACKAGE)


def hash_tree(root: Path) -> str:
    """SHA-256 over (relative path, length, content) of the ``*.py`` files below `root`, sorted by path."""
    try:
        paths = [path for path in root.rglob("*.py") if path.is_file()]
        files = sorted((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)
    except OSError:
        return "unknown"
    if not files:
        return "unknown"
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
        digest.update(data)
    return digest.hexdigest()

"""A data set of the Hugging Face hub in its local cache. Nothing here uses the network."""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustcli.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def hub_cache() -> Path:
    """The folder of huggingface_hub: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"


def cached(name: str) -> tuple[Path, Path]:
    """(folder of the newest cached version of the data set, folder that its links may lead into).

    The version is that of the branch main, else the only one.

    Raises:
        DataError: E-FILE, no path and no name; E-DOWNLOAD, the cache has it not.
    """
    if not _NAME.fullmatch(name):
        hint = "hf:PATH names a folder or a .parquet file, hf:OWNER/NAME a data set in the local cache"
        raise DataError("no such file or folder", where=name, hint=hint, code="E-FILE")
    repo = hub_cache() / f"datasets--{name.replace('/', '--')}"
    version = _version(repo)
    if version is None:
        raise DataError(
            f"{name} is no path, and not in the local cache of Hugging Face; nothing is downloaded here",
            where=f"looked in {repo}",
            hint=f"where there is a network: hf download {name} --repo-type dataset",
            code="E-DOWNLOAD",
        )
    return version, repo


def _version(repo: Path) -> Path | None:
    """The folder of the version that main names, else the only folder; None where neither is there."""
    main = repo / "refs" / "main"
    if main.is_file():
        named = repo / "snapshots" / main.read_text(encoding="utf-8", errors="replace")[:100].strip()
        if named.parent == repo / "snapshots" and named.is_dir():
            return named
    versions = sorted(path for path in repo.glob("snapshots/*") if path.is_dir())
    return versions[0] if len(versions) == 1 else None

"""For mkdocs: files outside docs/ that pages link to become part of the site, under `repository/`.

The pages keep links that work on GitHub and on disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")
PLACE = "repository"


def outside(text: str, page: Path) -> set[Path]:
    """The files outside docs/ that a page links to."""
    found = {(page.parent / target).resolve() for _, target in LINK.findall(text)}
    return {path for path in found if path.is_file() and not path.is_relative_to(ROOT / "docs")}


def on_files(files: Any, config: Any) -> Any:
    """Add what the pages link to, as it is; pages among it lose their links."""
    wanted: set[Path] = set()
    for file in files.documentation_pages():
        wanted |= outside(file.content_string, Path(file.abs_src_path))
    for path in sorted(wanted):
        name, text = f"{PLACE}/{path.relative_to(ROOT)}", path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".md":
            text = re.sub(r"!?\[([^\]]+)\]\((?!https?:)[^)\s]+\)", r"\1", text)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """`../FILE` as the site has it."""
    source = Path(page.file.abs_src_path) if page.file.abs_src_path else None
    if source is None:
        return markdown

    def moved(match: re.Match[str]) -> str:
        path = (source.parent / match[2]).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        target = f"{PLACE}/{path.relative_to(ROOT)}"
        return match[1] + os.path.relpath(target, os.path.dirname(page.file.src_uri))

    return LINK.sub(moved, markdown)

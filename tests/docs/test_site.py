"""The documentation as web pages, and the snippets of its pages that no command runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
cli = commands.cli


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r"[\w/-]+\.md", nav)
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(named) == pages and len(named) == len(pages)


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the extra docs is not installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0 and "WARNING -" not in answer.stderr, answer.stderr[-2000:]
    page = (tmp_path / "site" / "guard.html").read_text(encoding="utf-8")
    assert "repository/benchmarks/results/" in page, "files outside docs/ are part of the site"
    assert not re.search(
        r'(?:src|href)="https?://(?!arxiv|openreview|proceedings|github)[^"]+\.(?:js|css)', page
    )


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A module and an objective of the page are gone afterwards."""
    from robustcli import registry

    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("focal", None)
    registry.objectives._entries.pop("focal", None)


@pytest.mark.slow
def test_the_objective_of_the_page_trains(
    cli: Any, forgotten: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "own-objective.md").read_text(encoding="utf-8")
    file, use = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    Path("focal.py").write_text(file, encoding="utf-8")
    exec(compile(use, "docs/own-objective.md", "exec"), {})
    clean, robust = map(float, capsys.readouterr().out.split())
    assert 0 <= robust <= clean <= 1
    assert cli("eval", "--model", "run:focal-run", "--n", "8", "--no-report").code == 0

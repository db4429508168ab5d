"""The documentation's tables are those of the registries, and of nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from robustcli import registry

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = ("config schema", "guard run")  # a schema; one line of JSON for each image


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["tables.py", "reference.py"])
def test_the_pages_are_current(script):
    command = [sys.executable, str(ROOT / "docs" / script), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stdout + "run: make docs"


def test_every_table_stands_on_a_page(tables):
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    found = {name for _, name, _ in tables.BLOCK.findall(pages)}
    assert found == {*tables.TABLES, *tables.PARTS}


def test_a_stale_page_is_seen_and_a_new_attack_gets_a_row(tables, monkeypatch):
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    assert tables.rewritten(page.replace("| `pgd` |", "| `pgdd` |")) == page
    facts = registry.attacks.get("fgsm").facts

    def other(oracle, x, ball, *, steps: int = 7):
        """x_adv = x. Source: somebody, arXiv:1234.56789."""

    monkeypatch.setitem(registry.attacks._entries, "other", registry.Entry("other", other, facts))
    assert "| `other` | linf, l2, l1, l0 | fixed | gradient | 3 | `steps=7` |" in tables.rewritten(page)
    assert "arXiv:1234.56789" in tables.rewritten(page)


@pytest.mark.parametrize("entry", [*registry.attacks, *registry.ensembles], ids=lambda entry: entry.name)
def test_every_attack_says_when_to_take_it_and_names_its_paper(tables, entry):
    assert len(entry.facts.use) > 10 and tables.paper(entry.fn).startswith(("arXiv:", "doi:"))


def test_every_command_with_a_document_says_its_keys(tables):
    """`docs/documents.yaml`; that the keys are those of the documents is asked of each that a test prints."""
    documents, pages = tables.cli_page.documents(), dict(tables.cli_page.commands(tables.cli_page.build()))
    silent = [name for name in map(" ".join, pages) if name not in documents and name not in WITHOUT]
    assert not silent, "docs/documents.yaml has nothing of them: add their keys, and run make docs"
    gone = set(documents) - set(map(" ".join, pages)) - {"demo guard"}
    assert not gone, gone
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for path, command in pages.items():
        section = page.partition(f"\n## {' '.join(path)}\n")[2].partition("\n## ")[0]
        for param in command.params:
            assert all(f"`{word}`" in section for word in param.opts if word.startswith("-")), (path, param)

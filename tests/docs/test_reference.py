"""The reference pages have every key and every method, each with what a reader must know of it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Lt

from robustcli import registry
from robustcli.config.schema import known_keys

DOCS = Path(__file__).resolve().parents[2] / "docs"
METHODS = ("attacks", "ensembles", "objectives", "regularizers", "steps", "hooks", "defences")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(page: str) -> dict[str, list[str]]:
    """Name in the first cell -> the other cells."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_key_has_default_range_and_meaning() -> None:
    found = rows((DOCS / "configuration.md").read_text(encoding="utf-8"))
    asked = {
        ".".join((*path, name)) for path, names in known_keys().items() if "*" not in path for name in names
    }
    spec_parts = ("name", "plugin", "file", "factory", "sha256")
    missing = {
        key
        for key in asked - set(found)
        if not any(other.startswith(f"{key}.") for other in found)
        and key.rpartition(".")[2] not in spec_parts
    }
    assert len(found) > 110 and not missing
    assert not {
        key for key, (default, _, span, meaning) in found.items() if not (default and span and meaning)
    }
    assert found["ball.eps"][1:3] == ["pixel units of [0, 1]", "number > 0, or null"]
    assert found["train.batch_size"][:3] == ["`128`", "images", "whole number >= 1, <= 2^20"]


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_has_formula_cost_use_and_paper(kind: str) -> None:
    page = (DOCS / "methods" / f"{kind}.md").read_text(encoding="utf-8")
    for entry in getattr(registry, kind):
        (section,) = re.findall(rf"^## {entry.name}\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
        assert f"`{entry.summary}`" in section and "**Paper**" in section, entry.name
        assert hasattr(entry.facts, "use") == ("**When**" in section), entry.name
        for name in registry.parameters(entry.fn):
            assert f"| `{name}` |" in section, (entry.name, name)


def test_ranges_and_units(reference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.span(Annotated[float, Ge(0), Lt(1)] | None) == "number >= 0, < 1, or null"
    assert reference.span(Literal["a", "b"]) == "`a`, `b`" and reference.span(bool) == "`true`, `false`"
    assert reference.unit("train.val_attack", str) == ""
    with pytest.raises(KeyError, match="lacks its unit"):
        reference.unit("train.new_number", int)


def test_what_docstrings_say_of_parameters(reference: ModuleType) -> None:
    doc = "F.\n\nArgs:\n    x: it.\n"
    doc += "    a, b: both, >= 1; None means: all.\n    c: more. d: most.\n\nReturns:\n  y"
    said = reference.described(doc, ["a", "b", "c", "d"])
    assert said == {
        "x": "it.",
        "a": "both, >= 1; None means: all.",
        "b": said["a"],
        "c": "more.",
        "d": "most.",
    }

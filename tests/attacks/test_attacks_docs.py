"""docs/attacks.md says of every attack what its registration and its signature say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustcli import registry

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells
    for line in PAGE.splitlines()
    if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
}
ATTACKS, ENSEMBLES = list(registry.attacks), list(registry.ensembles)


def as_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_the_tables_name_what_is_registered_and_nothing_else() -> None:
    assert set(ROWS) == {entry.name for entry in ATTACKS + ENSEMBLES}


@pytest.mark.parametrize("entry", ATTACKS + ENSEMBLES, ids=lambda entry: entry.name)
def test_parameters_and_paper_are_those_of_the_code(entry: registry.Entry) -> None:
    cells = ROWS[entry.name]
    expected = {f"{p.name}={as_yaml(p.default)}" for p in registry.parameters(entry.fn).values()}
    assert set(re.findall(r"`([^`]+)`", cells[-3])) == expected
    assert (
        re.findall(r"arXiv:\d{4}\.\d{4,5}", cells[-1])[0]
        == re.findall(r"arXiv:\d{4}\.\d{4,5}", entry.fn.__doc__)[0]
    )


@pytest.mark.parametrize("entry", ATTACKS, ids=lambda entry: entry.name)
def test_norms_kind_and_needs_are_those_of_the_registration(entry: registry.Entry) -> None:
    _, norms, kind, needs, *_ = ROWS[entry.name]
    assert (kind, needs) == (entry.facts.kind, entry.facts.needs)
    assert norms == ("any (unused)" if kind == "unbounded" else ", ".join(entry.facts.norms))

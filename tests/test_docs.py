"""Documents name only what exists, and say what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from robustcli import errors
from robustcli.config.schema import Config, _model_of
from robustcli.config.spec import Section, Spec

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
BASES = ("robustcli", "docs", "configs", "tests", "benchmarks", ".github", ".ci")
#: Written by a run, or names of the reader's own files.
NOT_HERE = re.compile(r"[*<>{}]|NAME|VERB|PATH|FILE")


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of the headings of a page."""
    heads = re.findall(r"^#+ +(.+)$", without_code(path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_all_pages_are_there() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= {
        path.name for path in ROOT.glob("*.md")
    }
    assert {"architecture.md", "config.md", "decisions.md", "exit-codes.md"} <= {
        path.name for path in (ROOT / "docs").glob("*.md")
    }


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert path.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    bases = "|".join(map(re.escape, BASES))
    words = set(re.findall(rf"(?<![\w./-])((?:{bases})/[\w./*<>{{}}-]+)", text))
    missing = [word for word in words if not NOT_HERE.search(word) and not (ROOT / word.rstrip(".")).exists()]
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_no_path_of_one_machine(page: Path) -> None:
    found = re.findall(r"(?<![\w.:/)\"$}-])/[a-z]+/[\w./-]+", page.read_text(encoding="utf-8"))
    assert [word for word in found if not word.startswith(("/dev/", "/path/to/"))] == []


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_tables_have_equal_rows(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_the_readme_starts_with_one_sentence_and_one_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.splitlines()[:8]
    assert (
        first[0] == "# robustcli"
        and first[2].endswith(".")
        and first[2].count(". ") == 0
        and "make demo" in first
    )
    assert "make test" in text


def test_shipped_configs_that_documents_name_are_shipped() -> None:
    shipped = {
        str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")
    }
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"robustcli \w+ +([a-z]+/[a-z0-9_]+)(?![\w./])", page.read_text(encoding="utf-8")
        )
    }
    assert named and named <= shipped, named - shipped


# ---- exit codes --------------------------------------------------------------------------------------------

CODES = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")


def test_every_exit_code_is_documented() -> None:
    rows = {
        int(cells[0]): cells
        for line in CODES.split("## Codes in detail")[0].splitlines()
        if (cells := [c.strip() for c in line.strip("|").split("|")])[0].isdigit()
    }
    assert set(rows) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 70, 130, 143}
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RobustCliError)
    ]
    assert len(kinds) > 8
    for kind in kinds:
        assert f"`{kind.code}`" in rows[kind.exit_code][2], kind
    assert "`E-PREEMPTED`" in rows[143][2] and errors.Interrupted("x", signum=15).code == "E-PREEMPTED"


def test_every_error_code_is_documented() -> None:
    used = set()
    for path in (ROOT / "robustcli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch(r"E-[A-Z][A-Z0-9-]+", node.value)
            ):
                used.add(node.value)
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (E-[A-Z0-9-]+)\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert len(used) > 20
    assert used <= set(sections), f"not in docs/troubleshooting.md: {sorted(used - set(sections))}"
    assert set(sections) <= used, f"nobody raises {sorted(set(sections) - used)}"
    for code, section in sections.items():
        assert re.search(r"Exit \d+: .*\n\n- \*\*Cause\*\*: .+\n- \*\*Fix\*\*: .+", section), code


# ---- configuration -----------------------------------------------------------------------------------------


def keys(section: type[Section], prefix: str = "") -> set[str]:
    """Dotted keys of a section; a method's name and parameters count as one key."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        model = _model_of(field.annotation)
        if (
            model is not None
            and issubclass(model, Section)
            and not issubclass(model, Spec)
            and name != "augment"
        ):
            found |= keys(model, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_every_key_of_the_schema_is_documented() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8").split("## Keys")[1]
    documented = {
        key
        for line in text.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    assert documented - {"model.weights", "model.normalize"} == keys(Config)


def test_the_numpy_file_of_the_documentation_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as it stands, and every array that the table names, in pairs and by splits."""
    import numpy as np

    from robustcli.data.datasets import load_data

    text = (
        (ROOT / "docs" / "config.md")
        .read_text(encoding="utf-8")
        .split("## Images in a numpy file")[1]
        .split("\n## ")[0]
    )
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/config.md", "exec"), {})
    one = load_data(Config().data.model_copy(update={"name": "npz:images.npz"}))
    assert one.classes == ("cat", "dog", "owl") and len(one.test) == 30 and one.shape == (3, 8, 8)
    named = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    stored = dict(np.load("images.npz"))
    parts = {"train": slice(0, 60), "val": slice(60, 90), "test": slice(90, 120)}
    arrays = {f"{axis}_{part}": stored[axis][rows] for part, rows in parts.items() for axis in "xy"}
    assert named == {"x", "y", "classes", *arrays}
    np.savez("splits.npz", **arrays)
    split = load_data(Config().data.model_copy(update={"name": "npz:splits.npz"}))
    assert [len(part) for part in (split.train, split.val, split.test)] == [60, 30, 30] and split.classes == (
        "0",
        "1",
        "2",
    )
    np.savez("two.npz", **{name: array for name, array in arrays.items() if "val" not in name})
    assert len(load_data(Config().data.model_copy(update={"name": "npz:two.npz"})).val) == 6

"""Imports go down: a file imports only its own package and lower floors, and --help never meets torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robustcli"

#: First name below robustcli -> floor. A new package or module gets one, here and in docs/architecture.md.
FLOORS = {
    **dict.fromkeys(("errors", "foreign", "facts", "regular", "registry", "proportions", "core"), 0),
    **dict.fromkeys(("attacks", "objectives", "certificates", "defences"), 1),
    **dict.fromkeys(("config", "records"), 2),
    **dict.fromkeys(("runtime", "store", "terminal"), 3),
    **dict.fromkeys(("data", "models"), 4),
    **dict.fromkeys(("evaluation",), 5),
    **dict.fromkeys(("training", "reporting", "guard"), 6),
    **dict.fromkeys(("assembly", "claims", "gating"), 7),
    **dict.fromkeys(("jobs", "api"), 8),
    **dict.fromkeys(("cli", "learn", "__init__", "__main__"), 9),
}
ONE_PACKAGE = {0, 9}  # floors whose members may import each other
HEAVY = {"torch", "torchvision", "scipy", "sklearn", "matplotlib", "PIL", "timm", "torchattacks", "onnx"}
HEAVY |= {"mlflow", "wandb", "pyarrow"}
LIGHT = (
    *("__init__", "errors", "foreign", "regular", "registry", "proportions"),
    *("records", "cli", "config", "reporting", "terminal"),
)
IMPORTERS = {"import_module", "__import__", "find_spec", "run_module", "LazyLoader"}


def dotted(path: Path, package: Path = PACKAGE) -> str:
    """robustcli/core/geometry.py -> "core.geometry".

    A package's __init__ is the package; the top one is "__init__".
    """
    parts = list(path.relative_to(package).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def resolve(name: str, package: Path = PACKAGE) -> str:
    """ "robustcli.core.geometry.Ball" -> "core.geometry.Ball".

    A name that robustcli/__init__.py defines -> "__init__".
    """
    rest = name.split(".")[1:]
    if rest and ((package / rest[0]).is_dir() or (package / f"{rest[0]}.py").is_file()):
        return ".".join(rest)
    return "__init__"


def text_of(node: ast.expr) -> str | None:
    """A string argument, as far as it is known: the constant, or with which an f-string or a sum begins."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr) and node.values:
        return text_of(node.values[0]) or ""
    if isinstance(node, ast.BinOp):
        return text_of(node.left)
    return None


def imports(tree: ast.AST, module: str, package: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """(line, module of robustcli) for every import statement and import by string, relative ones included."""
    here = ["robustcli", *module.split(".")]
    is_package = module == "__init__" or (package / Path(*module.split("."))).is_dir()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = (here if is_package and module != "__init__" else here[:-1])[
                    : None if node.level == 1 else 1 - node.level
                ]
                base = ".".join([*above, *([node.module] if node.module else [])])
            names = [
                f"{base}.{alias.name}"
                for alias in node.names
                if (base, alias.name) != ("robustcli", "__version__")
            ]  # a constant, set first
        elif isinstance(node, ast.Call):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else node.func.id
                if isinstance(node.func, ast.Name)
                else ""
            )
            texts = [text_of(arg) for arg in node.args] if called in IMPORTERS else []
            names = [f"robustcli{text}" if text.startswith(".") else text for text in texts if text]
        for name in names:
            if name == "robustcli" or name.startswith("robustcli."):
                yield node.lineno, resolve(name.rstrip("."), package)


def faults(path: Path, package: Path = PACKAGE) -> list[str]:
    """Upward and sideways imports of one file."""
    module = dotted(path, package)
    top = module.split(".")[0]
    if top not in FLOORS:
        return [f"{path.name}: {top!r} has no floor; add it to FLOORS"]
    found = []
    for line, target in imports(ast.parse(path.read_text(encoding="utf-8")), module, package):
        other = target.split(".")[0]
        if other not in FLOORS:
            found.append(f"{module}:{line} imports {target}, which has no floor")
        elif other != top and (
            FLOORS[other] > FLOORS[top] or (FLOORS[other] == FLOORS[top] and FLOORS[top] not in ONE_PACKAGE)
        ):
            found.append(f"{module}:{line} (floor {FLOORS[top]}) imports {target} (floor {FLOORS[other]})")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 30
    assert {dotted(path) for path in FILES} >= {
        "errors",
        "core.geometry",
        "attacks.pgd",
        "records.eval",
        "terminal.console",
        "__init__",
    }


@pytest.mark.parametrize("top", sorted({dotted(path).split(".")[0] for path in FILES}))
def test_imports_go_down(top: str) -> None:
    found = [fault for path in FILES if dotted(path).split(".")[0] == top for fault in faults(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "code", "wrong"),
    [
        ("core/a.py", "from robustcli.attacks.pgd import pgd", True),
        ("core/a.py", "import robustcli.terminal.console", True),
        ("core/a.py", "from robustcli import config", True),
        ("core/a.py", "from robustcli import load_model", True),
        ("core/a.py", "from robustcli import __version__", False),
        ("core/a.py", "from ..attacks import pgd", True),
        ("core/a.py", "from . import losses", False),
        ("core/a.py", "from .. import errors", False),
        ("core/__init__.py", "from .geometry import Ball", False),
        ("core/__init__.py", "from ..runtime import console", True),
        ("core/a.py", "def f():\n    from robustcli.cli import main", True),
        (
            "core/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from robustcli.config import schema",
            True,
        ),
        ("core/a.py", "import importlib\nimportlib.import_module('robustcli.attacks')", True),
        ("core/a.py", "from importlib import import_module\nimport_module('.attacks', 'robustcli')", True),
        ("core/a.py", "__import__('robustcli.training.loop')", True),
        (
            "core/a.py",
            "from importlib import import_module\nimport_module(f'robustcli.attacks.{name}')",
            True,
        ),
        (
            "core/a.py",
            "from importlib import import_module\nimport_module('robustcli.attacks.' + name)",
            True,
        ),
        ("core/a.py", "from importlib import import_module\nimport_module(f'robustcli.{name}')", True),
        ("core/a.py", "from importlib import import_module\nimport_module(f'{package}.{name}')", False),
        ("core/a.py", "import robustclient", False),
        ("attacks/a.py", "from robustcli.core.geometry import Ball", False),
        ("attacks/a.py", "from robustcli.objectives import madry", True),
        ("attacks/a.py", "from robustcli.attacks.pgd import pgd", False),
        ("models/a.py", "from robustcli.data import load", True),
        ("training/a.py", "from robustcli.reporting import tables", True),
        ("cli/a.py", "from robustcli.jobs.train import train", False),
        ("api.py", "from robustcli.cli import main", True),
        ("jobs/a.py", "from robustcli.api import evaluate", True),
        ("assembly/a.py", "from robustcli.jobs import train", True),
        ("store/a.py", "from robustcli.terminal import console", True),
        ("stray.py", "import os", True),
    ],
)
def test_the_checker_sees(where: str, code: str, wrong: bool, tmp_path: Path) -> None:
    package = tmp_path / "robustcli"
    for name in FLOORS:
        files = "errors foreign facts registry proportions api learn __main__ __init__"
        if name in files.split():
            package.mkdir(exist_ok=True)
            (package / f"{name}.py").write_text("")
        else:
            (package / name).mkdir(parents=True)
    path = package / where
    path.write_text(code)
    assert bool(faults(path, package)) is wrong


def at_load(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not those of functions, nor those for type checkers."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        yield node
        for block in ("body", "orelse", "finalbody"):
            yield from at_load(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from at_load(handler.body)


def heavy_at_load(module: str, seen: set[str], package: Path = PACKAGE) -> list[str]:
    """Chains "a -> b -> torch" of imports at module level, from a module of robustcli on."""
    if module in seen:
        return []
    seen.add(module)
    base = package / Path(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not path.is_file():  # a name inside a module, or a namespace package
        return heavy_at_load(module.rpartition(".")[0], seen, package) if "." in module else []
    body = [
        node
        for node in at_load(ast.parse(path.read_text(encoding="utf-8")).body)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        node.module for node in body if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    found = [f"{module} -> {name}" for name in sorted(names) if name.split(".")[0] in HEAVY]
    for _, target in imports(ast.Module(list(body), []), module, package):
        parents = [".".join(target.split(".")[: k + 1]) for k in range(target.count(".") + 1)]
        found += [f"{module} -> {chain}" for part in parents for chain in heavy_at_load(part, seen, package)]
    return found


def test_light_modules_load_nothing_heavy() -> None:
    light = [
        dotted(path)
        for path in FILES
        if any(dotted(path) == name or dotted(path).startswith(f"{name}.") for name in LIGHT)
    ]
    assert len(light) > 10
    found = [chain for module in light for chain in heavy_at_load(module, set())]
    assert not found, "\n".join(found)


def test_the_heavy_checker_sees(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("")
    (tmp_path / "runtime" / "seed.py").write_text(
        "try:\n    import torch.nn as nn\nexcept ImportError:\n    pass\n"
    )
    (tmp_path / "records.py").write_text("from robustcli.runtime import seed\n")
    (tmp_path / "errors.py").write_text(
        "import typing\nif typing.TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
    )
    assert heavy_at_load("records", set(), tmp_path) == ["records -> runtime.seed -> torch.nn"]
    assert heavy_at_load("errors", set(), tmp_path) == []


def test_start_up_imports_nothing_heavy() -> None:
    """The same from outside: what is in sys.modules after the imports that every command makes."""
    code = f"""
import sys
import robustcli, robustcli.errors, robustcli.registry, robustcli.records.eval, robustcli.terminal.console
import robustcli.reporting.tables, robustcli.reporting.pictures
import robustcli.reporting.pictures.gallery, robustcli.reporting.summary
robustcli.terminal.console.Console(json=True).document({{"ok": True}})
heavy = sorted(set({sorted(HEAVY)}) & set(sys.modules))
assert not heavy, heavy
assert "rich" not in sys.modules, "rich is for tables"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '{"schema_version": 1, "ok": true}\n'

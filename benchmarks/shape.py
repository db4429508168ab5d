"""The shape of a code base, counted over its syntax trees: a mirror, not a gate.

    python benchmarks/shape.py                 # ours, beside code bases that engineers admire
    python benchmarks/shape.py PATH [PATH ...]  # any other

Tests are left out. Conditional expressions are counted in 1,000 lines that are not blank; a nested one stands
inside another.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from dataclasses import dataclass, field
from pathlib import Path

WIDTH, LONG_FILE, LONG_FUNCTION = 110, 300, 50
OURS = Path(__file__).resolve().parents[1] / "robustcli"
#: What this script counted in a checkout of each, November 2026.
ANCHORS = (
    "adversarial-library (9dec220)|47|4957|156|14.3|2|5|31|3|83%",
    "httpx (b5bcd76)|23|7448|3|11.0|0|9|14|10|100%",
    "torchtitan (ae1b9f6)|329|83816|132|5.9|4|16|406|123|80%",
    "nanochat (92d63d4)|14|2986|64|9.4|0|12|11|4|9%",
)
HEADS = (
    "code base",
    "files",
    "lines",
    f"over {WIDTH} columns",
    "conditionals / 1,000",
    "nested",
    "median function",
    f"functions > {LONG_FUNCTION}",
    f"files > {LONG_FILE}",
    "annotated",
)
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Shape:
    """What was counted in some files."""

    files: int = 0
    lines: int = 0
    wide: int = 0
    conditionals: int = 0
    nested: list[str] = field(default_factory=list)
    long_files: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    annotated: int = 0

    def add(self, path: Path) -> None:
        """Count one file."""
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        self.files += 1
        self.lines += sum(bool(line.strip()) for line in lines)
        self.wide += sum(len(line) > WIDTH for line in lines)
        if len(lines) > LONG_FILE:
            self.long_files.append(f"{path}: {len(lines)} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.IfExp):
                self._conditional(node, path)
            elif isinstance(node, Function):
                self._function(node, path)

    def _conditional(self, node: ast.IfExp, path: Path) -> None:
        self.conditionals += 1
        inside = (part for child in ast.iter_child_nodes(node) for part in ast.walk(child))
        if any(isinstance(part, ast.IfExp) for part in inside):
            self.nested.append(f"{path}:{node.lineno}: a conditional inside a conditional")

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> None:
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        self.lengths.append(length)
        if length > LONG_FUNCTION:
            self.long_functions.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
        own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = [argument for argument in own if argument.arg not in ("self", "cls")]
        self.annotated += node.returns is not None and all(argument.annotation for argument in given)

    def row(self, name: str) -> str:
        """One line of the table."""
        functions = max(1, len(self.lengths))
        cells = (
            name,
            self.files,
            self.lines,
            self.wide,
            f"{1000 * self.conditionals / max(1, self.lines):.1f}",
            len(self.nested),
            f"{statistics.median(self.lengths or [0]):.0f}",
            len(self.long_functions),
            len(self.long_files),
            f"{self.annotated / functions:.0%}",
        )
        return f"| {' | '.join(map(str, cells))} |"


def shape_of(root: Path) -> Shape:
    """The shape of all Python files below `root`, without tests and hidden folders."""
    shape = Shape()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not any(part.startswith((".", "test")) or part in ("tests", "conftest.py") for part in parts):
            shape.add(path)
    return shape


def main() -> None:
    """Print one line per code base, then where ours leaves what it aims at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--where", action="store_true", help="name each place, of any code base")
    options = parser.parse_args()
    print(f"| {' | '.join(HEADS)} |")
    print(f"| --- |{' ---: |' * (len(HEADS) - 1)}")
    found = []
    for path in options.paths or [OURS]:
        shape = shape_of(path)
        print(shape.row(path.name))
        found += [*shape.nested, *shape.long_functions, *shape.long_files]
    if not options.paths:
        print("\n".join(f"| {' | '.join(row.split('|'))} |" for row in ANCHORS))
    if options.where or not options.paths:
        print("\n".join(found))


if __name__ == "__main__":
    main()

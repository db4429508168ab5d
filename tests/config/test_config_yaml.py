"""Hostile and odd YAML: every trick has one clear answer."""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import robustcli.config
from robustcli.config.load import load_config
from robustcli.config.parse import MAX_DEPTH, MAX_NODES
from robustcli.errors import ConfigError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "c.yaml:5: more than 10,000 values after aliases are expanded"),
        ("attacks: &a [*a]\n", "c.yaml:1: alias '*a' contains itself"),
        ("ball: &a\n  eps: *a\n", "c.yaml:2: alias '*a' contains itself"),
        ("seed: *nowhere\n", "c.yaml:1: alias '*nowhere' has no anchor"),
        ("seed: &a 1\nthreads: &a 2\n", "c.yaml:2: anchor '&a' is defined twice"),
        ("a: " + "[" * 2000 + "]" * 2000, "c.yaml:1: nested deeper than 32 levels"),
        ("- " * 5000, "c.yaml:1: nested deeper than 32 levels"),
        ("attacks: [" + "pgd, " * 20_000 + "pgd]\n", "c.yaml:1: more than 10,000 values"),
        ("seed: 1\n---\nseed: 2\n", "c.yaml:2: a second document starts here"),
        ("seed: 1\nseed: 2\n", "c.yaml:2: seed: duplicate key; the first is at c.yaml:1"),
        ("data:\n  name: a\n  'name': b\n", "c.yaml:3: data.name: duplicate key; the first is at c.yaml:2"),
        ("name: !!python/object/apply:os.system [x]\n",
         "c.yaml:1: name: tag '!!python/object/apply:os.system' is not allowed"),
        ("name: !!python/name:os.system\n", "tag '!!python/name:os.system' is not allowed"),
        ("name: !!binary aGk=\n", "c.yaml:1: name: tag '!!binary' is not allowed"),
        ("seed: !!int 3\n", "c.yaml:1: seed: tag '!!int' is not allowed"),
        ("seed: 2020-01-01\n", "c.yaml:1: seed: expected a whole number, got '2020-01-01'"),
        ("data:\n  <<: {name: x}\n", "c.yaml:2: data: the merge key << is not supported"),
        ("1: a\n", "c.yaml:1: keys must be text, got 1"),
        ("null: a\n", "c.yaml:1: keys must be text, got nothing"),
        ("? [a]\n: b\n", "c.yaml:1: keys must be text, got a list"),
        ("name: &n x\n*n : y\n", "c.yaml:2: keys must be text, got an alias"),
        ('"a\\e[1m": 1\n', "c.yaml:1: key 'a\\x1b[1m': control character"),
        ("k" * 201 + ": 1\n", "c.yaml:1: a key of 201 characters"),
        ("- 1\n", "c.yaml:1: the top level must be a mapping such as `seed: 0`, got a list"),
        ("hello\n", "c.yaml:1: the top level must be a mapping such as `seed: 0`, got 'hello'"),
        ("", "c.yaml:1: the file is empty"),
        ("# only a comment\n", "c.yaml:1: the file is empty"),
        ("{}\n", "c.yaml:1: the file is empty"),
        ("seed: 1\n  x: 2\n", "c.yaml:2: not YAML: mapping values are not allowed"),
        ("seed: [1\n", "c.yaml:2: not YAML:"),
        ("data:\n\tname: x\n", "c.yaml:2: not YAML: found character that cannot start any token (column 1)"),
        ("name: a\x07b\n", "c.yaml:1: not "),
        ('name: "\\U00110000"\n', "c.yaml:1: not YAML:"),
        (b"seed: 1\nname: \xff\n", "c.yaml:2: not UTF-8 text (byte 0xff)"),
        ("seed: 1\n".encode("utf-16"), "c.yaml:1: not UTF-8 text"),
        (b"#" * (2**20 + 1), "c.yaml: larger than 1 MiB"),
    ],
)  # fmt: skip
def test_refused(loader: Any, text: str | bytes, problem: str) -> None:
    assert any(found.startswith(problem) or problem in found for found in loader.problems(text)), (
        loader.problems(text)
    )


def test_a_parser_with_a_limit_of_its_own_says_the_same(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: str, Loader: Any) -> Iterator[Any]:
        mark = yaml.Mark("<text>", 0, 2, 5, None, None)
        raise yaml.scanner.ScannerError(
            "while increasing flow level", mark, "exceeded maximum nesting depth", mark
        )
        yield

    monkeypatch.setattr("yaml.parse", parse)
    assert loader.problems("seed: 1\n") == ["c.yaml:3: nested deeper than 32 levels"]


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("name: no\n", "name", "no"), ("name: 1.2.3\n", "name", "1.2.3"), ("name: '7'\n", "name", "7"),
        ("name: !!str 7\n", "name", "7"), ("name: ! 7\n", "name", "7"), ("out: 010\n", "out", "010"),
        ("out: 1:30\n", "out", "1:30"), ("seed: '7'\n", "seed", 7), ("ball: {eps: 1e-3}\n", "ball.eps", 1e-3),
        ("ball: {eps: 8/255}\n", "ball.eps", 8 / 255), ("ball: {eps: '.5'}\n", "ball.eps", 0.5),
        ("\ufeffseed: 3\n", "seed", 3), ("%YAML 1.1\n---\nseed: 3\n...\n", "seed", 3),
        ("seed: 3\r\nname: a\r\n", "name", "a"), ("data: &d {name: fake}\n", "data.name", "fake"),
        ("train: {epochs: 0.5}\n", "train.epochs", 0.5), ("threads: ~\n", "threads", None),
        ("{seed: 4}", "seed", 4),
        ("adversary: &a {name: pgd, steps: 4}\nattacks: [*a]\n", "attacks.0.params", {"steps": 4}),
        ("out: a b # comment\n", "out", "a b"),
    ],
)  # fmt: skip
def test_read_as_written(loader: Any, text: str, path: str, value: Any) -> None:
    found: Any = loader(text).config
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found == value and type(found) is type(value)


def test_limits_are_exact(loader: Any) -> None:
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)  # inside the top mapping and the spec
    assert "deeper" not in str(loader.problems(f"model: {{name: small_cnn, widths: {deep}}}\n"))
    assert "deeper" in str(loader.problems(f"model: {{name: small_cnn, widths: [{deep}]}}\n"))
    values = ", ".join(
        "1" for _ in range(MAX_NODES - 8)
    )  # 8: the two mappings, three keys, the name, the list and the label
    assert loader(f"model: {{name: small_cnn, widths: [{values}]}}\n").config.model.params["widths"][-1] == 1
    assert "10,000" in str(loader.problems(f"model: {{name: small_cnn, widths: [{values}, 1, 1]}}\n"))


def test_aliases_count_expanded_and_with_their_depth(loader: Any) -> None:
    deep = "[" * 20 + "1" + "]" * 20
    assert "deeper than 32" in str(loader.problems(f"a: &a {deep}\nb: " + "[" * 13 + "*a" + "]" * 13 + "\n"))
    assert "deeper" not in str(loader.problems(f"a: &a {deep}\nb: " + "[" * 5 + "*a" + "]" * 5 + "\n"))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    fifo, link, loop = tmp_path / "f.yaml", tmp_path / "link.yaml", tmp_path / "loop.yaml"
    link.symlink_to(tmp_path / "gone.yaml")
    loop.symlink_to(loop)
    cases: list[tuple[str | Path, str]] = [
        (tmp_path, "a directory"),
        (link, "No such file"),
        (loop, "symbolic links"),
        ("/dev/null", "not a regular file"),
        ("a\0b", "not a path"),
        ("", "not a path"),
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(fifo)
        cases.append((fifo, "not a regular file"))
    results: list[str] = []

    def work() -> None:
        for source, _ in cases:
            try:
                load_config(source, environ={}, bind=False)
            except ConfigError as error:
                results.append(error.problems[0])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "a FIFO blocked the reader"
    assert len(results) == len(cases)
    for (source, expected), found in zip(cases, results, strict=True):
        assert expected in found, (source, found)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")

    def refuse(*args: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config(path, environ={}, bind=False)


def test_only_one_module_imports_yaml_and_none_anything_unsafe() -> None:
    package = Path(robustcli.config.__file__).parent
    importers = set()
    for path in package.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            importers |= {path.name for name in names if name.split(".")[0] == "yaml"}
            assert not {name.split(".")[0] for name in names} & {"torch", "numpy", "pickle", "subprocess"}, (
                path.name
            )
            assert not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("eval", "exec")
            ), path.name
    assert importers == {"yaml_text.py"}


def test_recursion_limit_is_not_needed(loader: Any) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        assert "deeper" in str(loader.problems("a: " + "{b: " * 300))
    finally:
        sys.setrecursionlimit(before)

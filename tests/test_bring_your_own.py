"""Every snippet of docs/bring-your-own.md runs as it is printed, in the order of the page."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import commands
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bring-your-own.md"
cli = commands.cli
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml|csv))\n")


def chapters() -> dict[str, list[tuple[str, str]]]:
    """Heading -> its snippets as (language, text); a chapter stands on the first one alone."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        found[part.partition("\n")[0]] = SNIPPET.findall(part)
    return {head: snippets for head, snippets in found.items() if snippets}


def run_python(text: str, names: dict[str, Any]) -> None:
    """A snippet that begins with `# NAME.py` is saved as that file; any other one runs, as in a notebook."""
    file = FILE.match(text)
    if file:
        Path(file[1]).write_text(text, encoding="utf-8")
    else:
        exec(compile(text, str(PAGE), "exec"), names)


def run_shell(text: str, cli: Any) -> None:
    """Each `robustcli ...` line ends as the page says: with 0, or with the N of `# exit N`."""
    for line in text.replace("\\\n", " ").splitlines():
        command, _, comment = line.partition("  #")
        words = shlex.split(command)
        assert words[0] == "robustcli", line
        said = re.search(r"exit (\d+)", comment)
        answer = cli(*words[1:])
        assert answer.code == int(said[1] if said else 0), (line, answer.err[-600:])


@pytest.mark.parametrize("head", chapters())
def test_the_snippets_run(head: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = chapters()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    names: dict[str, Any] = {}
    for language, text in every[next(iter(every))] * (head != next(iter(every))) + every[head]:
        if language == "python":
            run_python(text, names)
        elif language == "bash":
            run_shell(text, cli)
        elif language == "yaml":
            Path(FILE.match(text)[1]).write_text(text, encoding="utf-8")  # type: ignore[index]
        else:
            assert language == "text", f"a snippet in {language} is not run"

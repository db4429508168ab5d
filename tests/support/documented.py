"""The commands that README and docs show, and how each is run at smoke size.

A command is a line of a fenced block of shell. `documented_rules.RULES` says what is added to it, or what
runs in its place and why. A command without a rule fails `tests/docs/test_commands.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustcli.cli.app import build

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(robustcli [^`\n]+)`")
#: A line of a block without a language that begins like this is a command in disguise.
PROGRAMS = ("robustcli", "make", "pip", "torchrun", "sbatch", "curl", "docker")


@dataclass(frozen=True)
class Command:
    """One command as it is printed.

    Args:
        place: page and line.
        text: without its comment; continued lines are one.
        comment: what is said of it.
    """

    place: str
    text: str
    comment: str = ""

    @property
    def exit(self) -> int:
        """The exit code that the page promises by a comment `# exit N: ...`."""
        said = re.match(r"exit (\d+):", self.comment)
        return int(said[1]) if said else 0


@dataclass(frozen=True)
class Rule:
    """What happens with all commands that begin in one way.

    Args:
        add: words that make it small; "" for a command that is small as printed.
        instead: what runs in its place; `{name}` is a name of the world. None: the command as printed.
        why: the reason for `instead`, and for an exit code that the page does not print.
        exits: codes with which it may end; () is the code that the page promises.
        stdin: the file of the world that it reads.
        check: looks at a command that is no `robustcli` command; returns what is wrong, or "".
    """

    add: str = ""
    instead: str | None = None
    why: str = ""
    exits: tuple[int, ...] = ()
    stdin: str = ""
    check: Callable[[str], str] | None = None


def pages() -> list[Path]:
    """All pages with commands."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def shown() -> dict[str, list[Command]]:
    """Page -> its commands, in order.

    Beside the pages: the first lines of `configs/`, and the examples of each help that no page shows.
    """
    texts = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages()}
    found = {name: list(commands_in(text, name)) for name, text in texts.items()}
    found["configs"] = [
        Command(str(path.relative_to(ROOT)), split(path.read_text(encoding="utf-8").splitlines()[0][2:])[0])
        for path in sorted((ROOT / "configs").rglob("*.yaml"))
        if path.parent.name != "train"  # tests/config/test_recipes.py trains with each of these
    ]
    known = {command.text for commands in found.values() for command in commands}
    examples = {command.text: command for command in _examples(build(), "robustcli")}
    found["help"] = [command for text, command in examples.items() if text not in known]
    return {name: commands for name, commands in found.items() if commands}


def _examples(command: Any, name: str) -> Iterator[Command]:
    """The examples at the end of a help text and of those below it."""
    for text in re.findall(r"`([^`]+)`", command.epilog or ""):
        yield Command(f"{name} --help", text)
    for word, below in getattr(command, "commands", {}).items():
        yield from _examples(below, f"{name} {word}")


def split(line: str) -> tuple[str, str]:
    """(command, comment): a `#` after a blank that no quotes enclose begins the comment."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].strip(), line[at + 1 :].strip()
    return line.strip(), ""


def commands_in(text: str, place: str) -> Iterator[Command]:
    """The commands of a page, in order."""
    for block in BLOCK.finditer(text):
        first = text[: block.start()].count("\n") + 2
        if block[2] in ("bash", "sh", "shell", "console"):
            yield from _lines(block[3], place, first)


def _lines(block: str, place: str, first: int) -> Iterator[Command]:
    begun = ""
    for number, line in enumerate(block.splitlines(), first):
        command, comment = split(line)
        if command.endswith("\\"):
            begun += command[:-1].strip() + " "
            continue
        if begun + command:
            yield Command(f"{place}:{number}", " ".join((begun + command).split()), comment)
        begun = ""


def in_disguise(text: str) -> list[str]:
    """Commands in blocks that say no language."""
    lines = [line for block in BLOCK.finditer(text) if not block[2] for line in block[3].splitlines()]
    return [line for line in lines if line.split(" ")[0] in PROGRAMS]


def rule_of(command: str, rules: dict[str, Rule]) -> tuple[str, Rule] | None:
    """The rule with the longest beginning that the command has; words count as wholes."""
    found = [prefix for prefix in rules if f"{command} ".startswith(f"{prefix} ")]
    if not found:
        return None
    prefix = max(found, key=len)
    return prefix, rules[prefix]


def words_of(command: Command, rule: Rule, names: dict[str, str]) -> list[str]:
    """The words that are run in place of the printed ones, less `robustcli`."""
    text = command.text if rule.instead is None else rule.instead
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    text = re.sub(r" > \S+$", "", text)  # the shell's part of it
    words = shlex.split(f"{text} {rule.add}")
    assert words[0] == "robustcli", f"{command.place}: no rule says how to run {text!r}"
    return words[1:]


def run_words(words: list[str], stdin: Path | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command in this process, which reads the file `stdin`."""
    from robustcli.cli.main import run

    out, err, before = io.StringIO(), io.StringIO(), sys.stdin
    with open(stdin or os.devnull, encoding="latin-1") as sys.stdin:
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(words)
        finally:
            sys.stdin = before
    return code, out.getvalue(), err.getvalue()

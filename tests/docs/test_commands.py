"""Every command that README and docs show is run, at smoke size, in the order of its page.

`tests/support/documented_rules.py` is the table of what is added or replaced, and why.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented_world
import pytest
import torch
from documented import (
    ROOT,
    Command,
    Rule,
    commands_in,
    in_disguise,
    pages,
    rule_of,
    run_words,
    shown,
    words_of,
)
from documented_rules import RULES, WHOLE
from matplotlib.figure import Figure
from PIL import Image

NO_RULE = "no test runs this: add a rule to tests/support/documented_rules.py"
PAGES = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages()}
SHOWN = shown()
#: Run by `make test-slow ARGS="-k commands_of_a_page"`; the suite asks only whether each has a rule.
LONG = ("help", "configs", "docs/bench.md", "docs/guard.md")
PARTS = [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SHOWN if name not in WHOLE]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The directory of a reader, and its names; made once for all processes of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    folder, names = shared / "documented", shared / "documented.json"
    with (shared / "documented.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not names.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            patch.chdir(folder)
            names.write_text(json.dumps(documented_world.build(folder)), encoding="utf-8")
    return folder, json.loads(names.read_text(encoding="utf-8"))


def undrawn(figure: Figure, target: Any, **options: Any) -> None:
    """In place of `Figure.savefig`: a picture takes longer than the work that it shows."""
    Image.new("L", (8, 8)).save(target, format="PNG")


@pytest.fixture
def names(
    world: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The names of the world, in a copy of it. No command finds weights or data of this machine."""
    shutil.copytree(world[0], tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Figure, "savefig", undrawn)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield world[1]
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)
    torch.use_deterministic_algorithms(deterministic)


def outcome(command: Command, names: dict[str, str], said: list[str]) -> str:
    """What is wrong with one command, "" for nothing; what it prints goes to `said`."""
    found = rule_of(command.text, RULES)
    if found is None:
        return f"{command.place}: {command.text}: {NO_RULE}"
    rule = found[1]
    if rule.check is not None:
        wrong = rule.check(command.text)
        return f"{command.place}: {command.text}: {wrong}" if wrong else ""
    words = words_of(command, rule, names)
    code, out, err = run_words(words, Path(rule.stdin) if rule.stdin else None)
    said.append(out + err)
    if code in (rule.exits or (command.exit,)):
        return ""
    return f"{command.place}: robustcli {' '.join(words)}: exit {code}\n{err[-500:]}"


def plain(text: str) -> str:
    """Without the widths of tables; numbers are alike, because the test measures less."""
    return re.sub(r"\d+(?:\.\d+)?", "#", re.sub(r" +", " ", text))


def promised(page: str) -> list[str]:
    """The lines of output that a page shows."""
    blocks = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return [plain(line) for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PARTS)
def test_the_commands_of_a_page_run(page: str, names: dict[str, str]) -> None:
    said: list[str] = []
    wrong = [fault for command in SHOWN[page] if (fault := outcome(command, names, said))]
    assert not wrong, "\n".join(wrong)
    if page == "docs/tutorial.md":
        printed = plain("\n".join(said))
        assert [line for line in promised(PAGES[page]) if line not in printed] == []


@pytest.mark.parametrize("page", [name for name in SHOWN if name not in WHOLE])
def test_every_command_has_a_rule(page: str) -> None:
    missing = [f"{c.place}: {c.text}" for c in SHOWN[page] if rule_of(c.text, RULES) is None]
    assert not missing, "\n".join([NO_RULE, *missing])


def test_a_command_without_a_rule_is_named() -> None:
    (command,) = commands_in("```bash\nrobustcli invent  # something\n```\n", "docs/x.md")
    assert NO_RULE in outcome(command, {}, []) and command.comment == "something"
    (other,) = commands_in("```bash\nrobustcli train \\\n  x  # exit 4: why\n```", "p")
    assert other == Command("p:3", "robustcli train x", "exit 4: why") and other.exit == 4


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_of_shell(page: str) -> None:
    assert not in_disguise(PAGES[page]), "write ```bash above it"


@pytest.mark.parametrize("prefix", RULES)
def test_every_rule_is_needed_and_says_why(prefix: str) -> None:
    used = {rule_of(c.text, RULES) for shown in SHOWN.values() for c in shown}
    assert (prefix, RULES[prefix]) in used, "no page shows such a command"
    rule: Rule = RULES[prefix]
    assert rule.why or not (rule.instead or rule.exits), "a replacement needs a reason"


@pytest.mark.parametrize("page", WHOLE)
def test_pages_that_are_run_whole_have_their_test(page: str) -> None:
    assert Path(page).name in (ROOT / WHOLE[page]).read_text(encoding="utf-8")

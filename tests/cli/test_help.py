"""What `--help` shows of every command: panels, whole sentences, and no word of Python's."""

import re
import subprocess
import sys

import pytest

from robustcli.cli.app import build
from robustcli.cli.flags import FLAGS, spellings
from robustcli.cli.main import run
from robustcli.cli.panels import HOMES


def commands(command, path=()):
    """(words of the command line, command) for every verb and every subcommand."""
    below = getattr(command, "commands", {})
    yield path, command
    for name, other in below.items():
        yield from commands(other, (*path, name))


PROGRAM = [sys.executable, "-m", "robustcli"]
ALL = dict(commands(build()))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_is_in_panels_and_says_no_type_of_python(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*path, "--help"]) == 0
    screen = capsys.readouterr().out
    types = r"<(bool|str|int|float|list|path)|\b(BOOLEAN|TEXT|INTEGER|FLOAT)\b|list\["
    assert not re.search(types, screen), re.search(types, screen)
    for name in FLAGS:  # a name of ours that is no option, as TRAIN_BATCH
        hidden = f" {name.upper()} " in screen
        assert not (hidden and spellings(name)[0] != f"--{name.replace('_', '-')}"), name
    command, shown = ALL[path], " ".join(re.sub("[│╭╮╰╯]", " ", screen).split())
    for param in command.params:
        for word in re.sub("[`*]", "", param.help or "").split():
            assert word in shown, (param.name, word)
    if getattr(command, "commands", None) is None:
        panels = re.findall(r"^╭─ (.+?) ─", screen, flags=re.MULTILINE)
        known = [*["Arguments"] * (panels[0] == "Arguments"), *(p for p in HOMES if p in panels)]
        assert panels == known, "the common ones first"
        assert "Output" in panels and not re.search(r"^ Usage:.*(\[\[|\{)", screen, flags=re.MULTILINE)


def test_every_word_of_a_panel_is_an_option():
    options = {word.strip("-") for command in ALL.values() for param in command.params for word in param.opts}
    assert {word for words in HOMES.values() for word in words.split()} - options == {"help"}


def test_an_option_without_a_panel_is_a_common_one_of_its_verb():
    panels = {
        param.name: param.rich_help_panel for param in ALL[("certify",)].params if param.opts[0][0] == "-"
    }
    assert panels["method"] == "Common" and panels["threads"] == "Machine" and panels["debug"] == "Advanced"


@pytest.mark.skipif(sys.platform == "win32", reason="counts the processor time of a child")
def test_help_takes_less_than_half_a_second():
    import resource

    spent = []
    for _ in range(5):  # of one core; the least, since others share the machine
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "robustcli", "train", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if spent[-1] < 0.5:
            return
    raise AssertionError(spent)

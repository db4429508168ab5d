"""The page of all commands, from the application itself and from documents.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from robustcli.cli.app import build
from robustcli.cli.flags import FLAGS
from robustcli.cli.panels import COMMON
from robustcli.config.number import format_number
from robustcli.config.schema import Config

DOCUMENTS = Path(__file__).resolve().parent / "documents.yaml"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every verb and subcommand."""
    for name, below in getattr(command, "commands", {}).items():
        if getattr(below, "commands", None):
            yield from commands(below, (*path, name))
        else:
            yield (*path, name), below


def reference() -> str:
    """All commands: usage, what it does, examples, flags, the keys of its document."""
    return "".join(_section(path, command) for path, command in commands(build()))


def _section(path: tuple[str, ...], command: Any) -> str:
    name = " ".join(path)
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join(("robustcli", name, *(_shown(param) for param in arguments)))
    lines = [f"\n## {name}\n\n`{usage}`\n\n{_escaped(command.help or '')}\n\n"]
    lines += [f"- `{example}`\n" for example in re.findall(r"`([^`]+)`", command.epilog or "")]
    lines += ["\n| argument | what |\n| --- | --- |\n"] * bool(arguments)
    lines += [f"| `{_escaped(_shown(param))}` | {_escaped(param.help or '')} |\n" for param in arguments]
    lines += ["\n| option | what | default |\n| --- | --- | --- |\n"]
    lines += [_option(param) for param in options]
    return "".join(lines) + _document(name)


def _shown(param: Any) -> str:
    """An argument as the usage has it."""
    bare = param.required or param.metavar.startswith("[")
    return str(param.metavar if bare else f"[{param.metavar}]")


def _option(param: Any) -> str:
    """One row: spellings and value, what it is, and what counts where it is left out."""
    names = ", ".join(f"`{name}`" for name in sorted(param.opts, key=len, reverse=True))
    value = f" `{_escaped(param.metavar)}`" if param.metavar else ""
    panel = param.rich_help_panel
    more = "" if panel in (None, COMMON) else f" ({panel.lower()})"
    return f"| {names}{value} | {_escaped(param.help or '')}{more} | {_default(param)} |\n"


def _default(param: Any) -> str:
    """The default: of the option, else of the key that it sets, with the key."""
    flag = FLAGS.get(param.name)
    if flag is not None and flag.key is not None:
        found = _key_default(flag.key)
        return f"`{flag.key}`" if found is None else f"`{flag.key}: {found}`"
    if getattr(param, "is_flag", False) or param.default in (None, "", ()):
        return ""
    return f"`{param.default}`"


def _key_default(key: str) -> str | None:
    """The default of a configuration key as YAML has it; None where the configuration has none."""
    value: Any = Config().model_dump(mode="json")
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if value is None or isinstance(value, (dict, list)):
        return None
    if isinstance(value, float):
        return str(format_number(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def documents() -> dict[str, dict[str, str]]:
    """Verb -> key of its document -> what it holds."""
    found: dict[str, dict[str, str]] = yaml.safe_load(DOCUMENTS.read_text(encoding="utf-8"))
    return found


def _document(name: str) -> str:
    """The keys of `--json`; of `demo` also those of `demo guard`, which is no command of its own."""
    own = [verb for verb in documents() if verb == name or (name == "demo" and verb.startswith("demo "))]
    return "".join(_keys(verb, name) for verb in own)


def _keys(verb: str, name: str) -> str:
    of = "" if verb == name else f" of `{verb}`"
    rows = [f"| `{key}` | {_escaped(what)} |\n" for key, what in documents()[verb].items()]
    return f"\n| key of `--json`{of} | what |\n| --- | --- |\n{''.join(rows)}"


def _escaped(text: str) -> str:
    """Text in a cell: no bar ends it, and no word in angle brackets is a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

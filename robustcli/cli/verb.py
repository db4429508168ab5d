"""What the module of a verb has, and how a command ends: its document, its gates, its exit code."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

import typer

from robustcli.cli.call import Call
from robustcli.cli.flags import FlagValue
from robustcli.cli.limits import check_address_space
from robustcli.cli.options import WORDS, WORDS_METAVAR, Command, examples
from robustcli.errors import Interrupted, ResourceError
from robustcli.foreign import foreign_fault
from robustcli.runtime.team import Team
from robustcli.terminal.console import Console

Document = dict[str, Any]


class Verb(Protocol):
    """What the module of a verb has.

    POSITION orders the verbs in `--help`. `run` loads the configuration, calls one work function and returns
    its document. One whose words are not CONFIG and settings says so in WORDS and WORDS_METAVAR.
    """

    @property
    def POSITION(self) -> int: ...

    @property
    def HELP(self) -> str: ...

    @property
    def EXAMPLES(self) -> tuple[str, str]: ...

    @property
    def FLAGS(self) -> tuple[str, ...]: ...

    def run(self, call: Call) -> Document | None: ...


def discovered(package: ModuleType) -> dict[str, Any]:
    """Name -> module of every file of a package, in the order of their POSITION.

    An underscore in the name of a file is a hyphen in that of the command.
    """
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    found = {name.replace("_", "-"): module for name, module in modules.items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1].POSITION))


def add_verb(app: typer.Typer, name: str, verb: Verb, full: str = "") -> None:
    """Make a verb a command of `app`. full: what its documents call it, where that is not its name."""

    def run(values: Mapping[str, FlagValue]) -> None:
        finish(full or name, verb, values)

    words = (getattr(verb, "WORDS", WORDS), getattr(verb, "WORDS_METAVAR", WORDS_METAVAR))
    command = Command(name, verb.FLAGS, run, words)
    app.command(name, help=verb.HELP, epilog=examples(*verb.EXAMPLES), no_args_is_help=False)(command)


def finish(name: str, verb: Verb, values: Mapping[str, FlagValue]) -> None:
    """Run one verb, and end as `conclude` does."""
    switches = {switch: bool(values.get(switch)) for switch in ("json", "quiet", "verbose")}
    console = Console(**switches)
    conclude(name, console, lambda: verb.run(Call(name, values, console)))


def conclude(name: str, console: Console, work: Callable[[], Document | None]) -> None:
    """Do the work of a command. Print its document with --json, else the run's path as the last line.

    Raises typer.Exit with code 1 when a gate of the document is not met.
    """
    check_address_space()
    try:
        document = work()
    except KeyboardInterrupt:  # Typer would answer 130 without a word
        raise Interrupted("stopped by SIGINT", signum=2) from None
    except BaseException as error:  # Typer takes a SystemExit and an Exit of a user's code for ours
        fault = foreign_fault(error) or _lost_reader(error)
        if fault is None:
            raise
        raise fault from error
    if document is None:
        return
    failed = [gate for gate in document.get("gate", ()) if not gate["passed"]]
    for gate in failed:
        console.error(_unmet(gate))
    console.document({"ok": True, "verb": name, **document})
    if document.get("run"):
        console.result(str(document["run"]))
    if failed:
        Team.here().unmet()
        raise typer.Exit(1)


def _unmet(gate: Mapping[str, Any]) -> str:
    """The line for a gate that was not met: a number below its least, or a state in words."""
    if "min" in gate:
        return f"gate not met: {gate['metric']} is {gate['value']:.4f}, below {gate['min']:g}"
    return f"gate not met: {gate['metric']} is {gate['value']}"


def _lost_reader(error: BaseException) -> ResourceError | None:
    """The failure of a verb whose work stopped because a library wrote to a pipe that nobody reads."""
    if not isinstance(error, BrokenPipeError):
        return None
    return ResourceError(
        "a library wrote to a pipe that nobody reads",
        hint="let the reader stay, or send the output to a file",
        code="E-WRITE",
    )

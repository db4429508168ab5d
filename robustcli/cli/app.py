"""The Typer application: verbs with the shared flags, each help with two examples that run."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol, cast

import typer

from robustcli import __version__
from robustcli.cli import verbs
from robustcli.cli.call import Call
from robustcli.cli.config import app as config
from robustcli.cli.data import app as data
from robustcli.cli.flags import FlagValue
from robustcli.cli.limits import check_address_space
from robustcli.cli.options import Command, examples
from robustcli.errors import Interrupted, ResourceError
from robustcli.foreign import foreign_fault
from robustcli.terminal.console import Console


class Verb(Protocol):
    """What the module of a verb has.

    POSITION orders the verbs in `--help`. `run` loads the configuration, calls one work function and returns
    its document.
    """

    @property
    def POSITION(self) -> int: ...

    @property
    def HELP(self) -> str: ...

    @property
    def EXAMPLES(self) -> tuple[str, str]: ...

    @property
    def FLAGS(self) -> tuple[str, ...]: ...

    def run(self, call: Call) -> dict[str, Any] | None: ...


def discovered() -> dict[str, Verb]:
    """Name -> module of every verb in `robustcli.cli.verbs`, in the order of `--help`."""
    names = [module.name for module in pkgutil.iter_modules(verbs.__path__)]
    modules = {name: importlib.import_module(f"{verbs.__name__}.{name}") for name in names}
    found = {name.replace("_", "-"): cast(Verb, module) for name, module in modules.items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1].POSITION))


VERBS: Mapping[str, Verb] = discovered()


def build() -> Callable[..., Any]:
    """The application as a command; imports no torch."""
    app = typer.Typer(
        name="robustcli",
        help="Train, attack and measure robust image classifiers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        epilog=examples("robustcli demo", "robustcli train smoke/digits"),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for name, verb in VERBS.items():
        _add(app, name, verb)
    app.add_typer(config, name="config")
    app.add_typer(data, name="data")
    return typer.main.get_command(app)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"robustcli {__version__}\n")
        raise typer.Exit()


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


def _add(app: typer.Typer, name: str, verb: Verb) -> None:
    def run(values: Mapping[str, FlagValue]) -> None:
        finish(name, verb, values)

    command = Command(name, verb.FLAGS, run)
    app.command(name, help=verb.HELP, epilog=examples(*verb.EXAMPLES), no_args_is_help=False)(command)


def finish(name: str, verb: Verb, values: Mapping[str, FlagValue]) -> None:
    """Run one verb. Print its document with --json, else the run's path as the last line.

    Raises typer.Exit with code 1 when a gate of the document is not met.
    """
    switches = {switch: bool(values.get(switch)) for switch in ("json", "quiet", "verbose")}
    console = Console(**switches)
    check_address_space()
    try:
        document = verb.run(Call(name, values, console))
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
        console.error(f"gate not met: {gate['metric']} is {gate['value']:.4f}, below {gate['min']:g}")
    console.document({"ok": True, "verb": name, **document})
    if document.get("run"):
        console.result(str(document["run"]))
    if failed:
        raise typer.Exit(1)


def _lost_reader(error: BaseException) -> ResourceError | None:
    """The failure of a verb whose work stopped because a library wrote to a pipe that nobody reads."""
    if not isinstance(error, BrokenPipeError):
        return None
    return ResourceError(
        "a library wrote to a pipe that nobody reads",
        hint="let the reader stay, or send the output to a file",
        code="E-WRITE",
    )

"""The Typer application: verbs with the shared flags, each help with two examples that run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from robustcli import __version__
from robustcli.cli import verbs
from robustcli.cli.config import app as config
from robustcli.cli.data import app as data
from robustcli.cli.guard import app as guard
from robustcli.cli.options import examples
from robustcli.cli.panels import arrange
from robustcli.cli.runs import app as runs
from robustcli.cli.verb import Verb, add_verb, discovered

VERBS: Mapping[str, Verb] = discovered(verbs)


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
        add_verb(app, name, verb)
    app.add_typer(config, name="config")
    app.add_typer(data, name="data")
    app.add_typer(guard(), name="guard")
    app.add_typer(runs, name="runs")
    command: Callable[..., Any] = arrange(typer.main.get_command(app))
    return command


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

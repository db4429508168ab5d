"""`robustcli guard log`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from robustcli.cli.guard_options import AsJson, Debug, Quiet, Store
from robustcli.cli.options import examples
from robustcli.cli.verb import conclude
from robustcli.terminal.console import Console

POSITION = 70
_HELP = "What was reviewed, forgotten, dropped and updated, and whether anybody has changed that record."
_EXAMPLES = ("robustcli guard log evidence.db", "robustcli guard log evidence.db --verify --json")
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Check the chain of hashes; exit 3 when it is broken.", show_default=False),
]
Known = Annotated[
    str | None,
    typer.Option(help="A hash that you noted: exit 3 where its entry is missing.", metavar="HASH"),
]
Last = Annotated[int | None, typer.Option(help="Show so many entries, the newest.", metavar="N", min=1)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("log", help=_HELP, epilog=examples(*_EXAMPLES))(_log)


def _log(
    store: Store,
    verify: Verify = False,
    known: Known = None,
    last: Last = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    from robustcli.jobs.guard.log import guard_log

    console = Console(json=as_json, quiet=quiet)
    conclude("guard log", console, partial(guard_log, store, console, verify=verify, known=known, last=last))

"""`robustcli guard forget`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from robustcli.cli.guard_options import AsJson, Debug, Quiet, Store
from robustcli.cli.options import examples
from robustcli.cli.verb import conclude
from robustcli.terminal.console import Console

POSITION = 60
_HELP = "Delete quarantined images for ever, with all that was known of them. The log keeps their hashes."
_EXAMPLES = (
    "robustcli guard forget evidence.db 3fa94c",
    "robustcli guard forget evidence.db 3fa94c 07be11 --json",
)
Hashes = Annotated[
    list[str], typer.Argument(help="Whole hashes, or beginnings that name one image.", metavar="HASH...")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("forget", help=_HELP, epilog=examples(*_EXAMPLES))(_forget)


def _forget(
    store: Store, hashes: Hashes, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    from robustcli.jobs.guard.log import guard_forget

    console = Console(json=as_json, quiet=quiet)
    conclude("guard forget", console, partial(guard_forget, store, hashes, console))

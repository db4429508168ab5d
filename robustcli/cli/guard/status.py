"""`robustcli guard status`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from robustcli.cli.guard_options import AsJson, Debug, Quiet, Store
from robustcli.cli.options import examples
from robustcli.cli.verb import conclude
from robustcli.terminal.console import Console

POSITION = 40
_HELP = "Does what comes today still look like what the guard was fitted on? ok, watch or act, and why."
_EXAMPLES = (
    "robustcli guard status evidence.db",
    "robustcli guard status evidence.db --window 24h --fail-on act",
)
Guard = Annotated[
    Path | None,
    typer.Option(
        help="Directory of `guard fit`, instead of the fit that the store knows.",
        metavar="DIR",
        show_default=False,
    ),
]
Window = Annotated[
    str, typer.Option(help="How many answers, the newest; or how far back: 30m, 24h, 7d.", metavar="WINDOW")
]
FailOn = Annotated[
    Literal["watch", "act"] | None,
    typer.Option(help="Exit 1 for this state, and for a worse one.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status", help=_HELP, epilog=examples(*_EXAMPLES))(_status)


def _status(
    store: Store,
    guard: Guard = None,
    window: Window = "1000",
    fail_on: FailOn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    from robustcli.jobs.guard.status import guard_status

    console = Console(json=as_json, quiet=quiet)
    asked = partial(guard_status, guard=guard, window=window, fail_on=fail_on)
    conclude("guard status", console, partial(asked, store, console))

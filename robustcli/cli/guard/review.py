"""`robustcli guard review`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from robustcli.cli.guard_options import AsJson, Debug, Quiet, Store
from robustcli.cli.options import examples
from robustcli.cli.verb import conclude
from robustcli.terminal.console import Console

POSITION = 50
_HELP = "Say what the quarantined images are: attacks with their true class, false alarms, or unusable."
_EXAMPLES = (
    "robustcli guard review evidence.db",
    "robustcli guard review evidence.db --label 3fa94c=7 --label 07be11=clean",
)
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="A label without asking, repeatable: CLASS of an attack, clean[:CLASS] or unusable.",
        metavar="HASH=LABEL",
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Images that have a label, too.", show_default=False)]
Listed = Annotated[bool, typer.Option("--list", help="Show the images and ask nothing.", show_default=False)]
By = Annotated[str, typer.Option(help="Who labels, for the log.", metavar="NAME", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("review", help=_HELP, epilog=examples(*_EXAMPLES))(_review)


def _review(
    store: Store,
    label: Labels = None,
    everything: Everything = False,
    listed: Listed = False,
    by: By = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    from robustcli.jobs.guard.review import guard_review

    console = Console(json=as_json, quiet=quiet)
    asked = partial(guard_review, labels=label or [], everything=everything, listed=listed, by=by)
    conclude("guard review", console, partial(asked, store, console))

"""`robustcli guard run`."""

from __future__ import annotations

from typing import Annotated

import typer

from robustcli.cli.guard_options import (
    EVIDENCE,
    Address,
    Batch,
    Days,
    Debug,
    Device,
    Guard,
    Kept,
    Megabytes,
    Plugin,
    Quiet,
    WithImage,
)
from robustcli.cli.options import examples
from robustcli.cli.verb import Document, conclude
from robustcli.terminal.console import Console

POSITION = 30
HELP = "Answer image files: one JSON line each, and alarms into the evidence store."
EXAMPLES = (
    "robustcli guard run runs/guard/latest images",
    "find . -name '*.png' | robustcli guard run runs/guard/latest -",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", help=HELP, epilog=examples(*EXAMPLES))(run)


def run(
    guard: Guard,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, lists with one path a line, or - for an image or list on stdin.",
            metavar="PATH...",
        ),
    ],
    store: Kept = EVIDENCE,
    store_mb: Megabytes = 1024.0,
    store_days: Days = 90.0,
    batch: Batch = 64,
    device: Device = "auto",
    plugin: Plugin = None,
    webhook: Address = "",
    webhook_image: WithImage = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See HELP."""
    console = Console(quiet=quiet)

    def work() -> Document | None:
        from robustcli.jobs.guard.model import Opening
        from robustcli.jobs.guard.run import guard_run

        opening = Opening(guard, device, store, webhook, webhook_image, plugin, store_mb, store_days)
        guard_run(opening, paths, batch, console)
        return None

    conclude("guard run", console, work)

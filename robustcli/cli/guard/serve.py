"""`robustcli guard serve`."""

from __future__ import annotations

import os
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

POSITION = 35
HELP = (
    "Answer images over HTTP: POST /predict, GET /health and /metrics, and a page at /review for the alarms."
)
EXAMPLES = (
    "robustcli guard serve runs/guard/latest",
    "robustcli guard serve runs/guard/latest --port 9000 --workers 2",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve", help=HELP, epilog=examples(*EXAMPLES))(serve)


def serve(
    guard: Guard,
    host: Annotated[
        str, typer.Option(help="Address; others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    token_env: Annotated[
        str, typer.Option(help="Variable with the token that clients send.", metavar="NAME")
    ] = "ROBUSTCLI_TOKEN",
    i_know: Annotated[
        bool, typer.Option("--i-know", help="Let other machines reach it.", show_default=False)
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name of this server, as of a proxy; repeatable.", show_default=False),
    ] = None,
    store: Kept = EVIDENCE,
    store_mb: Megabytes = 1024.0,
    store_days: Days = 90.0,
    workers: Annotated[int, typer.Option(help="Processes, each with its own model.", min=1, max=256)] = 1,
    queue: Annotated[int, typer.Option(help="Images of a process that may wait.", min=1)] = 512,
    batch: Batch = 64,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of a process.", min=1, show_default=False)
    ] = None,
    device: Device = "auto",
    plugin: Plugin = None,
    webhook: Address = "",
    webhook_image: WithImage = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document when it listens.", show_default=False)
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See HELP."""
    console = Console(json=as_json, quiet=quiet)

    def work() -> Document:
        # Threads of PyTorch that wait by spinning take the cores from those that read requests.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        from robustcli.jobs.guard.model import Opening
        from robustcli.jobs.guard.serve import ServeFlags, guard_serve

        names = tuple(allow_host or ())
        flags = ServeFlags(host, port, token_env, names, i_know, workers, queue, batch, threads)
        opening = Opening(guard, device, store, webhook, webhook_image, plugin, store_mb, store_days)
        return guard_serve(opening, flags, console)

    conclude("guard serve", console, work)

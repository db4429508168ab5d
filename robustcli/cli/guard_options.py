"""Arguments and options that several subcommands of `robustcli guard` have."""

from __future__ import annotations

from typing import Annotated

import typer

EVIDENCE = "evidence/store.db"
Store = Annotated[
    str, typer.Argument(help="A file of evidence, or postgresql://USER@HOST/DATABASE.", metavar="STORE")
]
Guard = Annotated[str, typer.Argument(help="The folder that `guard fit` wrote.", metavar="GUARD")]
Plugin = Annotated[
    str | None,
    typer.Option(
        help="Code of a network of yours that the guard holds; runs it.",
        metavar="FILE.py:FACTORY",
        show_default=False,
    ),
]
Kept = Annotated[str, typer.Option("--store", help="Evidence: a file, or postgresql://…", metavar="STORE")]
Megabytes = Annotated[
    float,
    typer.Option(
        "--store-mb",
        help="MB of images that the store may hold; then the oldest without a label go.",
        min=0.1,
        max=1e9,
    ),
]
Days = Annotated[float, typer.Option("--store-days", help="Images that came last so long ago go.", min=0.01)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Batch = Annotated[int, typer.Option(help="Images of one pass.", min=1)]
Address = Annotated[
    str,
    typer.Option(
        help="Address that is told of alarms; or the variable ROBUSTCLI_WEBHOOK.",
        metavar="URL",
        show_default=False,
    ),
]
WithImage = Annotated[
    bool, typer.Option("--webhook-image", help="The webhook gets the images too.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when it fails.", show_default=False)]

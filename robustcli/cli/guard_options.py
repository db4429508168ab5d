"""Arguments that several subcommands of `robustcli guard` have."""

from __future__ import annotations

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Argument(help="A file of evidence, or postgresql://USER@HOST/DATABASE.", metavar="STORE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when it fails.", show_default=False)]

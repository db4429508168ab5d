"""`robustcli data check`."""

from __future__ import annotations

from typing import Annotated

import typer

from robustcli.cli.call import Call
from robustcli.cli.options import examples
from robustcli.terminal.console import Console

_HELP = "Look at a data set before any training."
app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    epilog=examples("robustcli data check digits", "robustcli data check fake data.size=8 --json"),
)
Words = Annotated[
    list[str],
    typer.Argument(
        help="DATA (a name, folder:PATH, csv:, npz:, hf:, wds:PATH or a path) and key=value settings.",
        metavar="DATA [KEY=VALUE]...",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no messages.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when it fails.", show_default=False)]


@app.callback()
def _data() -> None:
    """Look at a data set before any training."""


@app.command(
    "check", epilog=examples("robustcli data check digits", "robustcli data check fake data.size=8 --json")
)
def check(words: Words, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Splits, classes in their order, counts, sizes, depths, unreadable files, and the same picture twice.

    Exit as a training or an evaluation would where it would fail: 3 for the data.
    """
    console = Console(json=as_json, quiet=quiet)
    loaded = Call("data", {"words": [_setting(words[0]), *words[1:]]}, console).load()
    from robustcli.jobs.data_check import data_check

    document = data_check(loaded.config.data, console)
    problems = document["problems"]
    for problem in problems:
        hint = f"; {problem['hint']}" if problem["hint"] else ""
        console.error(f"error[{problem['code']}]: {problem['for']} would fail: {problem['message']}{hint}")
    if problems:
        first = {key: problems[0][key] for key in ("code", "exit", "message", "hint")}
        document |= {"ok": False, "error": first}
    console.document(document)
    if problems:
        raise typer.Exit(problems[0]["exit"])


def _setting(data: str) -> str:
    """DATA as a setting; `Call` finds the kind of data set that lies at a path."""
    return data if data.startswith("data.name=") else f"data.name={data}"

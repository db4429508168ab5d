"""`robustcli runs ls|compare|prune`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli.options import examples
from robustcli.terminal.console import Console

_HELP = "Look at finished runs: list and rank them, compare them on the same samples, free disk space."
app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    epilog=examples("robustcli runs ls", "robustcli runs compare runs/eval/digits-1 runs/eval/digits-2"),
)
Root = Annotated[
    Path | None, typer.Argument(help="The directory that holds the runs: runs.", metavar="[DIR]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages.", show_default=False)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when it fails.", show_default=False)]


class _Word(str, Enum):
    """One of some words; it is shown as it is written."""

    def __str__(self) -> str:
        return str(self.value)


class Sort(_Word):
    """What orders a list of runs; `jobs.evidence.runs.SORTS` has the keys."""

    when = "when"
    name = "name"
    data = "data"
    clean = "clean"
    robust = "robust"
    size = "size"


class By(_Word):
    """What a leaderboard ranks by."""

    robust_acc = "robust_acc"
    clean_acc = "clean_acc"
    certified_acc = "certified_acc"


@app.command(
    "ls", epilog=examples("robustcli runs ls --verb eval --sort robust", "robustcli runs ls --leaderboard")
)
def ls(
    root: Root = None,
    verb: Annotated[
        str | None,
        typer.Option("--verb", help="Only this verb: eval, guard-eval.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Only runs on this data set.", show_default=False)
    ] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="What orders the list.")] = Sort.when,
    board: Annotated[
        bool, typer.Option("--leaderboard", help="Rank what is comparable.", show_default=False)
    ] = False,
    by: Annotated[By | None, typer.Option("--by", help="Rank by this number.", show_default=False)] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """All runs: verb, state, data, model, clean and robust accuracy, reliability, size on disk.

    A leaderboard ranks only runs of the same data, split, ball, attacks and samples; others have a table of
    their own.
    """
    from robustcli.jobs.evidence.runs import runs_ls

    if by is None and board:
        by = By.robust_acc
    number = None if by is None else by.value
    console = Console(json=as_json, quiet=quiet)
    runs_ls(root, console, verb=verb, data=data, sort=sort.value, by=number)


@app.command(
    "compare",
    epilog=examples(
        "robustcli runs compare runs/eval/digits-1 runs/eval/digits-2",
        "robustcli runs compare runs/train/digits-1 runs/train/latest --json",
    ),
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more; each is compared with the first.", metavar="RUN RUN..."),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Which is better, and is that chance? Paired differences on the same samples, with intervals.

    Where the samples are not the same, or no verdict per sample was kept, the intervals are unpaired, and it
    is said. Runs of different verbs are not compared (exit 2).
    """
    from robustcli.jobs.evidence.comparing import runs_compare

    runs_compare(runs, Console(json=as_json, quiet=quiet))


@app.command(
    "prune",
    epilog=examples("robustcli runs prune", "robustcli runs prune --keep-best --older-than 30d --yes"),
)
def prune(
    root: Root = None,
    keep_best: Annotated[
        bool,
        typer.Option("--keep-best", help="Of a finished training, keep only the best.", show_default=False),
    ] = False,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            help="Only runs that ended so long ago: 12h, 30d, 2w.",
            metavar="AGE",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; without, only say it.", show_default=False)
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Disk space: checkpoints that nothing names, shards whose numbers are made, runs without a result.

    Without --yes nothing is removed. A run stays as it is while it runs, where `latest` names it, and where
    another run was made from it. Files that no run writes are never touched.
    """
    from robustcli.jobs.evidence.pruning import runs_prune

    console = Console(json=as_json, quiet=quiet)
    runs_prune(root, console, keep_best=keep_best, older_than=older_than, yes=yes)

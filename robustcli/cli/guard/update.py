"""`robustcli guard update`."""

from __future__ import annotations

from typing import Annotated

import typer

from robustcli.cli.call import Call
from robustcli.cli.guard_options import AsJson, Debug, Guard, Plugin, Quiet, Store
from robustcli.cli.options import WORDS_METAVAR, complete_config, examples
from robustcli.cli.verb import Document, conclude
from robustcli.terminal.console import Console

POSITION = 55
HELP = (
    "Learn from reviewed evidence: fine-tune, fit, compare with the deployed guard, "
    "and deploy only what passes."
)
EXAMPLES = (
    "robustcli guard update evidence.db runs/guard/current guard/update_digits",
    "robustcli guard update evidence.db runs/guard/current --rollback",
)
Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="How to train: CONFIG (else that of the fit) and key=value settings.",
        metavar=WORDS_METAVAR,
        autocompletion=complete_config,
        show_default=False,
    ),
]
Share = Annotated[float, typer.Option(help="Share of each training batch that is evidence.")]
HeldOut = Annotated[
    float, typer.Option(help="Share of the reviewed images that decide; none of them is trained on.")
]
Level = Annotated[float, typer.Option(help="Level of the one-sided tests that refuse a worse guard.")]
RollBack = Annotated[
    bool, typer.Option("--rollback", help="Deploy the version before again.", show_default=False)
]
Out = Annotated[
    str | None,
    typer.Option(help="Run directory, in place of runs/update/NAME-N.", metavar="DIR", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Seed of all random draws.", show_default=False)]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=False)]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be learnt from, and do nothing.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("update", help=HELP, epilog=examples(*EXAMPLES))(update)


def update(
    store: Store,
    guard: Guard,
    words: Words = None,
    share: Share = 0.25,
    held_out: HeldOut = 0.3,
    level: Level = 0.05,
    rollback: RollBack = False,
    out: Out = None,
    overwrite: Overwrite = False,
    seed: Seed = None,
    device: Device = None,
    plugin: Plugin = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """See HELP."""
    console = Console(json=as_json, quiet=quiet)

    def work() -> Document:
        from robustcli.jobs.guard.update import UpdateFlags, guard_rollback, guard_update, stored_config

        if rollback:
            return guard_rollback(store, guard, console)
        flags = UpdateFlags(store, guard, share, held_out, level, plugin, overwrite, dry_run)
        texts = {"seed": seed, "device": device, "out": out}
        given = {name: str(value) for name, value in texts.items() if value is not None}
        call = Call("guard update", {"words": words or [], **given}, console)
        if call.source() is None:
            call = call.replaced(words=[stored_config(guard), *(words or [])])
        return guard_update(call.load(), console, flags)

    conclude("guard update", console, work)

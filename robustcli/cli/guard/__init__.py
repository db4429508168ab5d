"""`robustcli guard SUB`: one file per subcommand in this folder; the application finds them by themselves.

A file has what the module of a verb has (`cli.verb.Verb`), for a command that loads a configuration. Or it
has POSITION and `register(app)`, which adds a Typer command of its own and ends with `cli.verb.conclude`.
"""

from __future__ import annotations

import sys

import typer

from robustcli.cli.options import examples
from robustcli.cli.verb import add_verb, discovered

HELP = "Defend a deployed model: detect, keep the evidence, review it, learn from it."
EXAMPLES = ("robustcli guard status store.db", "robustcli guard log store.db --verify")


def app() -> typer.Typer:
    """The subcommands as one application."""
    group = typer.Typer(help=HELP, no_args_is_help=True, epilog=examples(*EXAMPLES))
    group.callback()(_guard)
    for name, module in discovered(sys.modules[__name__]).items():
        if hasattr(module, "register"):
            module.register(group)
        else:
            add_verb(group, name, module, f"guard {name}")
    return group


def _guard() -> None:
    """Defend a deployed model: detect, keep the evidence, review it, learn from it."""

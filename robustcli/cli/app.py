"""The Typer application: verbs with the shared flags, each help with two examples that run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from robustcli import __version__
from robustcli.cli.call import Call
from robustcli.cli.options import with_flags
from robustcli.errors import Interrupted

#: verb -> module under robustcli.cli; each has HELP, EXAMPLES, FLAGS and run(call) -> document | None.
VERBS = {
    "check-gpu": "check_gpu",
    "train": "train",
    "attack": "attack",
    "eval": "eval",
    "transfer": "transfer",
    "bench": "bench",
    "demo": "demo",
}


def build() -> Any:
    """The application as a command; imports no torch."""
    app = typer.Typer(
        name="robustcli",
        help="Train, attack and measure robust image classifiers.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        epilog=_epilog(("robustcli demo", "robustcli train smoke/digits")),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for verb, module in VERBS.items():
        _add(app, verb, importlib.import_module(f"robustcli.cli.{module}"))
    from robustcli.cli.config import app as config

    app.add_typer(config, name="config")
    return typer.main.get_command(app)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"robustcli {__version__}\n")
        raise typer.Exit()


def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


def _epilog(examples: tuple[str, str]) -> str:
    return "Examples:\n\n" + "\n\n".join(f"`{example}`" for example in examples)


def _add(app: typer.Typer, verb: str, module: Any) -> None:
    def run(values: Mapping[str, Any]) -> None:
        finish(verb, module, values)

    command = with_flags(module.FLAGS, run)
    command.__name__ = verb.replace("-", "_")
    app.command(verb, help=module.HELP, epilog=_epilog(module.EXAMPLES), no_args_is_help=False)(command)


def finish(verb: str, module: Any, values: Mapping[str, Any]) -> None:
    """Run one verb: its document with --json, else the run's path as the last line; exit code from a gate."""
    from robustcli.terminal.console import Console

    console = Console(
        json=bool(values.get("json")), quiet=bool(values.get("quiet")), verbose=bool(values.get("verbose"))
    )
    try:
        document = module.run(Call(verb, values, console))
    except KeyboardInterrupt:  # Typer would answer 130 without a word
        raise Interrupted("stopped by SIGINT", signum=2) from None
    if document is None:
        return
    failed = [gate for gate in document.get("gate", ()) if not gate["passed"]]
    for gate in failed:
        console.error(f"gate not met: {gate['metric']} is {gate['value']:.4f}, below {gate['min']:g}")
    console.document({"schema_version": 1, "ok": True, "verb": verb, **document})
    if document.get("run"):
        console.result(str(document["run"]))
    if failed:
        raise typer.Exit(1)

"""Flags as Typer reads them, and as a command line has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer

from robustcli.cli.flags import FLAGS, FlagValue, spellings, texts_of

WORDS = "CONFIG (a file or a shipped name) and key=value settings."
WORDS_METAVAR = "[CONFIG] [KEY=VALUE]..."


def complete_config(incomplete: str) -> list[str]:
    """Names of the shipped configurations."""
    from robustcli.config.shipped import shipped_configs

    return [name for name in shipped_configs() if name.startswith(incomplete)]


def examples(*commands: str) -> str:
    """The end of a help text. Older Typer needs two blank lines where a paragraph ends."""
    return "\n\n\n\n".join(["Examples:", *(f"`{command}`" for command in commands)])


class Command:
    """What Typer calls for one verb. Typer reads the flags from `__signature__`; `run` gets the values.

    Args:
        verb: its name.
        flags: names in `FLAGS`; with "set" among them, the verb takes words as well (CONFIG and key=value).
            A verb with words of its own needs no "set" for them.
        run: does the work.
        words: what `--help` says of the words, and how it writes them.
    """

    def __init__(
        self,
        verb: str,
        flags: tuple[str, ...],
        run: Callable[[Mapping[str, FlagValue]], None],
        words: tuple[str, str] = (WORDS, WORDS_METAVAR),
    ) -> None:
        parameters = [_option(name) for name in flags]
        if "set" in flags or words != (WORDS, WORDS_METAVAR):
            parameters.insert(0, _words(*words))
        self.run = run
        self.__name__ = verb.replace("-", "_")
        self.__signature__ = Signature(parameters)
        self.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}

    def __call__(self, **values: FlagValue) -> None:
        self.run(values)


def as_argv(verb: str, values: Mapping[str, FlagValue], *, without: tuple[str, ...] = ()) -> list[str]:
    """The command line that gives a verb these values again, less the flags `without`."""
    argv = [verb]
    for name, value in values.items():
        if name in FLAGS and name not in without:
            argv += _written(spellings(name)[0], value)
    return [*argv, "--", *texts_of(values.get("words"))]


def _written(long: str, value: FlagValue) -> list[str]:
    """One flag with its value as words of a command line; [] when it was not given."""
    if not value:
        return []
    if value is True:
        return [long]
    if isinstance(value, str):
        return [f"{long}={value}"]
    return [f"{long}={text}" for text in value]


def _words(words: str, metavar: str) -> Parameter:
    note = typer.Argument(help=words, metavar=metavar, autocompletion=complete_config, show_default=False)
    return _parameter("words", list[str] | None, note, None)


def _option(name: str) -> Parameter:
    flag, names = FLAGS[name], spellings(name)
    if flag.kind == "switch":
        note = typer.Option(*names, help=flag.help, show_default=False, rich_help_panel=flag.panel)
        return _parameter(name, bool, note, False)
    note = typer.Option(
        *names,
        help=flag.help,
        metavar=flag.metavar or names[0].strip("-").replace("-", "_").upper(),
        rich_help_panel=flag.panel,
        autocompletion=flag.complete,
        show_default=False,
    )
    if flag.kind == "list":
        return _parameter(name, list[str] | None, note, None)
    return _parameter(name, str | None, note, None)


def _parameter(name: str, kind: Any, note: Any, default: bool | None) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, note], default=default)

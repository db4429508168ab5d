"""How `--help` shows options: in panels, the common ones first, and with words of ours for their values.

Typer would write the Python type of a value beside it. A switch has no value, and the words CONFIG, N or
linf|l2|l1 say more than `<str>`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COMMON = "Common"
#: Panel -> long options without their dashes, in the order of the panels. One that stands nowhere is common.
HOMES = {
    COMMON: "model plugin data eps norm attack steps n epochs minutes out smoke dry-run",
    "Model and data": "weights normalize download first skip split",
    "Threat model": "target sweep surrogate cross-check attack-plugin labels-only allow-large-eps",
    "Run": "name resume overwrite seed seeds shard merge fail-under strict",
    "Machine": "device precision search batch batch-size threads nproc max-restarts require-cuda",
    "Output": "no-report json quiet verbose help",
    "Advanced": "set weights-kind override-resume allow-pickle-weights debug",
}
_ORDER = {panel: k for k, panel in enumerate(HOMES)}
_HOME_OF = {word: panel for panel, words in HOMES.items() for word in words.split()}


def arrange(command: Any) -> Any:
    """A command with its options in panels, and all commands below it; returns it.

    Commands and options are those of Click, of which some versions of Typer bring a copy of their own.
    """
    below = getattr(command, "commands", {})
    for other in below.values():
        arrange(other)
    for param in command.params:
        _show(param, in_panels=not below)
    command.params.sort(key=_rank)
    command.get_help_option = _shown(command.get_help_option, in_panels=not below)
    command.collect_usage_pieces = lambda ctx: _usage(command, below)
    return command


def _show(param: Any, in_panels: bool) -> None:
    """Give an option its panel, and an option or argument a word for its value: none for a switch."""
    if param.metavar is None:
        param.metavar = _word(param)
    if param.param_type_name == "argument":
        param.display_type_rich = lambda ctx: ""  # Typer's word for the type, beside the name of the value
    elif in_panels and not getattr(param, "rich_help_panel", None):
        param.rich_help_panel = _HOME_OF.get(_long(param).strip("-"), COMMON)


def _word(param: Any) -> str:
    """What stands for the value of an option or an argument."""
    if getattr(param, "is_flag", False):
        return ""
    kind = getattr(param, "type_descriptor", None) or getattr(param, "type", None)
    if choices := getattr(kind, "choices", None):
        return "|".join(map(str, choices))
    return _long(param).strip("-").replace("-", "_").upper()


def _long(param: Any) -> str:
    """The longest spelling of an option; the name of an argument."""
    return str(max(param.opts, key=len))


def _rank(param: Any) -> int:
    """Where an option stands; arguments come first, in their order."""
    if param.param_type_name == "argument":
        return -1
    return _ORDER.get(getattr(param, "rich_help_panel", None) or COMMON, 0)


def _shown(option: Callable[[Any], Any], in_panels: bool) -> Callable[[Any], Any]:
    """What makes the option --help, with a panel and without a word for its value."""

    def made(ctx: Any) -> Any:
        found = option(ctx)
        if found is not None:
            _show(found, in_panels)
        return found

    return made


def _usage(command: Any, below: Any) -> list[str]:
    """The words after the name of the command: arguments that may be left out stand in brackets."""
    words = ["[OPTIONS]"]
    for param in command.params:
        if param.param_type_name == "argument":
            bare = param.required or param.metavar.startswith("[")
            words.append(param.metavar if bare else f"[{param.metavar}]")
    return words + ["COMMAND [ARGS]..."] * bool(below)

"""`robustcli init`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT, Flag, add_flag
from robustcli.errors import UsageError

POSITION = 15
HELP = "Begin a project: a commented configuration with thresholds, and a CI workflow that trains and gates."
EXAMPLES = (
    "robustcli init",
    "robustcli init mine --data cifar10 --model preact_resnet18 --norm l2 --eps 0.5",
)
WORDS = "Directory of the project; left out: this one. Images in it are found by themselves."
WORDS_METAVAR = "[DIR]"
FLAGS = (
    *("model", "plugin", "data", "eps", "norm"),
    add_flag("gitlab", Flag("Write .gitlab/robustness.yml, too.", kind="switch")),
    *("overwrite", *OUTPUT),
)


def run(call: Call) -> dict[str, Any]:
    """Write the files."""
    words = call.texts("words")
    if len(words) > 1:
        raise UsageError(
            f"one directory, please: got {' and '.join(words[:3])}", hint="settings go into the file"
        )
    loaded = call.replaced(words=None).load()
    from robustcli.jobs.project.init import InitFlags, init

    flags = InitFlags(
        folder=Path(*words).expanduser(),
        data=call.text("data"),
        eps=call.text("eps"),
        plugin=call.plugin(),
        gitlab=call.on("gitlab"),
        overwrite=call.on("overwrite"),
    )
    return init(loaded, call.console, flags)

"""`robustcli demo`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT

POSITION = 70
HELP = (
    "The whole story on embedded data in about a minute: "
    "train with and without attacks, attack both, compare."
)
EXAMPLES = ("robustcli demo", "robustcli demo --smoke --json")
FLAGS = ("device", "seed", "threads", "out", "overwrite", "smoke", "dry_run", *OUTPUT)


def run(call: Call) -> dict[str, Any]:
    """The demo, or its plan."""
    from robustcli.jobs.demo import demo
    from robustcli.jobs.verb_flags import DemoFlags

    given = {name: call.text(name) for name in ("device", "seed", "threads")}
    flags = DemoFlags(
        settings=[f"{name}={value}" for name, value in given.items() if value is not None],
        out=call.text("out"),
        overwrite=call.on("overwrite"),
        smoke=call.on("smoke"),
        dry_run=call.on("dry_run"),
    )
    return demo(call.console, flags)

"""`robustcli demo`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "The whole story on embedded data in about a minute: train with and without attacks, attack both, compare."
EXAMPLES = ("robustcli demo", "robustcli demo --smoke --json")
FLAGS = (
    "device",
    "seed",
    "threads",
    "out",
    "overwrite",
    "smoke",
    "dry_run",
    "json",
    "quiet",
    "verbose",
    "debug",
)


def run(call: Call) -> dict[str, Any]:
    """The demo, or its plan."""
    from robustcli.jobs.demo import demo
    from robustcli.jobs.flags import DemoFlags

    settings = [f"{name}={call[name]}" for name in ("device", "seed", "threads") if call[name] is not None]
    flags = DemoFlags(
        settings=settings,
        out=call["out"],
        overwrite=call["overwrite"],
        smoke=call["smoke"],
        dry_run=call["dry_run"],
    )
    return demo(call.console, flags)

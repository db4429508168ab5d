"""`robustcli demo`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT
from robustcli.errors import UsageError

POSITION = 70
HELP = (
    "The whole story on embedded data in about a minute: "
    "train with and without attacks, attack both, compare."
)
EXAMPLES = ("robustcli demo --smoke --json", "robustcli demo guard")
WORDS = "guard: the story of a deployed model instead, in three minutes; and key=value settings."
WORDS_METAVAR = "[guard] [KEY=VALUE]..."
FLAGS = ("set", "device", "seed", "threads", "out", "overwrite", "smoke", "dry_run", *OUTPUT)


def run(call: Call) -> dict[str, Any]:
    """The demo, or its plan."""
    story = call.source()
    if story not in (None, "guard"):
        raise UsageError(f"there is no demo {story!r}", hint="robustcli demo, or robustcli demo guard")
    from robustcli.jobs.demo import demo
    from robustcli.jobs.guard.demo import demo_guard
    from robustcli.jobs.verb_flags import DemoFlags

    given = {name: call.text(name) for name in ("device", "seed", "threads")}
    settings = [*call.texts("set"), *(word for word in call.texts("words") if word != story)]
    flags = DemoFlags(
        settings=[f"{name}={value}" for name, value in given.items() if value is not None] + settings,
        out=call.text("out"),
        overwrite=call.on("overwrite"),
        smoke=call.on("smoke"),
        dry_run=call.on("dry_run"),
    )
    if story is None:
        return demo(call.console, flags)
    return demo_guard(call.console, flags)

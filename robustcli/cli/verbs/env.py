"""`robustcli env`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT

POSITION = 15
HELP = "What is installed here, to be pasted: versions, machine, and what is missing with the way to get it."
EXAMPLES = ("robustcli env", "robustcli env --json")
FLAGS = OUTPUT


def run(call: Call) -> dict[str, Any]:
    """Describe the environment, without torch."""
    from robustcli.jobs.project.env import env

    return env(call.console)

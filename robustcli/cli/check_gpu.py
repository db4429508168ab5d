"""`robustcli check-gpu`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call

HELP = "What devices are here, what is missing, and how fast they are: a real matrix product and a PGD step on each."
EXAMPLES = ("robustcli check-gpu", "robustcli check-gpu --require-cuda --json")
FLAGS = ("require_cuda", "smoke", "dry_run", "json", "quiet", "verbose", "debug")


def run(call: Call) -> dict[str, Any]:
    """Describe and time the devices; --dry-run only describes."""
    from robustcli.jobs.flags import CheckFlags
    from robustcli.jobs.gpu import check_gpu

    only_describe = call["dry_run"] or call["smoke"]
    return check_gpu(call.console, CheckFlags(require_cuda=call["require_cuda"], measure=not only_describe))

"""`robustcli check-gpu`."""

from __future__ import annotations

from typing import Any

from robustcli.cli.call import Call
from robustcli.cli.flags import OUTPUT

POSITION = 10
HELP = (
    "What devices are here, what is missing, and how fast they are: "
    "a real matrix product and a PGD step on each."
)
EXAMPLES = ("robustcli check-gpu", "robustcli check-gpu --require-cuda --json")
FLAGS = ("require_cuda", "smoke", "dry_run", *OUTPUT)


def run(call: Call) -> dict[str, Any]:
    """Describe and time the devices; --dry-run and --smoke only describe them."""
    from robustcli.jobs.gpu import check_gpu
    from robustcli.jobs.verb_flags import CheckFlags

    only_describe = call.on("dry_run") or call.on("smoke")
    flags = CheckFlags(require_cuda=call.on("require_cuda"), measure=not only_describe)
    return check_gpu(call.console, flags)

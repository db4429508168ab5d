"""What the end of a block says of its run."""

from __future__ import annotations

from typing import Any

from robustcli.errors import Interrupted, exit_code_of
from robustcli.foreign import ended_by_user_code, foreign_fault

_REFUSED = (2, 3, 4)  # exit codes: what was asked for is wrong, so nobody will want to go on with the run


def is_refusal(error: BaseException | None) -> bool:
    """Whether what was asked for is wrong. A data worker that died (E-WORKER) may live longer next time.

    The traceback of a user's code stays where the user finds it.
    """
    if not isinstance(error, Exception) or ended_by_user_code(error):
        return False
    return exit_code_of(error) in _REFUSED and getattr(error, "code", "") != "E-WORKER"


def fields_of(error: BaseException | None) -> dict[str, Any]:
    """The fields of status.json for a block that ended with `error`."""
    if error is None:
        return {"state": "done", "code": 0}
    fault = foreign_fault(error)
    if fault is None and isinstance(error, (Interrupted, KeyboardInterrupt)):
        return {"state": "preempted", "code": getattr(error, "exit_code", 130)}
    return {"state": "failed", "code": exit_code_of(fault or error)}

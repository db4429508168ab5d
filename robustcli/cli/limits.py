"""`ulimit -v` too low for PyTorch: one line and exit 6, where libraries abort or give up while they load."""

from __future__ import annotations

import os
import sys

from robustcli.errors import ResourceError

AMPLE = 8 * 2**30  # bytes of address space with which PyTorch surely loads
_SHARE = 0.85  # of the limit: the rest is for what is loaded later, and for the work


def check_address_space() -> None:
    """Load PyTorch in a child first, where this process has little address space; elsewhere do nothing.

    OpenBLAS exits, and C++ aborts, when an address range is missing: nobody in their process can say why.
    Raises ResourceError E-OOM: the child did not come through.
    """
    limit = _limit()
    if limit is None or limit >= AMPLE or "torch" in sys.modules:
        return
    child = os.fork()
    if not child:
        _probe(int(_SHARE * limit))
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise ResourceError(
            f"{limit / 2**30:.1f} GiB of address space leave no room to load PyTorch and work",
            where="ulimit -v",
            hint="raise the limit, or lift it with `ulimit -v unlimited`",
            code="E-OOM",
        )


def _limit() -> int | None:
    """Bytes of address space that this process may have; None where nothing limits it."""
    if sys.platform == "win32":
        return None
    import resource

    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _probe(limit: int) -> None:
    """Load what verbs load, within `limit` bytes. Never returns; what libraries say on the way is no news."""
    code = 1
    try:
        import resource

        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        from robustcli.jobs import demo
        from robustcli.runtime.seed import environment

        code = not (demo and environment())
    finally:
        os._exit(code)

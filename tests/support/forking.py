"""Forked children that run a function: torch is imported once, a kill costs milliseconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import pytest
import torch

torch.set_num_threads(1)


class Forked:
    """Children that die by `os._exit`, never through pytest; none outlives its test."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def start(self, body: Callable[[], object]) -> int:
        """Run `body` in a child and return its pid.

        The child ends with the int that `body` returned, 0 for None, 99 for an exception.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                result = body()
                code = result if isinstance(result, int) else 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        self.pids.append(pid)
        return pid

    def wait(self, pid: int, seconds: float = 150.0) -> int:
        """Exit code, or minus the signal that killed it. A child that hangs is killed and fails the test."""
        deadline = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.pids.remove(pid)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.pids.remove(pid)
                pytest.fail(f"child {pid} did not end within {seconds} s")
            time.sleep(0.002)

    def run(self, body: Callable[[], object], seconds: float = 150.0) -> int:
        return self.wait(self.start(body), seconds)


@pytest.fixture
def forked() -> Iterator[Forked]:
    children = Forked()
    yield children
    for pid in children.pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def leftovers() -> Callable[..., list[str]]:
    """Names below a directory that only a killed or failed write leaves behind."""
    return lambda root: sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.name.startswith((".tmp-", ".old-"))
    )

"""Evidence stores for tests: images that no other test has, and children that write."""

import os
import random

import pytest

MODEL = "a" * 64


def seen(image=None, *, accepted=None, scores=None, time=None, label=1):
    """One answer; with an image it is an alarm."""
    from robustcli.guard.store import Seen

    accepted = image is None if accepted is None else accepted
    return Seen(accepted, label, 0.75, scores or {"reconstruction": 0.5}, image, time)


def pixels(key, size=600):
    """Bytes that stand for a PNG file: random, and the same for the same key."""
    return random.Random(str(key)).randbytes(size)


@pytest.fixture
def child():
    """Start a function in a forked child; returns (pid, pipe). The pipe's other end is its argument."""
    children = []

    def start(work):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reader)
                work(writer)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        children.append(pid)
        return pid, reader

    def wait(pid):
        children.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    start.wait = wait
    yield start
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)

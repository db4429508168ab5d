from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.errors import Interrupted
from robustcli.runtime.signals import StopFlag, heed
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.snapshot import latest_good


def child(forked: Any, body: Callable[[StopFlag], int]) -> int:
    """Pid of a child inside `with StopFlag()`; returns once its handlers are installed."""
    ready_read, ready_write = os.pipe()

    def run() -> int:
        with StopFlag() as stop:
            os.write(ready_write, b"x")
            return body(stop)

    pid = int(forked.start(run))
    os.read(ready_read, 1)
    os.close(ready_read)
    os.close(ready_write)
    return pid


def until_stopped(stop: StopFlag) -> int:
    """Work in small steps; the exit code of the Interrupted that `check` raises, 1 when it never comes."""
    end = time.monotonic() + 100
    try:
        while time.monotonic() < end:
            time.sleep(0.001)
            stop.check()
    except Interrupted as error:
        return error.exit_code
    return 1


def deaf(stop: StopFlag) -> int:
    """Never looks at the flag, as a long save or a stuck kernel does not."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        sum(range(1000))
    return 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_graceful(forked: Any, signum: int, code: int) -> None:
    pid = child(forked, until_stopped)
    os.kill(pid, signum)
    assert forked.wait(pid, 60) == code


def test_the_second_interrupt_is_immediate_and_sigterm_never_is(forked: Any) -> None:
    pid = child(forked, deaf)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "still at work after SIGTERM, SIGTERM, SIGINT"
    os.kill(pid, signal.SIGINT)
    assert forked.wait(pid, 60) == 130


def test_the_first_request_decides_the_code() -> None:
    with StopFlag() as stop:
        stop.check()
        assert stop.signum is None
        stop.request()
        stop.request(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            stop.check()
    assert (caught.value.exit_code, caught.value.signum, caught.value.code) == (143, 15, "E-PREEMPTED")


def test_handlers_come_back_also_after_an_exception() -> None:
    def mine(signum: int, frame: object) -> None:
        return None

    before = signal.signal(signal.SIGTERM, mine), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(ZeroDivisionError), StopFlag() as outer:
            assert signal.getsignal(signal.SIGTERM) == outer._handle
            with StopFlag():
                assert signal.getsignal(signal.SIGINT) != outer._handle
            assert signal.getsignal(signal.SIGINT) == outer._handle
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


def test_outside_the_main_thread() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    seen: list[object] = []

    def work() -> None:
        with StopFlag() as stop:
            seen.append([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before)
            stop.request()
            seen.append(stop.signum is not None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, True]


def test_a_forked_worker_dies_of_sigterm_and_leaves_sigint_to_its_parent(forked: Any) -> None:
    def body(stop: StopFlag) -> int:
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                time.sleep(100)
                os._exit(1)
            pids.append(pid)
        os.kill(pids[0], signal.SIGTERM)
        os.kill(pids[1], signal.SIGINT)
        os.kill(pids[1], signal.SIGINT)
        time.sleep(0.05)
        alive = os.waitpid(pids[1], os.WNOHANG) == (0, 0)
        os.kill(pids[1], signal.SIGKILL)
        return (
            0
            if os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 143 and alive and stop.signum is None
            else 1
        )

    assert forked.wait(child(forked, body)) == 0


def test_a_signal_during_a_save_finishes_the_save(tmp_path: Path, forked: Any) -> None:
    state = {"model": {"w": torch.zeros(50)}}

    def body(stop: StopFlag) -> int:
        try:
            for step in range(1, 10_000):
                save_checkpoint(root, step, state, {})
                stop.check()
        except Interrupted as error:
            return error.exit_code
        return 1

    r = random.Random(0)
    for index in range(12):
        root = tmp_path / str(index)
        pid = child(forked, body)
        time.sleep(0.03 * r.random())
        os.kill(pid, signal.SIGTERM)
        assert forked.wait(pid, 60) == 143
        got = latest_good(root, lambda text: pytest.fail(text))
        assert got is not None and got.step >= 1
        assert not [p for p in root.iterdir() if p.name.startswith(".")], "a save was cut short"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_terminal_is_put_back_before_an_immediate_exit(forked: Any) -> None:
    import pty
    import termios

    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    ready_read, ready_write = os.pipe()

    def body() -> int:
        os.dup2(slave, 2)
        with StopFlag() as stop:
            changed = termios.tcgetattr(2)
            changed[3] &= ~termios.ECHO
            termios.tcsetattr(2, termios.TCSANOW, changed)
            os.write(ready_write, b"x")
            return deaf(stop)

    pid = forked.start(body)
    os.read(ready_read, 1)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    assert forked.wait(pid, 60) == 130
    assert termios.tcgetattr(slave)[3] == before[3]
    os.set_blocking(master, False)
    assert b"\x1b[?25h" in os.read(master, 1000), "the cursor that a progress bar hid"
    for fd in (master, slave, ready_read, ready_write):
        os.close(fd)


def test_work_that_has_no_flag_heeds_the_innermost_one() -> None:
    heed()
    with StopFlag() as outer:
        with StopFlag() as inner:
            heed()
            inner.request(signal.SIGINT)
            raised: list[int] = []
            thread = threading.Thread(target=lambda: raised.append(_heeded()))
            thread.start()
            thread.join()
            assert raised == [130] == [_heeded()]
        heed()
        outer.request()
        assert _heeded() == 143
    heed()


def _heeded() -> int:
    with pytest.raises(Interrupted) as error:
        heed()
    return error.value.exit_code

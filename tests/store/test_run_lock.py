from __future__ import annotations

import errno
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from robustcli.errors import LockError, ResourceError
from robustcli.store import lock
from robustcli.store.lock import RunLock, boot_id


def contend(directory: Path, forked: Any, starts: int) -> list[int]:
    """`starts` processes at once; a winner holds the lock until all others have answered. Exit codes."""
    go_read, go_write = os.pipe()
    done_read, done_write = os.pipe()

    def body() -> int:
        os.close(go_write)
        os.close(done_write)
        os.read(go_read, 1)
        try:
            with RunLock(directory):
                os.write(tell_write, b"W")
                os.read(done_read, 1)
                return 0
        except LockError as error:
            os.write(tell_write, b"L")
            return error.exit_code

    tell_read, tell_write = os.pipe()
    pids = [forked.start(body) for _ in range(starts)]
    os.close(go_write)
    for _ in range(starts):
        os.read(tell_read, 1)
    os.close(done_write)
    for fd in (go_read, done_read, tell_read, tell_write):
        os.close(fd)
    return sorted(forked.wait(pid) for pid in pids)


def test_twenty_starts_one_winner(tmp_path: Path, forked: Any) -> None:
    assert contend(tmp_path, forked, 20) == [0] + [7] * 19
    assert contend(tmp_path, forked, 3) == [0, 7, 7], "free again"


def hold(directory: Path, forked: Any, also: Any = None) -> int:
    """Pid of a child that holds the lock until it is killed."""
    ready_read, ready_write = os.pipe()

    def body() -> None:
        held = RunLock(directory)
        if also is not None:
            also()
        os.write(ready_write, b"x")
        while held:
            signal.pause()

    pid = int(forked.start(body))
    os.close(ready_write)
    os.read(ready_read, 1)
    os.close(ready_read)
    return pid


def test_the_message_names_the_holder_and_a_killed_holder_frees_it(tmp_path: Path, forked: Any) -> None:
    pid = hold(tmp_path, forked)
    with pytest.raises(LockError) as caught:
        RunLock(tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("E-LOCK", 7)
    assert (
        f"pid {pid} on host {socket.gethostname()} since 2" in caught.value.what
        and str(tmp_path) in caught.value.where
    )
    os.kill(pid, signal.SIGKILL)
    forked.wait(pid)
    with RunLock(tmp_path):
        found = json.loads((tmp_path / ".lock").read_text())
        assert found["pid"] == os.getpid() and found["boot_id"] == boot_id()


def test_an_orphaned_worker_does_not_keep_the_lock(tmp_path: Path, forked: Any) -> None:
    """A forked data worker may outlive its killed parent by seconds."""
    pid_read, pid_write = os.pipe()

    def worker() -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        os.write(pid_write, str(child).encode())

    pid = hold(tmp_path, forked, also=worker)
    orphan = int(os.read(pid_read, 20))
    try:
        os.kill(pid, signal.SIGKILL)
        forked.wait(pid)
        RunLock(tmp_path).close()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_worker_that_ends_does_not_free_the_lock_of_its_parent(tmp_path: Path, forked: Any) -> None:
    with RunLock(tmp_path):
        assert forked.run(lambda: 0) == 0
        with pytest.raises(LockError, match=f"pid {os.getpid()} "):
            RunLock(tmp_path)


def test_closing_twice_and_leftover_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").write_text("x" * 10_000)
    held = RunLock(tmp_path)
    held.close()
    held.close()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    monkeypatch.setattr(lock, "_write_holder", lambda fd: None)
    (tmp_path / ".lock").write_text("\x1b[31mnot json")
    with RunLock(tmp_path), pytest.raises(LockError, match="in use by another process"):
        RunLock(tmp_path)
    (tmp_path / ".lock").write_text('{"pid": 1, "host": "elsewhere\\u001b[2J"}')
    with RunLock(tmp_path), pytest.raises(LockError) as caught:
        RunLock(tmp_path)
    assert "\x1b" not in caught.value.line() and "pid 1 on host elsewhere" in caught.value.line()


def test_places_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", fails)
    with pytest.raises(ResourceError, match="no locks") as caught:
        RunLock(tmp_path)
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    with pytest.raises(ResourceError, match="No such file"):
        RunLock(tmp_path / "none")
    (tmp_path / "victim").write_text("keep")
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(ResourceError):
        RunLock(tmp_path)
    assert (tmp_path / "victim").read_text() == "keep"

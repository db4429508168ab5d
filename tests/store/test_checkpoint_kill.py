"""kill -9 at every named fail point and before every system call of a save: nothing is ever lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fail_points import FAIL_POINTS
from torch import Tensor

from robustcli.store import atomic, checkpoint
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.retention import candidates, sweep
from robustcli.store.snapshot import latest_good, verify_checkpoint

BEFORE_THE_POINTER = FAIL_POINTS[: FAIL_POINTS.index("after-pointer")]


def state(value: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"w": torch.full((5,), float(value))},
        "rng": {"cpu": torch.full((9,), value, dtype=torch.uint8)},
    }


def save(root: Path, step: int, value: int, tags: tuple[str, ...] = ("last", "best")) -> None:
    save_checkpoint(root, step, state(value), {"value": value}, tags=tags)


@pytest.fixture(scope="module")
def two_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    save(root, 1, 1)
    save(root, 2, 2)
    return root


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(point: str, nth: int) -> Callable[[str], None]:
    seen = [0]

    def hook(name: str) -> None:
        seen[0] += name == point
        if seen[0] == nth:
            die()

    return hook


def value_of(root: Path) -> int:
    """The value in the latest good checkpoint, every tensor of it agreeing; a warning fails."""
    got = latest_good(root, lambda text: pytest.fail(text))
    assert got is not None
    value = got.meta["value"]
    assert all(
        torch.equal(got.groups[g][n], t) for g, tensors in state(value).items() for n, t in tensors.items()
    )
    return int(value)


def check_after(root: Path, expected: set[int], leftovers: Callable[..., list[str]]) -> None:
    """What must hold after any kill of `save(root, 3, 3)` or of a second save of step 2."""
    before = value_of(root)
    assert before in expected
    assert len(candidates(root)) >= 2, "N-1 went before N was verified"
    for path in candidates(root):
        verify_checkpoint(path)
    sweep(root)
    assert leftovers(root) == []
    assert value_of(root) == before, "sweeping lost something"


@pytest.mark.parametrize("point", FAIL_POINTS)
def test_named_fail_points(
    tmp_path: Path, two_saves: Path, point: str, forked: Any, leftovers: Callable[..., list[str]]
) -> None:
    killed = 0
    for nth in (1, 2):  # files and pointers come twice
        root = tmp_path / str(nth)
        shutil.copytree(two_saves, root)
        step, value = (2, 7) if point == "after-aside" else (3, 3)

        def body(root: Path = root, nth: int = nth, step: int = step, value: int = value) -> None:
            checkpoint.fail_point = kill_at(point, nth)
            save(root, step, value)

        code = forked.run(body)
        assert code in (-signal.SIGKILL, 0)
        killed += code == -signal.SIGKILL
        check_after(root, {2} if point in BEFORE_THE_POINTER and code else {value}, leftovers)
        save(root, 4, 4)
        assert value_of(root) == 4
    assert killed == (2 if point in ("after-write", "after-fsync", "after-pointer") else 1)


def test_the_very_first_save(tmp_path: Path, forked: Any, leftovers: Callable[..., list[str]]) -> None:
    for point in FAIL_POINTS:
        root = tmp_path / point

        def body(root: Path = root, point: str = point) -> None:
            checkpoint.fail_point = kill_at(point, 1)
            save(root, 1, 1)

        forked.run(body)
        warnings: list[str] = []
        got = latest_good(root, warnings.append)
        done = point == "after-aside" or point not in BEFORE_THE_POINTER or point == "after-replace"
        assert (got is not None) == done, point
        sweep(root)
        assert leftovers(root) == []


CALLS = ("mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir", "ftruncate")


@pytest.mark.parametrize("step", [2, 3])
def test_before_every_system_call_and_after_half_of_every_write(
    tmp_path: Path, two_saves: Path, step: int, forked: Any, leftovers: Callable[..., list[str]]
) -> None:
    """A new step (3) and another content for the saved step (2)."""
    nth, values = 0, []
    while True:
        nth += 1
        root = tmp_path / str(nth)
        shutil.copytree(two_saves, root)

        def body(root: Path = root, nth: int = nth) -> None:
            count = [0]

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    count[0] += 1
                    if count[0] == nth:
                        if real is write:
                            write(args[0], bytes(args[1])[: len(args[1]) // 2])
                        die()
                    return real(*args, **kwargs)

                return call

            write = os.write
            for name in CALLS:
                setattr(atomic.os, name, counted(getattr(os, name)))
            save(root, step, 9)

        code = forked.run(body)
        check_after(root, {2, 9}, leftovers)
        values.append(value_of(root))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert nth > 25, "the harness saw too few system calls"
    assert values == sorted(values) and values[0] == 2 and values[-1] == 9, (
        "the switch from old to new happens once"
    )


def test_random_moments(tmp_path: Path, forked: Any, leftovers: Callable[..., list[str]]) -> None:
    """A job that saves in a loop is killed 10 times; each start goes on from there, never falls behind."""
    generator = torch.Generator().manual_seed(0)
    reached = 0
    for _ in range(10):
        saved_read, saved_write = os.pipe()

        def job(saved: int = saved_write) -> None:
            sweep(tmp_path)
            got = latest_good(tmp_path, lambda text: None)
            start = got.step if got else 0
            for step in range(start + 1, start + 500):
                save(tmp_path, step, step % 200, tags=("last",))
                with contextlib.suppress(BrokenPipeError):
                    os.write(saved, b"s")

        pid = forked.start(job)
        os.close(saved_write)
        os.read(saved_read, 1)  # its first save, however slow the machine is; then at any moment
        time.sleep(0.02 * float(torch.rand((), generator=generator)))
        os.close(saved_read)
        os.kill(pid, signal.SIGKILL)
        assert forked.wait(pid) == -signal.SIGKILL
        got = latest_good(tmp_path, lambda text: None)
        step = got.step if got else 0
        assert step >= reached and (got is None or got.meta["value"] == step % 200)
        reached = step
    assert reached >= 10
    sweep(tmp_path)
    assert leftovers(tmp_path) == []

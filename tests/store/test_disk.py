"""A full disk, a file size limit, a read-only place: exit 6 with numbers and a path; the last good checkpoint
stays.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustcli.errors import ResourceError
from robustcli.store import atomic, checkpoint, disk
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.disk import disk_error, free_bytes, preflight
from robustcli.store.rundir import open_run
from robustcli.store.snapshot import latest_good
from robustcli.store.status import read_status


def state(step: int, numel: int = 10) -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.full((numel,), float(step))}}


def save(root: Path, step: int, numel: int = 10) -> Path:
    return save_checkpoint(root, step, state(step, numel), {})


def last_step(root: Path) -> int:
    got = latest_good(root, lambda text: pytest.fail(text))
    assert got is not None
    return got.step


def test_preflight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight(tmp_path / "not" / "yet", 1)
    assert (free_bytes(tmp_path / "not" / "yet") or 0) > 0
    with pytest.raises(ResourceError) as caught:
        preflight(tmp_path, 10**18)
    error = caught.value
    assert (error.code, error.exit_code) == ("E-DISK", 6)
    assert (
        error.line().startswith("error[E-DISK]: disk full: need 1000000000000.0 MB, have ")
        and f"MB at {tmp_path}" in error.line()
    )
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    preflight(tmp_path, 100)
    with pytest.raises(ResourceError):
        preflight(tmp_path, 101)

    def fails(place: object) -> None:
        raise OSError(errno.ENOSYS, "no statvfs")

    monkeypatch.setattr(disk.shutil, "disk_usage", fails)
    preflight(tmp_path, 10**18)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_dev_full() -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        atomic.write_all(file.fileno(), b"x")
    error = disk_error(caught.value, Path("/dev/full"), 1_500_000)
    assert error.code == "E-DISK" and "need 1.5 MB" in error.what and "/dev/full" in error.what


def test_no_space_deletes_the_half_prunes_and_retries_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftovers: Callable[..., list[str]]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    real, tries = atomic.write_all, [0]

    def full_once(fd: int, data: bytes) -> None:
        tries[0] += 1
        if tries[0] == 1:
            real(fd, data[:10])
            raise OSError(errno.ENOSPC, "full")
        assert not (tmp_path / "step-00000002").exists(), "the retry comes after the pruning"
        assert (tmp_path / "step-00000003").exists()
        real(fd, data)

    monkeypatch.setattr(atomic, "write_all", full_once)
    save(tmp_path, 4)
    assert last_step(tmp_path) == 4
    assert leftovers(tmp_path) == []


def test_no_space_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftovers: Callable[..., list[str]]
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    calls: list[int] = []

    def full(fd: int, data: bytes) -> None:
        calls.append(len(data))
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(ResourceError, match=r"need 0\.0 MB, have [\d.]+ MB at ") as caught:
        save(tmp_path, 4)
    assert caught.value.code == "E-DISK" and str(tmp_path) in caught.value.what
    assert len(calls) == 2, "one retry"
    assert last_step(tmp_path) == 3
    assert leftovers(tmp_path) == []


def test_room_is_not_made_with_the_only_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-00000003" / "model.safetensors").write_bytes(b"damaged")

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(ResourceError):
        save(tmp_path, 4)
    warnings: list[str] = []
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 2 and len(warnings) == 1


@pytest.mark.parametrize("function", ["replace", "mkdir", "fsync"])
@pytest.mark.parametrize("number", [errno.EXDEV, errno.EROFS, errno.EIO])
def test_other_errors_are_loud(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leftovers: Callable[..., list[str]],
    function: str,
    number: int,
) -> None:
    save(tmp_path, 1)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.os, function, fails)
    with pytest.raises(ResourceError, match=os.strerror(number)) as caught:
        save(tmp_path, 2)
    assert (caught.value.code, caught.value.exit_code) == ("E-WRITE", 6)
    monkeypatch.undo()
    assert last_step(tmp_path) == 1
    assert leftovers(tmp_path) == []


def test_file_size_limit(tmp_path: Path, forked: Any, leftovers: Callable[..., list[str]]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def body() -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(tmp_path, 3, numel=100_000)
        except ResourceError as error:
            return (
                0 if error.code == "E-DISK" and "ulimit" in error.hint and "need 0.4 MB" in error.what else 1
            )
        return 2

    assert forked.run(body) == 0
    assert last_step(tmp_path) == 2
    assert (tmp_path / "step-00000001").exists(), "a file size limit is no reason to give up a fallback"
    assert leftovers(tmp_path) == []


MOUNT_REFUSED = 77


def mount_tmpfs(place: Path, kilobytes: int) -> bool:
    """A tmpfs in a mount namespace of this process alone: it is gone when the process is."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, (1 << 18) | (1 << 14)
    if libc.unshare(new_mounts) != 0 and libc.unshare(new_mounts | new_user) != 0:
        return False
    libc.mount(b"none", b"/", None, private, None)
    return bool(libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={kilobytes}k".encode()) == 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/mnt"), reason="needs Linux mount namespaces")
def test_a_really_full_disk(tmp_path: Path, forked: Any, leftovers: Callable[..., list[str]]) -> None:
    place = tmp_path / "small"
    place.mkdir()

    def body() -> int:
        if not mount_tmpfs(place, 64):
            return MOUNT_REFUSED
        run = open_run("train", "x", out=str(place / "run"))
        root = run.checkpoints
        for step in (1, 2, 3):
            save(root, step)
        for check in ("preflight", "write"):
            if check == "write":
                checkpoint.preflight = lambda path, need: None
            with pytest.raises(ResourceError) as caught:
                save(root, 4, numel=40_000)
            assert caught.value.code == "E-DISK" and "need 0.2 MB, have 0.0 MB" in caught.value.what, (
                caught.value.what
            )
            assert leftovers(place) == [] and last_step(root) == 3
        with open(place / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        assert free_bytes(place) == 0
        run.status(state="failed", code=6, step=3)
        assert read_status(run.path)["code"] == 6, "the last word fits even into a full disk"
        (place / "filler").unlink()
        save(root, 5)
        return 0 if last_step(root) == 5 else 1

    code = forked.run(body)
    if code == MOUNT_REFUSED:
        pytest.skip("mounting a tmpfs is not permitted here")
    assert code == 0


def test_a_read_only_directory_as_a_normal_user(forked: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        os.chmod(folder, 0o755)
        save(root, 1)
        os.chmod(root, 0o555)

        def body() -> int:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                save(root, 2)
            except ResourceError as error:
                return 0 if error.code == "E-WRITE" and "Permission denied" in error.what else 1
            return 2

        code = forked.run(body)
        os.chmod(root, 0o700)
        assert code == 0
        assert last_step(root) == 1


def test_file_size_signal_is_an_error_not_a_death() -> None:
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN, (
        "Python ignores SIGXFSZ; the limit then shows as EFBIG"
    )

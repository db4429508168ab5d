from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from fail_points import FAIL_POINTS
from torch import Tensor

from robustcli.errors import CheckpointError, NumericsError
from robustcli.store import atomic, checkpoint
from robustcli.store.checkpoint import save_checkpoint
from robustcli.store.retention import resolve_checkpoint, sweep
from robustcli.store.snapshot import latest_good, load_checkpoint, verify_checkpoint
from robustcli.store.state import compare_state


def state(step: int) -> dict[str, dict[str, Tensor]]:
    weight = torch.full((3, 2), float(step))
    return {
        "model": {"w": weight, "tied": weight, "n": torch.tensor(step)},
        "optimizer": {"0.momentum": torch.full((3, 2), -float(step)).t()},
    }


def save(root: Path, *steps: int, tags: tuple[str, ...] = ("last",)) -> None:
    for step in steps:
        save_checkpoint(root, step, state(step), {"step": step}, tags=tags)


def no_warning(text: str) -> None:
    pytest.fail(f"unexpected warning: {text}")


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_round_trip_and_layout(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    meta = {"config": {"eps": 8 / 255, "name": "é"}, "none": None, "big": 2**80, "list": [1, [2.5, True]]}
    path = save_checkpoint(root, 1200, state(1200), meta, tags=("last", "best"))
    assert path == root / "step-00001200"
    assert names(root) == ["best", "last", "step-00001200"]
    assert names(path) == ["manifest.json", "model.safetensors", "optimizer.safetensors"]
    assert (root / "last").read_text() == "step-00001200\n"
    got = load_checkpoint(path)
    assert (got.step, got.meta, got.path) == (1200, meta, path)
    assert got.groups["model"]["tied"] is got.groups["model"]["w"]
    for group, tensors in state(1200).items():
        assert list(got.groups[group]) and all(
            torch.equal(got.groups[group][name], t) for name, t in tensors.items()
        )
    manifest = json.loads((path / "manifest.json").read_text())
    proof = manifest["files"]["model.safetensors"]
    assert proof["sha256"] == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert proof["size"] == (path / "model.safetensors").stat().st_size
    assert manifest["schema_version"] == 1 and manifest["sha256"] == got.sha256


def test_prune_keeps_two_and_the_tagged(tmp_path: Path) -> None:
    save(tmp_path, 1, tags=("last", "best"))
    save(tmp_path, 2, 3, 4)
    assert names(tmp_path) == ["best", "last", "step-00000001", "step-00000003", "step-00000004"]
    assert resolve_checkpoint(tmp_path, "best").name == "step-00000001"
    with pytest.raises(ValueError, match="keep=1"):
        save_checkpoint(tmp_path, 5, state(5), {}, keep=1)


def test_prune_never_touches_a_later_step_or_anything_with_an_unreadable_pointer(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 9)
    save(tmp_path, 3, 4)  # went on from an older checkpoint
    assert names(tmp_path) == ["last", "step-00000003", "step-00000004", "step-00000009"]
    (tmp_path / "best").write_text("???")
    save(tmp_path, 5, 6)
    assert {"step-00000003", "step-00000004", "step-00000005", "step-00000006"} <= set(names(tmp_path))


def test_the_same_step_again(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    inode = (tmp_path / "step-00000002").stat().st_ino
    save(tmp_path, 2, tags=("best",))
    assert (tmp_path / "step-00000002").stat().st_ino == inode, "the same content is not written twice"
    save_checkpoint(tmp_path, 2, state(7), {"other": 1})
    got = latest_good(tmp_path, no_warning)
    assert got is not None and got.meta == {"other": 1} and got.groups["model"]["n"] == 7
    assert names(tmp_path) == ["best", "last", "step-00000001", "step-00000002"]


def test_a_damaged_directory_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"")
    save(tmp_path, 2)
    got = latest_good(tmp_path, no_warning)
    assert got is not None and got.step == 2


def test_latest_good_falls_back_once_and_explicit_does_not(tmp_path: Path) -> None:
    assert latest_good(tmp_path / "nothing", no_warning) is None
    save(tmp_path, 1, 2, 3)
    file = tmp_path / "step-00000003" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    warnings: list[str] = []
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 2
    assert (
        len(warnings) == 1
        and "step-00000002" in warnings[0]
        and str(file) in warnings[0]
        and "expected sha256" in warnings[0]
    )
    with pytest.raises(
        CheckpointError, match=r"expected sha256 [0-9a-f]{64}, got [0-9a-f]{64}; .*model\.safetensors"
    ) as caught:
        load_checkpoint(resolve_checkpoint(tmp_path, "last"))
    assert (caught.value.code, caught.value.exit_code) == ("E-CKPT-HASH", 4)
    with pytest.raises(CheckpointError):
        verify_checkpoint(tmp_path / "step-00000003")
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        latest_good(tmp_path, warnings.append)


def test_older_ones_come_before_later_ones(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 9)
    save(tmp_path, 3, 4)
    (tmp_path / "step-00000004" / "manifest.json").unlink()
    warnings: list[str] = []
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 3
    (tmp_path / "step-00000003" / "manifest.json").write_text("{}")
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 9, "something proven is better than nothing"
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step-1",
        "../step-00000001",
        "step-00000001/..",
        "/etc",
        "step-00000002\nstep-00000001\n",
        "step-00000001\0",
        "\xff\xfe",
        "x" * 100,
    ],
)
def test_pointers_hold_only_names(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "last").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(tmp_path, "last")
    assert caught.value.code == "E-CKPT-FORMAT"
    warnings: list[str] = []
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 2 and len(warnings) == 1


def test_pointers_to_nothing_and_odd_pointers(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "last").write_text("step-00000007")
    warnings: list[str] = []
    got = latest_good(tmp_path, warnings.append)
    assert got is not None and got.step == 2 and "step-00000007" in warnings[0]
    for odd in ("symlink", "fifo", "directory", "none"):
        (tmp_path / "last").unlink()
        if odd == "symlink":
            (tmp_path / "last").symlink_to("best")
        elif odd == "fifo":
            os.mkfifo(tmp_path / "last")
        elif odd == "directory":
            (tmp_path / "last").mkdir()
        with pytest.raises(CheckpointError):
            resolve_checkpoint(tmp_path, "last")
        found = latest_good(tmp_path, warnings.append)
        assert found is not None and found.step == 2
        if odd == "directory":
            (tmp_path / "last").rmdir()
            (tmp_path / "last").write_text("x")
    with pytest.raises(CheckpointError, match="no 'best' checkpoint") as caught:
        resolve_checkpoint(tmp_path, "best")
    assert caught.value.code == "E-CKPT-MISSING"


def test_a_checkpoint_may_be_copied_under_another_name_but_not_under_another_step(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    os.rename(tmp_path / "step-00000002", tmp_path / "mine")
    assert load_checkpoint(tmp_path / "mine").step == 2
    os.rename(tmp_path / "mine", tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match="manifest is of step 2"):
        load_checkpoint(tmp_path / "step-00000003")


def test_linked_directories_are_no_candidates(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 2)
    (tmp_path / "b" / "step-00000009").symlink_to(tmp_path / "a" / "step-00000001")
    (tmp_path / "b" / "last").unlink()
    got = latest_good(tmp_path / "b", lambda text: None)
    assert got is not None and got.step == 2


def test_bad_arguments_write_nothing(tmp_path: Path) -> None:
    root = tmp_path / "c"
    with pytest.raises(NumericsError, match=r"meta\.loss is not a finite number"):
        save_checkpoint(root, 1, state(1), {"loss": float("nan")})
    for bad in ({"../x": {}}, {"": {}}, {"A": {}}):
        with pytest.raises(ValueError, match="identifier"):
            save_checkpoint(root, 1, bad, {})
    with pytest.raises(ValueError, match="tag"):
        save_checkpoint(root, 1, state(1), {}, tags=("../x",))
    for step in (-1, 10**18):
        with pytest.raises(ValueError, match="step"):
            save_checkpoint(root, step, state(1), {})
    with pytest.raises(TypeError):
        save_checkpoint(root, 1, state(1), {"path": object()})
    assert not root.exists()


def test_sweep_removes_only_rubbish(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / ".tmp-step-00000003-1-0123abcd").mkdir()
    (tmp_path / ".tmp-step-00000003-1-0123abcd" / "model.safetensors").write_bytes(b"x")
    (tmp_path / ".tmp-2-0123abcd").write_bytes(b"x")
    (tmp_path / ".tmp-3-0123abcd").symlink_to(tmp_path / "step-00000001")
    (tmp_path / "notes.txt").write_text("mine")
    assert len(sweep(tmp_path)) == 3
    assert names(tmp_path) == ["last", "notes.txt", "step-00000001", "step-00000002"]
    assert verify_checkpoint(tmp_path / "step-00000001").step == 1, "a link is removed, not what it points to"
    assert sweep(tmp_path / "nothing") == []


def test_every_file_is_synced_before_the_rename_and_the_directory_before_the_pointer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, replace = os.fsync, os.replace
    name = lambda fd: os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).split("-")[0]  # noqa: E731
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (log.append("sync " + name(fd)), fsync(fd))[1])
    monkeypatch.setattr(
        checkpoint.os, "replace", lambda a, b: (log.append("replace " + Path(b).name), replace(a, b))[1]
    )
    save(tmp_path / "root", 5)
    monkeypatch.undo()
    assert log == [
        "sync model.safetensors", "sync optimizer.safetensors", "sync manifest.json", "sync .tmp",
        "replace step-00000005", "sync root", "sync .tmp", "replace last", "sync root",
    ]  # fmt: skip


def test_a_disk_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = atomic.write_all

    def flip(fd: int, data: bytes) -> None:
        real(fd, data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 150 else data)

    monkeypatch.setattr(atomic, "write_all", flip)
    for step in (1, 2):
        with pytest.raises(Exception, match="reads back differently") as caught:
            save_checkpoint(tmp_path, step, state(8), {})
        assert (caught.value.code, caught.value.exit_code) == ("E-VERIFY", 6)  # type: ignore[attr-defined]
    monkeypatch.undo()
    got = latest_good(tmp_path, no_warning)
    assert got is not None and got.groups["model"]["n"] == 1
    assert names(tmp_path) == ["last", "step-00000001"]


def test_an_interrupt_during_a_save_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    for point in FAIL_POINTS[:5]:

        def stop(name: str, point: str = point) -> None:
            if name == point:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "fail_point", stop)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 1, state(3), {})
        assert names(tmp_path) == ["last", "step-00000001"], point
        assert load_checkpoint(tmp_path / "step-00000001").groups["model"]["n"] == 1


def test_compare_state_lists_the_first_five() -> None:
    expected = {f"m{i}": torch.zeros(1) for i in range(7)} | {
        "w": torch.zeros(2, 3),
        "h": torch.zeros(1),
        "same": torch.zeros(2),
    }
    got = {
        "x": torch.zeros(1),
        "w": torch.zeros(3, 2),
        "h": torch.zeros(1, dtype=torch.half),
        "same": torch.zeros(2),
    }
    with pytest.raises(CheckpointError) as caught:
        compare_state(expected, got, where="a.safetensors")
    text = str(caught.value)
    assert (caught.value.code, caught.value.exit_code) == ("E-CKPT-SHAPE", 4)
    assert "missing: m0, m1, m2, m3, m4 (+2 more)" in text and "unexpected: x" in text
    assert (
        "w expected 2x3 got 3x2" in text
        and "h expected float32 got float16" in text
        and "same" not in text.replace("settings it was saved", "")
    )
    shuffled = {name: expected[name] for name in reversed(expected)}
    compare_state(expected, shuffled, where="f")
    compare_state(
        {"h": torch.zeros(1)}, {"h": torch.zeros(1, dtype=torch.bfloat16)}, where="f", strict_dtype=False
    )
    with pytest.raises(CheckpointError, match="int64"):
        compare_state(
            {"h": torch.zeros(1)}, {"h": torch.zeros(1, dtype=torch.int64)}, where="f", strict_dtype=False
        )
    with pytest.raises(CheckpointError, match="scalar"):
        compare_state({"h": torch.zeros(())}, {"h": torch.zeros(1)}, where="f")

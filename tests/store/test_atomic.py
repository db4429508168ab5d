from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from robustcli.errors import NumericsError, ResourceError
from robustcli.store import atomic
from robustcli.store.atomic import JsonLines, write_atomic, write_json


def test_content_mode_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old" * 1000)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "a").symlink_to("victim")
    write_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "victim").read_text() == "keep"
    assert not (tmp_path / "a").is_symlink()


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(atomic.os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    write_atomic(tmp_path / "a", bytes(range(256)))
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "E-DISK"), (errno.EFBIG, "E-DISK"), (errno.EDQUOT, "E-DISK"), (errno.EIO, "E-WRITE")],
)
def test_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def half(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "write_all", half)
    with pytest.raises(ResourceError) as caught:
        write_atomic(path, b"n" * 5_000_000)
    assert (caught.value.code, caught.value.exit_code) == (code, 6)
    assert str(tmp_path) in str(caught.value)
    assert code == "E-WRITE" or "need 5.0 MB, have " in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_another_file_system_is_a_loud_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exdev(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(atomic.os, "replace", exdev)
    with pytest.raises(ResourceError, match="cross-device") as caught:
        write_atomic(tmp_path / "a", b"x")
    assert (caught.value.code, caught.value.exit_code) == ("E-WRITE", 6)
    assert list(tmp_path.iterdir()) == []


def test_missing_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        write_atomic(tmp_path / "no" / "a", b"x")


def test_order_write_fsync_replace_fsync_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fsync, replace, write = os.fsync, os.replace, os.write
    kind = lambda fd: "dir" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"  # noqa: E731
    monkeypatch.setattr(atomic.os, "write", lambda fd, data: (log.append("write"), write(fd, data))[1])
    monkeypatch.setattr(atomic.os, "fsync", lambda fd: (log.append("fsync " + kind(fd)), fsync(fd))[1])
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (log.append("replace"), replace(a, b))[1])
    write_atomic(tmp_path / "a", b"x")
    monkeypatch.undo()
    assert log == ["write", "fsync file", "replace", "fsync dir"]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(NumericsError, match=r"loss\.1\.x is not a finite number") as caught:
        write_json(tmp_path / "a.json", {"loss": [0.0, {"x": float("nan")}]})
    assert caught.value.exit_code == 5
    assert json.loads((tmp_path / "a.json").read_text())["b"] == [1, 2.5]


def test_json_lines_append_offset_truncate(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with JsonLines(path) as lines:
        offsets = []
        for step in range(5):
            lines.write({"step": step})
            offsets.append(lines.offset)
        lines.sync()
        assert lines.offset == path.stat().st_size
        assert lines.truncate(offsets[2]) == offsets[2]
        lines.write({"step": "again"})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, "again"]
    with JsonLines(path) as lines:
        lines.write({"step": "later"})
    assert path.read_text().endswith('"again"}\n{"step": "later"}\n')


def test_json_lines_drop_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    with JsonLines(path) as lines:
        assert lines.offset == 9
        assert lines.truncate(10_000) == 9, "an offset beyond the end invents nothing"
        assert lines.truncate(5) == 0, "an offset inside a line drops that line"
    path.write_bytes(b"x" * 200_000)
    with JsonLines(path) as lines:
        assert lines.offset == 0
    path.write_bytes(b"{}\n" + b"x" * 200_000)
    with JsonLines(path) as lines:
        assert lines.offset == 3


def test_json_lines_failed_write_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"

    def half(fd: int, data: bytes) -> None:
        os.write(fd, data[:4])
        raise OSError(errno.ENOSPC, "full")

    with JsonLines(path) as lines:
        lines.write({"a": 1})
        monkeypatch.setattr(atomic, "write_all", half)
        with pytest.raises(ResourceError):
            lines.write({"a": 2})
        monkeypatch.undo()
        with pytest.raises(NumericsError):
            lines.write({"a": float("inf")})
        lines.write({"a": 3})
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 3]


def test_json_lines_follow_no_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "m.jsonl").symlink_to("victim")
    with pytest.raises(ResourceError):
        JsonLines(tmp_path / "m.jsonl")
    assert (tmp_path / "victim").read_text() == "keep"

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from robustcli.errors import CheckpointError, Interrupted, LockError, NumericsError, ResourceError, UsageError
from robustcli.runtime import rundir
from robustcli.runtime.rundir import Run, open_run, read_status, resolve_run


def start(base: Path, name: str = "x", **options: Any) -> Run:
    return open_run("train", name, base=base, **options)


def test_numbers_latest_and_modes(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "runs"
    old = os.umask(0o022)
    try:
        paths = []
        for name in ("x", "x", "y", "x-1", "x"):
            with start(base, name) as run:
                paths.append(run.path.name)
                assert os.readlink(base / "train" / "latest") == run.path.name
                run.write_text("a.txt", "é\n")
                run.write_json("a.json", {"b": 1})
                run.log("hello")
    finally:
        os.umask(old)
    assert paths == ["x-1", "x-2", "y-1", "x-1-1", "x-3"]
    made = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert {stat.S_IMODE(p.lstat().st_mode) for p in made if p.is_dir() and not p.is_symlink()} == {0o700}
    assert {stat.S_IMODE(p.lstat().st_mode) for p in made if p.is_file() and not p.is_symlink()} == {0o600}
    assert (base / "train" / "x-1" / "a.txt").read_text("utf-8") == "é\n"
    assert run.checkpoints == run.path / "checkpoints"


def test_gaps_and_foreign_entries_do_not_confuse_the_count(tmp_path: Path) -> None:
    (tmp_path / "train" / "x-7").mkdir(parents=True)
    for odd in ("x-", "x-8a", "x-012", "x-09999999999", "X-50"):
        (tmp_path / "train" / odd).mkdir()
    (tmp_path / "train" / "x-8").write_text("a file")
    with start(tmp_path, "y", resume=True) as run:
        assert run.path.name == "y-1"
    with start(tmp_path) as run:
        assert run.path.name == "x-9"
    with start(tmp_path, resume=True) as run:
        assert run.path.name == "x-9"
    (tmp_path / "train" / "x-999999999").mkdir()
    for expected in ("x-1000000000", "x-1000000001"):
        with start(tmp_path) as run:
            assert run.path.name == expected


def test_twenty_concurrent_starts_get_twenty_directories(tmp_path: Path, forked: Any) -> None:
    def body() -> int:
        with start(tmp_path) as run:
            return int(run.path.name.removeprefix("x-"))

    pids = [forked.start(body) for _ in range(20)]
    assert sorted(forked.wait(pid) for pid in pids) == list(range(1, 21))
    assert read_status((tmp_path / "train" / "latest").resolve())["state"] == "done"


def test_twenty_concurrent_starts_in_one_directory(tmp_path: Path, forked: Any) -> None:
    go_read, go_write = os.pipe()

    def body() -> int:
        os.close(go_write)
        try:
            with open_run("train", "x", out=str(tmp_path / "out")):
                os.read(go_read, 1)  # until the test closes its end
                return 0
        except (LockError, UsageError) as error:
            return error.exit_code

    pids = [forked.start(body) for _ in range(20)]
    losers = []
    while len(losers) < 19:
        pid, status = os.wait()
        forked.pids.remove(pid)
        losers.append(os.waitstatus_to_exitcode(status))
    os.close(go_write)
    os.close(go_read)
    assert losers == [7] * 19
    assert [forked.wait(pid) for pid in pids if pid in forked.pids] == [0]


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "a b", "x" * 65, "é", "a\n", "../x"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        start(tmp_path, name)
    assert caught.value.exit_code == 2 and "\n" not in caught.value.line()
    assert list(tmp_path.iterdir()) == []


def test_out_is_exact_and_refuses_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run("train", "x", out="a/b") as run:
        run.write_text("mine.txt", "1")
    assert run.path.resolve() == tmp_path / "a" / "b" and not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="--resume goes on, --overwrite starts anew"):
        open_run("train", "x", out="a/b")
    with open_run("train", "x", out="a/b", resume=True) as run:
        assert run.resumed and (run.path / "mine.txt").exists()
    with open_run("train", "x", out="a/b", overwrite=True) as run:
        assert not run.resumed and sorted(p.name for p in run.path.iterdir()) == [".lock", "status.json"]
    with pytest.raises(UsageError, match="exclude each other"):
        open_run("train", "x", out="a/b", resume=True, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        open_run("train", "x", out="file")


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_directory_that_is_not_ours_is_never_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="not a run of robustcli"):
        open_run("train", "x", out=str(tmp_path), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_removes_links_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "keep").write_text("x")
    with open_run("train", "x", out=str(tmp_path / "out")) as run:
        (run.path / "link").symlink_to(tmp_path / "data")
    with open_run("train", "x", out=str(tmp_path / "out"), overwrite=True) as run:
        assert not (run.path / "link").is_symlink()
    assert (tmp_path / "data" / "keep").exists()


def test_overwrite_of_a_running_run_is_refused_and_harmless(tmp_path: Path) -> None:
    with open_run("train", "x", out=str(tmp_path / "out")) as run:
        run.write_text("a", "1")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(LockError, match=f"pid {os.getpid()} "):
                open_run("train", "x", out=str(tmp_path / "out"), **options)
        assert (run.path / "a").exists()


def test_resume_takes_the_largest_number_or_starts(tmp_path: Path) -> None:
    with start(tmp_path, resume=True) as run:
        assert (run.path.name, run.resumed) == ("x-1", False)
    for _ in range(2, 12):
        start(tmp_path).close()
    with start(tmp_path, resume=True) as run:
        assert (run.path.name, run.resumed) == ("x-11", True)
        with pytest.raises(LockError):
            start(tmp_path, resume=True)
        with start(tmp_path) as other:
            assert other.path.name == "x-12"


def test_status_is_kept_across_a_kill(tmp_path: Path, forked: Any) -> None:
    def body() -> None:
        run = start(tmp_path)
        run.status(step=7, last_checkpoint="checkpoints/step-00000007")
        (run.path / ".tmp-123-abc").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked.run(body) == -signal.SIGKILL
    path = tmp_path / "train" / "x-1"
    expected = {"schema_version": 1, "state": "running", "code": None, "step": 7, "last_checkpoint": "checkpoints/step-00000007", "resumable": True}
    assert read_status(path) == expected
    with start(tmp_path, resume=True) as run:
        assert read_status(path) == expected, "known before the first new step"
        assert not (path / ".tmp-123-abc").exists()
        run.status(state="done", code=0, step=9, resumable=False)
    assert read_status(path) == {**expected, "state": "done", "code": 0, "step": 9, "resumable": False}
    with pytest.raises(ValueError, match="state"):
        run.status(state="finished")


ENDINGS: list[tuple[BaseException | None, str, int]] = [
    (None, "done", 0),
    (CheckpointError("x"), "failed", 4),
    (Interrupted("x", signum=15), "preempted", 143),
    (Interrupted("x", signum=2), "preempted", 130),
    (KeyboardInterrupt(), "preempted", 130),
    (ZeroDivisionError(), "failed", 70),
    (SystemExit(3), "failed", 3),
    (SystemExit(None), "done", 0),
]


@pytest.mark.parametrize(("error", "state", "code"), ENDINGS)
def test_how_a_block_ended(tmp_path: Path, error: BaseException | None, state: str, code: int) -> None:
    try:
        with start(tmp_path) as run:
            assert read_status(run.path)["state"] == "running"
            if error is not None:
                raise error
    except BaseException as caught:
        assert caught is error
    assert (read_status(run.path)["state"], read_status(run.path)["code"]) == (state, code)
    with open_run("train", "x", out=str(run.path), resume=True):
        assert read_status(run.path)["state"] == "running"


def test_the_first_failure_is_the_one_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise ResourceError("full", code="E-WRITE")

    run = start(tmp_path)
    monkeypatch.setattr("robustcli.runtime.run.write_json", full)
    with pytest.raises(CheckpointError, match="first"), run:
        raise CheckpointError("first")
    monkeypatch.undo()
    with pytest.raises(ResourceError, match="full"), start(tmp_path):
        monkeypatch.setattr("robustcli.runtime.run.write_json", full)  # a failure to write the last word of a good run is not hidden
    monkeypatch.undo()
    open_run("train", "x", out=str(run.path), resume=True).close()  # the lock was given back in spite of the failure


def test_log_is_appended_dated_and_harmless(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        run.log("one\ntwo \x1b[31mred\x1b[0m")
        run.log("surrogate \udcff")
    lines = (run.path / "log.txt").read_text("utf-8").splitlines()
    assert [line[20:] for line in lines] == ["one", "two \\x1b[31mred\\x1b[0m", "surrogate \\udcff"]
    assert lines[0][:2] == "20"


def test_json_is_strict_and_links_are_not_followed(tmp_path: Path) -> None:
    with start(tmp_path) as run:
        with pytest.raises(NumericsError):
            run.write_json("a.json", {"loss": float("inf")})
        (tmp_path / "victim").write_text("keep")
        (run.path / "log.txt").symlink_to(tmp_path / "victim")
        with pytest.raises(ResourceError):
            run.log("x")
    assert (tmp_path / "victim").read_text() == "keep"


def test_latest_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(rundir.os, "symlink", refuse)
    with start(tmp_path) as run:
        latest = tmp_path / "train" / "latest"
        assert latest.read_text() == "x-1\n" and not latest.is_symlink()
        assert resolve_run(latest) == run.path
    monkeypatch.undo()
    with start(tmp_path) as run:
        assert latest.is_symlink() and resolve_run(latest).resolve() == run.path.resolve()
    latest.unlink()
    latest.write_text("../../etc")
    assert resolve_run(latest) == latest
    latest.unlink()
    (latest / "inside").mkdir(parents=True)
    with start(tmp_path) as run:
        assert "could not update" in (run.path / "log.txt").read_text(), "a convenience fails no run"


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ResourceError) as caught:
        start(tmp_path / "runs")
    assert caught.value.exit_code == 6


def test_unreadable_status(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "status.json").write_text(text, encoding="latin-1")
        assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text(json.dumps({"state": "done"}))
    assert read_status(tmp_path) == {"state": "done"}

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.geometry import Ball
from robustcli.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    LockError,
    NumericsError,
    PeerError,
    ResourceError,
    UsageError,
    exit_code_of,
)
from robustcli.store import latest as latest_module
from robustcli.store import leftovers, lock
from robustcli.store.inventory import holds_no_result
from robustcli.store.latest import resolve_run
from robustcli.store.lock import RunLock
from robustcli.store.run import Run
from robustcli.store.rundir import open_run
from robustcli.store.status import first_status, read_status


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(base: Path, name: str = "x", **options: Any) -> Run:
    return open_run("train", name, base=base, **options)


def test_numbers_latest_and_modes(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "runs"
    old = os.umask(0o002)  # a group that works together
    try:
        paths = []
        for name in ("x", "x", "y", "x-1", "x"):
            with start(base, name) as run:
                paths.append(run.path.name)
                run.status(last_checkpoint="checkpoints/step-00000001")
                assert os.readlink(base / "train" / "latest") == run.path.name
                run.write_text("a.txt", "é\n")
                run.write_json("a.json", {"b": 1})
                run.log("hello")
    finally:
        os.umask(old)
    assert paths == ["x-1", "x-2", "y-1", "x-1-1", "x-3"]
    made = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert {stat.S_IMODE(p.lstat().st_mode) for p in made if p.is_dir() and not p.is_symlink()} == {0o775}
    assert {stat.S_IMODE(p.lstat().st_mode) for p in made if p.is_file() and not p.is_symlink()} == {0o664}
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
        run.write_text("summary.md", "1")
    assert run.path.resolve() == tmp_path / "a" / "b" and not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match="--resume goes on, --overwrite starts anew"):
        open_run("train", "x", out="a/b")
    with open_run("train", "x", out="a/b", resume=True) as run:
        assert run.resumed and (run.path / "summary.md").exists()
    with open_run("train", "x", out="a/b", overwrite=True) as run:
        assert not run.resumed and names(run.path) == [".lock", ".replaced", "run.json", "status.json"]
    assert names(run.path) == [".lock", "run.json", "status.json"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        open_run("train", "x", out="file")


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_directory_that_is_not_ours_is_never_touched(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match="not a run of robustcli"):
        open_run("train", "x", out=str(tmp_path), **options)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_removes_links_of_runs_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "last").write_text("x")
    with open_run("train", "x", out=str(tmp_path / "out")) as run:
        for name in ("checkpoints", "link"):  # the first is the run's: its checkpoints lie on another disk
            (run.path / name).symlink_to(tmp_path / "data")
    with open_run("train", "x", out=str(tmp_path / "out"), overwrite=True) as run:
        assert not (run.path / "checkpoints").is_symlink() and (run.path / "link").is_symlink()
    assert (tmp_path / "data" / "last").exists() and names(tmp_path / "data") == ["last"]


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
        (run.path / ".tmp-123-0123abcd").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked.run(body) == -signal.SIGKILL
    path = tmp_path / "train" / "x-1"
    expected = {
        "schema_version": 1,
        "state": "running",
        "code": None,
        "step": 7,
        "last_checkpoint": "checkpoints/step-00000007",
        "resumable": True,
    }
    assert read_status(path) == expected
    with start(tmp_path, resume=True) as run:
        assert read_status(path) == expected, "known before the first new step"
        assert not (path / ".tmp-123-0123abcd").exists()
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
    (MemoryError(), "failed", 6),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "failed", 6),
    (SystemExit(3), "failed", 2),
    (SystemExit(None), "failed", 2),
]


@pytest.mark.parametrize(("error", "state", "code"), ENDINGS)
def test_how_a_block_ended(tmp_path: Path, error: BaseException | None, state: str, code: int) -> None:
    try:
        with start(tmp_path, out=str(tmp_path / "out")) as run:
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
    monkeypatch.setattr("robustcli.store.run.write_json", full)
    with pytest.raises(CheckpointError, match="first"), run:
        raise CheckpointError("first")
    monkeypatch.undo()
    with pytest.raises(ResourceError, match="full"), start(tmp_path):
        monkeypatch.setattr(
            "robustcli.store.run.write_json", full
        )  # a failure to write the last word of a good run is not hidden
    monkeypatch.undo()
    open_run(
        "train", "x", out=str(run.path), resume=True
    ).close()  # the lock was given back in spite of the failure


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

    monkeypatch.setattr(latest_module.os, "symlink", refuse)
    latest = tmp_path / "train" / "latest"
    with start(tmp_path) as run:
        assert not latest.exists() and resolve_run(latest) == latest
        run.status(last_checkpoint="checkpoints/step-00000001")
        assert latest.read_text() == "x-1\n" and not latest.is_symlink()
        assert (
            resolve_run(latest) == run.path
            and resolve_run(latest / "checkpoints") == run.path / "checkpoints"
        )
    monkeypatch.undo()
    with start(tmp_path) as run:
        run.status(last_checkpoint="checkpoints/step-00000001")
        assert latest.is_symlink() and resolve_run(latest).resolve() == run.path.resolve()
    latest.unlink()
    latest.write_text("../../etc")
    assert resolve_run(latest) == latest
    latest.unlink()
    (latest / "inside").mkdir(parents=True)
    with start(tmp_path) as run:
        run.status(last_checkpoint="checkpoints/step-00000001")
        assert "could not update" in (run.path / "log.txt").read_text(), "a convenience fails no run"


def test_latest_names_the_newest_run_with_something_to_show(tmp_path: Path) -> None:
    """Neither a run that has just begun nor one that failed; of two, the one that got there last."""
    latest = tmp_path / "train" / "latest"
    with start(tmp_path, "done"):
        assert not latest.exists()
    assert os.readlink(latest) == "done-1", "a block that ends well is done"
    with start(tmp_path, "old") as old:
        with start(tmp_path, "new") as new:
            assert os.readlink(latest) == "done-1"
            old.status(last_checkpoint="c")
            assert os.readlink(latest) == "old-1"
            new.status(last_checkpoint="c")
            assert os.readlink(latest) == "new-1"
        old.status(last_checkpoint="d")
    assert os.readlink(latest) == "new-1", "each run moves it once"
    with pytest.raises(ZeroDivisionError), start(tmp_path, "crashed"):
        raise ZeroDivisionError
    with open_run("train", "x", out=str(tmp_path / "train" / "exact")):
        pass
    assert os.readlink(latest) == "new-1"
    with open_run("train", "x", out=str(tmp_path / "train" / "again-1"), numbered=True, base=tmp_path):
        pass
    assert os.readlink(latest) == "again-1", "a numbered run that its launcher starts again"
    with start(tmp_path, "old", resume=True) as run:
        assert os.readlink(latest) == "again-1"
        run.status(last_checkpoint="e")
    assert os.readlink(latest) == "old-1"


def test_latest_is_followed_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo" / "digits-3").mkdir(parents=True)
    latest = tmp_path / "runs" / "demo" / "latest"
    latest.symlink_to("digits-3")
    assert resolve_run(Path("runs/demo/latest/natural")) == Path("runs/demo/digits-3/natural")
    assert resolve_run(latest) == tmp_path / "runs" / "demo" / "digits-3"
    latest.unlink()
    latest.write_text("digits-3\n")
    assert resolve_run(Path("runs/demo/latest/natural")) == Path("runs/demo/digits-3/natural")
    latest.unlink()
    latest.symlink_to("gone-1")
    assert resolve_run(Path("runs/demo/latest")) == Path("runs/demo/gone-1"), (
        "the message then names what is missing"
    )
    assert resolve_run(Path("latest")) == Path("latest") and resolve_run(Path("a/b")) == Path("a/b")


REFUSALS = (UsageError("x"), DataError("x"), CheckpointError("x"), "a refused value")
MISHAPS = (
    NumericsError("x"),
    ResourceError("x"),
    PeerError("x"),
    MemoryError(),
    DataError("x", code="E-WORKER"),
)


def refuse(run: Run, error: BaseException | str) -> None:
    run.write_text("config.resolved.yaml", "seed: 0\n")
    run.log("training")
    for folder in ("checkpoints", "shards"):
        (run.path / folder).mkdir(exist_ok=True)
    if run.verb == "eval":
        run.write_json("shards/header.json", {"seed": 0})
    (run.path / "metrics.jsonl").touch()
    if isinstance(error, str):
        Ball("linf", -1)
    else:
        raise error


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_a_refused_run_takes_its_directory_back(tmp_path: Path, error: BaseException | str) -> None:
    start(tmp_path).close()
    with pytest.raises(Exception), start(tmp_path) as run:  # noqa: B017, PT011
        refuse(run, error)
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["x-1"]
    with start(tmp_path) as run:
        assert run.path.name == "x-2"


@pytest.mark.parametrize("error", MISHAPS, ids=lambda error: type(error).__name__)
def test_what_may_work_the_next_time_keeps_its_directory(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), start(tmp_path) as run:
        refuse(run, error)
    status = read_status(run.path)
    assert (status["state"], status["code"]) == ("failed", exit_code_of(error)) and not (
        tmp_path / "train" / "latest"
    ).exists()


def test_a_run_that_is_looked_for_by_name_keeps_its_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError), start(tmp_path) as run:
        run.keep()
        refuse(run, UsageError("x"))
    assert read_status(run.path)["code"] == 2


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "nan_batch.safetensors",
        "checkpoints/step-00000001/manifest.json",
        "shards/0000.jsonl",
        "images/1.png",
        "notes.txt",
        "own/.lock",
    ],
)
def test_a_refused_run_with_a_result_or_anything_unknown_stays(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError), start(tmp_path) as run:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("1\n")
        raise UsageError("x")
    assert (
        (run.path / name).read_text() == "1\n"
        and read_status(run.path)["code"] == 2
        and not (tmp_path / "train" / "latest").exists()
    )


def test_neither_a_link_nor_what_it_points_to_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "log.txt").write_text("keep")
    for link, target in (("images", tmp_path / "images"), ("log.txt", tmp_path / "log.txt")):
        with pytest.raises(UsageError), start(tmp_path) as run:
            (run.path / link).symlink_to(target)
            raise UsageError("x")
        assert (run.path / link).is_symlink() and read_status(run.path)["code"] == 2
    assert (tmp_path / "log.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), Interrupted("x", signum=15), KeyboardInterrupt(), SystemExit(2)], ids=repr
)
def test_a_crash_and_a_stop_leave_their_record(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), start(tmp_path) as run:
        raise error
    assert read_status(run.path)["state"] in ("failed", "preempted") and (
        run.path / "crash.log"
    ).exists() == isinstance(error, (ZeroDivisionError, SystemExit))


def test_a_refused_run_in_a_named_directory_stays_and_is_in_nobodys_way(tmp_path: Path) -> None:
    """--out names where to look for status.json.

    The corrected command needs no --overwrite, and finds nothing of the old one.
    """
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="first"), open_run("eval", "x", out=out) as run:
        refuse(run, UsageError("first"))
    assert (read_status(run.path)["state"], read_status(run.path)["code"]) == ("failed", 2)
    with open_run("eval", "x", out=out) as run:
        assert not run.resumed and names(run.path) == [".lock", "run.json", "status.json"]
        run.write_text("summary.md", "a result")
    with pytest.raises(UsageError, match="--overwrite starts anew"):
        open_run("eval", "x", out=out)
    with pytest.raises(UsageError, match="second"), open_run("eval", "x", out=out, resume=True):
        raise UsageError("second")
    assert (tmp_path / "out" / "summary.md").read_text() == "a result"


@pytest.mark.parametrize("kills", range(10))
def test_a_kill_while_a_directory_is_taken_back(
    tmp_path: Path, forked: Any, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Whatever is left holds no result, blocks no name and moves no pointer."""
    with start(tmp_path) as good:
        good.status(last_checkpoint="c")

    def body() -> None:
        count = [0]

        def dying(original: Any) -> Any:
            def call(*args: Any) -> Any:
                count[0] += 1
                if count[0] > kills:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)

            return call

        with start(tmp_path) as run:
            for name in ("unlink", "rmdir"):
                monkeypatch.setattr(leftovers.os, name, dying(getattr(os, name)))
            refuse(run, UsageError("x"))

    assert (forked.run(body) == -signal.SIGKILL) == (kills < 9), "six files, two folders, the directory"
    assert (
        os.readlink(tmp_path / "train" / "latest") == "x-1"
        and (tmp_path / "train" / "x-1" / "status.json").exists()
    )
    left = tmp_path / "train" / "x-2"
    assert not left.exists() or holds_no_result(left, "train")
    with open_run("train", "x", out=str(left)) as run:
        assert names(run.path) == [".lock", "run.json", "status.json"]


def test_a_lock_that_was_taken_back_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody opens the lock file, its run is refused and takes the directory back: nobody's lock then."""
    run, original = start(tmp_path), lock._lock

    def late(fd: int) -> None:
        with pytest.raises(UsageError), run:
            raise UsageError("x")
        original(fd)

    monkeypatch.setattr(lock, "_lock", late)
    with pytest.raises(LockError):
        RunLock(run.path)
    assert not run.path.exists()


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ResourceError) as caught:
        start(tmp_path / "runs")
    assert caught.value.exit_code == 6


def test_unreadable_status(tmp_path: Path) -> None:
    for text in ("", "{", "[]", "[" * 100_000, "\xff"):
        (tmp_path / "status.json").write_text(text, encoding="latin-1")
        assert read_status(tmp_path) == {}
    whole = first_status({})
    (tmp_path / "status.json").write_text(json.dumps({**whole, "from a newer version": 1}))
    assert read_status(tmp_path) == whole
    for name in whole:
        for wrong in ("x" * 3, -1, 10**30, [], True, 0.5):
            document = {**whole, name: wrong}
            (tmp_path / "status.json").write_text(json.dumps(document))
            assert read_status(tmp_path) in ({}, document)
        (tmp_path / "status.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        assert read_status(tmp_path) == {}
    (tmp_path / "status.json").unlink()
    os.mkfifo(tmp_path / "status.json")
    assert read_status(tmp_path) == {}, "and nobody waits for a writer"

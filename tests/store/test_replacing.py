"""A run that replaces another one: only files of runs move, and the earlier one comes back unless the new one
has something to show, whatever kills it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from robustcli.errors import DataError, GoneError, LockError, NumericsError, ResourceError, UsageError
from robustcli.store import leftovers, replacing
from robustcli.store.atomic import JsonLines
from robustcli.store.identity import identity_of
from robustcli.store.inventory import files_of, holds_nothing_else
from robustcli.store.lock import RunLock
from robustcli.store.rundir import open_run
from robustcli.store.sources import Source

OLD = {
    "summary.md": "old",
    "checkpoints/last": "step-00000001\n",
    "checkpoints/step-00000001/manifest.json": "{}",
    "metrics.jsonl": "{}\n",
}
FOREIGN = {
    "notes.txt": "mine",
    "checkpoints/notes.txt": "mine",
    "tensorboard/run.log": "mine",
    "plots/mine.png": "mine",
    ".tmp-mine": "mine",
    "deep/status.json": "{}",
    "images": "a plain file",
    "bench.json": "of no training",
    "crash.log": "of my simulation",
    "nan_batch.safetensors": "mine",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """Every file but the lock, which names its last holder."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished training with files of its user inside."""
    with open_run("train", "x", out=str(tmp_path / "out")) as run:
        write(run.path, OLD)
        run.log("trained")
    write(run.path, FOREIGN)
    return run.path


def test_only_files_of_runs_are_replaced(out: Path) -> None:
    with open_run("eval", "x", out=str(out), overwrite=True) as run:
        run.write_text("summary.md", "new")
    now = content(out)
    assert {name: now.pop(name) for name in FOREIGN} == FOREIGN
    assert now.pop("summary.md") == "new" and set(now) == {"run.json", "status.json"}
    assert not (out / "checkpoints" / "step-00000001").exists(), "emptied folders go too"
    found = identity_of(out)
    assert found is not None and found.verb == "eval"


def test_a_start_without_a_result_gives_way_and_foreign_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError), open_run("train", "x", out=str(out)):
        raise UsageError("x")
    write(out, FOREIGN)
    with open_run("train", "x", out=str(out)):
        assert {name: text for name, text in content(out).items() if name in FOREIGN} == FOREIGN


BATCH = b"\2" + b"\0" * 7 + b"{}"
ENDS = (DataError("x"), NumericsError("x"), ZeroDivisionError(), KeyboardInterrupt(), ResourceError("x"))


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("begin", [True, False])
def test_the_earlier_run_is_back_when_the_new_one_has_nothing_to_show(
    out: Path, error: BaseException, begin: bool
) -> None:
    before = content(out)
    with pytest.raises(type(error)), open_run("eval", "x", out=str(out), overwrite=True, begin=begin) as run:
        run.log("new")
        if begin:
            (run.path / "shards").mkdir()
            run.write_text("env.json", "{}")
            (run.path / "nan_batch.rank1.safetensors").write_bytes(BATCH)
            write(run.path, {"metrics.jsonl": ""})
        raise error
    after = content(out)
    assert after.pop("nan_batch.rank1.safetensors", "") == BATCH.decode() * begin
    crashed = isinstance(error, ZeroDivisionError)
    assert ("ZeroDivisionError" in after["crash.log"]) == crashed
    assert after == {**before, "crash.log": after["crash.log"]}
    assert not (out / "shards").exists()


@pytest.mark.parametrize("shows", ["checkpoint", "record", "end"])
def test_what_the_new_run_has_to_show(out: Path, shows: str) -> None:
    def work() -> None:
        with open_run("train", "x", out=str(out), overwrite=True) as run:
            assert (out / ".replaced").exists()
            if shows == "checkpoint":
                run.status(last_checkpoint="checkpoints/step-00000001")
                assert not (out / ".replaced").exists()
            if shows == "record":
                write(run.path, {"metrics.jsonl": "{}\n"})
            if shows != "end":
                raise NumericsError("x")

    if shows == "end":
        work()
    else:
        with pytest.raises(NumericsError):
            work()
    assert "trained" not in content(out).get("log.txt", "") and not (out / ".replaced").exists()


@pytest.mark.parametrize("shows", [False, True])
def test_a_kill_at_any_moment_leaves_one_whole_run(
    tmp_path: Path, out: Path, forked: Any, monkeypatch: pytest.MonkeyPatch, shows: bool
) -> None:
    """The next start finds the earlier run as it was, or the new one; at each moment files of nobody else."""
    before, kills, codes, found = content(out), int(shows), [], []
    while not codes or codes[-1]:
        place = tmp_path / str(kills)
        shutil.copytree(out, place)

        def body(place: Path = place, kills: int = kills) -> None:
            left = [kills]

            def dying(original: Any) -> Any:
                def call(*args: Any, **options: Any) -> Any:
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    return original(*args, **options)

                return call

            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                monkeypatch.setattr(replacing.os, name, dying(getattr(os, name)))
            try:
                with open_run("train", "x", out=str(place), overwrite=True) as run:
                    if shows:
                        run.status(last_checkpoint="checkpoints/step-00000001")
                        write(run.path, {"results.csv": "new"})
                    raise UsageError("x")
            except UsageError:
                pass

        codes.append(forked.run(body))
        with open_run("train", "x", out=str(place), resume=True) as run:
            run.status(state="done", code=0)
        after = content(place)
        assert {name: after[name] for name in FOREIGN} == FOREIGN
        new = "results.csv" in after or "summary.md" not in after
        assert new or after == before
        found.append(new)
        kills += 2
    assert kills > 30 and found[0] is False and found[-1] is shows and sorted(found) == found


def test_a_failure_that_was_written_down_goes_with_its_run(out: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run("train", "x", out=str(out), overwrite=True) as run:
        run.status(last_checkpoint="checkpoints/step-00000001")
        (run.path / "nan_batch.safetensors").write_bytes(BATCH)
        raise ZeroDivisionError
    with open_run("train", "x", out=str(out), overwrite=True) as run:
        run.write_text("summary.md", "new")
    assert not {"crash.log", "nan_batch.safetensors"} & content(out).keys()


def test_a_live_run_inside_is_not_moved(tmp_path: Path) -> None:
    """A demo holds runs of its own; one of them may go on by itself."""
    with open_run("demo", "x", out=str(tmp_path / "demo")) as run:
        with open_run("train", "x", out=str(run.path / "robust")) as inner:
            inner.write_text("summary.md", "old")
        run.write_text("summary.md", "old")
    before = content(run.path)
    with RunLock(run.path / "robust"), pytest.raises(LockError):
        open_run("demo", "x", out=str(run.path), overwrite=True)
    assert content(run.path) == before
    with open_run("demo", "x", out=str(run.path), overwrite=True):
        pass
    assert files_of(run.path, "demo") == [".lock", "run.json", "status.json"]
    assert holds_nothing_else(run.path, "demo") and not (run.path / "robust").exists()


def test_a_run_of_before_run_json_is_known_by_its_status_and_lock(out: Path) -> None:
    (out / "run.json").unlink()
    found = identity_of(out)
    assert found is not None and (found.verb, found.id) == ("train", "")
    with pytest.raises(UsageError, match="of `train`, not of `eval`") as caught:
        open_run("eval", "x", out=str(out), resume=True)
    assert caught.value.code == "E-RESUME"
    with open_run("train", "x", out=str(out), resume=True):
        found = identity_of(out)
        assert found is not None and found.id and found.verb == "train"


@pytest.mark.parametrize(
    "files",
    [
        {".lock": ""},
        {".lock": "", "log.txt": "mine", "env.json": "{}", "tensorboard/x": "mine"},
        {".lock": "", "status.json": '{"state": "done"}'},
        {".lock": "x", "run.json": '{"verb": "train"}'},
        {"run.json": '{"format": "robustcli-run", "id": "1", "schema_version": 1, "verb": "train"}'},
        {".lock": '{"pid": 1}', "status.json": "[]"},
    ],
)
def test_a_thesis_never_becomes_ours(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, {**files, "thesis.tex": "years"})
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="not a run of robustcli"):
            open_run("train", "x", out=str(tmp_path), **options)
    assert {**content(tmp_path), ".lock": files.get(".lock", "")} == {
        **files, "thesis.tex": "years", ".lock": files.get(".lock", ""),
    }  # fmt: skip
    if ".lock" in files:
        assert (tmp_path / ".lock").read_text() == files[".lock"]


def test_the_hint_suggests_nothing_that_the_verb_cannot_do(out: Path) -> None:
    said = {}
    for verb in ("train", "eval", "attack"):
        with pytest.raises(UsageError) as caught:
            open_run(verb, "x", out=str(out))
        said[verb] = caught.value.line()
    assert "--resume goes on" in said["train"]
    assert all("--resume" not in said[verb] and "run of `train`" in said[verb] for verb in ("eval", "attack"))


def test_the_output_lies_apart_from_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "mine.txt").touch()
    (tmp_path / "w.npz").touch()
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "loop").symlink_to("loop")
    for out, source, says in (
        ("data", "data", "is"), ("link", "data", "is"), ("data", "link", "is"),
        ("data/a", "link", "lies in"), (".", "w.npz", "holds"),
        ("data/../link/a", "data", "lies in"), ("data", "data/a", "holds"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"--out {says} the data x"):
            open_run("train", "x", out=str(tmp_path / out), sources=[Source("the data x", tmp_path / source)])
    assert not (tmp_path / "data" / "new").exists()
    open_run("train", "x", out=str(tmp_path / "data" / "new"), sources=[Source("x", tmp_path / "data")])
    for apart in ("w.npz", "data", "missing", "loop", "x" * 300):
        open_run(
            "train", "x", out=str(tmp_path / f"run-{apart[:8]}"), sources=[Source("x", tmp_path / apart)]
        )


def test_a_directory_that_goes_away_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(GoneError) as caught, open_run("train", "x", out=str(out)) as run:
        shutil.rmtree(out)
        run.check()
    assert (caught.value.exit_code, caught.value.code) == (6, "E-GONE") and not out.exists()
    for write_something in ("log", "status", "write_text", "write_json"):
        with pytest.raises(GoneError), open_run("train", "x", out=str(out)) as run:
            shutil.rmtree(out)
            out.mkdir()  # somebody else's by now
            arguments = {"log": ("x",), "status": (), "write_text": ("a", "b"), "write_json": ("a", 1)}
            getattr(run, write_something)(*arguments[write_something])
        assert list(out.iterdir()) == []


def test_records_that_go_away_are_written_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as lines:
        lines.write({"a": 1})
        path.unlink()
        with pytest.raises(GoneError, match="rows were written back"):
            lines.write({"a": 2})
        assert path.read_text() == '{"a": 1}\n'
        lines.write({"a": 3})
        os.replace(path, tmp_path / "moved")
        path.write_text("another's")
        with pytest.raises(GoneError, match="another file"):
            lines.write({"a": 4})
    assert path.read_text() == "another's" and (tmp_path / "moved").read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_fifo_is_no_file_of_a_run(tmp_path: Path) -> None:
    for name in ("log.txt", "metrics.jsonl", ".lock"):
        out = tmp_path / name
        out.mkdir()
        os.mkfifo(out / name)
        with pytest.raises((ResourceError, UsageError)):
            if name == ".lock":
                open_run("train", "x", out=str(out))
            elif name == "log.txt":
                with open_run("train", "x", out=str(tmp_path / "run")) as run:
                    os.rename(out / name, run.path / name)
                    run.log("x")
            else:
                JsonLines(out / name)


def test_what_is_removed_is_what_a_run_of_this_verb_writes(tmp_path: Path) -> None:
    assert leftovers.remove_without_result(tmp_path / "none", "train") is False
    write(tmp_path, {"images.jsonl": "", "shards/header.json": "{}"})
    assert files_of(tmp_path, "train") == [] and len(files_of(tmp_path, "")) == 2
    assert files_of(tmp_path, "attack") == ["images.jsonl"] and files_of(tmp_path, "eval") == [
        "shards/header.json"
    ]

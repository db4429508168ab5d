"""What the operating system refuses is one explained line in every verb that takes a path, never exit 70."""

import os

import pytest
from jobs_support import TINY

from robustcli.errors import exit_code_of, system_refusal
from robustcli.jobs.seeds import _name

LONG = "x" * 300
BAD = (LONG, f"{LONG}/a", "loop", "loop/a", "~nosuchuser/a", "file/a", "fifo")
TAKES = (
    ("train", *TINY, "--out"), ("train", "--data", "folder:"), ("train", *TINY, "data.name=npz:"),
    ("train", *TINY, "data.extra=npz:"), ("train", *TINY, "model.weights="), ("train",),
    ("train", *TINY, "--resume", "--out"), ("eval", "--model", "run:"), ("eval", "--resume", "--out"),
    ("eval", "--merge"), ("eval", "--plugin"), ("attack", "--model", "run:"), ("attack", "--weights"),
    ("transfer", "--models", "run:"), ("bench", "--plugin"), ("demo", "--out"), ("config", "show"),
)  # fmt: skip


@pytest.fixture
def place(cli, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.mark.parametrize("takes", TAKES, ids=lambda takes: f"{takes[0]} {takes[-1]}"[:40])
def test_no_path_is_a_bug(place, cli, takes):
    made = "--out" in takes
    for bad in BAD[: 4 if made else None]:  # "~nosuchuser" is a good name for a new folder
        *words, last = takes
        argv = [*words, last, bad]
        if last.endswith((":", "=")):
            argv = [*words, last + bad]
        answer = cli(*argv)
        assert answer.code in (2, 3, 4, 6) and "error[" in answer.err, (argv, answer.code, answer.err)


def test_a_run_of_a_colleague_that_may_not_be_read(place, cli, monkeypatch):
    """Permissions do not stop root, who runs tests in containers: the system's answer is given by hand."""
    real = os.stat

    def denied(path, *args, **options):
        if "theirs" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", denied)
    for argv in (("eval", "--model", "run:theirs"), ("attack", "--model", "run:theirs")):
        answer = cli(*argv)
        assert answer.code in (2, 3, 4, 6) and "ermission" in answer.err, answer.err


def test_what_is_the_systems_and_what_is_a_bug(tmp_path, monkeypatch):
    from pathlib import Path

    raised = []
    for call in (
        lambda: Path("~nosuchuser").expanduser(), lambda: os.stat("a\0b"), lambda: os.stat("\ud800"),
        lambda: os.stat(LONG), lambda: os.listdir(tmp_path / "none"),
    ):  # fmt: skip
        with pytest.raises((OSError, RuntimeError, ValueError)) as caught:
            call()
        raised.append(caught.value)
    assert [exit_code_of(error) for error in raised] == [6] * 5
    assert all(system_refusal(error).code == "E-PATH" for error in raised)
    for bug in (
        OSError(9, "Bad file descriptor"),
        OSError("x"),
        RuntimeError("x"),
        ValueError("x"),
        KeyError("x"),
    ):
        assert system_refusal(bug) is None and exit_code_of(bug) == 70


def test_no_temporary_directory(place, cli, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    answer = cli("train", *TINY, "--nproc", "2", "--out", "run")
    assert answer.code == 6 and "error[" in answer.err


def test_the_run_of_a_seed_has_a_name_of_its_own():
    for length in (1, 56, 57, 58, 63, 64):
        names = {_name("x" * length, seed) for seed in (0, 1, 2**63 - 1)}
        assert len(names) == 3 and all(len(name) <= 64 for name in names)
    assert _name("run", 3) == "run-seed3" and _name("x" * 64, 1) != _name("x" * 63 + "y", 1)

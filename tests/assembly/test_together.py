"""The launcher of a team, with stand-ins: who is done without, who is started again, whose code it gives."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer

from robustcli.assembly import together
from robustcli.assembly.together import check_processes, measure_together
from robustcli.cli.verb import conclude
from robustcli.errors import UsageError
from robustcli.runtime.team import TEAM, UNMET, Team
from robustcli.terminal.console import Console

HEAD = """
import json, os, signal, sys, time
from pathlib import Path
team, _, scratch = os.environ["ROBUSTCLI_TEAM"].partition(":")
rank, again = int(team.partition("/")[0]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def die(signum=signal.SIGKILL):
    os.kill(os.getpid(), signum)
    time.sleep(100)
def fail(code, text=""):
    print(text, file=sys.stderr)
    sys.exit(code)
def await_(name):
    while not Path(name).exists():
        time.sleep(0.005)
def unmet():
    Path(scratch, "unmet-0").touch()
    sys.exit(1)
def answer(**document):
    Path(os.environ["ROBUSTCLI_DOCUMENT_FILE"]).write_text(json.dumps(document))
"""

STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`go(body)`: workers run HEAD and `body` in an empty directory; the exit code.

    A signal that this process ignores would stay ignored.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustcli.assembly.ranks.GRACE", 0.05)
    before = {number: signal.signal(number, signal.default_int_handler) for number in STOPS}

    def start(body: str, *, verb: str = "eval", nproc: int = 2, console: Console | None = None) -> int:
        script = tmp_path / "worker.py"
        script.write_text(HEAD + textwrap.dedent(body))
        command = (sys.executable, "-I", "-S", str(script))
        return measure_together([verb], nproc, "cpu", console or Console(), command=command)

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_killed_rank_is_done_without(go: Callable[..., int], capfd: Any) -> None:
    body = """
    if rank == 1:
        Path(scratch, "inside-1").write_text("3.0")
        Path("written").touch()
        die()
    if rank == 0:
        await_("written")
        while Path(scratch, "inside-1").exists():
            time.sleep(0.005)
    """
    assert go(body, nproc=3) == 0, "what the lost rank had in hand is taken back"
    assert capfd.readouterr().err == "warning: rank 1: killed by SIGKILL; the others measure its samples\n"


@pytest.mark.parametrize("code", [1, 8, 99, 143])
def test_so_is_one_that_ends_without_saying_why(go: Callable[..., int], capfd: Any, code: int) -> None:
    body = f"""
    if rank:
        Path("ended").touch()
        fail({code})
    await_("ended")
    time.sleep(0.3)
    """
    assert go(body) == 0
    assert "warning: rank 1: " in capfd.readouterr().err


def test_rank_0_is_started_again_and_the_others_go_on(go: Callable[..., int], capfd: Any) -> None:
    body = """
    if rank == 0 and not again:
        die()
    if rank == 1:
        await_("again")
        Path("went on").touch()
    else:
        Path("again").touch()
        await_("went on")
    """
    assert go(body) == 0
    told = "warning: rank 0: killed by SIGKILL; it is started again, and what is measured stays\n"
    assert capfd.readouterr().err == told


@pytest.mark.parametrize(
    ("verb", "resumed"), [("eval", True), ("certify", True), ("attack", False), ("transfer", False)]
)
def test_rank_0_is_not_started_for_ever(go: Callable[..., int], capfd: Any, verb: str, resumed: bool) -> None:
    assert go("die() if rank == 0 else time.sleep(100)", verb=verb) == 8
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("rank 0: killed by SIGKILL")
    assert ("--resume" in lines[-1]) is resumed, "only where a user can give it"


@pytest.mark.parametrize("code", [2, 3, 6, 7, 70])
def test_an_explained_failure_ends_all_and_names_its_rank(
    go: Callable[..., int], capfd: Any, code: int
) -> None:
    body = f"fail({code}, 'noise\\nerror[E-X]: it broke; here') if rank else time.sleep(100)"
    assert go(body) == code
    assert capfd.readouterr().err == "rank 1: error[E-X]: it broke; here\n"


def test_a_rank_0_that_does_not_start_has_met_no_gate(go: Callable[..., int], capfd: Any) -> None:
    """Python ends with 1, too, where it finds no modules or a library cannot be loaded."""
    assert go("raise ImportError('libz.so') if rank == 0 else time.sleep(100)") == 8
    assert capfd.readouterr().err.splitlines()[-1].startswith("rank 0: exit 1; ")


@pytest.mark.parametrize("passed", [True, False])
def test_a_gate_that_is_not_met_is_told_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    monkeypatch.setenv(TEAM, f"0/2:{tmp_path}")
    ending = nullcontext()
    if not passed:
        ending = pytest.raises(typer.Exit)
    gate = {"metric": "robust_acc", "value": 0.1, "min": 0.2, "passed": passed}
    with ending:
        conclude("eval", Console(quiet=True), lambda: {"gate": [gate]})
    assert (tmp_path / f"{UNMET}-0").exists() is not passed


@pytest.mark.parametrize("code", [0, 1, 2, 10])
def test_rank_0_speaks_for_itself(go: Callable[..., int], capfd: Any, code: int) -> None:
    """1: a gate is not met. 10: --strict."""
    body = f"""
    if rank == 0:
        print("said once", file=sys.stderr)
        unmet() if {code} == 1 else sys.exit({code})
    """
    assert go(body) == code
    assert capfd.readouterr().err == "said once\n"


@pytest.mark.parametrize("code", [0, 1])
def test_one_document(go: Callable[..., int], capfd: Any, code: int) -> None:
    body = f"""
    print("noise")
    if rank == 0:
        answer(ok=True, gate=[])
        unmet() if {code} else sys.exit(0)
    """
    assert go(body, console=Console(json=True)) == code
    assert json.loads(capfd.readouterr().out)["ok"] is True


def test_one_document_of_a_failure(go: Callable[..., int], capfd: Any) -> None:
    body = "fail(3, 'error[E-DATA]: no image') if rank else time.sleep(100)"
    assert go(body, console=Console(json=True)) == 3
    error = json.loads(capfd.readouterr().out)["error"]
    assert (error["code"], error["exit"], error["message"]) == ("E-DATA", 3, "rank 1: no image")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_reaches_all(go: Callable[..., int], capfd: Any, signum: int, code: int) -> None:
    body = f"""
    def stopped(number, frame):
        Path(f"stopped-{{rank}}").touch()
        os._exit({code})
    signal.signal({int(signum)}, stopped)
    Path(f"ready-{{rank}}").touch()
    if rank == 0:
        await_("ready-1")
        os.kill(os.getppid(), {int(signum)})
    time.sleep(100)
    """
    assert go(body) == code and Path("stopped-0").exists() and Path("stopped-1").exists()
    assert capfd.readouterr().err == ""


def test_what_a_rank_is_told(go: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustcli.runtime.device.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = """
    names = ("ROBUSTCLI_TEAM", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "ROBUSTCLI_LAUNCHER")
    Path(f"told-{rank}").write_text(json.dumps([os.environ.get(name) for name in names]))
    """
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert go(body, nproc=3) == 0
    told = [json.loads(Path(f"told-{rank}").read_text()) for rank in range(3)]
    assert [text.partition(":")[0] for text, *_ in told] == ["0/3", "1/3", "2/3"]
    assert {threads for _, threads, *_ in told} == {"2"} and {gpu for *_, gpu, _ in told} == {None}
    assert {launcher for *_, launcher in told} == {str(os.getpid())}
    monkeypatch.setenv(TEAM, told[2][0])
    assert (Team.here().rank, Team.here().world, Team.here().main) == (2, 3, False)


@pytest.mark.parametrize("late", [True, False])
def test_a_launch_that_was_mostly_loading_says_so(go: Callable[..., int], capfd: Any, late: bool) -> None:
    body = f"""
    time.sleep(0.5 * {late})
    Path(scratch, f"loaded-{{rank}}").touch()
    time.sleep(0.5 * {not late})
    """
    assert go(body) == 0
    assert ("loading took" in capfd.readouterr().err) is late


def test_each_rank_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "cuda_count", lambda: 4)
    assert [together._gpu(rank, "auto", {})["CUDA_VISIBLE_DEVICES"] for rank in (0, 3)] == ["0", "3"]
    given = {"CUDA_VISIBLE_DEVICES": "5,GPU-7f,2"}
    assert together._gpu(1, "cuda", given) == {"CUDA_VISIBLE_DEVICES": "GPU-7f"}
    assert together._gpu(1, "cpu", given) == {}


@pytest.mark.parametrize(
    ("nproc", "device", "gpus", "what"),
    [
        (0, "auto", 2, "--nproc 0: 1 to 256 processes are possible"),
        (257, "cpu", 0, "--nproc 257: 1 to 256 processes are possible"),
        (3, "auto", 2, "--nproc 3: one process per GPU, and GPUs here: 2"),
        (2, "cuda", 0, "--nproc 2: one process per GPU, and GPUs here: 0"),
        (2, "cuda:1", 2, "--nproc 2: the processes cannot share cuda:1"),
        (2, "mps", 0, "--nproc 2: the processes cannot share mps"),
    ],
)
def test_impossible_numbers(
    monkeypatch: pytest.MonkeyPatch, nproc: int, device: str, gpus: int, what: str
) -> None:
    monkeypatch.setattr(together, "cuda_count", lambda: gpus)
    with pytest.raises(UsageError) as caught:
        check_processes(nproc, device)
    assert caught.value.what == what and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("nproc", "device", "gpus"), [(1, "cuda:1", 2), (2, "auto", 2), (9, "cpu", 2), (9, "auto", 0)]
)
def test_possible_numbers(monkeypatch: pytest.MonkeyPatch, nproc: int, device: str, gpus: int) -> None:
    monkeypatch.setattr(together, "cuda_count", lambda: gpus)
    check_processes(nproc, device)
    assert os.environ.get(TEAM) is None

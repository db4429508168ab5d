"""The launcher with stand-in workers: whose exit code it gives, what signals arrive, when it starts again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustcli.assembly.launch import ending_of, launch, ranks_command
from robustcli.assembly.reopen import RUN_FILE, note_run, opening
from robustcli.cli.flags import FLAGS
from robustcli.cli.main import run
from robustcli.cli.options import as_argv
from robustcli.errors import UsageError
from robustcli.terminal.console import Console

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
HEAD = """
import json, os, signal, sys, time
from pathlib import Path
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def wait(seconds=100):
    time.sleep(seconds)
    sys.exit(9)
def die(signum=signal.SIGKILL):
    os.kill(os.getpid(), signum)
    wait()
def answer(document):
    Path(os.environ["ROBUSTCLI_DOCUMENT_FILE"]).write_text(json.dumps(document))
def fail(code, text=""):
    print(text, file=sys.stderr)
    sys.exit(code)
def together(name):
    Path(f"{name}-{rank}").touch()
    while not all(Path(f"{name}-{r}").exists() for r in (0, 1)):
        time.sleep(0.005)
"""


def caught(signum: int, frame: object) -> None:
    raise AssertionError(f"signal {signum} reached the caller of launch")


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`go(body)`: two workers run HEAD and `body` in an empty directory; the exit code.

    The caller's handlers must stay untouched.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robustcli.assembly.ranks.GRACE", 0.05)
    before = {number: signal.signal(number, caught) for number in SIGNALS}

    def start(
        body: str, *argv: str, restarts: int = 0, console: Console | None = None, nproc: int = 2
    ) -> int:
        script = tmp_path / "worker.py"
        script.write_text(HEAD + textwrap.dedent(body))
        code = launch(
            argv, nproc, restarts, console or Console(), command=(sys.executable, "-I", "-S", str(script))
        )
        assert all(signal.getsignal(number) is caught for number in SIGNALS)
        return code

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_rank_finds_modules_where_its_launcher_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console script does not look in the directory; `python -m robustcli` does."""
    (tmp_path / "robustcli").mkdir()
    (tmp_path / "robustcli" / "__init__.py").write_text("raise SystemExit('of the directory')")
    monkeypatch.chdir(tmp_path)

    def said() -> str:
        words = [*ranks_command(), "--version"]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stderr

    assert "of the directory" not in said()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "of the directory" in said()
    monkeypatch.chdir(tmp_path / "robustcli")
    (tmp_path / "robustcli" / "__init__.py").unlink()
    (tmp_path / "robustcli").rmdir()
    assert ranks_command()[1:] == ("-m", "robustcli"), "a directory that was removed is asked for nothing"


# ---- exit codes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"), [*((code, code) for code in (2, 3, 4, 5, 6, 7, 9, 10, 70)), (1, 8), (99, 8)]
)
def test_the_code_of_the_worker_that_failed_first(
    go: Callable[..., int], capfd: Any, code: int, expected: int
) -> None:
    assert (
        go(f"fail({code}, 'noise\\nerror[E-X]: it broke; here\\nmore noise') if rank == 1 else wait()")
        == expected
    )
    assert capfd.readouterr().err == "rank 1: error[E-X]: it broke; here\n"


def test_all_well(go: Callable[..., int], capfd: Any) -> None:
    assert (
        go("print('rank', rank, sys.argv[1:]); print('progress', rank, file=sys.stderr)", "train", "a.b=c")
        == 0
    )
    assert capfd.readouterr() == ("rank 0 ['train', 'a.b=c']\n", "progress 0\n"), "only rank 0 is heard"


def test_a_killed_worker_is_named_and_its_victims_are_not(go: Callable[..., int], capfd: Any) -> None:
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    together("ready")
    if rank == 1:
        die()
    fail(8, "error[E-PEER]: lost a peer")
    """
    assert go(body) == 8
    assert capfd.readouterr().err == "error[E-PEER]: lost a peer\nrank 1: killed by SIGKILL\n"


def test_a_fault_comes_before_the_loss_that_it_caused(go: Callable[..., int], capfd: Any) -> None:
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    together("ready")
    if rank == 0:
        fail(8, "error[E-PEER]: lost a peer")
    time.sleep(0.3)
    fail(5, "error[E-NAN]: not finite")
    """
    assert go(body) == 5
    assert capfd.readouterr().err.endswith("rank 1: error[E-NAN]: not finite\n")


def test_rank_0_has_said_its_own_reason(go: Callable[..., int], capfd: Any) -> None:
    assert go("fail(4, 'error[E-CKPT]: damaged') if rank == 0 else wait()") == 4
    assert capfd.readouterr().err == "error[E-CKPT]: damaged\nrank 0: exit 4\n"


def test_what_is_told_to_a_worker(go: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = """
    import socket
    socket.create_connection(("127.0.0.1", int(os.environ["MASTER_PORT"])))
    Path(f"{rank}.json").write_text(json.dumps(dict(os.environ)))
    """
    assert go(body) == 0
    told = [json.loads(Path(f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [[one[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] for one in told] == [
        ["0", "0", "2"],
        ["1", "1", "2"],
    ]
    assert told[0][RUN_FILE] == told[1][RUN_FILE] and not Path(told[0][RUN_FILE]).parent.exists(), (
        "scratch files are gone"
    )
    assert 1 <= int(told[0]["OMP_NUM_THREADS"]) <= max(1, (os.cpu_count() or 1) // 2)
    assert "TORCHELASTIC_SIGNALS_TO_HANDLE" not in os.environ


@pytest.mark.parametrize(("nproc", "restarts"), [(0, 0), (5000, 0), (2, -1)])
def test_impossible_numbers(nproc: int, restarts: int) -> None:
    with pytest.raises(UsageError, match="--nproc"):
        launch([], nproc, restarts, Console())


def test_workers_meet_over_the_launchers_port(go: Callable[..., int], capfd: Any) -> None:
    """The real thing: the two join, agree, and rank 0 notices that rank 1 is gone."""
    script = """
    import torch
    from robustcli.errors import PeerError
    from robustcli.runtime.distributed import join
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which may come before rank 0 has spoken
    with join(torch.device("cpu")) as ranks:  # left open, gloo's threads may abort the interpreter's exit
        print(ranks.agree(rank == 1), flush=True)
        if rank == 1:
            die()
        try:
            ranks.agree(False)
        except PeerError as error:
            fail(error.exit_code, error.line())
    """
    script_file = Path("real.py")
    script_file.write_text(HEAD + textwrap.dedent(script))
    assert launch([], 2, 0, Console(), command=(sys.executable, str(script_file))) == 8
    out, err = capfd.readouterr()
    assert out == "(True,)\n", "gloo speaks on stdout, in some versions of torch"
    first, last = [line for line in err.splitlines() if not line.startswith("[Gloo]")]
    assert first.startswith("error[E-PEER]: rank 0 of 2 lost a peer in agree: ")
    assert last == "rank 1: killed by SIGKILL"


@pytest.mark.parametrize(
    ("codes", "asked", "hung", "expected"),
    [
        (
            (8, -9),
            None,
            True,
            (8, 1, "did not answer, and was killed"),
        ),  # a rank that hung: torch waited 30 s for it
        ((8, -9), None, False, (8, 1, "killed by SIGKILL")),
        ((-6, -9), None, False, (8, 1, "killed by SIGKILL")),  # nccl's watchdog aborts who lost a peer
        ((8, -6), None, False, (8, 1, "killed by SIGABRT")),
        ((-15, -11), None, False, (8, 1, "killed by SIGSEGV")),
        ((8, -40), None, False, (8, 1, "killed by 40")),
        ((-15, -15), None, False, (8, 0, "killed by SIGTERM")),
        ((143, 8), None, False, (8, 1, "exit 8")),
        ((143, 8), 15, False, (143, 0, "")),
        ((143, 130), 2, False, (130, 0, "")),
        ((-15, -2), 2, False, (130, 1, "stopped by SIGINT before it began")),
        ((130, 5), 2, False, (5, 1, "exit 5")),
    ],
)
def test_which_failure_was_the_first(
    codes: tuple[int, int], asked: int | None, hung: bool, expected: tuple[int, int, str]
) -> None:
    ending = ending_of(dict(enumerate(codes)), lambda rank: "", asked, hung={1} if hung else ())
    assert (ending.code, ending.rank, ending.reason) == expected


# ---- signals -----------------------------------------------------------------------------------------------

SAVING = """
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda signum, frame: got.append(signum))
together("ready")
if rank == 1:
    os.kill(os.getppid(), int(sys.argv[1]))
while not got:
    time.sleep(0.005)
Path(f"got-{rank}").write_text(str(int(got[0])))
together("saved")
sys.exit(int(sys.argv[2]) if rank == 0 and len(sys.argv) > 2 else 128 + got[0])
"""


@pytest.mark.parametrize(
    ("sent", "arrives", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 143),
        (signal.SIGINT, signal.SIGINT, 130),
        (signal.SIGUSR1, signal.SIGTERM, 143),
        (signal.SIGHUP, signal.SIGTERM, 143),
        (signal.SIGQUIT, signal.SIGTERM, 143),
    ],
)
def test_a_stop_reaches_all_workers_and_is_no_failure(
    go: Callable[..., int], capfd: Any, sent: int, arrives: int, code: int
) -> None:
    assert go(SAVING, str(int(sent)), restarts=3) == code
    assert [Path(f"got-{rank}").read_text() for rank in (0, 1)] == [str(int(arrives))] * 2
    assert capfd.readouterr().err == ""


def test_a_save_that_fails_after_a_stop_is_a_failure(go: Callable[..., int]) -> None:
    assert go(SAVING, str(int(signal.SIGTERM)), "6") == 6


def test_a_stop_before_the_workers_listen(go: Callable[..., int], capfd: Any) -> None:
    assert (
        go(
            "together('ready'); os.kill(os.getppid(), signal.SIGTERM) if rank == 0 else None; wait()",
            restarts=3,
        )
        == 143
    )
    assert capfd.readouterr().err == "rank 0: stopped by SIGTERM before it began\n"


def test_the_second_interrupt_arrives_too(go: Callable[..., int]) -> None:
    body = """
    got = []
    def handler(signum, frame):
        got.append(signum)
        if len(got) == 2:
            os._exit(130)
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    together("ready")
    for _ in range(2 if rank == 1 else 0):
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(0.2)
    wait()
    """
    assert go(body) == 130


def test_an_ignored_hangup_stays_ignored(go: Callable[..., int]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(AssertionError):  # of `go`: the handler is not `caught`
            go(
                "together('ready'); os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.2); "
                "Path(f'end-{rank}').touch()"
            )
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Path("end-0").exists() and Path("end-1").exists()


# ---- restarts ----------------------------------------------------------------------------------------------

LOSING = """
note = Path(os.environ["ROBUSTCLI_RUN_FILE"])
Path(f"{attempt}-{rank}").write_text(note.read_text() if note.exists() else "")
together(f"ready-{attempt}")
if rank == 0:
    note.write_text(f"noted by {attempt}")
together(f"noted-{attempt}")
if rank == 1 and attempt < int(sys.argv[1]):
    die()
"""


def test_a_restart_knows_what_rank_0_noted(go: Callable[..., int], capfd: Any) -> None:
    assert go(LOSING, "2", restarts=2) == 0
    assert [Path(f"{attempt}-{rank}").read_text() for attempt in (0, 1, 2) for rank in (0, 1)] == [
        "",
        "",
        *["noted by 0"] * 2,
        *["noted by 1"] * 2,
    ]
    err = capfd.readouterr().err
    assert err.splitlines() == [
        f"warning: rank 1: killed by SIGKILL; restart {number} of 2 from the last checkpoint"
        for number in (1, 2)
    ]


def test_restarts_come_to_an_end(go: Callable[..., int], capfd: Any) -> None:
    assert go(LOSING, "9", restarts=1) == 8
    assert capfd.readouterr().err.splitlines()[-1] == "rank 1: killed by SIGKILL" and not Path("2-0").exists()


@pytest.mark.parametrize("code", [2, 5, 143])
def test_what_would_only_come_back_starts_nothing_again(go: Callable[..., int], code: int) -> None:
    assert go(f"Path(f'began-{{attempt}}').touch(); sys.exit({code})", restarts=2) == code
    assert not Path("began-1").exists()


def test_a_restart_goes_on_in_the_directory_that_the_job_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", RUN_FILE):
        monkeypatch.delenv(name, raising=False)
    note_run(tmp_path)  # nobody listens
    assert opening("out", False, True) == ("out", False, True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv(RUN_FILE, str(tmp_path / "note"))
    assert opening(None, False, False) == (None, False, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert opening(None, False, False) == (None, False, False), "lost before it had a directory"
    assert opening("out", False, False) == ("out", False, False), "what lies there is an earlier run"
    assert opening("out", False, True) == ("out", False, True)
    note_run(tmp_path / "a run")
    assert opening(None, False, False) == (str(tmp_path / "a run"), True, False)
    assert opening("out", False, True) == (str(tmp_path / "a run"), True, True), "perhaps not shown anything"


def test_a_restart_by_torchrun_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_FILE, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert opening("out", False, True) == ("out", True, True) and opening(None, False, False) == (
        None,
        True,
        False,
    )


# ---- --json ------------------------------------------------------------------------------------------------


def document(capfd: Any) -> Any:
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_one_document_also_after_a_restart(go: Callable[..., int], capfd: Any) -> None:
    body = """
    if attempt == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        together("ready")
        if rank == 1: die()
        answer({"ok": False})
        fail(8)
    print("[Gloo] Rank 0 is connected to 1 peer ranks", flush=True)
    if rank == 0:
        answer({"ok": True, "rank": rank})
    """
    assert go(body, restarts=1, console=Console(json=True)) == 0
    assert document(capfd) == {"schema_version": 1, "ok": True, "rank": 0}


@pytest.mark.parametrize("body", ["print(json.dumps({'ok': True}))", "rank or answer('cut short')"])
def test_no_failure_carries_exit_0(go: Callable[..., int], capfd: Any, body: str) -> None:
    assert go(body, console=Console(json=True)) == 70
    found = document(capfd)
    assert found["ok"] is False and (found["error"]["code"], found["error"]["exit"]) == ("E-INTERNAL", 70)


def test_a_stop_before_any_document_is_told_as_one(go: Callable[..., int], capfd: Any) -> None:
    body = "together('ready'); os.kill(os.getppid(), signal.SIGTERM) if rank == 0 else None; wait()"
    assert go(body, console=Console(json=True)) == 143
    assert document(capfd)["error"]["code"] == "E-PREEMPTED"


@pytest.mark.parametrize(
    ("how", "code", "name", "message"),
    [
        ("die()", 8, "E-PEER", "rank 1: killed by SIGKILL"),
        ("fail(5, 'error[E-NAN]: bad; here')", 5, "E-NAN", "rank 1: bad; here"),
    ],
)
def test_the_document_of_a_failure_is_about_the_rank_that_failed(
    go: Callable[..., int], capfd: Any, how: str, code: int, name: str, message: str
) -> None:
    body = f"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    together("ready")
    if rank == 1:
        {how}
    answer({{"ok": False, "error": "echo"}})
    fail(8)
    """
    assert go(body, console=Console(json=True)) == code
    assert document(capfd) == {
        "schema_version": 1,
        "ok": False,
        "error": {"code": name, "exit": code, "message": message, "hint": ""},
    }


# ---- the command line --------------------------------------------------------------------------------------


def test_workers_get_the_same_flags_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "robustcli.assembly.launch.launch",
        lambda argv, nproc, restarts, console: seen.append((argv, nproc, restarts)) or 143,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    flags = [
        "--nproc",
        "3",
        "--max-restarts",
        "1",
        "--eps",
        "4/255",
        "--resume",
        "--override-resume",
        "data",
        "--override-resume",
        "seed",
        "-q",
    ]
    assert run(["train", "smoke/digits", *flags, "seed=3"]) == 143
    assert run(seen[0][0][:1] + ["--nproc=3", "--max-restarts=1"] + seen[0][0][1:]) == 143
    expected = {
        "train",
        "--eps=4/255",
        "--resume",
        "--override-resume=data",
        "--override-resume=seed",
        "--quiet",
        "--",
        "smoke/digits",
        "seed=3",
    }
    assert seen[0] == seen[1] and set(seen[0][0]) == expected and seen[0][1:] == (3, 1)


def test_every_kind_of_flag_is_written_as_it_is_read() -> None:
    of_kind = {"switch": True, "list": ["a", "b"], "text": "x y"}
    values = {name: of_kind[flag.kind] for name, flag in FLAGS.items()}
    found = as_argv("train", {**values, "words": ["c", "k=v"]}, without=("nproc",))
    assert (
        {"--json", "--set=a", "--set=b", "--n=x y"} <= set(found)
        and found[-3:] == ["--", "c", "k=v"]
        and not any("nproc" in text for text in found)
    )
    assert as_argv("train", {"eps": None, "json": False, "set": [], "words": None}) == ["train", "--"]


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--nproc", "many"], {}, "--nproc 'many' is not a number"),
        (["--nproc", "2", "--seeds", "0,1"], {}, "--seeds and --nproc exclude each other"),
        (["--nproc", "2"], {"WORLD_SIZE": "2"}, "--nproc inside torchrun"),
        (["--nproc", "0"], {}, "--nproc 0"),
    ],
)
def test_refused_command_lines(
    capfd: Any, monkeypatch: pytest.MonkeyPatch, flags: list[str], environment: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(["train", "smoke/digits", *flags]) == 2
    assert message in capfd.readouterr().err


# ---- Slurm -------------------------------------------------------------------------------------------------

SBATCH = Path(__file__).resolve().parents[2] / "deploy" / "slurm.sbatch"
SRUN = """echo "$@" > srun.txt; mkdir -p "$OUT"; touch began
while [ -n "$WAITS" ] && [ ! -e told ]; do sleep 0.02; done
[ -z "$STATE" ] || printf '{\\n "code": %s,\\n "state": "%s"\\n}\\n' "$CODE" "$STATE" > "$OUT/status.json"
exit 1"""


def batch(
    tmp_path: Path, *, job: str = "4711", state: str = "done", code: str = "0", warn: bool = False
) -> tuple[int, list[str]]:
    """The batch file's exit code with stand-ins for Slurm's commands; what it asked of scontrol, scancel."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = 'echo "$(basename "$0") $*" >> asked; '
    for name, text in {
        "srun": SRUN,
        "scontrol": log + "echo node1; echo node2",
        "scancel": log + "touch told",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "OUT": str(tmp_path / "run"),
    }
    env = {
        "PATH": f"{folder}:/usr/bin:/bin",
        **slurm,
        "STATE": state,
        "CODE": code,
        "WAITS": "1" if warn else "",
    }
    process = subprocess.Popen(
        ["bash", str(SBATCH), "train/digits", "a=b c"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if warn:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        time.sleep(0.1)  # the trap stands
        process.send_signal(signal.SIGUSR1)
    ended = process.wait(20)
    asked = tmp_path / "asked"
    return ended, asked.read_text().splitlines()[1:] if asked.exists() else []


@pytest.mark.parametrize(("state", "code"), [("done", "0"), ("failed", "5"), ("preempted", "143")])
def test_the_batch_file_answers_what_the_run_says(tmp_path: Path, state: str, code: str) -> None:
    assert batch(tmp_path, state=state, code=code) == (int(code), []), "and requeues nothing unasked"
    told = (tmp_path / "srun.txt").read_text()
    assert "--nnodes=2" in told and "--rdzv-endpoint=node1:24711" in told
    assert told.endswith(f"-m robustcli train --out={tmp_path}/run --resume train/digits a=b c\n")


def test_a_run_that_never_began_is_a_lost_peer(tmp_path: Path) -> None:
    assert batch(tmp_path, state="") == (8, [])


@pytest.mark.parametrize(("state", "code"), [("preempted", "143"), ("running", "null")])
def test_before_the_time_limit_the_job_saves_and_requeues(tmp_path: Path, state: str, code: str) -> None:
    assert batch(tmp_path, state=state, code=code, warn=True) == (
        143,
        ["scancel --signal=TERM 4711.0", "scontrol requeue 4711"],
    )


def test_a_run_that_ended_just_in_time_is_not_requeued(tmp_path: Path) -> None:
    assert batch(tmp_path, warn=True) == (0, ["scancel --signal=TERM 4711.0"])


@pytest.mark.parametrize("job", ["", "1;touch x", "$(touch x)", "1 2", "-1", "1\n2"])
def test_a_hostile_job_id_runs_nothing(tmp_path: Path, job: str) -> None:
    assert (
        batch(tmp_path, job=job) == (2, [])
        and not (tmp_path / "srun.txt").exists()
        and not (tmp_path / "x").exists()
    )

"""Many processes, one verdict: that of one process, bit for bit, whoever is killed and whoever goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from jobs_support import TINY
from PIL import Image

import robustcli.jobs.attack
import robustcli.jobs.certify.run
import robustcli.jobs.evaluate
import robustcli.jobs.measure
import robustcli.jobs.train
import robustcli.jobs.transfer  # noqa: F401
from robustcli.assembly.reopen import RUN_FILE, following
from robustcli.cli.main import run
from robustcli.config.bind import Registries
from robustcli.core.geometry import Ball
from robustcli.errors import PeerError
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.shards import ShardFolder
from robustcli.jobs.measure import Shards
from robustcli.proportions import clopper_pearson
from robustcli.runtime.team import LAUNCHER, TEAM, Claims, Team
from robustcli.store.examples import read_examples
from robustcli.terminal.console import Console

LEARNED = (
    *("objective=natural", "train.steps=150", "train.save_every=150", "train.validate_every=1"),
    *("train.optimizer.lr=0.1", "precision=fp32"),
)
EVAL = (
    *("eval", "--attack", "fgsm,pgd", "--steps", "5", "--search", "fp32", "--batch-size", "16"),
    *("eval.checks=0", "threads=1", "--n", "60"),
)


def child(argv, prepare=lambda: None, **variables):
    """Start a command in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.environ.update(variables)
            torch.set_num_threads(1)
            prepare()
            code = run([*map(str, argv), "--quiet"])
        finally:
            os._exit(code)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    Registries.discover()  # this, and what the next two lines import, here once instead of in every child
    torch.use_deterministic_algorithms(False)
    clopper_pearson(1, 2)
    path = tmp_path_factory.mktemp("trained") / "model"
    assert ended(child(["train", *TINY, *LEARNED, "--out", path])) == 0
    return f"run:{path}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, model):
    """`alone(*argv)`: the run directory of one process, measured once per command."""
    known = {}

    def measured(*argv):
        if argv not in known:
            known[argv] = tmp_path_factory.mktemp("alone") / "run"
            assert ended(child([*argv, "--model", model, "--out", known[argv]])) == 0
        return known[argv]

    return measured


def together(model, out, *argv, kill=None, world=2, again=False):
    """The exit codes of the ranks of a team, whose first turns begin at the same time.

    kill: (rank, after so many shards of its own). again: rank 0 is started once more in the end.
    """
    scratch = out.parent / f"scratch-{time.monotonic_ns()}"
    scratch.mkdir()

    def start(rank, again=False):
        def prepare():
            if again:
                return
            shares, save, saved = Team.shares, ShardFolder.save, []

            def all_at_once(self, *args):
                (scratch / f"ready-{rank}").touch()
                while not all((scratch / f"ready-{other}").exists() for other in range(world)):
                    time.sleep(0.002)
                return shares(self, *args)

            def counted(self, number, data):
                if kill == (rank, len(saved)):
                    os.kill(os.getpid(), signal.SIGKILL)
                save(self, number, data)
                saved.append(number)
                with (scratch / f"saved-{rank}").open("a") as lines:
                    lines.write(f"{number}\n")

            Team.shares, ShardFolder.save = all_at_once, counted

        variables = {TEAM: f"{rank}/{world}:{scratch}", RUN_FILE: str(scratch / "run")}
        if again:
            variables["TORCHELASTIC_RESTART_COUNT"] = "1"
        named = [] if model is None else ["--model", model]
        return child([*argv, *named, "--out", out], prepare, **variables)

    codes = [ended(pid) for pid in [start(rank) for rank in range(world)]]
    if again:  # what the launcher does at once
        codes[0] = ended(start(0, again=True))
    saved = {path.name[-1]: path.read_text().split() for path in scratch.glob("saved-*")}
    return codes, saved


TIMELESS = ("seconds", "run", "images", "created")


def timeless(value):
    """JSON without what a clock decides, and without the name of the run."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMELESS}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return value


def verdict(path):
    """All that must not depend on who measured: records, samples, summary, shards, images that were kept."""
    lines = {
        name: [timeless(json.loads(line)) for line in (path / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "samples.jsonl")
    }
    shards = {
        file.name: [timeless(json.loads(line)) for line in file.read_text().splitlines()[1:-1]]
        for file in (path / "shards").rglob("*.jsonl")
    }
    assert shards
    kept = []
    if (path / "examples.safetensors").is_file():
        kept = [
            (row.id, row.true, row.predicted) for row in read_examples(path / "examples.safetensors").rows
        ]
    return lines, timeless(json.loads((path / "summary.json").read_text())), shards, kept


# ---- eval --------------------------------------------------------------------------------------------------


def test_two_processes_give_the_verdict_of_one(tmp_path, model, alone):
    codes, saved = together(model, tmp_path / "run", *EVAL)
    assert codes == [0, 0] and verdict(tmp_path / "run") == verdict(alone(*EVAL))
    assert saved["0"] and saved["1"] and len({*saved["0"], *saved["1"]}) == len(saved["0"] + saved["1"]) == 15
    assert len(verdict(tmp_path / "run")[-1]) == 8, "images of broken samples are kept, whoever measured them"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param((*EVAL, "--sweep", "eps=0.02,0.1"), id="sweep"),
        pytest.param(
            ("eval", "--attack", "autoattack:rapid", "--n", "24", "--batch-size", "8", "threads=1"),
            id="audit",
        ),
    ],
)
def test_what_follows_is_shared_and_decided_alike(tmp_path, model, alone, words):
    codes, saved = together(model, tmp_path / "run", *words)
    found = verdict(tmp_path / "run")
    assert codes == [0, 0] and found == verdict(alone(*words))
    assert len(saved["0"] + saved["1"]) > len(found[2]), "and not only the first list"
    assert timeless(swept(tmp_path / "run")) == timeless(swept(alone(*words)))


def swept(path):
    """The rows of a sweep; [] without one."""
    file = path / "sweep.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_loses_its_unfinished_shards_only(tmp_path, model, alone, rank):
    path = tmp_path / "run"
    codes, saved = together(model, path, *EVAL, kill=(rank, 4))
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 0
    assert len(saved[str(rank)]) == 4 and len(saved[str(1 - rank)]) == 11
    if rank == 0:  # which would have written the rest; its launcher starts it again
        assert not (path / "summary.json").exists()
        before = {file.name: file.stat().st_mtime_ns for file in (path / "shards").glob("*.jsonl")}
        assert ended(child([*EVAL, "--model", model, "--out", path, "--resume"])) == 0
        after = {file.name: file.stat().st_mtime_ns for file in (path / "shards").glob("*.jsonl")}
        assert before == after, "nothing was measured again"
    assert verdict(path) == verdict(alone(*EVAL))


@pytest.mark.slow
def test_a_team_goes_on_with_the_run_of_one_process(tmp_path, model, alone):
    path = tmp_path / "run"

    def soon_killed():
        save = ShardFolder.save

        def some(self, number, data):
            if number == 8:  # the third batch
                os.kill(os.getpid(), signal.SIGKILL)
            save(self, number, data)

        ShardFolder.save = some

    assert ended(child([*EVAL, "--model", model, "--out", path], soon_killed)) == -signal.SIGKILL
    codes, saved = together(model, path, *EVAL, "--resume")
    assert codes == [0, 0] and len(saved["0"] + saved["1"]) == 7
    assert verdict(path) == verdict(alone(*EVAL))


# ---- certify -----------------------------------------------------------------------------------------------

CERTIFY = ("certify", "--attack", "fgsm", "--n", "24", "--eps", "0.01", "eval.checks=0", "threads=1")


def test_two_processes_certify_as_one(tmp_path, model, alone):
    codes, saved = together(model, tmp_path / "run", *CERTIFY)
    assert codes == [0, 0] and verdict(tmp_path / "run") == verdict(alone(*CERTIFY))
    assert saved["0"] and saved["1"] and len(saved["0"] + saved["1"]) == 6


# ---- attack and transfer -----------------------------------------------------------------------------------

ATTACK = (
    *("attack", "--attack", "pgd", "--steps", "5", "--n", "40", "--search", "fp32", "eval.checks=0"),
    *("threads=1", "attack.save=7", "attack.gallery=9"),
)
TRANSFER = ("transfer", "--attack", "fgsm", "--n", "40", "--search", "fp32", "threads=1")


def pictures(path):
    """The images of a run, the pixels of its gallery, and their lines."""
    with Image.open(path / "plots" / "gallery.png") as gallery:
        drawn = gallery.size
    files = {file.name: file.read_bytes() for file in (path / "images").iterdir()}
    return files, drawn, (path / "images.jsonl").read_text()


@pytest.mark.parametrize("victim", [None, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (0, 1))])
def test_two_processes_write_the_images_of_one(tmp_path, model, alone, victim):
    """Also where rank 0 is started once more after it has put the images together."""
    kill = None if victim is None else (victim, 3)
    codes, _ = together(model, tmp_path / "run", *ATTACK, kill=kill, again=victim != 1)
    assert codes == [0, -signal.SIGKILL if victim == 1 else 0]
    path, expected = tmp_path / "run", alone(*ATTACK)
    assert pictures(path) == pictures(expected) and len(pictures(path)[0]) == 7
    both = [timeless(json.loads((folder / "summary.json").read_text())) for folder in (path, expected)]
    assert both[0] == both[1] and both[0]["images_written"] == 7


@pytest.mark.parametrize("words", [ATTACK, TRANSFER, EVAL], ids=lambda words: words[0])
def test_a_rank_0_that_was_lost_before_it_began_spares_an_earlier_run(
    tmp_path, cli, monkeypatch, model, alone, words
):
    """Started again it is refused, as the first one would have been."""
    old = tmp_path / "old"
    shutil.copytree(alone(*EVAL) if words is EVAL else alone(*ATTACK), old)
    if words is TRANSFER:
        (old / "run.json").write_text((old / "run.json").read_text().replace("attack", "transfer"))
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.name != ".lock"}
    monkeypatch.setenv(TEAM, f"0/2:{tmp_path}")
    monkeypatch.setenv(RUN_FILE, str(tmp_path / "note"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    named = ("--models", f"{model},{model}") if words is TRANSFER else ("--model", model)
    answer = cli(*words, *named, "--out", old)
    assert answer.code == 2 and "--overwrite" in answer.err
    after = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_two_processes_give_the_matrix_of_one(tmp_path, model):
    """`--models` in place of `--model`."""
    words, found = (*TRANSFER, "--models", f"{model},{model}"), []
    assert ended(child([*words, "--out", tmp_path / "alone"])) == 0
    codes, saved = together(None, tmp_path / "run", *words)
    assert codes == [0, 0] and saved["0"] and saved["1"] and len(saved["0"] + saved["1"]) == 10
    for name in ("alone", "run"):
        told = json.loads((tmp_path / name / "summary.json").read_text())
        rows = [json.loads(line) for line in (tmp_path / name / "transfer.jsonl").read_text().splitlines()]
        found.append(timeless([told, rows]))
    assert found[0] == found[1]


# ---- as a user runs it -------------------------------------------------------------------------------------


def launched(model, *argv):
    return [sys.executable, "-m", "robustcli", *argv, "--model", model, "--nproc", "2"]


def test_the_command(tmp_path, model, alone):
    words = [*launched(model, *EVAL), "--out", tmp_path / "run", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    document = json.loads(done.stdout)
    assert document["ok"] and document["run"] == str(tmp_path / "run")
    assert verdict(tmp_path / "run") == verdict(alone(*EVAL))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_command_survives_kill_9_of_a_rank(tmp_path, model, alone, victim):
    words = (*EVAL, "--n", "200", "--steps", "400")  # long enough to be hit
    process = subprocess.Popen([*launched(model, *words), "--out", tmp_path / "run"], stderr=subprocess.PIPE)
    while len(list((tmp_path / "run" / "shards").glob("*.jsonl"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
    assert process.wait(300) == 0
    assert f"rank {victim}: killed by SIGKILL" in process.stderr.read().decode()
    assert verdict(tmp_path / "run") == verdict(alone(*words))


@pytest.mark.slow
def test_the_command_stops_and_goes_on(tmp_path, model, alone):
    words = (*EVAL, "--n", "200", "--steps", "400")
    process = subprocess.Popen([*launched(model, *words), "--out", tmp_path / "run"], stderr=subprocess.PIPE)
    while len(list((tmp_path / "run" / "shards").glob("*.jsonl"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and b"--resume" in process.stderr.read()
    assert ended(child([*words, "--model", model, "--out", tmp_path / "run", "--resume"])) == 0
    assert verdict(tmp_path / "run") == verdict(alone(*words))


def ranks_of(launcher):
    """rank -> process id."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and f"\nPPid:\t{launcher}\n" in (place / "status").read_text():
            variables = (place / "environ").read_bytes().split(b"\0")
            named = [text for text in variables if text.startswith(TEAM.encode())]
            found[int(named[0].partition(b"=")[2].split(b"/")[0])] = int(place.name)
    return found


# ---- the flag ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval", "--nproc", "0"), "--nproc 0: 1 to 256 processes are possible"),
        (("eval", "--nproc", "two"), "--nproc 'two' is not a number"),
        (("eval", "--nproc", "2", "--shard", "1/2"), "--nproc and --shard exclude each other"),
        (("certify", "--nproc", "2", "--shard", "1/2"), "--nproc and --shard exclude each other"),
        (("eval", "--nproc", "2", "--device", "cuda"), "--nproc 2: one process per GPU"),
    ],
)
def test_what_does_not_go(cli, model, words, told):
    answer = cli(*words, "--model", model)
    assert answer.code == 2 and told in answer.err and len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(("name", "stays"), [("", False), ("escalated", True)])
def test_rank_0_leaves_what_another_rank_is_writing(tmp_path, monkeypatch, name, stays):
    """It is the first in the main store only: the others wait for its run, and not in front of the audit."""

    def header(setting, model, plan, ids, alarms):
        return Header.of(plan, ids, model="", data="", code="", size=4)

    monkeypatch.setattr(robustcli.jobs.measure, "header_of", header)
    shards = Shards(lambda: tmp_path, None, lambda: None)
    opened = robustcli.jobs.measure._opener(None, None, shards, Console(quiet=True), Team(0, 2, tmp_path))
    half = tmp_path / name / ".tmp-12-0123abcd"
    half.parent.mkdir(exist_ok=True)
    half.touch()
    opened(EvalPlan(Ball("linf", 0.1), ()), [], torch.arange(8), name)
    assert half.exists() is stays


def test_merge_and_check_do_not_go_with_it(cli):
    assert "--merge does not go with --nproc" in cli("eval", "--merge", "a,b", "--nproc", "2").err
    assert "--check does not go with --nproc" in cli("certify", "--check", "a", "--nproc", "2").err


def test_the_plan_says_processes_and_shards(cli, model):
    plan = cli(*EVAL, "--model", model, "--nproc", "2", "--dry-run", "--json").document["plan"]
    assert plan["processes"] == "2 (threads each: 1)" and plan["shards"] == "15 of 4 images at most"
    plan = cli(*EVAL, "--model", model, "--dry-run", "--json").document["plan"]
    assert "processes" not in plan


# ---- who takes what ----------------------------------------------------------------------------------------


def test_turns_begin_long_and_end_short(tmp_path):
    team, there = Team(0, 2, tmp_path), set()
    turns = []
    for turn in team.shares(range(32), there.__contains__):
        turns.append(len(turn))
        there.update(turn)
    assert turns[:3] == [8, 6, 5] and turns[-1] == 1 and len(there) == 32


def its_run(team):
    return following().path


def its_data(team):
    team.await_first()


def its_shard(team):
    return list(team.shares([0], lambda number: False))


@pytest.mark.parametrize("wait", [its_run, its_data, its_shard])
def test_a_rank_waits_for_nobody_once_its_launcher_is_gone(tmp_path, wait):
    """Rank 0 was lost with it, or before it told anything; another process has the shard."""
    team = Team(1, 2, tmp_path)
    claims = Claims(Team(0, 2, tmp_path).round() / "claims")
    assert claims.take(0)
    read, write = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.environ |= {LAUNCHER: str(os.getpid()), RUN_FILE: str(tmp_path / "note")}
        if os.fork() == 0:
            signal.alarm(5)
            try:
                wait(team)
            except PeerError as error:
                os.write(write, error.what.encode())
            finally:
                os._exit(0)
        os.write(write, b"waits; ")
        time.sleep(100)
    os.close(write)
    assert os.read(read, 7) == b"waits; "
    time.sleep(0.1)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert os.read(read, 100) == b"the process that started this one is gone"
    os.close(read)
    claims.close()


def test_a_claim_dies_with_its_holder(tmp_path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"1" if Claims(tmp_path / "claims").take(3) else b"0")
        time.sleep(100)
    assert os.read(read, 1) == b"1"
    claims = Claims(tmp_path / "claims")
    assert not claims.take(3) and claims.take(4)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert claims.take(3)
    claims.close()

"""An evaluation that was killed, split or damaged ends with the verdicts of one that ran through."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from jobs_support import TINY

import robustcli.jobs.evaluate
import robustcli.jobs.train  # noqa: F401
from robustcli.cli.main import run
from robustcli.config.bind import Registries
from robustcli.proportions import clopper_pearson
from robustcli.records.read import read_rows
from robustcli.store.examples import read_examples
from robustcli.store.status import read_status

KILLS, SLOW_KILLS = 5, 20
LEARNED = (
    "objective=natural",
    "train.steps=150",
    "train.save_every=150",
    "train.validate_every=1",
    "train.optimizer.lr=0.1",
    "precision=fp32",
)
SHARDS = 13  # of 16 samples: 200 test images


def in_a_child(argv):
    """The exit code of a command run by a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            torch.set_num_threads(1)
            code = run([str(a) for a in argv])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that is right about two images of three; `run:PATH` of it."""
    Registries.discover()  # this, and what the next two lines import, here once instead of in every child
    torch.use_deterministic_algorithms(False)
    clopper_pearson(1, 2)
    path = tmp_path_factory.mktemp("trained") / "model"
    assert in_a_child(["train", *TINY, *LEARNED, "--out", path, "--quiet"]) == 0
    return f"run:{path}"


@pytest.fixture(scope="module")
def command(model):
    """The evaluation of this file; what is said later wins."""
    small = (
        "--attack",
        "fgsm,pgd",
        "--steps",
        "20",
        "--search",
        "fp32",
        "--batch-size",
        "16",
        "eval.shard_size=16",
        "eval.checks=0",
        "threads=1",
    )
    return ("eval", "--model", model, *small)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, command):
    """The run that nothing interrupted."""
    path = tmp_path_factory.mktemp("reference") / "run"
    assert in_a_child([*command, "--out", path, "--quiet"]) == 0
    robust = sum(correct and stages["pgd-20"] for _, correct, stages in verdicts(path).values())
    assert len(verdicts(path)) == 200 and len(files(path)) == SHARDS and 20 < robust < 100
    told = {row.id: row for row in read_rows(path / "samples.jsonl")}
    assert told.keys() == verdicts(path).keys()
    assert sum(row.correct and row.broken_by is None for row in told.values()) == robust
    return path


def verdicts(path):
    """{id: (label, clean verdict, {attack: verdict})} of a run directory."""
    found = {}
    for file in sorted((path / "shards").glob("*.jsonl")):
        head, *rows, _ = [json.loads(line) for line in file.read_text().splitlines()]
        assert head["rows"] == len(rows) and not found.keys() & {row["id"] for row in rows}
        found.update({row["id"]: (row["y"], row["correct"], row["stages"]) for row in rows})
    return found


def files(path):
    """{name: when it was written} of the shards that are there."""
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (path / "shards").glob("*.jsonl")
    }


def summary(path):
    """summary.json without what a clock decides."""
    document = json.loads((path / "summary.json").read_text())
    timing = {"seconds", "passes_per_sample"}  # a killed batch is paid for twice
    return {
        k: [{n: v for n, v in a.items() if n not in timing} for a in value] if k == "attacks" else value
        for k, value in document.items()
        if k not in {"seconds", "run"}
    }


def final(path):
    """Everything that must not depend on how the evaluation got there."""
    kinds = [json.loads(line)["kind"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    return verdicts(path), summary(path), kinds, (path / "samples.jsonl").read_text(), kept(path)


def kept(path):
    """The broken samples whose images a run has kept: eight, of which the samples say the same."""
    told = {row.id: row for row in read_rows(path / "samples.jsonl")}
    rows = read_examples(path / "examples.safetensors").rows
    for row in rows:
        assert (told[row.id].label, told[row.id].attacked) == (row.true, row.predicted)
        assert 0 < row.distance and float(abs(row.change).max()) == pytest.approx(row.distance, rel=1e-3)
    assert len(rows) == 8
    return [row.id for row in rows]


def finish(forked, tmp_path, *argv):
    wait, _ = forked(*argv)
    assert wait() == 0, (tmp_path / "err.txt").read_text()


def until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("nothing happened")
        time.sleep(0.0005)


def kill_after(forked, shards, delay, out, *argv):
    """Kill -9 `delay` seconds after this many shards are there; whether it was still running."""
    wait, pid = forked(*argv, "--out", out)
    end = []

    def there():
        done, status = os.waitpid(pid, os.WNOHANG) if not end else (0, 0)
        end.extend([os.waitstatus_to_exitcode(status)] if done else [])
        return end or len(files(out)) >= shards

    until(there)
    if not end:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        return wait() == -signal.SIGKILL
    raise AssertionError(f"ended with {end[0]} before shard {shards}")


def kill_and_resume(forked, tmp_path, command, reference, count, seed):
    expected, draw, killed = final(reference), random.Random(seed), 0
    for k in range(count):
        out, resume = tmp_path / f"run{k}", ()
        for shards in sorted(draw.sample(range(SHARDS), 2)):  # killed, resumed, killed again
            killed += kill_after(forked, shards, draw.uniform(0, 0.03), out, *command, *resume)
            assert read_status(out).get("state", "running") in ("running", "done")
            resume = ("--resume",)
        before, text = files(out), {name: (out / "shards" / name).read_bytes() for name in files(out)}
        finish(forked, tmp_path, *command, "--out", out, "--resume")
        assert final(out) == expected and not list((out / "shards").glob(".tmp-*"))
        assert {name: files(out)[name] for name in before} == before and all(
            (out / "shards" / name).read_bytes() == text[name] for name in text
        )
    return killed


@pytest.mark.parametrize("seed", range(KILLS))
def test_kill_9_at_random_points_then_resume_gives_the_same_verdicts(
    forked, tmp_path, command, reference, seed
):
    assert kill_and_resume(forked, tmp_path, command, reference, 1, seed) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_40_random_points(forked, tmp_path, command, reference, seed):
    assert kill_and_resume(forked, tmp_path, command, reference, SLOW_KILLS // 4, 100 + seed) >= 5


def test_a_signal_stops_soon_and_the_newest_run_of_the_name_goes_on(forked, tmp_path, command, reference):
    wait, pid = forked(*command, "--name", "mine")
    until(lambda: len(files(tmp_path / "runs" / "eval" / "mine-1")) >= 2)
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    code, path = wait(), tmp_path / "runs" / "eval" / "mine-1"
    assert time.monotonic() - began < 25  # 5 s, on a machine with five times the work
    if code != 0:  # it may have finished first
        assert (
            code == 143
            and read_status(path)["state"] == "preempted"
            and read_status(path)["resumable"] is True
            and "--resume" in (tmp_path / "err.txt").read_text()
        )
    before = files(path)
    finish(forked, tmp_path, *command, "--name", "mine", "--resume")
    assert final(path) == final(reference) and before.items() <= files(path).items()
    assert [entry.name for entry in path.parent.iterdir() if entry.is_dir() and not entry.is_symlink()] == [
        "mine-1"
    ]


def test_other_batch_sizes_go_on_to_the_same_plan_and_verdicts(forked, tmp_path, command):
    command = (*command, "eval.checks=8")
    finish(forked, tmp_path, *command, "--out", "reference")
    kill_after(forked, 3, 0, tmp_path / "run", *command)
    kill_after(forked, 7, 0, tmp_path / "run", *command, "--batch-size", 7, "--resume")
    before = files(tmp_path / "run")
    finish(forked, tmp_path, *command, "--batch-size", 64, "--out", "run", "--resume")
    assert (
        final(tmp_path / "run") == final(tmp_path / "reference")
        and before.items() <= files(tmp_path / "run").items()
    )
    assert 3 <= len(before) < SHARDS


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swapped"])
def test_a_damaged_shard_alone_is_measured_again(forked, tmp_path, command, reference, damage):
    shutil.copytree(reference, tmp_path / "run")
    expected, before, path = (
        final(tmp_path / "run"),
        files(tmp_path / "run"),
        tmp_path / "run" / "shards" / "0007.jsonl",
    )
    whole = path.read_bytes()
    {
        "flip": lambda: path.write_bytes(whole.replace(b'"correct": true', b'"correct": false', 1)),
        "cut": lambda: os.truncate(path, len(whole) // 2),
        "gone": path.unlink,
        "swapped": lambda: shutil.copy(path.with_name("0003.jsonl"), path),
    }[damage]()
    finish(forked, tmp_path, *command, "--out", "run", "--resume")
    assert final(tmp_path / "run") == expected
    after = files(tmp_path / "run")
    assert {name for name in after if after[name] != before[name]} == {"0007.jsonl"}
    assert ("shard 7 does not count" in (tmp_path / "err.txt").read_text()) == (damage != "gone")


@pytest.fixture(scope="module")
def halves(tmp_path_factory, command):
    """part1 and part2 hold half of the shards each."""
    path = tmp_path_factory.mktemp("halves")
    for i in (1, 2):
        assert in_a_child([*command, "--out", path / f"part{i}", "--shard", f"{i}/2", "--quiet"]) == 0
    return path


@pytest.fixture
def two_machines(tmp_path, halves):
    """A copy of both halves."""
    return shutil.copytree(halves, tmp_path, dirs_exist_ok=True)


def test_a_resumed_run_keeps_as_many_images_as_it_is_asked_for(cli, tmp_path, command, reference):
    run, known = tmp_path / "run", kept(reference)
    shutil.copytree(reference, run)
    again = (*command, "--out", "run", "--resume", "--no-report")
    assert cli(*again, "eval.examples=3").code == 0
    few = [row.id for row in read_examples(run / "examples.safetensors").rows]
    assert len(few) == 3 and set(few) < set(known)
    assert cli(*again, "eval.examples=0").code == 0
    assert not (run / "examples.safetensors").exists()


@pytest.mark.slow
def test_what_verdicts_depend_on_may_not_change(two_machines, cli, command, reference):
    path = two_machines / "part1"
    before = {
        str(file): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name not in ("status.json", "log.txt", ".lock")
    }
    more = {
        ("seed=1",): "seed: 0 there, 1 here",
        ("--eps", "4/255"): "ball.eps: 0.0313",
        ("--norm", "l2", "--eps", "0.5"): "ball.norm: linf there, l2 here",
        ("--steps", "21"): "attacks.1.label: pgd-20 there, pgd-21 here",
        ("--attack", "pgd"): "attacks: [fgsm, pgd-20] there, [pgd-20] here",
        ("--attack", "pgd,fgsm"): "attacks.0.label: fgsm there, pgd-20 here",
        ("--target", "random"): "target: null there, random here",
        ("--first", "100"): "n: 200 there, 100 here",
        ("data.split_seed=1",): "data: ",
        ("eval.split=train", "--first", "200"): " train here",
        ("--search", "bf16"): "search.dtype: torch.float32 there, torch.bfloat16 here",
        ("search.fold_bn=false",): "search.fold_bn: true there, false here",
        ("eval.shard_size=32",): "size: 16 there, 32 here",
    }
    for changed, named in more.items():
        answer = cli(*command, *changed, "--out", path, "--resume")
        line = answer.err.splitlines()[-1]
        assert (
            answer.code == 2
            and line.startswith("error[E-RESUME]: cannot resume another evaluation")
            and named in line
        ), (changed, answer.err)
    assert cli("train", *TINY, "--out", "other").code == 0
    answer = cli(*command, "--model", "run:other", "--out", path, "--resume")
    assert answer.code == 2 and "model: " in answer.err
    assert {str(file): file.read_bytes() for file in path.rglob("*") if str(file) in before} == before, (
        "a refused resume changed the run"
    )
    assert cli(*command, "--out", path, "--resume").code == 0 and final(path) == final(reference)


def test_machines_share_an_evaluation_and_merge_to_the_single_run(two_machines, cli, reference):
    parts = [two_machines / f"part{i}" for i in (1, 2)]
    assert [len(files(path)) for path in parts] == [7, 6]
    assert (
        verdicts(parts[0]) | verdicts(parts[1]) == verdicts(reference)
        and not verdicts(parts[0]).keys() & verdicts(parts[1]).keys()
    )
    for out, order in (("ab", parts), ("ba", parts[::-1]), ("aab", [parts[0], *parts])):
        answer = cli("eval", "--merge", ",".join(map(str, order)), "--out", out, "--json")
        assert answer.code == 0 and "partial" not in answer.document, answer.err
        merged = two_machines / out
        assert summary(merged) == summary(reference) and kept(merged) == kept(reference)
        names = {
            "config.resolved.yaml",
            "env.json",
            "metrics.jsonl",
            "results.csv",
            "summary.json",
            "summary.md",
            "status.json",
        }
        assert names <= {file.name for file in merged.iterdir()}
        rows, expected = (
            [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
            for path in (merged, reference)
        )
        timing = {"seconds", "passes_per_sample"}
        assert [{k: v for k, v in row.items() if k not in timing} for row in rows] == [
            {k: v for k, v in row.items() if k not in timing} for row in expected
        ]


def test_a_part_is_never_a_final_number(two_machines, cli, command, reference):
    answer = cli(*command, "--out", "again", "--shard", "1/2", "--fail-under", "robust_acc=0", "--json")
    assert (
        answer.code == 0
        and answer.document["partial"] == {"shards": 7, "of": 13}
        and not answer.document.get("gate")
    )
    assert json.loads((two_machines / "again" / "summary.json").read_text())["partial"] == {
        "shards": 7,
        "of": 13,
    }
    assert "partial 7/13" in (two_machines / "again" / "summary.md").read_text()
    merged = cli("eval", "--merge", "part2", "--out", "merged")
    assert merged.code == 0 and "partial 6/13" in merged.out
    assert cli(*command, "--out", "part1", "--resume").code == 0 and final(two_machines / "part1") == final(
        reference
    )
    assert "partial" not in (two_machines / "part1" / "summary.md").read_text()


def test_runs_that_contradict_each_other_or_have_nothing_in_common_are_not_merged(two_machines, cli, command):
    assert cli(*command, "seed=1", "--out", "other", "--shard", "2/2").code == 0
    answer = cli("eval", "--merge", "part1,other", "--out", "m1")
    assert answer.code == 2 and "seed: 0 there, 1 here" in answer.err and not (two_machines / "m1").exists()
    for runs in ("part1,nowhere", "", ",", "model"):
        answer = cli("eval", "--merge", runs, "--out", "m2")
        assert answer.code == 2 and not (two_machines / "m2").exists(), runs
    assert cli("eval", "--merge", "part1", "--out", "part1").code == 2


@pytest.mark.parametrize("text", ["2", "0/2", "3/2", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused_before_any_work(cli, tmp_path, command, text):
    answer = cli(*command, "--shard", text, "--out", "run")
    assert answer.code == 2 and "--shard" in answer.err and not (tmp_path / "run").exists()

"""`runs prune`: what could go, and nothing else."""

import os
import time

import pytest
from written_runs import CONFIG, samples, write_eval, write_run, write_train

from robustcli.jobs.evidence.pruning import runs_prune
from robustcli.store.lock import RunLock
from robustcli.terminal.console import Console

STEP = ("manifest.json", "model.safetensors")


def training(path, steps=(10, 20, 30), best=10, last=30, **more):
    """A finished training with checkpoints of 100 bytes."""
    write_train(path, (90, 50), **more)
    for step in steps:
        folder = path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for name in STEP:
            (folder / name).write_bytes(b"x" * 50)
    for tag, step in (("best", best), ("last", last)):
        (path / "checkpoints" / tag).write_text(f"step-{step:08d}\n")
    return path


def steps(path):
    return sorted(int(step.name[5:]) for step in (path / "checkpoints").glob("step-*"))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def prune(keep_best=False):
    """The document of `runs prune --yes` in the working directory."""
    return runs_prune(None, Console(quiet=True), keep_best=keep_best, yes=True)


def could_go(answer):
    return {(entry["run"], entry["what"]) for entry in answer.document["could_go"]}


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_without_yes_nothing_goes(cli, runs):
    training(runs / "train" / "t-1")
    before = snapshot(runs)
    answer = cli("runs", "prune", "--json")
    assert could_go(answer) == {("runs/train/t-1", "checkpoint step-00000020")}
    assert (answer.document["dry_run"], answer.document["bytes"]) == (True, 100)
    assert "--yes does it" in cli("runs", "prune").out and snapshot(runs) == before


def test_checkpoints_that_nothing_names_go(cli, runs):
    run = training(runs / "train" / "t-1")
    answer = cli("runs", "prune", "--yes", "--json")
    assert steps(run) == [10, 30] and answer.document["bytes"] == 100
    assert "freed 0 B" in cli("runs", "prune", "--yes").out


def test_keep_best_leaves_one_and_last_names_it(runs):
    run = training(runs / "train" / "t-1")
    assert prune(True)["bytes"] == 200
    assert steps(run) == [10] and (run / "checkpoints" / "last").read_text() == "step-00000010\n"


@pytest.mark.parametrize("state", ["running", "preempted", "failed"])
def test_a_training_that_may_go_on_keeps_its_checkpoints(runs, state):
    run = training(runs / "train" / "t-1", state=state, code=None)
    prune(True)
    assert steps(run) == [10, 20, 30]


def test_a_run_that_is_held_stays(runs):
    run = training(runs / "train" / "t-1")
    with RunLock(run):
        answer = prune()
        assert steps(run) == [10, 20, 30]
        assert "in use" in answer["kept"][0]["reason"] and answer["bytes"] == 0


@pytest.mark.parametrize(
    "refer",
    [
        lambda runs: (runs / "train" / "latest").symlink_to("t-1"),
        lambda runs: (runs / "train" / "latest").write_text("t-1\n"),
        lambda runs: made_from(runs, "run:runs/train/t-1"),
        lambda runs: made_from(runs, "run:./runs/train/t-1/checkpoints/best"),
        lambda runs: made_from(runs, f"run:{runs.resolve()}/train/t-1"),
        lambda runs: made_from(runs, "run:t-1"),  # as it was seen from runs/train
        lambda runs: made_from(runs, "small_cnn", weights="runs/train/t-1/checkpoints/best"),
        lambda runs: write_run(
            runs / "transfer" / "x-1", "transfer", document={"references": ["run:runs/train/t-1"]}
        ),
    ],
)
def test_a_run_that_something_refers_to_stays(runs, refer):
    run = training(runs / "train" / "t-1")
    refer(runs)
    answer = prune(True)
    assert steps(run) == [10, 20, 30]
    assert [entry["run"] for entry in answer["kept"]] == ["runs/train/t-1"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_part_of_all_runs_is_pruned_as_the_whole(runs, monkeypatch, elsewhere):
    run = training(runs / "train" / "t-1")
    made_from(runs, "run:runs/train/t-1/checkpoints/step-00000020")
    if elsewhere:
        (runs / "other").mkdir()
        monkeypatch.chdir(runs / "other")
    answer = runs_prune(runs / "train", Console(quiet=True), keep_best=True, yes=True)
    assert steps(run) == [10, 20, 30] and answer["kept"][0]["reason"] == "another run was made from it"


def made_from(runs, name, weights=None):
    config = {**CONFIG, "model": {"name": name, "weights": weights}}
    write_eval(runs / "eval" / "e-1", config=config)


def test_shards_go_where_the_numbers_are_made(runs):
    whole = write_eval(runs / "eval" / "whole-1", samples=samples(1))
    part = write_eval(runs / "eval" / "part-1", samples=samples(1))
    summary = (part / "summary.json").read_text()
    (part / "summary.json").write_text(summary[:-1] + ', "partial": {"shards": 1, "of": 2}}')
    killed = write_eval(runs / "eval" / "killed-1", state="running", code=None, samples=samples(1))
    for run in (whole, part, killed):
        (run / "shards").mkdir()
        (run / "shards" / "0000.jsonl").write_text("x" * 10)
        (run / "shards" / "header.json").write_text("{}")
    (whole / "shards" / "notes.txt").write_text("mine")
    assert prune()["bytes"] == 12
    assert [path.name for path in (whole / "shards").iterdir()] == ["notes.txt"]
    assert len(list((part / "shards").iterdir())) == len(list((killed / "shards").iterdir())) == 2


def test_a_run_without_a_result_goes_whole_and_what_is_yours_stays(runs):
    for name in ("gone-1", "mine-1"):
        run = write_run(runs / "eval" / name, "eval", state="failed", code=3)
        (run / "crash.log").write_text("Traceback (most recent call last)\n")
    (runs / "eval" / "mine-1" / "notes.txt").write_text("mine")
    done = write_eval(runs / "eval" / "done-1")
    prune()
    assert not (runs / "eval" / "gone-1").exists() and done.is_dir()
    assert [path.name for path in (runs / "eval" / "mine-1").iterdir()] == ["notes.txt"]


def test_what_is_yours_in_a_checkpoint_keeps_it(runs):
    run = training(runs / "train" / "t-1")
    (run / "checkpoints" / "step-00000020" / "notes.txt").write_text("mine")
    prune()
    assert steps(run) == [10, 20, 30]


def test_a_folder_that_lies_elsewhere_is_left_alone(runs, tmp_path):
    run = training(runs / "train" / "t-1")
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    prune(True)
    assert len(list((tmp_path / "disk").glob("step-*"))) == 3


def test_only_what_is_old(cli, runs):
    old, new = (training(runs / "train" / name) for name in ("old-1", "new-1"))
    long_ago = time.time() - 40 * 86400
    os.utime(old / "status.json", (long_ago, long_ago))
    cli("runs", "prune", "--older-than", "30d", "--yes")
    assert (steps(old), steps(new)) == ([10, 30], [10, 20, 30])


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1y", ""])
def test_an_age_that_is_none(cli, runs, text):
    answer = cli("runs", "prune", "--older-than", text)
    assert answer.code == 2 and "12h, 30d, 2w" in answer.err

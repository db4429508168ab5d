"""`runs ls`: all runs at a glance, and a leaderboard that ranks only what can be compared."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from written_runs import CONFIG, HASHES, certify_rows, write_eval, write_run, write_train

from robustcli.jobs.evidence.runs import runs_ls
from robustcli.terminal.console import Console

ENDED = ("failed-1", "killed-1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def many(tmp_path):
    """One run of several kinds below runs/."""
    runs = tmp_path / "runs"
    write_eval(runs / "eval" / "a-1", 90, 40)
    write_eval(runs / "eval" / "b-1", 80, 60, data="mnist")
    write_train(runs / "train" / "t-1", (80, 30), (90, 50), best=1)
    write_run(
        runs / "certify" / "c-1", "certify", certify_rows(), document={"verified": 0.5, "clean_acc": 0.9}
    )
    write_eval(runs / "eval" / "bad-1", reliability="invalid")
    write_run(runs / "eval" / "killed-1", "eval", state="running", code=None)
    write_run(runs / "eval" / "failed-1", "eval", state="failed", code=5)
    return runs


def rows(answer):
    return {row["name"]: row for row in answer.document["runs"]}


def test_every_run_has_its_line(cli, many):
    found = rows(cli("runs", "ls", "--json"))
    assert len(found) == 7
    a = found["a-1"]
    assert (a["verb"], a["state"], a["data"], a["model"]) == ("eval", "done", "digits", "small_cnn")
    assert (a["clean_acc"], a["robust_acc"], a["norm"], a["eps"]) == (0.9, 0.4, "linf", 0.1)
    assert a["attack"] == "pgd-20" and a["reliability"] == "ok"
    assert a["bytes"] == sum(path.stat().st_size for path in (many / "eval" / "a-1").iterdir())
    assert (found["t-1"]["robust_acc"], found["t-1"]["split"]) == (0.3, "validation")  # of the best one
    assert found["c-1"]["certified_acc"] == 0.5 and found["bad-1"]["reliability"] == "invalid"
    assert (found["killed-1"]["state"], found["failed-1"]["code"]) == ("killed", 5)


def test_the_table(cli, many):
    answer = cli("runs", "ls")
    assert answer.code == 0 and "7 runs in runs" in answer.out
    line = next(line for line in answer.out.splitlines() if "eval/a-1" in line)
    assert "90.0 %" in line and "40.0 %" in line and "linf:25.5/255 (0.1) pgd-20" in line
    assert "failed (5)" in answer.out


def test_a_run_that_somebody_holds_runs(cli, many):
    held = {"pid": os.getpid(), "host": os.uname().nodename, "started": ""}
    held["boot_id"] = open("/proc/sys/kernel/random/boot_id").read().strip()
    (many / "eval" / "killed-1" / ".lock").write_text(json.dumps(held))
    assert rows(cli("runs", "ls", "--json"))["killed-1"]["state"] == "running"


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"verb": "train"}, ["t-1"]),
        ({"data": "mnist"}, ["b-1"]),
        ({"data": "digits", "sort": "robust", "verb": "eval"}, ["a-1", "bad-1", *ENDED]),
        ({"sort": "name", "verb": "eval"}, ["a-1", "b-1", "bad-1", *ENDED]),
    ],
)
def test_filters_and_order(here, many, asked, names):
    found = runs_ls(None, Console(quiet=True), **asked)["runs"]
    assert [row["name"] for row in found] == names


def test_filters_are_flags(cli, many):
    words = ("--data", "digits", "--sort", "robust", "--verb", "eval")
    assert list(rows(cli("runs", "ls", *words, "--json"))) == ["a-1", "bad-1", *ENDED]


def board(by="robust_acc"):
    """The boards of runs/ in the working directory."""
    return runs_ls(None, Console(quiet=True), by=by)["leaderboard"]


def ranks(entry):
    return {run["name"]: run["rank"] for run in entry["runs"]}


def test_what_is_comparable_is_ranked_and_what_is_doubtful_is_not(cli, tmp_path):
    runs = tmp_path / "runs" / "eval"
    write_eval(runs / "low-1", robust=40)
    write_eval(runs / "high-1", robust=60)
    write_eval(runs / "same-1", robust=60)
    write_eval(runs / "suspect-1", robust=70, reliability="suspect")
    write_eval(runs / "invalid-1", robust=89, reliability="invalid")
    write_eval(runs / "stopped-1", robust=88, state="preempted", code=143)
    [only] = board()
    expected = {"suspect-1": 1, "high-1": 2, "same-1": 2, "low-1": 4, "invalid-1": None, "stopped-1": None}
    assert ranks(only) == expected and only["only_board_of_its_threat"]
    shown = cli("runs", "ls", "--leaderboard").out
    assert "suspect" in shown and "invalid" in shown and "partial" in shown
    assert "may differ by chance" in shown and "Not comparable" not in shown


@pytest.mark.parametrize(
    "other",
    [
        {"config": {**CONFIG, "attacks": [{"name": "pgd", "steps": 5}]}},
        {"n": 200, "clean": 180, "robust": 120},
        {"hashes": {**HASHES, "ids": "2" * 16}},
        {"hashes": {**HASHES, "data": "e" * 64}},
        {"config": {**CONFIG, "eval": {"target": 3}}},
    ],
)
def test_other_attacks_or_samples_stand_apart_and_it_is_said(here, capsys, tmp_path, other):
    write_eval(tmp_path / "runs" / "eval" / "a-1")
    write_eval(tmp_path / "runs" / "eval" / "b-1", **other)
    found = board()
    assert [list(ranks(entry).values()) for entry in found] == [[1], [1]]
    assert not any(entry["only_board_of_its_threat"] for entry in found)
    assert "Not comparable" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"eps": 0.2}, {"norm": "l2"}, {"data": "mnist"}, {"split": "val"}])
def test_another_threat_or_data_set_is_another_board(here, tmp_path, other):
    write_eval(tmp_path / "runs" / "eval" / "a-1")
    write_eval(tmp_path / "runs" / "eval" / "b-1", **other)
    assert [entry["only_board_of_its_threat"] for entry in board()] == [True, True]


def test_a_training_is_no_final_model(cli, tmp_path):
    write_train(tmp_path / "runs" / "train" / "t-1", (90, 50))
    assert "Validation numbers" in cli("runs", "ls", "--leaderboard").out
    assert board("clean_acc")[0]["runs"][0]["clean_acc"] == 0.9


def test_broken_and_foreign_directories_are_skipped_with_a_line(cli, many):
    (many / "eval" / "mine").mkdir()
    (many / "eval" / "mine" / "notes.txt").write_text("mine")
    (many / "eval" / "a-1" / "summary.json").write_text("{")
    (many / "train" / "t-1" / "summary.json").write_text('{"best": 3, "verb": "train"}')
    (many / "eval" / "b-1" / "run.json").write_text("[]")
    (many / "eval" / "link").symlink_to(many / "eval" / "b-1")
    answer = cli("runs", "ls", "--json")
    skipped = {entry["path"]: entry["reason"] for entry in answer.document["skipped"]}
    assert set(skipped) == {"runs/eval/mine", "runs/eval/a-1", "runs/train/t-1", "runs/eval/b-1"}
    assert answer.code == 0 and set(rows(answer)) == {"c-1", "bad-1", "killed-1", "failed-1"}
    assert "skipped runs/eval/mine: no run of robustcli" in answer.err


@pytest.mark.parametrize("flags", [(), ("--leaderboard",)])
@pytest.mark.parametrize(
    "alarms", [[{"name": "x"}], [{"name": "x", "level": "awful", "evidence": "", "remedy": ""}]]
)
def test_one_run_that_cannot_be_read_hides_no_other(cli, tmp_path, flags, alarms):
    for name, told in (("good-1", []), ("odd-1", alarms)):
        run = write_eval(tmp_path / "runs" / "eval" / name)
        document = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**document, "alarms": told}))
    answer = cli("runs", "ls", "--json", *flags)
    assert answer.code == 0 and set(rows(answer)) == {"good-1"}
    assert "an alarm without sense" in answer.document["skipped"][0]["reason"]


def test_no_runs(cli, tmp_path):
    answer = cli("runs", "ls")
    assert answer.code == 0 and answer.out == "no runs in runs\n"
    assert cli("runs", "ls", "nowhere").code == 2
    assert "no run" in cli("runs", "ls", "--leaderboard").out


def test_runs_inside_a_run_belong_to_it(cli, tmp_path):
    write_run(tmp_path / "runs" / "demo" / "d-1", "demo", document={"models": {}})
    write_train(tmp_path / "runs" / "demo" / "d-1" / "robust", (90, 50))
    assert list(rows(cli("runs", "ls", "--json"))) == ["d-1"]


def test_hundreds_of_runs_in_two_seconds(cli, tmp_path):
    first = write_eval(tmp_path / "runs" / "eval" / "r-0")
    (first / "samples.jsonl").write_text("not read\n")
    for k in range(1, 300):
        shutil.copytree(first, first.with_name(f"r-{k}"), copy_function=os.link)
    began = time.process_time()
    assert len(cli("runs", "ls", "--leaderboard", "--json").document["runs"]) == 300
    assert time.process_time() - began < 2


def test_a_list_imports_no_torch(tmp_path):
    write_eval(tmp_path / "runs" / "eval" / "a-1")
    code = (
        "import sys; from robustcli.cli.main import run; assert run(['runs', 'ls', '--leaderboard']) == 0\n"
        "assert not {'torch', 'scipy', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

"""`ball` as a list: what train and eval write of a union, and what refuses it."""

import json
import subprocess
import sys

import pytest
from commands import run_in
from jobs_support import TINY

BALLS = "ball=[{norm: linf, eps: 0.1}, {norm: l2, eps: 0.6}, {norm: l1, eps: 3}]"
NAMES = ["linf:0.1", "l2:0.6", "l1:3"]
NORM = "linf:0.1+l2:0.6+l1:3"
DATA = ("data.name=fake", "data.size=8")
SMALL = (*DATA, "attacks.0.steps=3", "eval.checks=0", "eval.n=24", "eval.shard_size=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was trained in three balls, and its evaluation in the same ones."""
    place = tmp_path_factory.mktemp("union")
    trained = ("train", *TINY, BALLS, "train.steps=6", "--out", "run", "--no-report", "--quiet")
    measured = ("eval", "--model", "run:run", *SMALL, BALLS, "--out", "whole", "--quiet", "--json")
    return run_in(place, trained, measured)


def accuracies(document):
    return {threat["name"]: threat["robust_acc"] for threat in document["threats"]}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_training_records_each_ball_and_chooses_by_all(folder):
    last = rows(folder / "run" / "metrics.jsonl")[-1]
    assert last["norm"] == NORM and last["eps"] == 0
    assert sorted(last["threats"]) == sorted(NAMES)
    assert last["robust_acc"] <= min(last["threats"].values())
    # Two steps of PGD in each ball (4 passes each), a look at each point, and the outer step (3).
    assert last["passes_per_sample"] == 3 * 4 + 3 + 3


def test_an_evaluation_has_a_verdict_in_each_ball_and_in_all(folder):
    """Samples, rows and the document say the same, and the union is the AND of the balls."""
    document = json.loads((folder / "whole" / "summary.json").read_text())
    samples, records = rows(folder / "whole" / "samples.jsonl"), rows(folder / "whole" / "metrics.jsonl")
    standing = [s["clean"] == s["label"] and s["broken_by"] is None for s in samples]
    for sample in samples:
        assert (sample["broken_by"] is None) == (not any(sample["threats"].values()))
    assert document["norm"] == NORM and document["robust_acc"] == sum(standing) / len(samples)
    assert [threat["name"] for threat in document["threats"]] == NAMES
    for threat in document["threats"]:
        held = [s["clean"] == s["label"] and s["threats"][threat["name"]] is None for s in samples]
        assert threat["robust_acc"] == sum(held) / len(held) >= document["robust_acc"]
    assert [row["kind"] for row in records] == ["clean", *["attack", "threat"] * 3, "worst"]
    assert [row["label"] for row in records if row["kind"] == "attack"] == [f"pgd-3@{name}" for name in NAMES]
    page = (folder / "whole" / "summary.md").read_text()
    assert "verdict by ball" in page and "(in all of linf:0.1, l2:0.6, l1:3)." in page


def test_it_goes_on_after_a_kill_and_parts_are_merged(folder, cli, monkeypatch):
    """A lost shard of one ball alone is measured again; two halves make the whole."""
    monkeypatch.chdir(folder)
    whole = json.loads((folder / "whole" / "summary.json").read_text())
    lost = folder / "whole" / "shards" / "l2" / "0001.jsonl"
    before = {path: path.stat().st_mtime_ns for path in (folder / "whole" / "shards").rglob("0*.jsonl")}
    lost.unlink()
    same = ("eval", "--model", "run:run", *SMALL, BALLS, "--quiet", "--json", "--no-report")
    again = cli(*same, "--out", "whole", "--resume")
    assert again.code == 0 and again.document["robust_acc"] == whole["robust_acc"]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] != after[path]] == [lost]
    changed = [word.replace("eps: 3}", "eps: 4}") for word in same]
    refused = cli(*changed, "--out", "whole", "--resume")
    assert refused.code == 2 and "cannot resume another evaluation" in refused.err
    for i in (1, 2):
        assert cli(*same, "--shard", f"{i}/2", "--out", f"half{i}").code == 0
    merged = cli("eval", "--merge", "half1,half2", "--out", "both", "--quiet", "--json", "--no-report")
    for key in ("robust_acc", "clean_acc", "norm", "n"):
        assert merged.document[key] == whole[key]
    assert accuracies(merged.document) == accuracies(whole)


@pytest.mark.slow
def test_two_processes_measure_a_union_as_one_does(folder):
    words = ["eval", "--model", "run:run", *SMALL, BALLS, "--nproc", "2", "--out", "two", "--quiet", "--json"]
    command = [sys.executable, "-m", "robustcli", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = json.loads((folder / "whole" / "summary.json").read_text())
    assert accuracies(json.loads(done.stdout)) == accuracies(whole)
    assert rows(folder / "two" / "samples.jsonl") == rows(folder / "whole" / "samples.jsonl")


def test_a_file_has_no_ball(folder, cli, monkeypatch):
    monkeypatch.chdir(folder)
    written = cli("export", "--model", "run:run", *DATA, BALLS, "--out", "files", "--json")
    assert written.code == 0, written.err
    assert len(written.document["classes"]) == 10


def test_the_gate_judges_the_union_and_each_ball(folder, cli, monkeypatch):
    monkeypatch.chdir(folder)
    values = accuracies(json.loads((folder / "whole" / "summary.json").read_text()))
    asked = ("thresholds.robust_acc@union.min=0", "thresholds.robust_acc@l2:0.6.min=0")
    judged = cli("gate", "whole", *asked, "--json")
    assert judged.code == 0, judged.err
    found = {each["metric"]: each["value"] for each in judged.document["thresholds"]}
    assert found["robust_acc@l2:0.6"] == values["l2:0.6"]
    absent = cli("gate", "whole", "thresholds.robust_acc@l2:0.7.min=0", "--json")
    assert absent.code == 2 and "it has union, linf:0.1, l2:0.6, l1:3" in absent.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("attack",), "this verb works in one ball"),
        (("certify",), "this verb works in one ball"),
        (("bench",), "this verb works in one ball"),
        (("transfer", "--models", "run:run,run:run"), "one ball"),
        (("guard", "fit", "defences=[energy]"), "this verb works in one ball"),
        (("eval", "--sweep", "eps=0.1,0.2"), "--sweep works in one ball"),
        (("eval", "attacks=[spatial]"), "has no ball"),
        (("eval", "attacks.0.step_size=0.01"), "several balls have no step size in common"),
        (("train", "adversary.step_size=0.01"), "several balls have no step size in common"),
        (("train", "adversary.start=bernoulli"), "bernoulli is for linf, the ball is l2"),
        (("eval", "attacks.0.start=bernoulli"), "bernoulli is for linf, the ball is l2"),
        (("train", "train.step=free"), "the free step runs no attack"),
        (("train", "regularizers=[gradalign]"), "gradalign looks around in one ball"),
    ],
)
def test_what_needs_one_ball_is_refused_before_any_work(folder, cli, monkeypatch, words, told):
    monkeypatch.chdir(folder)
    model = () if words[0] in ("train", "bench", "transfer") else ("--model", "run:run")
    answer = cli(*words, *model, *DATA, BALLS)
    assert answer.code == 2 and told in answer.err, (answer.code, answer.err)


def test_a_norm_on_the_command_line_chooses_one_ball(folder, cli, monkeypatch):
    """The radius is that of the chosen ball; with --eps another one."""
    monkeypatch.chdir(folder)
    words = ("eval", "--model", "run:run", *SMALL, "--norm", "l2", "--dry-run", "--json")
    assert cli(*words).document["plan"]["ball"] == "l2 0.6"
    assert cli(*words, "--eps", "0.3").document["plan"]["ball"] == "l2 0.3"
    unclear = cli("eval", "--model", "run:run", *SMALL, "--eps", "0.3")
    assert unclear.code == 2 and "ball is a list of 3: write ball.0.eps" in unclear.err
    union = cli(*words[:-4], "--dry-run", "--json").document["plan"]
    assert union["ball"] == "linf 25.5/255 (0.1) and l2 0.6 and l1 3"
    assert union["passes_per_image"] == 3 * cli(*words).document["plan"]["passes_per_image"]

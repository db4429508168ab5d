"""`robustcli guard eval` from the shell's side: document, records, table, picture, cost, what it refuses."""

import csv

import pytest

from robustcli.records.guard import VIEWS, GuardCurveRow, GuardRow, GuardSampleRow
from robustcli.records.read import read_rows

SMALL = (
    *("--model", "small_cnn", "model.widths=[4]", "eval.checks=0", "--n", "16", "--eps", "0.1"),
    "attacks=[{name: pgd, steps: 3}]",
)
BITS = "defences=[{name: bit_depth, bits: 3}]"
KEYS = {"fpr", "clean_rejected", "auroc", *VIEWS, "robust_acc", "clean_acc", "intervals", "reliability", "n"}


@pytest.fixture
def voters(cli):
    """Two networks that were hardly trained, and disagree."""
    for seed in (0, 1):
        words = ("train.steps=30", "train.val_n=16", f"seed={seed}", "--out", f"net{seed}", "threads=1")
        assert cli("train", "objective=natural", "model.widths=[4]", *words).code == 0
    return "defences=[{name: ensemble, members: ['run:net1'], rule: abstain, quorum: 2}]"


def test_document_records_table_and_picture_have_all_three_numbers(voters, cli, tmp_path):
    words = ("--model", "run:net0", voters, "eval.checks=0", "--n", "16", "--eps", "0.05")
    answer = cli("guard", "eval", *words, "attacks=[{name: pgd, steps: 3}]", "--json")
    document = answer.document
    assert answer.code == 0 and document["verb"] == "guard eval" and KEYS <= set(document)
    run = tmp_path / document["run"]
    rows = read_rows(run / "guard.jsonl")  # reads each back, and compares it with its counts
    (row,), curves, samples = (
        [r for r in rows if isinstance(r, kind)] for kind in (GuardRow, GuardCurveRow, GuardSampleRow)
    )
    for view in VIEWS:
        standing = sum(getattr(sample, view) for sample in samples)
        assert document[view]["robust_acc"] == standing / 16 == row.standing(view).value
        low, high = document[view]["interval"]
        assert low <= document[view]["robust_acc"] <= high
    assert document["robust_acc"] == document["adaptive"]["robust_acc"]
    assert document["clean_rejected"]["rate"] == sum(sample.rejected for sample in samples) / 16 > 0
    assert {(curve.score, curve.points) for curve in curves} == {
        (score, view) for score in ("ensemble", "excess") for view in VIEWS[1:]
    }
    summary = (run / "summary.md").read_text()
    assert all(f" {view} |" in summary for view in VIEWS) and document["verdict"] in summary
    with (run / "plots" / "guard.csv").open() as file:
        drawn = {line["view"]: float(line["accuracy"]) for line in csv.DictReader(file)}
    assert drawn == {view: document[view]["robust_acc"] for view in VIEWS}
    assert (run / "plots" / "guard.png").is_file() and (run / "plots" / "guard_roc.png").is_file()


def test_the_cost_of_all_parts_is_told_before_and_nothing_is_written(cli, tmp_path):
    answer = cli("guard", "eval", *SMALL, BITS, "--dry-run", "--json")
    plan = answer.document["plan"]
    assert answer.code == 0 and not (tmp_path / "runs").exists()
    assert {"bare", "oblivious points", "adaptive", "sanity tests"} <= set(plan["parts"])
    assert plan["seconds"] == pytest.approx(sum(part["seconds"] for part in plan["parts"].values()))
    assert plan["adaptive_attacks"] == ["transfer", "pgd-3", "matching", "apgd-margin", "square"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("defences=[]",), "the model has no defences"),
        ((BITS, "eval.target=3"), "eval.target"),
        ((BITS, "eval.sweep=eps=0..8/255"), "eval.sweep"),
        ((BITS, "attacks=[spatial]"), "spatial leaves it"),
    ],
)
def test_what_cannot_be_measured_is_one_line(cli, tmp_path, words, said):
    answer = cli("guard", "eval", *SMALL, *words)
    assert answer.code == 2 and said in answer.err, answer.err
    assert not list((tmp_path / "runs").rglob("guard.jsonl"))

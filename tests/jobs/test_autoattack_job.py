"""AutoAttack, alarms and their exits through the command line, on a tiny model."""

import json
import os

import pytest
from jobs_support import TINY

SMALL = ("--n", "24", "--search", "fp32", "eval.checks=8", "threads=1")


@pytest.fixture
def model(cli):
    assert cli("train", *TINY, "--out", "model").code == 0
    return "run:model"


def test_rapid_says_rapid_wherever_its_number_stands(cli, model):
    answer = cli(
        "eval",
        "--model",
        model,
        *SMALL,
        "--attack",
        "autoattack:rapid",
        "--eps",
        "2/255",
        "--out",
        "out",
        "--json",
    )
    assert answer.code == 0 and all(
        attack["name"].startswith("rapid:") for attack in answer.document["attacks"]
    )
    rows = [json.loads(line) for line in open("out/metrics.jsonl")]
    audit = answer.document["audit"]
    assert (
        set(audit) == {"n", "fallen", "bound", "confidence", "escalated"}
        and audit == rows[-1]["audit"]
        and audit["n"] > 0
    )
    assert (
        rows[-1]["label"] == f"all attacks (rapid, audit {audit['fallen']} of {audit['n']})"
        and "rapid" in open("out/summary.md").read()
    )
    assert answer.document["attacks"][-1]["name"] == "rapid:audit"
    assert (
        answer.document["robust_acc"]
        == rows[-1]["robust_acc"]
        == answer.document["attacks"][-1]["robust_acc"]
    )


RAPID = ("attacks=[{name: autoattack, version: rapid, audit: 2}]", "--eps", "1/255", "eval.checks=0")


@pytest.mark.slow
def test_an_audit_that_is_turned_off_says_so(cli, model):
    answer = cli(
        "eval",
        "--model",
        model,
        *SMALL,
        "attacks=[{name: autoattack, version: rapid, audit: 0}]",
        "--eps",
        "1/255",
        "--out",
        "out",
    )
    assert answer.code == 0 and "rapid, not audited" in answer.out and "rapid:audit" not in answer.out
    again = cli(
        "eval",
        "--model",
        model,
        *SMALL,
        "attacks=[{name: autoattack, version: rapid, audit: 0}]",
        "--eps",
        "1/255",
        "--json",
    )
    assert again.document["audit"] == {
        "n": 0,
        "fallen": 0,
        "bound": again.document["robust_acc"],
        "confidence": 0.95,
        "escalated": False,
    }


@pytest.mark.slow
def test_parts_are_audited_and_their_merger_adds_them_up(cli, model):
    whole = cli("eval", "--model", model, *SMALL, *RAPID, "eval.shard_size=12", "--json").document
    for k in (1, 2):
        part = cli(
            "eval",
            "--model",
            model,
            *SMALL,
            *RAPID,
            "eval.shard_size=12",
            "--shard",
            f"{k}/2",
            "--out",
            f"part{k}",
            "--json",
        )
        assert part.code == 0 and part.document["audit"]["n"] >= min(
            2, round(12 * part.document["robust_acc"])
        )
    merged = cli("eval", "--merge", "part1,part2", "--out", "both", "--json").document
    assert (
        merged["n"] == whole["n"]
        and merged["audit"]["n"] >= whole["audit"]["n"]
        and not merged["audit"]["escalated"]
    )
    assert merged["robust_acc"] <= whole["robust_acc"] + 1e-9
    os.remove("part2/shards/audit.json")
    less = cli("eval", "--merge", "part1,part2", "--out", "less", "--json").document
    assert less["audit"]["n"] < merged["audit"]["n"]


@pytest.mark.slow
def test_an_evaluation_that_escalated_goes_on_where_it_was_killed(cli, model, monkeypatch):
    """Two falls run AutoAttack standard on the survivors, in its own shards.

    A second run measures none of them again.
    """
    monkeypatch.setattr("robustcli.evaluation.audit.LIMIT", 0)  # as if two had fallen
    command = ("eval", "--model", model, *SMALL, *RAPID, "--out", "out", "--json")
    first = cli(*command)
    names = [attack["name"] for attack in first.document["attacks"]]
    assert (
        first.code == 0
        and names[-6:] == ["rapid:audit", "apgd-ce", "apgd-t", "fab-t", "square", "apgd-wide"]
        and first.document["audit"]["escalated"]
    )
    assert "all attacks (rapid, escalated)" in open("out/summary.md").read() and os.path.exists(
        "out/shards/escalated/0000.jsonl"
    )
    began = os.stat("out/shards/escalated/0000.jsonl").st_mtime_ns
    again = cli(*command, "--resume")
    assert (
        again.document["robust_acc"] == first.document["robust_acc"]
        and os.stat("out/shards/escalated/0000.jsonl").st_mtime_ns == began
    )


def test_corruptions_stand_beside_the_ball(cli, model):
    answer = cli(
        "eval",
        "--model",
        model,
        *SMALL,
        "attacks=[{name: corruption, type: contrast, severity: 5}, pgd]",
        "--eps",
        "1/255",
        "--json",
    )
    labels = [attack["name"] for attack in answer.document["attacks"]]
    assert (
        labels == ["corruption-contrast-5", "pgd-10"]
        and answer.document["robust_acc"] == answer.document["attacks"][1]["robust_acc"]
    )


def test_strict_exits_10_and_keeps_the_run(cli, model, tmp_path):
    (tmp_path / "soft.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef soft(num_classes=10):\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(1))\n"
    )
    argv = ("eval", "--plugin", "soft.py:soft", "--data", "digits", "--eps", "0.1", *SMALL, "--steps", "3")
    lax, strict = cli(*argv, "--json"), cli(*argv, "--strict", "--out", "kept")
    assert (
        lax.code == 0
        and lax.document["reliability"] == "suspect"
        and "softmax-output" in [a["name"] for a in lax.document["alarms"]]
    )
    assert (
        strict.code == 10
        and "error[E-UNRELIABLE]" in strict.err
        and json.load(open("kept/summary.json"))["reliability"] == "suspect"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--attack", "autoattack:fast"), "version"),
        (("--attack", "autoatack"), "unknown attack"),
        (("attacks=[{name: autoattack, versions: plus}]",), "did you mean 'version'"),
        (("attacks=[{name: cw}]", "--norm", "l1", "--eps", "1"), "cw"),
        (("--attack", "autoattack", "--norm", "l0"), "ensemble 'autoattack' works for linf, l2, l1"),
        (("--attack", "autoattack:rapid", "--norm", "l0"), "l0 is searched by "),
        (("--attack", "pgd", "--norm", "l0", "--eps", "65"), "images of 8 x 8 have 64 pixels"),
        (("attacks=[{name: autoattack, version: rapid, audit: -1}]",), "audit"),
        (("--cross-check", "foolbox"), "known: torchattacks"),
        (("--shard", "5/4"), "5/4"),
        (("--surrogate", "run:nowhere"), "nowhere"),
        (("--attack-plugin", "nowhere.py:f"), "nowhere.py"),
    ],
)
def test_one_line_for_what_cannot_be(cli, model, argv, words):
    answer = cli("eval", "--model", model, *SMALL, *argv)
    errors = [line for line in answer.err.splitlines() if line.startswith("error[")]
    assert answer.code in (2, 4) and len(errors) == 1 and words in errors[0], answer.err


def test_a_run_is_measured_under_l0_in_whole_pixels_and_its_own_radius_does_not_stay(cli, model):
    """Trap: the radius of the training, 0.1 under linf, would be a tenth of a pixel."""
    argv = ("--norm", "l0", "--attack", "pgd:steps=5", "--out", "few")
    answer = cli("eval", "--model", model, *SMALL, *argv)
    assert answer.code == 0 and "l0, eps 5 px, the preset of fake" in answer.err, answer.err
    worst = [row for row in map(json.loads, open("few/metrics.jsonl")) if row.get("kind") == "worst"]
    assert [(row["norm"], row["eps"]) for row in worst] == [("l0", 5.0)] and "5 px" in answer.out


def test_a_targeted_attack_is_scored_as_targeted_after_the_round_trip_too(cli, model):
    answer = cli(
        "attack",
        "--model",
        model,
        "--n",
        "16",
        "--search",
        "fp32",
        "eval.checks=0",
        "--target",
        "random",
        "--steps",
        "3",
        "--eps",
        "1/255",
        "--json",
    )
    assert (
        answer.code == 0
        and abs(answer.document["robust_acc_8bit"] - answer.document["robust_acc_float"]) <= 1 / 16
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--target", "99"), "target 99"),
        (("--shard", "2/2", "--sweep", "steps=1,2"), "whole evaluation"),
        (("--shard", "3/3", "eval.shard_size=64"), "only 1 shards"),
    ],
)
def test_what_cannot_be_is_found_before_the_run_directory_is_made(cli, model, argv, words, tmp_path):
    answer = cli("eval", "--model", model, *SMALL, *argv, "--out", "never")
    assert answer.code == 2 and words in answer.err and not (tmp_path / "never").exists()


def test_a_merge_takes_its_gate_from_the_command_line_and_nothing_else(cli, model):
    parts = [
        (
            "eval",
            "--model",
            model,
            *SMALL,
            "eval.shard_size=12",
            "--shard",
            f"{k}/2",
            "--out",
            f"part{k}",
            "--fail-under",
            "clean_acc=0",
        )
        for k in (1, 2)
    ]
    assert [cli(*part).code for part in parts] == [0, 0]
    assert cli("eval", "--merge", "part1,part2", "--out", "whole").code == 0
    failed = cli("eval", "--merge", "part2,part1", "--out", "strict", "--fail-under", "robust_acc=1")
    assert failed.code == 1 and "gate not met" in failed.err
    wrong = cli("eval", "--merge", "part1,part2", "--attack", "pgd")
    assert wrong.code == 2 and "--merge does not go with --attack" in wrong.err

"""Training on bounds from the command line: what is refused, first weights, schedules, the verified best."""

import json
import os
import signal

import pytest
import torch
from jobs_support import all_same, final_state, same

from robustcli.reporting.pictures import training
from robustcli.store.retention import resolve_checkpoint
from robustcli.training.runner import StepRunner

TINY = (
    "data.name=fake", "data.size=8", "objective=ibp",
    "ball.eps=0.1", "train.batch_size=16", "train.steps=6", "train.save_every=2",
    "train.validate_every=0.05", "train.val_n=16", "train.val_attack.steps=2", "threads=1",
    "train.optimizer={name: adamw, lr: 1e-2}", "train.init=ibp",
    "train.curriculum={eps_start: 0, eps_from: 0.2, eps_until: 0.8, eps_shape: smoothed}",
)  # fmt: skip
OURS = (*TINY, "model={name: conv_small, widths: [4], strides: [2], hidden: [16]}")
NET = """
import torch
from torch import nn

def soft():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Softmax(1), nn.Linear(16, 10))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
"""


@pytest.fixture(autouse=True)
def without_a_picture(monkeypatch):
    """It takes longer than the training."""
    monkeypatch.setattr(training, "training_curves", lambda *given, **options: None)


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("--plugin", "net.py:soft"), ("nn.Softmax has no bounds", "net.py", "return logits")),
        (("ball.norm=l2", "ball.eps=0.5"), ("objective 'ibp' works for linf", "ball.norm")),
        (("train.step=free",), ("ibp bounds the network around clean images",)),
        (("train.curriculum.eps_from=0.9",), ("eps_from must be in [0, eps_until 0.8)",)),
        (
            (
                "train.curriculum.eps_until=0",
                "train.curriculum.eps_start=1",
            ),
            ("eps_from must be in",),
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_first_step(cli, tmp_path, settings, words):
    (tmp_path / "net.py").write_text(NET)
    answer = cli("train", *(TINY if "--plugin" in settings else OURS), *settings)
    assert answer.code == 2 and answer.err.count("error[") == 1, answer.err
    assert not [word for word in words if word not in answer.err], answer.err
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.jsonl"))


def interrupting(step):
    """`StepRunner.__call__` with a SIGTERM before this step."""
    original = StepRunner.__call__

    def call(self, images, epoch, t, progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images, epoch, t, progress)

    return call


def test_a_run_records_what_is_proven_and_resumes_bitwise(cli, tmp_path, monkeypatch):
    """The ramp is in its middle when the run is stopped; the first weights are not drawn again."""
    first = cli("train", *OURS, "out=whole", "--json")
    assert first.code == 0 and "robustcli certify --model run:whole" in first.err
    with monkeypatch.context() as patch:
        patch.setattr(StepRunner, "__call__", interrupting(3))
        assert cli("train", *OURS, "out=parts").code == 143
    assert cli("train", *OURS, "out=parts", "--resume").code == 0
    all_same(tmp_path / "parts", tmp_path / "whole")
    measured = rows(tmp_path / "whole")
    assert len(measured) == 2 and all(row["verified_acc"] <= row["robust_acc"] for row in measured)
    assert set(measured[-1]["parts"]) == {"natural", "bounds"}
    names = ("verified_acc", "robust_acc", "clean_acc")
    best = max(measured, key=lambda row: (*(row[name] for name in names), -row["step"]))
    assert json.loads(first.out)["best"]["verified_acc"] == best["verified_acc"]
    chosen = resolve_checkpoint(tmp_path / "whole" / "checkpoints", "best")
    assert chosen.name == f"step-{best['step']:08}"


def test_first_weights_belong_to_the_seed_and_never_to_trained_ones(cli, tmp_path):
    assert cli("train", *OURS, "out=a", "train.steps=1").code == 0
    assert cli("train", *OURS, "out=b", "train.steps=1").code == 0
    assert cli("train", *OURS, "out=c", "train.steps=1", "train.init=own").code == 0
    a, b, c = (final_state(tmp_path / name) for name in "abc")
    same(a, b)
    first = [run["model"]["backbone.body.0.weight"] for run in (a, c)]
    assert not torch.equal(*first)
    answer = cli("train", *TINY, "model=run:a")
    assert answer.code == 2 and "train.init: ibp would overwrite the weights of run:a" in answer.err
    answer = cli("train", *TINY, "model=run:a", "train.init=own", "out=d")
    assert answer.code == 0, answer.err


def test_a_run_is_measured_in_any_ball_and_trained_in_its_own(cli, tmp_path):
    assert cli("train", *OURS, "out=a", "train.steps=1").code == 0
    other = ("--model", "run:a", "--norm", "l2", "--eps", "0.5")
    answer = cli("eval", *other, "--n", "8", "--steps", "2")
    assert answer.code == 0, answer.err
    answer = cli("train", *TINY, "model=run:a", "train.init=own", "ball.norm=l2", "ball.eps=0.5")
    assert answer.code == 2 and "objective 'ibp' works for linf" in answer.err


def test_a_network_of_your_own_is_told_that_its_weights_are_drawn_anew(cli, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    answer = cli("train", *TINY, "--plugin", "net.py:plain", "train.steps=1")
    assert answer.code == 0 and "the weights of 1 layers of" in answer.err, answer.err


@pytest.mark.parametrize("objective", ["mtl_ibp", "sabr"])
def test_an_attack_and_bounds_together(cli, tmp_path, objective):
    answer = cli("train", *OURS, f"objective={objective}", "adversary.steps=2", "out=run", "train.steps=3",
                 "data.cutmix={alpha: 1.0}", "precision=bf16", "train.micro_batch=8",
                 "train.hooks=[ema, awp]")  # fmt: skip
    assert answer.code == 0, answer.err
    assert "bounds" in rows(tmp_path / "run")[-1]["parts"]


def test_dry_run_counts_the_passes(cli):
    answer = cli("train", *OURS, "--dry-run", "--json")
    assert answer.code == 0 and json.loads(answer.out)["plan"]["passes_per_image"] == 9

"""What a training says of itself when it learns, when it does not, and of a best model at chance."""

import json

import numpy as np
import pytest
import torch

import robustcli
from robustcli.jobs.train import next_steps
from robustcli.reporting.pictures import training
from robustcli.terminal.console import Console
from robustcli.training.trainplan import TrainPlan
from robustcli.training.validation import Validation

MLP = ("smoke/digits", "model=mlp", "train.validate_every=0.5", "train.steps=50", "train.val_attack.steps=1")
SAID = "nothing is learnt"


@pytest.fixture(autouse=True)
def without_a_picture(monkeypatch):
    """It takes longer than the training."""
    monkeypatch.setattr(training, "training_curves", lambda *given, **options: None)


def trained(cli, *settings):
    """(document, what was said) of one training."""
    answer = cli("train", *settings, "--json", "--out", "run", "--overwrite")
    assert answer.code == 0, answer.err
    return json.loads(answer.out), answer.err


@pytest.mark.parametrize(
    "settings",
    [("smoke/digits",), ("smoke/l2", "train.validate_every=0.2"), MLP],
    ids=["digits", "l2", "mlp"],
)
def test_a_short_run_that_learns_is_left_in_peace(cli, settings):
    document, said = trained(cli, *settings)
    assert not any(SAID in alarm for alarm in document["alarms"]) and SAID not in said


def shuffled(path):
    """Digits with the labels of other digits."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(0)
    pixels = (digits.images * 255 / 16).astype(np.uint8)[:, None]
    np.savez(path, x=pixels, y=rng.permutation(digits.target))


FP32 = ("precision=fp32", "search.precision=fp32")  # bf16 ends where the loss is no number any more
FAILING = {
    "lr too high": (("train.optimizer.lr=30", *FP32), "lower lr"),
    "a dead network": (("ball.eps=0.9", "--allow-large-eps", "train.optimizer.lr=1"), "class frequencies"),
    "labels of others": (("data.name=npz:digits.npz", "data.augment=none"), "compare the labels"),
}


@pytest.mark.parametrize(("settings", "why"), FAILING.values(), ids=FAILING)
def test_a_run_that_learns_nothing_says_so_and_why(cli, settings, why, tmp_path):
    shuffled(tmp_path / "digits.npz")
    document, said = trained(cli, *MLP, *settings)
    (alarm,) = (alarm for alarm in document["alarms"] if SAID in alarm)
    assert why in alarm and alarm in said


def test_a_best_model_at_chance_is_said_in_the_table_in_eval_and_in_python(cli, tmp_path):
    shuffled(tmp_path / "digits.npz")
    settings = (*MLP, "data.name=npz:digits.npz", "data.augment=none", "train.steps=20")
    answer = cli("train", *settings, "--out", "model", "--overwrite")
    (line,) = (line for line in answer.out.splitlines() if "Best: clean accuracy" in line)
    assert "] is not surely above chance: one answer for all images reaches" in line
    answer = cli("eval", "--model", "run:model", "--n", 60, "eval.checks=0", "attacks=[fgsm]", "--json")
    (note,) = json.loads(answer.out)["notes"]
    assert note.startswith("clean accuracy") and "is not surely above chance" in note
    shown = cli("eval", "--model", "run:model", "--n", 60, "eval.checks=0", "attacks=[fgsm]").out
    assert "Clean accuracy " in shown and "is not surely above chance" in shown
    model, data = robustcli.load_model("run:model"), np.load(tmp_path / "digits.npz")
    x, y = torch.from_numpy(data["x"][:60]).float() / 255, torch.from_numpy(data["y"][:60])
    verdict = robustcli.evaluate(model, x, y, eps=0.1, attack="fgsm", checks=0)
    assert "is not surely above chance" in verdict.at_chance and verdict.reliability in ("ok", "suspect")
    sure = robustcli.evaluate(model, x, model(x).argmax(1), eps=0.0001, attack="fgsm", checks=0)
    assert sure.clean_acc == 1 and sure.at_chance == "" or sure.at_chance.startswith("robust")


def test_a_run_without_a_sound_model_says_so(cli, monkeypatch):
    """Each second validation looks, and each look finds masked gradients; so does the last one."""
    lost = {"look n": 64, "look standing": 30, "look left": 1}
    monkeypatch.setattr(Validation, "_count_deeper", lambda *_: lost)
    looks = lambda plan, step, finished: finished or step // plan.validate_every % 2 == 0  # noqa: E731
    monkeypatch.setattr(TrainPlan, "looks", looks)
    settings = ("adversary.steps=1", "train.overfitting=warn", "train.steps=50", "train.validate_every=0.5")
    document, said = trained(cli, "smoke/digits", "model=mlp", "train.val_attack.steps=1", *settings)
    (alarm,) = (text for text in document["alarms"] if "gradients are masked" in text)
    (note,) = (text for text in document["notes"] if "no model is known to be sound" in text)
    assert document["best"] == document["last"] and document["checkpoint"].endswith("step-00000050")
    assert alarm in said and note.removeprefix("best: ") in said


@pytest.mark.parametrize(("norm", "attack"), [("l0", "sigma_zero"), ("linf", "autoattack"), ("l0 l2", "pgd")])
def test_what_follows_a_training_is_an_attack_of_its_norm(norm, attack, capsys):
    """Trap: AutoAttack knows no l0, and the command that is shown would be refused."""
    next_steps({"run": "r", "best": {}}, Console(), norm.split())
    assert f"--attack {attack}   (the one to publish)" in capsys.readouterr().err

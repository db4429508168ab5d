"""A training that learns to mislead the attack that watches it: only the deeper look sees it."""

import copy
import json
import time
from dataclasses import asdict, replace

import pytest
import torch
from pydantic import TypeAdapter
from sklearn.datasets import load_digits
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.attacks.square import square
from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.training.guarding import Guards
from robustcli.training.guards import DeeperLook
from robustcli.training.loop import Trainer
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings
from robustcli.training.trainplan import Look, Progress, TrainPlan

BALL = Ball("linf", 0.2)
DIGITS = load_digits()
X = torch.from_numpy(DIGITS.images * 255 / 16).to(torch.uint8)[:, None]
Y = torch.from_numpy(DIGITS.target).long()


def part(rows):
    return MemorySplit(X[rows], Y[rows], tuple("0123456789"))


class Staircase(nn.Module):
    """sigmoid(e^k (x - 1/2)) for each pixel, k learnt: the steeper, the less gradient passes."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return torch.sigmoid(self.k.exp() * (x - 0.5)).flatten(1)


def steeper(net, weight=1.0):
    """A regulariser that rewards a steep staircase."""
    return lambda model, batch: -weight * net[0].k


def call(label, **params):
    return AttackCall(label, "pgd", pgd, params)


DEEPER = EvalPlan(
    BALL,
    [call("pgd-50", steps=50, loss="margin"), AttackCall("square", "square", square, {"queries": 100})],
    0, None, None, Search(),
)  # fmt: skip


def trainer(*, regularizer=None, mode="warn", look=True, patience=None, clock=time.perf_counter, **plan):
    """One-step training of a small network on the digits, validated by FGSM and PGD-10."""
    torch.manual_seed(0)
    net = nn.Sequential(Staircase(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    settings = StepSettings(
        net,
        registry.objectives.get("madry").fn,
        "ce",
        lambda oracle, x, ball: pgd(oracle, x, ball, steps=1),
        BALL,
        torch.optim.Adam(net.parameters(), lr=0.05),
        regularizers={"steeper": regularizer(net)} if regularizer else {},
    )
    validation = EvalPlan(BALL, [call("fgsm", steps=1), call("pgd", steps=10)], 0, None, None, Search())
    saves, said, rows = [], [], []
    made = TrainPlan(**{
        "seed": 0, "batch_size": 64, "factor": lambda t: 1.0, "augment": None, "budget": ("steps", 180),
        "save_every": 60, "validate_every": 60, "validations": [validation],
        "val_positions": torch.arange(160),
        "look": Look([DEEPER], 64, 1) if look else None, **plan,
    })  # fmt: skip
    t = Trainer(
        MinMax(settings),
        part(slice(0, 1200)),
        part(slice(1200, 1400)),
        made,
        torch.device("cpu"),
        guards=Guards(160, 10, patience, mode),
        clock=clock,
        say=said.append,
        log=rows.append,
        save=lambda *saved: saves.append(copy.deepcopy(saved)),
        recall=lambda: [groups for _, groups, tags in saves if "best" in tags][-1],
    )
    t.saves, t.said, t.rows = saves, said, rows
    return t


def measured(t):
    return [(row["fgsm_acc"], row["robust_acc"], row["look"]) for row in t.rows]


@pytest.fixture(scope="module")
def masked():
    t = trainer(regularizer=steeper)
    t.run()
    return t


def test_a_training_that_masks_its_gradients_is_caught_and_is_never_the_best(masked):
    """FGSM and PGD-10 alone see the best model so far; half of it falls to the deeper look."""
    rows, progress = masked.rows, masked.progress
    assert rows[-1]["robust_acc"] > 0.75 and rows[-1]["fgsm_acc"] - rows[-1]["robust_acc"] < 0.05
    look = rows[-1]["look"]
    assert look["n"] == 64 and look["left"] < 0.75 * look["standing"]
    (alarm,) = (text for text in progress.alarms if "gradients are masked" in text)
    assert alarm in masked.said and alarm.startswith("catastrophic overfitting: of 64 validation images")
    assert progress.best["step"] == 60 and progress.best["robust_acc"] < rows[-1]["robust_acc"]
    blind = trainer(regularizer=steeper, look=False)
    assert not blind.run().alarms and blind.progress.best["robust_acc"] > 0.75
    assert "look" not in blind.rows[0]


def test_a_healthy_one_step_training_is_left_in_peace():
    t = trainer()
    assert not t.run().alarms, measured(t)
    assert all(row["look"]["left"] > 0.8 * row["look"]["standing"] > 0 for row in t.rows)


def test_a_rollback_takes_the_best_weights_that_were_looked_at():
    t = trainer(regularizer=steeper, mode="rollback", budget=("steps", 120))
    progress = t.run()
    (alarm,) = progress.alarms
    assert (
        "rollback 1 of 3: the best weights again, attack steps + 1" in alarm and progress.best["step"] == 60
    )
    best, last = t.saves[0][1]["model"], t.saves[-1][1]["model"]
    assert t.saves[-1][0].step == 120 and all(torch.equal(best[name], last[name]) for name in best)


def test_a_resumed_run_judges_as_the_whole_one(masked):
    progress, groups, _ = next(save for save in masked.saves if save[0].step == 60)
    again = trainer(regularizer=steeper)
    stored = json.dumps(asdict(progress))
    again.restore(copy.deepcopy(groups), TypeAdapter(Progress).validate_json(stored))
    again.run()
    assert again.progress.alarms == masked.progress.alarms and again.progress.best == masked.progress.best
    assert again.guards.state() == masked.guards.state() and again.guards.masking
    assert measured(again) == measured(masked)[1:]


def rare(**more):
    """A run whose validations would not look before the tenth, and whose looks find masked gradients."""
    t = trainer(look=False, validate_every=20, save_every=10**6, **{"budget": ("steps", 100), **more})
    t.plan = replace(t.plan, look=Look([DEEPER], 64, 10))
    t.validation.look = t.plan.look
    t.validation._count_deeper = lambda *_: {"look n": 64, "look standing": 30, "look left": 1}
    return t


def test_a_run_that_ends_early_looks_before_it_ends():
    """Its patience ends at the second validation: the best one was never looked at."""
    t = rare(patience=1, factor=lambda t: 1e-9)
    progress = t.run()
    assert progress.step == 40 and progress.ended == "no better model in 1 validations"
    assert ["look" in row for row in t.rows] == [False, True]
    assert not progress.best and "gradients are masked" in progress.alarms[-1]


def test_a_run_whose_last_validation_uses_up_the_minutes_looks_too():
    now = [0.0]
    t = rare(budget=("minutes", 0.1), clock=lambda: now[0])
    count = t.validation._count

    def dear(*args):
        now[0] += 4
        return count(*args)

    t.validation._count = dear
    progress = t.run()
    assert [row["step"] for row in t.rows] == [20] and progress.max_steps == progress.step == 20
    assert t.rows[0]["look"] and not progress.best


LOST, WELL = {"n": 64, "standing": 30, "left": 2}, {"n": 64, "standing": 30, "left": 28}


def judged(look, improved=False, fgsm=0.5, epoch=1.0):
    row = {"epoch": epoch, "n": 160, "fgsm_acc": fgsm, "robust_acc": 0.47, "clean_acc": 0.8, "chance": 0.1}
    return {**row, "look": look}, improved


def test_a_best_model_that_nobody_has_looked_at_loses_its_name():
    guards = Guards(160, 10)
    assert not guards.judge(*judged({}, True), 0.2).forget
    row, _ = judged(LOST)
    assert not guards.may_be_best(row) and guards.may_be_best(judged(WELL)[0])
    verdict = guards.judge(row, False, 0.4)
    assert verdict.forget and verdict.rollback and "no better weights to go back to" in verdict.alarms[0]
    guards.judge(*judged(WELL, True), 0.6)
    verdict = guards.judge(row, False, 0.8)
    assert verdict.rollback and not verdict.forget and "the best weights again" in verdict.alarms[0]


def test_after_a_masked_look_only_a_look_that_passes_makes_a_model_the_best():
    """Here each second validation looks; the network is masked until step 5, and then recovers."""
    guards, verdicts = Guards(160, 10, 8, "warn"), []
    for k in range(8):
        row, _ = judged({} if k % 2 == 0 else LOST if k < 5 else WELL)
        better = guards.may_be_best(row)
        assert better == (k in (0, 5, 6, 7)), k
        verdicts.append(guards.judge(row, better and k in (0, 5), 0.5))
    assert [bool(verdict.alarms) for verdict in verdicts] == [k == 1 for k in range(8)], "once per collapse"
    assert [verdict.forget for verdict in verdicts] == [k in (1, 3) for k in range(8)]
    assert guards.state()["early"] == {"waited": 2} and not guards.masking


@pytest.mark.parametrize("between", [(), (0.48,)], ids=["at once", "a validation between"])
def test_what_a_masked_model_seemed_to_reach_is_nothing_to_fall_from(between):
    guards = Guards(1000, 10, None, "rollback")
    looks = [(0.47, {}), (0.47, LOST), *((acc, {}) for acc in between), (0.30, WELL), (0.31, {})]
    said = []
    for epoch, (robust, look) in enumerate(looks, 1):
        row = judged(look, fgsm=robust + 0.05, epoch=epoch)[0] | {"robust_acc": robust}
        said += guards.judge(row, epoch == 1, 0.5).alarms
    assert len(said) == 1 and "gradients are masked" in said[0] and guards.gap == 0
    assert guards.state()["collapse"]["best_robust"] == 0.31
    assert guards.judge({**row, "robust_acc": 0.2, "fgsm_acc": 0.3}, False, 0.9).alarms, "a true fall is said"


def test_a_guard_of_an_older_checkpoint_knows_of_no_masked_look():
    guards = Guards(160, 10)
    guards.judge(*judged(LOST), 0.5)
    guards.load({**guards.state(), "deeper": {"sound": True}})
    assert guards.state()["deeper"] == {"sound": True, "masking": False}


def test_multi_step_training_with_a_regulariser_is_judged_by_the_look_alone():
    guards, (row, _) = Guards(160, 10, None, "stop"), judged(LOST)
    del row["fgsm_acc"]
    assert guards.judge({**row, "look": WELL}, True, 0.2).stop == ""
    assert guards.judge(row, False, 0.4).stop == "catastrophic overfitting"
    assert guards.judge(row, False, 0.4, whole=False).stop == ""


@pytest.mark.parametrize(
    ("look", "masked"),
    [(LOST, True), (WELL, False), ({}, False), ({"n": 64, "standing": 30, "left": 20}, False)],
)
def test_the_rule(look, masked):
    assert DeeperLook.masked(look) == masked


def test_looks_are_few_and_the_last_validation_is_one():
    plan = replace(trainer().plan, validate_every=10, look=Look([DEEPER], 64, 3))
    assert [step for step in range(10, 100, 10) if plan.looks(step, False)] == [30, 60, 90]
    assert plan.looks(47, True) and not replace(plan, look=None).looks(30, True)

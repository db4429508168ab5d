"""Black boxes: no gradient, no score, no attack that needs more than they answer; every row is counted."""

import pytest
import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.api import attack, evaluate
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.errors import UsageError
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, Search
from robustcli.models.blackbox import BlackBox, LabelsOnly, check_served, served
from robustcli.models.contract.adapted import adapted

DECIDING = [
    name for name in registry.attacks.names() if registry.attacks.get(name).facts.needs == "decisions"
]
X = torch.rand(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Scores(BlackBox):
    """Scores of a linear model, from outside torch's graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__("scores")
        self.net = [net]  # in a list: not a part of it

    def ask(self, x: Tensor) -> Tensor:
        return self.net[0](x)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()


def test_labels_alone_are_seen(net):
    box = LabelsOnly(net)
    assert torch.equal(box(X), nn.functional.one_hot(net(X).argmax(1), 5).float())
    assert box.queries == 11


def test_a_row_without_a_label_stays_broken(net):
    box = LabelsOnly(nn.Sequential(net, nn.Threshold(float("inf"), float("nan"))))
    judge = Judge(box, Ball("linf", 0.1))
    assert not judge.clean(X, torch.zeros(11).long()).right.any()
    assert judge.broken_rows == 11


@pytest.mark.parametrize("box", [LabelsOnly, Scores])
def test_a_gradient_is_refused(net, box):
    with pytest.raises(UsageError, match="a gradient was asked"):
        box(net)(X.clone().requires_grad_(True))


@pytest.mark.parametrize(("box", "attacks"), [(LabelsOnly, ["pgd", "square"]), (Scores, ["apgd"])])
def test_attacks_that_need_more_are_refused_before_the_model_is_asked_twice(net, box, attacks):
    model = box(net)
    for name in attacks:
        for run in (
            lambda m, n=name: evaluate(m, X, net(X).argmax(1), eps=0.1, attack=n),
            lambda m, n=name: attack(m, X, net(X).argmax(1), eps=0.1, name=n),
        ):
            before = model.queries
            with pytest.raises(UsageError, match=f"does not serve {name}.*noise") as caught:
                run(model)
            assert caught.value.code == "E-BLACK-BOX"
            assert model.queries - before <= 1


def test_every_ensemble_with_a_gradient_stage_is_refused(net):
    with pytest.raises(UsageError, match="apgd-ce"):
        evaluate(Scores(net), X, net(X).argmax(1), eps=0.1, attack="autoattack")


@pytest.mark.parametrize(("most", "without"), [("decisions", {"square", "pgd"}), ("scores", {"pgd", "fab"})])
def test_those_that_are_named_fit(most, without):
    names = set(served(most, "linf"))
    assert "noise" in names and not names & without
    assert names == {
        name for name in registry.attacks.names()
        if "linf" in (facts := registry.attacks.get(name).facts).norms
        and facts.needs in ("decisions", most)
    }  # fmt: skip


def test_a_black_box_is_never_copied_padded_or_diagnosed(net):
    seen: list[int] = []

    class Counting(Scores):
        def ask(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().ask(x)

    box = Counting(net)
    assert Search(torch.bfloat16).twin(box, X) is box
    assert adapted(box, X)[0] is box
    before = box.queries
    seen.clear()
    verdict = evaluate(
        box, X, net(X).argmax(1), eps=0.01, attack="square", queries=9, search="bf16", checks=4
    )
    standing = int(verdict.survivors.sum())
    assert set(seen) <= {1, *range(standing, 12)}, "no row more than there are"
    assert {alarm.level for alarm in verdict.alarms} <= {"note"}
    assert box.queries - before == sum(seen)


def test_labels_raise_no_alarm_of_probabilities(net):
    verdict = evaluate(LabelsOnly(net), X, net(X).argmax(1), eps=0.01, attack="noise")
    assert verdict.reliability == "ok", verdict.alarms


@pytest.mark.parametrize("name", DECIDING)
def test_an_attack_that_needs_decisions_sees_labels_alone_of_any_model(net, name):
    call = AttackCall.of(registry.attacks.get(name), {})
    rng = RowRandom(0, "start", torch.arange(11))
    oracle = call.oracle(net, X, Criterion(net(X).argmax(1)), rng=rng, ball=Ball("linf", 0.1))
    assert set(oracle.logits(X).unique().tolist()) == {0.0, 1.0}
    assert set(oracle.clean().unique().tolist()) == {0.0, 1.0}
    with pytest.raises(RuntimeError, match="needs decisions asked for a gradient"):
        oracle.gradient(X)


def test_decide_counts_and_meets_nothing(net):
    y = net(X).argmax(1)
    oracle = Oracle(net, X, Criterion(y), rng=RowRandom(0, "start", torch.arange(11)), keep="best")
    before, places = oracle.passes, torch.tensor([3, 3, 7])
    points = torch.rand(3, 3, 4, 4)
    assert torch.equal(oracle.decide(points, places), net(points).argmax(1) != y[places])
    assert oracle.passes - before == 3
    assert torch.equal(oracle.result(X), X)


def test_an_attack_of_the_users_own_is_let_through(net):
    mine = AttackCall("mine", "mine.py:attack", lambda *a: None, {})
    check_served(LabelsOnly(net), [mine], "linf")

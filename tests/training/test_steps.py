"""One training step: the attack leaves no trace, BatchNorm learns, broken numbers change nothing."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.config.schema import Config
from robustcli.core.geometry import Ball
from robustcli.core.types import network_of
from robustcli.errors import NumericsError, UsageError
from robustcli.evaluation.plan import Search
from robustcli.training.minmax import MinMax
from robustcli.training.resume import CLASSES, changed, check_resume, classify, flatten
from robustcli.training.settings import StepSettings

X = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def minmax(net, **more):
    entry = registry.objectives.get(more.pop("objective", "madry"))
    optimizer = torch.optim.SGD(net.parameters(), lr=more.pop("lr", 0.1))
    attack = more.pop("attack", lambda oracle, x, ball: pgd(oracle, x, ball, steps=3))
    settings = StepSettings(net, entry.fn, entry.facts.inner, attack, Ball("linf", 0.1), optimizer, **more)
    return MinMax(settings)


@pytest.mark.parametrize("attack_bn", ["eval", "train"])
@pytest.mark.parametrize("fold", [False, True])
def test_the_attack_leaves_no_trace_and_the_step_trains_batchnorm(attack_bn, fold):
    """Traps: BN statistics absorb attack passes; BN is frozen because an attack left the model in eval."""
    net = network()
    step = minmax(net, attack_bn=attack_bn, search=Search() if fold else Search().exact())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x_adv = step.adversarial(X, Y, _rng())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(
        p.grad is None for p in net.parameters()
    )
    assert Ball("linf", 0.1).contains(X, x_adv).all() and not torch.equal(x_adv, X)
    step(X, Y, torch.arange(8), seed=0, epoch=0)
    assert int(net[1].num_batches_tracked) == 1 and all(m.training for m in net.modules())
    assert not torch.equal(net[0].weight, before["0.weight"])


def _rng():
    from robustcli.core.random import RowRandom

    return RowRandom(0, "start", torch.arange(8))


def test_the_folded_twin_follows_the_weights():
    net = network()
    step = minmax(net)
    for _ in range(3):
        step(X, Y, torch.arange(8), seed=0, epoch=0)
    plain = minmax(net, search=Search().exact())
    assert step.twin_note == "" and torch.allclose(
        step.adversarial(X, Y, _rng()), plain.adversarial(X, Y, _rng()), atol=1e-4
    )


def test_natural_asks_no_attack():
    def forbidden(oracle, x, ball):
        raise AssertionError("no attack in natural training")

    step = minmax(network(), objective="natural", attack=forbidden)
    assert step.adversarial(X, Y, _rng()) is X
    assert float(step(X, Y, torch.arange(8), seed=0, epoch=0).total.detach()) > 0


def test_an_objective_sees_the_network_and_how_far_the_curriculum_is():
    net, seen = network(), []
    attack = minmax(net).settings.attack
    step = minmax(net, strength=lambda t: (attack, Ball("linf", 0.1 * t)))
    objective = step.descent.objective

    def recorded(model, batch):
        seen.append((network_of(model), batch.ramp))
        return objective(model, batch)

    step.descent.objective = recorded
    for progress in (0.25, 1.0):
        step(X, Y, torch.arange(8), seed=0, epoch=0, progress=progress)
    assert [ramp for _, ramp in seen] == pytest.approx([0.25, 1.0])
    assert all(found is net for found, _ in seen)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_broken_numbers_change_nothing(where):
    net = network()
    step = minmax(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    objective = step.descent.objective

    def broken(model, batch):
        terms = objective(model, batch)
        factor = torch.tensor(float("nan")) if where == "loss" else torch.tensor(float("inf"))
        if where == "loss":
            return type(terms)(terms.total * factor)
        net[4].weight.register_hook(lambda g: g * factor)
        return terms

    step.descent.objective = broken
    with pytest.raises(NumericsError, match=where):
        step(X, Y, torch.arange(8), seed=0, epoch=0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_clipping_bounds_the_step():
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    minmax(net, grad_clip=1e-3, lr=1.0)(X, Y, torch.arange(8), seed=0, epoch=0)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(net.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_every_key_of_the_schema_is_classified_for_resume():
    keys = flatten(Config().model_dump(mode="json"))
    assert {classify(key) for key in keys} == {"harmless", "compatible", "identity"}
    assert set(CLASSES.values()) == {"harmless", "compatible", "identity"}
    assert classify("unheard.of") == ""


def test_a_key_of_another_version_is_another_experiment():
    with pytest.raises(UsageError, match="unheard"):
        check_resume({"unheard": {"of": 1}}, {"name": "x"}, [], print)
    assert check_resume({"unheard": {"of": 1}}, {"name": "x"}, ["unheard"], lambda text: None) == [
        "unheard.of: None (the run has 1)"
    ]


def test_resume_refuses_another_experiment_and_warns_of_a_longer_one():
    stored = Config().model_dump(mode="json")
    said = []
    assert check_resume(stored, stored, (), said.append) == [] and said == []
    longer = {**stored, "train": {**stored["train"], "epochs": 99}, "eval": {**stored["eval"], "n": 7}}
    check_resume(stored, longer, (), said.append)
    assert len(said) == 1 and "train.epochs" in said[0]
    other = {**stored, "seed": 5, "ball": {**stored["ball"], "eps": 0.2}}
    assert set(changed(stored, other)) == {"seed", "ball.eps"}
    with pytest.raises(UsageError, match="seed") as caught:
        check_resume(stored, other, (), said.append)
    assert caught.value.exit_code == 2 and "ball.eps" in str(caught.value)
    assert len(check_resume(stored, other, ("seed", "ball"), said.append)) == 2

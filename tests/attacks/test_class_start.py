"""The class-wise start: closed forms on a linear model, and what training keeps of it."""

import pytest
import torch
from torch import nn

from robustcli.attacks.class_start import class_start
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.memory import Memory
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.errors import NumericsError
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

ROWS, CLASSES, EPS = 200, 4, 0.1
BALL = Ball("linf", EPS)
X = 0.5 + 0.2 * (torch.rand(ROWS, 1, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.5)
Y, IDS = torch.arange(ROWS) % CLASSES, torch.arange(ROWS)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, CLASSES))


def curved():
    """Its slopes change their signs in a few steps."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def oracle_of(net, memory=None, rows=slice(None), epoch=0):
    rng = RowRandom(0, "start", IDS[rows], epoch=epoch)
    return Oracle(net, X[rows], Criterion(Y[rows]), rng=rng, memory=memory)


def signs(net):
    """sign of grad CE at the grey image, by the formula W^T (p - onehot), for each class."""
    weight = net[1].weight.detach()
    p = net(torch.full((1, 1, 3, 3), 0.5)).detach().softmax(1)
    return ((p - torch.eye(CLASSES)) @ weight).sign().reshape(CLASSES, 1, 3, 3)


def start_of(net, memory, **told):
    """The offset from the images at which the attack begins, in units of eps."""
    oracle = oracle_of(net, memory)
    class_start(oracle, X, BALL, **told)
    return (oracle.began - X) / EPS


@pytest.mark.parametrize("trained", [True, False])
def test_without_noise_the_start_is_the_corner_of_the_class_or_the_opposite_one(trained):
    net = linear()
    begun = start_of(net, Memory() if trained else None, noise_low=0.0, noise_high=0.0)
    side = (begun * signs(net)[Y]).flatten(1)
    assert torch.allclose(side.abs(), torch.ones_like(side), atol=1e-5)
    assert torch.allclose(side, side[:, :1].expand_as(side), atol=1e-5), "one sign for all of an image"
    assert 0.4 < float((side[:, 0] > 0).float().mean()) < 0.6


def test_the_share_of_noise_lies_between_its_bounds():
    """A pixel that is not in a corner is noise; the mean share of [0.1, 0.5] is 0.3."""
    net = linear()
    noise = start_of(net, None).abs().flatten(1) < 1 - 1e-4
    assert float(noise.float().mean()) == pytest.approx(0.3, abs=0.04)
    all_noise = start_of(net, None, noise_low=1.0, noise_high=1.0).flatten()
    assert float(all_noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(all_noise.square().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_one_step_goes_by_eps_along_the_gradient_and_stays_in_the_ball():
    net, oracle = linear(), oracle_of(linear())
    x_adv = class_start(oracle, X, BALL)
    point = oracle.began.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point), Y, reduction="sum"), point)
    wanted = torch.clamp(oracle.began + EPS * grad.sign(), X - EPS, X + EPS)
    assert torch.allclose(x_adv, wanted, atol=1e-6) and BALL.contains(X, x_adv).all()
    longer = class_start(oracle_of(net), X, BALL, steps=5)
    assert torch.equal(longer, class_start(oracle_of(net), X, BALL, steps=5, step_size=EPS / 2))


def test_training_asks_for_all_classes_together_and_only_once_in_a_while():
    net, memory = linear(), Memory()
    asked = []
    for turn in range(7):
        memory.turn = turn
        parts = [oracle_of(net, memory, rows) for rows in (slice(0, 3), slice(3, ROWS))]
        for oracle, rows in zip(parts, (slice(0, 3), slice(3, ROWS)), strict=True):
            class_start(oracle, X[rows], BALL, renew=3)
        asked.append(sum(oracle.backward_rows for oracle in parts) - ROWS)
    assert asked == [CLASSES, 0, 0, CLASSES, 0, 0, CLASSES]
    kept = memory.state()["class_signs"]
    assert kept.dtype is torch.int8 and torch.equal(kept.float(), signs(net))


def test_noise_bounds_in_the_wrong_order_are_named():
    with pytest.raises(ValueError, match="noise_low"):
        class_start(oracle_of(linear()), X, BALL, noise_low=0.6)


# ---- in a step of training ---------------------------------------------------------------------------------


def step_of(net, objective=None, **more):
    from robustcli import registry

    liet = registry.objectives.get("liet")
    settings = StepSettings(
        net,
        objective or liet.fn,
        liet.facts.inner,
        lambda oracle, x, ball: class_start(oracle, x, ball, renew=3),
        BALL,
        torch.optim.SGD(net.parameters(), lr=0.5),
        **more,
    )
    return MinMax(settings)


def moved(step, numbers):
    """The weights after the steps of these numbers."""
    for k in numbers:
        step(X, Y, IDS, seed=0, epoch=k, progress=(k + 0.5) / 9)
    return [p.detach().clone() for p in step.settings.model.parameters()]


def test_what_is_kept_survives_a_resume_bit_for_bit():
    """It goes on after 5 steps, two before the signs are made again; without them the weights are others."""
    whole, broken, forgetful = (step_of(curved()) for _ in range(3))
    for step in (broken, forgetful):
        moved(step, range(5))
    again, without = step_of(curved()), step_of(curved())
    for step, before in ((again, broken), (without, forgetful)):
        step.settings.model.load_state_dict(before.settings.model.state_dict())
    again.load({name: tensor.clone() for name, tensor in broken.state().items()})
    wanted = moved(whole, range(9))
    assert all(map(torch.equal, moved(again, range(5, 9)), wanted))
    assert not all(map(torch.equal, moved(without, range(5, 9)), wanted))
    assert set(whole.state()) == {"class_signs", "class_signs.made", "turn"}
    assert int(whole.state()["turn"]) == 9 and int(whole.state()["class_signs.made"]) == 6


def test_a_step_that_fails_keeps_nothing():
    step, fails = step_of(linear()), step_of(linear(), lambda model, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        moved(fails, [0])
    assert fails.state() == {} and fails.ascent.memory.turn == 0
    moved(step, range(2))
    before = {name: tensor.clone() for name, tensor in step.state().items()}
    with torch.no_grad():
        step.settings.model[1].weight.fill_(float("nan"))
    with pytest.raises(NumericsError):
        moved(step, [2])
    assert all(torch.equal(value, before[name]) for name, value in step.state().items())


def test_a_micro_batch_changes_no_point():
    """Up to rounding: a row has the same draws and the same signs in every part."""
    rng = RowRandom(0, "start", IDS)
    whole, parts = step_of(linear()), step_of(linear(), micro_batch=64)
    assert torch.allclose(whole.adversarial(X, Y, rng), parts.adversarial(X, Y, rng), atol=1e-6)

"""The diagnosis finds fake defences, asks for what breaks them, and leaves honest models alone."""

import copy
import sys

import pytest
import torch
import wider
import zoo
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.gradients import rescaled, straight_through
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.evaluation.diagnosis import _Probe, diagnose
from robustcli.evaluation.judge import Judge

BALL = Ball("linf", zoo.EPS)
IN_SUITE = ("scaled", "quantised", "resized")


def marked(names, fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


def look(model, ball=BALL, n=64, **more):
    x, y, ids = zoo.correct(model, n)
    with frozen(model):
        return diagnose(model, x, y, ids, ball, seed=0, **more)


def names(found):
    return {alarm.name for alarm in found.alarms}


@pytest.mark.parametrize("name", marked(zoo.FAKES, IN_SUITE))
def test_fakes_raise_their_alarm_and_ask_for_what_breaks_them(name):
    make, alarm, helps = zoo.FAKES[name]
    found = look(copy.deepcopy(make()))
    assert alarm in names(found) and helps <= set(found.escalations)
    assert set(found.escalations) & {"rescale", "bpda", "eot"} <= helps
    assert found.randomised == (name == "resized") and found.evidence[alarm] > 0.5
    assert name != "scaled" or "black-box-beats-white-box" not in names(
        found
    )  # what the margin broke is not counted again
    assert all(
        alarm.level in ("suspect", "invalid") and alarm.evidence and alarm.remedy for alarm in found.alarms
    )


@pytest.mark.parametrize("name", marked(zoo.HONEST, ("bn",)))
def test_honest_models_raise_none(name):
    found = look(zoo.honest(name))
    assert (found.alarms, found.escalations, found.randomised) == ([], (), False)
    assert 0 < found.evidence["pgd-10"] <= found.evidence["pgd-60"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.HONEST)
@pytest.mark.parametrize(
    "ball",
    [Ball("linf", 0.02), Ball("linf", 0.3), Ball("l2", 0.5), Ball("l2", 1.5), Ball("l1", 3.0)],
    ids=str,
)
@pytest.mark.parametrize("n", [64, 8])
def test_honest_models_raise_none_in_any_ball(name, ball, n):
    assert look(zoo.honest(name), ball, n).alarms == []


RADII = {"linf": (0.03, 0.1, 0.2), "l2": (0.3, 0.8, 1.2), "l1": (0.5, 1.0, 2.0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_natural", "digits_madry"])
@pytest.mark.parametrize("ball", [Ball(norm, eps) for norm, radii in RADII.items() for eps in radii], ids=str)
def test_reference_networks_raise_none_in_any_ball(name, ball):
    model, (x, y) = wider.network(name), (part[1400:1464] for part in zoo.digits())
    right = model(x).argmax(1) == y
    with frozen(model):
        assert diagnose(model, x[right], y[right], right.nonzero()[:, 0], ball, seed=0).alarms == []


@pytest.mark.skipif(not wider.case("mnist_trades-l2-2.1").here, reason="no reference images here")
def test_a_network_that_masks_l2_is_found_by_a_search_from_outside():
    """Trained with TRADES under linf: gradients in the l2 ball lead nowhere, and nothing else looks odd."""
    case = wider.case("mnist_trades-l2-2.1")
    model, x, y, stages = case.some(24)
    rows = stages["clean"].nonzero()[:, 0]
    with frozen(model):
        found = diagnose(model, x[rows], y[rows], rows, Ball("l2", case.eps), seed=0)
    assert "minimal-beats-fixed" in names(found) and "minimal" in found.escalations


@pytest.mark.parametrize(("beyond", "raised"), [(0, False), (2, False), (8, True)])
def test_what_only_a_search_from_outside_breaks_is_counted(monkeypatch, beyond, raised):
    """Of 40 that stand 24 are asked; `beyond` of these fall, half each to the wide and the minimal search."""
    asked = []

    def fallen(self, name, rows, ball=None, **params):
        asked.append((name, int(rows.sum())))
        at = torch.zeros_like(self.y)
        count = {"apgd": (beyond + 1) // 2 if "widest" in params else 0, "fab": beyond // 2}[name]
        at[rows.nonzero()[:count, 0]] = 1
        return at

    monkeypatch.setattr(_Probe, "_fell_at", fallen)
    x, y, ids = torch.rand(64, 1, 4, 4), torch.zeros(64, dtype=torch.int64), torch.arange(64)
    probe = _Probe(nn.Identity(), x, y, ids, BALL, 0, None)
    probe._beyond(torch.arange(64) < 40)
    assert [count for _, count in asked] == [24, 24, 24 - (beyond + 1) // 2] and probe.evidence[
        "minimal-beats-fixed"
    ] == pytest.approx(beyond / 24)
    assert bool(probe.alarms) == raised and probe.helps == ({"minimal"} if raised else set())


def broken(model, search, ball=BALL):
    """How many of 64 correct digits fall to PGD-20 on `search`, judged by the model."""
    x, y, ids = zoo.correct(model)
    oracle = Oracle(search, x, Criterion(y), rng=RowRandom(0, "start", ids), keep="best")
    found = registry.attacks.get("pgd").fn(oracle, x, ball, steps=20)
    return int(Judge(model, ball).rule(x, found, Criterion(y)).hit.sum())


@pytest.mark.parametrize("name", marked(("scaled", "quantised", "signs", "one-hot"), ("scaled", "quantised")))
def test_what_it_asks_for_breaks_the_fake(name):
    model = zoo.FAKES[name][0]()
    plain, helped = (
        broken(model, model),
        broken(model, (rescaled if name == "scaled" else straight_through)(model)),
    )
    assert helped >= plain + 10, (plain, helped)


class Hidden(torch.autograd.Function):
    """Rounded to halves, with the gradient of the identity.

    No pixel (sixteenths) lies where a step begins.
    """

    @staticmethod
    def forward(ctx, x):
        return (x * 2 + 0.05).round() / 2

    @staticmethod
    def backward(ctx, grad):
        return grad


def edge(x):
    """NaN once the image is no longer made of sixteenths."""
    return x * torch.where(((x * 16) % 1).flatten(1).amax(1) > 0.3, float("nan"), 1.0)[:, None, None, None]


#: name of the alarm -> (before, after)
ODD = {
    "gradient-mismatch": (Hidden.apply, lambda z: z),
    "non-finite-logits": (edge, lambda z: z),
    "non-finite-gradient": (lambda x: x + 0 * (x - x.amin((1, 2, 3), keepdim=True)).sqrt(), lambda z: z),
    "exploding-gradient": (lambda x: x + 1e-9 * torch.sin(1e20 * (x - x.detach())), lambda z: z),
    "float-noise": (lambda x: x, lambda z: z + 1e6),
    "loss-dependent": (lambda x: x, lambda z: 1e4 * z),
    "saturated-loss": (
        lambda x: x,
        lambda z: z * (85 / (z.topk(2).values * torch.tensor([1.0, -1.0])).sum(1, keepdim=True)).detach(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_stranger_ways_to_hide(name):
    found = look(zoo.Fake(*ODD[name], net="mlp"), n=32)
    assert name in names(found)


def test_randomness_that_shows_now_and_then_is_found():
    torch.manual_seed(0)
    count = iter(range(10**6))
    found = look(zoo.Fake(after=lambda z: z + (next(count) % 4 == 3), net="mlp"), n=4)
    assert found.randomised and found.escalations == ("eot",)


def test_weak_gradients_lose_to_noise_and_fgsm_to_nobody():
    """A gradient that points the wrong way for a whole ball: climbing it is worse than chance."""

    class Turned(zoo.Fake):
        def forward(self, x):
            z = self.net(x)
            return z.detach() + (self.net(2 * x.detach() - x) - self.net(2 * x.detach() - x).detach())

    found = look(Turned(net="mlp"), Ball("linf", 0.2), n=32)
    assert {"gradient-mismatch", "black-box-beats-white-box", "survives-huge-eps"} <= names(found)
    assert {"bpda", "minimal", "square", "transfer"} <= set(found.escalations)


def test_notes_do_not_make_a_model_suspect():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2)).eval()
    x = torch.rand(8, 1, 8, 8)
    with frozen(net):
        found = diagnose(
            net, x, net(x).argmax(1), torch.arange(8), Ball("linf", 0.01), seed=0, trained=["BatchNorm2d"]
        )
    assert [(a.name, a.level) for a in found.alarms] == [
        ("too-few-classes", "note"),
        ("train-mode", "note"),
    ] and found.escalations == ()


def test_the_number_of_samples_may_be_anything():
    net = zoo.honest("mlp")
    empty = look(net, n=0)
    assert (empty.alarms, empty.evidence, empty.escalations, empty.randomised) == ([], {}, (), False)
    for n in (1, 2, 3):
        assert look(net, n=n).alarms == []
    assert "pgd-10" not in look(net, Ball("linf", 0.0)).evidence


def test_it_repeats_itself_and_does_not_depend_on_the_order_of_the_samples():
    net = zoo.honest("mlp")
    x, y, ids = zoo.correct(net, 24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    first = diagnose(net, x, y, ids, BALL, seed=0)
    torch.rand(3)
    assert first == diagnose(net, x, y, ids, BALL, seed=0) and first == diagnose(
        net, x[order], y[order], ids[order], BALL, seed=0
    )


def test_the_world_is_as_before():
    net = copy.deepcopy(zoo.honest("bn"))
    state = copy.deepcopy(net.state_dict())
    seen = []
    profile, grad = sys.getprofile(), torch.is_grad_enabled()
    x, y, ids = zoo.correct(net, 8)
    x_before = x.clone()
    diagnose(net, x, y, ids, BALL, seed=0, stop=lambda: seen.append(1))
    assert (
        sys.getprofile() is profile
        and torch.is_grad_enabled() == grad
        and torch.equal(x, x_before)
        and not x.requires_grad
    )
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(net, x, y, ids, BALL, seed=0, stop=stop)
    assert len(seen) > 50

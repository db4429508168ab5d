"""Every registered attack, on the day it is registered: the invariants of docs/architecture.md."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

ENTRIES = list(registry.attacks)
PAIRS = [(e.name, norm) for e in ENTRIES for norm in e.facts.norms]
FIXED = [(name, norm) for name, norm in PAIRS if registry.attacks.get(name).facts.kind == "fixed"]
STEEPEST = [  # those that climb the gradient of the image itself
    (name, norm)
    for name, norm in FIXED
    if registry.attacks.get(name).facts.needs == "gradient"
    and not registry.attacks.get(name).facts.for_others
]
SHORT = {"steps": 4, "restarts": 2, "queries": 30, "draws": 4, "copies": 2, "periods": 1, "warm": 2}


class Net(nn.Module):
    def __init__(self, channels, classes, linear=False):
        super().__init__()
        self.body = (
            nn.Identity()
            if linear
            else nn.Sequential(
                nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)
            )
        )
        self.head = nn.LazyLinear(classes)

    def forward(self, x):
        return self.head(self.body(x - 0.5).flatten(1))


def setup(shape, classes, seed, linear=False):
    torch.manual_seed(seed)
    net, x = Net(shape[1], classes, linear), torch.rand(shape)
    net(x)
    return net, x, torch.arange(shape[0]) % classes


def ball_of(norm, eps):
    """The ball; a fraction of a pixel is a pixel."""
    return Ball(norm, float(math.ceil(eps)) if norm == "l0" else eps)


def params_for(entry):
    known = registry.parameters(entry.fn)
    return {name: value for name, value in SHORT.items() if name in known}


def run(entry, net, x, y, ball, seed=0, ids=None, target=None, keep="best", **more):
    ids = torch.arange(len(x)) if ids is None else ids
    oracle = Oracle(net, x, Criterion(y, target), rng=RowRandom(seed, "start", ids), keep=keep)
    return entry.fn(oracle, x, ball, **(params_for(entry) | more))


CASES = {
    "shape": st.tuples(st.integers(1, 5), st.sampled_from([1, 3]), st.just(4), st.sampled_from([4, 5])),
    "classes": st.sampled_from([2, 3, 4, 10]),
    "eps": st.sampled_from([0.0, 1 / 255, 8 / 255, 0.5, 2.0]),  # l0: rounded up
    "seed": st.integers(0, 10**6),
}


@pytest.mark.parametrize(("name", "norm"), FIXED)
@settings(max_examples=8, deadline=None)
@given(**CASES)
def test_points_lie_in_the_ball_and_are_no_weaker_than_clean(name, norm, shape, classes, eps, seed):
    check_points(name, norm, shape, classes, eps, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), FIXED)
@settings(max_examples=150, deadline=None)
@given(**CASES)
def test_the_same_over_many_cases(name, norm, shape, classes, eps, seed):
    check_points(name, norm, shape, classes, eps, seed)


def check_points(name, norm, shape, classes, eps, seed):
    entry, ball = registry.attacks.get(name), ball_of(norm, eps)
    net, x, y = setup(shape, classes, seed)
    x_copy = x.clone()
    with frozen(net):
        x_adv = run(entry, net, x, y, ball, seed)
        assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
        assert torch.equal(x, x_copy) and ball.contains(x, x_adv).all()
        if eps == 0:
            assert torch.equal(x_adv, x)
        loss, hit = Criterion(y).bind("ce"), Criterion(y).hit
        worse = loss(net(x_adv)) >= loss(net(x)) - 1e-6
        assert (worse | (hit(net(x_adv)) & ~hit(net(x)))).all()
        assert (hit(net(x_adv)) | ~hit(net(x))).all()  # a misclassified input stays broken


@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_world_are_as_before(name, norm, fails):
    """Traps: attacks in train mode, BatchNorm left in eval, gradients in parameters, global RNG reseeded."""
    entry = registry.attacks.get(name)
    net, x, y = setup((4, 3, 4, 4), 3, 0)
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags, rng, grad_mode = (
        [m.training for m in net.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )
    hooks = sum(len(m._forward_hooks) for m in net.modules())

    class Bomb(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = net, 0

        def forward(self, x):
            self.calls += 1
            if fails and self.calls == 2:
                raise RuntimeError("bomb")
            return self.inner(x)

    bomb = Bomb()
    try:
        with frozen(bomb):
            run(entry, bomb, x, y, ball_of(norm, 0.1))
    except RuntimeError as error:
        assert fails and str(error) == "bomb"
    assert [m.training for m in net.modules()] == flags and torch.is_grad_enabled() == grad_mode
    assert torch.equal(torch.get_rng_state(), rng) and hooks == sum(
        len(m._forward_hooks) for m in net.modules()
    )
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_a_row_does_not_depend_on_its_batch(name, norm):
    entry, ball = registry.attacks.get(name), ball_of(norm, 0.1)
    net, x, y = setup((6, 3, 4, 4), 3, 1)
    with frozen(net):
        whole = run(entry, net, x, y, ball)
        turned = run(entry, net, x.flip(0), y.flip(0), ball, ids=torch.arange(6).flip(0)).flip(0)
        halves = torch.cat(
            [run(entry, net, x[k : k + 3], y[k : k + 3], ball, ids=torch.arange(k, k + 3)) for k in (0, 3)]
        )
    assert torch.allclose(whole, turned, atol=1e-6) and torch.allclose(whole, halves, atol=1e-6)


class Recorded(nn.Module):
    """A model, and every point that it was asked about."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.points = inner, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.inner(x)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_same_seed_same_points_and_another_seed_others(name, norm):
    """All points on the way count: few l1 steps move few pixels, and may end at one point from two starts."""
    entry, ball = registry.attacks.get(name), ball_of(norm, 0.1)
    net, x, y = setup((6, 3, 4, 4), 3, 1)

    def points(seed):
        recorded = Recorded(net)
        with frozen(recorded):
            x_adv = run(entry, recorded, x, y, ball, seed=seed, keep="last")
        return [*recorded.points, x_adv]

    def same(one, other):
        return len(one) == len(other) and all(map(torch.equal, one, other))

    first = points(seed=3)
    assert same(first, points(seed=3))
    assert same(first, points(seed=4)) == entry.facts.deterministic


@pytest.mark.parametrize(("name", "norm"), STEEPEST)
def test_a_linear_model_is_solved_in_closed_form(name, norm):
    """max over the ball of the logit difference of two classes = eps * dual norm of the weight difference.

    No box is in the way. Under l0 it is what the three pixels win that win most at the border of the box.
    """
    entry, eps = registry.attacks.get(name), 3 if norm == "l0" else 0.01
    net, x, y = setup((5, 1, 4, 4), 2, 2, linear=True)
    x = 0.5 + 0.1 * (x - 0.5)
    w = (net.head.weight[1] - net.head.weight[0]).detach()
    w = torch.where(torch.arange(5)[:, None] % 2 == 0, w, -w)  # away from each row's own class
    known = registry.parameters(entry.fn)
    more = {name: value for name, value in {"steps": 40, "step_size": eps / 2}.items() if name in known}
    if norm == "l0":
        more.pop("step_size", None)
    with frozen(net):
        x_adv = run(entry, net, x, y, Ball(norm, eps), **more)
    gain = ((x_adv - x).flatten(1) * w).sum(1)
    if norm == "l0":
        room = torch.where(w > 0, 1 - x.flatten(1), -x.flatten(1))
        expected = (w * room).topk(eps, dim=1).values.sum(1)
    else:
        dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
        expected = eps * torch.linalg.vector_norm(w, ord=dual, dim=1)
    assert torch.allclose(gain, expected, rtol=1e-3 if norm != "linf" else 1e-4)


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_targeted_reaches_its_target_on_a_linear_model(name, norm):
    entry = registry.attacks.get(name)
    net, x, y = setup((6, 1, 4, 4), 3, 3, linear=True)
    eps = {"linf": 1.0, "l2": 4.0, "l1": 16.0, "l0": 16.0}[norm]
    target = (y + 1) % 3
    more = {"steps": 30} if "steps" in registry.parameters(entry.fn) else {}
    with frozen(net):
        x_adv = run(entry, net, x, y, Ball(norm, eps), target=target, **more)
        reached = net(x_adv).argmax(1) == target
    assert reached.float().mean() >= (1.0 if more else 0.5)


@pytest.mark.parametrize("name", [e.name for e in ENTRIES if "restarts" in registry.parameters(e.fn)])
def test_more_restarts_never_help_the_defender(name):
    """Trap: restarts that overwrite every sample because `~` was applied to a uint8 mask."""
    entry, ball = registry.attacks.get(name), Ball("linf", 0.15)
    net, x, y = setup((40, 3, 4, 4), 3, 4)
    right = []
    fewer = {name: 2 for name in ("steps", "queries") if name in registry.parameters(entry.fn)}
    with frozen(net):
        for restarts in (1, 2, 5):
            right.append(Criterion(y).hit(net(run(entry, net, x, y, ball, restarts=restarts, **fewer))))
    assert (right[1] >= right[0]).all() and (right[2] >= right[1]).all()


@pytest.mark.parametrize("name", [e.name for e in ENTRIES if "steps" in registry.parameters(e.fn)])
@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 2, "step_size": 0.0}, {"restarts": 0}])
def test_bad_parameters_are_named(name, bad):
    entry = registry.attacks.get(name)
    if not set(bad) <= set(registry.parameters(entry.fn)):
        pytest.skip("not a parameter of this attack")
    net, x, y = setup((2, 3, 4, 4), 3, 0)
    with pytest.raises(ValueError, match=next(reversed(bad))), frozen(net):
        run(entry, net, x, y, Ball("linf", 0.1), **bad)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_registration_tells_what_contract_tests_select_on(entry):
    facts = entry.facts
    assert facts.kind in {"fixed", "minimal", "unbounded"} and set(facts.norms) <= {"linf", "l2", "l1", "l0"}
    assert facts.needs in {"gradient", "scores", "decisions"} and len(facts.use) > 10
    assert {type(facts.deterministic), type(facts.starts_at_clean)} == {bool}
    assert facts.precision in {"bf16", "fp32"} and (facts.kind != "minimal" or facts.precision == "fp32")
    assert "arXiv" in entry.fn.__doc__ and "Source" in entry.fn.__doc__ and entry.summary


MINIMAL = [(name, norm) for name, norm in PAIRS if registry.attacks.get(name).facts.kind == "minimal"]


@pytest.mark.parametrize(("name", "norm"), MINIMAL)
@settings(max_examples=12, deadline=None)
@given(**{key: value for key, value in CASES.items() if key != "eps"})
def test_a_minimal_attack_answers_with_a_success_in_the_box_or_with_the_clean_point(
    name, norm, shape, classes, seed
):
    entry, ball = registry.attacks.get(name), ball_of(norm, 0.1)
    net, x, y = setup(shape, classes, seed)
    with frozen(net):
        oracle = Oracle(
            net,
            x,
            Criterion(y),
            rng=RowRandom(seed, "start", torch.arange(len(x))),
            keep="closest",
            ball=ball,
        )
        x_adv = entry.fn(oracle, x, ball, **params_for(entry))
        hit, wrong = Criterion(y).hit(net(x_adv)), Criterion(y).hit(net(x))
    assert torch.isfinite(x_adv).all() and float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    unmoved = (x_adv == x).flatten(1).all(1)
    margin = Criterion(y).bind("margin")(net(x_adv)).detach()
    assert (hit | unmoved | (margin.abs() < 1e-4)).all() and unmoved[
        wrong
    ].all()  # the closest success lies on the boundary

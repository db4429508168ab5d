"""TRADES, MART and NuAT: formulas in plain numpy float64, reductions, mixed labels, gradients, what attacks
ascend.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, kl_rows, mean_ce
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.evaluation.plan import Search
from robustcli.objectives.mart import boosted_ce, mart
from robustcli.objectives.natural import natural
from robustcli.objectives.nuat import nuat
from robustcli.objectives.trades import trades
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

ROBUST = {"trades": trades, "mart": mart, "nuat": nuat}
Y = np.array([0, 1, 2, 0, 1, 2])


def network(classes=3):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)  # answers that differ from image to image
    return net


def batch(y_soft=None):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 2, 2, generator=g, dtype=torch.float64)
    far = (x + 0.8 * torch.rand(x.shape, generator=g, dtype=torch.float64) - 0.4).clamp(0, 1)
    ids = torch.arange(6)
    return Batch(x, ids % 3, far, ids, Ball("linf", 0.4), RowRandom(0, "start", ids), y_soft)


def probabilities(net, b):
    """softmax(f(x)), softmax(f(x_adv)) and the difference of the logits, all numpy [6, K]."""
    clean, adv = (net(x).detach().numpy() for x in (b.x, b.x_adv))
    return (*(np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (clean, adv)), adv - clean)


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


def test_trades_by_hand():
    net = network()
    p, q, _ = probabilities(net, batch())
    label = 0.9 * np.eye(3)[Y] + 0.1 / 3
    got = trades(net, batch(), beta=2.5, label_smoothing=0.1)
    assert float(got.total.detach()) == pytest.approx(
        -(label * np.log(p)).sum(1).mean() + 2.5 * kl(p, q).mean(), rel=1e-12
    )
    assert (
        float(got.parts["robust"]) == pytest.approx(kl(p, q).mean(), rel=1e-12)
        and float(got.parts["robust"]) > 1e-3
    )


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_mart_by_hand(classes):
    """max_{k != y} of the attacked probabilities, row by row, two classes included."""
    net, b = network(classes), batch()
    y = Y % classes
    b = Batch(b.x, torch.tensor(y), b.x_adv, b.ids, b.ball, b.rng)
    p, q, _ = probabilities(net, b)
    rows = range(6)
    boosted = [
        -np.log(q[i, y[i]]) - np.log(1.0001 - max(q[i, k] for k in range(classes) if k != y[i]) + 1e-12)
        for i in rows
    ]
    doubt = [1.0000001 - p[i, y[i]] for i in rows]
    got = mart(net, b, beta=3.0)
    assert float(got.total.detach()) == pytest.approx(
        np.mean(boosted) + 3 * np.mean(kl(p, q) * doubt), rel=1e-10
    )
    assert float(mart(net, b, beta=0.0).total.detach()) == pytest.approx(np.mean(boosted), rel=1e-12)


def test_mart_is_finite_where_the_rival_is_certain():
    z = torch.tensor([[40.0, 0.0, 0.0], [0.0, 80.0, 0.0]], requires_grad=True)
    loss = boosted_ce(z, F.one_hot(torch.tensor([1, 1]), 3).float())
    assert loss.tolist() == pytest.approx([40 - np.log(1e-4), -np.log(1.0001)], rel=1e-3)
    assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


def test_nuat_by_hand():
    net = network()
    p, _, d = probabilities(net, batch())
    norm = np.linalg.svd(d, compute_uv=False).sum() / 6
    got = nuat(net, batch(), weight=1.5)
    assert float(got.total.detach()) == pytest.approx(-np.log(p[range(6), Y]).mean() + 1.5 * norm, rel=1e-12)
    assert float(got.parts["nuclear"]) == pytest.approx(norm, rel=1e-12) and norm > 1e-2


@pytest.mark.parametrize(("fn", "weight"), [(trades, "beta"), (nuat, "weight")])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_its_second_term_it_is_natural_training_bitwise(fn, weight, smoothing):
    net, answers = network().float(), []
    b = batch()
    b = Batch(b.x.float(), b.y, b.x_adv.float(), b.ids, b.ball, b.rng)
    for loss in (
        fn(net, b, **{weight: 0.0}, label_smoothing=smoothing),
        natural(net, b, label_smoothing=smoothing),
    ):
        answers.append([loss.total.detach(), *torch.autograd.grad(loss.total, list(net.parameters()))])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True))


@pytest.mark.parametrize("name", ROBUST)
def test_mixed_labels(name):
    """A one-hot distribution is a label; a true mixture changes the loss; the first term is linear in it."""
    net, fn = network(), ROBUST[name]
    hot = F.one_hot(batch().y, 3).double()
    assert torch.allclose(fn(net, batch(hot)).total, fn(net, batch()).total, rtol=1e-14)
    off = {"weight": 0.0} if name == "nuat" else {"beta": 0.0}
    turned = hot.roll(1, 1)
    mixed = fn(net, batch(0.7 * hot + 0.3 * turned), **off).total
    assert torch.allclose(
        mixed, 0.7 * fn(net, batch(hot), **off).total + 0.3 * fn(net, batch(turned), **off).total, rtol=1e-12
    )
    assert not torch.allclose(mixed, fn(net, batch(hot), **off).total)


def test_mixed_labels_in_mart_weigh_by_the_expected_probability():
    net = network()
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).softmax(1)
    p, q, _ = probabilities(net, batch())
    got = mart(net, batch(soft), beta=1.0).parts["robust"]
    assert float(got) == pytest.approx((kl(p, q) * (1.0000001 - (soft.numpy() * p).sum(1))).mean(), rel=1e-12)


@pytest.mark.parametrize("name", ROBUST)
def test_gradients(name):
    """Through both logits: a detached clean answer would fail here."""
    net, fn, b = network(), ROBUST[name], batch()
    names = [n for n, _ in net.named_parameters()]

    def loss(*parameters):
        return fn(
            lambda x: torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), x), b
        ).total

    assert torch.autograd.gradcheck(
        loss, tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    )


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("trades", "beta", -1.0), ("mart", "beta", -0.1), ("nuat", "weight", -1.0), ("trades", "beta", np.nan)],
)
def test_bad_weights_are_named(name, key, value):
    with pytest.raises(ValueError, match=f"{key} must be >= 0"):
        ROBUST[name](network(), batch(), **{key: value})


def test_half_precision_logits_are_widened():
    net = network().float()

    def half(x):
        return net(x.float()).to(torch.bfloat16)

    for fn in ROBUST.values():
        assert fn(half, batch()).total.dtype == torch.float32


# ---- what the attack ascends -------------------------------------------------------------------------------


def step(name, net, attack, **more):
    entry = registry.objectives.get(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return MinMax(
        StepSettings(net, entry.fn, entry.facts.inner, attack, Ball("linf", 0.3), optimizer, **more)
    )


def attacked(name, net, b, attack=None):
    attack = attack or (
        lambda oracle, x, ball: pgd(oracle, x, ball, steps=5, start="gaussian", start_scale=0.001)
    )
    return step(name, net, attack, search=Search().exact()).adversarial(
        b.x.float(), b.y, RowRandom(0, "start", b.ids)
    )


def test_the_trades_attack_ascends_kl_and_not_cross_entropy():
    """Trap: a TRADES whose inner attack is cross-entropy.

    Where the model is wrong and sure of it, the two part ways.
    """
    net, b = network().float(), batch()
    x = b.x.float()
    wrong = (net(x).argmax(1) + 1) % 3
    b = Batch(x, wrong, x, b.ids, b.ball, b.rng)
    ours, theirs = attacked("trades", net, b), attacked("madry", net, b)

    def kl_of(z):
        return kl_rows(net(z), net(x)).mean().detach()

    def ce_of(z):
        return mean_ce(net(z), b.y).detach()

    assert not torch.equal(ours, theirs)
    assert float(kl_of(ours)) > 1.5 * float(kl_of(theirs)) and float(ce_of(ours)) < float(ce_of(theirs))
    right = attacked("trades", net, Batch(x, net(x).argmax(1), x, b.ids, b.ball, b.rng))
    assert torch.equal(ours, right)  # the labels play no part


def test_the_trades_attack_compares_with_eval_mode_and_with_a_start_away_from_x():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    net[1].running_mean.uniform_(-1, 1)
    b, seen = batch(), []

    def attack(oracle, x, ball):
        seen.append(oracle.gradient(x).grad)
        return pgd(oracle, x, ball, steps=3, start="uniform")

    x_adv = attacked("trades", net.train(), b, attack)
    assert float(seen[0].abs().max()) < 1e-6  # at x itself KL is flat: eval mode against eval mode
    assert all(m.training for m in net.modules())
    frozen = net.eval()
    assert (kl_rows(frozen(x_adv), frozen(b.x.float())) > 0).all()


def test_the_nuat_attack_ascends_cross_entropy_and_the_norm():
    net, b = network().float(), batch()
    x = b.x.float()

    def first(oracle, x, ball):
        seen.append(oracle.gradient((x + 0.1).clamp(0, 1)).grad)
        return x

    seen = []
    attacked("nuat", net, b, first)
    near = (x + 0.1).clamp(0, 1).requires_grad_()
    batch_loss = (
        F.cross_entropy(net(near), b.y)
        + 4.0 * torch.linalg.matrix_norm(net(near) - net(x).detach(), "nuc") / 6
    )
    (expected,) = torch.autograd.grad(batch_loss * 6, near)
    assert torch.allclose(seen[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["trades", "nuat"])
def test_the_attack_by_name_is_the_attack_of_the_step(name):
    net, b = network().float().requires_grad_(False), batch()
    x = b.x.float()
    oracle = Oracle(
        net,
        x,
        Criterion(b.y),
        loss=registry.objectives.get(name).facts.inner,
        rng=RowRandom(0, "start", b.ids),
    )
    alone = pgd(oracle, x, Ball("linf", 0.3), steps=5, start="gaussian", start_scale=0.001)
    assert torch.equal(alone, attacked(name, network().float(), b))

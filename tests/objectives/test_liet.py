"""LIET by hand: its random labels, its divergence, and what the trainer tells it of the attack."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.fgsm import fgsm
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch
from robustcli.objectives.liet import js_rows, liet, smoothed_at_random
from robustcli.training.free import Free
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

IDS = torch.arange(6)


def network(classes=3):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)  # answers that differ from image to image
    return net


def batch(y_soft=None, progress=0.25):
    g = torch.Generator().manual_seed(0)
    x, begun, ended = torch.rand(3, 6, 1, 2, 2, generator=g, dtype=torch.float64)
    rng = RowRandom(0, "objective", IDS)
    ball = Ball("linf", 0.4)
    return Batch(x, IDS % 3, ended, IDS, ball, rng, y_soft, x_start=begun, progress=progress)


def test_the_labels_by_hand():
    """The image's class keeps 1 - s; the others share s by their draws."""
    b = batch()
    u = b.rng.stream("labels").uniform((3,)).numpy()
    got = smoothed_at_random(b, 3, 0.6).numpy()
    for i, y in enumerate(IDS % 3):
        rest = [k for k in range(3) if k != y]
        assert got[i, y] == pytest.approx(0.4) and got[i, rest] == pytest.approx(
            0.6 * u[i, rest] / u[i, rest].sum()
        )
    other = replace(b, rng=RowRandom(0, "objective", IDS, epoch=1))
    assert not torch.allclose(smoothed_at_random(other, 3, 0.6), torch.tensor(got)), "drawn for each epoch"
    assert torch.equal(smoothed_at_random(b, 3, 0.6), torch.tensor(got)), "and not for each call"


@pytest.mark.parametrize("soft", [[0.3, 0.7, 0.0], [0.2, 0.5, 0.3]])
def test_mixed_labels_give_to_the_classes_that_they_have_not(soft):
    got = smoothed_at_random(batch(torch.tensor(soft).expand(6, 3)), 3, 0.5)
    wanted = [0.15, 0.35, 0.5] if soft[2] == 0 else soft
    assert torch.allclose(got, torch.tensor(wanted).expand(6, 3))


def test_the_divergence_by_hand():
    g = torch.Generator().manual_seed(1)
    z, w = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    p, q = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in (z.numpy(), w.numpy()))
    m = (p + q) / 2
    by_hand = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    assert js_rows(z, w).numpy() == pytest.approx(by_hand, rel=1e-12)
    assert torch.equal(js_rows(z, z), torch.zeros(5)) and torch.allclose(js_rows(z, w), js_rows(w, z))
    far = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    apart = js_rows(far, far.flip(1))
    assert apart.tolist() == pytest.approx([np.log(2)] * 2)
    assert torch.autograd.grad(apart.sum(), far)[0].isfinite().all()


@pytest.mark.parametrize("progress", [0.25, 1.0])
def test_the_objective_by_hand(progress):
    net, b = network(), batch(progress=progress)
    p, q = (net(x).detach().softmax(1).numpy() for x in (b.x_start, b.x_adv))
    m, labels = (p + q) / 2, smoothed_at_random(b, 3, 0.6).numpy()
    apart = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)).mean() / 2
    got = liet(net, b, weight=40.0)
    assert float(got.total.detach()) == pytest.approx(
        -(labels * np.log(q)).sum(1).mean() + 40 * progress * apart, rel=1e-6
    )
    assert float(got.parts["divergence"]) == pytest.approx(apart, rel=1e-9) and apart > 1e-3


def test_without_a_start_it_begins_at_the_image_and_without_weight_it_asks_once():
    net, b, asked = network(), batch(), []

    def watched(x):
        asked.append(x)
        return net(x)

    one = liet(watched, replace(b, x_start=None)).total
    assert [x is b.x for x in asked] == [False, True] and torch.equal(
        one, liet(net, replace(b, x_start=b.x)).total
    )
    asked.clear()
    assert set(liet(watched, b, weight=0).parts) == {"adversarial"} and len(asked) == 1


@pytest.mark.parametrize("told", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"weight": -1.0}])
def test_bad_parameters_are_named(told):
    with pytest.raises(ValueError, match=next(iter(told))):
        liet(network(), batch(), **told)


# ---- what the trainer tells --------------------------------------------------------------------------------

X = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(3))


def seen(attack, make=MinMax, **more):
    """The batches that an objective sees in one step at the share 0.75 of a run."""
    net, batches = network().float(), []

    def recorded(model, batch):
        batches.append(batch)
        return liet(model, batch)

    inner = more.pop("inner", "ce")
    settings = StepSettings(
        net, recorded, inner, attack, Ball("linf", 0.1), torch.optim.SGD(net.parameters(), lr=0.1), **more
    )
    make(settings)(X, IDS % 3, IDS, seed=0, epoch=0, progress=0.75)
    return batches


@pytest.mark.parametrize("micro", [None, 4])
def test_the_start_is_where_the_attack_asked_first(micro):
    def attack(oracle, x, ball):
        return pgd(oracle, x, ball, steps=3, start="uniform")

    batches = seen(attack, micro_batch=micro)
    begun = Ball("linf", 0.1).start(X, "uniform", RowRandom(0, "start", IDS).restart(0))
    assert torch.equal(torch.cat([b.x_start for b in batches]), begun)
    assert not any(b.x_start.requires_grad for b in batches), "or the loss would pay for a slope of pixels"
    assert {b.progress for b in batches} == {0.75} and len(batches) == (2 if micro else 1)


def test_the_start_of_other_trainings():
    """Attacks without a gradient and free training begin at the image, and natural training has no attack."""
    asks_nothing = seen(lambda oracle, x, ball: oracle.result(x + 0.01))
    assert torch.equal(asks_nothing[0].x_start, X)
    assert seen(fgsm, inner=None)[0].x_start is None
    free = seen(fgsm, make=lambda settings: Free(settings, 2))
    assert [(b.x_start, b.progress) for b in free] == [(None, 0.75)] * 2


def test_it_is_registered_with_what_it_costs():
    facts = registry.objectives.get("liet").facts
    assert (facts.inner, facts.passes) == ("ce", 6)

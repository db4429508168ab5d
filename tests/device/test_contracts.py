"""Whatever is registered runs on a device as on the CPU: no tensor on the wrong side, and the same answers.

The device is a pretended one whose kernels are those of the CPU, so numbers are compared, too.
"""

import copy

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import LossTerms
from robustcli.defences.ballot import Behind
from robustcli.training.free import Free
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

ROWS, K = 4, 4
PLACES = (torch.device("cpu"), torch.device("cuda", 0))
PAIRS = [(entry.name, norm) for entry in registry.attacks for norm in entry.facts.norms]
FEW = {"steps": 2, "queries": 6, "draws": 2, "targets": 2}


def network(place, bounds=False):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU() if bounds else nn.Softplus()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * 64, K)).to(place)


def images(place, shape=(ROWS, 3, 8, 8)):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(place)
    return x, torch.arange(len(x), device=place) % K, torch.arange(len(x), device=place)


def params_of(entry):
    return {name: value for name, value in FEW.items() if name in registry.parameters(entry.fn)}


def found(entry, norm, place, *, watched=True, **more):
    """x_adv on the CPU, how often the model was asked, and how many gradients were 0."""
    net, (x, y, ids), ball = network(place).eval(), images(place), Ball(norm, 2.0 if norm == "l0" else 0.2)
    with frozen(net):
        wrong = net(x).argmax(1)
        y = torch.where(ids % 2 == 0, wrong, y)

        def watch(rows, points):
            return (net(points).argmax(1) != y[rows]) & ball.contains(x[rows], points)

        keep = "closest" if entry.facts.kind == "minimal" else "best"
        oracle = Oracle(
            SearchTwin(net) if watched else net,
            x,
            Criterion(y),
            rng=RowRandom(0, "start", ids),
            keep=keep,
            watch=watch if watched else None,
            ball=ball,
        )
        x_adv = entry.fn(oracle, x, ball, **params_of(entry), **more)
        assert x_adv.device.type == place.type
        return x_adv.cpu(), oracle.forward_rows, oracle.zero_gradient_rows


def alike(entry, norm, **more):
    here, there = (found(entry, norm, place, **more) for place in PLACES)
    torch.testing.assert_close(there[0], here[0], rtol=0, atol=1e-6)
    assert there[2] == here[2]


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_attacks(device, name, norm):
    """A twin searches, and the model confirms."""
    alike(registry.attacks.get(name), norm)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_attacks_that_begin_anew_and_that_nobody_watches(device, name):
    alike(registry.attacks.get(name), "linf", watched=False, restarts=2)


def settings_of(place, objective="madry", term=None, hooks=()):
    entry = registry.objectives.get(objective)
    net = network(place, bounds="ibp" in objective or objective == "sabr")
    loss = entry.fn
    if term is not None:

        def loss(model, batch):
            terms, added = entry.fn(model, batch), term(model, batch)
            return LossTerms(terms.total + added, {**terms.parts, "added": added.detach()})

    attack = registry.attacks.get("pgd").fn
    return StepSettings(
        net,
        loss,
        entry.facts.inner,
        lambda oracle, x, ball: attack(oracle, x, ball, steps=2),
        Ball("l2" if entry.facts.view else "linf", 0.1),
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        hooks=[registry.hooks.get(name).fn(net) for name in hooks],
    )


def trained(place, step=MinMax, **more):
    """Weights and buffers after three steps, and the loss terms of the last."""
    settings = settings_of(place, **more)
    training, (x, y, ids) = step(settings), images(place)
    for number in range(3):
        terms = training(x, y, ids, seed=0, epoch=0, progress=(number + 0.5) / 3)
        assert terms.total.device.type == "cpu"
    averages = [hook.averaged() for hook in settings.hooks]
    for hook in settings.hooks:
        hook.refresh([x])
    parts = [settings.model, *(module for module in averages if module is not None)]
    states = [tensor.detach().cpu() for module in parts for tensor in module.state_dict().values()]
    return [*states, terms.total, *terms.parts.values()]


def same(**more):
    here, there = (trained(place, **copy.copy(more)) for place in PLACES)
    for one, other in zip(there, here, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", registry.objectives.names())
def test_objectives(device, name):
    same(objective=name)


@pytest.mark.parametrize("name", registry.regularizers.names())
def test_regularizers(device, name):
    same(term=registry.regularizers.get(name).fn)


@pytest.mark.parametrize("name", registry.hooks.names())
def test_hooks(device, name):
    same(hooks=[name])


def test_free_training(device):
    same(step=lambda settings: Free(settings, 2, None))


@pytest.mark.parametrize("entry", list(registry.defences), ids=lambda entry: entry.name)
def test_defences(device, entry):
    """Fitted on the device, asked for an answer and a gradient there."""
    place = PLACES[1]
    x, y, _ = images(place)
    nets = [network(place).eval().requires_grad_(False) for _ in range(3)]

    def each(x):
        return torch.stack([net(x) for net in nets])

    def net(x):
        return each(x).mean(0)

    module, behind = entry.fn(), Behind(net, each)
    if hasattr(module, "shaped"):
        module.shaped(tuple(x.shape[1:]), K)
    module.to(place)
    if entry.facts.fit == "statistics":
        module.observe(x, y, net(x), behind)
        module.settle()
    elif entry.facts.fit == "training":
        module.loss(x).backward()
        assert all(weight.grad.is_cuda for weight in module.parameters() if weight.grad is not None)
    point = x.clone().requires_grad_()
    if entry.facts.kind == "purifier":
        answer = module(point)
    elif entry.facts.kind == "detector":
        answer = module(point, net(point), behind)
    else:
        answer = module(each(point))[0]
    (grad,) = torch.autograd.grad(answer.sum(), point)
    assert answer.is_cuda and grad.is_cuda and bool(grad.isfinite().all())

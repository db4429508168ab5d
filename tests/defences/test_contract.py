"""Every registered defence, on the day it is registered."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core.modes import frozen
from robustcli.defences.ballot import Behind

ENTRIES = list(registry.defences)
SHAPES = [(5, 1, 8, 8), (3, 3, 9, 12), (2, 2, 4, 5)]
K = 4


class Net(nn.Module):
    """A smooth classifier of any shape, which counts its passes."""

    def __init__(self, shape, members=1):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        inputs = shape[1] * shape[2] * shape[3]
        weights = torch.randn(members, inputs, K, generator=generator) / inputs**0.5
        self.register_buffer("weights", weights)
        self.passes = 0

    def each(self, x):
        self.passes += 1
        return (torch.sin(3 * x.flatten(1)) @ self.weights.to(x.dtype)) * 3

    def forward(self, x):
        return self.each(x).mean(0)

    def behind(self):
        return Behind(self.forward, self.each)


def images(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def unfitted(entry, shape):
    """A fresh module, with room for what `guard fit` finds out."""
    torch.manual_seed(7)
    module = entry.fn()
    if hasattr(module, "shaped"):
        module.shaped(tuple(shape[1:]), K)
    return module.eval()


def fitted(entry, shape, net):
    module = unfitted(entry, shape)
    if entry.facts.fit == "statistics":
        for seed in range(4):
            x = images(shape, seed)
            module.observe(x, torch.arange(len(x)) % K, net(x), net.behind())
        module.settle()
    return module.eval()


def answer(entry, module, x, net):
    """One float tensor: the changed image, the score, or votes and doubt."""
    if entry.facts.kind == "purifier":
        return module(x)
    if entry.facts.kind == "detector":
        return module(x, net(x), net.behind())
    logits, doubt = module(net.each(x))
    return logits if doubt is None else torch.cat([logits, doubt[:, None]], 1)


def slope(entry, module, point, net):
    """The gradient of a sum of all outputs with weights of their own; a constant sum has none."""
    found = answer(entry, module, point, net)
    weights = torch.linspace(1, 2, found[0].numel()).view_as(found[0])
    (grad,) = torch.autograd.grad((found * weights).sum(), point)
    return grad


def case(entry, shape=SHAPES[0], members=3):
    net = Net(shape, members)
    return fitted(entry, shape, net), images(shape), net


by_name = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_range_and_type(entry, shape, dtype):
    module, x, net = case(entry, shape)
    x = x.to(dtype)
    module.requires_grad_(False)
    for point in (x, torch.zeros_like(x), torch.ones_like(x)):
        found = answer(entry, module, point, net)
        assert torch.isfinite(found).all()
        if entry.facts.kind == "purifier":
            assert found.shape == x.shape and found.dtype == dtype
            assert 0 <= float(found.min()) and float(found.max()) <= 1
        elif entry.facts.kind == "detector":
            assert found.shape == (len(x),) and found.dtype == torch.float32
        else:
            assert found.shape == (len(x), K)


@by_name
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gradient_exists_and_is_finite(entry, shape):
    module, x, net = case(entry, shape)
    x.requires_grad_(True)
    for point in (x, torch.full_like(x, 0.5).requires_grad_(True)):
        assert torch.isfinite(slope(entry, module, point, net)).all()
    assert (slope(entry, module, x, net).flatten(1) != 0).any(1).all()


@by_name
def test_random_ones_draw_anew_and_others_repeat(entry):
    module, x, net = case(entry)
    answers = [answer(entry, module, x, net) for _ in range(8)]
    same = [torch.equal(answers[0], other) for other in answers[1:]]
    assert not all(same) if entry.facts.random else all(same)
    torch.manual_seed(1)
    first = answer(entry, module, x, net)
    torch.manual_seed(1)
    assert torch.equal(first, answer(entry, module, x, net))


def defaults(entry):
    return {p.name: p.default for p in registry.parameters(entry.fn).values()}


@by_name
def test_passes_are_those_that_it_makes(entry):
    module, x, net = case(entry)
    logits, net.passes = net(x), 0
    if entry.facts.kind == "purifier":
        module(x)
    elif entry.facts.kind == "detector":
        module(x, logits, net.behind())
    else:
        module(logits[None])
    assert net.passes == entry.facts.passes(defaults(entry))


@pytest.mark.parametrize("members", [1, 2, 5])
@by_name
def test_no_score_lies_above_its_bound(entry, members):
    """Scores of images, of noise, and where the networks are as sure and as apart as they can be."""
    if entry.facts.highest is None:
        return
    params = defaults(entry) | ({"rule": "abstain", "quorum": members} if entry.name == "ensemble" else {})
    bound, net = entry.facts.highest(params, members, K), Net(SHAPES[0], members)
    net.weights *= 1e4
    module, x = fitted(entry, SHAPES[0], net), images(SHAPES[0])
    if entry.name == "ensemble":
        scores = entry.fn(**params)(net.each(torch.cat([x, x.round()]))).doubt
    else:
        scores = torch.cat([module(at, net(at), net.behind()) for at in (x, x.round(), 0 * x)])
    assert scores.max() <= bound + 1e-6


@by_name
def test_a_fresh_module_takes_the_state(entry):
    module, x, net = case(entry)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fresh = unfitted(entry, x.shape)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    fresh.load_state_dict(state, strict=True)
    torch.manual_seed(1)
    expected = answer(entry, module, x, net)
    torch.manual_seed(1)
    assert torch.equal(expected, answer(entry, fresh, x, net))


@by_name
def test_a_pass_leaves_no_trace(entry):
    module, x, net = case(entry)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kept, modes = x.clone(), [part.training for part in module.modules()]
    with frozen(module):
        point = x.clone().requires_grad_(True)
        answer(entry, module, point, net).sum().backward()
    assert torch.equal(x, kept) and modes == [part.training for part in module.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


@by_name
def test_rows_do_not_see_each_other(entry):
    module, x, net = case(entry)
    torch.manual_seed(1)
    whole = answer(entry, module, x, net)
    alone = answer(entry, module, x[2:3], net)
    if not entry.facts.random:
        torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


@by_name
def test_what_needs_fitting_has_the_means_for_it(entry):
    module, x, _ = case(entry)
    if entry.facts.fit == "training":
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = module.loss(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    else:
        assert not list(module.parameters())
    assert (entry.facts.fit == "statistics") == hasattr(module, "settle")
    assert len(entry.facts.use) > 10

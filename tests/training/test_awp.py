"""Adversarial weight perturbation against the formula by hand, and against the known mistakes."""

import pytest
import torch
from torch import nn

from robustcli.training.hook import StepContext
from robustcli.training.hooks.awp import awp

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def linear():
    torch.manual_seed(2)
    return nn.Linear(3, 2).double()


def deep():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def squared(net):
    return ((net(X) - Y) ** 2).mean()


def context(net, loss=squared, progress=0.5, calls=None):
    def gradients(wanted):
        if calls is not None:
            calls.append(len(wanted))
        return list(torch.autograd.grad(loss(net), wanted, materialize_grads=True))

    return StepContext(net, gradients, progress)


def step(net, hook, now, lr=0.1):
    hook.before_loss(now)
    net.zero_grad()
    squared(net).backward()
    torch.optim.SGD(net.parameters(), lr=lr).step()
    hook.after_step(now)


def by_hand(weight, bias):
    """(dL/dW, dL/db) of mean((X W' + b - Y)^2) = 2/12 R'X and 2/12 R'1, R = X W' + b - Y."""
    residual = X @ weight.T + bias - Y
    return residual.T @ X / 6, residual.sum(0) / 6


def test_one_step_of_a_linear_model_by_hand():
    net, gamma, lr = linear(), 0.3, 0.1
    w, b = net.weight.detach().clone(), net.bias.detach().clone()
    g, _ = by_hand(w, b)
    v = gamma * w.square().sum().sqrt() / g.square().sum().sqrt() * g
    outer_w, outer_b = by_hand(w + v, b)
    step(net, awp(net, gamma=gamma), context(net), lr)
    torch.testing.assert_close(net.weight.detach(), (w + v - lr * outer_w) - v, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.bias.detach(), b - lr * outer_b, rtol=1e-12, atol=1e-14)
    plain_w, _ = by_hand(w, b)
    assert not torch.allclose(outer_w, plain_w, rtol=1e-3)  # so the perturbation was felt


def test_each_tensor_has_its_own_ratio_and_vectors_stay():
    """Trap: one global ratio of norms gives small layers a wrong step. Biases and BatchNorm stay."""
    net = deep()
    with torch.no_grad():
        net[3].weight.mul_(50)  # the layers' gradients differ by orders of magnitude
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = dict(zip(before, torch.autograd.grad(squared(net), list(net.parameters())), strict=True))
    awp(net, gamma=0.01).before_loss(context(net))
    for name, p in net.named_parameters():
        moved = p.detach() - before[name]
        if p.dim() == 1:
            assert not moved.any()
            continue
        assert float(moved.norm() / before[name].norm()) == pytest.approx(0.01, rel=1e-9)
        assert float((moved * grads[name]).sum() / moved.norm() / grads[name].norm()) == pytest.approx(
            1, rel=1e-9
        )  # uphill
    ratios = [float(before[k].norm() / grads[k].norm()) for k in ("0.weight", "3.weight")]
    assert max(ratios) > 3 * min(ratios)  # a global ratio would have failed above


def test_the_loss_rises_by_gamma_times_the_norms_to_first_order():
    net, gamma = linear(), 1e-6
    g, _ = by_hand(net.weight.detach(), net.bias.detach())
    expected = gamma * net.weight.detach().norm().item() * g.norm().item()
    low = squared(net).item()
    awp(net, gamma=gamma).before_loss(context(net))
    assert squared(net).item() - low == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_undo_is_bitwise_and_a_second_undo_does_nothing(dtype):
    net = (
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.Conv2d(5, 3, 3)).to(dtype).to(memory_format=torch.channels_last)
    )
    x = torch.rand(2, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(0))
    before = [p.detach().clone() for p in net.parameters()]
    hook, now = awp(net, gamma=0.37), context(net, lambda net: net(x).square().mean())
    hook.before_loss(now)
    assert not torch.equal(net[0].weight, before[0])
    hook.undo(now)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    with torch.no_grad():
        net[0].weight.zero_()
    hook.undo(now)
    hook.after_step(now)
    assert not net[0].weight.any()
    hook.before_loss(now)  # a thrown-away step does not block the next


def test_a_step_neither_finished_nor_undone_is_a_bug():
    net = linear()
    hook = awp(net)
    hook.before_loss(context(net))
    with pytest.raises(AssertionError, match="undone"):
        hook.before_loss(context(net))


@pytest.mark.parametrize(("more", "progress"), [({"gamma": 0.0}, 0.5), ({"gamma": 0.1, "warmup": 0.5}, 0.49)])
def test_switched_off_is_the_plain_step_without_a_pass(more, progress):
    net, plain, calls = deep(), deep(), []
    hook = awp(net, **more)
    for _ in range(3):
        step(net, hook, context(net, progress=progress, calls=calls))
        plain.zero_grad()
        squared(plain).backward()
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert calls == [] and all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_it_works_from_the_warm_up_on_with_one_pass_for_the_matrices_only():
    net, calls = deep(), []
    hook = awp(net, warmup=0.5)
    step(net, hook, context(net, progress=0.5, calls=calls))
    assert calls == [2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_gradient_perturbs_nothing(bad):
    net = deep()
    before = [p.detach().clone() for p in net.parameters()]
    awp(net).before_loss(context(net, lambda net: squared(net) + bad * net[3].weight.sum()))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


class Sum(nn.Module):
    """W = first + second: autograd hands out one gradient tensor for both.

    `unused` gets none, `fixed` must not.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.unused, self.fixed = (
            nn.Parameter(torch.randn(2, 3, dtype=torch.float64)) for _ in range(4)
        )
        self.fixed.requires_grad_(False)

    def forward(self, x):
        return x @ (self.first + self.second + self.fixed).T


def test_shared_and_missing_gradients():
    """Trap: gradients scaled in place are scaled twice when two weights share one tensor."""
    net = Sum()
    before = [p.detach().clone() for p in net.parameters()]
    awp(net, gamma=0.1).before_loss(context(net))
    sizes = [
        ((p.detach() - q).norm() / q.norm()).item() for p, q in zip(net.parameters(), before, strict=True)
    ]
    assert sizes == pytest.approx([0.1, 0.1, 0, 0], rel=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [{"gamma": -0.1}, {"gamma": float("nan")}, {"gamma": float("inf")}, {"warmup": 1.0}, {"warmup": -0.1}],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        awp(linear(), **wrong)

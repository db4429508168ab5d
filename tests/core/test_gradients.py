"""Straight-through and rescaled models: the same values, gradients where there were none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from robustcli.core.gradients import distribution_rows, rescaled, straight_through

#: Piecewise-constant maps of u = 4 x - 1, and what straight-through takes for their derivative in u (None:
#: any but zero).
OPERATIONS = {
    "round": (lambda u: u.round(), 1.0),
    "round to decimals": (lambda u: torch.round(u, decimals=1), 1.0),
    "floor": (torch.floor, 1.0),
    "ceil in place": (lambda u: (u * 1).ceil_(), 1.0),
    "trunc in place, name kept": (lambda u: [v := u * 1, v.trunc_(), v * 2][2], 2.0),
    "sign": (lambda u: u.sign(), None),
    "heaviside": (lambda u: torch.heaviside(u, torch.ones(())), None),
    "int": (lambda u: u.int() / 3, 1 / 3),
    "long, then arithmetic": (lambda u: (u.long() * 2 + 1).float(), 2.0),
    "to uint8 and back": (lambda u: (u * 60 + 60).to(torch.uint8).to(u.dtype) / 255, 60 / 255),
    "byte, then div": (lambda u: (u * 60 + 60).byte().div(255), 60 / 255),
    "int, clamped in place": (lambda u: [q := (u * 10).int(), q.clamp_(-100, 100), q.float()][2], 10.0),
    "int //": (lambda u: ((u * 40 + 40).int() // 8).float(), 5.0),
    "//": (lambda u: u // 0.25, 4.0),
    "div floor": (lambda u: torch.div(u, 0.5, rounding_mode="floor"), 2.0),
    "mask": (lambda u: (u > 0.5).float(), None),
    "mask times": (lambda u: torch.ones_like(u) * (u >= 0), None),
    "where": (lambda u: torch.where(u > 0.3, 2.0, 1.0), None),
    "stacked masks": (lambda u: torch.stack([u > 0, u > 1]).float().sum(0), None),
}  # fmt: skip


def points(n=64):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_piecewise_constant_operations_keep_their_values_and_get_a_gradient(name):
    apply, slope = OPERATIONS[name]

    def model(x):
        return apply(4 * x - 1)

    x = points()
    plain, passed = model(x), straight_through(model)(x)
    assert torch.equal(plain, passed) and plain.dtype == passed.dtype
    if plain.requires_grad and name not in ("heaviside", "//"):  # torch has no derivative of these
        assert not torch.autograd.grad(plain.sum(), x)[0].any()
    (grad,) = torch.autograd.grad(passed.sum(), x)
    assert (
        torch.allclose(grad, torch.full_like(grad, 4 * slope))
        if slope is not None
        else bool((grad > 0).all())
    )


@pytest.mark.parametrize("write", ["less", "not"])
def test_falling_masks_have_falling_gradients(write):
    x = points()
    out = straight_through(lambda x: ((x < 0.5) if write == "less" else ~(x >= 0.5)).float())(x)
    assert torch.equal(out, (x < 0.5).float()) and bool((torch.autograd.grad(out.sum(), x)[0] < 0).all())


@pytest.mark.parametrize(
    "one_hot",
    [
        lambda z: F.one_hot(z.argmax(1), 3).float(),
        lambda z: torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1.0),
        lambda z: torch.eye(3)[z.argmax(1)],
    ],
)
def test_one_hot_answers_pass_the_gradient_of_the_scores(one_hot):
    x = points()
    out = straight_through(one_hot)(x)
    assert torch.equal(out, one_hot(x)) and torch.equal(
        torch.autograd.grad((out * torch.arange(3.0)).sum(), x)[0], torch.arange(3.0).expand(64, 3)
    )


class Busy(nn.Module):
    """Honest, and full of operations that straight-through looks at.

    Those are indices, shapes, counters, comparisons and in-place writes.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 16, 5)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        z = self.conv(x)
        self.seen += (z > 0).sum()
        self.count += (z > 0).long().sum()
        order = z.flatten(1).argsort(1)
        z = z.clone()
        z[z < -2] = -2
        z = torch.where(z > 0, z, 0.1 * z) + z.flatten(1).gather(1, order)[:, :1, None, None] * (
            z.shape[0] > 0
        )
        bits = (z > 0).int() & 1
        return self.head(z.flatten(1)) + 0.0 * bits.sum((1, 2, 3))[:, None] + 0.0 * int((x > 0.5).sum())


def test_an_honest_model_is_left_alone():
    net = Busy()
    x = torch.rand(6, 1, 4, 4).requires_grad_(True)
    plain, passed = net(x), straight_through(net)(x)
    assert torch.equal(plain, passed) and not net.seen.requires_grad
    one, other = (torch.autograd.grad(z.square().sum(), x)[0] for z in (plain, passed))
    assert torch.allclose(one, other, atol=1e-6)
    again = straight_through(net)(x)  # nothing of the first call is left
    torch.autograd.grad(again.sum(), x)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.integers(2, 9), depth=st.integers(1, 3))
def test_values_never_change(seed, levels, depth):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 6) for _ in range(depth)]

    def model(x):
        for layer in layers:
            q = (x * levels).round().int()
            x = layer((q.clamp(0, levels) // 2).to(x.dtype) / levels * (x > 0.1) + x.sign())
        return x

    x = torch.rand(5, 6).requires_grad_(True)
    passed = straight_through(model)(x)
    assert torch.equal(model(x), passed) and torch.autograd.grad(passed.sum(), x)[0].isfinite().all()


def test_without_gradients_nothing_is_intercepted():
    x = points()
    with torch.no_grad():
        assert not straight_through(torch.round)(x).requires_grad
    assert not straight_through(torch.round)(x.detach()).requires_grad


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 3, 10]),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 1e4, 1e8]),
    softmax=st.booleans(),
)
def test_rescaled_logits_keep_the_class_and_give_cross_entropy_a_gradient(seed, classes, scale, softmax):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(6, classes, generator=g) * (max(0.01, min(scale, 10.0)) if softmax else scale)
    z = (z.softmax(1) if softmax else z).requires_grad_(True)
    out = rescaled(lambda x: x)(z)
    assert torch.equal(out.argmax(1), z.argmax(1))
    span = out.amax(1) - out.amin(1)
    assert torch.allclose(span, torch.full_like(span, 10.0), rtol=1e-3)
    loss = F.cross_entropy(out, z.argmax(1))
    (grad,) = torch.autograd.grad(loss, z)
    assert float(loss.detach()) > 1e-6 and grad.isfinite().all() and bool(grad.ne(0).any(1).all())


def test_rescaling_is_exact_on_probabilities_and_harmless_on_the_rest():
    z = torch.tensor([[0.0, 1.0, 3.0]])
    same = [rescaled(lambda x: x)(part).log_softmax(1) for part in (z, z.softmax(1))]
    assert torch.allclose(same[0], same[1], atol=1e-5) and torch.allclose(
        same[0], (z * 10 / 3).log_softmax(1), atol=1e-5
    )
    flat = torch.ones(2, 4)
    assert torch.equal(rescaled(lambda x: x)(flat), flat) and rescaled(lambda x: x)(
        torch.zeros(0, 4)
    ).shape == (0, 4)
    assert distribution_rows(torch.tensor([[0.2, 0.8], [0.0, 1.0], [0.5, 0.6], [-0.1, 1.1]])).tolist() == [
        True,
        False,
        False,
        False,
    ]

"""Every registered input transform, and how attacks take them."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.transforms import copies, views
from robustcli.attacks.transforms.ti import smoothed
from robustcli.config.bind import check_spec
from robustcli.core.blocks import Line, cuts, sampled
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.views import gradient_over

ENTRIES = list(registry.transforms)
NAMES = [entry.name for entry in ENTRIES]
TAKERS = [e.name for e in registry.attacks if "transforms" in registry.parameters(e.fn)]
ROWS = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 54, 4)

    def forward(self, x):
        return 3 * self.head(torch.sin(4 * self.conv(x - 0.5)).flatten(1))


def images(rows=ROWS):
    return torch.rand(rows, 3, 6, 9, generator=torch.Generator().manual_seed(1))


def rng(ids=range(ROWS), seed=0):
    return RowRandom(seed, "start", torch.tensor(list(ids)))


def ask(net, x, y, ids=range(ROWS), **more):
    return Oracle(net, x, Criterion(y), rng=rng(ids), **more)


def test_the_family_is_complete_and_the_momentum_attacks_take_it():
    assert set(NAMES) >= {"di", "ti", "si", "sia"} and set(TAKERS) >= {"mi_fgsm", "vmi_fgsm", "bsr"}


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_a_registration_says_what_the_function_does(entry):
    """Range, shape, draws per row, stillness, and a gradient that reaches the pixels."""
    x = images().requires_grad_(True)
    stream = rng()
    for copy in range(entry.facts.copies):
        seen = entry.fn(x, stream, copy)
        assert seen.shape == x.shape and ((seen >= 0) & (seen <= 1)).all()
        assert not entry.facts.still or torch.equal(seen, x)
        (grad,) = torch.autograd.grad(seen.sum(), x)
        assert torch.isfinite(grad).all() and (grad != 0).any()
    assert (stream._draw > 0) is entry.facts.random
    turned = entry.fn(x.flip(0), rng(reversed(range(ROWS))), 0).flip(0)
    assert torch.equal(turned, entry.fn(x, rng(), 0)), "draws belong to the row"
    assert "arXiv" in entry.fn.__doc__ and "Source" in entry.fn.__doc__ and len(entry.facts.use) > 10


@pytest.mark.parametrize("attack", TAKERS)
@pytest.mark.parametrize("names", [*[(name,) for name in NAMES], ("di", "ti")], ids=",".join)
def test_attacks_keep_their_contract_under_transforms(attack, names):
    """In the ball, the same in any batch, and at the stated cost."""
    net, x = Net(), images()
    y, ball = net(x).argmax(1), Ball("linf", 0.1)
    entry = registry.attacks.get(attack)
    own = registry.parameters(entry.fn)
    steps = 2 if copies(names) < 5 else 1
    given = {key: value for key, value in {"steps": steps, "samples": 1, "copies": 1}.items() if key in own}
    given["transforms"] = names
    with frozen(net):
        oracle = ask(net, x, y, keep="best", clean_logits=net(x))
        whole = entry.fn(oracle, x, ball, **given)
        halves = [
            entry.fn(
                ask(net, x[k : k + 2], y[k : k + 2], range(k, k + 2), keep="best"),
                x[k : k + 2],
                ball,
                **given,
            )
            for k in (0, 2)
        ]
    assert ball.contains(x, whole).all() and torch.allclose(whole, torch.cat(halves), atol=1e-6)
    stated = entry.facts.passes(
        {"transforms": (), **{k: p.default for k, p in own.items()}, **given}, 4, "linf"
    )
    assert oracle.forward_rows + oracle.backward_rows == stated * ROWS


@pytest.mark.parametrize("names", [("si",), ("si", "di"), ("di", "ti")], ids=",".join)
def test_the_gradient_is_the_mean_over_all_copies(names):
    net, x = Net(), images()
    y = net(x).argmax(1)
    with frozen(net):
        found = gradient_over(ask(net, x, y), x, views(names))
        stream, point = rng(), x.clone().requires_grad_(True)
        total = 0
        for view in views(names):
            total = total + nn.functional.cross_entropy(net(view.show(point, stream)), y, reduction="sum")
        (expected,) = torch.autograd.grad(total / copies(names), point)
    assert torch.allclose(found, expected, atol=1e-6)


def test_only_untransformed_points_are_met():
    """A darker copy would be a success at once, and is none."""

    class Bright(nn.Module):
        def forward(self, x):
            lead = x.mean((1, 2, 3)) - 0.3
            return torch.stack((lead, -lead), 1)

    x, y = 0.2 + 0.0 * images() + 0.4, torch.zeros(ROWS, dtype=torch.int64)
    for names in ("si",), ("sia",), ("di", "si"):
        oracle = ask(Bright(), x, y, keep="best")
        registry.attacks.get("mi_fgsm").fn(oracle, x, Ball("linf", 1e-3), steps=2, transforms=names)
        assert not oracle._best.hits.any(), names


def test_a_smoothed_gradient_alone_leaves_the_points_on_the_way_known():
    """TI changes no pixel: each point on the way is met, and a row may fall there."""
    net, x = Net(), images()
    y = (net(x).argmax(1) + 1) % 4
    watch = {"keep": "best", "watch": lambda rows, candidates: torch.ones(len(rows), dtype=torch.bool)}
    oracle = ask(net, x, y, **watch)
    with frozen(net):
        registry.attacks.get("mi_fgsm").fn(oracle, x, Ball("linf", 0.1), steps=5, transforms=("ti",))
    assert oracle.backward_rows == ROWS


def test_ti_is_a_gaussian_that_keeps_the_sum():
    grad = torch.zeros(1, 1, 9, 11)
    grad[0, 0, 4, 5] = 1
    found = smoothed(grad)
    assert found.sum() == pytest.approx(1) and found[0, 0, 4, 5] == found.max()
    assert torch.allclose(found, found.flip(2)) and torch.allclose(found, found.flip(3))
    big = torch.zeros(1, 1, 299, 299)
    big[0, 0, 150, 150] = 1
    assert int((smoothed(big) != 0).sum()) == 15 * 15, "the kernel of the paper at its size"


def test_si_halves_again_and_again():
    x = images()
    assert [float((view.show(x, rng()) / x)[0, 0, 0, 0]) for view in views(("si",))] == [
        1,
        0.5,
        0.25,
        0.125,
        0.0625,
    ]


def test_di_leaves_half_of_the_images_and_shrinks_the_others():
    x = torch.ones(400, 1, 8, 8)
    seen = registry.transforms.get("di").fn(x, rng(range(400)), 0)
    same = (seen == x).flatten(1).all(1)
    assert 150 < int(same.sum()) < 250
    inside = seen[~same].mean((1, 2, 3))
    assert float(inside.min()) >= 1 / 1.1**2 - 0.02 and float(inside.max()) < 1


def test_sia_changes_each_block_in_one_way():
    """Of an image of one colour only scaled and noisy blocks differ."""
    x = torch.full((200, 1, 12, 12), 0.5)
    seen = registry.transforms.get("sia").fn(x, rng(range(200)), 0)
    changed = (seen != 0.5).float().mean()
    assert 0.15 < float(changed) < 0.45  # two of seven ways
    assert float(seen.max()) <= 0.5 + 16 / 255 + 1e-6


def test_cuts_go_from_end_to_end_and_a_sample_outside_its_line_is_zero():
    bounds = cuts(rng(range(50)), 3, 10)
    assert (bounds[:, 0] == 0).all() and (bounds[:, -1] == 10).all() and (bounds.diff(dim=1) >= 0).all()
    x = images(1)
    places = torch.arange(9.0).expand(1, 6, 9), torch.arange(6.0)[:, None].expand(1, 6, 9)
    whole = sampled(x, Line(places[1], 0, 6), Line(places[0], 0, 9))
    assert torch.equal(whole, x)
    part = sampled(x, Line(places[1], 2, 4), Line(places[0], 0, 9))
    assert (
        torch.equal(part[:, :, 2:4], x[:, :, 2:4]) and not part[:, :, :2].any() and not part[:, :, 4:].any()
    )
    half = sampled(x, Line(places[1] + 0.5, 0, 6), Line(places[0], 0, 9))
    assert torch.allclose(half[:, :, :5], (x[:, :, :5] + x[:, :, 1:]) / 2)


@pytest.mark.parametrize("attack", TAKERS)
def test_an_unknown_transform_is_named_when_the_configuration_is_read(attack):
    bound, faults = check_spec(registry.attacks, attack, {"transforms": ["di", "tj"]}, "attacks.0")
    assert bound is None and "tj" in str(faults) and "ti" in str(faults)
    bound, faults = check_spec(registry.attacks, attack, {"transforms": ["di", "ti"]}, "attacks.0")
    assert bound.params["transforms"] == ("di", "ti") and not faults
    net, x = Net(), images()
    with pytest.raises(ValueError, match="did you mean"), frozen(net):
        registry.attacks.get(attack).fn(
            ask(net, x, net(x).argmax(1)), x, Ball("linf", 0.1), transforms=("tj",)
        )

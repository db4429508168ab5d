"""Tiles give the sums of a convolution for every size, padding and kernel, and only where worth it."""

import pytest
import torch
from torch import nn

from robustcli.core.tiled import _MOST, TiledConv, _toom_cook, worth_tiles
from robustcli.core.tiled_slope import TiledSlope, worth_slopes

SHAPE = (64, 32, 14, 14)


def conv(i=32, o=48, k=5, **given):
    torch.manual_seed(3)
    return nn.Conv2d(i, o, k, **({"padding": 2} | given)).requires_grad_(False)


@pytest.mark.parametrize(
    ("step", "taps"), [(step, taps) for taps in (3, 4, 5, 7) for step in range(2, _MOST - taps + 2)]
)
def test_products_of_one_axis_are_its_sums(step, taps):
    back, kernel, there = _toom_cook(step, taps)
    assert len(kernel) == len(there) == step + taps - 1
    d = torch.randn(step + taps - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = torch.randn(taps, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = d.unfold(0, taps, 1) @ g
    assert torch.allclose(back @ ((kernel @ g) * (there @ d)), wanted, rtol=0, atol=1e-10)
    assert back.abs().max() == there.abs().max() == 1


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (conv(), (14, 14)),
        (conv(bias=False), (9, 17)),
        (conv(k=3, padding=1), (8, 8)),
        (conv(k=3, padding=0), (11, 6)),
        (conv(k=(3, 5), padding=(1, 2)), (7, 13)),
        (conv(k=7, padding=3), (10, 10)),
    ],
)
def test_tiles_equal_the_layer(layer, size, pool):
    x = torch.randn(70, 32, *size, generator=torch.Generator().manual_seed(0))
    tiled = TiledConv(layer, x.shape, relu=True, pool=pool)
    wanted = nn.functional.conv2d(
        x.double(),
        layer.weight.double(),
        None if layer.bias is None else layer.bias.double(),
        1,
        layer.padding,
    ).relu()
    if pool:
        wanted = nn.functional.max_pool2d(wanted, 2)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        got = tiled(given)
        assert got.shape == wanted.shape and got.is_contiguous(memory_format=torch.channels_last)
        assert float((got - wanted).norm() / wanted.norm()) < 1e-4


def test_a_row_does_not_depend_on_the_others():
    x, other = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    tiled = TiledConv(conv(), SHAPE, relu=False, pool=False)
    other[5] = x[5]
    assert torch.equal(tiled(x)[5], tiled(other)[5]) and torch.equal(tiled(x), tiled(x.clone()))


def test_another_size_goes_the_plain_way():
    layer = conv()
    x = torch.randn(3, 32, 6, 10)
    got = TiledConv(layer, SHAPE, relu=True, pool=True)(x)
    assert torch.equal(got, nn.functional.max_pool2d(layer(x).relu(), 2))


class Own(nn.Conv2d):
    """May compute anything."""


def hooked():
    layer = conv()
    layer.register_forward_hook(lambda *given: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "worth"),
    [
        (conv(), SHAPE, True),
        (conv(64, 64, 3, padding=1), (64, 64, 8, 8), True),
        (conv(16, 16, 3, padding=1), (64, 16, 8, 8), False),  # transforms cost more than is saved
        (conv(1, 32), (64, 1, 28, 28), False),
        (conv(32, 64, 1, padding=0), SHAPE, False),
        (conv(stride=2), SHAPE, False),
        (conv(groups=2), SHAPE, False),
        (conv(dilation=2, padding=4), SHAPE, False),
        (conv(padding="same"), SHAPE, False),
        (conv(padding_mode="reflect"), SHAPE, False),
        (conv().double(), SHAPE, False),
        (conv(k=9, padding=4), SHAPE, False),
        (conv(padding=0), (64, 32, 4, 4), False),
        (Own(32, 48, 5, padding=2), SHAPE, False),
        (hooked(), SHAPE, False),
        (nn.Linear(32, 48), (64, 32), False),
    ],
)
def test_which_layers_are_worth_tiles(layer, shape, worth):
    assert worth_tiles(layer, shape) is worth


@pytest.mark.parametrize(("layer", "size"), [(conv(), (14, 14)), (conv(k=3, padding=0), (11, 6))])
def test_the_slope_of_tiles_is_that_of_the_layer(layer, size):
    shape = (9, 32, *size)
    assert worth_slopes(layer, shape) and not worth_slopes(conv(i=3), (9, 3, *size))
    tiled = TiledSlope(layer, shape)
    for given in (shape, (2, 32, 15, 15)):  # the second size goes the plain way
        x = torch.randn(given, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        wanted = layer(x)
        toward = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
        slope = torch.autograd.grad((wanted * toward).sum(), x)[0]
        got = tiled(x)
        found = torch.autograd.grad((got * toward).sum(), x)[0]
        assert float((got - wanted).norm() / wanted.norm()) < 1e-4
        assert float((found - slope).norm() / slope.norm()) < 1e-4

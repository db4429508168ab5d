"""Common corruptions."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from robustcli import registry
from robustcli.attacks import corruption as module
from robustcli.attacks.corruption import corruption
from robustcli.config.bind import bind_spec
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

TYPES = sorted(module._SMALL)


def corrupt(x, type, severity, seed=0, ids=None, ball=None):
    y = torch.zeros(len(x), dtype=torch.int64)
    oracle = Oracle(
        nn.Flatten(),
        x,
        Criterion(y),
        rng=RowRandom(seed, "start", torch.arange(len(x)) if ids is None else ids),
    )
    x_adv = corruption(oracle, x, ball or Ball("linf", 0.0), type=type, severity=severity)
    assert oracle.forward_rows == 0  # nothing is searched for
    return x_adv


def smooth(n=4, channels=3, side=32, seed=0):
    torch.manual_seed(seed)
    return F.interpolate(0.1 + 0.8 * torch.rand(n, channels, 6, 6), (side, side), mode="bilinear")


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("side", [32, 96])
def test_a_higher_severity_is_farther_from_the_image(type, side):
    x = smooth(side=side) if type != "pixelate" else torch.rand(4, 3, side, side)
    far = [(corrupt(x, type, severity) - x).square().mean() for severity in range(1, 6)]
    assert all(later > earlier > 0 for earlier, later in zip(far, far[1:], strict=False))


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 5, 2), (1, 1, 28, 28), (0, 3, 4, 4)])
def test_any_shape_stays_in_the_box_and_nothing_is_nan(type, shape):
    torch.manual_seed(0)
    for x in (torch.rand(shape), torch.zeros(shape), torch.ones(shape)):
        before = x.clone()
        x_adv = corrupt(x, type, 5, ball=Ball("l1", 0.0, 0.0, 0.75))
        assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and torch.equal(x, before)
        assert ((x_adv >= 0) & (x_adv <= 0.75)).all()


@pytest.mark.parametrize("type", ["gaussian_noise", "shot_noise"])
def test_noise_belongs_to_the_sample_and_the_seed_not_to_the_batch(type):
    x = smooth(3)
    whole = corrupt(x, type, 3)
    assert torch.equal(corrupt(x[1:2], type, 3, ids=torch.tensor([1])), whole[1:2])
    assert not torch.equal(corrupt(x, type, 3, seed=1), whole)


def test_gaussian_noise_has_the_documented_deviation():
    x = torch.full((8, 3, 32, 32), 0.5)
    noise = corrupt(x, "gaussian_noise", 5) - x
    assert math.isclose(noise.std(), 0.10, rel_tol=0.03) and abs(noise.mean()) < 0.003


@pytest.mark.parametrize("rate", [0.02, 0.5, 3.0, 9.9, 10.1, 40.0, 400.0])
def test_photons_are_poisson_distributed(rate):
    n = 200_000
    count = module._poisson(torch.full((20, n // 20), rate), RowRandom(0, "start", torch.arange(20)))
    assert torch.equal(count, count.round()) and count.min() >= 0
    assert abs(count.mean() - rate) < 5 * math.sqrt(rate / n) and math.isclose(
        count.var(), rate, rel_tol=0.05 if rate < 0.1 else 0.02
    )
    law = torch.distributions.Poisson(rate)
    for k in {0, int(rate), int(rate + math.sqrt(rate))}:
        expected = law.log_prob(torch.tensor(float(k))).exp()
        assert abs((count == k).float().mean() - expected) < 5 * math.sqrt(expected / n) + 0.002


def test_photons_of_black_are_none():
    assert corrupt(torch.zeros(2, 1, 8, 8), "shot_noise", 5).eq(0).all()


def test_blur_keeps_a_flat_image_and_the_light_of_a_point():
    flat = torch.full((1, 3, 9, 9), 0.3)
    assert torch.allclose(corrupt(flat, "gaussian_blur", 5), flat, atol=1e-6)
    point = torch.zeros(1, 1, 21, 21)
    point[0, 0, 10, 10] = 1.0
    spread = corrupt(point, "gaussian_blur", 5)  # sigma 1
    assert math.isclose(spread.sum(), 1.0, rel_tol=1e-5) and torch.allclose(
        spread, spread.transpose(2, 3), atol=1e-7
    )
    offset = torch.arange(21.0) - 10
    assert math.isclose((spread.sum((0, 1, 2)) * offset**2).sum(), 1.0, rel_tol=0.01)


def test_brightness_adds_to_the_value_of_hsv_and_keeps_hue_and_saturation():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 5)
    x[0, :, 0, 0] = 0.0
    found = corrupt(x, "brightness", 3)
    for row in range(4):
        for column in range(5):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
            expected = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1.0)))
            assert torch.allclose(found[0, :, row, column], expected, atol=1e-5)


def test_contrast_shrinks_deviations_and_keeps_the_mean_of_each_channel():
    x = smooth()
    found = corrupt(x, "contrast", 4)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(found - mean, 0.3 * (x - mean), atol=1e-5)


def test_pixelate_leaves_as_many_different_rows_as_the_resolution_kept():
    x = torch.rand(1, 1, 32, 32)
    found = corrupt(x, "pixelate", 5)  # int(32 * 0.65) = 20
    assert len(torch.unique(found[0, 0], dim=0)) == 20 and len(torch.unique(found[0, 0], dim=1)[0]) == 20
    assert math.isclose(found.mean(), x.mean(), rel_tol=0.02)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (64, 40)])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_pixelate_is_a_box_filter_down_and_up_again(height, width, severity):
    """Pillow's, which made the published data."""
    x, share = torch.rand(1, 1, height, width), module._SMALL["pixelate"][severity - 1]
    image = Image.fromarray(x[0, 0].numpy()).resize(
        (max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX
    )
    expected = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BOX)))
    assert torch.allclose(corrupt(x, "pixelate", severity)[0, 0], expected, atol=1e-6)


def test_images_above_64_pixels_take_the_numbers_of_imagenet_c():
    for side, deviation in ((64, 0.08), (65, 0.18)):
        x = torch.full((1, 3, side, side), 0.5)
        assert math.isclose((corrupt(x, "gaussian_noise", 3) - x).std(), deviation, rel_tol=0.05)


def test_the_docstring_lists_the_numbers_of_both_tables():
    text = corruption.__doc__
    for type in TYPES:
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{type} "))
        numbers = [float(word) for word in line.replace("|", " ").split() if word.replace(".", "").isdigit()]
        assert numbers == [*map(float, module._SMALL[type]), *map(float, module._LARGE[type])]


def test_yaml_names_type_and_severity():
    spec = Spec.of("corruption", type="pixelate", severity=2)
    assert bind_spec(registry.attacks, spec, "attacks.0").params == {
        "type": "pixelate",
        "severity": 2,
    }


@pytest.mark.parametrize("bad", [{"severity": 0}, {"severity": 6}, {"type": "snow"}])
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        corrupt(torch.rand(1, 1, 4, 4), **({"type": "contrast", "severity": 3} | bad))

"""A real file forward, a smooth rounding backward."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.defences.jpeg import jpeg


def through_a_file(pixels, quality):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 10, 49, 75, 100])
def test_the_forward_pass_is_a_file_of_pillow_and_the_steps_are_its_tables(channels, quality):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 20, channels), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    module, files = jpeg(quality=quality), [through_a_file(one.squeeze(), quality) for one in pixels]
    expected = np.stack([np.asarray(file) for file in files]).reshape(pixels.shape)
    assert torch.equal((module(x) * 255).round().permute(0, 2, 3, 1), torch.from_numpy(expected).float())
    tables = files[0].quantization
    assert module.brightness.flatten().tolist() == list(tables[0])
    if channels == 3:
        assert module.colour.flatten().tolist() == list(tables[1])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_slope_is_a_tenth_where_every_frequency_is_a_whole_step(channels):
    x = torch.full((2, channels, 7, 13), 128 / 255).requires_grad_(True)
    jpeg(quality=50)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.1))


def test_the_slope_grows_to_the_middle_between_two_steps():
    """The first step of quality 50 is 16: 8 times the brightness, so that 129 lies in the middle."""
    x = torch.full((1, 1, 8, 8), 129 / 255).requires_grad_(True)
    jpeg(quality=50)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.85))


def test_many_channels_are_many_grey_images():
    x = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    module = jpeg(quality=30)
    assert torch.equal(module(x), torch.cat([module(x[:, k : k + 1]) for k in range(4)], 1))

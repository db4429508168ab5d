"""The middle of each neighbourhood."""

import pytest
import torch
from scipy.ndimage import median_filter

from robustcli.defences.median import median


@pytest.mark.parametrize("size", [2, 3, 4, 5, 11])
def test_it_is_the_filter_of_scipy(size):
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
    assert torch.equal(median(size=size)(x), torch.from_numpy(expected))


def test_the_slope_is_that_of_the_pixel_in_the_middle():
    x = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    median()(x)[0, 0, 2, 2].backward()
    middle = x[0, 0, 1:4, 1:4].flatten().argsort()[4]
    expected = torch.zeros(5, 5)
    expected[1 + middle // 3, 1 + middle % 3] = 1
    assert torch.equal(x.grad[0, 0], expected)

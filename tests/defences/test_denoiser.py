"""The denoiser: how it begins, what it is by hand, and that it learns."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from robustcli.defences.denoiser import denoiser


def small(depth=2, width=3, channels=1):
    torch.manual_seed(0)
    module = denoiser(depth=depth, width=width)
    module.shaped((channels, 6, 5), 4)
    return module


@pytest.mark.parametrize("depth", [2, 4])
def test_it_begins_as_the_identity_of_images(depth):
    x = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    module = small(depth, channels=2)
    assert torch.equal(module.eval()(x), x)
    far = 4 * x - 2
    assert torch.equal(module(far), far.clamp(0, 1)) and torch.equal(module.train()(far), far)


def test_two_layers_by_hand():
    module = small().eval()
    first, _, last = module.residual
    with torch.no_grad():
        last.weight.normal_(0, 0.3)
        last.bias.fill_(0.1)
    x = torch.rand(2, 1, 6, 5)
    hidden = np.maximum(conv2d(x, first.weight, first.bias, padding=1).detach().numpy(), 0)
    removed = conv2d(torch.from_numpy(hidden), last.weight, last.bias, padding=1).detach().numpy()
    expected = np.clip(x.numpy() - removed, 0, 1)
    assert np.allclose(module(x).detach().numpy(), expected, atol=1e-6)


def test_before_it_has_a_shape_it_says_so():
    with pytest.raises(ValueError, match=r"call shaped\(\(C, H, W\), num_classes\) first"):
        denoiser()(torch.rand(1, 1, 4, 4))


def test_noise_on_digits_is_taken_away():
    """Less error than the noisy image cut to [0, 1] has, whose background is half right by itself."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().images).float()[:, None] / 16
    torch.manual_seed(0)
    module = denoiser(depth=3, width=16)
    module.shaped((1, 8, 8), 10)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        module.loss(x[torch.randint(1000, (64,))]).backward()
        optimizer.step()
    fresh = x[1000:]
    noisy = fresh + 0.25 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        left = (module.eval()(noisy) - fresh).square().mean()
    assert float(left) < 0.7 * float((noisy.clamp(0, 1) - fresh).square().mean())

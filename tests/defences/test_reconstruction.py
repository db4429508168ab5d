"""Autoencoders of clean images: the detector, the purifier, and what they learn."""

import pytest
import torch
from sklearn.datasets import load_digits

from robustcli.defences.autoencoder import autoencoder
from robustcli.defences.reconstruction import reconstruction


def trained(module, x, steps, lr=0.004):
    """As `guard fit` trains it."""
    torch.manual_seed(0)
    module.shaped(tuple(x.shape[1:]), 10)
    optimizer = torch.optim.Adam(module.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        module.loss(x[torch.randint(len(x), (64,))]).backward()
        optimizer.step()
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("power", [1, 2])
def test_the_score_is_the_mean_error(power):
    x = torch.rand(5, 2, 4, 6)
    module = reconstruction(power=power)
    module.shaped((2, 4, 6), 3)
    errors = [(one - module.net(one[None])[0].sigmoid()).abs().pow(power).mean() for one in x]
    torch.testing.assert_close(module(x, None, None), torch.stack(errors))


@pytest.mark.parametrize("build", [autoencoder, reconstruction])
def test_before_it_has_a_shape_it_says_so(build):
    with pytest.raises(ValueError, match=r"call shaped\(\(C, H, W\), num_classes\) first"):
        build().loss(torch.rand(1, 1, 4, 4))


def test_digits_are_redrawn_and_noise_is_seen_at_five_percent_false_alarms():
    x = torch.from_numpy(load_digits().images).float()[:, None] / 16
    module = trained(reconstruction(width=12), x[:1000], steps=120)
    held, fresh = module(x[1000:1400], None, None), x[1400:]
    threshold = held.sort().values[380]
    noise = 0.3 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(1)).sign()
    assert float((module(fresh, None, None) > threshold).float().mean()) < 0.12
    assert float((module((fresh + noise).clamp(0, 1), None, None) > threshold).float().mean()) > 0.8


def test_mostly_black_images_are_learnt_too():
    """With the squared error the sigmoid sticks at black."""
    x = torch.zeros(256, 1, 16, 16)
    corners = torch.randint(13, (256, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for image, (row, column) in zip(x, corners, strict=True):
        image[0, row : row + 4, column : column + 4] = 1
    module = trained(autoencoder(width=8), x, steps=80)
    assert float((module(x) - x).square().mean()) < 0.5 * float(x.square().mean())

"""Noise on the pixels."""

import torch

from robustcli.defences.gaussian_noise import gaussian_noise


def test_the_noise_has_its_spread_and_stops_at_black_and_white():
    torch.manual_seed(0)
    x = torch.full((4, 1, 64, 64), 0.5)
    drawn = gaussian_noise(sigma=0.05)(x) - x
    assert abs(float(drawn.mean())) < 0.002 and abs(float(drawn.std()) - 0.05) < 0.002
    white = gaussian_noise(sigma=0.3)(torch.ones(4, 1, 64, 64))
    assert abs(float((white == 1).float().mean()) - 0.5) < 0.02

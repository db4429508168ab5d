"""Moments of the noise, its inverse radius, the edge of a cube, and that moves of an image add up."""

import math

import pytest
import torch

from robustcli.certificates.draws import BLOCK, CHOICE, generator_of
from robustcli.certificates.noise import NOISES

CPU = torch.device("cpu")


def draws(name, x, rows, sigma, block=0):
    return NOISES[name].draw(x, rows, sigma, generator_of(0, 3, block, CPU))


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_moments(name):
    x = torch.full((1, 20, 20), 0.9)
    noise = draws(name, x, 500, 0.25).double() - 0.9
    count = noise.numel()
    assert abs(float(noise.mean())) < 5 * 0.25 / math.sqrt(count)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.01)
    assert float(noise.max()) > 0.1 + 0.3  # nothing is clipped to [0, 1]
    kurtosis = {"gaussian": 3.0, "uniform": 1.8}[name]
    assert float((noise / 0.25).pow(4).mean()) == pytest.approx(kurtosis, abs=0.05)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("sigma", [0.12, 1.0])
def test_radius_and_chance_are_inverse_and_rise(name, sigma):
    noise = NOISES[name]
    assert noise.radius(0.5, sigma) == 0
    radii = [noise.radius(p, sigma) for p in (0.5, 0.6, 0.8, 0.99, 0.9999)]
    assert radii == sorted(radii) and len(set(radii)) == 5
    for p in (0.6, 0.99):
        assert noise.chance(noise.radius(p, sigma), sigma) == pytest.approx(p, abs=1e-12)
        assert noise.radius(p, 2 * sigma) == pytest.approx(2 * noise.radius(p, sigma))


def test_the_uniform_radius_is_tight_on_an_edge():
    """f = [x_0 < edge] has chance p at 0. A shift of x_0 by t leaves p - t / 2h of it: 1/2 at the radius."""
    sigma, p = 0.3, 0.8
    half = math.sqrt(3) * sigma
    edge = 2 * half * p - half  # P(u < edge) = p
    radius = NOISES["uniform"].radius(p, sigma)
    assert (edge - radius + half) / (2 * half) == pytest.approx(0.5, abs=1e-12)


def test_moves_add_up():
    """Noise of a moved image is the moved noise: what the theorem asks of a transformation."""
    x = torch.rand(2, 7, 5)
    plain, moved = draws("translation", x, 40, 1.5), draws("translation", x.roll((2, -1), (1, 2)), 40, 1.5)
    assert torch.equal(moved, plain.roll((2, -1), (2, 3)))
    assert torch.equal(plain.flatten(1).sort(1).values, x.flatten().sort().values.expand(40, -1))
    assert len({tuple(image.flatten().tolist()) for image in plain}) > 5


def test_blocks_of_a_sample_are_all_different():
    seeds = [
        generator_of(7, 11, block, CPU).initial_seed()
        for block in (*range(2000), *range(CHOICE, CHOICE + 99))
    ]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
    assert (
        generator_of(8, 11, 0, CPU).initial_seed() != seeds[0] != generator_of(7, 12, 0, CPU).initial_seed()
    )


def test_neighbouring_blocks_are_uncorrelated():
    x = torch.zeros(1, 16, 16)
    blocks = torch.stack([draws("gaussian", x, BLOCK, 1.0, block).flatten() for block in range(24)]).double()
    correlation = torch.corrcoef(blocks) - torch.eye(24)
    assert float(correlation.abs().max()) < 5 / math.sqrt(blocks.shape[1])

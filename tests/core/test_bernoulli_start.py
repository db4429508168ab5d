"""The start of NuAT: random corners of a linf ball."""

import pytest
import torch

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom


def images(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_bernoulli_start_is_a_corner_of_the_scaled_ball_cut_by_ball_and_box(scale):
    x, ball = images((40, 1, 4, 4), 0), Ball("linf", 0.1)
    free = torch.full_like(x, 0.5)
    rng = RowRandom(0, "start", torch.arange(40))
    size = min(scale, 1.0) * 0.1
    noise = ball.start(free, "bernoulli", rng.restart(0), scale=scale) - free
    assert torch.allclose(noise.abs(), torch.full_like(noise, size), atol=1e-6)
    assert (
        0.4 < float((noise > 0).double().mean()) < 0.6
        and len({tuple(row) for row in (noise > 0).flatten(1).tolist()}) > 30
    )
    assert torch.allclose(
        ball.start(x, "bernoulli", rng.restart(0), scale=scale), (x + noise).clamp(0, 1), atol=1e-6
    )
    wide = ball.start(free, "bernoulli", rng.restart(0), scale=scale, clip=False) - free
    assert torch.allclose(wide, noise.sign() * scale * 0.1, atol=1e-6)
    assert torch.equal(Ball("linf", 0.0).start(x, "bernoulli", rng), x)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_bernoulli_start_is_for_linf(norm):
    with pytest.raises(ValueError, match="bernoulli is for linf"):
        Ball(norm, 1.0).start(images((2, 1, 2, 2), 0), "bernoulli", RowRandom(0, "start", torch.arange(2)))

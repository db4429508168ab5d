"""Noise on the pixels, drawn anew at each pass."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from robustcli.registry import defences


class GaussianNoise(nn.Module):
    """x -> clamp(x + sigma n), n ~ N(0, 1) for each pixel."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.sigma * torch.randn_like(x)).clamp(0, 1)


@defences.register(
    "gaussian_noise",
    kind="purifier",
    random=True,
    differentiable=True,
    use="networks trained with such noise; without that it costs clean accuracy",
)
def gaussian_noise(*, sigma: Annotated[float, Gt(0), Le(1)] = 0.1) -> nn.Module:
    """x' = min(max(x + sigma n, 0), 1),  n ~ N(0, 1) for each pixel; sigma in units of [0, 1].

    Draws come from torch's generator of the device, as those of dropout do.

    Source: Cohen, Rosenfeld & Kolter, ICML 2019, arXiv:1902.02918, as one draw without the vote.
    """
    return GaussianNoise(sigma)

"""The image as an autoencoder of clean images redraws it."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor, nn

from robustcli.defences.hourglass import Learner
from robustcli.registry import defences


class Redrawn(Learner):
    """x -> AE(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rebuilt(x)


@defences.register(
    "autoencoder",
    kind="purifier",
    random=False,
    differentiable=True,
    fit="training",
    use="attacks on the bare network; it falls to one that goes through the autoencoder",
)
def autoencoder(
    *,
    width: Annotated[int, Ge(1), Le(1024)] = 32,
    code: Annotated[int, Ge(1), Le(1024)] = 16,
    noise: Annotated[float, Ge(0), Le(1)] = 0.1,
) -> nn.Module:
    """x' = AE(x),  AE minimises E CE(AE(clamp(x + noise n)), x),  n ~ N(0, 1) for each pixel.

    A convolutional autoencoder: width and 2 width channels, then code channels at a quarter of each side.
    noise is in units of [0, 1]. CE is that of Bernoulli variables with mean x; the paper takes the squared
    error.

    Source: Meng & Chen, CCS 2017, arXiv:1705.09064: its reformer.
    """
    return Redrawn(width, code, noise)

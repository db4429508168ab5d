"""How badly an autoencoder of clean images redraws an image."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.defences.hourglass import Learner
from robustcli.registry import defences


class Reconstruction(Learner):
    """score = mean |x - AE(x)|^p."""

    def __init__(self, width: int, code: int, noise: float, power: Literal[1, 2]) -> None:
        super().__init__(width, code, noise)
        self.power = power

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:  # noqa: ARG002
        return (wide(x) - wide(self.rebuilt(x))).abs().pow(self.power).flatten(1).mean(1)


@defences.register(
    "reconstruction",
    kind="detector",
    random=False,
    differentiable=True,
    fit="training",
    highest=lambda given, networks, classes: 1.0,  # noqa: ARG005
    use="the usual first detector: noise-like changes; it falls to an attack that knows it",
)
def reconstruction(
    *,
    width: Annotated[int, Ge(1), Le(1024)] = 32,
    code: Annotated[int, Ge(1), Le(1024)] = 8,
    noise: Annotated[float, Ge(0), Le(1)] = 0.1,
    power: Literal[1, 2] = 1,
) -> nn.Module:
    """score = mean |x - AE(x)|^p over the pixels,  AE as in autoencoder,  p = power.

    noise is in units of [0, 1], the score in those to the power p. The paper takes both powers; at a false
    positive rate of 5 % p = 1 caught more on digits and MNIST, at eps 0.1 and 0.3.

    Source: Meng & Chen, CCS 2017, arXiv:1705.09064: its detector by reconstruction error.
    """
    return Reconstruction(width, code, noise, power)

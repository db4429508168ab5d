"""The free energy of the logits."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.registry import defences


class Energy(nn.Module):
    """score = -T log sum_k exp(z_k / T)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:  # noqa: ARG002
        return -self.temperature * (wide(logits) / self.temperature).logsumexp(1)


@defences.register(
    "energy",
    kind="detector",
    random=False,
    differentiable=True,
    use="images unlike the training data; costs nothing",
)
def energy(*, temperature: Annotated[float, Gt(0)] = 1.0) -> nn.Module:
    """score = -T log sum_k exp(z_k / T),  T = temperature; in logits.

    Images unlike the training data have logits of little mass.

    Source: Liu et al., NeurIPS 2020, arXiv:2010.03759.
    """
    return Energy(temperature)

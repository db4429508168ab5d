"""How much the answer changes under noise."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.registry import defences


class NoiseConsistency(nn.Module):
    """score = 1/k sum_j ||softmax z(x) - softmax z(clamp(x + sigma n_j))||_1."""

    def __init__(self, sigma: float, draws: int) -> None:
        super().__init__()
        self.sigma, self.draws = sigma, draws

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:
        before = wide(logits).softmax(1)
        score = before.new_zeros(len(x))
        for _ in range(self.draws):
            noisy = (x + self.sigma * torch.randn_like(x)).clamp(0, 1)
            score = score + (before - wide(net.logits(noisy)).softmax(1)).abs().sum(1)
        return score / self.draws


@defences.register(
    "noise_consistency",
    kind="detector",
    random=True,
    differentiable=True,
    passes=lambda given: int(given["draws"]),
    highest=lambda given, networks, classes: 2.0,  # noqa: ARG005
    use="points that lie just across a boundary; those far across it pass",
)
def noise_consistency(
    *, sigma: Annotated[float, Gt(0), Le(1)] = 0.1, draws: Annotated[int, Ge(1), Le(1000)] = 4
) -> nn.Module:
    """score = 1/k sum_j ||softmax z(x) - softmax z(clamp(x + sigma n_j))||_1,  n_j ~ N(0, 1),  k = draws.

    In [0, 2]; sigma is in units of [0, 1]. Each draw is one pass.

    Source: Hu et al., NeurIPS 2019, arXiv:1910.07629, its first criterion; after Roth et al., ICML 2019,
    arXiv:1902.04818.
    """
    return NoiseConsistency(sigma, draws)

"""How far the networks of an ensemble are apart."""

from __future__ import annotations

from math import log

from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.registry import defences


class Disagreement(nn.Module):
    """score = mean_m KL(p_m || mean of p)."""

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:  # noqa: ARG002
        each = wide(net.each(x)).log_softmax(-1)
        mean = each.logsumexp(0) - log(len(each))
        return (each.exp() * (each - mean)).sum(-1).mean(0)


@defences.register(
    "disagreement",
    kind="detector",
    random=False,
    differentiable=True,
    passes=lambda given: 1,  # noqa: ARG005
    highest=lambda given, networks, classes: log(networks),  # noqa: ARG005
    use="an `ensemble`: images on which its networks differ; 0 for one network",
)
def disagreement() -> nn.Module:
    """score = 1/M sum_m KL(p_m || 1/M sum_j p_j),  p_m: softmax of network m; in nats, 0 to log M.

    Source: Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017, arXiv:1612.01474.
    """
    return Disagreement()

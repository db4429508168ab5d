"""How much the answer changes when the image loses detail."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.defences.bit_depth import BitDepth
from robustcli.defences.median import Median
from robustcli.registry import defences


class FeatureSqueezing(nn.Module):
    """score = max_s ||softmax z(x) - softmax z(s(x))||_1 over the squeezers s."""

    def __init__(self, bits: int, size: int) -> None:
        super().__init__()
        self.squeezers = nn.ModuleList([BitDepth(bits), Median(size)])

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:
        before = wide(logits).softmax(1)
        after = [wide(net.logits(squeeze(x))).softmax(1) for squeeze in self.squeezers]
        return torch.stack([(before - one).abs().sum(1) for one in after]).amax(0)


@defences.register(
    "feature_squeezing",
    kind="detector",
    random=False,
    differentiable=False,
    passes=lambda given: 2,  # noqa: ARG005
    highest=lambda given, networks, classes: 2.0,  # noqa: ARG005
    use="a detector without training; it falls to an attack that knows it",
)
def feature_squeezing(
    *, bits: Annotated[int, Ge(1), Le(8)] = 4, size: Annotated[int, Ge(2), Le(15)] = 2
) -> nn.Module:
    """score = max_s ||softmax z(x) - softmax z(s(x))||_1,  s: fewer bits, a median.

    In [0, 2]. The paper takes 1 bit for MNIST and 4 or 5 for colour images, and windows of 2 x 2. The
    backward pass takes the rounding for the identity; all else is exact.

    Source: Xu, Evans & Qi, NDSS 2018, arXiv:1704.01155.
    """
    return FeatureSqueezing(bits, size)

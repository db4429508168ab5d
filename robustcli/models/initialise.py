"""Other first weights than an architecture's own, for training that asks for them."""

from __future__ import annotations

import math

import torch
from torch import nn


def ibp_init(net: nn.Module) -> int:
    """w ~ N(0, 2 pi / n_in^2) for every convolution and linear layer but the last one; the number of them.

    n_in is the fan-in: inputs of one output. A box then keeps its width from layer to layer, where He's
    variance 2 / n_in makes it wider by sqrt(n_in / pi) in each. Biases, norms and the last layer stay. Draws
    from the default generator. Layers behind a residual sum are not halved, as the authors do.

    Source: Shi et al., NeurIPS 2021, arXiv:2103.17268, section 3.1, and the authors' code for the last layer.
    """
    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in layers[:-1]:
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 * math.pi) / layer.weight[0].numel())
    return len(layers[:-1])

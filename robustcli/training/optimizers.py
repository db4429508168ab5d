"""torch's own optimisers under the names that a configuration uses."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from robustcli.registry import optimizers

Rate = Annotated[float, Gt(0)]
Decay = Annotated[float, Ge(0)]
Momentum = Annotated[float, Ge(0), Lt(1)]


def groups(model: nn.Module, weight_decay: float, decay_norms: bool) -> list[dict[str, object]]:
    """Parameter groups for an optimiser: one with weight decay, one without.

    Weights of two or more dimensions decay. Biases and BatchNorm decay only with decay_norms. An empty group
    is left out.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decaying = [p for p in trained if p.dim() >= 2 or decay_norms]
    free = [p for p in trained if p.dim() < 2 and not decay_norms]
    both = ({"params": decaying, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0})
    return [group for group in both if group["params"]]


def _check(lr: float, weight_decay: float) -> None:
    if not lr > 0 or not weight_decay >= 0:
        raise ValueError(f"lr must be > 0 and weight_decay >= 0, got {lr} and {weight_decay}")


@optimizers.register("sgd")
def sgd(
    model: nn.Module,
    *,
    lr: Rate = 0.1,
    momentum: Momentum = 0.9,
    weight_decay: Decay = 5e-4,
    nesterov: bool = True,
    decay_norms: bool = False,
) -> torch.optim.Optimizer:
    """v = m v + g + wd w;  w = w - lr (g + m v) with Nesterov, else w - lr v.

    Args:
        lr: peak rate, > 0; the schedule multiplies it. momentum: in [0, 1). weight_decay: >= 0.
        decay_norms: let biases and BatchNorm decay too.

    Raises ValueError if out of range. Source: torch.optim.SGD; the settings of Rice et al., arXiv:2002.11569.
    """
    _check(lr, weight_decay)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    return torch.optim.SGD(
        groups(model, weight_decay, decay_norms),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
    )


@optimizers.register("adamw")
def adamw(
    model: nn.Module,
    *,
    lr: Rate = 1e-3,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.999,
    weight_decay: Decay = 0.01,
    decay_norms: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay.

    Args:
        lr: peak rate, > 0; the schedule multiplies it. beta1, beta2: in [0, 1). weight_decay: >= 0.
        decay_norms: let biases and BatchNorm decay too.

    Raises ValueError if out of range. Source: Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101.
    """
    _check(lr, weight_decay)
    return torch.optim.AdamW(groups(model, weight_decay, decay_norms), lr=lr, betas=(beta1, beta2))

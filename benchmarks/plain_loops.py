"""TRADES, PGD and AWP training steps as published scripts write them, from the papers' formulas.

They are what `training.py` compares with.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS, STEP, BETA, GAMMA = 8 / 255, 2 / 255, 6.0, 0.01


def plain_trades(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    steps: int,
    backward: bool,
) -> Tensor:
    """Zhang et al., arXiv:1901.08573, Algorithm 1.

    `backward`: the attack calls loss.backward() where the authors call autograd.grad.
    """
    model.eval()
    x_adv = (x + noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        loss = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="sum")
        if backward:
            loss.backward()
            grad = x_adv.grad
        else:
            (grad,) = torch.autograd.grad(loss, [x_adv])
        assert grad is not None
        x_adv = x_adv.detach() + STEP * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    x_adv = x_adv.detach()
    optimizer.zero_grad()
    natural = F.cross_entropy(model(x), y)
    robust = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="batchmean")
    loss = natural + BETA * robust
    loss.backward()
    optimizer.step()
    return loss.detach()


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Madry et al., arXiv:1706.06083, on a perturbation delta; loss.backward() forms weight gradients too."""
    model.eval()
    delta = noise.clone()
    for _ in range(steps):
        delta = delta.detach().requires_grad_(True)
        F.cross_entropy(model(x + delta), y).backward()
        assert delta.grad is not None
        delta = (delta + STEP * delta.grad.sign()).clamp(-EPS, EPS)
        delta = (x + delta).clamp(0, 1) - x
    return (x + delta).detach()


class PlainAWP:
    """Wu et al., arXiv:2004.05884: a proxy takes one ascent step.

    Its change is scaled to each layer and added to the weights by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.proxy = copy.deepcopy(model)
        self.optimizer = torch.optim.SGD(self.proxy.parameters(), lr=0.01)

    def difference(self, model: nn.Module, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.proxy.load_state_dict(model.state_dict())
        self.proxy.train()
        loss = -F.cross_entropy(self.proxy(x_adv), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        found = {}
        for (name, old), new in zip(
            model.state_dict().items(), self.proxy.state_dict().values(), strict=True
        ):
            if old.dim() > 1 and "weight" in name:
                change = new - old
                found[name] = old.norm() / (change.norm() + 1e-20) * change
        return found

    @staticmethod
    def add(model: nn.Module, difference: dict[str, Tensor], scale: float) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in difference:
                    parameter.add_(scale * difference[name])


def plain_awp(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    steps: int,
    around: PlainAWP,
) -> Tensor:
    x_adv = plain_pgd(model, x, y, noise, steps)
    model.train()
    difference = around.difference(model, x_adv, y)
    around.add(model, difference, GAMMA)
    loss = F.cross_entropy(model(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    around.add(model, difference, -GAMMA)
    return loss.detach()

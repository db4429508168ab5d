"""Clean images that a guarded model accepts and is right on, and a search that leads points to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.data.split import Split
from robustcli.evaluation.judge import Judge

_PER_CLASS, _LOOKED_AT = 8, 512  # images kept of each class, and looked at in all


@dataclass(frozen=True)
class Bank:
    """m accepted images.

    Args:
        x: pixels [m, C, H, W] in [0, 1].
        y: int64 [m].
        logits: raw [m, K + 1], the mean over the draws.
    """

    x: Tensor
    y: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: nn.Module, ball: Ball, split: Split, positions: Tensor, device: torch.device) -> Bank:
        """The first accepted and right images of each class, among evenly spread ones of the samples."""
        chosen = positions[torch.linspace(0, len(positions) - 1, min(_LOOKED_AT, len(positions))).long()]
        parts = [cls._batch(model, ball, x, y) for x, y, _ in split.stream(list(chosen.split(128)), device)]
        x, y, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        kept = torch.cat([(y == k).nonzero()[:_PER_CLASS, 0] for k in y.unique()] or [y])
        return cls(x[kept], y[kept], logits[kept])

    @staticmethod
    def _batch(model: nn.Module, ball: Ball, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with frozen(model):
            clean = Judge(model, ball).clean(x, y)
        return x[clean.right], y[clean.right], clean.logits[clean.right]

    def nearest(self, x: Tensor, wanted: Tensor) -> Tensor:
        """int64 [R]: the place of the image of class `wanted`, int64 [R], nearest to x [R, C, H, W] in l2.

        Of a class without an image here, the nearest of all.
        """
        distance = torch.cdist(x.flatten(1), self.x.flatten(1))
        return (distance + 1e9 * (self.y[None, :] != wanted[:, None])).argmin(1)


def matching(bank: Bank) -> Callable[..., Tensor]:
    """An attack (oracle, x, ball, *, steps, targets) -> x_adv: led to the logits of an image in `bank`.

    x_{k+1} = P(x_k - a * steepest(grad D)),  D = mean_k (z_k - t_k)^2 + max(0, e - e_t)^2: t are the class
    logits of an accepted image of another class, and e = z_reject - max_k z_k. A point that looks to the
    network like that image looks so to a detector that reads the network. a = 2.5 * radius / steps.

    The classes are the `targets` likeliest wrong ones of the clean logits, one search each.

    Source: the feature adversary of Sabour et al., ICLR 2016, arXiv:1511.05122, against detectors: Tramer et
        al., NeurIPS 2020, arXiv:2002.08347.
    """

    def match(oracle: Oracle, x: Tensor, ball: Ball, *, steps: int = 40, targets: int = 3) -> Tensor:
        """x_adv [B, C, H, W] inside `ball`; x where the bank is empty. Parameters as above, each >= 1."""
        if not len(bank.x) or not len(x):
            return oracle.result(x)
        likeliest = oracle.clean().scatter(1, oracle.y[:, None], float("-inf")).argsort(1, descending=True)
        wanted = likeliest[:, : min(targets, likeliest.shape[1] - 1)]
        a, x_adv = ball.check_step(steps, None), x
        for number in range(wanted.shape[1]):
            goal = bank.logits[bank.nearest(x, wanted[:, number])]
            x_adv = ball.start(x, "uniform", oracle.rng.restart(number))
            for _ in range(steps):
                grad = oracle.gradient(x_adv, _likeness(oracle, goal), raw=True).grad
                x_adv = ball.project(x, x_adv + a * ball.steepest(grad, x_adv))
                x, x_adv, wanted, goal = oracle.compact(x, x_adv, wanted, goal)
            oracle.score(x_adv)
            x, x_adv, wanted, goal = oracle.compact(x, x_adv, wanted, goal)
        return oracle.result(x_adv)

    return match


def _likeness(oracle: Oracle, goal: Tensor) -> Callable[[Tensor], Tensor]:
    """Raw logits [R, K + 1] -> -D [R], for the raw logits `goal` [R, K + 1]."""
    reject, criterion = oracle.criterion.reject, oracle.criterion

    def loss(logits: Tensor) -> Tensor:
        apart = (logits[:, :reject] - goal[:, :reject]).square().mean(1)
        if reject is None:
            return -apart
        return -apart - (criterion.excess(logits) - criterion.excess(goal)).clamp_min(0).square()

    return loss

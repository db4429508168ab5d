"""Adversarial weight perturbation."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from robustcli.registry import hooks
from robustcli.training.hooks import Hook, StepContext
from robustcli.training.schedules import Share

#: Keeps a tensor without gradient where it is; the constant of the reference code.
_TINY = 1e-20


class WeightPerturbation(Hook):
    """w + v while the outer loss is computed and the optimiser steps, then - v; between steps it remembers nothing."""

    def __init__(self, gamma: float, warmup: float) -> None:
        self.gamma, self.warmup = gamma, warmup
        self._pending: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = (
            None  # weights, what they were, v
        )

    def before_loss(self, context: StepContext) -> None:
        """w <- w + v, v kept until the step is finished or undone."""
        assert self._pending is None, "the step before was neither finished nor undone"
        wanted = [p for p in context.model.parameters() if p.dim() > 1 and p.requires_grad]
        if not self.gamma or context.progress < self.warmup or not wanted:
            return
        grads, weights = context.gradients(wanted), list[Tensor](wanted)
        with torch.no_grad():
            norms: list[float] = torch.stack(
                [*torch._foreach_norm(weights), *torch._foreach_norm(grads)]
            ).tolist()
            if not all(map(math.isfinite, norms)):  # the outer loss will say so
                return
            ratios = [
                weight / (grad + _TINY)
                for weight, grad in zip(norms[: len(weights)], norms[len(weights) :], strict=True)
            ]
            added = list(torch._foreach_mul(grads, [self.gamma * ratio for ratio in ratios]))
            self._pending = weights, [w.clone() for w in weights], added
            torch._foreach_add_(weights, added)

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        if self._pending is not None:
            weights, _, added = self._pending
            torch._foreach_add_(weights, added, alpha=-1)
            self._pending = None

    @torch.no_grad()
    def undo(self, context: StepContext) -> None:
        if self._pending is not None:
            weights, before, _ = self._pending
            torch._foreach_copy_(weights, before)  # (w + v) - v is not w in floating point
            self._pending = None


@hooks.register("awp", extra_losses=1)
def awp(model: nn.Module, *, gamma: Annotated[float, Ge(0)] = 0.005, warmup: Share = 0.0) -> Hook:
    """v_i = gamma ||w_i|| / ||g_i|| g_i, g = grad_w L(w);  w <- w + v;  w <- step(w, grad L(w));  w <- w - v.

    One ratio for each weight tensor w_i of two or more dimensions, l2 norms; biases and BatchNorm stay as they are. L is the outer loss of
    the batch, on the x_adv that was found before. Cost: the passes of the objective once more.

    Args:
        model: the classifier that is trained; the step's context names it again.
        gamma: size of v relative to w, no unit, >= 0; 0.01 for PGD training, 0.005 for TRADES. 0 does nothing and costs nothing.
        warmup: share of all steps without perturbation, in [0, 1).

    A gradient that is not finite perturbs nothing. The learning rate of the reference's proxy cancels in the ratio.

    Raises:
        ValueError: gamma or warmup out of range.

    Source: Wu et al., NeurIPS 2020, arXiv:2004.05884.
    """
    if not 0 <= gamma < math.inf or not 0 <= warmup < 1:
        raise ValueError(f"gamma must be finite and >= 0, warmup in [0, 1), got {gamma} and {warmup}")
    return WeightPerturbation(gamma, warmup)

"""Adversarial weight perturbation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from robustcli.registry import hooks
from robustcli.training.hook import Hook, StepContext
from robustcli.training.schedules import Share

#: Keeps a tensor without gradient where it is; the constant of the reference code.
_TINY = 1e-20


@dataclass(frozen=True)
class _Perturbed:
    """weights: w + v, the live parameters. before: copies of w. added: v."""

    weights: list[Tensor]
    before: list[Tensor]
    added: list[Tensor]


class WeightPerturbation(Hook):
    """Adds v to the weights before the outer loss and subtracts it after the optimiser's step.

    It remembers nothing between two steps.
    """

    def __init__(self, gamma: float, warmup: float) -> None:
        self.gamma, self.warmup = gamma, warmup
        self._pending: _Perturbed | None = None

    def before_loss(self, context: StepContext) -> None:
        """w <- w + v; v is kept until the step is finished or undone."""
        assert self._pending is None, "the step before was neither finished nor undone"
        wanted = [p for p in context.model.parameters() if p.dim() > 1 and p.requires_grad]
        if not self.gamma or context.progress < self.warmup or not wanted:
            return
        grads, weights = context.gradients(wanted), list[Tensor](wanted)
        with torch.no_grad():
            norms = torch.stack([*torch._foreach_norm(weights), *torch._foreach_norm(grads)])
            finite = torch.isfinite(norms).all()
            if finite.device.type == "cpu" and not finite:  # the outer loss will say so
                return
            added = list(torch._foreach_mul(grads, self._factors(norms, grads)))
            if finite.device.type != "cpu":  # to look would be to wait
                added = [torch.where(finite, v, torch.zeros_like(v)) for v in added]
            self._pending = _Perturbed(weights, [weight.clone() for weight in weights], added)
            torch._foreach_add_(weights, added)

    def _factors(self, norms: Tensor, grads: list[Tensor]) -> list[Tensor]:
        """gamma ||w_i|| / ||g_i|| as scalars, from the norms [2 n] of weights and gradients, in float64."""
        if norms.device.type == "mps":  # which has no float64
            norms = norms.cpu()
        weight, grad = norms.double().chunk(2)
        factors = self.gamma * (weight / (grad + _TINY))
        return [factor.to(g.dtype) for factor, g in zip(factors.unbind(), grads, strict=True)]

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        if self._pending is not None:
            torch._foreach_add_(self._pending.weights, self._pending.added, alpha=-1)
            self._pending = None

    @torch.no_grad()
    def undo(self, context: StepContext) -> None:
        if self._pending is not None:
            # A copy: (w + v) - v is not w in floating point.
            torch._foreach_copy_(self._pending.weights, self._pending.before)
            self._pending = None


@hooks.register("awp", extra_losses=1)
def awp(model: nn.Module, *, gamma: Annotated[float, Ge(0)] = 0.005, warmup: Share = 0.0) -> Hook:
    """v_i = gamma ||w_i|| / ||g_i|| g_i, g = grad_w L(w);  w <- w + v;  w <- step(w, grad L(w));  w <- w - v.

    Norms are l2. Each weight tensor w_i of two or more dimensions has a ratio of its own. Biases and
    BatchNorm stay as they are. L is the outer loss of the batch, on the x_adv that the attack found at the
    unperturbed weights. A gradient that is not finite perturbs nothing. Cost: the passes of the objective
    once more.

    Args:
        model: the classifier that is trained; not used, because each step's context brings it.
        gamma: size of v relative to w, no unit, >= 0; 0.01 for PGD training, 0.005 for TRADES. 0 does nothing
            and costs nothing.
        warmup: share of all steps without perturbation, in [0, 1).

    Raises:
        ValueError: gamma or warmup out of range.

    Source: Wu et al., NeurIPS 2020, arXiv:2004.05884. Their code steps a proxy model to find v; the proxy's
        learning rate cancels in the ratio.
    """
    if not 0 <= gamma < math.inf or not 0 <= warmup < 1:
        raise ValueError(f"gamma must be finite and >= 0, warmup in [0, 1), got {gamma} and {warmup}")
    return WeightPerturbation(gamma, warmup)

"""Projected gradient ascent from where the images of a class have a common slope."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from robustcli.core.geometry import Ball, column
from robustcli.core.losses import RowLoss, ce
from robustcli.core.moves import Ascend
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

Share = Annotated[float, Ge(0), Le(1)]


@attacks.register(
    "class_start",
    kind="fixed",
    norms=("linf",),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: 2 * given["steps"] + 3,
    kept=2,
    use="training in one step with `liet`; never a robustness number",
    deterministic=False,
)
def class_start(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 1,
    step_size: Annotated[float, Gt(0)] | None = None,
    noise_low: Share = 0.1,
    noise_high: Share = 0.5,
    renew: Annotated[int, Ge(1)] = 20,
) -> Tensor:
    """x_0 = P(x +- d), d = eps sign(grad CE(f(grey), y)) or noise;  x_{k+1} = P(x_k + a sign(grad_x loss_k)).

    All pixels of grey lie in the middle of the box: what the gradient says there of a class holds for all its
    images. Each row puts uniform noise of [-eps, eps] in place of a share of the pixels of d, and draws that
    share and the sign. In training the classes' signs are made together, on one grey image each, and kept for
    `renew` steps; elsewhere each row asks for its own, two passes more.

    Args:
        oracle: answers with loss [B], logits [B, K] and input gradient [B, C, H, W].
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: linf, radius and box, in pixel units of [0, 1].
        steps: gradient evaluations of the images, >= 1; 1 in the paper.
        step_size: a, pixel units, > 0; None means eps, or 2.5 * eps / steps where that is less.
        noise_low, noise_high: the share of pixels that become noise is uniform between them, in [0, 1].
        renew: training steps between two gradients of the classes, >= 1.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball`. For radii above 8/255 the authors' code leaves the ball.

    Raises:
        ValueError: noise_low > noise_high.

    Source: Pan et al., ICCV 2025 (LIET); FastAT Benchmark, arXiv:2604.22853. Theirs draws once for a batch.
    """
    if noise_low > noise_high:
        raise ValueError(f"noise_low must be at most noise_high, got {noise_low} and {noise_high}")
    a = ball.check_step(steps, step_size)
    if step_size is None:
        a = min(a, ball.eps)
    rng, tail = oracle.rng.restart(0), tuple(x.shape[1:])
    share = noise_low + (noise_high - noise_low) * rng.uniform()
    replaced = rng.uniform(tail) < column(share, x)
    noise = rng.uniform(tail).mul_(2).sub_(1)
    side = column(rng.signs(), x) * ball.eps
    x_adv = ball.project(x, x + side * torch.where(replaced, noise, _signs(oracle, x, ball, renew)))
    ascend = Ascend(ball, a)
    for _ in range(steps):
        x_adv = oracle.step(x_adv, ascend, x)
        x, x_adv = oracle.compact(x, x_adv)
    return oracle.result(x_adv)


def _signs(oracle: Oracle, x: Tensor, ball: Ball, renew: int) -> Tensor:
    """sign(grad CE(f(grey), y)) of each row's class: [B, C, H, W]."""
    grey = torch.full_like(x, (ball.low + ball.high) / 2)
    if oracle.memory is None:
        return oracle.gradient(grey, "ce", scored=False).grad.sign()
    table = oracle.memory.renewed("class_signs", renew, lambda: _of_classes(oracle, grey), x.device)
    return table[oracle.y].to(x.dtype)


def _of_classes(oracle: Oracle, grey: Tensor) -> Tensor:
    """The same for every class, in calls of at most as many rows as `grey` has: int8 [K, C, H, W]."""
    classes = torch.arange(oracle.ask(grey[:1]).shape[1], device=grey.device)
    parts = []
    for y in classes.split(len(grey)):
        parts.append(oracle.gradient(grey[: len(y)], RowLoss(ce, (y,)), scored=False).grad.sign())
    return torch.cat(parts).to(torch.int8)

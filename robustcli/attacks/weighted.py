"""Cross-entropy minus a weighted detector, with a search over the weight.

`weighted` has more than 50 lines: most are its documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.apart import class_loss, crossed, evasion, guarded, rejected
from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks

_FACTOR = 10.0  # between weights, while only one side of the search is known


@attacks.register(
    "weighted",
    kind="fixed",
    norms=("linf", "l2", "l1"),
    needs="gradient",
    precision="bf16",
    passes=lambda given, classes, norm: given["rounds"] * (2 * given["steps"] + 1),
    use="guarded models: one loss for the class and the detector, balanced for each image",
    deterministic=False,
    guarded=True,
)
def weighted(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    rounds: Annotated[int, Ge(1)] = 5,
    step_size: Annotated[float, Gt(0)] | None = None,
    weight: Annotated[float, Gt(0)] = 1.0,
) -> Tensor:
    """x_{k+1} = P(x_k + a * steepest(grad L)),  L = CE(z_1 .. z_K, y) - w * max(z_reject - max_k z_k, -1).

    Each round starts anew with another w for each row. A row that ends wrong but rejected gets a larger
    weight, one that ends right a smaller one: by factors of 10 until both sides are known, then by the
    geometric mean. On a model that never rejects the second term is 0, and rounds are restarts of PGD.

    Args:
        oracle: answers with raw logits [B, K + 1] and input gradients [B, C, H, W]; holds labels and one
            random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        steps: per round, >= 1; each costs a forward and a backward pass.
        rounds: weights tried, >= 1.
        step_size: a, pixel units, > 0; None means 2.5 * radius / steps.
        weight: w of the first round, > 0; nats per logit.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball` around x: the worst point of all rounds.

    Raises:
        ValueError: steps < 1, rounds < 1, step_size <= 0 or weight <= 0.

    Source: a detector in the loss: Carlini & Wagner, AISec 2017, arXiv:1705.07263; the search over its
        weight: Carlini & Wagner, 2017, arXiv:1608.04644.
    """
    a = ball.check_step(steps, step_size)
    if rounds < 1 or not weight > 0:
        raise ValueError(f"rounds must be >= 1 and weight > 0, got {rounds} and {weight}")
    w, low = x.new_full((len(x),), weight), x.new_zeros(len(x))
    high = torch.full_like(w, torch.inf)
    for number in range(rounds):
        x_adv = ball.start(x, "uniform", oracle.rng.restart(number))
        wrong, seen = torch.zeros_like(w, dtype=torch.bool), torch.zeros_like(w, dtype=torch.bool)
        for _ in range(steps):
            answer = oracle.gradient(x_adv, _loss(oracle, w), raw=True)
            if len(x):
                wrong, seen = crossed(oracle, answer.logits), rejected(oracle, answer.logits)
            x_adv = ball.project(x, x_adv + a * ball.steepest(answer.grad, x_adv))
            x, x_adv, w, low, high, wrong, seen = oracle.compact(x, x_adv, w, low, high, wrong, seen)
        if rounds > 1:
            oracle.score(x_adv)
            x, x_adv, w, low, high, wrong, seen = oracle.compact(x, x_adv, w, low, high, wrong, seen)
        low, high = torch.where(wrong & seen, w, low), torch.where(wrong, high, w)
        w = _next(w, low, high)
    return oracle.result(x_adv)


def _loss(oracle: Oracle, w: Tensor) -> Callable[[Tensor], Tensor]:
    """Raw logits [R, K + 1] -> L [R], with the weights w [R]."""
    towards, hiding = class_loss(oracle), evasion(oracle, enough=1.0)
    if not guarded(oracle):
        return towards
    return lambda logits: towards(logits) + w * hiding(logits)


def _next(w: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The weights [R] of the next round: between the ends that are known, or further out."""
    known = torch.where(low > 0, (low * high).sqrt(), w / _FACTOR)
    return torch.where(high.isinf(), torch.where(low > 0, w * _FACTOR, w), known)

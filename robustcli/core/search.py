"""When an adaptive search looks back and shortens its steps: pure rules, shared by attacks that need them."""

from __future__ import annotations

from torch import Tensor


def checkpoints(steps: int) -> tuple[int, ...]:
    """The step numbers in 1..steps where Auto-PGD looks back: first after 0.22 * steps, each gap 0.03 * steps shorter, never below 0.06 * steps.

    checkpoints(100) is (22, 41, 57, 70, 80, 87, 93, 99). Fractions are rounded down, to 1 at least.
    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, section 3.1.
    """
    gap, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = [], gap
    while at <= steps:
        found.append(at)
        gap = max(gap - shorter, least)
        at += gap
    return tuple(found)


def stalled(
    rises: Tensor, gap: int, rho: float, was_cut: Tensor, loss_best: Tensor, loss_then: Tensor
) -> Tensor:
    """bool [R]: halve the step of a row where rises <= rho * gap, or where it was not halved last time and the best loss is as it was then.

    Args:
        rises: [R], how often the loss rose from one step to the next since the last checkpoint.
        gap: steps since the last checkpoint.
        rho: share of rising steps, in [0, 1], up to which a row counts as oscillating.
        was_cut: bool [R], halved at the last checkpoint (true before the first).
        loss_best, loss_then: [R], best loss now and at the last checkpoint.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, conditions 1 and 2 of section 3.1.
    """
    return (rises <= rho * gap) | (~was_cut & (loss_best <= loss_then))

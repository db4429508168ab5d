"""When an adaptive search looks back, and when it shortens its steps."""

from __future__ import annotations

from torch import Tensor


def checkpoints(steps: int) -> tuple[int, ...]:
    """The step numbers, 1 to `steps`, where Auto-PGD looks back.

    The first comes after 0.22 * steps. Each gap is 0.03 * steps shorter than the one before, but never below
    0.06 * steps. Fractions are rounded down, to 1 at least. checkpoints(100) is (22, 41, 57, 70, 80, 87, 93,
    99).
    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, section 3.1.
    """
    gap, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    marks, step = [], gap
    while step <= steps:
        marks.append(step)
        gap = max(gap - shorter, least)
        step += gap
    return tuple(marks)


def stalled(
    rises: Tensor, gap: int, rho: float, was_cut: Tensor, loss_best: Tensor, loss_then: Tensor
) -> Tensor:
    """rises <= rho * gap, or not was_cut and loss_best <= loss_then: the rows bool [R] that halve their step.

    Args:
        rises: [R], how often the loss rose from one step to the next since the last checkpoint.
        gap: steps since the last checkpoint.
        rho: share of rising steps, in [0, 1], up to which a row counts as oscillating.
        was_cut: bool [R], whether the step was halved at the last checkpoint; true before the first.
        loss_best: [R], the best loss now.
        loss_then: [R], the best loss at the last checkpoint.

    Source: Croce & Hein, ICML 2020, arXiv:2003.01690, conditions 1 and 2 of section 3.1.
    """
    return (rises <= rho * gap) | (~was_cut & (loss_best <= loss_then))

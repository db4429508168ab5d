"""Random points of the ball: the floor under every attack."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.oracle import Oracle
from robustcli.registry import attacks


@attacks.register(
    "noise",
    kind="fixed",
    norms=("linf", "l2", "l1", "l0"),
    needs="decisions",
    precision="bf16",
    passes=lambda given, classes, norm: given["draws"],
    use="the floor: an attack that breaks less is broken itself",
    deterministic=False,
)
def noise(
    oracle: Oracle,
    x: Tensor,
    ball: Ball,
    *,
    draws: Annotated[int, Ge(1)] = 10,
    kind: Literal["uniform", "gaussian", "corners"] = "uniform",
) -> Tensor:
    """x_adv = the worst of `draws` random points of the ball.

    A sanity floor: PGD that breaks fewer rows than this is broken itself, or meets masked gradients.

    Args:
        oracle: keeps the worst point per row; holds one random stream per row.
        x: clean pixels [B, C, H, W] in [0, 1].
        ball: norm, radius and box, in pixel units of [0, 1].
        draws: points per row, >= 1; cost = one forward pass each (none for a single point in training).
        kind: "uniform" in the ball; "gaussian", of expected length eps (linf: standard deviation eps per
            pixel), projected; or "corners" of a linf ball, x +- eps per pixel.

    Returns:
        x_adv [B, C, H, W], detached, inside `ball` around x.

    Raises:
        ValueError: draws < 1; kind "corners" under another norm than linf.

    Source: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705, section 4.
    """
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    if kind == "corners" and ball.norm != "linf":
        raise ValueError(f'kind "corners" is for linf, not {ball.norm}')
    x_adv = x
    for _ in range(draws):
        x_adv = _point(oracle, x, ball, kind)
        if draws > 1:
            oracle.score(x_adv)
            x, x_adv = oracle.compact(x, x_adv)
    return oracle.result(x_adv)


def _point(oracle: Oracle, x: Tensor, ball: Ball, kind: str) -> Tensor:
    """One random point [R, C, H, W] per row of x; kind as in `noise`."""
    if kind == "uniform":
        return ball.random_point(x, oracle.rng)
    tail = tuple(x.shape[1:])
    if kind == "corners":
        return ball.project(x, x + ball.eps * oracle.rng.signs(tail).to(x.dtype))
    d = math.prod(tail)
    # E ||g||_2 is about sqrt(d), E ||g||_1 = d sqrt(2 / pi).
    # Under l0 the projection keeps the largest.
    spread = {"linf": 1.0, "l2": math.sqrt(d), "l1": d * math.sqrt(2 / math.pi), "l0": ball.eps}[ball.norm]
    return ball.start(x, "gaussian", oracle.rng, scale=ball.eps / spread)

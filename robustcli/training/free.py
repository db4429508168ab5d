"""Free adversarial training: one backward pass serves both the attack and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch, LossTerms
from robustcli.errors import CheckpointError
from robustcli.registry import steps
from robustcli.training.steps import MinMax


@dataclass
class Free(MinMax):
    """m times on one batch:  g = grad of the outer loss at x + delta;  theta <- theta - lr g_theta;  delta <- P(delta + a steepest(g_x)).

    delta [B, C, H, W] belongs to the places of the batch and goes on from batch to batch, 0 at the first. Cost: 3 passes a replay, and m
    updates of the weights a step; the attack of the configuration is not used. Micro-batches and regularisers are not possible.

    Args:
        replays: m, >= 1.
        step_size: a, pixel units; None means eps.

    Source: Shafahi et al., NeurIPS 2019, arXiv:1904.12843, Algorithm 1.
    """

    replays: int = 4
    step_size: float | None = None
    _delta: Tensor | None = field(default=None, init=False)

    def state(self) -> dict[str, Tensor]:
        """delta of the whole batch, when there is one. Every rank must ask: each has the rows of its own places."""
        if self._delta is None or self.ranks.world == 1:
            return {} if self._delta is None else {"delta": self._delta}
        parts = [torch.zeros_like(self._delta, dtype=torch.float64) for _ in range(self.ranks.world)]
        parts[self.ranks.rank] = self._delta.double() * self.ranks.world
        self.ranks.mean(parts)  # exact: one summand is not 0, and float64 holds a small multiple of a float32
        return {"delta": torch.cat(parts).to(self._delta.dtype)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Raises CheckpointError for anything but delta, or one that the ranks cannot share."""
        if set(state) - {"delta"}:
            raise CheckpointError(
                f"unknown tensors {sorted(set(state) - {'delta'})} in the state of the free step"
            )
        delta, world = state.get("delta"), self.ranks.world
        if delta is not None and len(delta) % world:
            raise CheckpointError(
                f"the free step's delta of {len(delta)} places cannot be shared by {world} processes",
                hint="resume with as many as before",
            )
        self._delta = None if delta is None else delta.chunk(world)[self.ranks.rank].clone()

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        *,
        seed: int,
        epoch: int,
        y_soft: Tensor | None = None,
        progress: float = 0.5,
    ) -> LossTerms:
        """See `MinMax.__call__`; the terms are those of the last replay. A stop request waits for the end of the step."""
        ball = self.threat(progress)[1]
        rng = RowRandom(seed, "objective", ids, epoch=epoch)
        x = self.laid_out(x)
        delta = torch.zeros_like(x) if self._delta is None else self._delta.to(x.device)
        if delta.shape[1:] != x.shape[1:] or len(delta) < len(x):
            raise CheckpointError(
                f"the free step's delta has shape {tuple(delta.shape)}, the batch {tuple(x.shape)}",
                hint="resume with the same batch size",
            )
        own = delta[: len(x)]
        size = (
            ball.eps if self.step_size is None else self.step_size * ball.eps / max(self.ball.eps, 1e-12)
        )  # a length follows the radius
        around = Ball(
            ball.norm, ball.eps, -1.0, 1.0
        )  # delta moves in the ball around 0; the box is that of the pixels
        terms = LossTerms(x.new_zeros(()))
        for _ in range(self.replays):
            point = (x + own).clamp_(ball.low, ball.high).requires_grad_(True)
            terms = self.descent([Batch(x, y, point, ids, ball, rng, y_soft)], progress)
            grad = torch.zeros_like(x) if point.grad is None else point.grad.nan_to_num(0.0, 0.0, 0.0)
            moved = own + size * around.steepest(grad, own)
            own = around.project(torch.zeros_like(x), moved)
        self._delta = own if len(delta) == len(x) else torch.cat((own, delta[len(x) :]))
        return terms

    def halve(self, rows: int) -> int:
        """0: every place of the batch has its delta and its update; a smaller batch is another training."""
        return 0


@steps.register("free", attacks=False)
def free(
    settings: Mapping[str, Any],
    *,
    replays: Annotated[int, Ge(1)] = 4,
    step_size: Annotated[float, Gt(0)] | None = None,
) -> MinMax:
    """g = grad L(theta, x + delta);  theta <- theta - lr g_theta;  delta <- P(delta + a steepest(g_x)):  m times on each batch.

    Args:
        settings: the fields of `MinMax`; its attack is not used.
        replays: m, >= 1: updates per batch. Divide the epochs of another recipe by m.
        step_size: a, pixel units; None means eps.

    Source: Shafahi et al., NeurIPS 2019, arXiv:1904.12843, Algorithm 1.
    """
    return Free(**settings, replays=replays, step_size=step_size)

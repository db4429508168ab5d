"""Free adversarial training: one backward pass serves both the attack and the weights."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from robustcli.core.edge import hides_bounds, within
from robustcli.core.geometry import Ball
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch, LossTerms
from robustcli.errors import CheckpointError
from robustcli.registry import steps
from robustcli.training.descent import Descent
from robustcli.training.settings import StepSettings
from robustcli.training.step import Step


class Free:
    """Each batch is replayed m times: the gradients at x + delta move the weights and then delta.

    delta [B, C, H, W], in pixel units, belongs to the places of a batch, not to images. It starts at 0 and is
    kept from batch to batch. Cost: 3 passes a replay, and m updates of the weights a step. Micro-batches are
    not possible.

    Args:
        settings: model, objective, ball and optimiser; its attack is not used.
        replays: m, >= 1.
        step_size: a, pixel units; None means eps.

    Source: Shafahi et al., NeurIPS 2019, arXiv:1904.12843, Algorithm 1.
    """

    def __init__(self, settings: StepSettings, replays: int = 4, step_size: float | None = None) -> None:
        self.settings, self.replays, self.step_size = settings, replays, step_size
        self.descent = Descent(settings)
        self.micro_batch: int | None = None
        self._delta: Tensor | None = None
        self._hides: bool | None = None  # whether the model has no slope at 0 and 1; None: not known yet

    @property
    def twin_note(self) -> str:
        """ "": a free step runs no attack and needs no twin."""
        return ""

    @property
    def way(self) -> str:
        """ "", for the same reason."""
        return ""

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
        number: int = 0,
    ) -> LossTerms:
        """See `Step`. The loss terms are those of the last replay.

        A stop request takes effect after the whole step.
        """
        _, ball = self.settings.threat(progress)
        rng = RowRandom(seed, "objective", ids, epoch=epoch)
        x = self.settings.laid_out(x)
        delta = self._delta_for(x)
        own = delta[: len(x)]
        terms = LossTerms(x.new_zeros(()))
        for _ in range(self.replays):
            point = self._seen((x + own).clamp_(ball.low, ball.high)).requires_grad_(True)
            reached = self.settings.reached(ball)
            batch = Batch(x, y, point, ids, ball, rng, y_soft, reached, progress=progress)
            terms = self.descent([batch], progress)
            own = self._moved(own, point.grad, ball)
        # A shorter batch leaves the last places as they were.
        self._delta = own if len(own) == len(delta) else torch.cat((own, delta[len(own) :]))
        return terms

    def _seen(self, point: Tensor) -> Tensor:
        """The point, beside 0 and 1 where the model has no slope there."""
        if self._hides is None:
            with frozen(self.settings.model):
                self._hides = hides_bounds(self.settings.model, point)
        return within(point) if self._hides else point

    def _delta_for(self, x: Tensor) -> Tensor:
        """delta on the device of x, zeros at first; it has at least as many places as x.

        Raises CheckpointError when a restored delta does not fit x.
        """
        if self._delta is None:
            return torch.zeros_like(x)
        delta = self._delta.to(x.device)
        if delta.shape[1:] != x.shape[1:] or len(delta) < len(x):
            raise CheckpointError(
                f"the free step's delta has shape {tuple(delta.shape)}, the batch {tuple(x.shape)}",
                hint="resume with the same batch size",
            )
        return delta

    def _moved(self, delta: Tensor, grad: Tensor | None, ball: Ball) -> Tensor:
        """P(delta + a steepest(grad)), where P projects onto the ball around 0.

        delta, grad: [B, C, H, W]; grad None counts as zeros.
        """
        origin = torch.zeros_like(delta)
        if grad is None:
            grad = origin
        size = ball.eps
        if self.step_size is not None:  # a length follows the radius
            size = self.step_size * ball.eps / max(self.settings.ball.eps, 1e-12)
        # delta is a difference of pixels: its box is [-1, 1], not the box of the pixels.
        around = Ball(ball.norm, ball.eps, -1.0, 1.0)
        steepest = around.steepest(grad.nan_to_num(0.0, 0.0, 0.0), delta)
        return around.project(origin, delta + size * steepest)

    def halve(self, rows: int) -> int:
        """0: the step cannot be split, because m updates on smaller batches would be another training."""
        return 0

    def state(self) -> dict[str, Tensor]:
        """{"delta": float32 [B, C, H, W] of all ranks}; {} before the first step.

        Every rank must call this: each holds the rows of its own places.
        """
        delta, ranks = self._delta, self.settings.ranks
        if delta is None:
            return {}
        if ranks.world == 1:
            return {"delta": delta}
        parts = [torch.zeros_like(delta, dtype=torch.float64) for _ in range(ranks.world)]
        parts[ranks.rank] = delta.double() * ranks.world
        ranks.mean(parts)  # exact: one summand is not 0, and float64 holds a small multiple of a float32
        return {"delta": torch.cat(parts).to(delta.dtype)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`.

        Raises CheckpointError for other tensors, or a delta that the ranks cannot share.
        """
        if set(state) - {"delta"}:
            raise CheckpointError(
                f"unknown tensors {sorted(set(state) - {'delta'})} in the state of the free step"
            )
        delta, ranks = state.get("delta"), self.settings.ranks
        if delta is None:
            self._delta = None
            return
        if len(delta) % ranks.world:
            raise CheckpointError(
                f"the free step's delta of {len(delta)} places cannot be shared by {ranks.world} processes",
                hint="resume with as many as before",
            )
        self._delta = delta.chunk(ranks.world)[ranks.rank].clone()


@steps.register("free", attacks=False)
def free(
    settings: StepSettings,
    *,
    replays: Annotated[int, Ge(1)] = 4,
    step_size: Annotated[float, Gt(0)] | None = None,
) -> Step:
    """g = grad L(theta, x + delta);  theta <- theta - lr g_theta;  delta <- P(delta + a steepest(g_x)).

    These three steps run m times on each batch. P projects onto the ball around 0.

    Args:
        settings: what every step is given; the attack in it is not used.
        replays: m, >= 1: updates per batch. Divide the epochs of another recipe by m.
        step_size: a, pixel units; None means eps.

    Source: Shafahi et al., NeurIPS 2019, arXiv:1904.12843, Algorithm 1.
    """
    return Free(settings, replays, step_size)

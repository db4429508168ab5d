"""One training step: attack the model, then descend on what the attack found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, bind_inner
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Batch, Classifier, LossTerms
from robustcli.evaluation.plan import Search
from robustcli.registry import steps
from robustcli.runtime.distributed import Ranks, solo
from robustcli.training.descent import Descent, Objective, Regularizer
from robustcli.training.faults import together
from robustcli.training.forward import Forward
from robustcli.training.hooks import Hook

Attack = Callable[[Oracle, Tensor, Ball], Tensor]


@dataclass
class MinMax:
    """max over the ball of the inner loss, then one descent step on the outer one (Madry et al., arXiv:1706.06083).

    Args:
        model: the classifier being trained, pixels -> logits.
        objective: (model, Batch) -> LossTerms, parameters bound.
        inner: name of the loss the attack ascends, or None for no attack.
        attack: (oracle, x, ball) -> x_adv, parameters bound.
        ball: the threat.
        optimizer: updates the model's parameters.
        dtype: autocast type of the outer step; float32 means none.
        attack_bn: "eval" attacks with running statistics (and on a folded twin), "train" with those of the batch.
        search: the twin that is attacked: folded, of low precision, or compiled; only for attack_bn "eval". `Search().exact()`: the model itself.
        grad_clip: largest global l2 norm of the gradient, or None.
        parallel: the module the passes go through: the model itself or a DataParallel around it.
        compiled: run the outer step's passes through torch.compile.
        scaler: torch.amp.GradScaler for fp16, else None.
        stop: raises to interrupt; called before every pass of the attack, never during the outer step.
        regularizers, hooks, ranks: see `Descent`.
        inner_params: parameters of the inner loss.
        strength: t -> (attack, ball) in the place of `attack` and `ball`: a curriculum.
        micro_batch: most images in one pass; gradients of the parts are added up. None: the whole batch.
    """

    model: nn.Module
    objective: Objective
    inner: str | None
    attack: Attack
    ball: Ball
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32
    attack_bn: Literal["eval", "train"] = "eval"
    search: Search = Search()
    channels_last: bool = True
    grad_clip: float | None = None
    parallel: nn.Module | None = None
    compiled: bool = False
    scaler: Any = None
    stop: Callable[[], None] | None = None
    regularizers: dict[str, Regularizer] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()
    ranks: Ranks = field(default_factory=solo)
    strength: Callable[[float], tuple[Attack, Ball]] | None = None
    inner_params: Mapping[str, float] = field(default_factory=dict)
    micro_batch: int | None = None
    twin_note: str = field(default="", init=False)
    _twin: SearchTwin | None = field(default=None, init=False)
    _twin_tried: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.forward = Forward(self.model, dtype=self.dtype, parallel=self.parallel, compiled=self.compiled)
        self.descent = Descent(
            self.model,
            lambda model, batch: self.objective(
                model, batch
            ),  # looked up at each step: a test may replace it
            self.optimizer,
            forward=self.forward,
            regularizers=self.regularizers,
            hooks=self.hooks,
            grad_clip=self.grad_clip,
            scaler=self.scaler,
            ranks=self.ranks,
        )

    # ---- state -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Tensors of the step itself that a resume needs, besides model, optimiser and hooks."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`."""

    # ---- attack ------------------------------------------------------------------------------------------------

    def _searcher(self, x: Tensor) -> Classifier:
        """The folded twin with fresh weights where it is proven equal on x, else the model under autocast."""
        if not self._twin_tried:
            if not self.search.plain and self.attack_bn == "eval" and self.parallel is None:
                twin = self.search.copy_of(self.model)
                self.twin_note = twin.parity(x)
                self._twin = None if self.twin_note else twin
            self._twin_tried = True
        return self.forward if self._twin is None else self._twin

    def adversarial(
        self, x: Tensor, y: Tensor, rng: RowRandom, *, y_soft: Tensor | None = None, progress: float = 0.5
    ) -> Tensor:
        """x_adv [B, C, H, W]; the model's flags and buffers are as before. x itself without an inner loss."""
        if self.inner is None:
            return x
        attack, ball = self.threat(progress)
        with frozen(self.model, bn="batch" if self.attack_bn == "train" else "eval"):
            if self._twin is not None:
                self._twin.refresh()
            searcher = self._searcher(x[self._parts(len(x))[0]])
            parts = []
            for rows in self._parts(len(x)):
                part = x[rows]
                soft = None if y_soft is None else y_soft[rows]
                loss = bind_inner(
                    self.inner,
                    y[rows],
                    y_soft=soft,
                    clean=partial(_clean, searcher, part),
                    **self.inner_params,
                )
                oracle = Oracle(
                    searcher, part, Criterion(y[rows]), loss=loss, rng=rng.rows(rows), stop=self.stop
                )
                parts.append(attack(oracle, part, ball))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def threat(self, progress: float) -> tuple[Attack, Ball]:
        """Attack and ball at the share `progress` of the run."""
        return (self.attack, self.ball) if self.strength is None else self.strength(progress)

    def _parts(self, rows: int) -> list[slice]:
        size = self.micro_batch or rows
        return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]

    # ---- step --------------------------------------------------------------------------------------------------

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
        """One step on x [B, C, H, W], y [B], at the share `progress` of the run.

        Raises NumericsError (loss or gradient not finite), torch.OutOfMemoryError or Interrupted, parameters and state unchanged.
        """
        rng = RowRandom(seed, "start", ids, epoch=epoch)
        x = self.laid_out(x)
        x_adv = together(self.ranks, lambda: self.adversarial(x, y, rng, y_soft=y_soft, progress=progress))
        drawn = RowRandom(
            seed, "objective", ids, epoch=epoch
        )  # a regulariser must not see the noise that the attack started from
        return self.descent(
            self._batches(x, y, x_adv, ids, self.threat(progress)[1], drawn, y_soft), progress
        )

    def laid_out(self, x: Tensor) -> Tensor:
        """The pixels in the memory format of training."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def _batches(
        self,
        x: Tensor,
        y: Tensor,
        x_adv: Tensor,
        ids: Tensor,
        ball: Ball,
        rng: RowRandom,
        y_soft: Tensor | None,
    ) -> list[Batch]:
        parts = [(s, x[s]) for s in self._parts(len(x))]
        return [
            Batch(
                part,
                y[s],
                part if x_adv is x else x_adv[s],
                ids[s],
                ball,
                rng.rows(s),
                None if y_soft is None else y_soft[s],
            )
            for s, part in parts
        ]

    def halve(self, rows: int) -> int:
        """After out-of-memory on a batch of `rows` images: half the micro-batch, at least 1; 0 when it was 1 already."""
        now = min(self.micro_batch or rows, rows)
        if now <= 1:
            return 0
        self.micro_batch = (now + 1) // 2
        return self.micro_batch


def _clean(searcher: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return searcher(x)


@steps.register("minmax", attacks=True)
def minmax(settings: Mapping[str, Any]) -> MinMax:
    """x_adv = argmax over the ball of the inner loss;  theta <- theta - lr grad L(theta, x, x_adv): attack, then descend.

    Source: Madry et al., ICLR 2018, arXiv:1706.06083.
    """
    return MinMax(**settings)

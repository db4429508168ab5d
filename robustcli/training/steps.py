"""One training step: attack the model, then descend on what the attack found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.errors import NumericsError
from robustcli.types import Batch, Classifier, LossTerms


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
        fold: attack a folded, low-precision twin; only for attack_bn "eval".
        twin_dtype: precision of that twin.
        grad_clip: largest global l2 norm of the gradient, or None.
        parallel: the module the passes go through: the model itself or a DataParallel around it.
        scaler: torch.amp.GradScaler for fp16, else None.
        stop: raises to interrupt; called before every pass of the attack, never during the outer step.
    """

    model: nn.Module
    objective: Callable[[Classifier, Batch], LossTerms]
    inner: str | None
    attack: Callable[[Oracle, Tensor, Ball], Tensor]
    ball: Ball
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype = torch.float32
    attack_bn: Literal["eval", "train"] = "eval"
    fold: bool = True
    twin_dtype: torch.dtype = torch.float32
    channels_last: bool = True
    grad_clip: float | None = None
    parallel: nn.Module | None = None
    scaler: Any = None
    stop: Callable[[], None] | None = None
    twin_note: str = field(default="", init=False)
    _twin: SearchTwin | None = field(default=None, init=False)
    _twin_tried: bool = field(default=False, init=False)

    @property
    def _runner(self) -> nn.Module:
        return self.parallel if self.parallel is not None else self.model

    def _autocast(self, device: torch.device) -> Any:
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(device.type, dtype=self.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        """Logits in float32 of the model as it is trained."""
        with self._autocast(x.device):
            logits: Tensor = self._runner(x)
        return logits.float()

    def _searcher(self, x: Tensor) -> Classifier:
        """The folded twin with fresh weights where it is proven equal on x, else the model under autocast."""
        if not self._twin_tried:
            self._twin_tried = True
            if self.fold and self.attack_bn == "eval" and self.parallel is None:
                twin = SearchTwin(self.model, dtype=self.twin_dtype, channels_last=self.channels_last)
                self.twin_note = twin.parity(x)
                self._twin = None if self.twin_note else twin
        elif self._twin is not None:
            self._twin.refresh()
        return self._forward if self._twin is None else self._twin

    def adversarial(self, x: Tensor, y: Tensor, rng: RowRandom) -> Tensor:
        """x_adv [B, C, H, W]; the model's flags and buffers are as before. x itself without an inner loss."""
        if self.inner is None:
            return x
        with frozen(self.model, bn="batch" if self.attack_bn == "train" else "eval"):
            oracle = Oracle(self._searcher(x), x, Criterion(y), loss=self.inner, rng=rng, stop=self.stop)
            return self.attack(oracle, x, self.ball)

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor, *, seed: int, epoch: int, y_soft: Tensor | None = None) -> LossTerms:
        """One step on x [B, C, H, W], y [B]. Raises NumericsError, parameters unchanged, when loss or gradient is not finite."""
        rng = RowRandom(seed, "start", ids, epoch=epoch)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        x_adv = self.adversarial(x, y, rng)
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.objective(self._forward, Batch(x, y, x_adv, ids, self.ball, rng, y_soft))
        scaled = terms.total if self.scaler is None else self.scaler.scale(terms.total)
        scaled.backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        # fp16 gradients overflow now and then: the scaler skips such a step and lowers its scale.
        finite = torch.isfinite(terms.total.detach()) & (torch.isfinite(norm) if self.scaler is None else True)
        if not bool(finite):
            for buffer, before in buffers:
                buffer.copy_(before)
            what = "gradient" if bool(torch.isfinite(terms.total.detach())) else "loss"
            raise NumericsError(f"the {what} is not finite", hint="lower the learning rate, or clip with train.grad_clip")
        if self.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.grad_clip, norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return terms

"""The only place where an attack's success is decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import padded


@contextmanager
def exact_fp32() -> Iterator[None]:
    """No autocast and no TF32 inside: cuDNN convolutions use TF32 by default, which moves borderline verdicts."""
    convolution: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - untyped in torch's stubs
    matmul: Any = torch.backends.cuda.matmul
    before = convolution.fp32_precision, matmul.fp32_precision
    convolution.fp32_precision = matmul.fp32_precision = "ieee"
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        convolution.fp32_precision, matmul.fp32_precision = before


@dataclass(frozen=True)
class Ruling:
    """What the judge found for each row: success, label predicted now, distance float64, inside ball and box."""

    hit: Tensor
    predicted: Tensor
    distance: Tensor
    inside: Tensor


class Judge:
    """Re-predicts with the original model in fp32 and re-measures in float64.

    Args:
        model: the original classifier, held frozen in eval mode by the caller.
        ball: the threat; points outside it never count, whatever the model says of them.
    """

    def __init__(self, model: nn.Module, ball: Ball) -> None:
        self._model, self._ball = model, ball
        self.forward_rows = 0
        self.refused_rows = 0

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] float32 of the original model, no gradient."""
        self.forward_rows += len(x)
        with torch.no_grad(), exact_fp32():
            logits: Tensor = self._model(padded(x))
        return logits[: len(x)].float()

    def rule(self, x: Tensor, x_adv: Tensor, criterion: Criterion, rows: Tensor | None = None) -> Ruling:
        """Decide the rows `rows` of `criterion` (all by default); x and x_adv hold just these rows, [R, C, H, W]."""
        inside = self._ball.contains(x, x_adv)
        self.refused_rows += int((~inside).sum())
        logits = self.logits(x_adv)
        return Ruling(criterion.hit(logits, rows) & inside, logits.argmax(1), self._ball.distance(x, x_adv), inside)

"""Signs that a robustness number must not be believed. Each is explained in docs/alarms.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Level = Literal["suspect", "invalid"]


@dataclass(frozen=True)
class Alarm:
    """One warning: a stable name, how bad it is, what was measured, and what to do."""

    name: str
    level: Level
    evidence: str
    remedy: str

    def to_json(self) -> dict[str, str]:
        """For the JSON document."""
        return asdict(self)


def reliability(alarms: Sequence[Alarm]) -> Literal["ok", "suspect", "invalid"]:
    """The worst level of all alarms."""
    levels = {alarm.level for alarm in alarms}
    return "invalid" if "invalid" in levels else "suspect" if "suspect" in levels else "ok"


def state_digest(model: nn.Module) -> str:
    """SHA-256 over parameters and buffers: an evaluation must not change the model it measures."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def check_model_output(logits: Tensor, again: Tensor) -> list[Alarm]:
    """Alarms from two forward passes [B, K] over the same clean images."""
    alarms = []
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        alarms.append(
            Alarm("non-finite-logits", "invalid", f"{broken} of {len(logits)} images give NaN or Inf logits", "repair the model; no verdict is possible")
        )
    scale = float(logits.nan_to_num().abs().max().clamp_min(1e-12))
    drift = float((logits - again).nan_to_num().abs().max()) / scale
    if drift > 1e-4:
        alarms.append(
            Alarm("random-forward", "invalid", f"two passes over one batch differ by {drift:.2g} of the largest logit", "average over draws, or fix the seed")
        )
    total = logits.sum(1)
    if logits.shape[1] > 1 and bool(((logits >= 0) & (logits <= 1)).all()) and bool(((total - 1).abs() < 1e-5).all()):
        alarms.append(
            Alarm("softmax-output", "suspect", "outputs lie in [0, 1] and sum to 1", "return logits: cross-entropy on probabilities has vanishing gradients")
        )
    return alarms


def check_search(zero_gradient_share: float, refused_rows: int, before: str, after: str) -> list[Alarm]:
    """Alarms from a finished search: share of zero gradients, points outside the ball, digests of the model."""
    alarms = []
    if zero_gradient_share > 0.05:
        alarms.append(
            Alarm("zero-gradient", "suspect", f"{zero_gradient_share:.1%} of gradient answers were exactly zero", "use loss: margin, or a gradient-free attack")
        )
    if refused_rows:
        alarms.append(
            Alarm("outside-ball", "suspect", f"{refused_rows} points left the ball or the pixel box and were not counted", "report it: the attack is wrong")
        )
    if before != after:
        alarms.append(
            Alarm("model-mutated", "invalid", "parameters or buffers changed while they were measured", "a forward in eval mode must not write state")
        )
    return alarms

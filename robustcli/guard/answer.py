"""What a guarded model says of one image, and how a module is asked for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from robustcli.models.info import ModelInfo

#: Places of a probability in an answer. Finer ones would tell a stranger more of the model than of the image.
CONFIDENCE_PLACES = 2
_LARGEST = torch.finfo(torch.float32).max


class Look(Protocol):
    """What the detectors and the network found: `logits` [B, K], and a score [B] of each detector."""

    @property
    def logits(self) -> Tensor: ...

    @property
    def scores(self) -> Mapping[str, Tensor]: ...


class Guarded(Protocol):
    """A model with detectors: K classes, and `reject` = K for what it does not trust."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def reject(self) -> int: ...

    @property
    def sha256(self) -> str:
        """Hash of the manifest that it was opened from."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, where they are known."""

    @property
    def detectors(self) -> Sequence[str]: ...

    @property
    def thresholds(self) -> Tensor:
        """[D], one for each detector; a score above it is an alarm."""

    def look(self, x: Tensor) -> Look:
        """x [B, C, H, W] in [0, 1] -> what was found."""

    def rejection(self, logits: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """The logit [B] of `reject`, from what `look` found."""


@dataclass(frozen=True)
class Answer:
    """What a guarded model says of one image.

    Args:
        label: the class with the largest logit, 0 to K - 1, whether or not the image was accepted.
        confidence: its probability.
        accepted: whether no detector raised an alarm.
        scores: of each detector; larger is more suspicious.
        quarantined: hash under which the evidence was stored; None where it was not.
    """

    label: int
    confidence: float
    accepted: bool
    scores: Mapping[str, float]
    quarantined: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON form: a rounded confidence, scores of four digits."""
        scores = {name: float(f"{score:.4g}") for name, score in self.scores.items()}
        return asdict(self) | {"confidence": round(self.confidence, CONFIDENCE_PLACES), "scores": scores}


def answers(model: Guarded, x: Tensor) -> list[Answer]:
    """One answer for each row of x [B, C, H, W], pixels in [0, 1]; one pass of the model.

    An image for which the model or a detector computes no finite number is not accepted.
    """
    with torch.inference_mode():
        look = model.look(x.to(model.thresholds.device))
        reject = model.rejection(look.logits, look.scores)
        accepted = torch.cat([look.logits, reject[:, None]], 1).argmax(1) < model.reject
        finite = torch.isfinite(look.logits).all(1)
        for score in look.scores.values():
            finite &= torch.isfinite(score)
        confidence, label = torch.softmax(look.logits.nan_to_num(), 1).max(1)
    scores = {name: score.tolist() for name, score in look.scores.items()}
    return [
        Answer(
            int(label[row]),
            float(confidence[row]) if finite[row] else 0.0,
            bool(accepted[row]) and bool(finite[row]),
            {name: _number(values[row]) for name, values in scores.items()},
        )
        for row in range(len(x))
    ]


def _number(score: float) -> float:
    """The score; the largest number for one that JSON cannot hold."""
    return score if math.isfinite(score) else _LARGEST

"""What the detectors say of clean images and of points, and how well that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustcli.core.modes import frozen
from robustcli.evaluation.judge import exact_fp32
from robustcli.models.guarded import GuardedModel

#: The score over all detectors, max_i (s_i - t_i) / d_i: above 0 the guarded model rejects.
EXCESS = "excess"


class Seen(NamedTuple):
    """What a guarded model says of n images, on the CPU.

    Args:
        label: int64 [n], the class, rejection apart.
        accepted: bool [n].
        scores: name -> [n].
    """

    label: Tensor
    accepted: Tensor
    scores: dict[str, Tensor]


def seen(model: GuardedModel, x: Tensor, draws: int = 1) -> Seen:
    """What the model says of pixels x [B, C, H, W], from the mean over `draws` passes."""
    with frozen(model), torch.no_grad(), exact_fp32():
        looks = [model.look(x) for _ in range(draws)]
        logits = torch.stack([look.logits for look in looks]).mean(0)
        scores = {
            name: torch.stack([look.scores[name] for look in looks]).mean(0) for name in model.detectors
        }
        accepted = model.rejection(logits, scores) <= logits.amax(1)
        if model.detectors and model.fitted:
            scores[EXCESS] = model.excess(scores)
    on_cpu = {name: score.float().cpu() for name, score in scores.items()}
    return Seen(logits.argmax(1).cpu(), accepted.cpu(), on_cpu)


def joined(parts: Sequence[Seen]) -> Seen:
    """All parts, one after the other."""
    names = list(parts[0].scores)
    return Seen(
        torch.cat([part.label for part in parts]),
        torch.cat([part.accepted for part in parts]),
        {name: torch.cat([part.scores[name] for part in parts]) for name in names},
    )


@dataclass(frozen=True)
class Curve:
    """How well a score tells wrong points from clean images.

    Args:
        score: a detector, or `EXCESS`.
        points: "oblivious" or "adaptive".
        clean, wrong: how many clean images, and points of a wrong class, were scored.
        caught: wrong points above the threshold of the score.
        auroc: the chance that a wrong point has the larger score, ties half; None without either kind.
        fpr, tpr: the ROC curve from (0, 0) to (1, 1).
    """

    score: str
    points: str
    clean: int
    wrong: int
    caught: int
    auroc: float | None
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


def curve(score: str, points: str, clean: Tensor, found: Tensor, threshold: float) -> Curve:
    """The curve of one score: clean [n], found [m], the scores of clean images and of wrong points."""
    counts = (len(clean), len(found), int((found > threshold).sum()))
    if not len(clean) or not len(found):
        return Curve(score, points, *counts, None, (0.0, 1.0), (0.0, 1.0))
    from sklearn.metrics import roc_auc_score, roc_curve  # late: it takes a second to import

    truth = torch.cat([torch.zeros(len(clean)), torch.ones(len(found))]).numpy()
    values = torch.cat([clean, found]).nan_to_num().double().numpy()
    fpr, tpr, _ = roc_curve(truth, values)
    kept = torch.linspace(0, len(fpr) - 1, min(_CORNERS, len(fpr))).round().long().tolist()
    auroc = float(roc_auc_score(truth, values))
    return Curve(score, points, *counts, auroc, *(tuple(map(float, part[kept])) for part in (fpr, tpr)))


_CORNERS = 200  # of a stored curve, at most


def stands_at(fpr: float, clean: Mapping[str, Tensor], right: Tensor, hits: Tensor, found: Tensor) -> int:
    """How many samples would stand if the joint threshold rejected the share `fpr` of these clean images.

    The points stay as they are: an attack that knew the other threshold could do better.

    Args:
        fpr: in (0, 1).
        clean: name -> scores [n] of the clean images, with `EXCESS`.
        right: bool [n], right on the clean image, rejection apart.
        hits: bool [n], the point is of a wrong class.
        found: `EXCESS` [n] at the points.
    """
    threshold = clean[EXCESS].quantile(1 - fpr, interpolation="higher")
    accepted = clean[EXCESS] <= threshold
    return int((right & accepted & ~(hits & (found <= threshold))).sum())

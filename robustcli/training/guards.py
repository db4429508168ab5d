"""Guards of a training run: small rules that read each validation and say when training goes wrong.

They see validation images only, never test images, and draw nothing. `state()` is plain JSON and saved in every checkpoint, so a resumed run
raises the same alarms at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from robustcli.errors import CheckpointError

Mode = Literal["off", "warn", "stop", "rollback"]
Action = Literal["none", "warn", "stop", "rollback"]


def spread(p: float, q: float, n: int) -> float:
    """sqrt((p'(1 - p') + q'(1 - q')) / (n + 2)),  p' = (n p + 1) / (n + 2): standard deviation of the difference of two proportions of n.

    One success and one failure are added to each, so that it is not 0 at p = q = 1. The guards compare verdicts on the same n images, whose
    difference varies less than that of two samples: alarms come rather too seldom than too often. p, q in [0, 1], n >= 1, else ValueError.
    Source: Agresti & Caffo, The American Statistician 54, 2000.
    """
    if n < 1 or not (0 <= p <= 1 and 0 <= q <= 1):
        raise ValueError(f"accuracies are fractions in [0, 1] of n >= 1 images, got {p} and {q} of {n}")
    return math.sqrt(sum(r * (1 - r) for r in ((n * p + 1) / (n + 2), (n * q + 1) / (n + 2))) / (n + 2))


class Guard:
    """What all guards share: the fields named in `kept` are what they remember."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """What a resume needs, plain JSON."""
        return {name: getattr(self, name) for name in self.kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`. Raises CheckpointError when the names are not those of this guard."""
        if set(state) != set(self.kept):
            raise CheckpointError(
                f"the state of {type(self).__name__} holds {sorted(state)}, expected {sorted(self.kept)}"
            )
        for name in self.kept:
            setattr(self, name, state[name])


@dataclass
class EarlyStopping(Guard):
    """Stop when `patience` validations in a row brought no better model.

    patience: >= 1, else ValueError; None trains to the end.  Source: for robust training Rice et al., ICML 2020, arXiv:2002.11569.
    """

    kept = ("waited",)
    patience: int | None = None
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1, got {self.patience}")

    def update(self, improved: bool) -> bool:
        """True = stop now. `improved`: this validation gave the best model so far."""
        self.waited = 0 if improved else self.waited + 1
        return self.patience is not None and self.waited >= self.patience


@dataclass
class OverfittingWatch(Guard):
    """best - last > 2 spread(best, last, n): the robust accuracy on validation images has fallen for good (robust overfitting).

    n: validation images, >= 1.  Source: Rice et al., ICML 2020, arXiv:2002.11569 (7.9 points on CIFAR-10 between the best and the last of 200 epochs).
    """

    kept = ("best", "best_epoch", "last", "said")
    n: int
    best: float | None = field(default=None, init=False)
    best_epoch: float = field(default=0.0, init=False)
    last: float | None = field(default=None, init=False)
    said: bool = field(default=False, init=False)

    def update(self, robust_acc: float, epoch: float) -> str:
        """`text`, the first time that there is one; else "". robust_acc in [0, 1], else ValueError; epoch: passes over the data so far."""
        spread(robust_acc, robust_acc, self.n)
        self.last = robust_acc
        if self.best is None or robust_acc > self.best:
            self.best, self.best_epoch = robust_acc, epoch
        text = "" if self.said else self.text
        self.said = self.said or bool(text)
        return text

    @property
    def gap(self) -> float:
        """best - last in points (percent), >= 0; 0 before the first validation."""
        return 0.0 if self.best is None or self.last is None else 100 * (self.best - self.last)

    @property
    def text(self) -> str:
        """The alarm in one line as of the last validation; "" when the gap may be chance."""
        if (
            self.best is None
            or self.last is None
            or self.best - self.last <= 2 * spread(self.best, self.last, self.n)
        ):
            return ""
        where = f"best {100 * self.best:.1f} % at epoch {self.best_epoch:.4g}, last {100 * self.last:.1f} %"
        return f"robust overfitting: {where}: {self.gap:.1f} points lost"


#: Fractions; each is raised to three standard deviations where few validation images make it larger.
DROP, SPLIT, COLLAPSED = 0.10, 0.15, 0.50
MAX_ROLLBACKS = 3


@dataclass
class CatastrophicOverfitting(Guard):
    """best - robust > max(0.10, 3 spread) and fgsm - robust > max(0.15, 3 spread, split at best): one-step accuracy holds, true robustness is gone.

    Or fgsm - robust > max(0.50, 3 spread) alone: a network that had collapsed before its first validation has no better past. Why these
    numbers: Wong et al. stop when PGD accuracy on a training batch falls by 0.20, three standard deviations for their 128 images; on more
    images half of that is as sure. In a healthy one-step network fgsm - robust is usually below 0.10, in a collapsed one near 1. In robust
    overfitting both accuracies fall together: no alarm here. A rollback takes the best weights and gives the attack one step more
    (`more_steps`), for the collapse lives on points inside the ball that a single step never visits.

    Args:
        mode: "off", "warn" (once per collapse), "stop", or "rollback": at most 3 times, then stop. Another raises ValueError.
        n: validation images, >= 1; both accuracies are measured on all of them, at the whole eps.

    Source: Wong et al., ICLR 2020, arXiv:2001.03994; Andriushchenko & Flammarion, NeurIPS 2020, arXiv:2007.02617; de Jorge et al., NeurIPS
        2022, arXiv:2202.01181. Recovery with multi-step attacks: Li et al., 2020, arXiv:2006.03089.
    """

    kept = ("best_robust", "best_split", "rollbacks", "alarmed")
    mode: Mode
    n: int
    best_robust: float | None = field(default=None, init=False)
    best_split: float = field(default=0.0, init=False)
    rollbacks: int = field(default=0, init=False)
    alarmed: bool = field(default=False, init=False)
    text: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"unknown mode {self.mode!r}; known: {', '.join(get_args(Mode))}")

    @property
    def more_steps(self) -> int:
        """Steps to add to the attack: one per rollback."""
        return self.rollbacks

    def update(self, fgsm_acc: float, robust_acc: float, *, newest_is_best: bool = False) -> Action:
        """What to do after this validation; `text` then says why in one line ("" for "none"). Accuracies in [0, 1], else ValueError.

        newest_is_best: this very model is the best so far: there is no better one to go back to.
        """
        collapsed, known = self._collapsed(fgsm_acc, robust_acc), self.alarmed
        self.text, self.alarmed = "", collapsed
        if not collapsed and (self.best_robust is None or robust_acc > self.best_robust):
            self.best_robust, self.best_split = robust_acc, fgsm_acc - robust_acc
        if not collapsed or self.mode == "off" or (self.mode == "warn" and known):
            return "none"
        action: Action = "stop" if self.mode == "rollback" and self.rollbacks >= MAX_ROLLBACKS else self.mode
        self.rollbacks += action == "rollback"
        best = "" if self.best_robust is None else f" (best {100 * self.best_robust:.1f} %)"
        measured = f"FGSM accuracy {100 * fgsm_acc:.1f} %, robust {100 * robust_acc:.1f} %{best}"
        remedy = "use more attack steps, a smaller step_size, a wider start (N-FGSM) or a smaller eps"
        if action == "rollback":
            back = "no better weights to go back to" if newest_is_best else "the best weights again"
            remedy = f"rollback {self.rollbacks} of {MAX_ROLLBACKS}: {back}, attack steps + {self.more_steps}"
        self.text = f"catastrophic overfitting: {measured}; {remedy}"
        return action

    def _collapsed(self, fgsm: float, robust: float) -> bool:
        split, chance = fgsm - robust, 3 * spread(fgsm, robust, self.n)
        best = robust if self.best_robust is None else self.best_robust
        fallen = best - robust > max(DROP, 3 * spread(best, robust, self.n))
        return split > max(COLLAPSED, chance) or (fallen and split > max(SPLIT, chance, self.best_split))


@dataclass
class StuckLoss(Guard):
    """mean loss >= 0.99 ln K in two intervals in a row after a tenth of the run: all images get one answer. num_classes: K >= 2, else ValueError."""

    kept = ("count", "said")
    num_classes: int
    count: int = field(default=0, init=False)
    said: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {self.num_classes}")

    def update(self, loss: float, t: float) -> str:
        """The alarm in one line, once; else "". t: share of all steps done, in [0, 1].

        loss: mean training cross-entropy since the last validation, nats; the part "natural" where there is one, else "adversarial". A total
        with a weighted second term, and MART's boosted cross-entropy, lie above ln K in healthy runs.
        """
        limit = math.log(self.num_classes)
        self.count = self.count + 1 if t >= 0.1 and loss >= 0.99 * limit else 0
        if self.said or self.count < 2:
            return ""
        self.said = True
        at = f"{'stuck at' if loss <= 1.01 * limit else f'{loss:.3f} is above'} ln {self.num_classes} = {limit:.3f}"
        return f"loss {at}: the network answers with class frequencies; lower eps or use eps warm-up (train.curriculum), or lower lr"

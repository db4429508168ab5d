"""Guards of a training run: small rules that read each validation and say when training goes wrong.

They see validation images, never test images, and draw no random numbers. `state()` is plain JSON and is
saved in every checkpoint. A resumed run therefore raises the same alarms at the same step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from robustcli.errors import CheckpointError
from robustcli.proportions import Rate

Mode = Literal["off", "warn", "stop", "rollback"]
Action = Literal["none", "warn", "stop", "rollback"]


def spread(p: float, q: float, n: int) -> float:
    """sqrt((p'(1 - p') + q'(1 - q')) / (n + 2)),  p' = (n p + 1) / (n + 2), q' likewise.

    It is the standard deviation of the difference of two proportions p and q, each of n images. One success
    and one failure are added to each, so that it is not 0 at p = q = 1. The guards compare verdicts on the
    same n images. Such a difference varies less than that of two samples, so alarms come rather too seldom
    than too often.

    Raises ValueError: p or q outside [0, 1], n < 1.
    Source: Agresti & Caffo, The American Statistician 54, 2000.
    """
    if n < 1 or not (0 <= p <= 1 and 0 <= q <= 1):
        raise ValueError(f"accuracies are fractions in [0, 1] of n >= 1 images, got {p} and {q} of {n}")
    adjusted = [(n * share + 1) / (n + 2) for share in (p, q)]
    return math.sqrt(sum(share * (1 - share) for share in adjusted) / (n + 2))


class Guard:
    """What all guards share. `kept` names the fields that a guard remembers between validations."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """What a resume needs, as plain JSON."""
        return {name: getattr(self, name) for name in self.kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`. Raises CheckpointError unless names and types are those of `kept`."""
        if set(state) != set(self.kept):
            raise CheckpointError(
                f"the state of {type(self).__name__} holds {sorted(state)}, expected {sorted(self.kept)}"
            )
        hints = get_type_hints(type(self))
        for name in self.kept:
            try:
                value = TypeAdapter(hints[name]).validate_python(state[name], strict=True)
            except ValidationError as error:
                what = f"the state of {type(self).__name__}: {name} is {state[name]!r:.80}"
                raise CheckpointError(what, code="E-CKPT-META") from error
            setattr(self, name, value)


@dataclass
class EarlyStopping(Guard):
    """Stop when `patience` validations in a row brought no better model.

    patience: >= 1, else ValueError; None trains to the end.
    Source: for robust training Rice et al., ICML 2020, arXiv:2002.11569.
    """

    kept = ("waited",)
    patience: int | None = None
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1, got {self.patience}")

    def update(self, improved: bool) -> bool:
        """Whether to stop now. improved: this validation gave the best model so far."""
        self.waited = 0 if improved else self.waited + 1
        return self.patience is not None and self.waited >= self.patience


@dataclass
class OverfittingWatch(Guard):
    """best - last > 2 spread(best, last, n): robust accuracy on validation images has fallen beyond chance.

    This is robust overfitting. best, last: the best and the last robust accuracy, in [0, 1]. n: validation
    images, >= 1.
    Source: Rice et al., ICML 2020, arXiv:2002.11569: 7.9 points on CIFAR-10 between the best and the last of
        200 epochs.
    """

    kept = ("best", "best_epoch", "last", "said")
    n: int
    best: float | None = field(default=None, init=False)
    best_epoch: float = field(default=0.0, init=False)
    last: float | None = field(default=None, init=False)
    said: bool = field(default=False, init=False)

    def update(self, robust_acc: float, epoch: float) -> str:
        """The alarm in one line at the first validation that raises it; else "".

        robust_acc: in [0, 1], else ValueError. epoch: passes over the data so far.
        """
        spread(robust_acc, robust_acc, self.n)  # raises for what is no accuracy
        self.last = robust_acc
        if self.best is None or robust_acc > self.best:
            self.best, self.best_epoch = robust_acc, epoch
        if self.said:
            return ""
        self.said = bool(self.text)
        return self.text

    def forget(self) -> None:
        """Start anew: the best accuracy was none."""
        self.best, self.best_epoch, self.said = None, 0.0, False

    @property
    def gap(self) -> float:
        """best - last in points (percent), >= 0; 0 before the first validation."""
        if self.best is None or self.last is None:
            return 0.0
        return 100 * (self.best - self.last)

    @property
    def text(self) -> str:
        """The alarm about the last validation in one line; "" when the gap may be chance."""
        if self.best is None or self.last is None:
            return ""
        if self.best - self.last <= 2 * spread(self.best, self.last, self.n):
            return ""
        where = f"best {100 * self.best:.1f} % at epoch {self.best_epoch:.4g}, last {100 * self.last:.1f} %"
        return f"robust overfitting: {where}: {self.gap:.1f} points lost"


#: Limits of `CatastrophicOverfitting`, fractions. With few validation images three standard deviations take
#: their place.
DROP, SPLIT, COLLAPSED = 0.10, 0.15, 0.50
MAX_ROLLBACKS = 3


@dataclass
class CatastrophicOverfitting(Guard):
    """best - robust > max(0.10, 3 spread)  and  fgsm - robust > max(0.15, 3 spread, split at best).

    robust, fgsm: accuracies under the validation attack and under FGSM, in [0, 1]. best: the largest robust
    accuracy of a validation without collapse. split at best: fgsm - robust at that validation. spread: of the
    two accuracies that are compared.

    In a collapse the accuracy under one-step attacks holds while true robustness is gone. fgsm - robust >
    max(0.50, 3 spread) is an alarm by itself: a network that collapsed before its first validation has no
    best to fall from.

    Wong et al. stop when PGD accuracy on a training batch falls by 0.20, three standard deviations for their
    128 images. On more images half of that is as sure. In a healthy one-step network fgsm - robust is usually
    below 0.10, in a collapsed one near 1. In robust overfitting both accuracies fall together, and this guard
    raises no alarm.

    A rollback takes the best weights and gives the attack one step more (`more_steps`): the collapse lives on
    points inside the ball that a single step never visits.

    Args:
        mode: "off", "warn" (once per collapse), "stop", or "rollback" (at most 3 times, then stop); else
            ValueError.
        n: validation images, >= 1; both accuracies are measured on all of them, at the whole eps.

    Source: Wong et al., ICLR 2020, arXiv:2001.03994; Andriushchenko & Flammarion, NeurIPS 2020,
        arXiv:2007.02617; de Jorge et al., NeurIPS 2022, arXiv:2202.01181. Recovery with multi-step attacks:
        Li et al., 2020, arXiv:2006.03089.
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
        """Attack steps to add: one per rollback."""
        return self.rollbacks

    def update(
        self,
        fgsm_acc: float,
        robust_acc: float,
        *,
        newest_is_best: bool = False,
        masked: str = "",
        doubted: bool = False,
    ) -> Action:
        """What to do after this validation. `text` then says why in one line; it is "" for "none".

        Args:
            fgsm_acc, robust_acc: in [0, 1], else ValueError.
            newest_is_best: the validated model is the best so far, so there is no better one to go back to.
            masked: what a deeper look has found, where that is a collapse by itself.
            doubted: a look has found masked gradients, and none has passed since: accuracies that look
                healthy prove nothing, and end no collapse.
        """
        collapsed, alarmed_before = self._collapsed(fgsm_acc, robust_acc) or bool(masked), self.alarmed
        self.text, self.alarmed = "", collapsed or (doubted and alarmed_before)
        if not collapsed:
            if not doubted:
                self._note_healthy(fgsm_acc, robust_acc)
            return "none"
        if self.mode == "off" or (self.mode == "warn" and alarmed_before):
            return "none"
        action: Action = self.mode
        remedy = "use more attack steps, a smaller step_size, a wider start (N-FGSM) or a smaller eps"
        if action == "rollback" and self.rollbacks >= MAX_ROLLBACKS:
            action = "stop"
        elif action == "rollback":
            self.rollbacks += 1
            remedy = self._described_rollback(newest_is_best)
        self.text = f"catastrophic overfitting: {masked or self._measured(fgsm_acc, robust_acc)}; {remedy}"
        return action

    def forget(self) -> None:
        """The best accuracies were none: nothing is known that the network could fall from."""
        self.best_robust, self.best_split = None, 0.0

    def _collapsed(self, fgsm: float, robust: float) -> bool:
        split, chance = fgsm - robust, 3 * spread(fgsm, robust, self.n)
        if split > max(COLLAPSED, chance):
            return True
        if self.best_robust is None:
            return False
        fallen = self.best_robust - robust > max(DROP, 3 * spread(self.best_robust, robust, self.n))
        return fallen and split > max(SPLIT, chance, self.best_split)

    def _note_healthy(self, fgsm: float, robust: float) -> None:
        """Remember the best validation of a network that had not collapsed."""
        if self.best_robust is None or robust > self.best_robust:
            self.best_robust, self.best_split = robust, fgsm - robust

    def _measured(self, fgsm: float, robust: float) -> str:
        best = "" if self.best_robust is None else f" (best {100 * self.best_robust:.1f} %)"
        return f"FGSM accuracy {100 * fgsm:.1f} %, robust {100 * robust:.1f} %{best}"

    def _described_rollback(self, newest_is_best: bool) -> str:
        back = "no better weights to go back to" if newest_is_best else "the best weights again"
        return f"rollback {self.rollbacks} of {MAX_ROLLBACKS}: {back}, attack steps + {self.more_steps}"


@dataclass
class DeeperLook(Guard):
    """(standing - left) / n > max(0.15, 2 spread): what stands under the validation attack is not robust.

    n images are looked at. `standing` of them stand under the validation attack, and `left` of these still
    under more steps on the margin and under queries without gradients. A training may learn to mislead the
    attack that watches it: ELLE in the FastAT benchmark (arXiv:2604.22853) stands at 46.9 % under PGD-10 and
    at 3.3 % under AutoAttack. Such a validation is never the best, nor is one without a look after it, until
    a look passes. A best model that nobody has looked at loses its name.

    Attributes:
        sound: the best model was looked at, and stands.
        masking: the last look has found masked gradients.
    """

    kept = ("sound", "masking")
    sound: bool = field(default=False, init=False)
    masking: bool = field(default=False, init=False)

    def load(self, state: Mapping[str, Any]) -> None:
        """See `Guard`. Older checkpoints do not tell what the last look has found."""
        super().load({"masking": False, **state})

    @staticmethod
    def masked(look: Mapping[str, int]) -> bool:
        """Whether this look, {n, standing, left} or empty, says that gradients are masked."""
        if not look:
            return False
        before, after = look["standing"] / look["n"], look["left"] / look["n"]
        return before - after > max(SPLIT, 2 * spread(before, after, look["n"]))

    def update(self, look: Mapping[str, int], improved: bool) -> bool:
        """Whether the best model is no longer to be trusted. improved: the newest one is the best."""
        if improved:
            self.sound = bool(look)
        if look:
            self.masking = self.masked(look)
        return self.masked(look) and not self.sound

    @staticmethod
    def text(look: Mapping[str, int]) -> str:
        """What the look has found, in one clause."""
        return (
            f"of {look['n']} validation images {look['standing']} stand under the validation attack, and "
            f"{look['left']} of them under a deeper look: gradients are masked"
        )


#: Validations before this one that say whether accuracy or loss still moves.
_BEFORE = 3


@dataclass
class AtChance(Guard):
    """Two validations in a row at chance that do not rise, after a tenth of the run.

    At chance: the 95 % interval of the clean accuracy does not lie above `chance`. Rising: it is more than
    one `spread` above the mean of the (at most three) validations before. Training losses say why, and never
    that: those of a healthy robust training lie above ln K for long. Without validation images there is the
    loss alone: >= 0.99 ln K at two records in a row, and not 1 % below the mean of those before.

    Args:
        n: validation images, 0 for none.
        num_classes: K >= 2, else ValueError.
    """

    kept = ("before", "count", "said")
    n: int
    num_classes: int
    before: list[float] = field(default_factory=list, init=False)
    count: int = field(default=0, init=False)
    said: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {self.num_classes}")

    def update(self, clean_acc: float | None, chance: float, loss: float | None, t: float) -> str:
        """The alarm in one line, once; else "".

        Args:
            clean_acc: on validation images, in [0, 1]; None where there are none.
            chance: the share of them that one answer for all gets right, in [0, 1].
            loss: mean training cross-entropy since the last validation, nats; None where it is none, as a
                total with a weighted second term.
            t: share of the run that is done, in [0, 1].
        """
        seen, failing = clean_acc, False
        if clean_acc is not None and self.n:
            failing = self._lost(clean_acc, chance)
        elif loss is not None:
            seen, failing = loss, self._stuck(loss)
        if seen is not None:
            self.before = [*self.before, seen][-_BEFORE:]
        self.count = self.count + 1 if failing and t >= 0.1 else 0
        if self.said or self.count < 2:
            return ""
        self.said = True
        what = "there are no validation images"
        if clean_acc is not None:
            what = f"clean accuracy on validation images is {clean_acc:.1%} and does not rise, and one answer"
            what += f" for all reaches {chance:.1%}"
        return f"nothing is learnt: {what}; {self._why(loss)}"

    def _lost(self, acc: float, chance: float) -> bool:
        """Whether the accuracy is at chance and does not rise."""
        if Rate(round(acc * self.n), self.n).above(chance):
            return False
        if not self.before:
            return True
        usual = sum(self.before) / len(self.before)
        return acc - usual <= spread(acc, usual, self.n)

    def _stuck(self, loss: float) -> bool:
        """Whether the loss is at ln K or above it, and does not fall."""
        falls = bool(self.before) and loss < 0.99 * sum(self.before) / len(self.before)
        return loss >= 0.99 * math.log(self.num_classes) and not falls

    def _why(self, loss: float | None) -> str:
        """What the training loss says of the cause, and what to do."""
        limit = math.log(self.num_classes)
        known = f"ln {self.num_classes} = {limit:.3f}"
        if loss is None:
            return "lower lr or eps, and compare the labels with the images"
        if loss > 1.5 * limit:
            return f"the training loss {loss:.3f} is above {known}: lower lr"
        if loss >= 0.9 * limit:
            return (
                f"the training loss {loss:.3f} is about {known}, that of class frequencies: lower eps or use "
                "eps warm-up (train.curriculum), lower lr, and compare the labels with the images"
            )
        return (
            f"the training loss {loss:.3f} is below {known}: what is learnt does not hold on validation "
            "images; compare their labels and normalisation with those of the training images"
        )

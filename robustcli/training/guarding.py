"""All guards of a run behind one call: what to say, whether to stop, whether to go back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustcli.training.guards import (
    Action,
    CatastrophicOverfitting,
    EarlyStopping,
    Guard,
    Mode,
    OverfittingWatch,
    StuckLoss,
)


@dataclass(frozen=True)
class Verdict:
    """alarms: one line each.  stop: why the run ends now, or "".  rollback: take the best state again."""

    alarms: tuple[str, ...] = ()
    stop: str = ""
    rollback: bool = False


@dataclass
class Guards:
    """The guards of one run.

    Args:
        n: validation images.
        classes: K.
        patience: see `EarlyStopping`.
        overfitting: see `CatastrophicOverfitting`.
    """

    n: int
    classes: int
    patience: int | None = None
    overfitting: Mode = "rollback"
    _guards: dict[str, Guard] = field(init=False)

    def __post_init__(self) -> None:
        self._early = EarlyStopping(self.patience)
        self._watch = OverfittingWatch(max(1, self.n))
        self._collapse = CatastrophicOverfitting(self.overfitting, max(1, self.n))
        self._stuck = StuckLoss(max(2, self.classes))
        self._guards = {
            "early": self._early,
            "watch": self._watch,
            "collapse": self._collapse,
            "stuck": self._stuck,
        }

    @property
    def more_steps(self) -> int:
        """Steps that roll-backs have added to the attack."""
        return self._collapse.more_steps

    @property
    def gap(self) -> float:
        """Robust overfitting so far, in points of robust validation accuracy: best - last."""
        return self._watch.gap

    def judge(self, row: Mapping[str, Any], improved: bool, t: float, *, whole: bool = True) -> Verdict:
        """The verdict on one validation record, after the share t of the run.

        Args:
            row: means of the training losses, and accuracies on validation images.
            improved: this validation gave the best model so far.
            whole: the attack of training had its whole radius. In a warm-up a nearly natural network may look
                collapsed.
        """
        alarms = [self._stuck_alarm(row, t)]
        action: Action = "none"
        robust = row.get("robust_acc")
        if robust is not None:
            alarms.append(self._watch.update(float(robust), float(row["epoch"])))
        if robust is not None and "fgsm_acc" in row and whole:
            action = self._collapse.update(float(row["fgsm_acc"]), float(robust), newest_is_best=improved)
            alarms.append(self._collapse.text)
        stop = self._reason_to_stop(action, validated=bool(row.get("n")), improved=improved)
        return Verdict(tuple(text for text in alarms if text), stop, action == "rollback")

    def _stuck_alarm(self, row: Mapping[str, Any], t: float) -> str:
        """The alarm of `StuckLoss`.

        It reads one part of the loss: a weighted total may lie above ln K in a healthy run.
        """
        loss = row.get("natural", row.get("adversarial"))
        if loss is None:
            return ""
        return self._stuck.update(float(loss), t)

    def _reason_to_stop(self, action: Action, *, validated: bool, improved: bool) -> str:
        """Why the run ends now, or "". A roll-back starts the patience anew."""
        if action == "rollback":
            self._early.waited = 0
        impatient = validated and self._early.update(improved)
        if action == "stop":
            return "catastrophic overfitting"
        if impatient:
            return f"no better model in {self.patience} validations"
        return ""

    def state(self) -> dict[str, dict[str, Any]]:
        """Plain JSON of all guards."""
        return {name: guard.state() for name, guard in self._guards.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Inverse of `state`; a guard of which nothing is stored starts anew."""
        fresh = Guards(self.n, self.classes, self.patience, self.overfitting).state()
        for name, guard in self._guards.items():
            guard.load(state.get(name) or fresh[name])

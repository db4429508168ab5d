"""All guards of a run behind one call: what to say, whether to stop, whether to go back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustcli.training.guards import (
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
        n: validation images, >= 1. classes: K. patience: see `EarlyStopping`. overfitting: see `CatastrophicOverfitting`.
    """

    n: int
    classes: int
    patience: int | None = None
    overfitting: Mode = "rollback"
    _parts: dict[str, Guard] = field(init=False)

    def __post_init__(self) -> None:
        self._early, self._watch = EarlyStopping(self.patience), OverfittingWatch(max(1, self.n))
        self._collapse, self._stuck = (
            CatastrophicOverfitting(self.overfitting, max(1, self.n)),
            StuckLoss(max(2, self.classes)),
        )
        self._parts = {
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
        """The verdict on one validation record (training means and accuracies), after the share t of the run.

        whole: the attack of training had its whole radius: in a warm-up a nearly natural network may look collapsed.
        """
        alarms: list[str] = []
        stop, rollback = "", False
        loss = next(
            (row[name] for name in ("natural", "adversarial") if name in row), None
        )  # a weighted total may lie above ln K in a healthy run
        if loss is not None:
            alarms.append(self._stuck.update(float(loss), t))
        robust = row.get("robust_acc")
        if robust is not None:
            alarms.append(self._watch.update(float(robust), float(row["epoch"])))
            if "fgsm_acc" in row and whole:
                action = self._collapse.update(float(row["fgsm_acc"]), float(robust), newest_is_best=improved)
                alarms.append(self._collapse.text)
                stop, rollback = (
                    ("catastrophic overfitting" if action == "stop" else ""),
                    action == "rollback",
                )
                self._early.waited *= not rollback
        if row.get("n") and self._early.update(improved) and not stop:
            stop = f"no better model in {self.patience} validations"
        return Verdict(tuple(text for text in alarms if text), stop, rollback)

    def state(self) -> dict[str, dict[str, Any]]:
        """Plain JSON of all guards."""
        return {name: guard.state() for name, guard in self._parts.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Inverse of `state`; nothing stored is a fresh start."""
        fresh = Guards(self.n, self.classes, self.patience, self.overfitting)
        for name, guard in self._parts.items():
            guard.load(state.get(name) or fresh._parts[name].state())

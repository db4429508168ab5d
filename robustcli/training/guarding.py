"""All guards of a run behind one call: which alarms, whether to stop, whether to roll back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustcli.training.guards import (
    Action,
    AtChance,
    CatastrophicOverfitting,
    DeeperLook,
    EarlyStopping,
    Guard,
    Mode,
    OverfittingWatch,
)


@dataclass(frozen=True)
class Verdict:
    """What the guards decide after one validation.

    alarms: one line each. stop: why the run ends now, or "". rollback: go back to the best state. forget: the
    best state is not to be trusted.
    """

    alarms: tuple[str, ...] = ()
    stop: str = ""
    rollback: bool = False
    forget: bool = False


@dataclass
class Guards:
    """The guards of one run.

    Args:
        n: number of validation images.
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
        self._deeper = DeeperLook()
        self._chance = AtChance(self.n, max(2, self.classes))
        self._guards = {
            "early": self._early,
            "watch": self._watch,
            "collapse": self._collapse,
            "chance": self._chance,
            "deeper": self._deeper,
        }

    @property
    def more_steps(self) -> int:
        """Attack steps that roll-backs have added."""
        return self._collapse.more_steps

    @property
    def gap(self) -> float:
        """Robust overfitting so far: best - last robust validation accuracy, in points."""
        return self._watch.gap

    @property
    def masking(self) -> bool:
        """Whether the last deeper look has found masked gradients."""
        return self._deeper.masking

    def judge(self, row: Mapping[str, Any], improved: bool, t: float, *, whole: bool = True) -> Verdict:
        """The verdict on one validation record.

        Args:
            row: means of the training losses, and accuracies on validation images, in [0, 1].
            improved: this validation gave the best model so far.
            t: share of the run that is done, in [0, 1].
            whole: the training attack had its whole radius. During a warm-up of eps a nearly natural network
                may look collapsed, so collapse is judged only with the whole radius.
        """
        alarms = [self._chance_alarm(row, t)]
        action: Action = "none"
        robust, look = row.get("robust_acc"), row.get("look") or {}
        forget = self._deeper.update(look, improved)
        if forget:  # what the best model seemed to reach is nothing to fall from
            self._watch.forget()
            self._collapse.forget()
        if robust is not None and not self._deeper.masking:
            alarms.append(self._watch.update(float(robust), float(row["epoch"])))
        if robust is not None and ("fgsm_acc" in row or look) and whole:
            masked = self._deeper.text(look) if self._deeper.masked(look) else ""
            action = self._collapse.update(
                float(row.get("fgsm_acc", robust)),
                float(robust),
                newest_is_best=improved or forget,
                masked=masked,
                doubted=self._deeper.masking,
            )
            alarms.append(self._collapse.text)
        stop = self._reason_to_stop(action, validated=bool(row.get("n")), improved=improved)
        return Verdict(tuple(text for text in alarms if text), stop, action == "rollback", forget)

    def ends(self, row: Mapping[str, Any], improved: bool, t: float, *, whole: bool = True) -> bool:
        """Whether this record would end the run; nothing of it is remembered. See `judge`."""
        return bool(copy.deepcopy(self).judge(row, improved, t, whole=whole).stop)

    def may_be_best(self, row: Mapping[str, Any]) -> bool:
        """Whether this record may name the best model.

        It may not where a deeper look found masked gradients, nor after that without a look.
        """
        look = row.get("look")
        if look:
            return not self._deeper.masked(look)
        return not self._deeper.masking

    def _chance_alarm(self, row: Mapping[str, Any], t: float) -> str:
        """The alarm of `AtChance`, or "".

        Its loss is the part "natural" or "adversarial". A weighted total may lie above ln K in a healthy run.
        """
        loss = row.get("natural", row.get("adversarial"))
        loss = None if loss is None else float(loss)
        return self._chance.update(row.get("clean_acc"), float(row.get("chance") or 0), loss, t)

    def _reason_to_stop(self, action: Action, *, validated: bool, improved: bool) -> str:
        """Why the run ends now, or "". After a roll-back the patience starts anew."""
        if action == "rollback":
            self._early.waited = 0
        impatient = validated and self._early.update(improved)
        if action == "stop":
            return "catastrophic overfitting"
        if impatient:
            return f"no better model in {self.patience} validations"
        return ""

    def state(self) -> dict[str, dict[str, Any]]:
        """The states of all guards, as plain JSON."""
        return {name: guard.state() for name, guard in self._guards.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Inverse of `state`. A guard without a stored state starts anew."""
        fresh = Guards(self.n, self.classes, self.patience, self.overfitting).state()
        for name, guard in self._guards.items():
            guard.load(state.get(name) or fresh[name])

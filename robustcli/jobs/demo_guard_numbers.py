"""The numbers of a guard in the demo: without it, against who does not know it, against who does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting
from robustcli.core.modes import frozen
from robustcli.data.split import Split
from robustcli.evaluation.result import BatchOutcome
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.guard.update import safe
from robustcli.models.guarded import GuardedModel
from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console

_UNDER_ATTACK = ("bare", "oblivious", "adaptive")


@dataclass(frozen=True)
class Attacked:
    """What an attack left of n images: pixels [n, C, H, W] in [0, 1], labels [n], survivors bool [n].

    Rows are in the order of the batches. `correct`: right, and accepted where there is a guard.
    `reliability`: ok, suspect or invalid.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    correct: Tensor
    survivors: Tensor
    reliability: str


def attacked(
    setting: Setting, model: nn.Module, split: Split, positions: Tensor, console: Console
) -> Attacked:
    """Run the configured attacks on a guarded model, and the first of them on a bare one."""
    chosen = setting.config.attacks[: None if isinstance(model, GuardedModel) else 1]
    done: list[BatchOutcome] = []
    with StopFlag() as stop:
        plan = eval_plan(setting, chosen)
        evaluation = RobustEvaluation(model, plan, stop=stop.check, say=console.info)
        result = evaluation.run(split, positions, setting.device, on_batch=done.append)
    parts = [(one.x, one.x_adv, one.y, one.correct, one.survivors) for one in done]
    x, x_adv, y, correct, survivors = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return Attacked(x, x_adv, y, correct, survivors, result.reliability)


@dataclass(frozen=True)
class Numbers:
    """Of one guard; `rates` has bare, oblivious and adaptive robust accuracy, on the same images.

    reliability: of the adaptive number.
    """

    clean: Rate
    rejected: Rate
    rates: Mapping[str, Rate]
    reliability: str

    @property
    def n(self) -> int:
        """Images."""
        return self.clean.n

    def cells(self) -> list[Cell]:
        """For the table of the demo."""
        return [self.clean, self.rejected, *self.rates.values(), self.reliability]

    def to_json(self) -> dict[str, Any]:
        """JSON form, with exact intervals at 95 %; the keys are those of `guard eval`."""
        attacks = {
            name: {"robust_acc": rate.value, "interval": list(rate.exact)}
            for name, rate in self.rates.items()
        }
        clean = {"clean_acc": self.clean.value, "clean_rejected": self.rejected.value}
        return {"n": self.n, **clean, **attacks, "reliability": self.reliability}


def numbers_of(setting: Setting, guard: nn.Module, console: Console) -> Numbers:
    """Measure a guard on the images that the configuration chooses.

    Robust, in all three columns, is an image that is right without an attack, and for which no point was
    found that is wrong; with a guard, right and accepted, and wrong and accepted.
    """
    assert isinstance(guard, GuardedModel)
    guard = guard.to(setting.device)
    config, split = setting.config, setting.data.test
    positions = choose(split, n=config.eval.n, first=None, seed=config.seed)
    bare = attacked(setting, guard.members[0], split, positions, console)
    adaptive = attacked(setting, guard, split, positions, console)
    label, accepted = _answers(guard, bare.x.to(setting.device))
    clean = accepted & (label == bare.y)
    oblivious = clean & safe(*_answers(guard, bare.x_adv.to(setting.device)), bare.y)
    found = (bare.survivors, oblivious, adaptive.survivors)
    rates = {name: _rate(good) for name, good in zip(_UNDER_ATTACK, found, strict=True)}
    return Numbers(_rate(clean), _rate(~accepted), rates, adaptive.reliability)


@torch.no_grad()
def _answers(guard: GuardedModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """(class that the network names, int64 [n]; whether it was accepted, bool [n]), on the CPU."""
    with frozen(guard):
        logits = guard(x)
    return logits[:, : guard.reject].argmax(1).cpu(), (logits.argmax(1) != guard.reject).cpu()


def _rate(good: Tensor) -> Rate:
    return Rate(int(good.sum()), len(good))

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
from robustcli.data.split import Split
from robustcli.evaluation.guarded.evaluation import GuardEvaluation
from robustcli.evaluation.result import BatchOutcome
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.models.guarded import GuardedModel
from robustcli.proportions import Rate
from robustcli.reporting.cells import Cell
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console

_UNDER_ATTACK = ("bare", "oblivious", "adaptive")


@dataclass(frozen=True)
class Attacked:
    """What an attack made of n images: pixels [n, C, H, W] in [0, 1], labels [n].

    Rows are in the order of the batches.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor


def attacked(
    setting: Setting, model: nn.Module, split: Split, positions: Tensor, console: Console
) -> Attacked:
    """Run the first of the configured attacks on a bare network."""
    chosen = setting.config.attacks[:1]
    done: list[BatchOutcome] = []
    with StopFlag() as stop:
        plan = eval_plan(setting, chosen)
        evaluation = RobustEvaluation(model, plan, stop=stop.check, say=console.info)
        evaluation.run(split, positions, setting.device, on_batch=done.append)
    parts = [(one.x, one.x_adv, one.y) for one in done]
    return Attacked(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Numbers:
    """Of one guard; `rates` has bare, oblivious and adaptive robust accuracy, on the same images.

    reliability: of the adaptive number. searches: labels of the attacks behind it.
    """

    clean: Rate
    rejected: Rate
    rates: Mapping[str, Rate]
    reliability: str
    searches: tuple[str, ...]

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
    """Measure a guard as `guard eval` does, on the images that the configuration chooses.

    Robust, in all three columns, is an image that is right without an attack, and for which no point was
    found that is wrong; with a guard, right and accepted, and wrong and accepted.
    """
    assert isinstance(guard, GuardedModel)
    config, split = setting.config, setting.data.test
    positions = choose(split, n=config.eval.n, first=None, seed=config.seed)
    with StopFlag() as stop:
        plan = eval_plan(setting, config.attacks[:1])
        evaluation = GuardEvaluation(guard.to(setting.device), plan, stop=stop.check, say=console.info)
        found = evaluation.run(split, positions, setting.device)
    standing = (found.bare.survivors, found.oblivious, found.adaptive.survivors)
    rates = {name: _rate(good) for name, good in zip(_UNDER_ATTACK, standing, strict=True)}
    searches = tuple(call.label for call in found.adaptive.calls)
    verdict = found.verdict
    return Numbers(_rate(verdict.correct), _rate(found.rejected), rates, verdict.reliability, searches)


def _rate(good: Tensor) -> Rate:
    return Rate(int(good.sum()), len(good))

"""The old guard and the new one on the same images: clean, under attack, quarantined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustcli.assembly.setting import Setting
from robustcli.config.spec import GUARD
from robustcli.core.modes import frozen
from robustcli.data.split import MemorySplit
from robustcli.evaluation.result import Evaluation
from robustcli.guard.update import Decision, Paired, safe
from robustcli.jobs.measure import measure
from robustcli.models.guarded import GuardedModel
from robustcli.models.source import load_model
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console

_BATCH = 256
_LEVELS = ("ok", "suspect", "invalid")


@dataclass(frozen=True)
class Both:
    """The two guards, and what they are compared on.

    Args:
        setting: data, ball, attacks and `eval` of the update.
        old, new: directories.
        plugin: `FILE.py:factory` of a member that a user's code makes.
    """

    setting: Setting
    old: Path
    new: Path
    plugin: str | None
    console: Console


def decision(both: Both, quarantined: MemorySplit, level: float) -> Decision:
    """What the gate says of the new guard.

    A clean image is good when it is right and accepted. Under attack it is good when it is that, and no
    point was found that is wrong and accepted: the attack knows the guard. A quarantined image is named
    rightly when the network behind the guard gives its true class, and safe unless it is wrong and accepted.
    """
    guards = [_opened(both, folder) for folder in (both.old, both.new)]
    old, new = (_measured(both, guard, name) for guard, name in zip(guards, ("old", "new"), strict=True))
    y = quarantined.labels
    before, after = (_looked(guard, quarantined, both.setting.device) for guard in guards)
    rows = (
        Paired("clean, right and accepted", old.correct, new.correct, "not worse"),
        Paired("robust against attacks that know the guard", old.survivors, new.survivors, "not worse"),
        Paired("quarantined, true class named", before[0] == y, after[0] == y, "no fewer"),
        Paired("quarantined, not wrong and accepted", safe(*before, y), safe(*after, y), "not worse"),
    )
    return Decision(rows, level, _LEVELS.index(new.reliability) <= _LEVELS.index(old.reliability))


def _opened(both: Both, folder: Path) -> GuardedModel:
    model = load_model(f"{GUARD}{folder}", plugin=both.plugin, device=both.setting.device)
    assert isinstance(model, GuardedModel)
    return model


def _measured(both: Both, guard: GuardedModel, name: str) -> Evaluation:
    """The configured attacks on the joint problem of class and rejection."""
    both.console.info(f"the {name} guard:")
    with StopFlag() as stop:
        return measure(both.setting, guard, both.console, stop.check)[0]


@torch.no_grad()
def _looked(guard: GuardedModel, split: MemorySplit, device: torch.device) -> tuple[Tensor, Tensor]:
    """(class that the network names, int64 [n]; whether it was accepted, bool [n])."""
    labels, accepted = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)]
    with frozen(guard):
        for x, _, _ in split.stream(list(torch.arange(len(split)).split(_BATCH)), device):
            logits = guard(x)
            labels.append(logits[:, : guard.reject].argmax(1).cpu())
            accepted.append((logits.argmax(1) != guard.reject).cpu())
    return torch.cat(labels), torch.cat(accepted)

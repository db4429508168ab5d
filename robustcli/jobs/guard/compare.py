"""The old guard and the new one on the same images: clean, under attack, quarantined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustcli.assembly.setting import Setting
from robustcli.config.spec import GUARD
from robustcli.data.split import MemorySplit
from robustcli.evaluation.guarded.scores import Seen, joined, seen
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.sizing import in_batches
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
    before, after = (_looked(both, guard, quarantined) for guard in guards)
    spared, spares = (safe(look.label, look.accepted, y) for look in (before, after))
    rows = (
        Paired("clean, right and accepted", old.correct, new.correct, "not worse"),
        Paired("robust against attacks that know the guard", old.survivors, new.survivors, "not worse"),
        Paired("quarantined, true class named", before.label == y, after.label == y, "no fewer"),
        Paired("quarantined, not wrong and accepted", spared, spares, "not worse"),
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


def _looked(both: Both, guard: GuardedModel, split: MemorySplit) -> Seen:
    """What the guard says of all images of the split."""
    positions, say = torch.arange(len(split)), both.console.warn

    def look(x: Tensor, y: Tensor, ids: Tensor) -> Seen:  # noqa: ARG001
        return seen(guard, x)

    return joined(list(in_batches(split, positions, both.setting.device, _BATCH, look, say)))

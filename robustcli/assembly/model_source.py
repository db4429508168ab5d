"""Who is measured, and by whose attacks: the model, a surrogate, a plugin's attack."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.assembly.attacks import Setting, eval_plan, fresh_model, model_from, move
from robustcli.config.spec import ModelConfig, Spec, is_reference
from robustcli.core.modes import frozen
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.outside import load_outside
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.surrogate import transferred
from robustcli.models.plugin import split_plugin
from robustcli.models.size import check_classes
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console


def model_of(setting: Setting, console: Console, flags: Any) -> nn.Module:
    """The model to measure, on the device; its classes are compared with the data's."""
    spec, data = setting.config.model, setting.data
    if flags.plugin is None and not is_reference(spec.name) and spec.weights is None:
        console.warn(
            f"model {spec.name} has untrained weights; point --model to a run (run:runs/train/latest) or give model.weights"
        )
        return move(fresh_model(setting).eval(), setting.device, False)
    knows = spec.name.startswith(("run:", "torchvision:"))
    model = model_from(
        setting,
        plugin=flags.plugin,
        allow_pickle=flags.allow_pickle,
        num_classes=None if knows else len(data.classes),
    )
    with frozen(model), torch.no_grad():
        classes = model(torch.zeros(1, *data.shape)).shape[1]
    check_classes(classes, data.classes, getattr(model, "classes", None))
    return move(model, setting.device, False)


def surrogate_calls(setting: Setting, console: Console, flags: Any, stop: StopFlag) -> list[AttackCall]:
    """`--surrogate REF`: APGD on that model, shown to the measured one; a black-box stage behind the configured attacks."""
    if not flags.surrogate:
        return []
    other = replace(
        setting, config=setting.config.model_copy(update={"model": ModelConfig(name=flags.surrogate)})
    )
    model = model_of(other, console, replace(flags, plugin=None))
    call = eval_plan(setting, [Spec.of("apgd", steps=50)]).attacks[0]
    digest = state_digest(model)[:12]  # a resumed evaluation must not go on with another surrogate
    return [
        AttackCall(
            "transfer",
            f"transfer:{digest}",
            transferred(model, call, stop=stop.check),
            {},
            "fixed",
            "decisions",
        )
    ]


def plugin_calls(plugin: str | None) -> list[AttackCall]:
    """`--attack-plugin FILE.py:NAME`: the user's own attack, or another library's; the hash of its file is part of its name."""
    if plugin is None:
        return []
    call = load_outside(plugin)
    return [
        replace(
            call,
            name=f"{plugin}@{hashlib.sha256(Path(split_plugin(plugin)[0]).read_bytes()).hexdigest()[:12]}",
        )
    ]

"""Attacks that only the command line names: those of a surrogate, and the user's own."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from robustcli import registry
from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import Setting
from robustcli.config.spec import ModelConfig, Spec
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.outside import load_outside
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.surrogate import transferred
from robustcli.models.meant import meant_model
from robustcli.models.plugin import split_plugin
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console


def surrogate_calls(
    setting: Setting, console: Console, reference: str | None, allow_pickle: bool, stop: StopFlag
) -> list[AttackCall]:
    """`--surrogate REF`: APGD on the model REF; the measured model sees its points. [] without REF.

    Under a norm that APGD does not know it is PGD.
    It is a black-box attack and runs after the configured ones.
    """
    if not reference:
        return []
    config = setting.config.model_copy(
        update={"model": ModelConfig(name=meant_model(reference)), "defences": []}
    )
    source = ModelSource(replace(setting, config=config), allow_pickle=allow_pickle)
    model = source.to_measure(console)
    known = setting.ball.norm in registry.attacks.get("apgd").facts.norms
    name = "apgd" if known else "pgd"
    call = eval_plan(setting, [Spec.of(name, steps=50)]).attacks[0]
    digest = state_digest(model)[:12]  # a resumed evaluation must not go on with another surrogate
    search = transferred(model, call, stop=stop.check)
    return [AttackCall("transfer", f"transfer:{digest}", search, {}, "fixed", "decisions")]


def plugin_calls(plugin: str | None) -> list[AttackCall]:
    """`--attack-plugin FILE.py:NAME`: the user's own attack; [] without it.

    The hash of FILE.py is part of the attack's name.
    """
    if plugin is None:
        return []
    call = load_outside(plugin)
    code = Path(split_plugin(plugin)[0]).read_bytes()
    return [replace(call, name=f"{plugin}@{hashlib.sha256(code).hexdigest()[:12]}")]

"""Attacks that only the command line names: those of a surrogate, and the user's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from robustcli.assembly.attacks import eval_plan
from robustcli.assembly.model_source import ModelSource
from robustcli.assembly.setting import Setting
from robustcli.assembly.strongest import strongest
from robustcli.config.spec import ModelConfig, Spec
from robustcli.errors import UsageError
from robustcli.evaluation.alarms import state_digest
from robustcli.evaluation.joint import Join
from robustcli.evaluation.outside import load_outside
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.surrogate import transferred
from robustcli.models.blackbox import check_served
from robustcli.models.meant import meant_model
from robustcli.models.plugin import split_plugin
from robustcli.runtime.signals import StopFlag
from robustcli.terminal.console import Console


def surrogate_calls(
    setting: Setting, console: Console, references: Sequence[str], allow_pickle: bool, stop: StopFlag
) -> list[AttackCall]:
    """`--surrogate REF`: searches on the models REF, whose points the measured one sees. [] without REF.

    They are black-box attacks and run after the configured ones. `eval.surrogate` names the attack. Where it
    names none, MI-FGSM comes first with SIA, then without, which some sources do better, and then APGD: on a
    near copy of the measured model that one finds more.
    """
    if not references:
        return []
    given, path = setting.config.eval.surrogate, "eval.surrogate.attack"
    specs = [given.attack] if given.attack is not None else _usual(setting.ball.norm)
    models = [_surrogate(setting, reference, console, allow_pickle) for reference in references]
    calls = eval_plan(setting, specs, path=path).attacks
    labels = [call.label for call in calls]
    if not all(call.bounded for call in calls):
        raise UsageError(f"{', '.join(labels)} leaves the ball", where=path, hint="such as bsr")
    for model in models:
        check_served(model, calls, setting.ball.norm, where="--surrogate")
    console.info(f"surrogate: {', then '.join(labels)} on {', '.join(references)}")
    hashes = ",".join(state_digest(model)[:12] for model in models)
    return [_on_surrogates(models, call, given.join, hashes, stop) for call in calls]


def _usual(norm: str) -> list[Spec]:
    """What searches on a surrogate where nobody says; PGD under a norm that the others do not know."""
    return [*strongest([norm]).values()] or [Spec.of("pgd", steps=50)]


def _on_surrogates(
    models: Sequence[nn.Module], call: AttackCall, join: Join, hashes: str, stop: StopFlag
) -> AttackCall:
    """One attack on the surrogates, as an attack on the measured model.

    A resumed evaluation must not go on with another surrogate, nor with another search on it: its name holds
    the hashes of both.
    """
    told = json.dumps([call.name, call.given, join], sort_keys=True, default=str)
    name = f"transfer:{hashes}:{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    search = transferred(models, call, join=join, stop=stop.check)
    return AttackCall(f"transfer by {call.label}", name, search, {}, "fixed", "decisions")


def _surrogate(setting: Setting, reference: str, console: Console, allow_pickle: bool) -> nn.Module:
    """The model of this reference, without the defences of the measured one."""
    config = setting.config.model_copy(
        update={"model": ModelConfig(name=meant_model(reference)), "defences": []}
    )
    return ModelSource(replace(setting, config=config), allow_pickle=allow_pickle).to_measure(console)


def plugin_calls(plugin: str | None) -> list[AttackCall]:
    """`--attack-plugin FILE.py:NAME`: the user's own attack; [] without it.

    The hash of FILE.py is part of the attack's name.
    """
    if plugin is None:
        return []
    call = load_outside(plugin)
    code = Path(split_plugin(plugin)[0]).read_bytes()
    return [replace(call, name=f"{plugin}@{hashlib.sha256(code).hexdigest()[:12]}")]

"""The configured defences around a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import numbered
from robustcli.assembly.members import members_of
from robustcli.assembly.setting import Setting
from robustcli.config.schema import Config
from robustcli.config.spec import GUARD, Spec
from robustcli.core.types import offers
from robustcli.errors import ConfigError, UsageError
from robustcli.models.defended import make_defence
from robustcli.models.guarded import GuardedModel

_FIT = "robustcli guard fit CONFIG, then --model guard:DIR"
_WITHOUT_FIT = "a purifier or a vote alone needs no fit"


def guard_around(setting: Setting, model: nn.Module, load: Callable[[str], nn.Module]) -> GuardedModel:
    """`model` behind the configured defences, none of them fitted, in eval mode on its device.

    Args:
        setting: the configuration, the data and the device.
        model: the configured classifier, which takes these data.
        load: a reference -> another classifier that does.

    Raises ConfigError for defences that cannot stand together, UsageError E-MODEL for a black box.
    """
    config = setting.config
    _refuse_black_box(config, model)
    _refuse_second_guard(config, model)
    labels = numbered([spec.name for spec in config.defences])
    defences = [
        make_defence(
            label,
            spec.name,
            spec.params,
            setting.data.shape,
            setting.classes,
            seed=config.seed,
            path=f"defences.{k}",
        )
        for k, (label, spec) in enumerate(zip(labels, config.defences, strict=True))
    ]
    members = [model, *(load(reference) for reference in members_of(config))]
    _refuse_lonely_vote(config.defences, len(members))
    try:
        guard = GuardedModel(members, defences, setting.classes, scale=float(config.guard.scale))
    except ValueError as error:
        raise ConfigError(str(error), where="defences") from error
    return guard.eval().to(setting.device)


def ready_guard(setting: Setting, model: nn.Module, load: Callable[[str], nn.Module]) -> GuardedModel:
    """`guard_around` for defences that need no fit. A vote abstains by its own rule.

    Raises ConfigError for a detector, which has no threshold, and for a network that nobody trained.
    """
    guard = guard_around(setting, model, load)
    for k, defence in enumerate(guard.defences):
        if defence.facts.kind == "detector":
            what = f"the detector {defence.name!r} has no threshold"
        elif defence.facts.fit is not None:
            what = f"the {defence.facts.kind} {defence.name!r} has not been fitted"
        else:
            continue
        raise ConfigError(what, where=f"defences.{k}", hint=f"{_FIT}; {_WITHOUT_FIT}")
    guard.thresholds = torch.zeros_like(guard.thresholds)
    return guard


def _refuse_black_box(config: Config, model: nn.Module) -> None:
    """Raises UsageError: a guard is one file with its network, and attacks on it need a gradient."""
    if offers(model) != "gradient":
        raise UsageError(
            f"{config.model.name} is a black box, and defences stand in front of a network",
            where="defences",
            hint="put them in front of the network that stands behind it",
            code="E-MODEL",
        )


def _refuse_lonely_vote(specs: Sequence[Spec], members: int) -> None:
    """Raises ConfigError for a vote of one network, which would be that network's answer."""
    for k, spec in enumerate(specs):
        if members == 1 and registry.defences.get(spec.name).facts.kind == "vote":
            raise ConfigError(
                f"the vote {spec.name!r} has one network to ask",
                where=f"defences.{k}",
                hint=f"name the others: {{name: {spec.name}, members: [run:DIR, run:DIR]}}",
            )


def _refuse_second_guard(config: Config, model: nn.Module) -> None:
    if isinstance(model, GuardedModel):
        raise ConfigError(
            f"{config.model.name} has its own defences",
            where="defences",
            hint=f"drop them, or name the model that stands behind that {GUARD}DIR",
        )

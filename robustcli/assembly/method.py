"""The inner half of a configured training, read from the facts of its registered parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustcli import registry
from robustcli.assembly.binding import bound
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.evaluation.plan import AttackCall
from robustcli.facts import LossFacts


@dataclass(frozen=True)
class Method:
    """The inner half of a training: which attack ascends which loss.

    Args:
        inner: name of the loss that the attack ascends; None trains on clean images.
        inner_params: parameters that objective and inner loss share; both have one value.
        compares_with_clean: the inner loss compares with the logits at the clean points.
        flat_at_clean: the inner loss has gradient 0 at the clean points.
        attack: the registered attack.
        attack_params: the parameters that the configuration gives it.
        attack_settings: all of its parameters, defaults included.
        kind: kind of the attack: fixed, minimal or unbounded.
        starts_at_clean: the attack begins at the clean points.
        attack_steps: gradient steps of the attack; None where they are not known.
        can_add_steps: the attack has a parameter `steps`.
        step_attacks: the training step runs the attack; free training does not.
    """

    inner: str | None
    inner_params: Mapping[str, Any]
    compares_with_clean: bool
    flat_at_clean: bool
    attack: Callable[..., Tensor]
    attack_params: Mapping[str, Any]
    attack_settings: Mapping[str, Any]
    kind: str
    starts_at_clean: bool
    attack_steps: int | None
    can_add_steps: bool
    step_attacks: bool


def method_of(config: Config) -> Method:
    """The method of a configuration. Raises ConfigError for parameters that do not fit."""
    _, objective_params = bound(registry.objectives, config.objective, "objective")
    attack, attack_params = bound(registry.attacks, config.adversary, "adversary")
    inner: str | None = registry.objectives.get(config.objective.name).facts.inner
    loss_facts = LossFacts(state=())
    inner_params: dict[str, Any] = {}
    if inner is not None:
        loss = registry.losses.get(inner)
        loss_facts = loss.facts
        shared = registry.parameters(loss.fn).keys() & objective_params.keys()
        inner_params = {name: objective_params[name] for name in shared}
    attack_facts = registry.attacks.get(config.adversary.name).facts
    defaults = {name: known.default for name, known in registry.parameters(attack).items()}
    attack_settings = defaults | attack_params
    return Method(
        inner=inner,
        inner_params=inner_params,
        compares_with_clean="clean" in loss_facts.state,
        flat_at_clean=loss_facts.flat_at_clean,
        attack=attack,
        attack_params=attack_params,
        attack_settings=attack_settings,
        kind=attack_facts.kind,
        starts_at_clean=attack_facts.starts_at_clean or attack_settings.get("start") == "zero",
        attack_steps=steps_of(config.adversary, "adversary"),
        can_add_steps="steps" in attack_settings,
        step_attacks=bool(registry.steps.get(config.train.step.name).facts.attacks),
    )


def steps_of(spec: Spec, path: str) -> int | None:
    """Gradient steps of a registered attack: its parameter `steps`, or 1 where three passes are enough.

    One gradient step takes three passes: forward, backward, and the look at the last point. None: the attack
    has no parameter `steps` and spends more passes, or it uses no gradient.
    """
    attack, params = bound(registry.attacks, spec, path)
    known = registry.parameters(attack).get("steps")
    if known is not None:
        return int(params.get("steps", known.default))
    entry = registry.attacks.get(spec.name)
    cost = AttackCall.of(entry, params).passes(2, entry.facts.norms[0])
    return 1 if entry.facts.needs == "gradient" and cost <= 3 else None

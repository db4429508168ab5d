"""The inner half of a configured training, read from the facts of its registered parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from robustcli import registry
from robustcli.assembly.binding import bound
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.core.types import Classifier
from robustcli.evaluation.plan import AttackCall
from robustcli.facts import LossFacts


@dataclass(frozen=True)
class Method:
    """The inner half of a training: which attack ascends which loss.

    Args:
        inner: name of the loss that the objective lets the attack ascend; None trains on clean images.
        inner_params: parameters that the objective shares with its inner loss; both must have one value.
        loss: what the inner loss states of itself; bound to nothing where there is none.
        view: what the attack sees in place of the model, parameters bound; None for the model itself.
        copies: how many copies of each image pass through the model, in the loss and in the attack.
        adversary: the configured attack.
        starts_at_clean: the attack begins at the clean points.
        bounds: the objective bounds the network over the ball.
        step_attacks: the training step runs the attack; free training does not.
    """

    inner: str | None
    inner_params: Mapping[str, Any]
    loss: LossFacts
    view: Callable[..., Classifier] | None
    copies: int
    adversary: AttackCall
    starts_at_clean: bool
    step_attacks: bool
    bounds: bool = False

    @property
    def robust(self) -> bool:
        """Whether it trains for the ball, and not for clean images alone."""
        return self.inner is not None or self.bounds

    @property
    def compares_with_clean(self) -> bool:
        """Whether the inner loss compares with the logits at the clean points."""
        return "clean" in self.loss.state


def method_of(config: Config) -> Method:
    """The method of a configuration. Raises ConfigError for parameters that do not fit."""
    objective, objective_params = bound(registry.objectives, config.objective, "objective")
    stated = registry.objectives.get(config.objective.name).facts
    inner = stated.inner
    whole = {p.name: p.default for p in registry.parameters(objective).values()} | objective_params
    loss_facts = LossFacts(state=())
    inner_params: dict[str, Any] = {}
    if inner is not None:
        loss = registry.losses.get(inner)
        loss_facts = loss.facts
        inner_params = _shared(loss.fn, objective_params)
    adversary = attack_of(config.adversary, "adversary")
    facts = registry.attacks.get(adversary.name).facts
    return Method(
        inner=inner,
        inner_params=inner_params,
        loss=loss_facts,
        view=None if stated.view is None else partial(stated.view, **_shared(stated.view, whole)),
        copies=int(whole[stated.copies]) if stated.copies else 1,
        adversary=adversary,
        starts_at_clean=facts.starts_at_clean or adversary.given.get("start") == "zero",
        bounds=stated.bounds,
        step_attacks=registry.steps.get(config.train.step.name).facts.attacks,
    )


def _shared(fn: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `params` that are keyword-only parameters of `fn`, too."""
    return {name: params[name] for name in registry.parameters(fn).keys() & params.keys()}


def attack_of(spec: Spec, path: str) -> AttackCall:
    """The call of a registered attack. Raises ConfigError for parameters that do not fit."""
    _, params = bound(registry.attacks, spec, path)
    return AttackCall.of(registry.attacks.get(spec.name), params)


def makes_one_step(call: AttackCall) -> bool:
    """Whether a registered attack makes one gradient step: `steps` is 1, or three passes are enough.

    One gradient step takes three passes: forward, backward, and the look at the last point.
    """
    steps = call.given.get("steps")
    if steps is not None:
        return bool(steps == 1)
    norm = registry.attacks.get(call.name).facts.norms[0]
    return call.needs == "gradient" and call.passes(2, norm) <= 3

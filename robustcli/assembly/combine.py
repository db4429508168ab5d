"""Parts of a training configuration that do not go together, found before any work starts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import misfit
from robustcli.assembly.method import Method
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.config.validate import union_mistake
from robustcli.errors import UsageError


def check_combination(config: Config, method: Method) -> None:
    """Raises UsageError for the first parts that do not go together."""
    _check_norm(config)
    if config.union:
        _check_union(config, method)
    if method.step_attacks:
        _check_attack(config, method)
    else:
        _check_free_step(config, method)
    _check_curriculum(config, method)
    _check_statistics(config)
    _check_named_once(config.regularizers, "regularizer", "regularizers")
    _check_named_once(config.train.hooks, "hook", "train.hooks")
    _check_published_once(config.train.hooks)


def _check_norm(config: Config) -> None:
    """Raises UsageError for an objective or an attack that does not know the norm of the ball.

    The check of a configuration does not look at these where the model is that of a run, which may be
    measured in any ball.
    """
    parts = (
        ("objective", registry.objectives, config.objective),
        ("adversary", registry.attacks, config.adversary),
    )
    for where, entries, spec in parts:
        for ball in config.balls:
            if what := misfit(entries, spec.name, spec.params, ball.norm):
                raise UsageError(what, where=where)


def _check_union(config: Config, method: Method) -> None:
    """Raises UsageError for parts that need one ball: free training, bounds, a step size, gradients in it."""
    if not method.step_attacks:
        step = config.train.step.name
        raise UsageError(f"the {step} step runs no attack that could search in several balls", where="ball")
    if method.bounds:
        raise UsageError(f"{config.objective.name} bounds the network over one ball", where="ball")
    for where, spec in (("adversary", config.adversary), ("train.val_attack", config.train.val_attack)):
        for key, what in union_mistake(registry.attacks.get(spec.name), spec.params).items():
            raise UsageError(what, where=f"{where}.{key}")
    if config.train.union != "max":
        return
    for k, spec in enumerate(config.regularizers):
        if registry.regularizers.get(spec.name).facts.ball:
            raise UsageError(
                f"{spec.name} looks around in one ball, and under train.union: max each image has its own",
                where=f"regularizers.{k}",
                hint="train.union: average or random",
            )


def _check_free_step(config: Config, method: Method) -> None:
    """Raises UsageError for settings that need an attack, under a step that runs none (free training)."""
    step = config.train.step.name
    flaw = ""
    if method.bounds:
        flaw = "bounds the network around clean images"
    elif method.inner is None:
        flaw = "does not look at attacked images"
    elif method.compares_with_clean:
        flaw = f"compares with the clean answer, flat where {step} starts"
    if flaw:
        raise UsageError(
            f"the {step} step needs another objective: {config.objective.name} {flaw}",
            where="objective",
            hint="use madry or mart",
        )
    if config.train.curriculum.steps_start is not None:
        raise UsageError(
            f"the {step} step has no attack whose steps could grow", where="train.curriculum.steps_start"
        )
    if config.train.micro_batch is not None:
        raise UsageError(
            f"train.micro_batch does not go with the {step} step",
            where="train.micro_batch",
            hint="lower train.batch_size",
        )


def _check_attack(config: Config, method: Method) -> None:
    """Raises UsageError for an attack that cannot ascend an inner loss that compares with the clean logits.

    Such an attack has a loss of its own, or starts at the clean image where the inner loss is flat. Also for
    one that asks about images without batch statistics, where it would be given these.
    """
    kept = registry.attacks.get(config.adversary.name).facts.kept
    if kept and method.inner is not None and config.train.attack_bn == "train":
        raise UsageError(
            f"{config.adversary.name} asks about grey images, which are all alike: BatchNorm has no batch"
            " statistics of them",
            where="train.attack_bn",
            hint="train.attack_bn: eval",
        )
    if not method.compares_with_clean:
        return
    own_loss = method.adversary.given.get("loss")
    if own_loss is not None:
        hint = "remove adversary.loss" if "loss" in method.adversary.params else "use pgd"
        objective, attack = config.objective.name, config.adversary.name
        raise UsageError(
            f"{objective} attacks {method.inner}, and {attack} would ascend its own loss {own_loss}",
            where="adversary",
            hint=hint,
        )
    if method.loss.flat_at_clean and method.starts_at_clean:
        raise UsageError(
            f"the {str(method.inner).upper()} of {config.objective.name} is flat at the clean image: "
            "an attack that starts there never moves",
            where="adversary.start",
            hint="start: gaussian with start_scale: 0.001, or start: uniform",
        )


def _check_curriculum(config: Config, method: Method) -> None:
    """Raises UsageError for a curriculum of an attack without a radius, or one that starts and has no end."""
    curriculum = config.train.curriculum
    if curriculum != type(curriculum)() and method.adversary.kind != "fixed":
        raise UsageError(
            f"a curriculum needs an attack with a radius; {config.adversary.name} is {method.adversary.kind}",
            where="train.curriculum",
        )
    for start, until in (("eps_start", "eps_until"), ("steps_start", "steps_until")):
        if getattr(curriculum, start) not in (None, 1.0) and not getattr(curriculum, until):
            raise UsageError(
                f"train.curriculum.{start} without {until} has no effect",
                where="train.curriculum",
                hint=f"{until}: 0.3 ends the ramp after 30 %",
            )


def _check_statistics(config: Config) -> None:
    """Raises UsageError for a hook that estimates BatchNorm on clean images where that would be wrong.

    It is where training sees noisy images, and behind the front of a classifier that stays as it is.
    """
    why = ""
    if registry.objectives.get(config.objective.name).facts.noisy:
        why = f"{config.objective.name} trains on noisy ones"
    elif config.train.front is not None:
        why = "the model behind train.front keeps its own statistics"
    if not why:
        return
    for k, spec in enumerate(config.train.hooks):
        if registry.hooks.get(spec.name).facts.estimates:
            raise UsageError(
                f"{spec.name} estimates BatchNorm on clean images, and {why}",
                where=f"train.hooks.{k}",
                hint="use ema",
            )


def check_front(config: Config, model: nn.Module) -> None:
    """Raises UsageError for an objective that trains the front of a model that has none."""
    if registry.objectives.get(config.objective.name).facts.front and getattr(model, "front", None) is None:
        raise UsageError(
            f"{config.objective.name} trains what stands in front of the model, and nothing does",
            where="train.front",
            hint="train.front: {name: denoiser}, and a trained model: --model run:DIR",
        )


def _check_named_once(specs: Sequence[Spec], kind: str, path: str) -> None:
    names = [spec.name for spec in specs]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise UsageError(f"the {kind} {name} is named twice", where=f"{path}.{k}")


def _check_published_once(hooks: Sequence[Spec]) -> None:
    """Raises UsageError for two hooks that average the weights: a run publishes one model."""
    registered = registry.hooks
    averaging = sorted(s.name for s in hooks if registered.get(s.name).facts.publishes == "weights")
    if len(averaging) > 1:
        raise UsageError(
            f"{averaging[0]} and {averaging[1]} both publish an average of the weights",
            where="train.hooks",
            hint="choose one",
        )

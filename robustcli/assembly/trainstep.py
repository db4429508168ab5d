"""From a validated configuration to the training step around a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import make_search
from robustcli.assembly.binding import bound
from robustcli.assembly.combine import check_combination, check_front
from robustcli.assembly.fewest import fewest_images
from robustcli.assembly.length import training_images, training_length
from robustcli.assembly.method import Method, method_of
from robustcli.assembly.setting import Setting
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.errors import UsageError
from robustcli.evaluation.quickest import Length
from robustcli.models.contract.training import keeps_channels_last
from robustcli.objectives.walked import program_of
from robustcli.runtime.distributed import Ranks
from robustcli.runtime.precision import resolve
from robustcli.training.curriculum import Curriculum
from robustcli.training.forward import recompute
from robustcli.training.guarding import Guards
from robustcli.training.hook import Hook
from robustcli.training.settings import Objective, Regularizer, StepSettings, Strength
from robustcli.training.step import Step
from robustcli.training.union import Union


def make_step(
    setting: Setting,
    model: nn.Module,
    ranks: Ranks,
    guards: Guards,
    stop: Callable[[], None],
    warn: Callable[[str], None],
) -> Step:
    """The configured training step around `model`.

    Raises ConfigError, UsageError for parts that do not go together.
    """
    config = setting.config
    train = config.train
    method = method_of(config)
    check_combination(config, method)
    if method.bounds:
        _check_bounds(setting, model, warn)
    check_front(config, model)
    dtype = resolve(config.precision, setting.device, warn)
    search = make_search(config, setting.device, warn, training_length(setting))
    if train.recompute and not recompute(model):
        warn("train.recompute: this model has no blocks to compute again; memory stays as it is")
    if train.sync_bn:
        model = _synchronised(model, setting.device, ranks)
    fewest = fewest_images(setting, model, ranks)
    strengths = [_strength(part, method, guards) for part in setting.parts]
    union = Union(train.union, strengths) if setting.union else None
    settings = StepSettings(
        model=model,
        objective=_objective(config),
        inner=method.inner,
        inner_params=method.inner_params,
        view=method.view,
        attack=partial(method.adversary.fn, **method.adversary.params),
        ball=setting.ball,
        strength=strengths[0],
        threats=None if union is None else union.threats,
        worst=union is not None and union.rule == "max",
        optimizer=_optimizer(config, model),
        dtype=dtype,
        attack_bn=train.attack_bn,
        search=search,
        channels_last=train.channels_last and keeps_channels_last(model),
        grad_clip=train.grad_clip,
        data_parallel=train.parallel == "dp",
        compiled=train.compile == "on" and not _twice(config, warn),
        race=_race(setting),
        scaler=torch.amp.GradScaler(setting.device.type, enabled=dtype is torch.float16),
        stop=stop,
        regularizers=_regularizers(config.regularizers),
        hooks=_hooks(train.hooks, model),
        ranks=ranks,
        micro_batch=train.micro_batch,
        fewest=fewest,
    )
    make, parameters = bound(registry.steps, train.step, "train.step")
    step: Step = make(settings, **parameters)
    return step


def _check_bounds(setting: Setting, model: nn.Module, warn: Callable[[str], None]) -> None:
    """Trace the network whose bounds are trained, before any step.

    Raises UnsupportedOperation, UsageError for settings under which it cannot be traced. Warns of those that
    bounds do not follow.
    """
    train = setting.config.train
    if train.sync_bn:
        raise UsageError(
            "train.sync_bn does not go with an objective of bounds",
            where="train.sync_bn",
            hint="without it the running statistics are averaged after each step",
        )
    program_of(model, setting.data.shape)
    if train.parallel == "dp":
        warn("train.parallel: dp shares the attack alone: bounds are computed on the first GPU")
    if train.recompute:
        warn("train.recompute: bounds keep their activations; passes of the attack alone are computed again")


def _objective(config: Config) -> Objective:
    objective, parameters = bound(registry.objectives, config.objective, "objective")
    return partial(objective, **parameters)


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    make, parameters = bound(registry.optimizers, config.train.optimizer, "train.optimizer")
    optimizer: torch.optim.Optimizer = make(model, **parameters)
    return optimizer


def _twice(config: Config, warn: Callable[[str], None] = lambda text: None) -> bool:
    """Whether a regulariser differentiates twice, which torch.compile cannot; warns if that is asked for."""
    registered = registry.regularizers
    twice = [spec.name for spec in config.regularizers if registered.get(spec.name).facts.twice]
    if twice and config.train.compile == "on":
        warn(
            f"train.compile: {twice[0]} differentiates twice, which torch.compile cannot; "
            "the step runs as it is"
        )
    return bool(twice)


def _race(setting: Setting) -> Length | None:
    """The length of the run, where its first step is to find out whether compiled code is faster.

    A deterministic run makes no race: what was fastest this time must not decide what a resume computes.
    """
    config = setting.config
    if setting.device.type != "cuda" or config.train.compile != "auto" or config.deterministic:
        return None
    if _twice(config):
        return None
    return Length(training_images(setting), training_length(setting).seconds)


def _strength(setting: Setting, method: Method, guards: Guards) -> Strength:
    """t -> (attack, ball): the curriculum of one ball, with the steps that a guard has added."""
    curriculum = _curriculum(setting, method)
    return lambda t: curriculum.at(t, guards.more_steps)


def _curriculum(setting: Setting, method: Method) -> Curriculum:
    wanted = setting.config.train.curriculum
    try:
        return Curriculum(
            method.adversary.fn,
            method.adversary.params,
            setting.ball,
            float(wanted.eps_start),
            float(wanted.eps_until),
            wanted.steps_start,
            float(wanted.steps_until),
            float(wanted.eps_from),
            wanted.eps_shape,
        )
    except ValueError as error:
        raise UsageError(str(error), where="train.curriculum") from None


def _regularizers(specs: Sequence[Spec]) -> dict[str, Regularizer]:
    made: dict[str, Regularizer] = {}
    for k, spec in enumerate(specs):
        regularizer, parameters = bound(registry.regularizers, spec, f"regularizers.{k}")
        made[spec.name] = partial(regularizer, **parameters)
    return made


def _hooks(specs: Sequence[Spec], model: nn.Module) -> list[Hook]:
    calls = [bound(registry.hooks, spec, f"train.hooks.{k}") for k, spec in enumerate(specs)]
    return [make(model, **parameters) for make, parameters in calls]


def _synchronised(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    """The model with BatchNorm statistics over all processes.

    Raises UsageError without CUDA or with one process.
    """
    if device.type != "cuda" or ranks.world == 1:
        raise UsageError(
            "train.sync_bn needs CUDA and more than one process",
            where="train.sync_bn",
            hint="start several processes with --nproc or torchrun on CUDA; "
            "elsewhere the running statistics are averaged after each step",
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted

"""From a validated configuration to all that a training run needs: step, data, guards, plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.assembly.attacks import eval_plan, planned_passes
from robustcli.assembly.binding import bound
from robustcli.assembly.cost import passes_per_image
from robustcli.assembly.length import budget
from robustcli.assembly.method import Method, attack_of, makes_one_step, method_of
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting
from robustcli.assembly.trainstep import make_step
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.core.random import RowRandom
from robustcli.data.cutmix import cutmix
from robustcli.data.extra import extra_split
from robustcli.data.mixture import JoinedSplit, MixedSplit, epoch_size
from robustcli.data.split import Split
from robustcli.evaluation.plan import EvalPlan
from robustcli.runtime.distributed import Ranks
from robustcli.runtime.precision import allow_tf32
from robustcli.terminal.once import each_once
from robustcli.training.guarding import Guards
from robustcli.training.guards import Mode
from robustcli.training.step import Step
from robustcli.training.trainplan import Look, TrainPlan
from robustcli.training.validation import FGSM

#: The deeper look at a model: those of its attacks that know the norm, on how many images, and the share of
#: the training's passes.
_DEEPER = (Spec.of("pgd", steps=50, loss="margin"), Spec.of("square", queries=100))
_LOOKED_AT, _SHARE = 64, 0.05


@dataclass(frozen=True)
class Engine:
    """What a `Trainer` is made of.

    `train` includes the configured extra data. `digest` is the hash of all training data.
    """

    step: Step
    train: Split
    val: Split | None
    plan: TrainPlan
    guards: Guards
    digest: str


def make_engine(
    setting: Setting,
    model: nn.Module,
    ranks: Ranks,
    stop: Callable[[], None],
    warn: Callable[[str], None],
    extra: JoinedSplit | None = None,
) -> Engine:
    """Everything a run needs but its directory.

    extra: images to mix in, in place of the configured ones.

    Raises ConfigError, UsageError, DataError for what cannot be put together.
    """
    config, data = setting.config, setting.data
    allow_tf32(config.precision == "tf32")  # the whole process: the backward pass runs outside of any block
    train, digest = _training_data(setting, extra)
    val = data.val if len(data.val) else None
    positions = _validation_positions(setting)
    if config.train.patience is not None and val is None:
        warn("train.patience has no effect without validation images")
    method = method_of(config)
    guards = Guards(len(positions), setting.classes, config.train.patience, _overfitting_mode(config, method))
    step = make_step(setting, model, ranks, guards, stop, warn)
    validations: list[EvalPlan] = []
    if val is not None:
        told = each_once(warn)
        validations = [_validation(part, method, told) for part in setting.parts]
    plan = _plan(setting, train, validations, positions, method)
    if validations and _may_mask(config, method):
        plan = replace(plan, look=_look(setting, plan))
    return Engine(step, train, val, plan, guards, digest)


def _training_data(setting: Setting, given: JoinedSplit | None) -> tuple[Split, str]:
    """The training split and its digest, extra data included."""
    config, data = setting.config.data, setting.data
    if given is None and config.extra is None:
        return data.train, data.digest
    extra = given or extra_split(str(config.extra), data, config)
    return MixedSplit(data.train, extra, float(config.extra_ratio)), f"{data.digest}+{extra.digest}"


def _validation_positions(setting: Setting) -> Tensor:
    """int64 [m], positions of the validation images that are measured; m = 0 for an empty split."""
    if not len(setting.data.val):
        return torch.zeros(0, dtype=torch.int64)
    return choose(setting.data.val, n=setting.config.train.val_n, first=None, seed=setting.config.seed)


def _overfitting_mode(config: Config, method: Method) -> Mode:
    """What follows catastrophic overfitting: the configured reaction, or "stop" in place of "rollback".

    A roll-back gives the attack one step more. Where no attack can take it, the run stops.
    """
    mode = config.train.overfitting
    if mode == "rollback" and not (method.step_attacks and "steps" in method.adversary.given):
        return "stop"
    return mode


def _may_collapse(config: Config, method: Method) -> bool:
    """Whether catastrophic overfitting is watched for: training against one-step attacks, or a free step."""
    one_step = makes_one_step(method.adversary) or not method.step_attacks
    return method.inner is not None and one_step and config.train.overfitting != "off"


def _may_mask(config: Config, method: Method) -> bool:
    """Whether the validation attack may be misled: one-step training, or a regulariser of the loss."""
    bent = method.inner is not None and bool(config.regularizers) and config.train.overfitting != "off"
    return bent or _may_collapse(config, method)


def _look(setting: Setting, plan: TrainPlan) -> Look:
    """A look at 64 images: more steps on the margin, then queries without gradients.

    It is taken at so few validations that it makes at most a twentieth of the passes of the training.
    """
    deep = [_deeper(part) for part in setting.parts]
    passes = sum(1 + planned_passes(plan.attacks, setting.classes, plan.ball.norm) for plan in deep)
    dearest = _LOOKED_AT * passes
    trained = plan.validate_every * plan.batch_size * passes_per_image(setting)
    return Look(deep, _LOOKED_AT, max(1, math.ceil(dearest / (_SHARE * trained))))


def _deeper(setting: Setting) -> EvalPlan:
    """The attacks of a look in one ball, as far as they know its norm."""
    norm = setting.ball.norm
    known = [spec for spec in _DEEPER if norm in registry.attacks.get(spec.name).facts.norms]
    return eval_plan(setting, known, path="train.val_attack")


def _validation(setting: Setting, method: Method, warn: Callable[[str], None]) -> EvalPlan:
    """The plan of the validation. FGSM comes first where one-step training may collapse."""
    train, path = setting.config.train, "train.val_attack"
    if not method.robust:
        return eval_plan(setting, [], path=path)
    if not _may_collapse(setting.config, method):
        return eval_plan(setting, [train.val_attack], path=path)
    if makes_one_step(attack_of(train.val_attack, path)):
        warn(
            "train.val_attack makes one step: catastrophic overfitting cannot be seen by it; "
            "use pgd with 10 steps"
        )
    plan = eval_plan(setting, [Spec.of("fgsm"), train.val_attack], path=path)
    return replace(plan, attacks=[replace(plan.attacks[0], label=FGSM), *plan.attacks[1:]])


def _plan(
    setting: Setting, train: Split, validations: Sequence[EvalPlan], positions: Tensor, method: Method
) -> TrainPlan:
    config, data = setting.config, setting.data
    schedule, parameters = bound(registry.schedules, config.train.schedule, "train.schedule")
    size = max(1, epoch_size(train))
    steps_per_epoch = max(1, size // min(config.train.batch_size, size))
    return TrainPlan(
        seed=config.seed,
        batch_size=config.train.batch_size,
        factor=partial(schedule, **parameters),
        augment=None if data.augment.idle else data.augment,
        budget=budget(config),
        save_every=config.train.save_every or steps_per_epoch,
        validate_every=max(1, round(float(config.train.validate_every) * steps_per_epoch)),
        validations=validations,
        val_positions=positions,
        robust_best=method.robust,
        verified=method.bounds,
        cutmix=_cutmix(config, setting.classes),
        oom=config.train.oom,
    )


def _cutmix(
    config: Config, classes: int
) -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """(x, y, ids, epoch) -> (x, y_soft), or None."""
    if config.data.cutmix is None:
        return None
    mix = partial(
        cutmix,
        num_classes=classes,
        alpha=float(config.data.cutmix.alpha),
        probability=float(config.data.cutmix.probability),
    )
    return lambda x, y, ids, epoch: mix(x, y, RowRandom(config.seed, "cutmix", ids, epoch=epoch))

"""From a validated configuration to the training engine: step, hooks, curriculum, guards, plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.assembly.attacks import eval_plan, make_search
from robustcli.assembly.bound import bound, call_with
from robustcli.assembly.samples import choose
from robustcli.assembly.setting import Setting
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.core.random import RowRandom
from robustcli.data.cutmix import cutmix
from robustcli.data.extra import extra_split
from robustcli.data.mixture import MixedSplit, epoch_size
from robustcli.data.split import Split
from robustcli.errors import UsageError
from robustcli.evaluation.plan import EvalPlan
from robustcli.runtime.distributed import Ranks
from robustcli.runtime.precision import allow_tf32, resolve
from robustcli.training.curriculum import Curriculum
from robustcli.training.forward import recompute
from robustcli.training.guarding import Guards
from robustcli.training.hooks import Hook
from robustcli.training.steps import MinMax
from robustcli.training.trainplan import TrainPlan
from robustcli.training.validation import FGSM


@dataclass(frozen=True)
class Engine:
    """What a `Trainer` is made of. `train` holds extra data when there is some; `digest` names all training data."""

    step: MinMax
    train: Split
    val: Split | None
    plan: TrainPlan
    guards: Guards
    digest: str


def make_engine(
    setting: Setting, model: nn.Module, ranks: Ranks, stop: Callable[[], None], warn: Callable[[str], None]
) -> Engine:
    """Everything a run needs but its directory. Raises ConfigError, UsageError, DataError for what cannot be put together."""
    config, data = setting.config, setting.data
    allow_tf32(
        config.precision == "tf32"
    )  # for the whole process: the backward pass runs outside of any block
    train: Split = data.train
    digest = data.digest
    if config.data.extra is not None:
        extra = extra_split(config.data.extra, data, config.data)
        train, digest = (
            MixedSplit(data.train, extra, float(config.data.extra_ratio)),
            f"{digest}+{extra.digest}",
        )
    inner = registry.objectives.get(config.objective.name).facts.inner
    val = data.val if len(data.val) else None
    positions = (
        torch.zeros(0, dtype=torch.int64)
        if val is None
        else choose(val, n=config.train.val_n, first=None, seed=config.seed)
    )
    if config.train.patience is not None and val is None:
        warn("train.patience has no effect without validation images")
    steps, attacks = (
        _steps(config.adversary),
        bool(registry.steps.get(config.train.step.name).facts.attacks),
    )
    mode = config.train.overfitting
    if mode == "rollback" and (
        not attacks or not registry.parameters(registry.attacks.get(config.adversary.name).fn).get("steps")
    ):
        mode = "stop"  # there is no attack that could take one step more
    guards = Guards(len(positions), len(data.classes), config.train.patience, mode)
    step = make_step(setting, model, ranks, guards, stop, warn)
    one_step = inner is not None and mode != "off" and (steps == 1 or not attacks)
    if one_step and val is not None and _steps(config.train.val_attack) == 1:
        warn(
            "train.val_attack makes one step: catastrophic overfitting cannot be seen by it; use pgd with 10 steps"
        )
    validation = None if val is None else _validation(setting, inner is not None, one_step)
    return Engine(
        step, train, val, _plan(setting, train, validation, positions, inner is not None), guards, digest
    )


def make_step(
    setting: Setting,
    model: nn.Module,
    ranks: Ranks,
    guards: Guards,
    stop: Callable[[], None],
    warn: Callable[[str], None],
) -> MinMax:
    """The configured training step around `model`."""
    config = setting.config
    train = config.train
    objective, parameters = bound(registry.objectives, config.objective, "objective")
    inner = registry.objectives.get(config.objective.name).facts.inner
    attack, attack_parameters = bound(registry.attacks, config.adversary, "adversary")
    optimizer, optimizer_parameters = bound(registry.optimizers, train.optimizer, "train.optimizer")
    dtype = resolve(config.precision, setting.device, warn)
    search = make_search(config, setting.device, warn)
    if train.recompute and not recompute(model):
        warn("train.recompute: this model has no blocks to compute again; memory stays as it is")
    if train.sync_bn:
        model = _synchronised(model, setting.device, ranks)
    _check_search(config, inner, attack, attack_parameters)
    curriculum = _curriculum(setting, attack, attack_parameters)
    make, step_parameters = bound(registry.steps, train.step, "train.step")
    settings: dict[str, Any] = {
        "model": model,
        "objective": call_with(objective, parameters),
        "inner": inner,
        "attack": call_with(attack, attack_parameters),
        "ball": setting.ball,
        "optimizer": optimizer(model, **optimizer_parameters),
        "dtype": dtype,
        "attack_bn": train.attack_bn,
        "search": search,
        "channels_last": train.channels_last,
        "grad_clip": train.grad_clip,
        "parallel": nn.DataParallel(model) if train.parallel == "dp" else None,
        "compiled": _compiled(config, setting.device, warn),
        "scaler": torch.amp.GradScaler(setting.device.type) if dtype is torch.float16 else None,
        "stop": stop,
        "regularizers": _regularizers(config.regularizers),
        "hooks": _hooks(train.hooks, model),
        "ranks": ranks,
        "strength": lambda t: curriculum.at(t, guards.more_steps),
        "inner_params": _shared(inner, parameters),
        "micro_batch": train.micro_batch,
    }
    if train.micro_batch is not None and not registry.steps.get(train.step.name).facts.attacks:
        raise UsageError(
            f"train.micro_batch does not go with the {train.step.name} step",
            where="train.micro_batch",
            hint="lower train.batch_size",
        )
    found = make(settings, **step_parameters)
    assert isinstance(found, MinMax)
    return found


def _compiled(config: Config, device: torch.device, warn: Callable[[str], None]) -> bool:
    """Whether the outer step is compiled; a regularizer that differentiates twice cannot be (PyTorch has no double backward there)."""
    twice = [spec.name for spec in config.regularizers if registry.regularizers.get(spec.name).facts.twice]
    if twice and config.train.compile == "on":
        warn(
            f"train.compile: {twice[0]} differentiates twice, which torch.compile cannot; the step runs as it is"
        )
    return not twice and (
        config.train.compile == "on" or (config.train.compile == "auto" and device.type == "cuda")
    )


def _steps(adversary: Spec) -> int | None:
    fn, parameters = bound(registry.attacks, adversary, "adversary")
    known = registry.parameters(fn).get("steps")
    return (
        1
        if adversary.name == "fgsm"
        else None
        if known is None
        else int(parameters.get("steps", known.default))
    )


def _check_search(
    config: Config, inner: str | None, attack: Callable[..., Tensor], parameters: dict[str, Any]
) -> None:
    """An adversary that would not ascend the objective's inner loss."""
    clean = inner is not None and "clean" in registry.losses.get(inner).facts.state
    if not registry.steps.get(config.train.step.name).facts.attacks:
        if inner is None or clean:
            what = (
                "does not look at attacked images"
                if inner is None
                else f"compares with the clean answer, flat where {config.train.step.name} starts"
            )
            said = (
                f"the {config.train.step.name} step needs another objective: {config.objective.name} {what}"
            )
            raise UsageError(said, where="objective", hint="use madry or mart")
        if config.train.curriculum.steps_start is not None:
            raise UsageError(
                f"the {config.train.step.name} step has no attack whose steps could grow",
                where="train.curriculum.steps_start",
            )
        return
    if not clean:
        return
    loss = {name: param.default for name, param in registry.parameters(attack).items()} | parameters
    name = config.adversary.name
    if loss.get("loss") is not None:
        hint = "remove adversary.loss" if "loss" in parameters else "use pgd"
        raise UsageError(
            f"{config.objective.name} attacks {inner}, and {name} would ascend its own loss {loss['loss']}",
            where="adversary",
            hint=hint,
        )
    if inner == "kl" and (name == "fgsm" or loss.get("start") == "zero"):
        hint = "start: gaussian with start_scale: 0.001, or start: uniform"
        raise UsageError(
            "the KL of trades is flat at the clean image: an attack that starts there never moves",
            where="adversary.start",
            hint=hint,
        )


def _curriculum(setting: Setting, attack: Callable[..., Tensor], parameters: dict[str, Any]) -> Curriculum:
    wanted = setting.config.train.curriculum
    kind = registry.attacks.get(setting.config.adversary.name).facts.kind
    if wanted != type(wanted)() and kind != "fixed":
        raise UsageError(
            f"a curriculum needs an attack with a radius; {setting.config.adversary.name} is {kind}",
            where="train.curriculum",
        )
    for start, until in (("eps_start", "eps_until"), ("steps_start", "steps_until")):
        if getattr(wanted, start) not in (None, 1.0) and not getattr(wanted, until):
            raise UsageError(
                f"train.curriculum.{start} without {until} has no effect",
                where="train.curriculum",
                hint=f"{until}: 0.3 ends the ramp after 30 %",
            )
    try:
        return Curriculum(
            attack,
            parameters,
            setting.ball,
            float(wanted.eps_start),
            float(wanted.eps_until),
            wanted.steps_start,
            float(wanted.steps_until),
        )
    except ValueError as error:
        raise UsageError(str(error), where="train.curriculum") from None


def _regularizers(specs: Sequence[Spec]) -> dict[str, Callable[..., Tensor]]:
    found: dict[str, Callable[..., Tensor]] = {}
    for k, spec in enumerate(specs):
        fn, parameters = bound(registry.regularizers, spec, f"regularizers.{k}")
        if spec.name in found:
            raise UsageError(f"the regularizer {spec.name} is named twice", where=f"regularizers.{k}")
        found[spec.name] = call_with(fn, parameters)
    return found


def _hooks(specs: Sequence[Spec], model: nn.Module) -> list[Hook]:
    names = [spec.name for spec in specs]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise UsageError(f"the hook {name} is named twice", where=f"train.hooks.{k}")
    if {"ema", "swa"} <= set(names):
        raise UsageError(
            "ema and swa both publish an average of the weights", where="train.hooks", hint="choose one"
        )
    made = [bound(registry.hooks, spec, f"train.hooks.{k}") for k, spec in enumerate(specs)]
    return [fn(model, **parameters) for fn, parameters in made]


def _shared(inner: str | None, parameters: dict[str, Any]) -> dict[str, float]:
    """Parameters of the objective that its inner loss has too: both must have one value."""
    if inner is None:
        return {}
    return {
        name: parameters[name]
        for name in registry.parameters(registry.losses.get(inner).fn)
        if name in parameters
    }


def _synchronised(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if device.type != "cuda" or ranks.world == 1:
        hint = "start several processes with --nproc or torchrun on CUDA; elsewhere the running statistics are averaged after each step"
        raise UsageError(
            "train.sync_bn needs CUDA and more than one process", where="train.sync_bn", hint=hint
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted


def _validation(setting: Setting, robust: bool, one_step: bool) -> EvalPlan:
    """The validation attack; before it FGSM where one-step training may collapse."""
    train = setting.config.train
    if not robust:
        return eval_plan(setting, [], path="train.val_attack")
    if not one_step:
        return eval_plan(setting, [train.val_attack], path="train.val_attack")
    plan = eval_plan(setting, [Spec.of("fgsm"), train.val_attack], path="train.val_attack")
    return replace(plan, attacks=[replace(plan.attacks[0], label=FGSM), *plan.attacks[1:]])


def _plan(
    setting: Setting, train: Split, validation: EvalPlan | None, positions: Tensor, robust: bool
) -> TrainPlan:
    config, data = setting.config, setting.data
    schedule, parameters = bound(registry.schedules, config.train.schedule, "train.schedule")
    size = max(1, epoch_size(train))
    epoch = max(1, size // min(config.train.batch_size, size))
    lengths = {unit: getattr(config.train, unit) for unit in ("steps", "minutes", "epochs")}
    return TrainPlan(
        seed=config.seed,
        batch_size=config.train.batch_size,
        factor=call_with(schedule, parameters),
        augment=None if data.augment.idle else data.augment,
        budget=next(
            ((unit, float(amount)) for unit, amount in lengths.items() if amount is not None),
            ("epochs", 10.0),
        ),
        save_every=config.train.save_every or epoch,
        validate_every=max(1, round(float(config.train.validate_every) * epoch)),
        validation=validation,
        val_positions=positions,
        robust_best=robust,
        cutmix=_cutmix(config, len(data.classes)),
        oom=config.train.oom,
    )


def _cutmix(
    config: Config, classes: int
) -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    if config.data.cutmix is None:
        return None
    mix = partial(
        cutmix,
        num_classes=classes,
        alpha=float(config.data.cutmix.alpha),
        probability=float(config.data.cutmix.probability),
    )
    return lambda x, y, ids, epoch: mix(x, y, RowRandom(config.seed, "cutmix", ids, epoch=epoch))

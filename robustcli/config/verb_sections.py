"""The sections of single verbs: train, eval, attack."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from robustcli.config.number import Flag, Int, Number, Text, parse_int
from robustcli.config.spec import From, Section, Spec, names_code
from robustcli.config.wording import shown


class Curriculum(Section):
    """A threat that grows from the start to the configured one."""

    eps_start: Number = Field(default=1.0, ge=0, le=1, description="factor on eps at the first step")
    eps_until: Number = Field(
        default=0.0, ge=0, lt=1, description="share of all steps after which eps is whole"
    )
    eps_from: Number = Field(
        default=0.0, ge=0, lt=1, description="share of all steps before eps begins to grow"
    )
    eps_shape: Literal["linear", "smoothed"] = Field(
        default="linear", description="smoothed = flat at first, then a straight line"
    )
    steps_start: Int | None = Field(
        default=None, ge=1, description="attack steps at the first step; null = all"
    )
    steps_until: Number = Field(
        default=0.0, ge=0, lt=1, description="share of all steps after which the attack has all its steps"
    )


class TrainConfig(Section):
    """How long, with what optimiser, and how the best epoch is chosen."""

    exclusive: ClassVar[tuple[str, ...]] = ("epochs", "steps", "minutes")
    usual: ClassVar[tuple[str, Any] | None] = ("epochs", 10)
    epochs: Number | None = Field(
        default=None, gt=0, description="length in passes over the data; 10 when no length is given"
    )
    steps: Int | None = Field(default=None, ge=1, description="length in optimiser steps")
    minutes: Number | None = Field(
        default=None,
        gt=0,
        description="length in minutes; the steps that fill them are planned anew as they go",
    )
    batch_size: Int = Field(default=128, ge=1, le=2**20, description="images per step")
    optimizer: Annotated[Spec, From("optimizers")] = Field(
        default=Spec.of("sgd"), description="the optimiser"
    )
    schedule: Annotated[Spec, From("schedules")] = Field(
        default=Spec.of("one_cycle"), description="the learning rate over the run"
    )
    step: Annotated[Spec, From("steps")] = Field(
        default=Spec.of("minmax"), description="minmax = attack, then descend; free = one pass for both"
    )
    hooks: Annotated[list[Spec], From("hooks")] = Field(
        default=[],
        max_length=8,
        description="around each step, such as awp (perturbs weights) and ema (averages them)",
    )
    front: Annotated[Spec | None, From("defences")] = Field(
        default=None,
        description="a purifier to train in front of a trained model, which stays as it is: denoiser",
    )
    union: Literal["max", "average", "random"] = Field(
        default="max",
        description="training against a list of balls: the worst loss of each image, the mean of the losses, "
        "or one ball a step, drawn at random",
    )
    curriculum: Curriculum = Field(default=Curriculum(), description="warm-up of eps and attack steps")
    init: Literal["own", "ibp"] = Field(
        default="own",
        description="first weights of an untrained model: own = its architecture's; ibp = narrow bounds",
    )
    grad_clip: Number | None = Field(
        default=None, gt=0, description="largest gradient norm; null = no clipping"
    )
    attack_bn: Literal["eval", "train"] = Field(
        default="eval", description="batch normalisation while the attack runs"
    )
    channels_last: Flag = Field(default=True, description="memory layout of the training step")
    parallel: Literal["none", "dp"] = Field(
        default="none",
        description="dp = DataParallel over the GPUs of one machine; processes: --nproc or torchrun",
    )
    sync_bn: Flag = Field(default=False, description="BatchNorm statistics over the processes (CUDA)")
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="most images in one pass, gradients added up; null = the whole batch",
    )
    oom: Literal["auto", "halve", "fail"] = Field(
        default="auto",
        description="out of memory: halve the micro-batch; auto = not where BatchNorm would notice",
    )
    recompute: Flag = Field(
        default=False,
        description="forget activations inside blocks, compute them again: "
        "less memory, one more forward pass",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="torch.compile of the outer step; auto = on CUDA, in a long run, where it is faster",
    )
    save_every: Int | None = Field(
        default=None, ge=1, description="steps between checkpoints; null = once an epoch"
    )
    keep: Int = Field(default=2, ge=2, le=10_000, description="checkpoints kept")
    trackers: Annotated[list[Spec], From("trackers")] = Field(
        default=[], max_length=8, description="where records go besides metrics.jsonl: tensorboard"
    )
    validate_every: Number = Field(default=1.0, gt=0, description="epochs between validations")
    val_attack: Annotated[Spec, From("attacks")] = Field(
        default=Spec.of("pgd", steps=10),
        description="the attack whose robust accuracy chooses the best checkpoint",
    )
    val_n: Int | None = Field(default=1000, ge=1, description="validation images; null = all")
    patience: Int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="validations without a better model before the run ends; null = never",
    )
    overfitting: Literal["off", "warn", "stop", "rollback"] = Field(
        default="rollback",
        description="when one-step training collapses: "
        "go back to the best state and attack with one step more",
    )

    @field_validator("steps", "minutes")
    @classmethod
    def _one_length(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.only_one(value, info)


def _target(value: Any) -> Any:
    """`random`, `least-likely`, null, or a label as an int. Raises ValueError."""
    if value is None or value in ("random", "least-likely"):
        return value
    with suppress(ValueError):
        label = parse_int(value)
        if label >= 0:
            return label
    raise ValueError(f"expected random, least-likely, a label >= 0 or null, got {shown(value)}")


class SurrogateConfig(Section):
    """Other models on which images are made that the measured one is shown, too."""

    models: list[Text] = Field(
        default=[], max_length=16, description="which ones, [run:A, run:B]; searched on together"
    )
    join: Literal["loss", "logits", "best"] = Field(
        default="loss",
        description="several: mean of the losses, mean of the logits, or of each image the best point of all",
    )
    attack: Annotated[Spec | None, From("attacks")] = Field(
        default=None,
        description="what searches on them; null = mi_fgsm with sia, mi_fgsm and apgd, one after the other",
    )

    @field_validator("models")
    @classmethod
    def _no_code(cls, models: list[str]) -> list[str]:
        if named := [name for name in models if names_code(name)]:
            raise ValueError(f"{shown(named[0])} is code, which only --surrogate may name")
        return models


class EvalConfig(Section):
    """Which images are judged, and what must be reached."""

    exclusive: ClassVar[tuple[str, ...]] = ("n", "first")
    split: Literal["test", "val", "train"] = Field(default="test", description="the split judged")
    n: Int | None = Field(default=None, ge=1, description="size of a seeded stratified sample; null = all")
    first: Int | None = Field(
        default=None, ge=1, description="the first N images instead, in reference order"
    )
    skip: Int = Field(
        default=1, ge=1, le=2**31, description="every K-th image in stored order, before n and first"
    )
    batch_size: Int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="images per batch; null = 256, on a GPU grown while memory allows",
    )
    shard_size: Int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="samples per shard, the unit of a resume; null = about 32 shards of 4 to 128 samples",
    )
    checks: Int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="samples on which the model is diagnosed first; null = by cost, 8 to 64; 0 = none",
    )
    escalate: Flag = Field(
        default=True, description="add attack stages when the diagnosis finds masked gradients"
    )
    target: Annotated[Literal["random", "least-likely"] | int | None, BeforeValidator(_target)] = Field(
        default=None, description="class to reach; null = untargeted"
    )
    surrogate: SurrogateConfig = Field(
        default=SurrogateConfig(), description="models whose images are tried too (black box)"
    )
    sweep: Text | None = Field(
        default=None,
        min_length=1,
        description="accuracy against eps=0..16/255, steps=1..200, restarts=1..10, or distance; null = none",
    )
    examples: Int = Field(
        default=8, ge=0, le=64, description="broken samples whose images are kept for the report; 0 = none"
    )
    fail_under: dict[Text, Annotated[Number, Field(ge=0, le=1)]] = Field(
        default={}, description="metric -> smallest accepted fraction, such as {robust_acc: 0.45}"
    )

    @field_validator("first")
    @classmethod
    def _one_sample(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.only_one(value, info)


class PatchConfig(Section):
    """How one patch for all images is fitted, on images that are not measured."""

    split: Literal["train", "val"] = Field(
        default="train", description="the split whose images it is fitted on"
    )
    n: Int = Field(default=512, ge=1, description="images of that split, every class by its share")
    area: Number = Field(default=0.1, gt=0, le=1, description="largest share of an image's area")
    rotation: Number = Field(default=22.5, ge=0, le=180, description="largest turn to either side, degrees")
    smallest: Number = Field(
        default=0.8,
        gt=0,
        le=1,
        description="smallest side in units of the largest; drawn like turn and place",
    )
    steps: Int = Field(default=300, ge=1, description="steps of Adam, each on one batch at places of its own")
    batch_size: Int = Field(default=64, ge=1, le=2**20, description="images per step")
    step_size: Number = Field(default=0.05, gt=0, description="of Adam, pixel units")
    dark: Number = Field(default=0.0, ge=0, le=1, description="darkest pixel that can be printed")
    bright: Number = Field(default=1.0, ge=0, le=1, description="brightest pixel that can be printed")
    tv: Number = Field(
        default=0.0, ge=0, description="weight of the total variation: smooth patches survive printing"
    )


class AttackConfig(Section):
    """What the attack verb writes."""

    save: Int = Field(default=16, ge=0, description="adversarial images written")
    gallery: Int = Field(default=8, ge=0, le=256, description="rows of the gallery picture")
    amplify: Number | None = Field(
        default=None,
        gt=0,
        description="factor of the difference shown there; null = the largest that cuts nothing off",
    )
    patch: PatchConfig | None = Field(
        default=None, description="fit a patch first; attacks show it as {name: patch, file: fitted}"
    )

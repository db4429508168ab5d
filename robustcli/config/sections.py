"""The sections of a config below the top level."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from robustcli.config.number import Flag, Int, Number, Text, parse_int, shown
from robustcli.config.spec import From, Section, Spec

_LARGEST = {
    "linf": 1.0,
    "l2": 100.0,
    "l1": 1000.0,
}  # norms of image differences in [0, 1] pixels; beyond them the unit is wrong


class Augment(Section):
    """Random crop, flip and pose, drawn per image and epoch."""

    crop: Int = Field(
        default=4, ge=0, le=512, description="zero padding before the random crop, pixels; 0 = no crop"
    )
    flip: Flag = Field(default=False, description="mirror half of the images left to right")
    rotate: Number = Field(default=0.0, ge=0, le=180, description="turn by up to so many degrees, both ways")
    scale: Number = Field(
        default=0.0,
        ge=0,
        le=1,
        description="grow or shrink by up to this share: 0.1 is a factor from 1/1.1 to 1.1",
    )
    translate: Number = Field(
        default=0.0,
        ge=0,
        le=512,
        description="shift by up to so many pixels in each direction, also between pixels",
    )

    @property
    def posed(self) -> bool:
        """Whether images are turned, grown or shifted between pixels."""
        return bool(self.rotate or self.scale or self.translate)

    @property
    def idle(self) -> bool:
        """Whether nothing is done."""
        return not (self.crop or self.flip or self.posed)


def _shape(value: Any) -> str:
    return "<map>" if isinstance(value, (dict, Augment)) else "<word>"


AugmentChoice = Annotated[
    Annotated[Literal["auto", "none"], Tag("<word>")] | Annotated[Augment, Tag("<map>")],
    Discriminator(_shape),
]


class CutMix(Section):
    """Windows of other images of the batch, labels mixed by area; use it with weight averaging (arXiv:2111.05328)."""

    alpha: Number = Field(
        default=1.0, gt=0, le=1000, description="shape of the Beta distribution of the kept share"
    )
    probability: Number = Field(default=1.0, ge=0, le=1, description="share of the images that are mixed")


class DataConfig(Section):
    """Which images, and how they are split and fed."""

    name: Text = Field(
        default="digits",
        min_length=1,
        max_length=4096,
        description="a registered data set, folder:PATH, npz:PATH or fake",
    )
    root: Text = Field(default="data", min_length=1, description="directory of downloaded data sets")
    size: Int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="side of the square images, pixels; null = the data set's own",
    )
    download: Flag = Field(default=False, description="allow the download of a missing data set")
    val_fraction: Number = Field(
        default=0.1, ge=0, lt=1, description="share of the training split kept for validation"
    )
    test_fraction: Number = Field(
        default=0.25, gt=0, lt=1, description="share of a data set without a test split that becomes one"
    )
    split_seed: Int = Field(default=0, ge=0, description="seed of both splits")
    augment: AugmentChoice = Field(
        default="auto", description="auto = what suits the data set; none; or {crop: 4, flip: true}"
    )
    cutmix: CutMix | None = Field(default=None, description="mix images of a batch: {alpha: 1.0}; null = no")
    extra: Text | None = Field(
        default=None,
        min_length=1,
        description="more training images, npz:PATH or folder:PATH (generated ones, say); null = none",
    )
    extra_ratio: Number = Field(
        default=0.7, ge=0, lt=1, description="share of every batch that comes from data.extra"
    )
    workers: Int | None = Field(
        default=None, ge=0, le=1024, description="decoding processes; null = as many as pay off"
    )
    storage: Literal["auto", "memory", "stream", "cached"] = Field(
        default="auto",
        description="keep all pixels in memory, decode files as they are needed, or decode them once into a file; auto = memory or stream",
    )
    cache: Text | None = Field(
        default=None,
        min_length=1,
        description="folder of the images that storage=cached decodes; null = ~/.cache/robustcli",
    )
    timeout: Number = Field(default=120.0, gt=0, description="seconds to wait for a decoding process")
    bad_image: Literal["fail", "skip"] = Field(
        default="fail", description="what to do with an unreadable training image"
    )
    max_bad: Number = Field(
        default=0.001, ge=0, le=1, description="largest share of unreadable images that may be skipped"
    )

    @field_validator("name")
    @classmethod
    def _path_given(cls, value: str) -> str:
        if value in ("folder", "npz", "folder:", "npz:"):
            raise ValueError(f"{value.rstrip(':')} needs a path; write {value.rstrip(':')}:PATH")
        return value


class BallConfig(Section):
    """The threat model: how far a pixel vector may move, in pixel units of [0, 1]."""

    norm: Literal["linf", "l2", "l1"] = Field(default="linf", description="the distance")
    allow_large_eps: Flag = Field(default=False, description="accept linf eps above 0.5")
    eps: Number | None = Field(
        default=None, gt=0, description="radius, such as 8/255; null = the data set's preset"
    )

    @field_validator("eps")
    @classmethod
    def _scale(cls, eps: float | None, info: ValidationInfo) -> float | None:
        norm = info.data.get("norm")
        if eps is None or norm is None:
            return eps
        largest = _LARGEST[norm]
        if eps > largest:
            limit = "" if norm == "linf" else f" is beyond {norm} <= {largest:g}"
            hint = f"did you mean {eps:g}/255?" if eps < 255 else f"it must be <= {largest:g}"
            raise ValueError(f"eps={eps}{limit} on the [0,1] scale; {hint}")
        if norm == "linf" and eps > 0.5 and info.data.get("allow_large_eps") is False:
            raise ValueError(
                f"eps={eps} turns any image into any other: linf eps > 0.5 needs allow_large_eps: true"
            )
        return eps


class SearchConfig(Section):
    """How attacks compute; verdicts are always fp32 on the original model."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto = bf16 where the hardware has it"
    )
    fold_bn: Flag = Field(
        default=True, description="fold batch normalisation into convolutions on the attack's copy"
    )
    channels_last: Flag = Field(default=True, description="memory layout of the attack's copy")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile of the attack's copy; auto = on CUDA"
    )
    eot: Int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="draws averaged per gradient; null = 1, or 20 for a randomised model",
    )
    bpda: Flag = Field(
        default=False, description="gradients pass straight through rounding, signs and integer casts"
    )
    rescale: Flag = Field(
        default=False, description="bring logits to a scale where cross-entropy has gradients"
    )


class Curriculum(Section):
    """A threat that grows: linear from the start to the configured one."""

    eps_start: Number = Field(default=1.0, ge=0, le=1, description="factor on eps at the first step")
    eps_until: Number = Field(
        default=0.0, ge=0, lt=1, description="share of all steps after which eps is whole"
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
    epochs: Number | None = Field(
        default=None, gt=0, description="length in passes over the data; 10 when no length is given"
    )
    steps: Int | None = Field(default=None, ge=1, description="length in optimiser steps")
    minutes: Number | None = Field(
        default=None, gt=0, description="length in minutes; one throughput probe turns it into steps"
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
        default=[], max_length=8, description="around each step: awp (perturbs weights), ema, swa (averages)"
    )
    curriculum: Curriculum = Field(default=Curriculum(), description="warm-up of eps and attack steps")
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
        description="forget activations inside blocks, compute them again: less memory, one more forward pass",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile of the outer step; auto = on CUDA"
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
        description="when one-step training collapses: go back to the best state and attack with one step more",
    )

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, value: Any) -> Any:
        if isinstance(value, dict) and all(value.get(key) is None for key in cls.exclusive):
            return {**value, "epochs": 10}
        return value

    @field_validator("steps", "minutes")
    @classmethod
    def _one_length(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.only_one(value, info)


def _target(value: Any) -> Any:
    if value is None or value in ("random", "least-likely"):
        return value
    try:
        label = parse_int(value)
    except ValueError:
        label = -1
    if label < 0:
        raise ValueError(f"expected random, least-likely, a label >= 0 or null, got {shown(value)}")
    return label


class EvalConfig(Section):
    """Which images are judged, and what must be reached."""

    exclusive: ClassVar[tuple[str, ...]] = ("n", "first")
    split: Literal["test", "val", "train"] = Field(default="test", description="the split judged")
    n: Int | None = Field(default=None, ge=1, description="size of a seeded stratified sample; null = all")
    first: Int | None = Field(
        default=None, ge=1, description="the first N images instead, in reference order"
    )
    batch_size: Int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="images per batch; null = 256, on a GPU grown while memory allows",
    )
    shard_size: Int = Field(
        default=256,
        ge=1,
        le=2**20,
        description="samples per shard, the unit that a resumed evaluation does not measure again",
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
    sweep: Text | None = Field(
        default=None,
        min_length=1,
        description="accuracy against eps=0..16/255, steps=1..200, restarts=1..10, or distance; null = none",
    )
    fail_under: dict[Text, Annotated[Number, Field(ge=0, le=1)]] = Field(
        default={}, description="metric -> smallest accepted fraction, such as {robust_acc: 0.45}"
    )

    @field_validator("first")
    @classmethod
    def _one_sample(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.only_one(value, info)


class AttackConfig(Section):
    """What the attack verb writes."""

    save: Int = Field(default=16, ge=0, description="adversarial images written")
    gallery: Int = Field(default=8, ge=0, le=256, description="rows of the gallery picture")
    amplify: Number = Field(default=10.0, gt=0, description="factor of the difference shown in the gallery")

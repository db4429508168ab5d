"""The sections that every verb reads: images, threat model, how attacks compute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from robustcli.config.number import Flag, Int, Number, Text, parse_text
from robustcli.config.spec import Section

#: Largest radius of each norm for pixels in [0, 1]; beyond it the unit is wrong. l0: pixels of the largest
#: image that is read.
LARGEST = {"linf": 1.0, "l2": 100.0, "l1": 1000.0, "l0": 4096.0**2}


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
    """The tag of a value of `augment`: a section, or a word such as `auto`."""
    return "<map>" if isinstance(value, (dict, Augment)) else "<word>"


AugmentChoice = Annotated[
    Annotated[Literal["auto", "none"], Tag("<word>")] | Annotated[Augment, Tag("<map>")],
    Discriminator(_shape),
]


class CutMix(Section):
    """Windows of other images of the batch, labels mixed by area.

    Use it with weight averaging (arXiv:2111.05328).
    """

    alpha: Number = Field(
        default=1.0, gt=0, le=1000, description="shape of the Beta distribution of the kept share"
    )
    probability: Number = Field(default=1.0, ge=0, le=1, description="share of the images that are mixed")


def _name(value: Any) -> str:
    """The name of a folder or a class; YAML reads some names as numbers. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return parse_text(value)


def _names(value: Any) -> Any:
    """A list of names, or the file that has them. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, list):
        return parse_text(value)
    if not value:
        raise ValueError("expected at least one name, got an empty list")
    return [_name(item) for item in value]


Name = Annotated[str, BeforeValidator(_name)]


class SplitFolders(Section):
    """Which folder is which split, where its name does not say so."""

    train: Name | None = Field(default=None, min_length=1, description="folder of the training images")
    val: Name | None = Field(default=None, min_length=1, description="folder of the validation images")
    test: Name | None = Field(default=None, min_length=1, description="folder of the test images")
    ignore: list[Name] = Field(default=[], max_length=256, description="folders that are left aside")


class DataConfig(Section):
    """Which images, and how they are split and fed."""

    name: Text = Field(
        default="digits",
        min_length=1,
        max_length=4096,
        description="a registered data set, folder:PATH, csv:PATH, npz:PATH, hf:PATH, wds:PATH or fake",
    )
    root: Text = Field(default="data", min_length=1, description="directory of downloaded data sets")
    size: Int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="side of the square images, pixels; null = the data set's own",
    )
    download: Flag = Field(default=False, description="allow the download of a missing data set")
    splits: SplitFolders = Field(
        default=SplitFolders(), description="folders of the splits, {test: NAME}; read off the names else"
    )
    classes: Annotated[list[str] | str | None, BeforeValidator(_names)] = Field(
        default=None,
        description="the classes in the order of their labels, [cat, dog] or a FILE of one name a line; "
        "null = sorted, names that are all numbers as numbers",
    )
    max_value: Int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="the value of white in 16-bit images and arrays: 4095 for 12 bits; null = 65535",
    )
    channels: Int | None = Field(
        default=None,
        ge=1,
        le=3,
        description="3 repeats grey images as colour, 1 turns colour into grey; null = as stored",
    )
    link_root: Text | None = Field(
        default=None,
        min_length=1,
        description="links in the data folder may lead into this folder too; null = nowhere outside",
    )
    val_fraction: Number = Field(
        default=0.1, ge=0, lt=1, description="share of the training split kept for validation; 0 = none"
    )
    test_fraction: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of data without a test split that becomes one; null = a quarter, or all images of "
        "your own data for a model that was not trained on them",
    )
    split_seed: Int = Field(default=0, ge=0, description="seed of both splits")
    augment: AugmentChoice = Field(
        default="auto", description="auto = what suits the data set; none; or {crop: 4, flip: true}"
    )
    cutmix: CutMix | None = Field(default=None, description="mix images of a batch: {alpha: 1.0}; null = no")
    extra: Text | None = Field(
        default=None,
        min_length=1,
        description="more training images, npz:PATH or folder:PATH … (generated ones, say); null = none",
    )
    leakage: Flag = Field(
        default=True, description="when a training ends, look for test images in data.extra; false = do not"
    )
    extra_ratio: Number = Field(
        default=0.7, ge=0, lt=1, description="share of every batch that comes from data.extra"
    )
    workers: Int | None = Field(
        default=None, ge=0, le=1024, description="decoding processes; null = as many as pay off"
    )
    storage: Literal["auto", "memory", "stream", "cached"] = Field(
        default="auto",
        description="keep all pixels in memory, decode files as they are needed, "
        "or decode them once into a file; auto = memory or stream",
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

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, channels: int | None) -> int | None:
        if channels == 2:
            raise ValueError("expected 1 (grey) or 3 (colour), got 2")
        return channels


class BallConfig(Section):
    """The threat model: how far a pixel vector may move, in pixel units of [0, 1]; of l0 how many may."""

    norm: Literal["linf", "l2", "l1", "l0"] = Field(default="linf", description="the distance")
    allow_large_eps: Flag = Field(default=False, description="accept linf eps above 0.5")
    eps: Number | None = Field(
        default=None,
        gt=0,
        description="radius, such as 8/255; of l0 the pixels; null = the data set's preset",
    )

    @field_validator("eps")
    @classmethod
    def _scale(cls, eps: float | None, info: ValidationInfo) -> float | None:
        norm = info.data.get("norm")
        if eps is None or norm is None:
            return eps
        if what := wrong_radius("eps", eps, norm):
            raise ValueError(what)
        if norm == "linf" and eps > 0.5 and info.data.get("allow_large_eps") is False:
            raise ValueError(
                f"eps={eps} turns any image into any other: linf eps > 0.5 needs allow_large_eps: true"
            )
        return eps


def _several(value: object) -> str:
    """The tag of a value of `ball`: one section, or a list of them."""
    return "<list>" if isinstance(value, list) else "<map>"


def _apart(balls: list[BallConfig]) -> list[BallConfig]:
    """The balls of a union. Raises ValueError for two of one norm: the smaller lies inside the larger."""
    norms = [ball.norm for ball in balls]
    if twice := [norm for k, norm in enumerate(norms) if norm in norms[:k]]:
        raise ValueError(f"two balls of norm {twice[0]}: the smaller lies inside the larger; keep one")
    return balls


#: One threat, or the union of several.
Balls = Annotated[
    Annotated[BallConfig, Tag("<map>")]
    | Annotated[list[BallConfig], Field(min_length=2), AfterValidator(_apart), Tag("<list>")],
    Discriminator(_several),
]


def wrong_radius(name: str, eps: float, norm: str) -> str:
    """Why no image can need this radius, "" where one can: below 255, somebody meant 8/255 and wrote 8."""
    largest = LARGEST[norm]
    if norm == "l0" and eps != int(eps):
        return f"{name}={eps:.6g}: under l0 it is how many pixels may change, a whole number such as 5"
    if eps <= largest:
        return ""
    if norm == "l0":
        return f"{name}={eps:.0f}: no image has more than {largest:.0f} pixels"
    limit = "" if norm == "linf" else f" is beyond {norm} <= {largest:g}"
    hint = f"did you mean {eps:g}/255?" if eps < 255 else f"it must be <= {largest:g}"
    return f"{name}={eps}{limit} on the [0,1] scale; {hint}"


class SearchConfig(Section):
    """How attacks compute; verdicts are always fp32 on the original model."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto = bf16 where the hardware has it"
    )
    fold_bn: Flag = Field(
        default=True, description="fold batch normalisation into convolutions on the attack's copy"
    )
    channels_last: Flag = Field(default=True, description="memory layout of the attack's copy")
    compile: Literal["auto", "on", "off", "graph"] = Field(
        default="auto",
        description="the attack's copy: on = torch.compile, graph = CUDA graphs, off = as it is; "
        "auto = on CUDA the fastest",
    )
    eot: Int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="draws averaged per answer; null = 1; of a randomised model 20, in long searches fewer",
    )
    bpda: Flag = Field(
        default=False, description="gradients pass straight through rounding, signs and integer casts"
    )
    rescale: Flag = Field(
        default=False, description="bring logits to a scale where cross-entropy has gradients"
    )

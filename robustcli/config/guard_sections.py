"""The section `guard`: how defences in front of a model are fitted."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from robustcli.config.number import Int, Number
from robustcli.config.spec import Section


class GuardFit(Section):
    """How a defence's own network is trained: by Adam, on clean training images.

    The length is one of steps by default: data of any size then give an autoencoder that has learned.
    """

    exclusive: ClassVar[tuple[str, ...]] = ("epochs", "steps")
    usual: ClassVar[tuple[str, Any] | None] = ("steps", 2000)
    epochs: Number | None = Field(default=None, gt=0, description="length in passes over the images instead")
    steps: Int | None = Field(
        default=None, ge=1, description="length in optimiser steps; 2,000 when no length is given"
    )
    lr: Number = Field(default=0.005, gt=0, le=1, description="learning rate; it falls linearly to 0")
    batch_size: Int = Field(default=64, ge=1, le=2**20, description="images per step and per pass")

    @field_validator("steps")
    @classmethod
    def _one_length(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.only_one(value, info)


class Calibration(Section):
    """The clean images on which thresholds are set; no test image is ever among them."""

    n: Int | None = Field(default=None, ge=1, description="images; null = all that there are for it")
    share: Number = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="of the training images where there is no validation split; nothing is fitted on them",
    )


class GuardConfig(Section):
    """Thresholds and training of the defences."""

    fpr: Number = Field(
        default=0.05, gt=0, lt=1, description="share of clean images that all detectors together may reject"
    )
    scale: Number = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="logits per spread of a score; moves no decision, only the slope that an attack sees",
    )
    fit: GuardFit = Field(default=GuardFit(), description="training of a defence's own network")
    calibration: Calibration = Field(default=Calibration(), description="the images behind the thresholds")

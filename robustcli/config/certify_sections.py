"""The section `certify`: what is proven, by which method, and with how much work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from robustcli.config.number import Flag, Int, Number
from robustcli.config.spec import Section

Radius = Annotated[Number, Field(gt=0)]
Method = Literal["smoothing", "ibp", "crown-ibp", "crown", "alpha-crown", "cascade"]


class SmoothingConfig(Section):
    """Randomised smoothing: noise on the pixels, and how many draws say what the most frequent class is."""

    noise: Literal["gaussian", "uniform"] = Field(
        default="gaussian", description="gaussian proves l2 radii, uniform l1 radii"
    )
    sigma: Number = Field(
        default=0.25, gt=0, le=100, description="standard deviation of the noise, pixel units of [0, 1]"
    )
    n0: Int = Field(default=100, ge=1, le=2**31, description="draws that choose the class")
    n: Int = Field(default=100_000, ge=1, le=2**31, description="draws that bound its chance, n0 or more")
    alpha: Number = Field(
        default=0.001, gt=0, lt=1, description="chance that the certificate of a sample is false"
    )
    stop: Flag = Field(default=True, description="give up samples that would surely be abstained")
    enough: Number | None = Field(
        default=None,
        gt=0,
        description="a radius beyond which none is asked for: sampling ends where it is proven; null = none",
    )

    @field_validator("n")
    @classmethod
    def _as_many(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("n0")
        if least is not None and value < least:
            raise ValueError(f"n={value} is below n0={least}: give n0 or more draws")
        return value


def _listed(value: Any) -> Any:
    """The numbers of a text such as "1/255,2/255", and a single number, as a list."""
    if isinstance(value, str):
        return value.split(",")
    if isinstance(value, (int, float)):
        return [value]
    return value


class CertifyConfig(Section):
    """What the certify verb proves."""

    method: Method | None = Field(
        default=None,
        description="null = cascade where every layer has bounds, else smoothing where the norm is l2",
    )
    radii: Annotated[list[Radius], BeforeValidator(_listed)] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="pixel units of [0, 1], that of the ball is added; null = quarters of the ball's radius",
    )
    smoothing: SmoothingConfig = Field(default=SmoothingConfig(), description="randomised smoothing")
    alpha_steps: Int = Field(
        default=20, ge=1, le=10_000, description="steps that optimise the slopes of alpha-crown"
    )
    budget: Number | None = Field(
        default=None, gt=0, description="seconds per image, after which it is unknown; null = no limit"
    )
    shard_size: Int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="samples per shard, the unit of a resume; null = as in eval, 16 where they are smoothed",
    )

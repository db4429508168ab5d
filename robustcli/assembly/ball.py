"""The threat that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.config.sections import BallConfig
from robustcli.core.geometry import Ball
from robustcli.data.bundle import DataBundle
from robustcli.errors import ConfigError
from robustcli.reporting.cells import format_eps
from robustcli.terminal.console import Console


def make_ball(config: BallConfig, data: DataBundle, console: Console) -> Ball:
    """The configured ball. Without an eps the radius is the data set's preset, which is printed.

    Raises ConfigError: neither the configuration nor the data set has a radius for this norm; more pixels may
    change under l0 than the images have.
    """
    norm, eps = config.norm, config.eps
    if eps is not None:
        if norm == "l0" and (what := beyond_pixels(eps, data.shape)):
            raise ConfigError(what, where="ball.eps", hint="count pixels, not the values of their channels")
        return Ball(norm, float(eps))
    preset = data.presets.get(norm)
    if preset is None:
        raise ConfigError(
            f"no epsilon preset for data {data.name!r} under {norm}",
            where="ball.eps",
            hint="set ball.eps (8/255 is usual for 32x32 photographs, 4/255 for 224x224, both linf)",
        )
    console.info(f"ball: {norm}, eps {format_eps(preset, norm)}, the preset of {data.name}")
    return Ball(norm, float(preset))


def beyond_pixels(eps: float, shape: Sequence[int]) -> str:
    """Why eps pixels are too many for images of this shape (C, H, W); "" where they are not."""
    channels, height, width = shape
    if eps <= height * width:
        return ""
    what = f"eps={eps:.0f} under l0, and images of {height} x {width} have {height * width:,} pixels"
    if channels > 1:
        what += f" of {channels} channels"
    return what

"""The threat that a configuration names."""

from __future__ import annotations

from robustcli.config.schema import Config
from robustcli.core.geometry import Ball
from robustcli.data.bundle import DataBundle
from robustcli.errors import ConfigError
from robustcli.reporting.cells import format_eps
from robustcli.terminal.console import Console


def make_ball(config: Config, data: DataBundle, console: Console) -> Ball:
    """The configured ball. Without an eps the radius is the data set's preset, which is printed.

    Raises ConfigError: neither the configuration nor the data set has a radius for this norm.
    """
    norm, eps = config.ball.norm, config.ball.eps
    if eps is not None:
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

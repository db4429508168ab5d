"""What every verb needs before it builds a model: seed, threads, device, data and ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustcli.assembly.ball import make_ball
from robustcli.config.number import parse_number
from robustcli.config.schema import Config
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.runtime.device import pick_device, threads
from robustcli.runtime.precision import allow_tf32
from robustcli.runtime.seed import seed_all
from robustcli.terminal.console import Console


@dataclass(frozen=True)
class Setting:
    """Device, data and threat of one run."""

    config: Config
    device: torch.device
    data: DataBundle
    ball: Ball

    @property
    def classes(self) -> int:
        """Number of classes of the data."""
        return len(self.data.classes)


def prepare(config: Config, console: Console) -> Setting:
    """The setting that a configuration asks for; seeds this process and sets its threads."""
    device = pick_device(config.device)
    threads(config.threads)
    allow_tf32(False)
    seed_all(config.seed, config.deterministic)
    if config.data.storage == "cached":
        console.info("storage: cached; what is not in the cache is decoded first, which may take long")
    data = load_data(config.data, allow_download=config.data.download)
    for note in data.notes:
        console.info(note)
    setting = Setting(config, device, data, make_ball(config, data, console))
    _warn_of_long_steps(setting, console)
    return setting


def _warn_of_long_steps(setting: Setting, console: Console) -> None:
    """Warn of a step size above 2 eps: such a step crosses the whole ball."""
    config, eps = setting.config, setting.ball.eps
    specs: dict[str, Spec] = {"adversary": config.adversary}
    specs |= {f"attacks.{k}": spec for k, spec in enumerate(config.attacks)}
    for path, spec in specs.items():
        size = spec.params.get("step_size")
        if size is not None and parse_number(size) > 2 * eps:
            console.warn(
                f"{path}.step_size {size} is more than twice eps {eps:.4g}: every step crosses the whole ball"
            )

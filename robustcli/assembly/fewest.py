"""How few images a training pass may have: BatchNorm has no variance of a single value."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.assembly.setting import Setting
from robustcli.core.modes import watched
from robustcli.errors import ConfigError
from robustcli.runtime.distributed import Ranks


def fewest_images(setting: Setting, model: nn.Module, ranks: Ranks) -> int:
    """1, or 2 where a single image would leave a BatchNorm layer one value per channel.

    Raises ConfigError: the configured training has such passes.
    """
    images = _smallest_pass(setting, ranks)
    layer = _starved(setting, model)
    if not layer:
        return 1
    if images > 1:
        return 2
    micro = setting.config.train.micro_batch
    key = "train.batch_size" if micro is None else "train.micro_batch"
    raise ConfigError(
        f"a pass over 1 image leaves BatchNorm layer {layer} one value per channel, which has no variance",
        where=f"{key}={setting.config.train.batch_size if micro is None else micro}",
        hint="let each pass have 2 images or more, or choose a model without BatchNorm there",
    )


def _smallest_pass(setting: Setting, ranks: Ranks) -> int:
    """Images of the smallest pass of a step on one rank."""
    train = setting.config.train
    rows = max(1, min(train.batch_size, len(setting.data.train)) // ranks.world)
    size = min(train.micro_batch or rows, rows)
    return rows % size or size


def _starved(setting: Setting, model: nn.Module) -> str:
    """The name of the first BatchNorm layer to which one image gives one value per channel; "" for none."""
    found: list[str] = []

    def reader(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(inputs[0], torch.Tensor) and inputs[0][:, 0].numel() == 1:
                found.append(name)

        return look

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return ""
    with watched(model, [module.register_forward_pre_hook(reader(name)) for name, module in norms]):
        model(torch.full((1, *setting.data.shape), 0.5, device=setting.device))
    return found[0] if found else ""

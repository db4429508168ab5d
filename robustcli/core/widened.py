"""First convolutions on eight channels: tensor cores read channels in eights, images have three or one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHANNELS = 8


class WideConv(nn.Conv2d):
    """W * x with zeros appended to the channels of both: [B, C, H, W], C < 8 -> what `conv` answers.

    Args:
        conv: a plain convolution of C channels, padded with zeros. Its weights are copied; `weight[:, :C]`
            are theirs.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            _CHANNELS,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        with torch.no_grad():
            self.weight.zero_()[:, : conv.in_channels].copy_(conv.weight)
            if self.bias is not None and conv.bias is not None:
                self.bias.copy_(conv.bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """As of nn.Conv2d."""
        return super().forward(F.pad(input, (0, 0, 0, 0, 0, _CHANNELS - input.shape[1])))


def narrow(network: nn.Module) -> list[str]:
    """Names of the convolutions that read fewer than eight channels: plain ones, without groups or hooks."""
    return [name for name, module in network.named_modules() if name and _narrow(module)]


def widen(network: nn.Module) -> None:
    """Put a `WideConv` in the place of each of them; the names of all parameters stay."""
    for name in narrow(network):
        conv, (parent, _, own) = network.get_submodule(name), name.rpartition(".")
        assert isinstance(conv, nn.Conv2d)
        wide = WideConv(conv).train(conv.training)
        setattr(network.get_submodule(parent), own, wide.requires_grad_(conv.weight.requires_grad))


def _narrow(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d or module._forward_hooks or module._forward_pre_hooks:
        return False
    return module.in_channels < _CHANNELS and module.groups == 1 and module.padding_mode == "zeros"

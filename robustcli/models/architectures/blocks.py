"""Parameter types, activations, stages and the initialisation that the architectures share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from robustcli.runtime.generators import generators_as_before

M = TypeVar("M", bound=nn.Module)

Count = Annotated[int, Field(strict=True, ge=1, le=16384)]  # channels, units; strict: `true` is not 1
Stride = Annotated[int, Field(strict=True, ge=1, le=8)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]  # dropout probability
Activation = Literal["relu", "silu", "gelu"]
Stem = Literal["cifar", "imagenet"]
Padding = Literal["centre", "same"]  # of a 3x3 convolution of stride 2: a pixel on each side, or TensorFlow's
Block = Callable[[int, int, int], nn.Module]  # (input channels, output channels, stride) -> block
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def activation_layer(name: Activation) -> nn.Module:
    """max(0, u), u * sigmoid(u) or u * Phi(u); never in place, since an attack reads the input again.

    Phi is the normal distribution function. The last two are smooth and have bounds (`core.bounds`).
    Source: SiLU and GELU, Hendrycks and Gimpel, 2016, arXiv:1606.08415. Under adversarial training: Xie et
    al., 2020, arXiv:2006.14536.
    """
    return _ACTIVATIONS[name]()


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution, padding 1, no bias: a BatchNorm or the next block's BatchNorm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def padded3x3(inputs: int, outputs: int, stride: int, padding: Padding) -> tuple[nn.Module, nn.Conv2d]:
    """(what pads, 3x3 convolution without bias). They differ from `conv3x3` where `same` meets stride 2.

    There one pixel is added right and below, as TensorFlow and JAX do for sides that 2 divides.
    """
    if padding == "centre" or stride == 1:
        return nn.Identity(), conv3x3(inputs, outputs, stride)
    return nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, outputs, 3, stride, bias=False)


def stages(block: Block, inputs: int, outputs: Sequence[int], counts: Sequence[int]) -> nn.Sequential:
    """Stage i: counts[i] blocks of outputs[i] channels. The first block of every later stage halves H and W.

    Args:
        block: makes one block.
        inputs: channels before the first stage.
        outputs: channels of each stage.
        counts: blocks of each stage, >= 1.
    """
    built = nn.Sequential()
    strides = [1] + [2] * (len(outputs) - 1)
    for (before, after), stride, count in zip(pairwise((inputs, *outputs)), strides, counts, strict=True):
        first = block(before, after, stride)
        built.append(nn.Sequential(first, *(block(after, after, 1) for _ in range(count - 1))))
    return built


def kaiming(net: M) -> M:
    """std = sqrt(2 / fan-out) for convolutions, sqrt(2 / fan-in) for hidden linear layers.

    The last linear layer has sqrt(1 / fan-in): no rectifier follows it. BatchNorm starts as the identity,
    biases at 0. Draws from the default generator: call it inside `seeded`.
    Returns `net`. Source: He et al., ICCV 2015, arXiv:1502.01852, eq. 10 and 14.
    """
    if all(parameter.is_meta for parameter in net.parameters()):
        return net  # shapes alone are wanted, and drawing on "meta" would import torch's compiler
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            follower: Literal["linear", "relu"] = "linear" if module is linear[-1] else "relu"
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=follower)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return net


def truncated(net: M, *kinds: type[nn.Module]) -> M:
    """Weights of layers of these kinds: normal with std 0.02, cut at 2; biases 0. Returns `net`."""
    if all(parameter.is_meta for parameter in net.parameters()):
        return net
    for module in net.modules():
        if isinstance(module, kinds) and isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every CPU generator (torch, numpy, random) follows `seed` inside; afterwards each has its old state.

    torch.manual_seed would reseed the GPUs as well. Models are built on the CPU, so only its generator is
    set. Threads come in one after another.
    """
    with generators_as_before():
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield

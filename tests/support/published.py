"""Published robust networks in plain torch, with the names of their authors' files; small where they may be.

Written from the authors' definitions, independent of `robustcli.models.architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Act = Callable[[Tensor], Tensor]


def conv(a: int, b: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride, padding, bias=False)


def same(x: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME padding of a 3x3 convolution, for even sides."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


def drawn(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics, in eval mode; logits of about 1."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if (
                not tensor.is_floating_point()
                or name.endswith(("mean", "std", "mu", "sigma"))
                and "running" not in name
            ):
                continue
            if name.endswith("running_var") or tensor.ndim < 2 and name.endswith("weight"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draws))
            else:
                fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 25
                tensor.copy_(torch.randn(tensor.shape, generator=draws) / fan**0.5)
    return net.eval()


# --- wide residual networks ---------------------------------------------------------------------------------


class TradesBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(a), nn.BatchNorm2d(b)
        self.conv1, self.conv2 = conv(a, b, 3, stride, 1), conv(b, b, 3, 1, 1)
        self.equal = a == b
        if not self.equal:
            self.convShortcut = conv(a, b, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(u))))
        return y + (x if self.equal else self.convShortcut(u))


class Layers(nn.Module):
    """What the authors call a block of layers: `layer` or `block`."""

    def __init__(self, name: str, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x)


def group(
    block: Callable[[int, int, int], nn.Module], a: int, b: int, n: int, stride: int
) -> list[nn.Module]:
    return [block(a if i == 0 else b, b, stride if i == 0 else 1) for i in range(n)]


class TradesWRN(nn.Module):
    def __init__(self, depth: int, width: int, classes: int, sub_block: bool) -> None:
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = conv(3, 16, 3, 1, 1)
        self.block1 = Layers("layer", group(TradesBlock, w[0], w[1], n, 1))
        if sub_block:  # never asked, as in TRADES
            self.sub_block1 = Layers("layer", group(TradesBlock, w[0], w[1], n, 1))
        self.block2 = Layers("layer", group(TradesBlock, w[1], w[2], n, 2))
        self.block3 = Layers("layer", group(TradesBlock, w[2], w[3], n, 2))
        self.bn1, self.fc = nn.BatchNorm2d(w[3]), nn.Linear(w[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class DeepMindBlock(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(a), nn.BatchNorm2d(b)
        self.conv_0, self.conv_1 = conv(a, b, 3, stride), conv(b, b, 3, 1, 1)
        self.stride, self.projects = stride, a != b
        if self.projects:
            self.shortcut = conv(a, b, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        u = self.batchnorm_0(x)
        u = u * torch.sigmoid(u)
        y = self.batchnorm_1(self.conv_0(same(u, self.stride)))
        y = self.conv_1(y * torch.sigmoid(y))
        return y + (self.shortcut(u) if self.projects else x)


class DeepMindWRN(nn.Module):
    def __init__(
        self, depth: int, width: int, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.init_conv = conv(3, 16, 3, 1, 1)
        self.layer = nn.Sequential(
            *(Layers("block", group(DeepMindBlock, w[i], w[i + 1], n, 2 if i else 1)) for i in range(3))
        )
        self.batchnorm, self.logits = nn.BatchNorm2d(w[3]), nn.Linear(w[3], classes)
        self.by = [torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std)]  # not in the file

    def forward(self, x: Tensor) -> Tensor:
        x = self.batchnorm(self.layer(self.init_conv((x - self.by[0]) / self.by[1])))
        return self.logits((x * torch.sigmoid(x)).mean((2, 3)))


# --- pre-activation ResNet-18 -------------------------------------------------------------------------------


class PreAct(nn.Module):
    def __init__(self, a: int, b: int, stride: int, from_input: bool) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(a), nn.BatchNorm2d(b)
        self.conv1, self.conv2 = conv(a, b, 3, stride, 1), conv(b, b, 3, 1, 1)
        self.from_input = from_input
        if stride != 1 or a != b:
            self.shortcut = nn.Sequential(conv(a, b, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        u, s = F.relu(self.bn1(x)), x
        if hasattr(self, "shortcut"):
            s = self.shortcut(x if self.from_input else u)
        return self.conv2(F.relu(self.bn2(self.conv1(u)))) + s


class PreActNet(nn.Module):
    """Rice et al. (`last`), or Wong et al. (neither `last` nor an activation before the shortcut)."""

    def __init__(self, width: int, classes: int, last: bool) -> None:
        super().__init__()
        w = [width * k for k in (1, 1, 2, 4, 8)]
        self.conv1, self.last = conv(3, width, 3, 1, 1), last
        for i in range(4):
            made = group(lambda a, b, s: PreAct(a, b, s, not last), w[i], w[i + 1], 2, 2 if i else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*made))
        if last:
            self.bn = nn.BatchNorm2d(w[4])
        self.linear = nn.Linear(w[4], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = F.relu(self.bn(x)) if self.last else x
        return self.linear(x.mean((2, 3)))


class DeepMindPreAct(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.batchnorm_1 = nn.BatchNorm2d(a), nn.BatchNorm2d(b)
        self.conv_2d_1, self.conv_2d_2 = conv(a, b, 3, stride), conv(b, b, 3, 1, 1)
        self.stride = stride
        if stride != 1 or a != b:
            self.shortcut = conv(a, b, 3, stride)

    def forward(self, x: Tensor) -> Tensor:
        s = self.shortcut(same(x, self.stride)) if hasattr(self, "shortcut") else x
        y = self.conv_2d_1(same(F.silu(self.batchnorm_0(x)), self.stride))
        return self.conv_2d_2(F.silu(self.batchnorm_1(y))) + s


class DeepMindPreActNet(nn.Module):
    def __init__(self, width: int, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        w = [width * k for k in (1, 1, 2, 4, 8)]
        self.conv_2d = conv(3, width, 3, 1, 1)
        for i in range(4):
            self.add_module(
                f"layer_{i}", nn.Sequential(*group(DeepMindPreAct, w[i], w[i + 1], 2, 2 if i else 1))
            )
        self.batchnorm, self.logits = nn.BatchNorm2d(w[4]), nn.Linear(w[4], classes)
        self.by = [torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2d((x - self.by[0]) / self.by[1])
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(x))))
        return self.logits(F.silu(self.batchnorm(x)).mean((2, 3)))


# --- ResNet -------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A basic block or, `deep`, a bottleneck; `side` names what projects."""

    def __init__(self, a: int, b: int, stride: int, deep: bool, side: str) -> None:
        super().__init__()
        inner, self.deep, self.side = (b // 4 if deep else b), deep, side
        if deep:
            self.conv1, self.conv2, self.conv3 = (
                conv(a, inner, 1),
                conv(inner, inner, 3, stride, 1),
                conv(inner, b, 1),
            )
            self.bn3 = nn.BatchNorm2d(b)
        else:
            self.conv1, self.conv2 = conv(a, b, 3, stride, 1), conv(b, b, 3, 1, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
        if stride != 1 or a != b:
            self.add_module(side, nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (getattr(self, self.side)(x) if hasattr(self, self.side) else x))


class ResNet(nn.Module):
    """Code for CIFAR (`shortcut`, `linear`, 3x3 stem), or torchvision's (`downsample`, `fc`, 7x7 stem)."""

    def __init__(self, width: int, classes: int, deep: bool, cifar: bool) -> None:
        super().__init__()
        self.cifar, times = cifar, 4 if deep else 1
        w = [width, *(width * times * k for k in (1, 2, 4, 8))]
        self.conv1 = conv(3, width, 3, 1, 1) if cifar else conv(3, width, 7, 2, 3)
        self.bn1 = nn.BatchNorm2d(width)
        for i, n in enumerate((3, 4, 6, 3) if deep else (2, 2, 2, 2)):
            side = "shortcut" if cifar else "downsample"
            made = group(lambda a, b, s: Residual(a, b, s, deep, side), w[i], w[i + 1], n, 2 if i else 1)  # noqa: B023
            self.add_module(f"layer{i + 1}", nn.Sequential(*made))
        self.add_module("linear" if cifar else "fc", nn.Linear(w[4], classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = x if self.cifar else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))
        return (self.linear if self.cifar else self.fc)(x)


class Normalised(nn.Module):
    """A normaliser around a network; `names` are those of its mean and std, and of the network."""

    def __init__(
        self, net: nn.Module, names: tuple[str, str, str], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        holder = self
        *path, first = names[0].split(".")
        for part in path:
            holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        self.holder, self.first, self.second = [holder], first, names[1]
        holder.register_buffer(first, torch.tensor(mean).view(1, 3, 1, 1))
        holder.register_buffer(names[1], torch.tensor(std).view(1, 3, 1, 1))
        self.add_module(names[2], net)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = getattr(self.holder[0], self.first), getattr(self.holder[0], self.second)
        net = [m for m in self.children() if m is not self.holder[0]][-1]
        return net((x - mean) / std)

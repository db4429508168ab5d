"""Small networks with every operation that has bounds, for the tests of bounds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (2, 6, 6)


class Residual(nn.Module):
    """Branches, BatchNorm, constants that are made of a buffer, functions and methods of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]))
        self.register_buffer("std", torch.tensor([0.3, 0.2]))
        self.a, self.bn = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, 2, 1, groups=2)
        self.side = nn.Conv2d(4, 4, 1, 2)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean.view(1, -1, 1, 1)) / self.std[:, None, None]
        h = torch.relu(self.bn(self.a(x)))
        h = F.leaky_relu(self.b(h) - 0.5 * self.side(h), 0.1) + 1
        h = -h.mean((2, 3)) * 2
        out: Tensor = self.head(self.drop(h))
        return out


class Joined(nn.Module):
    """Concatenation, padding, upsampling, permutation, a view by the size of the batch, a plain product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, dilation=2), nn.Conv2d(2, 2, 3, 2)
        self.head = nn.Linear(112, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).sigmoid(), F.hardtanh(self.b(x), -0.4, 0.3)
        h = torch.cat((F.interpolate(a, scale_factor=2), F.pad(b, (1, 1, 1, 1))), 1)
        h = F.avg_pool2d(h[:, :5, 1:], 2, 1, 1).permute(0, 2, 3, 1)
        h = torch.cat((h.reshape(x.size(0), -1).tanh()[:, None].squeeze(1),), 1)
        h = F.pad(h, (0, 112 - h.shape[1]))
        out: Tensor = h @ self.head.weight.T + self.head.bias
        return out


def pooled(act: Callable[[], nn.Module]) -> nn.Module:
    """Convolution, one activation, overlapping max pooling with padding, average pooling, hidden layer."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        act(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(3, 4, 2, padding=1),
        act(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(16),
        nn.Linear(16, 6),
        act(),
        nn.Linear(6, 3),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "joined": Joined,
    "relu": lambda: pooled(nn.ReLU),
    "leaky": lambda: pooled(lambda: nn.LeakyReLU(0.2)),
    "relu6": lambda: pooled(lambda: nn.Hardtanh(0, 0.5)),
    "silu": lambda: pooled(nn.SiLU),
    "gelu": lambda: pooled(nn.GELU),
    "gelu-tanh": lambda: pooled(lambda: nn.GELU(approximate="tanh")),
    "sigmoid": lambda: pooled(nn.Sigmoid),
    "tanh": lambda: pooled(nn.Tanh),
}


def made(name: str, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """One of NETS with random weights and statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = NETS[name]()
    with torch.no_grad():
        for p in net.parameters():
            fan = max(1, p[0].numel())
            p.copy_(scale * 2 * torch.randn(p.shape, generator=generator) / fan**0.5)
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return net.eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Random pixels [count, *SHAPE]."""
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed))

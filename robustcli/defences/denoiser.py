"""The image without its Gaussian noise: what lets a network be certified that was never trained on noise."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from robustcli.core.losses import wide
from robustcli.registry import defences


class Denoiser(nn.Module):
    """x -> min(max(x - R(x), 0), 1), R a stack of convolutions that begins as 0.

    In train mode the answer is not cut to [0, 1], so that every pixel has a gradient.

    Args:
        depth: convolutions, >= 2.
        width: channels between them.
        noise: standard deviation of the noise that `loss` adds, in units of [0, 1].
    """

    def __init__(self, depth: int, width: int, noise: float) -> None:
        super().__init__()
        self.depth, self.width, self.noise = depth, width, noise
        self.residual: nn.Sequential | None = None
        self.limit = nn.Hardtanh(0.0, 1.0)

    def shaped(self, shape: tuple[int, int, int], num_classes: int) -> None:  # noqa: ARG002
        """Build R for images (C, H, W), from torch's default generator."""
        layers: list[nn.Module] = [nn.Conv2d(shape[0], self.width, 3, padding=1), nn.ReLU()]
        for _ in range(self.depth - 2):
            conv = nn.Conv2d(self.width, self.width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(self.width), nn.ReLU()]
        last = nn.Conv2d(self.width, shape[0], 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.residual = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """The image [B, C, H, W], in the type of x. Raises ValueError before `shaped`."""
        if self.residual is None:
            raise ValueError("the denoiser has no shape yet; call shaped((C, H, W), num_classes) first")
        noisy = x.to(self.residual[0].weight.dtype)  # type: ignore[arg-type]
        left: Tensor = noisy - self.residual(noisy)
        if not self.training:
            left = self.limit(left)
        return left.to(x.dtype)

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error of x [B, C, H, W] and what is left of x with noise: a scalar."""
        return mse_loss(wide(self(x + self.noise * torch.randn_like(x))), wide(x))


@defences.register(
    "denoiser",
    kind="purifier",
    random=False,
    differentiable=True,
    fit="training",
    use="certificates by smoothing for a network that was never trained on noise (`train.front`)",
)
def denoiser(
    *,
    depth: Annotated[int, Ge(2), Le(64)] = 17,
    width: Annotated[int, Ge(1), Le(1024)] = 64,
    noise: Annotated[float, Ge(0), Le(10)] = 0.25,
) -> nn.Module:
    """x' = x - R(x), cut to [0, 1],  R minimises E |x + noise n - R(x + noise n) - x|^2,  n ~ N(0, 1).

    R is DnCNN: depth convolutions 3x3 of width channels, ReLU between them, BatchNorm in all but the first
    and the last. noise is in units of [0, 1] and used by `guard fit`. `train` with `train.front` and the
    objective `denoise` trains the same module on what the classifier behind it answers.

    Source: Salman et al., NeurIPS 2020, arXiv:2003.01908; DnCNN: Zhang et al., TIP 2017, arXiv:1608.03981.
    """
    return Denoiser(depth, width, noise)

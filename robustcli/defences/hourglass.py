"""A small autoencoder, for the defences that learn what clean images look like."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from robustcli.core.losses import wide


class Hourglass(nn.Module):
    """x [B, C, H, W] in [0, 1] -> logits of pixels of that shape, through `code` channels of H/4 x W/4.

    Any C and any H, W >= 1: each step up goes back to the size that the step down met.
    """

    def __init__(self, channels: int, width: int, code: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.code = nn.Conv2d(2 * width, code, 3, 2, 1)
        self.back = nn.Conv2d(code, 2 * width, 3, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(self.head(x).relu()).relu()
        inner = self.back(self.code(half)).relu()
        inner = self.up(interpolate(inner, half.shape[2:])).relu()
        answer: Tensor = self.tail(interpolate(inner, x.shape[2:]))
        return answer


class Learner(nn.Module):
    """What a defence with an autoencoder has in common.

    Args:
        width: channels of the first layer.
        code: channels of the narrowest one.
        noise: standard deviation of the noise that training takes away again, in units of [0, 1].
    """

    def __init__(self, width: int, code: int, noise: float) -> None:
        super().__init__()
        self.width, self.narrow, self.noise = width, code, noise
        self.net: Hourglass | None = None

    def shaped(self, shape: tuple[int, int, int], num_classes: int) -> None:  # noqa: ARG002
        """Build the autoencoder for images (C, H, W), from torch's default generator."""
        self.net = Hourglass(shape[0], self.width, self.narrow)

    def rebuilt(self, x: Tensor) -> Tensor:
        """The autoencoder's answer to x [B, C, H, W], in the type of x.

        Raises ValueError before `shaped`.
        """
        return self._raw(x).sigmoid().to(x.dtype)

    def _raw(self, x: Tensor) -> Tensor:
        if self.net is None:
            raise ValueError("the autoencoder has no shape yet; call shaped((C, H, W), num_classes) first")
        answer: Tensor = self.net(x.to(self.net.head.weight.dtype))
        return answer

    def loss(self, x: Tensor) -> Tensor:
        """Cross-entropy of the pixels x [B, C, H, W] and those rebuilt from x with noise: a scalar.

        As with the squared error the mean of the pixel is the best answer. The squared error has no slope
        where the sigmoid is 0, and so it never left the black image on MNIST.
        """
        noisy = (x + self.noise * torch.randn_like(x)).clamp(0, 1)
        return binary_cross_entropy_with_logits(wide(self._raw(noisy)), wide(x))

"""The distance to the nearest class, in logits."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.losses import wide
from robustcli.defences.ballot import Behind
from robustcli.registry import defences


class Mahalanobis(nn.Module):
    """score = min_k (z - mu_k)' C^-1 (z - mu_k), over the classes that the data had.

    Attributes:
        means: mu_k W for each class, [K, K], float32.
        whitening: W [K, K] with W W' = C^-1, float32.
        seen: bool [K], the classes with a mean.
    """

    means: Tensor
    whitening: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._observed: list[tuple[Tensor, Tensor]] = []

    def shaped(self, shape: tuple[int, int, int], num_classes: int) -> None:  # noqa: ARG002
        """Room for the means of K classes; until `settle` all are 0 and C is the identity."""
        self.register_buffer("means", torch.zeros(num_classes, num_classes))
        self.register_buffer("whitening", torch.eye(num_classes))
        self.register_buffer("seen", torch.ones(num_classes, dtype=torch.bool))

    def observe(self, x: Tensor, y: Tensor, logits: Tensor, net: Behind) -> None:  # noqa: ARG002
        """Keep the logits [B, K] of clean images with labels y [B]."""
        self._observed.append((logits.detach().double().cpu(), y.cpu()))

    def settle(self) -> None:
        """Means of the classes, and the covariance around them with Ledoit and Wolf's shrinkage."""
        logits, y = (torch.cat(parts) for parts in zip(*self._observed, strict=True))
        self._observed = []
        count = y.bincount(minlength=len(self.means))
        sums = torch.zeros(self.means.shape, dtype=torch.float64).index_add_(0, y, logits)
        means = sums / count.clamp_min(1)[:, None]
        whitening = _whitening(logits - means[y])
        self.seen.copy_(count > 0)
        self.whitening.copy_(whitening)
        self.means.copy_(means @ whitening)

    def forward(self, x: Tensor, logits: Tensor, net: Behind) -> Tensor:  # noqa: ARG002
        with torch.autocast(logits.device.type, enabled=False):
            placed = wide(logits) @ self.whitening
        apart = (placed[:, None] - self.means).square().sum(2)
        nearest: Tensor = apart.masked_fill(~self.seen, torch.inf).amin(1)
        return nearest


def _whitening(residuals: Tensor) -> Tensor:
    """W [F, F] with W W' = C^-1 for residuals [N, F]; directions without spread count nothing."""
    covariance: Any = importlib.import_module("sklearn.covariance")  # late: it takes a second
    shrunk = torch.from_numpy(covariance.ledoit_wolf(residuals.numpy(), assume_centered=True)[0])
    spread, axes = torch.linalg.eigh(shrunk)
    kept = spread > spread[-1].clamp_min(0) * 1e-12
    whitening: Tensor = axes * torch.where(kept, spread, torch.inf).rsqrt()
    return whitening


@defences.register(
    "mahalanobis",
    kind="detector",
    random=False,
    differentiable=True,
    fit="statistics",
    use="images unlike every class; needs labelled clean images, and no pass",
)
def mahalanobis() -> nn.Module:
    """score = min_k (z - mu_k)' C^-1 (z - mu_k),  mu_k: mean of class k, C: their common covariance.

    In squared standard deviations. C is shrunk as Ledoit & Wolf (2004) do. The features z are the logits, the
    only ones that every network and every vote has. The paper takes hidden layers too, adds noise to the
    image, and weighs the layers by labelled adversarial images.

    Source: Lee et al., NeurIPS 2018, arXiv:1807.03888.
    """
    return Mahalanobis()

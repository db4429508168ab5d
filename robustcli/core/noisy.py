"""Gaussian noise around images, and a classifier as it answers on average under that noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustcli.core.losses import mean_ce, wide
from robustcli.core.random import RowRandom
from robustcli.core.types import Batch, Classifier

_STREAM = "noise"


def noise(x: Tensor, rng: RowRandom, *, sigma: float, copies: int) -> list[Tensor]:
    """sigma n_1, ..., sigma n_M with n_m ~ N(0, 1) for each pixel; M tensors like x [B, C, H, W].

    The draws are a function of seed, epoch and sample id: an attack and a loss that are given streams of the
    same rows get the same noise, and so does each further call.

    Args:
        x: pixels [B, C, H, W]; only shape, type and device are used.
        rng: one random stream per row; which purpose it was made for does not matter.
        sigma: standard deviation in pixel units of [0, 1], >= 0.
        copies: M, >= 1.

    Raises:
        ValueError: sigma < 0, or copies < 1.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and >= 0, got {sigma}")
    if copies < 1:
        raise ValueError(f"copies must be >= 1, got {copies}")
    own = rng.stream(_STREAM)
    return [own.normal(tuple(x.shape[1:])).mul_(sigma).to(x.dtype) for _ in range(copies)]


def noisy(x: Tensor, drawn: list[Tensor]) -> Tensor:
    """x + n_m for each m, one copy of the batch after the other: [M * B, C, H, W], not cut to [0, 1]."""
    return torch.cat([x + own for own in drawn])


def noisy_ce(logits: Tensor, batch: Batch, copies: int, smoothing: float) -> Tensor:
    """mean_m CE(z_m, y) of logits [M * B, K] of `noisy` images: a scalar, see `mean_ce`."""
    y_soft = None if batch.y_soft is None else torch.cat([batch.y_soft] * copies)
    return mean_ce(logits, torch.cat([batch.y] * copies), y_soft, smoothing)


def soft_vote(logits: Tensor, copies: int) -> Tensor:
    """log mean_m softmax(z_m): [B, K], log-probabilities, from logits [M * B, K] of `noisy` images."""
    parts = wide(logits).log_softmax(1).unflatten(0, (copies, -1))
    vote: Tensor = parts.logsumexp(0) - math.log(copies)
    return vote


class Smoothed:
    """x -> log mean_m softmax f(x + sigma n_m), the smoothed classifier, with noise that stays.

    Cross-entropy of these log-probabilities is -log of the mean probability of the label.

    Args:
        model: pixels [R, C, H, W] -> logits [R, K]. It is shown the M copies in one batch.
        x: clean pixels [B, C, H, W] of the rows that will be asked about.
        rng: one random stream per row.
        sigma, copies: as for `noise`.

    Source: Salman et al., NeurIPS 2019, arXiv:1906.04584, eq. 6.
    """

    def __init__(self, model: Classifier, x: Tensor, rng: RowRandom, *, sigma: float, copies: int) -> None:
        self._model, self._drawn = model, noise(x, rng, sigma=sigma, copies=copies)

    def __call__(self, x: Tensor) -> Tensor:
        """Log-probabilities [B, K] at pixels x [B, C, H, W], of the rows in their order."""
        return soft_vote(self._model(noisy(x, self._drawn)), len(self._drawn))

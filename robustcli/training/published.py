"""The model that is validated and saved: the trained one, or an average of its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robustcli.data.sampling import train_order
from robustcli.data.split import Split
from robustcli.training.step import Step

_PIXELS = 2048  # training images from which averaged weights get their BatchNorm statistics
_BATCH = 256  # most of them in one pass


class Published:
    """What a run validates and saves.

    Args:
        step: trains the model; its hooks may average the weights.
        train: source of the images for BatchNorm's statistics.
        seed: of their order.
        batch_size: images of a training step.
        device: where the passes run.
    """

    def __init__(self, step: Step, train: Split, seed: int, batch_size: int, device: torch.device) -> None:
        self.step, self.train, self.seed, self.batch_size, self.device = step, train, seed, batch_size, device

    @property
    def model(self) -> nn.Module:
        """The averaged weights of the last hook that has an average, else the trained model."""
        averages = [hook.averaged() for hook in self.step.descent.hooks]
        models = [self.step.settings.model, *(model for model in averages if model is not None)]
        return models[-1]

    def refresh(self) -> None:
        """Let the hooks estimate BatchNorm's statistics of their averages."""
        for hook in self.step.descent.hooks:
            hook.refresh(self._pixels())

    def _pixels(self) -> Iterator[Tensor]:
        """Batches of training pixels [B, C, H, W] in [0, 1], in a fixed order, the same on every rank."""
        order = train_order(len(self.train), self.seed, 0)[:_PIXELS]
        batches = list(order.split(min(self.batch_size, _BATCH)))
        if len(batches) > 1 and len(batches[-1]) < len(batches[0]):
            batches.pop()  # each batch has the same weight in the mean
        for x, _, _ in self.train.stream(batches, self.device):
            yield x

"""The draws of a smoothed classifier, and the classes that it gives to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from robustcli.certificates.draws import BLOCK, generator_of
from robustcli.certificates.plan import Smoothing
from robustcli.core.forward import forward_only
from robustcli.core.types import Classifier
from robustcli.errors import NumericsError


def rows_for(device: torch.device) -> int:
    """Images of one call: few enough for the cache of a CPU, enough to keep a GPU busy."""
    return 2 * BLOCK if device.type == "cpu" else 16 * BLOCK


class Sampler:
    """Classes of noisy images, draw by draw; its arguments are those of `certificates.smoothing.Smoothed`."""

    def __init__(self, classify: Classifier, num_classes: int, plan: Smoothing, rows: int | None) -> None:
        if rows is not None and (rows < BLOCK or rows % BLOCK):
            raise ValueError(f"rows must be a multiple of {BLOCK}, got {rows}")
        self._classify, self._num_classes, self._plan, self._rows = classify, num_classes, plan, rows
        self._fast: Classifier | None = None if isinstance(classify, nn.Module) else classify

    def calls(
        self,
        image: Tensor,
        sample: int,
        base: int,
        first: int,
        last: int,
        stop: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Tensor]]:
        """(number of the first draw, labels) of each call that holds draws first to last - 1.

        base: the block at which the draws of this purpose begin.
        """
        rows = self._rows or rows_for(image.device)
        for start in range(first - first % rows, last, rows):
            stop()
            blocks = range(base + start // BLOCK, base + (start + rows) // BLOCK)
            yield start, self._labels(image, sample, blocks)

    def _labels(self, image: Tensor, sample: int, blocks: range) -> Tensor:
        """The classes of some blocks of draws, int64; K for a row whose logits are not finite."""
        plan = self._plan
        noisy = [
            plan.family.draw(image, BLOCK, plan.sigma, generator_of(plan.seed, sample, block, image.device))
            for block in blocks
        ]
        x = noisy[0] if len(noisy) == 1 else torch.cat(noisy)
        if self._fast is None:
            assert isinstance(self._classify, nn.Module)
            self._fast = forward_only(self._classify, x)
        logits = self._fast(x)
        return logits.argmax(1).where(logits.isfinite().all(1), self._num_classes)

    def none(self, image: Tensor) -> Tensor:
        """Counts [K + 1] of no draws. They stay on the device until a look needs them."""
        return torch.zeros(self._num_classes + 1, dtype=torch.int64, device=image.device)

    def tally(self, labels: Tensor) -> Tensor:
        """Counts [K + 1] of labels. Unlike torch.bincount it does not wait for a GPU."""
        classes = torch.arange(self._num_classes + 1, device=labels.device)
        return (labels[:, None] == classes).sum(0)

    def checked(self, counts: Tensor, sample: int) -> Tensor:
        """Counts [K] on the CPU. Raises NumericsError where logits of a draw were not finite."""
        counted = counts.cpu()
        if counted[-1]:
            raise NumericsError(
                "the classifier has logits that are not finite",
                where=f"sample {sample} under {self._plan.noise} noise of sigma {self._plan.sigma:g}",
                hint="evaluate it in fp32, or look at its weights",
            )
        return counted[:-1]

"""One patch for many images: what is fitted once, and shown to others afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.core.edge import hides_bounds, opened
from robustcli.core.losses import Criterion, RowLoss
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.stamp import draw_pose, side_of, stamp
from robustcli.core.types import Classifier, reject_of

_ORDER, _PLACES = "patch order", "patch"  # random streams
_ENOUGH = 6.0  # nats: what has fallen by so much pulls no more, and the others are heard


@dataclass(frozen=True)
class PatchFit:
    """How a patch is fitted.

    Args:
        area, rotation, smallest: as in `draw_pose`.
        steps: steps of Adam. batch_size: images in each.
        step_size: of Adam, pixel units.
        dark, bright: the range that can be printed, 0 <= dark < bright <= 1.
        tv: weight of the total variation.
        target: the class that all images are to be taken for; None: any wrong one.
        seed: of the first patch, of the order of the images, and of all places.
    """

    area: float
    rotation: float
    smallest: float
    steps: int
    batch_size: int
    step_size: float
    dark: float
    bright: float
    tv: float
    target: int | None
    seed: int

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, told: Callable[[float], None]
    ) -> Tensor:
        """The patch [C, S, S] of 8-bit pixels, on the device of x.

        min_p mean_i max(-L_i, -6) + tv * TV(p), L_i the cross-entropy of image i with the patch p at a place
        of its own: away from its class, or with a target minus that towards it.

        Args:
            model: pixels [B, C, H, W] -> logits; held frozen.
            x: pixels [n, C, H, W] in [0, 1]. y, ids: int64 [n].
            told: called after each step with the share of its images that fell.

        Source: Brown et al., 2017, arXiv:1712.09665; the bound on the loss of one image: Shafahi et al.,
            AAAI 2020, arXiv:1811.11304; total variation: Sharif et al., CCS 2016,
            doi:10.1145/2976749.2978392.
        """
        patch = self._first(x).requires_grad_()
        optimizer = torch.optim.Adam([patch], lr=self.step_size)
        reject = reject_of(model)
        with frozen(model):
            searched = opened(model) if hides_bounds(model, x) else model
            for step, rows in enumerate(self._batches(ids)):
                for group in optimizer.param_groups:
                    group["lr"] = self.step_size * (1 - step / self.steps)
                told(self._slope(searched, reject, x[rows], y[rows], ids[rows], step, patch))
                optimizer.step()
                with torch.no_grad():
                    patch.clamp_(self.dark, self.bright)
        return (patch.detach() * 255).round().div(255)

    def _first(self, x: Tensor) -> Tensor:
        """Uniform noise [C, S, S]: at its largest size a pixel of the patch is about one of the image."""
        side = max(1, round(side_of(self.area, *x.shape[2:])))
        rng = RowRandom(self.seed, _PLACES, torch.zeros(1, dtype=torch.int64, device=x.device), restart=1)
        noise = rng.uniform((x.shape[1], side, side))[0]
        return self.dark + (self.bright - self.dark) * noise

    def _batches(self, ids: Tensor) -> Iterator[Tensor]:
        """The places in x of the images of each step, int64: a new order each time all were seen."""
        size, left, epoch = min(self.batch_size, len(ids)), ids[:0], 0
        for _ in range(self.steps):
            if len(left) < size:
                order = RowRandom(self.seed, _ORDER, ids, epoch=epoch).uniform().argsort(stable=True)
                left, epoch = torch.cat((left, order)), epoch + 1
            yield left[:size]
            left = left[size:]

    def _slope(
        self,
        model: Classifier,
        reject: int | None,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        step: int,
        patch: Tensor,
    ) -> float:
        """Set the gradient of the patch on one batch; returns the share of its images that fell."""
        rng = RowRandom(self.seed, _PLACES, ids, epoch=step)
        target = None if self.target is None else torch.full_like(y, self.target)
        criterion = Criterion(y, target, reject)
        with torch.enable_grad():
            shown = stamp(x, patch, draw_pose(rng, x, self.area, self.rotation, self.smallest))
            rough = patch.diff(dim=1).abs().sum() + patch.diff(dim=2).abs().sum()
        oracle = Oracle(model, shown.detach(), criterion, rng=rng)
        ascent = criterion.bind("ce")
        bounded = RowLoss(lambda logits, _: ascent(logits).clamp_max(_ENOUGH), (y,))
        _, logits, grad = oracle.gradient(shown.detach(), bounded)
        down = (-grad / len(x), torch.full_like(rough, self.tv))
        (patch.grad,) = torch.autograd.grad((shown, rough), patch, down)
        return float(oracle.hit(logits).float().mean())

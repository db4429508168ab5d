"""Each test image with the nearest extra and the nearest training images, and which pairs are copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.data.split import Split
from robustcli.evaluation.leakage.features import features_of, viewed
from robustcli.evaluation.leakage.likeness import apart, coarse, coarse_views, same, small
from robustcli.evaluation.leakage.neighbours import Nearest, nearest
from robustcli.evaluation.leakage.rule import Rule

_BATCH = 256
_LOOKED_AT = 4  # nearest images at 8 x 8 pixels, which are then compared at their own size
_SAME_FEATURES = 1e-6  # a distance of nothing, where log needs some


@dataclass(frozen=True)
class Measure:
    """What one way to compare found.

    Args:
        distance: float [n], of each test image to its nearest extra image. position: int64 [n], of that.
        reference: float [n], of each test image to its nearest training image.
        rule: what is called a copy; None where too few images calibrate one.
        near: bool [n], test images with a copy by the rule.
    """

    distance: Tensor
    position: Tensor
    reference: Tensor
    rule: Rule | None
    near: Tensor


@dataclass(frozen=True)
class Found:
    """What a search has found, of n test images and m extra ones.

    exact: bool [n], test images of which an extra image is a copy to the pixel, or its mirror image.
    pixels, features: the two measures; features need a model.
    """

    n: int
    m: int
    exact: Tensor
    pixels: Measure
    features: Measure | None


@dataclass(frozen=True)
class Images:
    """The splits of a search, and where it works.

    done: told of each batch of a whole split. stop: raises to interrupt.
    """

    test: Split
    train: Split
    extra: Split
    device: torch.device
    done: Callable[[int], None] = lambda images: None
    stop: Callable[[], None] = lambda: None

    def batches(self, split: Split, positions: Tensor | None = None) -> Iterator[tuple[Tensor, int]]:
        """(images, place of the first among the positions), all positions in order where none are given."""
        chosen = torch.arange(len(split)) if positions is None else positions
        first = 0
        for x, _, _ in split.stream(list(chosen.split(_BATCH)), self.device):
            self.stop()
            yield x, first
            first += len(x)
            if positions is None:
                self.done(len(x))


def search(images: Images, model: nn.Module | None = None) -> Found:
    """The nearest extra image of each test image, in pixels and, with a model, in its features.

    Memory: vectors and small pixels of the test images, one tile of distances, and one batch.
    """
    pixels, exact = _by_pixels(images)
    features = None if model is None else _by_features(images, model)
    return Found(len(images.test), len(images.extra), exact, pixels, features)


def _by_pixels(images: Images) -> tuple[Measure, Tensor]:
    shown = [(small(x).cpu(), coarse_views(x)) for x, _ in images.batches(images.test)]
    tests, queries = torch.cat([x for x, _ in shown]), torch.cat([vectors for _, vectors in shown])
    (near,) = nearest(queries, images.batches(images.extra), coarse, _LOOKED_AT)
    distance, position, exact = _compared(images, images.extra, tests, near.position.cpu())
    halves = nearest(queries, images.batches(images.train), coarse, _LOOKED_AT, halves=True)
    references = torch.stack([
        _compared(images, images.train, tests, _unfolded(half.position.cpu(), parity))[0]
        for parity, half in enumerate(halves)
    ])  # fmt: skip
    return _measured(images, distance, position, references), exact


def _unfolded(position: Tensor, parity: int) -> Tensor:
    """Positions among images at even or odd places -> positions among all; -1 stays."""
    return torch.where(position < 0, position, 2 * position + parity)


def _compared(
    images: Images, split: Split, tests: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(distance [n], position [n], whether it is the same [n]) of the closest candidate of each test image.

    candidates: int64 [n, k], positions in the split. Each is read once.
    """
    distance, position = torch.full((len(tests),), torch.inf), torch.full((len(tests),), -1)
    exact = torch.zeros(len(tests), dtype=torch.bool)
    wanted, inverse = candidates.unique(return_inverse=True)
    kept = wanted >= 0
    order = inverse.flatten().argsort(stable=True)
    bounds = torch.searchsorted(inverse.flatten()[order], torch.arange(len(wanted) + 1))
    skipped = int((~kept).sum())
    for x, first in images.batches(split, wanted[kept]):
        start, end = (int(bounds[skipped + place]) for place in (first, first + len(x)))
        pairs = order[start:end]
        rows, places = pairs // candidates.shape[1], inverse.flatten()[pairs] - skipped - first
        near = small(x)[places.to(x.device)]
        mine = tests[rows].to(x.device)
        far, equal = apart(mine, near).cpu(), same(mine, near).cpu()
        if near.shape[1:] != x.shape[1:] and equal.any():
            equal[equal.clone()] = _same_whole(images, rows[equal], x[places[equal].to(x.device)])
        far = torch.where(equal, 0.0, far)
        least = torch.full_like(distance, torch.inf).scatter_reduce(0, rows, far, "amin")
        better = far <= least[rows]
        closer = better & (far < distance[rows])
        distance[rows[closer]] = far[closer]
        position[rows[closer]] = wanted[kept][places[closer] + first]
        exact[rows[equal]] = True
    return distance, position, exact


def _same_whole(images: Images, rows: Tensor, found: Tensor) -> Tensor:
    """bool [n]: of pairs that are the same at a small size, whether they are at their own."""
    tests = images.batches(images.test, rows)
    return torch.cat([same(mine, found[first : first + len(mine)]).cpu() for mine, first in tests])


def _by_features(images: Images, model: nn.Module) -> Measure:
    vectors = partial(features_of, model)
    queries = torch.cat([viewed(vectors, x) for x, _ in images.batches(images.test)])
    (near,) = nearest(queries, images.batches(images.extra), vectors, 1)
    halves = nearest(queries, images.batches(images.train), vectors, 1, halves=True)
    references = torch.stack([_alone(half) for half in halves])
    return _measured(images, _alone(near), near.position[:, 0].cpu(), references)


def _alone(near: Nearest) -> Tensor:
    return near.distance[:, 0].cpu().clamp_min(_SAME_FEATURES)


def _measured(images: Images, distance: Tensor, position: Tensor, halves: Tensor) -> Measure:
    rule, reference = Rule.of(halves, len(images.train), len(images.extra)), halves.amin(0)
    near = torch.zeros(len(distance), dtype=torch.bool)
    if rule is not None:
        near = rule.near(distance, reference)
    return Measure(distance, position, reference, rule, near)

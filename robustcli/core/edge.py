"""Slopes at black and white pixels of models that clamp their input, which have none there.

From 2.15 on torch.clamp has the slope 0 at its bounds. A model that begins with clamp(x, 0, 1) then hides the
gradient of every pixel that is black or white: of most pixels of MNIST. An attack could not move them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustcli.core.types import Classifier, offers

_INSIDE = 1e-6  # how far from 0 and 1: some ten steps of float32 below 1
_IMAGES = 4  # that are looked at
_MOST = 0.5  # share of the pixels at a bound that must be hidden


def opened(model: Classifier) -> Classifier:
    """x -> model(x'), x' = x moved at least 1e-6 away from 0 and from 1; the slope of x' in x is 1.

    x: pixels float32 [B, C, H, W] in [0, 1]. The logits are those of x' and not of x: for searches, whose
    points are judged on the model itself.
    """

    def inside(x: Tensor) -> Tensor:
        return model(x + (within(x) - x).detach())

    return inside


def within(x: Tensor) -> Tensor:
    """x moved at least 1e-6 away from 0 and from 1."""
    return x.clamp(_INSIDE, 1 - _INSIDE)


def hides_bounds(model: Classifier, x: Tensor) -> bool | None:
    """Whether the model has no slope at most pixels that are 0, or that are 1, but has one just inside.

    None where it has no slope at all, and nothing can be said: a last layer of zeros, before training.

    x: pixels float32 [B, C, H, W] in [0, 1]; of the first images every third pixel is made black and every
    third white. A model that cannot be differentiated, or is a black box, hides nothing here. Cost: two
    forward and two backward passes of at most four images.
    """
    x = x[:_IMAGES].detach()
    if offers(model) != "gradient":
        return False
    if not len(x):
        return None
    place = torch.arange(x[0].numel(), device=x.device).view_as(x[0]) % 3
    point = torch.where(place == 0, torch.zeros_like(x), torch.where(place == 1, torch.ones_like(x), x))
    devices = [x.device] if x.is_cuda else []
    try:
        with torch.random.fork_rng(devices):  # a randomised model draws what it draws without this look
            at, near = _slope(model, point), _slope(opened(model), point)
    except RuntimeError:  # an operation without a derivative
        return False
    if not near.any():
        return None
    return any(_hidden(at, near, (place == bound).expand_as(x)) for bound in (0, 1))


def _hidden(at: Tensor, near: Tensor, where: Tensor) -> bool:
    """Whether the slope `at` is 0 and `near` is not, at most of the pixels `where` of [B, C, H, W]."""
    hidden = (at[where] == 0) & (near[where] != 0)
    return bool(hidden.float().mean() > _MOST)


def _slope(model: Classifier, point: Tensor) -> Tensor:
    """The input gradient of the logits' sum with weights 1, 2, ... K: [B, C, H, W]."""
    point = point.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(point).float()
        weights = torch.arange(1, logits.shape[1] + 1, device=logits.device)
        (grad,) = torch.autograd.grad((logits * weights).sum(), point)
    return grad

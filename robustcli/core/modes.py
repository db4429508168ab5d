"""A model that is held still while it is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen(model: nn.Module, bn: Literal["eval", "batch"] = "eval") -> Iterator[nn.Module]:
    """Eval mode and no parameter gradients inside; on exit every flag is as before, even after an exception.

    Args:
        model: any module; the same one is yielded.
        bn: "eval": BatchNorm layers use their running statistics. "batch": they use the statistics of the
            batch and write no buffer. Reference codes that attack in train mode do write: there the passes
            of the attack change the running statistics.
    """
    training = [(m, m.training) for m in model.modules()]
    grads = [(p, p.requires_grad) for p in model.parameters()]
    tracked = [(m, m.track_running_stats) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        for module, _ in training:
            module.training = False  # not .eval(): a module may override it and call back
        for parameter, _ in grads:
            parameter.requires_grad_(False)
        if bn == "batch":
            for norm, _ in tracked:
                norm.training, norm.track_running_stats = True, False
        yield model
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in grads:
            parameter.requires_grad_(flag)
        for norm, flag in tracked:
            norm.track_running_stats = flag

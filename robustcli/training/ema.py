"""Exponential moving average of the weights; the copy that every weight average keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from robustcli.errors import CheckpointError
from robustcli.registry import hooks
from robustcli.training.hooks import Hook, StepContext
from robustcli.training.schedules import Share


def _by_dtype(mine: Iterable[Tensor], theirs: Iterable[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Pairs in lists of one dtype: only those are copied or mixed in one launch."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, live in zip(mine, theirs, strict=True):
        group = groups.setdefault(own.dtype, ([], []))
        group[0].append(own)
        group[1].append(live)
    return list(groups.values())


class WeightCopy:
    """theta', a copy of the live model: in eval mode, without gradients, one module object for its whole life.

    Args:
        model: the live model, already on its device and in its memory format.
    """

    def __init__(self, model: nn.Module) -> None:
        self._live = model
        self.module = copy.deepcopy(model).requires_grad_(False)
        for module in self.module.modules():
            module.training = False  # not .eval(): a module may override it

    def move(self, share: float) -> None:
        """theta' <- theta' + share (theta - theta'), share in (0, 1], 1 copies bitwise; all buffers are copied."""
        with torch.no_grad():
            for mine, theirs in _by_dtype(self.module.parameters(), self._live.parameters()):
                if share == 1 or not mine[0].is_floating_point():
                    torch._foreach_copy_(mine, theirs)
                else:
                    torch._foreach_lerp_(mine, theirs, share)
            # The live model's buffers anew at each step: a module may replace them, as .to() does.
            for mine, theirs in _by_dtype(self.module.buffers(), self._live.buffers()):
                torch._foreach_copy_(mine, theirs)

    def tensors(self) -> dict[str, Tensor]:
        """{"param.<name>": ..., "buffer.<name>": ...}: theta' itself, no copies."""
        params = {f"param.{name}": parameter.detach() for name, parameter in self.module.named_parameters()}
        return params | {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}


def take_over(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], hook: str) -> None:
    """Write `stored` into the tensors of `own`, in their memory format. Raises CheckpointError, nothing written, if names, shapes or dtypes differ."""
    for name in sorted(own.keys() | stored.keys()):
        here, there = ("nothing" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (own.get(name), stored.get(name)))
        if here != there:
            raise CheckpointError(f"{hook} state {name!r} is {there}, the model has {here}", hint="resume with the configuration of the run")
    for name, tensor in own.items():
        tensor.copy_(stored[name])


class MovingAverage(Hook):
    """theta' and t, the updates since the warm-up."""

    def __init__(self, model: nn.Module, decay: float, warmup: float) -> None:
        self.decay, self.warmup = decay, warmup
        self._copy = WeightCopy(model)
        self._count = torch.zeros((), dtype=torch.int64)

    def after_step(self, context: StepContext) -> None:
        if context.progress < self.warmup:
            self._copy.move(1.0)
            return
        t = int(self._count)
        self._copy.move(1 - min(self.decay, (1 + t) / (10 + t)))
        self._count += 1

    def averaged(self) -> nn.Module:
        return self._copy.module

    def state(self) -> dict[str, Tensor]:
        return {**self._copy.tensors(), "count": self._count}

    def load(self, state: dict[str, Tensor]) -> None:
        take_over(self.state(), state, "ema")


@hooks.register("ema", extra_losses=0)
def ema(model: nn.Module, *, decay: Annotated[float, Ge(0), Lt(1)] = 0.995, warmup: Share = 0.025) -> Hook:
    """theta' <- tau theta' + (1 - tau) theta,  tau = min(decay, (1 + t) / (10 + t)),  t = 0, 1, ... updates so far.

    theta' starts as a copy of theta and follows it bitwise in the warm-up. Buffers, so also BatchNorm's running statistics, are copied from
    the live model after each step. `averaged` is there from the beginning. Cost: one more copy of the model, no pass.

    Args:
        model: the classifier that is trained, on its device and in its memory format.
        decay: largest tau, no unit, in [0, 1); 0.995 for batches of 1024. 0 is the live model, bitwise.
        warmup: share of all steps before the first averaging, in [0, 1).

    Raises:
        ValueError: decay or warmup out of range.

    Source: Polyak averaging as in Gowal et al., 2020, arXiv:2010.03593, and Rebuffi et al., NeurIPS 2021, arXiv:2103.01946.
    """
    if not 0 <= decay < 1 or not 0 <= warmup < 1:
        raise ValueError(f"decay and warmup must be in [0, 1), got {decay} and {warmup}")
    return MovingAverage(model, decay, warmup)

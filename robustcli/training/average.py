"""The copy of the weights that an average keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robustcli.errors import CheckpointError


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
        here, there = (
            "nothing" if t is None else f"{t.dtype} {tuple(t.shape)}"
            for t in (own.get(name), stored.get(name))
        )
        if here != there:
            raise CheckpointError(
                f"{hook} state {name!r} is {there}, the model has {here}",
                hint="resume with the configuration of the run",
            )
    for name, tensor in own.items():
        tensor.copy_(stored[name])

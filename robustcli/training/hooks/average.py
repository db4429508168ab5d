"""A copy of the weights, in which a hook keeps their average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robustcli.core.copies import copy_of
from robustcli.errors import CheckpointError, ConfigError


def _by_dtype(
    copies: Iterable[Tensor], originals: Iterable[Tensor]
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """(copies, originals) for each dtype: one foreach kernel takes tensors of one dtype."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, live in zip(copies, originals, strict=True):
        group = groups.setdefault(own.dtype, ([], []))
        group[0].append(own)
        group[1].append(live)
    return list(groups.values())


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the model. Raises ConfigError E-MODEL where its code refuses to be copied."""
    copied = copy_of(model)
    if not isinstance(copied, Exception):
        return copied
    raise ConfigError(
        f"the network cannot be copied ({type(copied).__name__}: {str(copied)[:80]}),"
        " and an average of weights is a copy",
        hint="leave the hook out of train.hooks, or let the network pass copy.deepcopy",
        code="E-MODEL",
    ) from copied


class WeightCopy:
    """theta', a copy of the live model in eval mode, without gradients.

    Args:
        model: the live model, with weights theta, on its device and in its memory format.

    Attributes:
        module: theta'; always the same object.
    """

    def __init__(self, model: nn.Module) -> None:
        self._live = model
        self.module = _copied(model).requires_grad_(False)
        for module in self.module.modules():
            module.training = False  # not .eval(): a module may override it

    def move(self, share: float) -> None:
        """theta' <- theta' + share (theta - theta'), share in (0, 1].

        All buffers are copied from the live model. A share of 1 copies bitwise.
        """
        with torch.no_grad():
            for own, live in _by_dtype(self.module.parameters(), self._live.parameters()):
                if share == 1 or not own[0].is_floating_point():
                    torch._foreach_copy_(own, live)
                else:
                    torch._foreach_lerp_(own, live, share)
            # The live model is asked for its buffers at each step: a module may replace them, as .to() does.
            for own, live in _by_dtype(self.module.buffers(), self._live.buffers()):
                torch._foreach_copy_(own, live)

    def tensors(self) -> dict[str, Tensor]:
        """{"param.<name>": ..., "buffer.<name>": ...}: the tensors of theta', not copied."""
        params = {f"param.{name}": parameter.detach() for name, parameter in self.module.named_parameters()}
        return params | {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}


def load_tensors(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], hook: str) -> None:
    """Copy the `stored` tensors into those of `own`, which keep their memory format.

    hook: name of the hook, for the error. Raises CheckpointError, with nothing written, if names, shapes or
    dtypes differ.
    """
    for name in sorted(own.keys() | stored.keys()):
        here, there = _described(own.get(name)), _described(stored.get(name))
        if here != there:
            raise CheckpointError(
                f"{hook} state {name!r} is {there}, the model has {here}",
                hint="resume with the configuration of the run",
            )
    for name, tensor in own.items():
        tensor.copy_(stored[name])


def _described(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"

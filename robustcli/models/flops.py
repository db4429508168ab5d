"""What one forward pass costs: FLOPs by our own rules, so that no version of torch counts otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustcli.core.modes import frozen, undisturbed


def flops(model: nn.Module, shape: Sequence[int]) -> int:
    """FLOPs of one forward pass of one image, 2 for each multiply-add.

    Args:
        model: on any device, the meta device too; runs in eval mode, flags are restored.
        shape: (C, H, W) of one image.

    Returns:
        FLOPs per image of convolutions, matrix products and attention (the GMAC of papers times 2e9). BN,
        activations and pooling are not counted, as in the papers.
    """
    like = next(model.parameters(), torch.empty(0))
    x = torch.zeros((1, *shape), dtype=like.dtype, device=like.device)
    counted = _Counted()
    # Layers of torch.nn that see a function mode do not take their fused path, which hides its products.
    with undisturbed(model), frozen(model), torch.no_grad(), BaseTorchFunctionMode(), counted:
        model(x)
    return counted.total


class _Counted(TorchDispatchMode):
    """Adds up the FLOPs of what this thread computes inside.

    An operator without a rule is taken apart where it is made of others, and costs nothing where it is not.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rule, given = _rule(func), dict(kwargs or {})
        if rule is None:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **given)
        if rule is not None:
            self.total += rule(args, out)
        return out


_Rule = Callable[[tuple[Any, ...], Any], int]


def _rule(func: Any) -> _Rule | None:
    """The rule of an operator, by its name."""
    name = str(getattr(func, "overloadpacket", func)).rpartition(".")[2]
    if name.startswith("_scaled_dot_product_"):  # whichever kernel this build and device choose
        return _attention
    return _RULES.get(name)


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    """2 * places * C_in / groups * C_out * kernel; a transposed one has as many places as its input."""
    x, weight = args[:2]
    transposed = len(args) > 6 and bool(args[6])
    places = x if transposed else out
    return 2 * int(places.numel() * weight[0].numel())


def _product(args: tuple[Any, ...], out: Tensor) -> int:
    """2 M N K for A [..., M, K] @ B [..., K, N]."""
    return 2 * out.numel() * int(args[0].shape[-1])


def _sum_and_product(args: tuple[Any, ...], out: Tensor) -> int:
    """`_product`; the summand comes first."""
    return _product(args[1:], out)


def _attention(args: tuple[Any, ...], out: Any) -> int:
    """2 B H S_q S_k (E + E_v): both products of softmax(Q K^T) V, masked or not."""
    query, key, value = args[:3]
    pairs, numbers = query[..., 0].numel() * key.shape[-2], query.shape[-1] + value.shape[-1]
    return 2 * int(pairs * numbers)


def _recurrent(args: tuple[Any, ...], out: Any) -> int:
    """2 T B (|W_ih| + |W_hh|): one layer and direction over T steps, which oneDNN computes in one call."""
    return 2 * int(args[0][..., 0].numel() * (args[1].numel() + args[2].numel()))


_RULES: dict[str, _Rule] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "addmm": _sum_and_product,
    "baddbmm": _sum_and_product,
    "mkldnn_rnn_layer": _recurrent,
}

"""A forward-only form of a traced bf16 network for CPUs: weights laid out beforehand, sums and ReLU inside the convolution.

oneDNN lays a weight out anew at every call of F.conv2d, and a ReLU of its own reads and writes all activations once more. Its
operators without these costs have no derivative, so they answer only where no gradient is asked for.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_PURE = (nn.Conv2d, nn.BatchNorm2d, nn.Identity, nn.AvgPool2d, nn.MaxPool2d)  # never in place
_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_)
_OPERATORS = (
    "_convolution_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)


class PackedConv(nn.Module):
    """act(conv(x) + b [+ other]), act the identity or ReLU, in bf16 without a gradient; x [B, C, H, W] -> [B, K, H', W'].

    Args:
        conv: bf16 on the CPU, padded with zeros, see `packable`; asked itself where a sum broadcasts or changes the type.
        relu: whether act is ReLU.

    Source: the operators that torch.compile uses for frozen convolutions on CPUs (oneDNN post-ops).
    """

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._plain, self._relu = conv, relu
        self._call, self._call_sum = ops._convolution_pointwise.default, ops._convolution_pointwise.binary
        self._geometry = [int(n) for n in conv.padding], list(conv.stride), list(conv.dilation), conv.groups
        self._weight: Tensor = ops._reorder_convolution_weight(conv.weight.detach(), *self._geometry, None)
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._tail: tuple[Any, ...] = ("relu" if relu else "none", [], "")
        self._tail_sum: tuple[Any, ...] = ("add", 1.0, "relu" if relu else None, [], None)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Raises RuntimeError where oneDNN has no kernel."""
        x = x.to(torch.bfloat16)
        if other is None:
            return self._call(x, self._weight, self._bias, *self._geometry, *self._tail)  # type: ignore[no-any-return]
        if other.dtype is torch.bfloat16 and other.shape == self._result(x):
            return self._call_sum(x, other, self._weight, self._bias, *self._geometry, *self._tail_sum)  # type: ignore[no-any-return]
        total: Tensor = self._plain(x) + other
        return total.relu() if self._relu else total

    def _result(self, x: Tensor) -> tuple[int, ...]:
        conv, (padding, stride, dilation, _) = self._plain, self._geometry
        sides = zip(x.shape[2:], conv.kernel_size, padding, zip(stride, dilation, strict=True), strict=True)
        return (
            len(x),
            conv.out_channels,
            *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, (s, d) in sides),
        )


class PackedLinear(nn.Module):
    """act(W x + b), act the identity or ReLU, in bf16 without a gradient; x [..., N] -> [..., M]."""

    def __init__(self, linear: nn.Linear, relu: bool) -> None:
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._call = ops._linear_pointwise.default
        self._weight: Tensor = ops._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._tail: tuple[Any, ...] = ("relu" if relu else "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """Raises RuntimeError where oneDNN has no kernel."""
        return self._call(x.to(torch.bfloat16), self._weight, self._bias, *self._tail)  # type: ignore[no-any-return]


def available() -> bool:
    """Whether this build of torch has the operators, and this CPU bf16 in oneDNN."""
    ops: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(hasattr(ops, name) for name in _OPERATORS):
        return False
    return hasattr(ops._convolution_pointwise, "binary") and bool(
        getattr(ops, "_is_mkldnn_bf16_supported", lambda: False)()
    )


def packable(module: nn.Module | None) -> bool:
    """A plain bf16 Conv2d padded with zeros, or Linear, on the CPU, whose call nothing watches."""
    if isinstance(module, nn.Conv2d):
        known = (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
    else:
        known = type(module) is nn.Linear
    if module is None or not known or module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(p.dtype is torch.bfloat16 and p.device.type == "cpu" for p in module.parameters())


def pack(twin: nn.Module) -> fx.GraphModule | None:
    """The forward-only form of a traced twin, or None where nothing can be packed. Weights are those of now; all other modules are shared.

    Conv2d, Conv2d -> ReLU, Conv2d -> add [-> ReLU], Linear and Linear -> ReLU become one operator where nothing else reads what
    lies between; all else stays. Run it under autocast to bf16, without a gradient. Raises RuntimeError where oneDNN refuses a layout.
    """
    if not isinstance(twin, fx.GraphModule) or not available():
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(twin.graph, {}))
    made, modules = fx.GraphModule(twin, graph), dict(twin.named_modules())
    found = [
        node
        for node in graph.nodes
        if node.op == "call_module"
        and packable(modules.get(str(node.target)))
        and len(node.args) == 1
        and not node.kwargs
    ]
    for number, node in enumerate(found):
        _replace(made, node, modules, f"packed_{number}")
    graph.lint()
    made.recompile()
    return made if found else None


def _replace(made: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module], name: str) -> None:
    """One packed call for `node` and what follows it: a sum, if it is a convolution's, and a ReLU."""
    layer = modules[str(node.target)]
    other = _other_summand(node, modules) if isinstance(layer, nn.Conv2d) else None
    last = node if other is None else next(iter(node.users))
    follower = next(iter(last.users)) if len(last.users) == 1 else None
    relu = follower is not None and _is_relu(follower, modules)
    packed: nn.Module
    if isinstance(layer, nn.Conv2d):
        packed = PackedConv(layer, relu)
    else:
        assert isinstance(layer, nn.Linear)
        packed = PackedLinear(layer, relu)
    made.add_submodule(name, packed)
    with made.graph.inserting_before(last):
        call = made.graph.call_module(name, (node.args[0],) if other is None else (node.args[0], other))
    if follower is not None and relu:
        follower.replace_all_uses_with(call)
        made.graph.erase_node(follower)
    else:
        last.replace_all_uses_with(call)
    for gone in dict.fromkeys((last, node)):
        made.graph.erase_node(gone)


def _other_summand(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What a sum adds to this node, where the sum alone reads it. An in-place sum must write into this node, not into the other.

    The convolution moves down to its sum: what it passes on the way must not write into its input.
    """
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.kwargs or len(user.args) != 2 or user.args[0] is user.args[1]:
        return None
    plain = (user.op == "call_function" and user.target in (operator.add, torch.add)) or (
        user.op == "call_method" and user.target == "add"
    )
    inside = (user.op == "call_function" and user.target is operator.iadd) or (
        user.op == "call_method" and user.target == "add_"
    )
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, fx.Node) or not (plain or (inside and user.args[0] is node)):
        return None
    passed = node.next
    while passed is not user:
        if passed.op != "get_attr" and (
            passed.op != "call_module" or not isinstance(modules.get(str(passed.target)), _PURE)
        ):
            return None
        passed = passed.next
    return other


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELUS

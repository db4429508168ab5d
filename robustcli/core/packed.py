"""A forward-only form of a traced network for CPUs, in bf16 or fp32.

In a plain network oneDNN brings a weight into its own memory layout at every call of F.conv2d, and a ReLU
reads and writes all activations once more. Here the weights have that layout beforehand, and sums and ReLU
happen inside the convolution. The operators that do this have no derivative.
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
    """act(conv(x) + b [+ other]), act the identity or ReLU, in the layer's precision without a gradient.

    x: activations [B, C, H, W]; the result: [B, K, H', W'].

    Args:
        conv: a `packable` layer. It is called itself when `other` has another shape or type than the result.
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
        self._bias, self._dtype = _bias(conv), conv.weight.dtype
        self._tail: tuple[Any, ...] = ("relu" if relu else "none", [], "")
        self._tail_sum: tuple[Any, ...] = ("add", 1.0, "relu" if relu else None, [], None)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] -> [B, K, H', W']; other: a summand, or None. RuntimeError: oneDNN has no kernel."""
        x = x.to(self._dtype)
        if other is None:
            alone: Tensor = self._call(x, self._weight, self._bias, *self._geometry, *self._tail)
            return alone
        if other.dtype is self._dtype and other.shape == self._result(x):
            inside: Tensor = self._call_sum(
                x, other, self._weight, self._bias, *self._geometry, *self._tail_sum
            )
            return inside
        total: Tensor = self._plain(x) + other
        if self._relu:
            return total.relu()
        return total

    def _result(self, x: Tensor) -> tuple[int, ...]:
        """The shape of conv(x)."""
        conv, (padding, stride, dilation, _) = self._plain, self._geometry
        reach = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, dilation, strict=True)]
        sides = zip(x.shape[2:], padding, reach, stride, strict=True)
        return len(x), conv.out_channels, *((n + 2 * p - r) // s + 1 for n, p, r, s in sides)


class PackedLinear(nn.Module):
    """act(W x + b), act the identity or ReLU, in the layer's precision; x [..., N] -> [..., M]."""

    def __init__(self, linear: nn.Linear, relu: bool) -> None:
        super().__init__()
        ops: Any = torch.ops.mkldnn
        self._call = ops._linear_pointwise.default
        self._weight: Tensor = ops._reorder_linear_weight(linear.weight.detach(), None)
        self._bias, self._dtype = _bias(linear), linear.weight.dtype
        self._tail: tuple[Any, ...] = ("relu" if relu else "none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """x [..., N] -> [..., M]. RuntimeError: oneDNN has no kernel."""
        out: Tensor = self._call(x.to(self._dtype), self._weight, self._bias, *self._tail)
        return out


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def available(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether this build of torch has the operators, and oneDNN computes in `dtype` on this CPU."""
    ops: Any = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(hasattr(ops, name) for name in _OPERATORS):
        return False
    if not hasattr(ops._convolution_pointwise, "binary"):
        return False
    has_bf16 = getattr(ops, "_is_mkldnn_bf16_supported", lambda: False)
    return dtype is torch.float32 or bool(has_bf16())


def packable(module: nn.Module | None, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a module is a Conv2d padded with zeros, or a Linear, of `dtype`, on the CPU, without hooks.

    A subclass of either is not, and no Linear in fp32, which is faster as it is.
    """
    if type(module) is nn.Conv2d:
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return False
    elif type(module) is not nn.Linear or dtype is torch.float32:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(p.dtype is dtype and p.device.type == "cpu" for p in module.parameters())


def pack(twin: nn.Module, dtype: torch.dtype = torch.bfloat16) -> fx.GraphModule | None:
    """The forward-only form of a traced twin, or None where nothing can be packed.

    One operator takes the place of each chain
        Conv2d;  Conv2d -> ReLU;  Conv2d -> add;  Conv2d -> add -> ReLU;  Linear;  Linear -> ReLU
    in which no other node reads a result in between. Packed weights are copies made now; all other modules
    are shared with the twin. Layers of `dtype` are packed, bf16 or fp32. Run it without a gradient, that of
    bf16 under autocast.

    Raises:
        RuntimeError: oneDNN refuses a layout.
    """
    if not isinstance(twin, fx.GraphModule) or not available(dtype):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(twin.graph, {}))
    packed, modules = fx.GraphModule(twin, graph), dict(twin.named_modules())
    nodes = [node for node in graph.nodes if _packable_call(node, modules, dtype)]
    if not nodes:
        return None
    for number, node in enumerate(nodes):
        _replace(packed, node, modules, f"packed_{number}")
    graph.lint()
    packed.recompile()
    return packed


def _packable_call(node: fx.Node, modules: dict[str, nn.Module], dtype: torch.dtype) -> bool:
    """Whether a node calls a packable module with one input."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    return packable(modules.get(str(node.target)), dtype)


def _replace(packed: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module], name: str) -> None:
    """Put one packed call, named `name`, in the place of `node` and of what follows it.

    After a convolution that is a sum, a ReLU, or both; after a Linear a ReLU.
    """
    layer = modules[str(node.target)]
    inputs, chain = [node.args[0]], [node]
    if isinstance(layer, nn.Conv2d):
        other = _other_summand(node, modules)
        if other is not None:
            inputs.append(other)
            chain.append(next(iter(node.users)))
    last, follower = chain[-1], only_reader(chain[-1])
    relu = follower is not None and is_relu(follower, modules)
    packed.add_submodule(name, _packed(layer, relu))
    with packed.graph.inserting_before(last):
        call = packed.graph.call_module(name, tuple(inputs))
    if follower is not None and relu:
        chain.append(follower)
    chain[-1].replace_all_uses_with(call)
    for replaced in reversed(chain):
        packed.graph.erase_node(replaced)


def _packed(layer: nn.Module, relu: bool) -> nn.Module:
    """The packed form of a Conv2d or Linear."""
    if isinstance(layer, nn.Conv2d):
        return PackedConv(layer, relu)
    assert isinstance(layer, nn.Linear)
    return PackedLinear(layer, relu)


def only_reader(node: fx.Node) -> fx.Node | None:
    """The node that reads `node`, where there is exactly one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_summand(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """The other summand, where the only reader of `node` is a sum that a packed call may replace.

    An in-place sum is replaced only where it writes into `node`: the other summand must not change.
    """
    total = only_reader(node)
    if total is None or total.kwargs or len(total.args) != 2 or total.args[0] is total.args[1]:
        return None
    first, second = total.args
    plain = _calls(total, (operator.add, torch.add), "add")
    into_node = first is node and _calls(total, (operator.iadd,), "add_")
    other = second if first is node else first
    if not isinstance(other, fx.Node) or not (plain or into_node) or not _may_move(node, total, modules):
        return None
    return other


def _calls(node: fx.Node, functions: tuple[Any, ...], method: str) -> bool:
    """Whether a node calls one of the functions, or the method."""
    if node.op == "call_function":
        return node.target in functions
    return node.op == "call_method" and node.target == method


def _may_move(node: fx.Node, total: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a convolution may run as late as its sum: no node in between may write into its input."""
    passed = node.next
    while passed is not total:
        pure = passed.op == "call_module" and isinstance(modules.get(str(passed.target)), _PURE)
        if not pure and passed.op != "get_attr":
            return False
        passed = passed.next
    return True


def is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is a ReLU: a module without hooks, a method or a function."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return type(module) is nn.ReLU and not module._forward_hooks and not module._forward_pre_hooks
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in _RELUS

"""From a module to a program of operations that have bounds, by the graph of torch.fx."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustcli.core.bounds import dense, joining, moving, pooling, rectifiers, scaling, smooth  # noqa: F401
from robustcli.core.bounds.op import Shape
from robustcli.core.bounds.program import Call, Const, Program, Value, reader_of
from robustcli.core.bounds.unsupported import UnsupportedOperation, place, raised_at, running
from robustcli.core.modes import frozen, undisturbed
from robustcli.core.twin import Tracer, tracing

_ROWS = 5  # images while shapes are found; a node that does not keep them apart has another first dimension
_NEAR = 1e-4  # share of the largest logit by which program and network may differ
_KNOWN = (
    "convolution, linear, BatchNorm, ReLU, LeakyReLU, SiLU, GELU, sigmoid, tanh, clamps, max and average"
    " pooling, sums, products with constants, concatenation and reshapes have bounds"
)
_INSTEAD = {
    "Softmax": "return logits: the class is the same without it",
    "softmax": "return logits: the class is the same without it",
    "log_softmax": "return logits: the class is the same without it",
    "LogSoftmax": "return logits: the class is the same without it",
    "LayerNorm": "use BatchNorm2d, whose statistics are constants in eval mode",
    "GroupNorm": "use BatchNorm2d, whose statistics are constants in eval mode",
    "InstanceNorm2d": "use BatchNorm2d, whose statistics are constants in eval mode",
    "AdaptiveMaxPool2d": "use MaxPool2d with a kernel of the size of the plane",
    "Hardswish": "use SiLU",
    "Mish": "use SiLU",
    "ELU": "use SiLU or LeakyReLU",
    "Softplus": "use SiLU",
    "PReLU": "use LeakyReLU",
    "MultiheadAttention": "certify attention by smoothing: it needs no bounds",
}

_UNREAD = {
    "len": "write x.shape[0] in place of len(x)",
    "path": "forward() must take the same path for every image",
}


class _Tracer(Tracer):
    """Parameters and buffers stay names in the graph, so that what is made of them follows the network."""

    proxy_buffer_attributes = True

    def create_node(self, *args: Any, **named: Any) -> fx.Node:
        node = super().create_node(*args, **named)
        node.meta["place"] = running()
        return node


def trace(model: nn.Module, shape: Shape) -> Program:
    """The program of a network: pixels [B, *shape] -> logits [B, K], in eval mode.

    Args:
        model: its mode and its weights stay as they are. Weights are read anew at each pass.
        shape: (C, H, W) of its images.

    Raises UnsupportedOperation, which names an operation without bounds, its file and line, and what to use
    instead; also for hooks, for a path that depends on the data, and where the program computes something
    else than the network does (a draw, a change in place).
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedOperation(
                f"module {name or type(model).__name__} has a hook, whose code has no bounds",
                hint="put the code into forward(), or remove the hook",
            )
    with frozen(model), undisturbed(model), torch.no_grad():
        graph = _graph(model)
        program = _Reading(model, tuple(shape)).read(graph)
        _compare(program)
    return program


def _graph(model: nn.Module) -> fx.Graph:
    with tracing:
        try:
            return _Tracer().trace(model)
        except Exception as error:  # noqa: BLE001 - tracing runs the user's code, which may raise anything
            raise UnsupportedOperation(
                f"the graph of {type(model).__name__} cannot be read: {error}",
                where=raised_at(error),
                hint=_UNREAD["len" if "'len'" in str(error) else "path"],
            ) from error


class _Reading:
    """Walks a graph once. Each node is a Value, a Const, or a plain Python value such as a size."""

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        self.program = Program(model, shape)
        self.device = next(model.parameters(), torch.empty(0)).device
        self.known: dict[fx.Node, Any] = {}

    def read(self, graph: fx.Graph) -> Program:
        for node in graph.nodes:
            if node.op == "output":
                answer = self._of(node.args[0])
                if not isinstance(answer, Value) or len(answer.shape) != 1:
                    raise _refused(node, "an answer that is no tensor of logits [B, K]")
                self.program.output = answer.index
            else:
                self.known[node] = self._node(node)
        return self.program

    def _of(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self.known[node])

    def _node(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            if not self.known:
                return Value(0, self.program.shape)
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args, named = list(self._of(node.args)), dict(self._of(node.kwargs))
        target, run = self._target(node)
        parts = _leaves((args, named))
        if not any(isinstance(part, Value) for part in parts):
            return self._constant(run, args, named, parts)
        answer = self._shape(node, run, args, named)
        if not isinstance(answer, Tensor):
            return answer
        return self._call(node, target, args, named, answer)

    def _attribute(self, name: str) -> Any:
        fetch = operator.attrgetter(name)
        value, model = fetch(self.program.model), self.program.model
        return Const(lambda: fetch(model)) if _tensor(value) else value

    def _target(self, node: fx.Node) -> tuple[Any, Callable[..., Any]]:
        """What a reader is registered for, and what computes the node."""
        if node.op == "call_module":
            module = self.program.model.get_submodule(str(node.target))
            return module, module
        if node.op == "call_method":
            name = str(node.target)
            return name, lambda x, *args, **named: getattr(x, name)(*args, **named)
        function: Any = node.target
        return function, function

    def _constant(self, run: Callable[..., Any], args: Any, named: Any, parts: list[Any]) -> Any:
        """What does not depend on the image: a value now, or a tensor that is computed at each pass."""
        if not any(isinstance(part, Const) for part in parts):
            return run(*args, **named)

        def compute() -> Any:
            now = fx.node.map_aggregate((tuple(args), named), _now)
            return run(*now[0], **now[1])

        return Const(compute) if _tensor(value := compute()) else value

    def _shape(self, node: fx.Node, run: Callable[..., Any], args: Any, named: Any) -> Any:
        """What the node answers on zeros: a tensor [_ROWS, *shape], or a size."""
        given = fx.node.map_aggregate((tuple(args), named), self._zeros)
        try:
            return run(*given[0], **given[1])
        except Exception as error:  # noqa: BLE001 - whatever an operator refuses, has no bounds
            raise _refused(node, _title(node, run), str(error).partition("\n")[0]) from error

    def _zeros(self, part: Any) -> Any:
        return (
            torch.zeros((_ROWS, *part.shape), device=self.device) if isinstance(part, Value) else _now(part)
        )

    def _call(self, node: fx.Node, target: Any, args: Any, named: Any, answer: Tensor) -> Value:
        if not answer.dim() or len(answer) != _ROWS:
            raise _refused(node, f"{_title(node, target)}, which mixes the images of a batch,")
        reader = reader_of(target)
        call = Call(
            self.program, tuple(answer.shape[1:]), str(node.target if node.op == "call_module" else node)
        )
        value = None
        if reader is not None:
            given = (call, target, *args) if isinstance(target, nn.Module) else (call, *args)
            if _binds(reader, given, named):
                value = reader(*given, **named)
        if value is None:
            raise _refused(node, _title(node, target))
        return value


def _binds(reader: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a call has only arguments that its reader knows."""
    try:
        inspect.signature(reader).bind(*args, **named)
    except TypeError:
        return False
    return True


def _leaves(arguments: Any) -> list[Any]:
    """All values in nested tuples, lists and mappings."""
    found: list[Any] = []
    fx.node.map_aggregate(arguments, found.append)
    return found


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _now(part: Any) -> Any:
    return part.get() if isinstance(part, Const) else part


def _title(node: fx.Node, target: Any) -> str:
    """How a message names an operation: nn.Softmax, torch.round, Tensor.round."""
    if isinstance(target, nn.Module):
        name = type(target).__name__
        return f"nn.{name}" if type(target).__module__.startswith("torch.") else name
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    room = (getattr(node.target, "__module__", "") or "torch").lstrip("_")
    return f"{room}.{getattr(node.target, '__name__', node.target)}"


def _refused(node: fx.Node, title: str, why: str = "") -> UnsupportedOperation:
    hint = _INSTEAD.get(title.rpartition(".")[2], _KNOWN)
    what = f"{title} has no bounds" if not why else f"{title} has no bounds: {why}"
    return UnsupportedOperation(what, where=place(node), hint=hint)


def _compare(program: Program) -> None:
    """Refuse a program that computes something else than the network on two random images."""
    model = program.model
    like = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, *program.shape), generator=generator).to(like.device)
    wanted, got = model(x).float(), forward(program, x)
    if wanted.shape == got.shape:
        error, scale = float((wanted - got).abs().max()), float(wanted.abs().max())
        if error <= _NEAR * (1 + scale):
            return
    raise UnsupportedOperation(
        f"{type(model).__name__} computes something that its graph does not show",
        hint="no draws, no changes in place of a tensor that is read again, no branches on self.training",
    )


def forward(program: Program, x: Tensor) -> Tensor:
    """Logits [B, K] of pixels x [B, *shape], by the steps of the program."""
    values = [x]
    for step in program.steps:
        weights = step.op.read(x.dtype)
        values.append(step.op.forward(weights, *(values[node] for node in step.inputs)))
    return values[program.output]

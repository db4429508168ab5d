"""A network as a list of primitive operations, and what a reader of a call of torch gets to write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustcli.core.bounds.op import Op, Shape


@dataclass(frozen=True)
class Value:
    """What depends on the image: node `index` of the program, of shape [B, *shape]."""

    index: int
    shape: Shape


@dataclass(frozen=True)
class Const:
    """A tensor of the network, read anew at each pass."""

    get: Callable[[], Tensor]

    def to(self, dtype: torch.dtype) -> Tensor:
        """Its value in this precision."""
        return self.get().to(dtype)


@dataclass(frozen=True)
class Step:
    """Node k + 1 of a program, k its place in the list: `op` of the nodes `inputs`; [B, *shape].

    name: how a message calls it.
    """

    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    name: str


@dataclass
class Program:
    """The steps of a network in the order of their computation; node 0 is the image [B, *shape].

    Weights are those of the live modules: a program stays right while its network is trained.
    """

    model: nn.Module
    shape: Shape
    steps: list[Step] = field(default_factory=list)
    output: int = 0

    def shape_of(self, node: int) -> Shape:
        """Shape of a node without the batch."""
        return self.steps[node - 1].shape if node else self.shape

    @property
    def classes(self) -> int:
        """K, the number of logits."""
        return self.shape_of(self.output)[-1]

    def add(self, op: Op, inputs: tuple[Value, ...], shape: Shape, name: str) -> Value:
        """One more step at the end."""
        self.steps.append(Step(op, tuple(value.index for value in inputs), shape, name))
        return Value(len(self.steps), shape)


@dataclass(frozen=True)
class Call:
    """One call of torch while it is read: `shape` is that of its answer, without the batch."""

    program: Program
    shape: Shape
    name: str

    def emit(self, op: Op, *inputs: Value, shape: Shape | None = None) -> Value:
        """Add a step to the program."""
        return self.program.add(op, inputs, self.shape if shape is None else shape, self.name)


#: (call, the arguments of the call, a module first) -> the node of its answer; None where it has no bounds.
Reader: TypeAlias = Callable[..., "Value | None"]
_readers: dict[Any, Reader] = {}


def reads(*targets: Any) -> Callable[[Reader], Reader]:
    """Register the reader of module classes, functions and methods (by name)."""

    def register(reader: Reader) -> Reader:
        _readers.update(dict.fromkeys(targets, reader))
        return reader

    return register


def reader_of(target: Any) -> Reader | None:
    """The reader of a function, a method's name or a module; of a subclass too that keeps `forward`."""
    if not isinstance(target, nn.Module):
        return _readers.get(target)
    for kind in type(target).__mro__:
        if kind in _readers:
            kept = getattr(type(target), "forward", None) is getattr(kind, "forward", None)
            return _readers[kind] if kept else None
    return None


def at(size: Any, axis: int) -> int:
    """One of the two sizes of a window, given as torch takes them: a pair, or a number for both."""
    return int(size[axis] if len(size) > 1 else size[0]) if isinstance(size, (tuple, list)) else int(size)


def both(size: Any) -> tuple[int, int]:
    """Both sizes of a window, given as torch takes them."""
    return at(size, 0), at(size, 1)

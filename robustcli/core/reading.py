"""A network read as values that can be compared: its structure, its attributes, the tensors in them."""

from __future__ import annotations

import hashlib
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustcli.core.untouched import HELD

_VALUES = (
    *(int, float, complex, str, bytes, type(None), type, Enum, PurePath, range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
#: What is compared by identity: code, which is not written to in place.
_CODE = (FunctionType, BuiltinFunctionType, ModuleType, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_MOST = 50_000  # values inside attributes that are read: more take longer than making a twin
_DEEP = 50  # values inside values
_HEAP = 1 << 9  # the flag of classes that are made at run time, as all that Python code defines


class _Plain:
    """An object that holds nothing but its `vars`."""


class OpaqueError(Exception):
    """A network holds something that may change in place without a trace that could be compared."""


class Weak:
    """An object as itself, not kept alive: equal to another of the same object while that lives."""

    def __init__(self, thing: Any) -> None:
        self._ref = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        mine = self._ref()
        return isinstance(other, Weak) and mine is not None and mine is other._ref()

    __hash__ = object.__hash__


class Reading:
    """All that is compared of a network but the numbers of its tensors.

    Attributes:
        build: equal for two readings of a network of the same build.
        registered: each parameter and buffer once, that has numbers.
        loose: each other tensor in the attributes of its modules, also inside lists, dicts and plain objects.

    Raises:
        OpaqueError: it cannot be compared.
    """

    def __init__(self, model: nn.Module) -> None:
        modules, registered = [*model.modules()], [*model.parameters(), *model.buffers()]
        self.registered = [tensor for tensor in registered if _has_numbers(tensor)]
        self.loose: list[Tensor] = []
        self._modules = {id(module) for module in modules}
        self._places = {id(tensor): place for place, tensor in enumerate(registered)}
        self._met: dict[int, tuple[Any, int]] = {}  # the object is held, so that its id is not used again
        self._left = _MOST
        self.build = [self._module(module) for module in modules]

    def _module(self, module: nn.Module) -> tuple[Any, ...]:
        if isinstance(module, torch.jit.ScriptModule):
            raise OpaqueError("the attributes of TorchScript are not Python's")
        return Weak(module), self._value(type(module).forward, 0), *self._attributes(module)

    def _attributes(self, module: nn.Module) -> list[Any]:
        return [(name, self._value(value, 0)) for name, value in vars(module).items() if name not in HELD]

    def _value(self, thing: Any, depth: int) -> Any:
        """A value as it is, a tensor by its kind, code by identity, anything else by what it holds."""
        if isinstance(thing, _VALUES):
            return thing
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if isinstance(thing, _CONTAINERS) and not thing and not getattr(thing, "__dict__", None):
            return type(thing), _factory(thing)
        if isinstance(thing, _CODE) or id(thing) in self._modules:
            return Weak(thing)
        if isinstance(thing, (np.ndarray, np.generic)):
            return _array(np.asarray(thing))
        if isinstance(thing, weakref.ref):
            return weakref.ref, self._value(thing(), depth)
        if id(thing) in self._met:
            return "again", self._met[id(thing)][1]
        self._met[id(thing)] = thing, len(self._met)
        return type(thing), *(self._inside(part, depth + 1) for part in _parts(thing))

    def _inside(self, thing: Any, depth: int) -> Any:
        """As `_value`, of what an attribute holds."""
        self._left -= 1
        if self._left < 0 or depth > _DEEP:
            raise OpaqueError("too much to read")
        return self._value(thing, depth)

    def _tensor(self, tensor: Tensor) -> Any:
        if is_lazy(tensor):
            return "lazy"
        if not tensor.is_meta and not _has_numbers(tensor):
            raise OpaqueError("a tensor of another layout")
        place = self._places.get(id(tensor))
        if place is None and not tensor.is_meta:
            self.loose.append(tensor)
        return place, tensor.shape, tensor.dtype, tensor.device


def _has_numbers(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta and tensor.layout is torch.strided


def _array(array: Any) -> tuple[Any, ...]:
    """An array of numpy by its numbers."""
    if array.dtype.hasobject:
        raise OpaqueError("an array of objects")
    return array.dtype.str, array.shape, hashlib.blake2b(array.tobytes()).digest()


def _parts(thing: Any) -> Iterable[Any]:
    """What a container or a plain object holds, in a fixed order; no code of its class runs."""
    if isinstance(thing, MethodType):  # made anew at each access
        return thing.__self__, thing.__func__
    if isinstance(thing, partial):
        return thing.func, thing.args, thing.keywords, vars(thing)
    if isinstance(thing, slice):
        return thing.start, thing.stop, thing.step
    inner = _items(thing)
    if inner is None and not _plain(thing):
        raise OpaqueError(f"an object of type {type(thing).__name__}")
    return *(inner or ()), *(part for item in getattr(thing, "__dict__", {}).items() for part in item)


def _items(thing: Any) -> list[Any] | None:
    """The elements of a container; None for what is none."""
    if isinstance(thing, dict):
        pairs = [part for pair in dict.items(thing) for part in pair]
        return [_factory(thing), *pairs]
    kind: Any
    for kind in _CONTAINERS[1:]:
        if isinstance(thing, kind):
            return [*kind.__iter__(thing)]
    return None


def _factory(thing: Any) -> Any:
    """What a defaultdict makes of a missing key; None for all else."""
    return thing.default_factory if isinstance(thing, defaultdict) else None


def _plain(thing: Any) -> bool:
    """Whether all that an object holds is in its `vars`: neither slots nor what C code keeps."""
    if isinstance(thing, SimpleNamespace):
        return True
    made = type(thing)
    return (
        bool(made.__flags__ & _HEAP)
        and made.__basicsize__ == _Plain.__basicsize__
        and hasattr(thing, "__dict__")
    )

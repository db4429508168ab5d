"""Whether a network is still what it was: its structure, its attributes and the numbers of its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustcli.core.untouched import HELD, tensors_of

Change = Literal["none", "numbers", "build"]

_VALUES = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
_CONTAINERS = (dict, list, tuple, set, frozenset)
_DEEP = 3  # containers inside containers that are looked into


class Likeness:
    """A network at one moment, remembered without keeping it alive.

    Numbers are compared with a copy of them. A write through `.data` moves no version counter of PyTorch, so
    counters would not show it. What a network reads outside its own attributes is not seen.

    Attributes:
        copies: id of each tensor of the network -> its numbers at that moment.
    """

    def __init__(self, model: nn.Module) -> None:
        self._build = _build(model)
        self._remember(model)

    def change(self, model: nn.Module) -> Change:
        """What of a network is no longer as it was.

        "numbers": only those of its tensors are; other tensors of the same shapes may be in their place.
        "build": modules, attributes, shapes or types are others.
        """
        if _build(model) != self._build:
            return "build"
        tensors = tensors_of(model)
        if not _fit(tensors, self._numbers):
            return "build"
        same = _equal(tensors, self._numbers)
        if not same or [id(tensor) for tensor in tensors] != [*self.copies]:
            self._remember(model)
        return "none" if same else "numbers"

    def _remember(self, model: nn.Module) -> None:
        tensors = tensors_of(model)
        self._numbers = [tensor.detach().clone() for tensor in tensors]
        self.copies = dict(zip(map(id, tensors), self._numbers, strict=True))


def _fit(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether these are as many tensors, of the same shapes, types and devices."""
    return [_kind(tensor) for tensor in tensors] == [_kind(tensor) for tensor in others]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


@torch.no_grad()
def _equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all numbers are equal; an accelerator is waited for once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    same = [(a == b).all() for a, b in zip(tensors, others, strict=True)]
    home = same[-1].device
    return bool(torch.stack([flag.to(home) for flag in same]).all())


class _Weak:
    """An object as itself, not kept alive: equal to another of the same object while that lives."""

    def __init__(self, thing: Any) -> None:
        self._ref = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        mine = self._ref()
        return isinstance(other, _Weak) and mine is not None and mine is other._ref()

    __hash__ = object.__hash__


def _build(model: nn.Module) -> list[Any]:
    """All that is compared of a network but the numbers of its tensors."""
    return [_module(module) for module in model.modules()]


def _module(module: nn.Module) -> tuple[Any, ...]:
    if isinstance(module, torch.jit.ScriptModule):  # its attributes are not Python's
        return (_Weak(module),)
    attributes = ((name, _token(value)) for name, value in vars(module).items() if name not in HELD)
    return _Weak(module), _token(type(module).forward), *attributes


def _token(thing: Any, depth: int = 0) -> Any:
    """A value as it is, a tensor by its kind, a container by what it holds, any other object by identity."""
    if isinstance(thing, _VALUES):
        return thing
    if isinstance(thing, Tensor):
        return "lazy" if is_lazy(thing) else _kind(thing)
    if type(thing).__name__ == "OrderedDict" or type(thing) in _CONTAINERS:
        return type(thing), *_tokens(thing, depth + 1)
    if isinstance(thing, MethodType):  # made anew at each access
        return _token(thing.__self__, depth), _token(thing.__func__, depth)
    try:
        return _Weak(thing)
    except TypeError:
        return type(thing), id(thing)


def _tokens(container: Any, depth: int) -> Iterable[Any]:
    if not container or depth > _DEEP:
        return (len(container),)
    if isinstance(container, dict):
        return [(_token(key, depth), _token(value, depth)) for key, value in container.items()]
    return [_token(item, depth) for item in container]

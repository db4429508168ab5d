"""A model as it was: what its forward passes wrote into it is taken back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: What `core.modes` sets and puts back, for all threads.
HELD = frozenset({"training", "track_running_stats"})
_CONTAINERS = (dict, OrderedDict, list)


@contextmanager
def as_before(model: nn.Module, copies: Mapping[int, Tensor] | None = None) -> Iterator[None]:
    """On exit parameters, buffers and attributes are as before, also after an exception.

    A module gets back the attributes that it had, and dicts, lists and tensors among them their contents.
    What lies deeper stays as it is. Layers and parameters that a forward pass builds stay, and so do the
    attributes of the module that built them: an optimiser can only train what is there. Of TorchScript only
    parameters and buffers come back.

    copies: id of a tensor of the model -> a copy of its numbers now, where the caller has one.
    """
    known = copies or {}
    kept = [_Kept(module) for module in _open(model)]
    before = [(tensor, _copy(tensor, known)) for tensor in tensors_of(model)]
    try:
        yield
    finally:
        for state in kept:
            state.restore()
        with torch.no_grad():
            for tensor, numbers in before:
                if not torch.equal(tensor, numbers):  # a graph of another thread may hold it as it is
                    tensor.copy_(numbers)


class _Kept:
    """The attributes of one module, and the contents of those that hold others."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._parts = module, _parts(module)
        self._attributes = {name: value for name, value in vars(module).items() if name not in HELD}
        self._contents = [(v, copy.copy(v)) for v in self._attributes.values() if type(v) in _CONTAINERS]

    def restore(self) -> None:
        """Put them back, unless the module has built layers or parameters meanwhile."""
        if _parts(self._module) != self._parts:
            return
        now = vars(self._module)
        for name in now.keys() - self._attributes.keys() - HELD:
            del now[name]
        for name, value in self._attributes.items():
            if name not in now or now[name] is not value:
                now[name] = value
        for container, before in self._contents:
            _refill(container, before)


def _parts(module: nn.Module) -> set[str]:
    """The names of the layers, parameters and buffers that are there; lazy ones are there once they ran."""
    tensors = [*module._parameters.items(), *module._buffers.items()]
    return {name for name, value in tensors if value is not None and not is_lazy(value)} | {*module._modules}


def _refill(container: Any, before: Any) -> None:
    """Give a dict or list the contents that it had, if they changed."""
    if len(container) == len(before) and all(
        a is b for a, b in zip(_flat(container), _flat(before), strict=True)
    ):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(before)
    else:
        container.update(before)


def _flat(container: Any) -> list[Any]:
    """The elements of a list, or the keys and values of a dict."""
    return container if isinstance(container, list) else [*container.keys(), *container.values()]


def _open(model: nn.Module) -> list[nn.Module]:
    """The modules whose attributes are Python's: those of TorchScript are not."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


def _copy(tensor: Tensor, known: Mapping[int, Tensor]) -> Tensor:
    """The numbers of a tensor, which later writes do not move."""
    copied = known.get(id(tensor))
    return tensor.detach().clone() if copied is None else copied


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Each tensor of a model once, that has numbers: parameters, buffers and attributes."""
    found: list[Any] = [*model.parameters(), *model.buffers()]
    for module in _open(model):
        found += [value for value in vars(module).values() if isinstance(value, Tensor)]
    numbers = {id(t): t for t in found if not is_lazy(t) and not t.is_meta and t.layout is torch.strided}
    return list(numbers.values())

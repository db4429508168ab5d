"""Tensors that lie on the CPU and say that they lie on `cuda:0`.

Each is a CPU tensor of a class of its own, so all kernels, views and gradients are those of the CPU. Two
hooks of torch watch them, in every thread. `__torch_function__` sees what Python asks: here tensors of two
places are told apart. `__torch_dispatch__` sees each operator, also of C++ and of a backward pass: here
results get the class, waits are counted, and streams are compared.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import NamedTuple

import torch

from pretended import streams

CUDA = torch.device("cuda", 0)
_plainly = torch._C.DisableTorchFunctionSubclass
_local = threading.local()  # .asked: the function that Python asks for, while it runs

#: Operators for which a device is waited for, as their result tells the host a number or a shape.
WAITS = {
    "aten::_local_scalar_dense": "item",
    **{f"aten::{name}": name for name in ("nonzero", "masked_select", "equal", "unique_dim", "bincount")},
    **{f"aten::{name}": name for name in ("unique_consecutive", "multinomial", "_linalg_check_errors")},
    "aten::allclose": "equal",
    "aten::_unique2": "unique",
    "aten::_unique": "unique",
    "aten::repeat_interleave": "repeat_interleave",
    "aten::_linalg_svd": "svd",
    "aten::_linalg_eigh": "eigh",
}
_PUTS = ("aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
#: What takes tensors of both places.
_BETWEEN = {"copy_", "_foreach_copy_", "__set__", "_has_compatible_shallow_copy_type", "swap_tensors", "set_"}
#: What takes no number of the CPU beside tensors of the device.
_STRICT = {"cat", "concat", "stack", "hstack", "vstack", "matmul", "mm", "bmm", "linear", "dot", "einsum"}


class OnDevice(torch.Tensor):
    """A tensor that says it lies on the device."""

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    def numpy(self, *_, **__):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host"
            " memory first."
        )

    def __array__(self, *_, **__):
        self.numpy()

    def tolist(self):
        watcher().wait("tolist")
        return bare(self).tolist()

    def __format__(self, spec):
        return format(self.item() if not self.dim() else str(self), spec)

    def pin_memory(self, *_):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def is_pinned(self, *_):
        return False

    def record_stream(self, stream):
        return None

    def __repr__(self, **_):
        watcher().wait("print")
        return f"{bare(self)!r}"[:-1] + ", device='cuda:0')"

    def __reduce_ex__(self, protocol):
        watcher().wait("pickle")
        return _sent_back, (bare(self), self.requires_grad)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _asked(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _operated(func, args, kwargs or {})


class Watcher:
    """What is told of waits; `place.Device` takes its place while a device is pretended."""

    generator = None

    def wait(self, what): ...

    def fits(self, generator, on_device): ...


_watcher = [Watcher()]


def watcher():
    return _watcher[-1]


def here(value) -> bool:
    """Whether a value is a tensor on the device."""
    return isinstance(value, OnDevice)


def bare(tensor):
    """The CPU tensor behind one of the device: the same memory, without a gradient."""
    with torch._C._DisableTorchDispatch(), _plainly():
        return tensor.detach().as_subclass(torch.Tensor)


def placed(tensor):
    """The same memory as a tensor of the device, without a gradient."""
    if here(tensor):
        return tensor
    return torch.Tensor._make_subclass(OnDevice, tensor)


def _leaves(value, found):
    """All tensors in arguments, which are lists, tuples and mappings of them, added to `found`."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _leaves(part, found)
    elif isinstance(value, dict):
        _leaves(list(value.values()), found)
    return found


def _mapped(value, change):
    """A result with `change(tensor)` in place of each tensor."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(part, change) for part in value)
    if isinstance(value, tuple) and any(
        isinstance(part, torch.Tensor) for part in value
    ):  # (values, indices)
        return type(value)([_mapped(part, change) for part in value])
    return value


def _sent_back(tensor, requires_grad):
    """What torch.load makes of a tensor of the device."""
    return placed(tensor).requires_grad_(requires_grad)


# ---- what Python asks --------------------------------------------------------------------------------------


def _asked(func, args, kwargs):
    name = getattr(func, "__name__", "")
    if name == "__get__":
        with _plainly():
            return func(*args, **kwargs)
    outer = getattr(_local, "asked", None)
    if outer is None:
        _check(name, args, kwargs)
        _local.asked = name
    try:
        with _plainly():
            out = func(*args, **kwargs)
    finally:
        _local.asked = outer
    if out is None or type(out) in (int, bool, float, str):
        return out
    given = {id(value) for value in args}
    return _mapped(out, lambda tensor: tensor if id(tensor) in given else _joined(tensor))


def _joined(tensor):
    """A result that C++ made of helpers of its own; it keeps its graph."""
    if here(tensor) or tensor.device.type != "cpu":
        return tensor
    with _plainly():
        return tensor.as_subclass(OnDevice)


def _check(name, args, kwargs):
    """Raise what torch raises where tensors of both places meet, or a generator and tensors do."""
    watcher().fits(kwargs.get("generator"), True)
    if name in _BETWEEN:
        return
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        return _check_index(name, *args)
    tensors = _leaves(kwargs, _leaves(args, []))
    outside = [t for t in tensors if not here(t) and (t.dim() or name in _STRICT)]
    if outside:
        shapes = [tuple(t.shape) for t in outside]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            f" ({name}, on the CPU: {shapes})"
        )


def _check_index(name, target, index, *values):
    indices = _leaves(index, [])
    if not here(target) and any(map(here, indices)):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    if here(target) and not all(map(here, indices)):
        watcher().wait("an index from the CPU")
    for value in values:
        if isinstance(value, torch.Tensor) and here(value) != here(target) and value.dim() and indices:
            raise RuntimeError("expected all tensors to be on the same device: values of an index put")


# ---- what is carried out -----------------------------------------------------------------------------------


class _Facts(NamedTuple):
    """What is read once of an operator."""

    name: str
    mutable: bool
    view: bool
    waits: str
    generator: int | None  # its place among the arguments


@cache
def _facts(func):
    schema = func._schema
    kinds = [argument.alias_info for argument in schema.arguments]
    places = [n for n, argument in enumerate(schema.arguments) if argument.name == "generator"]
    view = any(kind is not None and not kind.is_write for kind in kinds)
    return _Facts(schema.name, schema.is_mutable, view, WAITS.get(schema.name, ""), next(iter(places), None))


def _operated(func, args, kwargs):
    facts, backward = _facts(func), torch._C._current_graph_task_id() != -1
    _count(facts, args)
    if facts.generator is not None:
        kwargs = _drawn(facts.generator, args, kwargs)
    stream, tensors = streams.current(), _leaves(kwargs, _leaves(args, []))
    if not backward:
        for tensor in tensors:
            _in_order(stream, tensor, facts.name)
        if facts.name == "aten::copy_" and _explicit() and here(args[0]) != here(args[1]):
            return _copied(args[0], args[1], len(args) > 2 and args[2])
    with torch._C._DisableTorchDispatch():
        out = func(*args, **kwargs)
    number, given = stream.work(), {id(tensor) for tensor in tensors}
    if facts.mutable:
        for tensor in filter(here, tensors):
            mark(tensor, stream, number)

    def result(tensor):
        if id(tensor) in given:
            return tensor
        answer = placed(tensor)
        if not facts.view:
            mark(answer, stream, number)
        return answer

    return _mapped(out, result)


def _explicit():
    """Whether a copy is the user's, and not one of C++ with helpers of its own."""
    return getattr(_local, "asked", None) in (None, "copy_", "_foreach_copy_", "__setitem__")


def _copied(target, source, non_blocking):
    """target <- source, of which one lies on the device."""
    with torch._C._DisableTorchDispatch():
        target.copy_(source)
    if here(target):
        watcher().sent(source, target, non_blocking)
    else:
        watcher().fetched(target, non_blocking)
    return target


def _count(facts, args):
    """Tell the device of an operator for which the host waits."""
    if facts.waits:
        watcher().wait(facts.waits)
    elif facts.name == "aten::index" and any(map(_mask, args[1])):
        watcher().wait("a mask as index")
    elif facts.name in _PUTS and any(map(_mask, args[1])):
        if here(args[2]) or args[2].numel() != 1:  # torch fills such a mask without looking at it
            watcher().wait("a mask as index")


def _mask(index):
    return index is not None and here(index) and index.dtype in (torch.bool, torch.uint8)


def _drawn(place, args, kwargs):
    """The keywords with the generator of the device, where none was given."""
    if place < len(args) or kwargs.get("generator") is not None:
        return kwargs
    return {**kwargs, "generator": watcher().generator}


# ---- streams -----------------------------------------------------------------------------------------------


def _storage(tensor):
    with _plainly(), torch._C._DisableTorchDispatch():
        return tensor.untyped_storage()


def mark(tensor, stream, number):
    """This memory was written by this piece of work."""
    _storage(tensor).written = (stream, number)


def _in_order(stream, tensor, what):
    """Raise where a stream uses what another one writes, without having waited for it."""
    if not here(tensor):
        return
    written = getattr(_storage(tensor), "written", None)
    if written is not None and not stream.is_after(*written):
        raise RuntimeError(f"{what} uses a tensor that another stream writes: wait for that stream first")

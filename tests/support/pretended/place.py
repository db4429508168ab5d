"""The pretended device: what torch.cuda answers, copies to and fro, and the count of waits."""

from __future__ import annotations

import contextlib
import sys
import types
from collections import Counter
from pathlib import Path

import torch

import robustcli
from pretended import streams, tensors
from pretended.tensors import CUDA, OnDevice, bare, here, mark, placed

_OURS = str(Path(robustcli.__file__).parent)
_NOT_CALLERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
_plainly = torch._C.DisableTorchFunctionSubclass


def _caller():
    """file:function of the nearest code that is robustcli's, or else nobody's of torch."""
    frame, nearest = sys._getframe(2), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return f"{name[len(_OURS) + 1 :]}:{frame.f_code.co_name}"
        if not nearest and not name.startswith(_NOT_CALLERS):
            nearest = f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return nearest


class Device(tensors.Watcher):
    """One pretended GPU. `waits` counts how often the host waited for it: {(call site, why): times}."""

    def __init__(self):
        self.waits: Counter[tuple[str, str]] = Counter()
        self.generator = Generator("cuda")
        self.faults: list[str] = []

    def wait(self, what):
        """The host waits for the current stream; what it was to get by then is there afterwards."""
        self.waits[_caller(), what] += 1
        streams.arrive(streams.current().until())

    def waited(self, what):
        """The host waits for a stream or event, which sees to the rest itself."""
        self.waits[_caller(), what] += 1

    def fits(self, generator, on_device):
        """Raise where a generator of one place draws numbers for the other."""
        if isinstance(generator, Generator) and (generator.on == "cuda") != on_device:
            wanted = "cuda" if on_device else "cpu"
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{generator.on}'")

    @contextlib.contextmanager
    def counted(self):
        """The waits inside."""
        before, found = self.waits.copy(), Counter()
        yield found
        found.update(self.waits - before)

    def sent(self, source, target, non_blocking):
        """A copy to the device. A page-locked source must stay as it is until it has been waited for."""
        stream = streams.current()
        mark(target, stream, stream.work())
        if not non_blocking:
            self.wait("a copy to the device")
        elif source.is_pinned():
            content, site = source.detach().clone(), _caller()
            stream.later(lambda: self._compare(source.detach(), content, site))

    def _compare(self, source, content, site):
        if not torch.equal(_bytes(source), _bytes(content)):
            self.faults.append(f"a page-locked tensor was written while it was copied to the device ({site})")

    def fetched(self, target, non_blocking):
        """A copy to the CPU, whose numbers are wrong until it has been waited for."""
        if not non_blocking:
            return self.wait("a copy to the CPU")
        content = target.detach().clone()
        _spoil(target)
        return streams.current().later(lambda: target.detach().copy_(content))


def _bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _spoil(tensor):
    """Numbers that nobody takes for right ones."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.is_floating_point():
        tensor.fill_(float("nan"))
    else:
        tensor.bitwise_not_()


# ---- copies ------------------------------------------------------------------------------------------------

_to = torch.Tensor.to


class _Across(torch.autograd.Function):
    """A copy to the other place; its gradient goes back there."""

    @staticmethod
    def forward(ctx, tensor, options, non_blocking):
        ctx.dtype = tensor.dtype
        return _crossed(tensor, options, non_blocking)

    @staticmethod
    def backward(ctx, grad):
        return _crossed(grad, {"dtype": ctx.dtype}, True), None, None


def _crossed(tensor, options, non_blocking):
    if not here(tensor):
        target = placed(_to(tensor.detach(), copy=True, **options))
        tensors.watcher().sent(tensor, target, non_blocking)
        return target
    tensors._in_order(streams.current(), tensor, "to")
    target = _to(bare(tensor), copy=True, **options)
    tensors.watcher().fetched(target, non_blocking)
    if non_blocking:  # as torch does: what is not waited for must be page-locked
        _lock(target)
    return target


def to(self, *args, copy=False, **kwargs):
    """torch.Tensor.to."""
    if args and isinstance(args[0], torch.Tensor) or isinstance(kwargs.get("other"), torch.Tensor):
        other, *rest = args or (kwargs.pop("other"),)
        args = (other.device, other.dtype, *rest)
    with _plainly():
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    device = _known(device)
    if device is not None and device.type not in ("cpu", "cuda"):
        return _to(self, *args, copy=copy, **kwargs)
    options = {"dtype": dtype or self.dtype} | ({} if layout is None else {"memory_format": layout})
    if device is None or (device.type == "cuda") == here(self):
        return _to(self, copy=copy, **options)
    if self.requires_grad and torch.is_grad_enabled():
        return _Across.apply(self, options, non_blocking)
    return _crossed(self, options, non_blocking)


def _known(device):
    """The device; there is one GPU alone."""
    if device is not None and device.type == "cuda" and device.index not in (None, 0):
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device


def cuda(self, device=None, non_blocking=False, memory_format=torch.preserve_format):
    return to(self, CUDA, non_blocking=non_blocking, memory_format=memory_format)


def cpu(self, memory_format=torch.preserve_format):
    return to(self, torch.device("cpu"), memory_format=memory_format)


# ---- page-locked memory, generators ------------------------------------------------------------------------


def _lock(tensor):
    tensor.untyped_storage().locked = True
    return tensor


def pin_memory(self, device=None):
    return self if is_pinned(self) else _lock(self.detach().clone())


def is_pinned(self, device=None):
    return getattr(self.untyped_storage(), "locked", False)


class Generator(torch.Generator):
    """A generator that knows its device, and draws as one of the CPU."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        made.on = torch.device(device).type
        return made

    @property
    def device(self):
        return CUDA if self.on == "cuda" else torch.device("cpu")


def _made(original):
    """A function that makes tensors: `pin_memory=True`, and generators that draw for another device."""

    def make(*args, pin_memory=False, **kwargs):
        tensors.watcher().fits(kwargs.get("generator"), str(kwargs.get("device", "cpu")).startswith("cuda"))
        made = original(*args, **kwargs)
        return _lock(made) if pin_memory else made

    return make


def _filled(original):
    """A method that draws numbers into a tensor."""

    def fill(self, *args, **kwargs):
        tensors.watcher().fits(kwargs.get("generator"), here(self))
        return original(self, *args, **kwargs)

    return fill


def _from_data(original):
    """torch.tensor and its kin, which copy what the host gives to the device."""

    def make(*args, device=None, **kwargs):
        made = original(*args, **kwargs)
        return made if device is None else to(made, torch.device(device))

    return make


# ---- torch.cuda --------------------------------------------------------------------------------------------

_ANSWERS = {
    "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
    "is_bf16_supported": True, "get_device_name": "Pretended GPU", "get_device_capability": (9, 0),
    "mem_get_info": (70 << 30, 80 << 30),
    "max_memory_allocated": 1 << 20, "memory_allocated": 1 << 20, "max_memory_reserved": 1 << 20,
    "memory_reserved": 1 << 20, "is_current_stream_capturing": False,
    "get_device_properties": types.SimpleNamespace(
        name="Pretended GPU", total_memory=80 << 30, major=9, minor=0, multi_processor_count=132
    ),
}  # fmt: skip
_SILENT = ("_lazy_init", "init", "reset_peak_memory_stats", "empty_cache", "set_device", "ipc_collect")
_MAKERS = ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "empty_like")
_READERS = ("tensor", "as_tensor", "asarray")
_DRAWERS = ("normal_", "uniform_", "random_", "bernoulli_", "exponential_")


class _NoGraph:
    def __init__(self, *_, **__):
        raise RuntimeError("a pretended device captures no graph")


class _Autocast(torch.autocast):
    """Autocast of the device is that of the CPU, where its tensors lie."""

    def __init__(self, device_type, *args, **kwargs):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


_grouped = torch._C._group_tensors_by_device_and_dtype


def _groups(tensors, with_indices=False):
    """The groups that torch's optimisers work on, by the device that tensors say they are on."""
    found = _grouped(tensors, with_indices)
    return {
        (CUDA if here(next(t for t in parts[0][0] if t is not None)) else place, dtype): parts
        for (place, dtype), parts in found.items()
    }


def _uncompiled(model=None, **_):
    return model if model is not None else lambda function: function


def _torch_cuda(device):
    """What torch.cuda has while the device is pretended."""
    own = device.generator

    def synchronize(_=None):
        device.waited("synchronize")
        for stream in device.streams:
            streams.arrive(stream.until())

    def seed(number):
        own.manual_seed(number)

    answers = {name: lambda *a, _answer=answer, **k: _answer for name, answer in _ANSWERS.items()}
    answers |= {name: lambda *a, **k: None for name in _SILENT}
    return answers | {
        "Stream": device.stream, "Event": streams.Event, "stream": streams.use, "StreamContext": streams.use,
        "current_stream": streams.current, "default_stream": lambda _=None: streams.default,
        "synchronize": synchronize, "manual_seed": seed, "manual_seed_all": seed, "CUDAGraph": _NoGraph,
        "get_rng_state": lambda _=None: own.get_state(), "device": lambda _: contextlib.nullcontext(),
        "set_rng_state": lambda state, _=None: own.set_state(state), "initial_seed": own.initial_seed,
        "get_rng_state_all": lambda: [own.get_state()],
        "set_rng_state_all": lambda states: own.set_state(states[0]),
    }  # fmt: skip


def _changes(device):
    """[(object, name, what it is while the device is pretended)]."""
    torch_cuda = _torch_cuda(device)
    changed = [(torch.cuda, name, value) for name, value in torch_cuda.items()]
    methods = {"to": to, "cuda": cuda, "cpu": cpu, "pin_memory": pin_memory, "is_pinned": is_pinned}
    methods |= {name: _filled(getattr(torch.Tensor, name)) for name in _DRAWERS}
    changed += [(torch.Tensor, name, value) for name, value in methods.items()]
    changed += [(torch, name, _made(getattr(torch, name))) for name in _MAKERS]
    changed += [
        (torch, name, _from_data(getattr(torch, name))) for name in ("tensor", "as_tensor", "asarray")
    ]
    changed += [
        (torch._C, "_group_tensors_by_device_and_dtype", _groups),
        (torch, "Generator", Generator),
        (torch, "compile", _uncompiled),
        (torch, "autocast", _Autocast),
    ]
    changed += [(torch.amp, "autocast", _Autocast)]
    answers = {"is_available": True, "current_accelerator": CUDA, "device_count": 1, "set_device_index": None}
    answers |= {"current_device_index": 0}
    named = {name: lambda *a, _answer=answer, **k: _answer for name, answer in answers.items()}
    named |= {"current_stream": streams.current, "synchronize": torch_cuda["synchronize"]}
    changed += [(torch.accelerator, name, value) for name, value in named.items()]
    return changed


def _factories():
    """The two operators by which all functions with `device="cuda"` make their tensors."""
    library = torch.library.Library("aten", "IMPL", "CUDA")

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        _known(device)
        return placed(_empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        _known(device)
        return placed(torch.empty_strided(size, stride, dtype=dtype))

    library.impl("empty.memory_format", empty)
    library.impl("empty_strided", empty_strided)
    return library


_empty = torch.empty


@contextlib.contextmanager
def pretended_cuda():
    """A pretended GPU `cuda:0` inside; yields its `Device`. Afterwards torch is as before."""
    device = Device()
    device.streams = [streams.default]

    class MadeStream(streams.Stream):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.waited = device.waited
            device.streams.append(self)

    device.stream = MadeStream
    streams.default.__init__()
    streams.default.waited = device.waited
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with contextlib.ExitStack() as stack:
        for owner, name, value in _changes(device):
            stack.callback(_restorer(owner, name))
            setattr(owner, name, value)
        library = _factories()
        stack.callback(library._destroy)
        tensors._watcher.append(device)
        stack.callback(tensors._watcher.pop)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        yield device
    if device.faults:
        raise AssertionError(device.faults)


def _restorer(owner, name):
    """() -> None: put back what an object has, or has inherited, under a name."""
    if name in vars(owner):
        before = vars(owner)[name]
        return lambda: setattr(owner, name, before)
    return lambda: delattr(owner, name)


__all__ = ["CUDA", "Device", "OnDevice", "pretended_cuda"]

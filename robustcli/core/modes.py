"""A model that is held still while it is attacked, also where several threads attack it at once.

`undisturbed` and `in_mode` are for one look at a model before that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from robustcli.core.untouched import as_before

BatchNormMode = Literal["eval", "batch"]
_turn = threading.Condition()
_inside = threading.local()  # .depth: how many `frozen` blocks this thread is in


@contextmanager
def frozen(model: nn.Module, bn: BatchNormMode = "eval") -> Iterator[nn.Module]:
    """Eval mode and no parameter gradients inside; on exit every flag is as before, even after an exception.

    Threads may hold one model, or parts of one, at the same time: the first sets the flags, the last puts
    them back, and all of them work on the caller's own modules. A thread that wants the other `bn` waits
    until the modules are free. A block inside another block of its thread never waits.

    Args:
        model: any module; the same one is yielded.
        bn: "eval": BatchNorm layers use their running statistics. "batch": they use the statistics of the
            batch and write no buffer. Reference codes that attack in train mode do write: there the passes
            of the attack change the running statistics.
    """
    wanted = [*((module, _mode(module, bn)) for module in model.modules()), *_quiet(model)]
    with _turn:
        if not _depth():
            _turn.wait_for(lambda: all(_free(item, mode) for item, mode in wanted))
        taken = [_take(item, mode) for item, mode in wanted]
        _inside.depth = _depth() + 1
    try:
        yield model
    finally:
        with _turn:
            _inside.depth -= 1
            for hold in reversed(taken):
                _release(hold)
            _turn.notify_all()


@contextmanager
def watched(model: nn.Module, hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """`frozen`, without gradients, for one look through hooks of the model; they are removed on exit."""
    try:
        with frozen(model), torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def trained_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that were in train mode when nobody held them frozen."""
    with _turn:
        return [module for module in model.modules() if _trained_before(module)]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """On exit torch's random generators are as before, and so is the model: see `untouched.as_before`."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    cuda = [device for device in devices if device.type == "cuda"]
    with as_before(model), torch.random.fork_rng(cuda):
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All of a model in train or eval mode inside, for one thread; on exit its flags are as before."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = training
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@dataclass
class _Hold:
    """A module or parameter that `count` blocks hold in one mode.

    before: its flags when the first of them came. below: what holds it in another mode, further out.
    """

    item: Any
    mode: str
    before: dict[str, bool]
    below: _Hold | None
    count: int = 0


_holds: dict[int, _Hold] = {}  # id of the item, which its hold keeps alive -> the innermost hold

#: The flags that a mode sets.
_SET = {
    "eval": {"training": False},
    "batch": {"training": True, "track_running_stats": False},
    "norm": {"training": False},
    "quiet": {"requires_grad": False},
}
#: The flags that it puts back.
_KEPT = {**_SET, "norm": _SET["batch"]}


def _mode(module: nn.Module, bn: BatchNormMode) -> str:
    """The mode that a module is held in; for BatchNorm the one that was asked for."""
    if not isinstance(module, _BatchNorm):
        return "eval"
    return "batch" if bn == "batch" else "norm"


def _quiet(model: nn.Module) -> list[tuple[nn.Parameter, str]]:
    return [(parameter, "quiet") for parameter in model.parameters()]


def _depth() -> int:
    return int(getattr(_inside, "depth", 0))


def _free(item: Any, mode: str) -> bool:
    """Whether nobody holds the item in another mode."""
    hold = _holds.get(id(item))
    return hold is None or hold.mode == mode


def _take(item: Any, mode: str) -> _Hold:
    """Hold the item in this mode; its flags are set."""
    hold = _holds.get(id(item))
    if hold is None or hold.mode != mode:
        hold = _holds[id(item)] = _Hold(item, mode, {name: getattr(item, name) for name in _KEPT[mode]}, hold)
    hold.count += 1
    _write(item, _SET[mode])
    return hold


def _release(hold: _Hold) -> None:
    """Give up one share; the last one puts the flags back."""
    hold.count -= 1
    if hold.count:
        return
    above, top = None, _holds[id(hold.item)]
    while top is not hold and top.below is not None:
        above, top = top, top.below
    if above is not None:  # another thread went further in, and leaves later
        above.below, above.before = hold.below, hold.before
        return
    _write(hold.item, hold.before)
    if hold.below is None:
        del _holds[id(hold.item)]
    else:
        _holds[id(hold.item)] = hold.below


def _write(item: Any, flags: dict[str, bool]) -> None:
    """Set flags as attributes: .eval() and .train() may be overridden, and call back."""
    for name, flag in flags.items():
        setattr(item, name, flag)


def _trained_before(module: nn.Module) -> bool:
    """Whether a module is in train mode while nobody holds it."""
    hold = _holds.get(id(module))
    if hold is None:
        return module.training
    while hold.below is not None:
        hold = hold.below
    return hold.before["training"]

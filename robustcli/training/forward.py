"""The model as it is trained: precision, compilation, recomputation. Pixels in, float32 logits out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from robustcli.core.copies import copy_of
from robustcli.core.modes import undisturbed
from robustcli.errors import out_of_memory
from robustcli.evaluation.quickest import GAIN, Length, seconds_of


class Forward:
    """Pixels [B, C, H, W] in [0, 1] -> logits float32 [B, K].

    Args:
        model: the classifier.
        dtype: autocast type; float32 means none.
        data_parallel: run on all GPUs of this process; nothing is compiled then.
        compiled: run through torch.compile.
        race: how many images pass, or how long that takes: in a long run the first pass that trains finds out
            whether compiled code is faster. None makes no race.

    Attributes:
        network: the model, not wrapped.
        note: why a model that should be compiled runs uncompiled; "" otherwise.
        way: what the race has found, as a line for the user; "" where there was none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        data_parallel: bool = False,
        compiled: bool = False,
        race: Length | None = None,
    ) -> None:
        self.network, self.dtype, self.note, self.way = model, dtype, "", ""
        self._plain: Callable[[Tensor], Tensor] = model
        if data_parallel:
            self._plain = nn.DataParallel(model)
        self._run: Callable[[Tensor], Tensor] = self._plain
        self._proven = not compiled or data_parallel
        if not self._proven:
            self._run = torch.compile(model)
        self._race = None if compiled or data_parallel else race

    def __call__(self, x: Tensor) -> Tensor:
        """The logits, with their graph."""
        if self._race is not None and self.network.training and torch.is_grad_enabled():
            length, self._race = self._race, None
            self._raced(x.detach(), length)
        with self._autocast(x):
            if not self._proven:
                return self._first_compiled_pass(x).float()
            return self._run(x).float()

    def _first_compiled_pass(self, x: Tensor) -> Tensor:
        """Compile and run; where the compiler fails, run the model uncompiled from now on."""
        try:
            logits = self._run(x)
        except Exception as failure:
            if out_of_memory(failure):
                raise
            self.note = f"not compiled: {type(failure).__name__}"
            self._run = self._plain
            logits = self._plain(x)
        self._proven = True
        return logits

    def _raced(self, x: Tensor, length: Length) -> None:
        """Compile from now on if the run is long and a copy of the network is then faster on x."""
        if length.short(len(x)):
            return
        copied, fast = copy_of(self.network), None
        if isinstance(copied, Exception):
            return
        try:
            with undisturbed(copied):
                plain = self._seconds(copied, copied, x)
                if length.long(plain / len(x)):
                    fast = self._seconds(torch.compile(copied), copied, x)
        except Exception as failure:  # a compiler that is missing, code that it does not understand, memory
            self.way = f"the outer step runs as it is: trying fails ({type(failure).__name__})"
        if fast is None:
            return
        found = f"as it is {1e3 * plain:.3g} ms, compiled {1e3 * fast:.3g} ms for {len(x)} images"
        if fast < GAIN * plain:
            self._run, self._proven = torch.compile(self.network), False
            self.way = f"the outer step runs compiled: {found}"
        else:
            self.way = f"the outer step runs as it is: {found}"

    def _seconds(self, call: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor) -> float:
        """Seconds of a forward and a backward pass of a network, called by `call`."""

        def work() -> None:
            with self._autocast(x):
                call(x).float().square().mean().backward()
            network.zero_grad(set_to_none=True)

        for _ in range(3):
            work()
        return seconds_of(work, x.device)

    def _autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.dtype)


class Shared:
    """A classifier that computes the logits of a tensor object once and returns them again.

    Objective and regularisers share passes and their graph through it.
    """

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self.network = getattr(model, "network", model)
        self._known: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """The logits of the tensor object x, computed at the first call."""
        for asked, logits in self._known:
            if asked is x:
                return logits
        logits = self._model(x)
        self._known.append((x, logits))
        return logits


def recompute(model: nn.Module) -> int:
    """Let each residual block drop its activations and compute them again in the backward pass.

    Returns the number of blocks. A block is a member of an nn.Sequential or nn.ModuleList that holds at least
    two modules with weights of their own. Only the activations between blocks stay in memory. The cost is one
    more forward pass. That second pass changes no BatchNorm buffer, or running statistics would move twice a
    step.
    Source: Chen et al., 2016, arXiv:1604.06174.
    """
    lists = [module for module in model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]
    members = [member for parent in lists for member in parent.children()]
    blocks = [
        member
        for member in members
        if not isinstance(member, (nn.Sequential, nn.ModuleList, torch.jit.ScriptModule))
        and "forward" not in vars(member)  # a forward of its own, which is not that of its class
        and _layers(member) >= 2
    ]
    for block in blocks:
        block.forward = _Recomputed(block)
    return len(blocks)


def _layers(module: nn.Module) -> int:
    """Number of modules inside that have weights of their own."""
    return sum(1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)


class _Recomputed:
    """The `forward` of a block: unchanged in evaluation, checkpointed in training."""

    def __init__(self, block: nn.Module) -> None:
        self._block, self._forward = block, type(block).forward

    def __call__(self, *inputs: Any) -> Any:
        if not self._block.training or not torch.is_grad_enabled():
            return self._forward(self._block, *inputs)
        return checkpoint(
            self._forward,
            self._block,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _UnmovedStatistics(self._block)),
            preserve_rng_state=True,
        )


class _UnmovedStatistics:
    """Inside, BatchNorm normalises by the batch and leaves its running statistics: momentum 0.

    The block stays in training mode, because the second pass must save the same tensors for the backward
    pass. A block is entered once for each backward pass: twice where a regulariser differentiates twice.
    """

    def __init__(self, block: nn.Module) -> None:
        norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
        self._norms = [norm for norm in norms if norm.track_running_stats]
        self._before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        counters = [norm.num_batches_tracked for norm in self._norms]
        self._before = [
            (norm.momentum, None if counter is None else counter.clone())
            for norm, counter in zip(self._norms, counters, strict=True)
        ]
        for norm in self._norms:
            norm.momentum = 0.0

    def __exit__(self, *ending: object) -> None:
        for norm, (momentum, number) in zip(self._norms, self._before, strict=True):
            norm.momentum = momentum
            if number is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(number)

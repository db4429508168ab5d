"""The model as it is trained: precision, compilation, recomputation. Pixels in, float32 logits out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from robustcli.errors import out_of_memory


class Forward:
    """Pixels [B, C, H, W] in [0, 1] -> logits float32 [B, K].

    Args:
        model: the classifier.
        dtype: autocast type; float32 means none.
        data_parallel: run on all GPUs of this process; nothing is compiled then.
        compiled: run through torch.compile.

    Attributes:
        network: the model, not wrapped.
        note: why a model that should be compiled runs uncompiled; "" otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        data_parallel: bool = False,
        compiled: bool = False,
    ) -> None:
        self.network, self.dtype, self.note = model, dtype, ""
        self._plain: Callable[[Tensor], Tensor] = model
        if data_parallel:
            self._plain = nn.DataParallel(model)
        self._run: Callable[[Tensor], Tensor] = self._plain
        self._proven = not compiled or data_parallel
        if not self._proven:
            self._run = torch.compile(model)

    def __call__(self, x: Tensor) -> Tensor:
        """The logits, with their graph."""
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

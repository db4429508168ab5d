"""The model as it is trained: precision, layout, compilation, recomputation. Pixels in, float32 logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from robustcli.errors import out_of_memory


class Forward:
    """Pixels [B, C, H, W] -> logits [B, K] in float32.

    Args:
        model: the classifier; the passes go through `parallel` when it is given (a DataParallel around it).
        dtype: autocast type; float32 means none.
        compiled: run through torch.compile; a model that does not compile runs as it is, and `note` says why.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        parallel: nn.Module | None = None,
        compiled: bool = False,
    ) -> None:
        self.dtype, self.note = dtype, ""
        self._plain: Callable[[Tensor], Tensor] = parallel if parallel is not None else model
        self._run = torch.compile(model) if compiled and parallel is None else self._plain
        self._proven = self._run is self._plain

    def __call__(self, x: Tensor) -> Tensor:
        """One forward pass with its graph, counted by nobody."""
        with self._autocast(x):
            if self._proven:
                plain: Tensor = self._run(x).float()
                return plain
            try:
                logits = self._run(x)
                self._proven = True
            except Exception as failure:  # whatever the compiler cannot take, the model itself can
                if out_of_memory(failure):
                    raise
                self.note = f"not compiled: {type(failure).__name__}"
                self._run, self._proven = self._plain, True
                logits = self._plain(x)
        found: Tensor = logits.float()
        return found

    def _autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        return (
            nullcontext() if self.dtype is torch.float32 else torch.autocast(x.device.type, dtype=self.dtype)
        )


class Shared:
    """A classifier that answers the same pixels once: objective and regularisers then share passes and their graph."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self._model = model
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
    """Let each residual block forget its activations and compute them again in the backward pass; returns how many blocks do so.

    A block is a member of an nn.Sequential or nn.ModuleList that holds at least two modules with weights of their own. Memory falls from all
    activations to those between the blocks, for one more forward pass. The second pass uses the statistics of the batch again and moves no
    BatchNorm buffer: without that, running statistics would move twice a step. Source: Chen et al., 2016, arXiv:1604.06174.
    """
    blocks = [
        child
        for parent in model.modules()
        if isinstance(parent, (nn.Sequential, nn.ModuleList))
        for child in parent.children()
        if not isinstance(child, (nn.Sequential, nn.ModuleList)) and _layers(child) >= 2
    ]
    for block in blocks:
        block.forward = _Recomputed(block)
    return len(blocks)


def _layers(module: nn.Module) -> int:
    return sum(1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)


class _Recomputed:
    """`forward` of a block: as it is in evaluation, checkpointed in training."""

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
            context_fn=lambda: (nullcontext(), _still(self._block)),
            preserve_rng_state=True,
        )


@contextmanager
def _still(block: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm uses the batch as before (the same tensors are saved for the backward pass) but moves nothing: momentum 0."""
    norms = [
        (m, m.momentum, m.num_batches_tracked)
        for m in block.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]
    counts = [None if count is None else count.clone() for _, _, count in norms]
    try:
        for norm, _, _ in norms:
            norm.momentum = 0.0
        yield
    finally:
        for (norm, momentum, count), before in zip(norms, counts, strict=True):
            norm.momentum = momentum
            if count is not None and before is not None:
                count.copy_(before)

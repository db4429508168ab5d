"""A stand-in for CUDA graphs on a CPU: a tape of operations that is replayed on the memory of the first time.

As a CUDA graph it does not run Python again, reads its inputs from fixed buffers, and leaves its answers
where the next replay overwrites them. Between replays all that it has made is NaN: a stale number is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robustcli.core import graphs


class Tape(TorchDispatchMode):
    """Remembers the operations made inside, with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else torch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, _made(func, answer)))
        return answer

    @torch.no_grad()
    def replay(self) -> None:
        """All operations again, in order, into the tensors of the first time."""
        for *_, made in self._calls:
            for tensor in made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        for func, args, kwargs, made in self._calls:
            for old, new in zip(made, _made(func, func(*args, **kwargs)), strict=True):
                old.copy_(new)


def _made(func: Any, answer: Any) -> list[Tensor]:
    """The tensors of an answer that are new memory: neither views nor written in place."""
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    returns = func._schema.returns
    aliases = [slot.alias_info is not None for slot in returns]
    if len(returns) == 1 and isinstance(answer, (list, tuple)):
        aliases = aliases * len(answers)
    pairs = zip(answers, aliases, strict=True)
    return [tensor for tensor, alias in pairs if isinstance(tensor, Tensor) and not alias]


class StandIn:
    """A `graphs.Recorder` on a CPU; `recorded` and `replayed` count."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(
        self, work: graphs.Work, buffers: Sequence[Tensor]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        tape = Tape()
        with tape:
            outputs = work(*buffers)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay, tuple(output.detach() for output in outputs)


def on_cpu(monkeypatch: Any) -> StandIn:
    """From now on CPU tensors are recorded, too; the recorder of all."""
    recorder = StandIn()
    monkeypatch.setattr(graphs, "recorder_for", lambda device: recorder)
    return recorder

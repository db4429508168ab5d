"""Lets code of another library run here: it gets logits and seeded draws, and a failure is one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.oracle import Oracle
from robustcli.errors import RobustCliError, UsageError, out_of_memory
from robustcli.models.architectures.blocks import seeded


class Asked(nn.Module):
    """An oracle as a torch module: pixels [R, C, H, W] in [0, 1] -> logits [R, K].

    The logits are differentiable, and every pass is counted. The module holds no weights of the model, so a
    library cannot train, cast or move them. An empty parameter tells the library dtype and device.
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        super().__init__()
        self._oracle = oracle
        self.anchor = nn.Parameter(x.new_zeros(0), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits in float32."""
        x = x.to(self.anchor)
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(_contiguous)  # other libraries `view` it, which a channels-last gradient refuses
        logits = self._oracle.ask(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        """Count the rows of one backward pass."""
        self._oracle.backward_rows += len(grad)


def _contiguous(grad: Tensor) -> Tensor:
    return grad.contiguous()


def seed_of(oracle: Oracle) -> int:
    """A seed for another library's generators, drawn from the plan's seed and the id of the first row."""
    return int(oracle.rng.integers(0, 2**22)[0])


def no_target(label: str) -> UsageError:
    """The error of an attack that cannot aim at a class."""
    return UsageError(f"{label} has no targeted search", hint="leave eval.target unset")


def handed(tensor: Tensor) -> Tensor:
    """A contiguous copy for code that may write into what it is given: the judge keeps the original."""
    return tensor.clone(memory_format=torch.contiguous_format)


def points_of(answer: Any, x: Tensor, label: str) -> Tensor:
    """The answer of an attack as a tensor with shape, dtype and device of x.

    Raises UsageError E-PLUGIN for any other answer.
    """
    try:
        points = torch.as_tensor(answer).detach().to(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{label} returned {type(answer).__name__}, not x_adv",
            hint="return the points alone, of the shape of x",
            code="E-PLUGIN",
        ) from error
    if points.shape != x.shape:
        raise UsageError(
            f"{label} returned shape {tuple(points.shape)}, expected {tuple(x.shape)}", code="E-PLUGIN"
        )
    return points


@contextmanager
def contained(label: str, seed: int, device: torch.device) -> Iterator[None]:
    """Run another library's code: its draws follow `seed`, and its prints go to stderr.

    Global generators are restored afterwards. An error of that code becomes a UsageError that names the
    attack. A RobustCliError and an out-of-memory error pass unchanged.
    """
    cuda = [device] if device.type == "cuda" else []
    try:
        with (
            seeded(seed),  # first: other threads wait until all of this is over
            torch.random.fork_rng(devices=cuda),
            torch.enable_grad(),
            redirect_stdout(sys.stderr),
            _seeded_on(device, seed),
        ):
            yield
    except Exception as error:
        if isinstance(error, RobustCliError) or out_of_memory(error):
            raise
        raise _failure(label, error) from error


@contextmanager
def _seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    """Inside: `device` is the current CUDA device and its generator starts at `seed`. On a CPU: nothing."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        torch.cuda.manual_seed(seed)
        yield


def _failure(label: str, error: Exception) -> UsageError:
    """The UsageError for a failed attack: the first line of its error, and the file:line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = (str(error).splitlines() or [""])[0][:200]
    return UsageError(
        f"{label} failed: {type(error).__name__}: {text}",
        where=f"{frame.filename}:{frame.lineno}",
        hint="the fault lies there; try other parameters",
        code="E-PLUGIN",
    )

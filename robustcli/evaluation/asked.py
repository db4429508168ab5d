"""What code of another library is given, and what it may do: ask for logits, draw random numbers of its own, fail in one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.core.oracle import Oracle
from robustcli.errors import RobustCliError, UsageError, out_of_memory
from robustcli.models.blocks import seeded


class Asked(nn.Module):
    """Pixels [R, C, H, W] in [0, 1] -> logits [R, K] through an oracle: differentiable, every pass counted, nothing of it tracked.

    It has no weights of the model, so no library can train, cast or move them; an empty parameter tells the device.
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
            x.register_hook(
                lambda grad: grad.contiguous()
            )  # other libraries `view` it; a channels-last twin's gradient refuses
        logits = self._oracle.ask(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, grad: Tensor) -> None:
        self._oracle.backward_rows += len(grad)


def seed_of(oracle: Oracle) -> int:
    """For the global generators that other libraries draw from: a function of the plan's seed and the first row's id."""
    return int(oracle.rng.integers(0, 2**22)[0])


def no_target(label: str) -> UsageError:
    """For an attack that cannot aim at a class."""
    return UsageError(f"{label} has no targeted search", hint="leave eval.target unset")


def points_of(found: Any, x: Tensor, label: str) -> Tensor:
    """The answer as a tensor like x. Raises UsageError for anything else."""
    try:
        points = torch.as_tensor(found).detach().to(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{label} returned {type(found).__name__}, not x_adv",
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
    """Global generators follow `seed` inside and are as before outside; prints go to stderr; a failure is one line that names the attack."""
    cuda = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices=cuda),
            seeded(seed),
            torch.enable_grad(),
            redirect_stdout(sys.stderr),
        ):
            with torch.cuda.device(device) if cuda else nullcontext():
                if cuda:
                    torch.cuda.manual_seed(seed)
                yield
    except Exception as error:
        if isinstance(error, RobustCliError) or out_of_memory(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(
            f"{label} failed: {type(error).__name__}: {text}",
            where=f"{frame.filename}:{frame.lineno}",
            hint="the fault lies there; try other parameters",
            code="E-PLUGIN",
        ) from error

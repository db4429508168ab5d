"""What follows a step that failed: a smaller micro-batch, or an error that says where."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.errors import NumericsError, ResourceError
from robustcli.training.step import Step


def less_memory(step: Step, rows: int, oom: Literal["auto", "halve", "fail"]) -> int:
    """Halve the micro-batch after out-of-memory on a batch of `rows` images, and return its new size.

    oom: "halve" always halves and "fail" never does. "auto" halves where the model has no BatchNorm, whose
    statistics depend on the images of a pass.

    Raises ResourceError E-OOM where it is not halved, with a hint what to do instead.
    """
    batch_norm = any(isinstance(module, _BatchNorm) for module in step.settings.model.modules())
    if oom == "fail" or (oom == "auto" and batch_norm):
        hint = "lower train.batch_size, set train.recompute=true, or train.oom=halve"
        if batch_norm:
            hint += " (BatchNorm then sees smaller batches)"
        raise ResourceError(
            f"{step.micro_batch or rows} images do not fit into memory",
            where="train.batch_size",
            hint=hint,
            code="E-OOM",
        )
    size = step.halve(rows)
    if not size and rows > 1 and step.micro_batch is None:
        raise ResourceError(
            f"{rows} images do not fit into memory, and this step cannot split them",
            hint="lower train.batch_size",
            code="E-OOM",
        )
    if not size:
        raise ResourceError(
            "one image at a time does not fit into memory",
            hint="a smaller model, or train.recompute=true",
            code="E-OOM",
        )
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return size


def located(error: NumericsError, number: int, lr: float, ids: Tensor) -> NumericsError:
    """The error with the number of the step.

    On the rank that met it, learning rate and sample ids are added. ids: int64 [B].
    """
    what = f"{error.what} at step {number}"
    if error.elsewhere:
        return NumericsError(what, hint=error.hint)
    shown = ", ".join(str(i) for i in ids[:8].tolist())
    return NumericsError(what, where=f"lr {lr:.4g}, sample ids {shown}, …", hint=error.hint)

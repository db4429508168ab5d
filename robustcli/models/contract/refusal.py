"""The one error for a network whose answer is not logits: what it gave, and how to wrap it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustcli.errors import ConfigError

_WRAP = "wrap it in an nn.Module whose forward returns {} (docs/networks.md shows one)"


def refused(out: Any, logits: Tensor | None, rows: int, *, training: bool) -> ConfigError:
    """The error for an answer that holds no logits [B, K].

    Args:
        out: what the network returned for `rows` images.
        logits: what stands where logits should; None where nothing does.
        rows: B.
        training: the mode of the network.
    """
    mode = "train" if training else "eval"
    what = f"the network is not a classifier: for {rows} images it returns {described(out)} in {mode} mode"
    return ConfigError(f"{what}, not logits [{rows}, K]", hint=_cure(out, logits, rows), code="E-MODEL")


def refused_probability(name: str) -> ConfigError:
    """The error for a network whose only output has gone through a sigmoid."""
    cure = _WRAP.format("torch.logit(self.net(x), eps=1e-6)")
    return ConfigError(
        f"{name} returns one probability for each image, not a logit",
        hint=f"leave the sigmoid out (nn.BCEWithLogitsLoss trains such a network), or {cure}",
        code="E-MODEL",
    )


def described(out: Any) -> str:
    """``(float32 [3, 10], float32 [3, 64])``: the answer of a network in a few words."""
    if isinstance(out, Tensor):
        layout = "" if out.layout is torch.strided else f" ({str(out.layout).removeprefix('torch.')})"
        return f"{str(out.dtype).removeprefix('torch.')} {list(out.shape)}{layout}"
    if isinstance(out, Mapping):
        return f"a dict with {', '.join(repr(key) for key in list(out)[:5]) or 'nothing'}"
    if isinstance(out, (tuple, list)):
        parts = ", ".join(described(part) for part in out[:5])
        return f"a {type(out).__name__} ({parts})"
    return type(out).__name__


def _cure(out: Any, logits: Tensor | None, rows: int) -> str:
    """The module that turns this answer into logits."""
    if isinstance(out, Mapping) and logits is None:
        return _WRAP.format(f"self.net(x)[{next(iter(out), 'logits')!r}]")
    if isinstance(out, (tuple, list)) and logits is None:
        return _WRAP.format("self.net(x)[0]")
    if logits is None:
        return _WRAP.format("self.net(x).scores")
    if not logits.is_floating_point():
        return "return the scores from before argmax or rounding; integers have no gradient"
    if logits.layout is not torch.strided:
        return _WRAP.format("self.net(x).to_dense()")
    if logits.dim() > 2 and len(logits) == rows:
        return _WRAP.format("self.net(x).flatten(1)")
    return "let its forward keep the batch: one row of logits for each image"

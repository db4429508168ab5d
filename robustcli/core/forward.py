"""The fastest form of a network for passes without a gradient that still computes in fp32.

BatchNorm is folded, memory is channels-last. On a CPU weights have oneDNN's layout beforehand, ReLU happens
inside convolutions (`core.packed`), and convolutions with many products go by tiles (`core.tiled`).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from robustcli.core.modes import frozen
from robustcli.core.tiling import lighter
from robustcli.core.twin import SearchTwin
from robustcli.core.types import Classifier
from robustcli.errors import out_of_memory

_DRIFT = 1e-4  # of the largest logit: the most by which a form may differ from the network


@torch.no_grad()
def forward_only(model: nn.Module, x: Tensor) -> Classifier:
    """Pixels [R, C, H, W] -> logits float32 [R, K], equal to `model` in eval mode up to rounding.

    It holds a copy of the weights of this moment. Where a form does not run, or its logits on x differ by
    more than 1e-4 of the largest one, the next plainer form takes its place: at last the search twin, or
    `model` itself where that twin does not agree with it.

    Args:
        model: the network; it is not changed.
        x: pixels [R, C, H, W] as later calls have them, R rows included: these shapes decide on tiles.
    """
    twin, wanted = _twin(model, x)
    if twin is None:
        return model
    for form in _forms(twin, x):
        got = _answers(form, x)
        if got is not None and float((got - wanted).abs().max()) <= _DRIFT * float(wanted.abs().max()):
            return form
    return twin


def _twin(model: nn.Module, x: Tensor) -> tuple[SearchTwin | None, Tensor]:
    """(a folded fp32 copy that agrees with the model on x, logits of the model); None where there is none."""
    with frozen(model):
        wanted = model(x)
    try:
        twin = SearchTwin(model)
    except Exception as failure:  # copying and tracing run code of the user's
        if out_of_memory(failure):
            raise
        return None, wanted
    return (None if twin.parity(x) else twin), wanted


def _forms(twin: SearchTwin, x: Tensor) -> list[Classifier]:
    """What is faster than the twin, from the fastest on: packed with tiles, packed."""
    if x.dim() != 4 or x.device.type != "cpu" or not isinstance(twin.copied, fx.GraphModule):
        return []
    try:
        return [_channels_last(form) for form in lighter(twin.copied, x)]
    except Exception as failure:  # what the twin can do, need not go here
        if out_of_memory(failure):
            raise
        return []


def _channels_last(network: nn.Module) -> Classifier:
    """The call of a network whose convolutions read and write channels-last."""
    return lambda x: network(x.contiguous(memory_format=torch.channels_last))


def _answers(form: Classifier, x: Tensor) -> Tensor | None:
    """form(x); None where an operator of this build refuses it."""
    try:
        return form(x)
    except Exception as failure:  # what the plain form can do, need not go here
        if out_of_memory(failure):
            raise
        return None

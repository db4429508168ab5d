"""The one adapter around a network that is handed over as an object."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.core.types import offers, reject_of
from robustcli.models.build import ours
from robustcli.models.contract.probe import take
from robustcli.models.contract.reading import Contract
from robustcli.models.normalised import NormalisedModel


class Adapted(nn.Module):
    """logits = contract.ask(net, x): what `net` answers, as logits float32 [B, K]."""

    def __init__(self, net: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.net, self.contract = net, contract
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        return self.contract.ask(self.net, x)


def adapted(model: nn.Module, x: Tensor) -> tuple[nn.Module, int]:
    """A classifier, images -> logits float32 [B, K], that shares all tensors of `model`; and K.

    It is `model` itself where that already is one.

    Args:
        model: anybody's network, on its device; not changed.
        x: a few images [B, C, H, W] in [0, 1] on that device.

    Raises:
        ConfigError: as `take`.
    """
    contract, classes = look(model, x)
    return wrapped(model, contract), classes


def look(model: nn.Module, x: Tensor) -> tuple[Contract | None, int]:
    """How `adapted` calls a network, None as it is, and its number of classes; arguments as there."""
    if offers(model) != "gradient":  # each row is a query
        with torch.no_grad():
            answer = model(x.detach()[:1])
        return None, answer[:, : reject_of(model)].shape[1]
    shown = x.detach()[:3]
    shown = torch.cat((shown, shown[-1:].expand(3 - len(shown), *shown.shape[1:])))
    reject = reject_of(model)
    if reject is not None:  # its members were looked at one by one
        with frozen(model), torch.no_grad():
            model(shown)
        return None, reject
    name = f"the model ({type(model).__name__})"
    if not isinstance(model, NormalisedModel):
        return take(model, shown, name)
    model.check(tuple(shown.shape))
    if ours(model.arch):
        with frozen(model), torch.no_grad():
            return None, model(shown).shape[1]
    return take(model.backbone, model.normalise(shown), name)


def wrapped(model: nn.Module, contract: Contract | None) -> nn.Module:
    """The classifier that calls `model` as this contract says; `model` itself where that needs no wrapper."""
    if contract is None:
        return model
    if isinstance(model, NormalisedModel):
        if contract == model.contract:
            return model
        other = copy.copy(model)
        other.contract = contract
        return other
    return model if contract.plain else Adapted(model, contract)

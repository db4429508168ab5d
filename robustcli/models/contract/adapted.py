"""The one adapter around a network that is handed over as an object."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustcli.core.modes import frozen
from robustcli.core.types import reject_of
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
    shown = x.detach()[:3]
    shown = torch.cat((shown, shown[-1:].expand(3 - len(shown), *shown.shape[1:])))
    reject = reject_of(model)
    if reject is not None:  # its members were looked at one by one
        with frozen(model), torch.no_grad():
            model(shown)
        return model, reject
    name = f"the model ({type(model).__name__})"
    if isinstance(model, NormalisedModel):
        model.check(tuple(shown.shape))
        if ours(model.arch):
            with frozen(model), torch.no_grad():
                return model, model(shown).shape[1]
        contract, classes = take(model.backbone, model.normalise(shown), name)
        if contract == model.contract:
            return model, classes
        other = copy.copy(model)
        other.contract = contract
        return other, classes
    contract, classes = take(model, shown, name)
    if contract.plain:
        return model, classes
    return Adapted(model, contract), classes

"""A classifier in the form that exporters take: no checks of shapes, and no Python that counts rows."""

from __future__ import annotations

from torch import Tensor, nn

from robustcli.models.contract.adapted import Adapted
from robustcli.models.normalised import NormalisedModel


class Exportable(nn.Module):
    """logits float32 [B, K] = model(x) for pixels x [B, C, H, W] in [0, 1], B of any size.

    Args:
        model: as `adapted` gives it. Its tensors are shared; normalisation and what stands in front of it
            are part of the answer.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        if isinstance(model, Adapted):
            return model.contract.blind(model.net, x)
        if not isinstance(model, NormalisedModel):
            logits: Tensor = model(x)
            return logits
        seen = x if model.front is None else model.front(x)
        return model.contract.blind(model.backbone, model.normalise(seen))

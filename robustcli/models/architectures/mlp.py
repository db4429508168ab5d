"""Fully connected network."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from robustcli.models.architectures.blocks import Activation, Count, activation_layer, kaiming
from robustcli.models.info import ModelInfo
from robustcli.registry import models


class MLP(nn.Module):
    """logits = W_n a(... a(W_1 vec(x) + b_1)) + b_n; x [B, C, S, S] -> logits [B, K]."""

    def __init__(
        self, inputs: int, hidden: tuple[int, ...], num_classes: int, activation: Activation
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in pairwise((inputs, *hidden)):
            layers += [nn.Linear(a, b), activation_layer(activation)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear((inputs, *hidden)[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


@models.register("mlp", tiny={"hidden": [32]}, fixed_size=True)
def mlp(
    info: ModelInfo, *, hidden: tuple[Count, ...] = (256, 256), activation: Activation = "relu"
) -> nn.Module:
    """W_n a(... a(W_1 vec(x) + b_1) ...) + b_n on the flattened image; takes images of side info.size only.

    Args:
        info: classes, channels and size.
        hidden: units of each hidden layer; an empty list is a linear classifier.
        activation: relu, silu or gelu.

    Parameters: sum of (inputs + 1) * outputs over the layers; as many multiply-adds, less the biases.
    Source: Rumelhart, Hinton and Williams, Nature 323, 1986.
    """
    return kaiming(MLP(info.inputs * info.size**2, tuple(hidden), info.num_classes, activation))

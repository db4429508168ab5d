"""Which networks may be given channels-last images on a CPU."""

import pytest
from torch import nn

from robustcli.models.build import build_model
from robustcli.models.contract.training import keeps_channels_last, overruns
from robustcli.models.info import ModelInfo

INFO = ModelInfo(num_classes=10, channels=1, size=8, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("layer", "overrun"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(16, 16, 1, stride=(1, 3), groups=16), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), False),
    ],
)
def test_a_strided_pointwise_convolution_of_few_channels_writes_outside(layer, overrun):
    """Seen as `munmap_chunk(): invalid pointer` minutes later; the layer itself answers rightly."""
    assert overruns(nn.Sequential(layer)) is overrun
    assert overruns(nn.Sequential(layer).to("meta")) is False  # no oneDNN elsewhere


@pytest.mark.parametrize(("width", "kept"), [(4, False), (8, True)])
def test_our_own_narrow_networks_keep_the_usual_layout(width, kept):
    model = build_model("preact_resnet18", {"width": width}, INFO, seed=0)
    assert keeps_channels_last(model) is kept

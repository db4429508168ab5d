"""How much the answer changes when the image loses detail."""

import torch
from scipy.ndimage import median_filter

from robustcli.defences.ballot import Behind
from robustcli.defences.feature_squeezing import feature_squeezing


def test_the_score_is_the_larger_of_two_distances():
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))

    def net(pixels):
        return pixels.flatten(1) @ weights

    score = feature_squeezing(bits=1, size=3)(x, net(x), Behind(net, lambda pixels: net(pixels)[None]))
    medians = torch.from_numpy(median_filter(x.numpy(), size=(1, 1, 3, 3), mode="reflect"))
    moved = [(net(x).softmax(1) - net(other).softmax(1)).abs().sum(1) for other in (x.round(), medians)]
    torch.testing.assert_close(score, torch.maximum(*moved))
    assert len({bool(a > b) for a, b in zip(*moved, strict=True)}) == 2

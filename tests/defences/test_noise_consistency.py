"""How much the answer changes under noise."""

import torch

from robustcli.defences.ballot import Behind
from robustcli.defences.noise_consistency import noise_consistency


def test_small_noise_moves_a_linear_network_as_the_formula_says():
    """Of two classes with p = sigmoid(w x) both move by p (1 - p) |w n| sigma; E|n| = sqrt(2 / pi)."""
    torch.manual_seed(0)
    w = torch.randn(16)

    def net(x):
        z = (x - 0.5).flatten(1) @ w
        return torch.stack([z, torch.zeros_like(z)], 1)

    x = torch.rand(5, 1, 4, 4) / 2 + 0.25
    p = net(x).softmax(1)[:, 0]
    expected = 2 * p * (1 - p) * w.norm() * 1e-3 * (2 / torch.pi) ** 0.5
    score = noise_consistency(sigma=1e-3, draws=1000)(x, net(x), Behind(net, None))
    torch.testing.assert_close(score, expected, rtol=0.1, atol=0)

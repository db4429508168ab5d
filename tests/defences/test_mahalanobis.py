"""The distance to the nearest class, in logits."""

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from robustcli.defences.mahalanobis import mahalanobis

K = 3


def settled(logits, y):
    module = mahalanobis()
    module.shaped((1, 4, 4), K)
    for part in torch.arange(len(y)).split(50):
        module.observe(None, y[part], logits[part], None)
    module.settle()
    return module


def drawn(n=400, classes=K):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    mixing = torch.randn(K, K, generator=generator)
    return 4 * torch.eye(K)[y] + torch.randn(n, K, generator=generator) @ mixing, y


def test_the_score_is_the_squared_distance_of_the_library():
    logits, y = drawn()
    means = np.stack([logits[y == k].numpy().mean(0) for k in range(K)])
    library = LedoitWolf(assume_centered=True).fit(logits.numpy() - means[y])
    expected = np.stack([library.mahalanobis(logits.numpy() - mean) for mean in means]).min(0)
    score = settled(logits, y)(None, logits, None)
    torch.testing.assert_close(score, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-3)
    assert torch.equal(score, settled(logits, y)(None, logits, None))


def test_a_class_that_the_data_lacks_is_never_the_nearest():
    logits, y = drawn(classes=2)
    module = settled(logits, y)
    assert module.seen.tolist() == [True, True, False]
    assert (
        float(module(None, torch.zeros(1, K), None)) > 1 and torch.isfinite(module(None, logits, None)).all()
    )


def test_logits_without_spread_give_no_score():
    y = torch.arange(60) % K
    score = settled(torch.eye(K)[y], y)(None, torch.randn(5, K), None)
    assert torch.equal(score, torch.zeros(5))

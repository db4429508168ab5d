"""How far the networks of an ensemble are apart."""

import torch

from robustcli.defences.ballot import Behind
from robustcli.defences.disagreement import disagreement


def score(each):
    return disagreement()(torch.zeros(each.shape[1], 1, 4, 4), each.mean(0), Behind(None, lambda x: each))


def test_it_is_the_entropy_of_the_mean_less_the_mean_entropy():
    each = 3 * torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    p = each.softmax(-1)

    def entropy(q):
        return -(q * q.log()).sum(-1)

    torch.testing.assert_close(score(each), entropy(p.mean(0)) - entropy(p).mean(0))


def test_one_network_agrees_with_itself_and_sure_opponents_reach_log_m():
    assert float(score(torch.randn(1, 3, 5)).abs().max()) < 1e-6
    torch.testing.assert_close(score(200 * torch.eye(4)[:, None]), torch.full((1,), 4.0).log())

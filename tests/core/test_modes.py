"""`frozen` leaves no trace, whatever happens inside."""

import pytest
import torch
from torch import nn

from robustcli.core.modes import frozen


def network():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )
    net.train()
    net[1].eval()  # mixed flags must come back one by one
    net[0].weight.requires_grad_(False)
    return net


def flags(net):
    return (
        [m.training for m in net.modules()],
        [p.requires_grad for p in net.parameters()],
        net[1].track_running_stats,
    )


@pytest.mark.parametrize("bn", ["eval", "batch"])
@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_buffers_come_back(bn, fails):
    net = network()
    before, state = flags(net), {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.rand(4, 1, 4, 4, requires_grad=True)
    try:
        with frozen(net, bn=bn):
            assert not any(p.requires_grad for p in net.parameters()) and not net[2].training
            net(x).sum().backward()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert flags(net) == before and x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_batch_uses_the_statistics_of_the_batch():
    net = nn.BatchNorm2d(2)
    net.running_mean.fill_(100.0)
    x = torch.rand(8, 2, 3, 3)
    with frozen(net, bn="batch"):
        assert float(net(x).mean()) == pytest.approx(0, abs=1e-5)
    with frozen(net, bn="eval"):
        assert float(net(x).mean()) < -50


class Stubborn(nn.Module):
    """Puts itself back into train mode, as some defences do."""

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return x.flatten(1)


def test_a_module_that_overrides_train_is_frozen_all_the_same():
    net = Stubborn()
    with frozen(net):
        assert not net.training
    assert net.training

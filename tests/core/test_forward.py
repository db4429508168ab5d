"""The forward-only form equals the network, uses what it may, and gives way to it in any doubt."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli.core import forward, packed
from robustcli.core.forward import forward_only
from robustcli.core.packed import PackedConv
from robustcli.core.tiled import TiledConv
from robustcli.core.tiled_slope import TiledSlope
from robustcli.core.tiling import sloped, tile
from robustcli.core.twin import SearchTwin

needs_operators = pytest.mark.skipif(
    not packed.available(torch.float32), reason="no operators of oneDNN in this build"
)


class Residual(nn.Module):
    """A pooled chain, a ReLU that two read, a shortcut, BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.pool = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(2)
        self.a, self.na = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.b, self.relu, self.head = (
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Linear(64, 5),
        )

    def forward(self, x):
        h = self.pool(self.relu(self.norm(self.stem(x))))
        h = self.pool(self.relu(self.na(self.a(h))))
        skip = F.relu(self.b(h))
        return self.head(F.max_pool2d(skip, 2).mean((2, 3)) + skip.mean((2, 3)) + h.mean((2, 3)))


def trained(net, shape=(16, 3, 16, 16)):
    torch.manual_seed(0)
    with torch.no_grad():
        net.train()(torch.rand(shape))
    return net.eval()


def modules(form):
    """The modules behind a form."""
    graph = form.__closure__[0].cell_contents
    return [type(module) for module in graph.modules()]


@needs_operators
def test_tiles_and_packed_layers_take_part_and_nothing_else_changes():
    net, x = trained(Residual()), torch.rand(64, 3, 16, 16)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    form = forward_only(net.train(), x)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with torch.no_grad():
        wanted = net.eval()(x)
    assert float((form(x) - wanted).abs().max() / wanted.abs().max()) < 1e-4
    kinds = modules(form)
    assert kinds.count(TiledConv) == 2 and kinds.count(PackedConv) == 1  # a and b; the stem has 3 channels
    with torch.no_grad():
        net.head.bias.add_(1)
    assert torch.allclose(form(x), wanted, atol=1e-3)  # a copy


@needs_operators
def test_the_scores_of_a_twin_in_fp32_go_by_tiles_and_its_gradient_does_not():
    net, x = trained(Residual()), torch.rand(9, 3, 16, 16)
    twin = SearchTwin(net)
    assert twin.parity(x) == ""
    got, wanted = twin.scores(x), twin(x)
    assert not torch.equal(got, wanted) and float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert not any(isinstance(module, TiledConv) for module in twin.copied.modules())
    with torch.no_grad():
        net.head.bias.add_(1)
    twin.refresh()
    assert torch.allclose(twin.scores(x), wanted + 1, atol=1e-3)


def test_the_slopes_of_a_twin_in_fp32_go_by_tiles_and_give_way_in_any_doubt(monkeypatch):
    net, x = trained(Residual()), torch.rand(9, 3, 16, 16).requires_grad_(True)
    twin = SearchTwin(net)
    assert twin.parity(x.detach()) == ""
    grads = [torch.autograd.grad(call(x)[:, 1].sum(), x)[0] for call in (twin.slopes, twin)]
    assert not torch.equal(*grads) and float((grads[0] - grads[1]).norm() / grads[1].norm()) < 1e-3
    monkeypatch.setattr(TiledSlope, "forward", lambda self, x: self._plain(x) * 1.01)
    twin.refresh()
    assert torch.equal(twin.slopes(x), twin(x))  # what is off is not used


def test_only_whole_chains_are_pooled():
    graph = SearchTwin(trained(Residual())).copied
    tiled = [m for m in tile(graph, torch.rand(64, 3, 16, 16)).modules() if isinstance(m, TiledConv)]
    assert [(m._relu, m._pool) for m in tiled] == [(True, True), (True, False)]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, 1), nn.MaxPool2d(2, ceil_mode=True)])
def test_other_pools_stay(pool):
    chain = nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(3)
    net, x = nn.Sequential(*chain).eval(), torch.rand(64, 64, 9, 9)
    with torch.no_grad():
        wanted = net(x)
        tiled = tile(SearchTwin(net).copied, x)
        assert any(isinstance(m, TiledConv) for m in tiled.modules())
        assert torch.allclose(tiled(x), wanted, atol=1e-3)


class Jumps(nn.Module):
    """Control flow that no trace sees."""

    def forward(self, x):
        return x.flatten(1)[:, :3] * (1 if float(x.sum()) > 0 else -1)


class Draws(nn.Module):
    def forward(self, x):
        return torch.rand(len(x), 3) + x.mean((1, 2, 3))[:, None]


class NaN(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * float("nan")


def test_networks_that_have_no_form_stay_as_they_are():
    x = torch.rand(8, 3, 4, 4)
    for net in (Draws(), NaN()):
        assert forward_only(net, x) is net
    assert torch.equal(forward_only(Jumps(), x)(x), Jumps()(x))
    flat = nn.Sequential(nn.Linear(7, 3)).eval()
    assert torch.allclose(forward_only(flat, torch.ones(4, 7))(torch.ones(4, 7)), flat(torch.ones(4, 7)))


def test_a_form_that_is_wrong_or_fails_gives_way(monkeypatch):
    net, x = trained(Residual()), torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        wanted = net(x)

    def fails(x):
        raise RuntimeError("no kernel")

    def shifted(x):
        return wanted + 1e-6

    monkeypatch.setattr(forward, "_forms", lambda twin, x: [fails, lambda x: wanted * 1.01])
    assert isinstance(forward_only(net, x), SearchTwin)
    monkeypatch.setattr(forward, "_forms", lambda twin, x: [lambda x: wanted * 1.01, shifted])
    assert forward_only(net, x) is shifted


class Joined(nn.Module):
    """A module whose only argument is a list with no hash: it holds a slice."""

    class Sum(nn.Module):
        def forward(self, parts):
            return parts[0] + parts[1]

    def __init__(self):
        super().__init__()
        self.conv, self.sum, self.head = nn.Conv2d(3, 64, 3, padding=1), self.Sum(), nn.Linear(64, 5)

    def forward(self, x):
        h = self.conv(x)
        return self.head(self.sum([h, torch.relu(h), slice(None)]).mean((2, 3)))


def test_a_module_that_reads_a_list_is_left_as_it_is(monkeypatch):
    net, x = trained(Joined()), torch.rand(16, 3, 16, 16)
    # As a module of its own in the graph, which torch.fx only makes of modules of torch.
    monkeypatch.setattr(Joined.Sum, "__module__", "torch.nn.modules.sum")
    twin = SearchTwin(net)
    assert any(isinstance(node.args[0], list) for node in twin.copied.graph.nodes if node.target == "sum")
    with torch.no_grad():
        assert torch.allclose(tile(twin.copied, x)(x), net(x), atol=1e-5)
    assert sloped(twin.copied, x) is None or torch.allclose(sloped(twin.copied, x)(x), net(x), atol=1e-5)


def test_forms_that_cannot_be_made_give_way_to_the_twin(monkeypatch):
    def refuse(network, x):
        raise TypeError("unhashable")
        yield

    monkeypatch.setattr(forward, "lighter", refuse)
    net, x = trained(Joined()), torch.rand(16, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(forward_only(net, x)(x), net(x), atol=1e-5)

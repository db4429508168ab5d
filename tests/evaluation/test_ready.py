"""`robustcli.attack` called again and again: what is kept of a model, when it is renewed and dropped."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import defaultdict, namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from zoo import EPS, digits, honest

import robustcli
from robustcli.core.copies import duplicate
from robustcli.core.likeness import Likeness
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.random import RowRandom
from robustcli.core.settling import SettlingOracle
from robustcli.core.twin import SearchTwin
from robustcli.evaluation import ready

N = 24
X, Y = (part[1400 : 1400 + N] for part in digits())


def network() -> nn.Module:
    """A convolutional network with BatchNorm of its own."""
    return duplicate(honest("bn"))


def found(net: nn.Module, **more) -> torch.Tensor:
    return robustcli.attack(net, X, Y, eps=EPS, steps=3, device="cpu", **more)


@pytest.fixture
def made(monkeypatch):
    """Counts the twins that are built, "made", and brought up to date, "refreshed"."""
    count = {"made": 0, "refreshed": 0}
    build, refresh = SearchTwin.__init__, SearchTwin.refresh

    def counted(self, *args, **kwargs):
        count["made"] += 1
        count["refreshed"] -= 1  # a new twin refreshes itself
        build(self, *args, **kwargs)

    def refreshed(self):
        count["refreshed"] += 1
        refresh(self)

    monkeypatch.setattr(SearchTwin, "__init__", counted)
    monkeypatch.setattr(SearchTwin, "refresh", refreshed)
    return count


def by_data(net):
    net[0].weight.data.mul_(-1.0)  # no version counter moves


def half(net):
    return {
        name: value / 2 if value.is_floating_point() else value for name, value in net.state_dict().items()
    }


def by_state_dict(net):
    net.load_state_dict(half(net))


def by_statistics(net):
    net.train()
    net(X)
    net.eval()


def by_assignment(net):
    net.load_state_dict(half(net), assign=True)


@pytest.mark.parametrize("change", [by_data, by_state_dict, by_statistics, by_assignment])
def test_other_numbers_refresh_the_twin(made, change):
    net = network()
    first = found(net)
    assert torch.equal(found(net), first) and made == {"made": 1, "refreshed": 0}
    change(net)
    again = found(net)
    assert made == {"made": 1, "refreshed": 1}
    assert torch.equal(again, found(duplicate(net))) and not torch.equal(again, first)


def by_layer(net):
    net[2] = nn.GELU()


def by_attribute(net):
    net[1].eps = 10.0


def by_hook(net):
    net.register_forward_hook(lambda module, args, out: -out)


def by_type(net):
    net.double()


@pytest.mark.parametrize("change", [by_layer, by_attribute, by_hook, by_type])
def test_another_build_makes_another_twin(made, change):
    net = network()
    first = found(net)
    change(net)
    again = found(net)
    assert made["made"] >= 2 and torch.equal(again, found(duplicate(net)))
    assert change is by_type or not torch.equal(again, first)


def test_modes_and_flags_change_nothing(made):
    net = network()
    first = found(net)
    net.train().requires_grad_(True)
    assert torch.equal(found(net), first) and made == {"made": 1, "refreshed": 0}
    assert net.training and net[0].weight.requires_grad


def by_loose_tensor(net):
    net.scale = torch.full((1,), -2.0)


def by_listed_tensor(net):
    net.parts[0].data.mul_(-2.0)


def by_config(net):
    net.config.scale["deep"][0].factor = -2.0


class Config:
    """A plain object."""

    def __init__(self):
        self.scale, self.factor = {"deep": [SimpleNamespace(factor=1.0)]}, np.ones(1)


class Holding(nn.Module):
    """A network that reads numbers which are no parameters."""

    def __init__(self):
        super().__init__()
        self.net, self.scale, self.parts = network(), torch.ones(1), [torch.ones(1)]
        self.config, self.odd = Config(), None

    def forward(self, x):
        deep = self.config.scale["deep"][0].factor * float(self.config.factor[0])
        return self.net(x) * self.scale * self.parts[0] * deep


@pytest.mark.parametrize("change", [by_loose_tensor, by_listed_tensor, by_config])
def test_what_is_neither_parameter_nor_buffer_makes_another_twin(made, change, monkeypatch):
    net = Holding()
    first = found(net)
    assert torch.equal(found(net), first) and made["made"] == 1
    monkeypatch.setattr(SearchTwin, "difference", lambda self, x: "")  # two images do not show everything
    change(net)
    again = found(net)
    assert made["made"] >= 2 and torch.equal(again, found(duplicate(net))) and not torch.equal(again, first)


Pair = namedtuple("Pair", "a b")


def tied(net):
    net.net[0].bias = net.net[1].bias


@pytest.mark.parametrize(
    ("held", "change"),
    [
        (SimpleNamespace(n=1), lambda net: setattr(net.odd, "n", 2)),
        (defaultdict(int, n=1), lambda net: net.odd.update(n=2)),
        (np.zeros(3), lambda net: net.odd.fill(1)),
        ({1: {2: {3: {4: {5: 6}}}}}, lambda net: net.odd[1][2][3][4].update({5: 7})),
        (Pair([1], 2), lambda net: net.odd.a.append(2)),
        (partial(int, base=2), lambda net: net.odd.keywords.update(base=3)),
        ([nn.ReLU()], lambda net: setattr(net.odd[0], "inplace", True)),
        ([nn.Linear(1, 1)], lambda net: net.odd[0].weight.data.add_(1)),
        (Config().__init__, lambda net: net.odd.__self__.factor.fill(2)),
        (None, tied),
    ],
)
def test_what_changes_in_place_is_seen_and_what_does_not_is_none(held, change):
    net = Holding()
    net.odd = held
    likeness = Likeness(net)
    assert likeness.change(net) == "none" and likeness.change(net) == "none"
    change(net)
    assert likeness.change(net) == "build"


@pytest.mark.parametrize("held", [torch.Generator(), iter([1]), [object()], torch.eye(2).to_sparse()])
def test_what_cannot_be_compared_counts_as_changed(held):
    net = Holding()
    net.odd = held
    assert Likeness(net).change(net) == "build"


def test_a_cycle_is_read_once_and_a_closed_hook_is_no_obstacle():
    net = Holding()
    net.config.owner, net.odd = net, net.net[0].register_forward_hook(lambda *_: None)
    net.config.itself = [net.config]
    likeness = Likeness(net)
    assert likeness.change(net) == "none"


SCALE = {"of all": 1.0}


class Outside(nn.Module):
    """Reads a number that no module holds."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return SCALE["of all"] * self.net(x)


def test_a_twin_that_does_not_agree_any_more_is_made_anew(made, monkeypatch):
    net = Outside()
    found(net)
    monkeypatch.setitem(SCALE, "of all", -1.0)
    assert torch.equal(found(net), found(duplicate(net))) and made["made"] == 3


def test_what_is_kept_goes_with_the_model():
    net = network()
    found(net)
    found(net, name="fab")
    robustcli.attack(wrapped := Named(net), X, Y, eps=EPS, steps=2, device="cpu")
    numbers, gone = {id(net), id(wrapped)}, [weakref.ref(net), weakref.ref(wrapped)]
    assert numbers <= set(ready._kept)
    del net, wrapped
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert all(ref() is not None for ref, _ in ready._kept.values())


def test_a_failed_call_does_not_keep_the_model_alive(monkeypatch):
    net = network()
    found(net)

    def full(self, x):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(SearchTwin, "difference", full)
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the caller makes of it
            found(net)
    others = [kept for ref, kept in ready._kept.values() if ref() is net]
    assert all(twin._model is not net for kept in others for twin in kept._twins.values())
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


class Named(nn.Module):
    """A network whose answer the adapter reads."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(x)}


def test_few_models_are_kept():
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(ready._MOST + 3)]
    for net in nets:
        robustcli.attack(net, X[:2], Y[:2], eps=EPS, steps=1, device="cpu")
    assert len(ready._kept) <= ready._MOST and id(nets[-1]) in ready._kept


def test_threads_that_change_a_model_in_use_do_not_change_its_twin():
    net, inside, go = network(), threading.Event(), threading.Event()
    asked, points = [], []

    def stop():
        asked.append(1)
        if len(asked) == 2:
            inside.set()
            assert go.wait(60)

    first = found(net)
    thread = threading.Thread(target=lambda: points.append(found(net, stop=stop)))
    thread.start()
    assert inside.wait(60)
    with ready.ready(net) as other:
        kept = other
    with torch.no_grad():
        before = net[0].weight.clone()
        net[0].weight.mul_(-1.0)
    with ready.ready(net) as other:
        assert other is not kept
    with torch.no_grad():
        net[0].weight.copy_(before)
    go.set()
    thread.join(60)
    assert torch.equal(points[0], first)


def test_what_is_kept_for_a_call_in_progress_is_not_refreshed_by_a_later_one(made):
    net = network()
    found(net)
    with ready.ready(net) as mine:
        twin = next(iter(mine._twins.values()))
        before = twin(X[:2])
        by_data(net)
        assert not mine.still(net)  # as another thread asks
        with frozen(net):
            mine.twin(next(iter(mine._twins))[1], net, X)
        assert torch.equal(twin(X[:2]), before)


def broken(net, x_adv):
    with torch.no_grad():
        return net(x_adv).argmax(1) != Y


@pytest.mark.parametrize("name", ["pgd", "fgsm", "apgd", "fab", "square", "mi_fgsm"])
@pytest.mark.parametrize("search", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore:bf16 is emulated")
def test_a_success_of_the_copy_alone_is_searched_again_on_the_model(name, search, monkeypatch):
    net = network()
    more = {"queries": 20} if name == "square" else {} if name == "fgsm" else {"steps": 4}
    honest_points = robustcli.attack(net, X, Y, name=name, eps=EPS, search="fp32", device="cpu", **more)
    monkeypatch.setattr(SearchTwin, "parity", lambda self, x: "")
    monkeypatch.setattr(SearchTwin, "difference", lambda self, x: "")
    liar = duplicate(net)
    lie = SearchTwin._logits
    # The copy says class 0 of everything: each point is a success, and no gradient leads anywhere.
    monkeypatch.setattr(
        SearchTwin, "_logits", lambda self, x, run: 0 * lie(self, x, run) + torch.eye(10)[0] * 9
    )
    points = robustcli.attack(liar, X, Y, name=name, eps=EPS, search=search, device="cpu", **more)
    told = Y != 0  # the others have no success of the copy
    assert torch.equal(broken(net, points)[told], broken(net, honest_points)[told])


def test_passes_of_the_model_itself():
    """PGD on the twin asks the model for two images at first and for the last point, and for nothing else."""
    net, rows = network(), []

    class Counted(nn.Sequential):
        def forward(self, x):
            if self is net:  # and not its copy
                rows.append(len(x))
            return super().forward(x)

    net.__class__ = Counted
    x_adv = found(net, search="fp32")
    rows.clear()
    assert torch.equal(found(net, search="fp32"), x_adv)
    assert rows[:2] == [2, N] and sum(rows[2:]) < N / 2  # earlier points that are worse than the last one


def margins(point, *steps):
    """Logits [1, 2] of a point of one pixel; steps: (the pixel from which on, margin of class 1)."""
    lead = max(step for step in steps if step[0] <= point.item())[1]
    return torch.tensor([[0.0, lead]])


def test_a_last_point_that_the_model_confirms_outlives_a_false_success_of_larger_loss():
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    oracle = SettlingOracle(
        lambda point: margins(point, (0.0, -1.0), (0.55, 0.3), (0.65, 0.1)),
        x,
        Criterion(y),
        rng=RowRandom(0, "start", torch.arange(1)),
        exact=lambda point: margins(point, (0.0, -0.1), (0.65, 0.1)),
    )
    oracle.logits(x + 0.1)
    assert torch.equal(oracle.result(x + 0.2), x + 0.2) and not len(oracle.doubtful)

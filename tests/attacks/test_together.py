"""Several searches of one row share a batch: verdicts, draws and best points of one after another."""

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.core import places
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.places import Places
from robustcli.core.random import RowRandom
from robustcli.evaluation.plan import AttackCall

RADII = {"linf": 0.05, "l2": 0.4, "l1": 2.0}


class Alike(nn.Module):
    """Logits of six classes, the same to the last bit in a batch of any size: float64, sums by themselves."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(6, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.weight, self.sizes = nn.Parameter(weight), []

    def forward(self, x):
        self.sizes.append(len(x))
        return ((3 * (x.flatten(1) - 0.5)).sin()[:, None] * self.weight).sum(2)


def searched(name, norm, *, steady, watched, **params):
    """(answer, oracle, batch sizes) of an attack on seven rows."""
    net, ball = Alike(), Ball(norm, RADII[norm])
    x = 0.2 + 0.6 * torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    y = net(x).argmax(1)
    call, ids = AttackCall.of(registry.attacks.get(name), params), torch.arange(len(x))

    def watch(rows, points):
        return points.sum((1, 2, 3)) * 1e3 % 1 < 0.2  # some successes of some rows

    with frozen(net):
        oracle = call.oracle(
            net,
            x,
            Criterion(y),
            rng=RowRandom(0, "start", ids),
            watch=watch if watched else None,
            ball=ball,
            steady=steady,
        )
        return call.points(oracle, x, ball), oracle, net.sizes


CASES = [
    ("apgd", "linf", {"loss": "dlr-targeted", "steps": 12, "targets": 4, "skip": 1}),
    ("apgd", "l2", {"loss": "dlr-targeted", "steps": 9, "targets": 3, "restarts": 2, "widest": 2.0}),
    ("apgd", "l1", {"loss": "ce", "steps": 10, "restarts": 4}),
    ("fab", "linf", {"steps": 8}),
    ("fab", "l2", {"steps": 6, "targets": 3, "restarts": 2}),
    ("fab", "l1", {"steps": 6, "targets": 4, "skip": 1}),
]


@pytest.mark.parametrize(("name", "norm", "params"), CASES)
def test_without_a_watch_every_bit_and_every_pass_is_that_of_one_search_at_a_time(name, norm, params):
    alone, one, single = searched(name, norm, steady=False, watched=False, **params)
    together, many, batches = searched(name, norm, steady=True, watched=False, **params)
    assert torch.equal(alone, together) and one.passes == many.passes and len(batches) < len(single)
    for part in ("points", "hits", "_values"):
        assert torch.equal(getattr(one._best, part), getattr(many._best, part)), part


@pytest.mark.parametrize(("name", "norm", "params"), CASES)
def test_the_same_rows_fall_and_the_others_keep_the_same_points(name, norm, params):
    _, one, _ = searched(name, norm, steady=False, watched=True, **params)
    _, many, batches = searched(name, norm, steady=True, watched=True, **params)
    fallen = one._best.fallen
    assert torch.equal(fallen, many._best.fallen) and many.alive == one.alive == int((~fallen).sum())
    assert torch.equal(one._best.points[~fallen], many._best.points[~fallen])
    if not fallen.all():
        assert max(batches) > 7  # of several searches


def test_a_row_that_falls_in_one_search_leaves_all():
    """Seven rows and four searches at once; the watch confirms whatever it is shown."""
    confirmed = []

    net, ball = Alike(), Ball("linf", 0.5)
    x = 0.2 + 0.6 * torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    y = net(x).argmax(1)

    def watch(rows, points):
        late = torch.full((len(rows),), len(net.sizes) > 8)  # once the first search is over
        confirmed.extend(rows[late].tolist())
        return late

    call = AttackCall.of(registry.attacks.get("apgd"), {"loss": "ce", "steps": 5, "restarts": 5})
    with frozen(net):
        rng = RowRandom(0, "start", torch.arange(7))
        oracle = call.oracle(net, x, Criterion(y), rng=rng, watch=watch, ball=ball, steady=True)
        call.points(oracle, x, ball)
    assert oracle.alive == 0 and sorted(confirmed) == list(range(7))


def test_how_many_searches_share_a_batch_does_not_depend_on_the_rows():
    """Else the success that a row falls with, and its passes, would depend on who shares its batch."""

    def room(rows, side, left=8, device="cpu", steady=True):
        x = torch.empty(rows, 3, side, side, device=device)
        y = torch.zeros(rows, dtype=torch.int64, device=device)
        shared = Places(Oracle(None, x, Criterion(y), rng=RowRandom(0, "start", y), steady=steady), x)
        return shared.at_once(left), shared.rows(shared.at_once(left))

    assert room(1, 8, steady=False)[0] == 1
    assert room(1, 32) == room(500, 32) == (8, 16) and room(500, 32, left=3) == (3, 16)
    assert room(50, 32, device="meta") == (8, 42)  # on a device larger batches are nearly free
    assert room(1, 224) == room(9, 224) == (6, 1)  # gradients of large images fill the memory
    assert room(2, 800)[0] == 1


@pytest.mark.parametrize(("name", "norm", "params"), CASES)
@pytest.mark.parametrize("watched", [False, True])
def test_rows_that_wait_change_nothing(monkeypatch, name, norm, params, watched):
    """Groups of one, two and seven rows: points, falls and passes are the same."""
    told = []
    for few in (7, 1, 2):
        monkeypatch.setitem(places._FEW, "cpu", few)
        answer, oracle, _ = searched(name, norm, steady=True, watched=watched, **params)
        told.append((answer, oracle._best.fallen, oracle._best.hits, oracle.rng.ids, oracle.passes))
    for other in told[1:]:
        assert all(torch.equal(a, b) for a, b in zip(told[0][:4], other[:4], strict=True))
        assert told[0][4] == other[4]


class Small(Alike):
    """A network that holds no more than `room` rows with a gradient."""

    room = 3

    def forward(self, x):
        if x.requires_grad and len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(x)


@pytest.mark.parametrize(("name", "norm", "params"), CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_where_memory_runs_out_fewer_searches_share_a_batch(name, norm, params, rows):
    """The points are those of a network that holds them all."""
    told = []
    for net in (Alike(), Small()):
        x = 0.2 + 0.6 * torch.rand(rows, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
        call, y = AttackCall.of(registry.attacks.get(name), params), net(x).argmax(1)
        with frozen(net):
            rng = RowRandom(0, "start", torch.arange(rows))
            oracle = call.oracle(net, x, Criterion(y), rng=rng, ball=Ball(norm, RADII[norm]), steady=True)
            told.append((call.points(oracle, x, Ball(norm, RADII[norm])), oracle._best.hits, oracle.rng.ids))
    assert all(torch.equal(a, b) for a, b in zip(*told, strict=True))


def test_rows_that_wait_stand():
    """Progress counts them: nine searches of 40 rows, 16 at a time, none of which falls."""
    x = 0.2 + 0.6 * torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    net, standing = Alike(), set()
    call = AttackCall.of(registry.attacks.get("apgd"), {"loss": "ce", "steps": 2, "restarts": 10})
    with frozen(net):
        rng = RowRandom(0, "start", torch.arange(40))
        oracle = call.oracle(net, x, Criterion(net(x).argmax(1)), rng=rng, steady=True)
        oracle._stop = lambda: standing.add(oracle.standing)
        call.points(oracle, x, Ball("linf", 1e-6))
    assert standing == {40} and max(net.sizes) == 16 * 9

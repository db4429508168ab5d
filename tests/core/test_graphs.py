"""What is recorded answers as the network itself, bit for bit; what cannot be recorded is done as it is."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from recorded import StandIn, on_cpu
from torch import Tensor, nn

from robustcli import registry
from robustcli.core import graphs
from robustcli.core.geometry import Ball
from robustcli.core.graphs import Graphs
from robustcli.core.losses import Criterion
from robustcli.core.moves import Ascend
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.twin import SearchTwin
from robustcli.evaluation.plan import AttackCall

RADII = {"linf": 0.1, "l2": 0.5, "l1": 3.0, "l0": 3.0}
SMALL = {"steps": 6, "restarts": 1, "targets": 2, "queries": 6, "binary_search": 1, "rounds": 1}
SMALL |= {"angles": 2, "shifts": 1, "classes": 3, "samples": 2}
FIRST = [(entry.name, entry.facts.norms[0]) for entry in registry.attacks]
OTHERS = [(entry.name, norm) for entry in registry.attacks for norm in entry.facts.norms[1:]]


class Net(nn.Module):
    """5 classes of [R, 3, 4, 4]; `bad` is called on the logits."""

    def __init__(self, bad=lambda z: z) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head, self.bad = nn.Linear(6 * 16, 5), bad

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.conv((x - 0.5) / 0.25)).relu()
        return self.bad(self.head(z.flatten(1)) * 0.5)


def net(bad=lambda z: z) -> Net:
    return Net(bad).eval().requires_grad_(False)


def images(seed: int, rows: int = 11) -> Tensor:
    return torch.rand(rows, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def oracle(model, seed=0, **more) -> tuple[Oracle, Tensor]:
    x = images(seed)
    y = torch.arange(len(x)) % 5
    return Oracle(model, x, Criterion(y), rng=RowRandom(seed, "start", torch.arange(len(x))), **more), x


def attacked(model, judge, name, norm, seed, watched, target=None):
    """(points, notes, counts) of one attack on one batch."""
    entry, x = registry.attacks.get(name), images(seed)
    own = registry.parameters(entry.fn)
    call = AttackCall.of(entry, {key: value for key, value in SMALL.items() if key in own})
    y = judge(x).argmax(1)
    criterion = Criterion(y, None if target is None else (y + target) % 5)
    ball = Ball(norm, RADII[norm])

    def watch(rows: Tensor, points: Tensor) -> Tensor:
        return criterion.hit(judge(points), rows) & ball.contains(x[rows], points)

    rng = RowRandom(seed, "start", torch.arange(len(x)))
    asked = call.oracle(model, x, criterion, rng=rng, ball=ball, watch=watch if watched else None)
    points = call.points(asked, x, ball)
    met = asked.forward_rows - asked.discarded_rows  # how far Square asks ahead depends on the clock
    return points, asked.notes, (met, asked.backward_rows, asked.zero_gradient_rows)


def compared(name, norm, monkeypatch, *runs, target=None):
    """The recorder, after the attack has found the same with and without recordings in all runs."""
    recorder, judge = on_cpu(monkeypatch), net()
    plain, graphed = SearchTwin(judge), SearchTwin(judge, graph=True)
    for seed, watched in enumerate(runs):
        wanted = attacked(plain, judge, name, norm, seed, watched, target)
        got = attacked(graphed, judge, name, norm, seed, watched, target)
        assert torch.equal(got[0], wanted[0]) and got[1:] == wanted[1:]
    return recorder


@pytest.mark.parametrize(("name", "norm"), FIRST)
def test_every_attack_finds_the_same_by_recordings(name, norm, monkeypatch):
    """Rows leave under the watch, so batches of several sizes share the recordings of one bucket."""
    recorder = compared(name, norm, monkeypatch, True, False, False)
    if registry.attacks.get(name).facts.needs == "gradient" and name not in (
        "fgsm",
        "orthogonal",
        "weighted",
    ):
        assert recorder.replayed > recorder.recorded >= 1, "used after they were proven"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), OTHERS)
def test_the_same_in_other_norms(name, norm, monkeypatch):
    compared(name, norm, monkeypatch, True, False, True, False)


@pytest.mark.parametrize("target", [None, 1])
def test_the_whole_step_of_pgd_is_one_recording(target, monkeypatch):
    recorder = compared("pgd", "linf", monkeypatch, False, False, False, False, target=target)
    assert recorder.recorded == 3, "forward pass alone, gradient, and gradient with step and projection"


def asked(model, times, rows=8, loss="ce"):
    """Gradients of a network at `times` points, the batches of different numbers."""
    answers = []
    for k in range(times):
        x, y = images(k, rows), torch.arange(rows) % 5
        answers.append(Oracle(model, x, Criterion(y), rng=RowRandom(0, "start", y)).gradient(x, loss))
    return answers


def same(got, wanted):
    pairs = [zip(one, other, strict=True) for one, other in zip(got, wanted, strict=True)]
    return all(torch.equal(a, b) for pair in pairs for a, b in pair)


def test_no_answer_is_overwritten_by_a_later_one(monkeypatch):
    recorder, judge = on_cpu(monkeypatch), net()
    assert same(asked(SearchTwin(judge, graph=True), 9), asked(SearchTwin(judge), 9))
    assert (recorder.recorded, recorder.replayed) == (1, 6), "recorded at the third use, proven at the fourth"


def test_replays_see_the_weights_of_the_moment(monkeypatch):
    on_cpu(monkeypatch)
    judge = net()
    twin = SearchTwin(judge, graph=True)
    before = asked(twin, 6)
    judge.conv.weight.mul_(1.5)
    judge.norm.running_mean.add_(0.3)
    twin.refresh()
    after = asked(twin, 6)
    assert same(after, asked(SearchTwin(judge), 6)) and not same(after, before)


def _branch(z: Tensor) -> Tensor:
    return z * 2 if float(z.detach().sum()) > 0 else z


def _rows(z: Tensor) -> Tensor:
    return z[z.detach().amax(1) > -9]


BAD = {
    "wait for numbers": [_branch, _rows],
    "draws random numbers": [lambda z: z + 1e-9 * torch.rand_like(z)],
    "reports errors": [lambda z: z + 1e-3 * torch.linalg.svdvals(z)[: z.shape[1]].sum()],
}


@pytest.mark.parametrize(("why", "bad"), [(why, bad) for why, bads in BAD.items() for bad in bads])
def test_what_cannot_be_recorded_is_done_as_it_is_and_said(why, bad, monkeypatch):
    recorder, judge = on_cpu(monkeypatch), net(bad)
    twin = SearchTwin(judge, graph=True, fold_bn=False)
    torch.manual_seed(0)
    got = asked(twin, 6)
    assert recorder.recorded == 0 and why in twin.graphs.note
    if "random" not in why:
        assert same(got, asked(SearchTwin(judge, fold_bn=False), 6))


def test_an_index_by_numbers_is_recorded_and_nan_becomes_0(monkeypatch):
    order = torch.tensor([4, 3, 2, 1, 0])
    recorder, judge = on_cpu(monkeypatch), net(lambda z: z[:, order].sqrt())
    twin = SearchTwin(judge, graph=True, fold_bn=False)
    for got, wanted in zip(asked(twin, 6), asked(SearchTwin(judge, fold_bn=False), 6), strict=True):
        assert torch.equal(got.grad, wanted.grad) and got.grad.isfinite().all()
    assert recorder.recorded == 1


def test_a_recording_that_answers_otherwise_is_dropped(monkeypatch):
    class Stale(StandIn):
        def record(self, work, buffers):
            replay, outputs = super().record(work, buffers)
            return lambda: None, outputs

    monkeypatch.setattr(graphs, "recorder_for", lambda device: Stale())
    twin = SearchTwin(net(), graph=True)
    assert same(asked(twin, 8), asked(SearchTwin(net()), 8))
    assert twin.graphs.recorded == 0 and "answers otherwise" in twin.graphs.note


def test_a_recording_of_the_wrong_inputs_is_dropped(monkeypatch):
    """Trap: a number of the first batch, baked into the recording, on which the first replay agrees."""

    class Frozen(StandIn):
        def record(self, work, buffers):
            return super().record(work, [buffer.clone() for buffer in buffers])

    monkeypatch.setattr(graphs, "recorder_for", lambda device: Frozen())
    twin = SearchTwin(net(), graph=True)
    assert same(asked(twin, 8), asked(SearchTwin(net()), 8)) and twin.graphs.recorded == 0


def test_a_recorder_that_fails_is_asked_once(monkeypatch):
    class Failing(StandIn):
        def record(self, work, buffers):
            self.recorded += 1
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    failing = Failing()
    monkeypatch.setattr(graphs, "recorder_for", lambda device: failing)
    twin = SearchTwin(net(), graph=True)
    assert same(asked(twin, 9), asked(SearchTwin(net()), 9)) and failing.recorded == 1
    assert twin.graphs.note == "no CUDA graph: CUDA error: operation not permitted when stream is capturing"


def test_a_recording_without_memory_gives_all_of_them_back(monkeypatch):
    class Full(StandIn):
        def record(self, work, buffers):
            if self.recorded:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().record(work, buffers)

    full = Full()
    monkeypatch.setattr(graphs, "recorder_for", lambda device: full)
    twin = SearchTwin(net(), graph=True)
    for rows, recorded in ((8, 1), (4, 0), (8, 0)):
        assert same(asked(twin, 5, rows), asked(SearchTwin(net()), 5, rows))
        assert twin.graphs.recorded == recorded
    assert "memory ran out" in twin.graphs.note


def test_without_a_gpu_nothing_is_recorded():
    twin = SearchTwin(net(), graph=True)
    assert same(asked(twin, 5), asked(SearchTwin(net()), 5)) and twin.graphs.recorded == 0


def test_recordings_have_a_limit(monkeypatch):
    recorder = on_cpu(monkeypatch)
    monkeypatch.setattr(graphs, "_MOST", 2)
    twin = SearchTwin(net(), graph=True)
    for rows in (3, 4, 5):
        assert same(asked(twin, 5, rows), asked(SearchTwin(net()), 5, rows))
    assert recorder.recorded == 2


def test_a_radius_that_grows_is_not_recorded_at_each_batch(monkeypatch):
    """The gradient is recorded once; the whole step only where another batch asks for the same."""
    recorder = on_cpu(monkeypatch)
    twin = SearchTwin(net(), graph=True)
    for eps, recorded in ((0.01, 1), (0.02, 1), (0.03, 1), (0.04, 1), (0.04, 2)):
        search, x = oracle(twin)
        point, move = x.clone(), Ascend(Ball("linf", eps), eps / 2)
        for _ in range(6):
            point = search.step(point, move, x)
        assert recorder.recorded == recorded


def test_other_losses_and_closures_keep_apart(monkeypatch):
    """Trap: a replay of one loss answers a question about another."""
    on_cpu(monkeypatch)
    twin, plain = SearchTwin(net(), graph=True), SearchTwin(net())
    for loss in ("ce", "margin", lambda z: z[:, 0], lambda z: z[:, 1], "ce", "dlr"):
        assert same(asked(twin, 5, loss=loss), asked(plain, 5, loss=loss))
    assert twin.graphs.recorded == 3


def test_graphs_fill_up_and_cut(monkeypatch):
    """Answers have as many rows as the inputs, whatever the size of the recording."""
    on_cpu(monkeypatch)
    made = Graphs()

    def sums(x, y):
        return (x.flatten(1).sum(1) + y,)

    for rows in (5, 8, 3, 7, 2, 8):
        inputs = images(rows, rows), torch.arange(rows)
        got = made("sum", sums, inputs, 8, partial(sums, *inputs))
        assert torch.equal(got[0], *sums(*inputs))
    assert made.recorded == 1

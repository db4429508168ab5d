"""What the oracle remembers: best points, fallen rows, passes."""

import pytest
import torch
from torch import nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.padding import bucket, padded
from robustcli.core.random import RowRandom

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)
X = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = NET(X).argmax(1)


def oracle(**more):
    return Oracle(NET, X, Criterion(Y), rng=RowRandom(0, "start", torch.arange(6)), **more)


def test_last_returns_the_last_point_and_counts_two_passes_a_step():
    o = oracle()
    for _ in range(3):
        o.gradient(X)
    z = X + 0.1
    assert torch.equal(o.result(z), z) and (o.forward_rows, o.backward_rows) == (18, 18)


def test_best_counts_the_final_point_and_the_clean_one():
    """Traps: the final iterate never scored; the last iterate returned instead of the best."""
    o = oracle(keep="best")
    loss = o.criterion.bind("ce")
    points = [X, (X + 0.3).clamp(0, 1), (X - 0.2).clamp(0, 1)]
    for p in points[:2]:
        o.gradient(p)
    kept = o.result(points[2])
    best = torch.stack([loss(NET(p)) for p in points]).amax(0)
    hits = torch.stack([Criterion(Y).hit(NET(p)) for p in points]).any(0)
    assert torch.equal(Criterion(Y).hit(NET(kept)), hits)
    assert torch.allclose(loss(NET(kept))[~hits], best[~hits])
    assert o.forward_rows == 24  # clean + two gradients + the final point


def test_a_success_is_never_given_up_for_a_larger_loss():
    o = Oracle(NET, X, Criterion(Y, (Y + 1) % 3), rng=RowRandom(0, "start", torch.arange(6)), keep="best")
    won = X + 5 * NET[1].weight[(Y + 1) % 3].view(6, 1, 2, 2)
    lost = X + 50 * NET[1].weight[(Y + 2) % 3].view(6, 1, 2, 2)
    o.logits(won), o.logits(lost)
    goal = Criterion(Y, (Y + 1) % 3)
    hit = goal.hit(NET(won)) & ~goal.hit(NET(lost))
    assert hit.any() and torch.equal(o.result(lost)[hit], won[hit])


def test_confirmed_rows_leave_and_all_rows_come_back():
    seen = []

    def watch(rows, candidates):
        seen.append(rows.tolist())
        return torch.ones(len(rows), dtype=torch.bool)

    y = (Y + 1) % 3
    o = Oracle(NET, X, Criterion(Y), rng=RowRandom(0, "start", torch.arange(6)), watch=watch)
    moved = X.clone()
    moved[1], moved[4] = (X + 9 * NET[1].weight[y].view(6, 1, 2, 2))[[1, 4]]
    hit = Criterion(Y).hit(NET(moved))
    o.gradient(moved)
    (left, ids) = o.compact(moved, torch.arange(6))
    assert hit.sum() >= 1 and seen == [hit.nonzero()[:, 0].tolist()]
    assert torch.equal(ids, (~hit).nonzero()[:, 0]) and o.alive == len(ids) and torch.equal(o.rng.ids, ids)
    o.gradient(left)  # per-row labels have left with their rows
    back = o.result(left)
    assert back.shape == X.shape and torch.equal(back[hit], moved[hit])


def test_unconfirmed_rows_stay():
    o = oracle(watch=lambda rows, z: torch.zeros(len(rows), dtype=torch.bool))
    o.gradient(X.flip(0))
    assert o.compact(X)[0] is X and o.alive == 6


def test_restarts_keep_the_worst():
    """Trap: restarts that overwrite every sample."""
    o = oracle()
    loss = o.criterion.bind("ce")
    points = [(X + 0.3).clamp(0, 1), X, (X - 0.3).clamp(0, 1)]
    for p in points:
        o.score(p)
    kept = o.result(points[-1])
    assert (loss(NET(kept)) >= torch.stack([loss(NET(p)) for p in points]).amin(0) - 1e-6).all()
    hits = torch.stack([Criterion(Y).hit(NET(p)) for p in points])
    assert torch.equal(Criterion(Y).hit(NET(kept)), hits.any(0))


class Explosive(nn.Module):
    def forward(self, x):
        return torch.cat((x.flatten(1), 1 / (x.flatten(1)[:, :1] - 0.5)), 1)


def test_broken_gradients_become_zero_and_nan_never_wins():
    x = torch.full((2, 1, 1, 2), 0.5)
    x[1] = 0.7
    o = Oracle(
        Explosive(),
        x,
        Criterion(torch.zeros(2, dtype=torch.int64)),
        rng=RowRandom(0, "start", torch.arange(2)),
        keep="best",
    )
    answer = o.gradient(x)
    assert torch.isfinite(answer.grad).all() and torch.isfinite(o.result(x)).all()


class Deaf(nn.Module):
    def forward(self, x):
        return torch.stack((x.flatten(1).round().sum(1), torch.zeros(len(x))), 1)


def zero_gradients(net, x, y, **more):
    """(how many counted as zero, how many were asked for)."""
    o = Oracle(net, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(len(x))), keep="best", **more)
    o.gradient(x)
    return o.zero_gradient_rows, o.asked_rows


def test_zero_gradients_are_counted_where_something_is_left_to_reach():
    right = Deaf()(X).argmax(1)
    assert zero_gradients(Deaf(), X, right) == (6, 6)
    assert zero_gradients(Deaf(), X, 1 - right) == (0, 6), "a success needs no slope"


def test_the_flat_top_of_the_dlr_is_no_sign_of_masked_gradients():
    """Where the true class ranks third the DLR is 1, and so it is beside that point."""
    x = torch.tensor([0.9, 0.8, 0.5, 0.1]).view(1, 4, 1, 1)
    flat = nn.Flatten()
    assert zero_gradients(flat, x, torch.tensor([2]), loss="dlr") == (0, 1)
    assert zero_gradients(flat, x, torch.tensor([0]), loss="dlr") == (0, 1)


def test_stop_interrupts_between_passes():
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")

    o = oracle(stop=stop)
    with pytest.raises(RuntimeError, match="stop"):
        for _ in range(5):
            o.gradient(X)
    assert o.forward_rows == 12


def test_no_gradient_reaches_the_parameters():
    """Trap: gradients leaking into parameters through `.backward()`."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with frozen(net):
        Oracle(net, X, Criterion(Y), rng=RowRandom(0, "start", torch.arange(6))).gradient(X)
    assert all(p.grad is None for p in net.parameters())


def test_an_empty_batch_asks_nothing():
    o = Oracle(NET, X[:0], Criterion(Y[:0]), rng=RowRandom(0, "start", torch.arange(0)), keep="best")
    assert len(o.gradient(X[:0]).grad) == 0 and len(o.result(X[:0])) == 0


@pytest.mark.parametrize("rows", [*range(1, 70), 128, 129, 255, 256, 257, 5000])
def test_buckets_are_few_and_waste_little(rows):
    size = bucket(rows)
    assert rows <= size and size % 4 == 0 and size <= 1.125 * rows + 8
    assert len({bucket(r) for r in range(1, 257)}) <= 32
    x = torch.rand(min(rows, 70), 2)
    assert torch.equal(padded(x)[: len(x)], x) and len(padded(x)) == bucket(len(x))


@pytest.mark.parametrize("rows", [*range(1, 70), 128, 129, 256, 257, 1000])
def test_on_cuda_the_sizes_are_fewer(rows):
    """Traps: cuDNN times its kernels anew for each number of survivors; a full batch is filled up."""
    assert rows <= bucket(rows, few=True) <= max(8, 1.5 * rows)
    assert len({bucket(r, few=True) for r in range(1, 257)}) <= 15
    assert all(bucket(full, few=True) == full for full in (8, 16, 32, 64, 128, 256, 1024))


def test_padding_reaches_the_model_but_no_answer():
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return NET(x)

    o = Oracle(
        Counting(),
        X,
        Criterion(Y),
        rng=RowRandom(0, "start", torch.arange(6)),
        watch=lambda rows, z: torch.zeros(len(rows), dtype=torch.bool),
    )
    answer = o.gradient(X)
    plain = oracle().gradient(X)
    assert set(sizes) == {8} and o.forward_rows == 12
    assert torch.allclose(answer.grad, plain.grad) and answer.logits.shape == (6, 3)


def test_closest_keeps_the_nearest_success_and_the_clean_point_otherwise():
    """A linear model in one pixel: z = (0, p - 0.5); a row is broken above 0.5, its nearest success wins."""

    def model(p):
        return torch.stack((torch.zeros(len(p)), p.flatten(1)[:, 0] - 0.5), 1)

    x = torch.tensor([0.2, 0.4, 0.1]).reshape(3, 1, 1, 1)
    oracle = Oracle(
        model,
        x,
        Criterion(torch.zeros(3, dtype=torch.int64)),
        rng=RowRandom(0, "start", torch.arange(3)),
        keep="closest",
        ball=Ball("l2", 0.0),
    )
    for points in ([0.9, 0.8, 0.3], [0.6, 0.9, 0.4], [0.7, 0.55, 0.2]):
        oracle.logits(torch.tensor(points).reshape(3, 1, 1, 1))
    assert torch.allclose(oracle.result(x).flatten(), torch.tensor([0.6, 0.55, 0.1]))


def test_draws_average_the_gradient_of_a_randomised_model():
    """EOT: the model multiplies by a random sign-free factor.

    The mean of many draws is near its expectation; one draw is not.
    """
    generator = torch.Generator().manual_seed(0)

    def model(p):
        scale = torch.rand((), generator=generator) * 2
        return torch.stack((torch.zeros(len(p)), scale * p.flatten(1).sum(1)), 1)

    x, criterion = torch.full((4, 1, 2, 2), 0.5), Criterion(torch.zeros(4, dtype=torch.int64))
    oracle = Oracle(model, x, criterion, rng=RowRandom(0, "start", torch.arange(4)), draws=400)
    answer = oracle.gradient(x, lambda logits: logits[:, 1])
    assert (
        torch.allclose(answer.grad, torch.ones_like(x), atol=0.1)
        and oracle.forward_rows == oracle.backward_rows == 1600
    )
    with pytest.raises(ValueError, match="draws"):
        Oracle(model, x, criterion, rng=RowRandom(0, "start", torch.arange(4)), draws=0)


def test_rows_in_play_carry_their_labels_targets_and_clean_logits():
    def model(p):
        return torch.stack((0.5 - p.flatten(1)[:, 0], p.flatten(1)[:, 0] - 0.5, -torch.ones(len(p))), 1)

    x, y, target = (
        torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1),
        torch.zeros(3, dtype=torch.int64),
        torch.ones(3, dtype=torch.int64),
    )
    oracle = Oracle(
        model,
        x,
        Criterion(y, target),
        rng=RowRandom(0, "start", torch.arange(3)),
        watch=lambda rows, c: torch.ones(len(rows), dtype=torch.bool),
    )
    oracle.logits(torch.tensor([0.9, 0.1, 0.1]).reshape(3, 1, 1, 1))
    (left,) = oracle.compact(x)
    assert (
        oracle.alive == 2
        and torch.equal(left, x[1:])
        and torch.equal(oracle.y, y[1:])
        and torch.equal(oracle.target, target[1:])
    )
    assert (
        torch.allclose(oracle.clean(), model(x[1:]))
        and oracle.hit(model(torch.full((2, 1, 1, 1), 0.9))).all()
    )


def test_a_confirmed_hit_counts_even_when_its_loss_overflows():
    """Logits of +-3e38 make cross-entropy infinite; the judge has confirmed the hit all the same."""

    def model(p):
        return torch.stack((torch.full((len(p),), -3e38), torch.full((len(p),), 3e38)), 1) * torch.where(
            p.flatten(1)[:, :1] > 0.5, 1.0, -1.0
        )

    x, y = torch.full((2, 1, 1, 1), 0.2), torch.zeros(2, dtype=torch.int64)

    def agree(rows, candidates):
        return torch.ones(len(rows), dtype=torch.bool)

    oracle = Oracle(
        model, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(2)), keep="best", watch=agree
    )
    oracle.logits(torch.full_like(x, 0.9))
    assert oracle.compact(x)[0].shape[0] == 0 and torch.equal(oracle.result(x[:0]), torch.full_like(x, 0.9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_any_type_of_logits_is_asked(dtype):
    def model(p):
        return (torch.stack((0.5 - p.flatten(1)[:, 0], p.flatten(1)[:, 0] - 0.5), 1) * 10).to(dtype)

    x, y = torch.full((2, 1, 1, 1), 0.2), torch.zeros(2, dtype=torch.int64)
    oracle = Oracle(model, x, Criterion(y), rng=RowRandom(0, "start", torch.arange(2)), keep="best")
    assert oracle.gradient(x).logits.dtype is torch.float32 and oracle.logits(x).dtype is torch.float32

"""Auto-PGD against a slow row-by-row twin, its losses for few classes, and what it costs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustcli.attacks.apgd import apgd
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, difference, dlr, dlr_targeted, margin
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.core.search import checkpoints

EPS = {"linf": 0.15, "l2": 0.8, "l1": 3.0}


class Net(nn.Module):
    """Small and curved (a sine makes gradients turn); remembers the points it was asked about."""

    def __init__(self, classes, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.head, self.seen = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6 * 36, classes), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        if x.dtype is torch.float64:
            x = x + (
                x.detach().round(decimals=9) - x.detach()
            )  # coming back to a corner gives the same loss, to the last bit
        return 3 * self.head(torch.sin(4 * self.conv(x - 0.5)).flatten(1))


def setup(classes=5, rows=6, seed=0, dtype=torch.float32):
    net = Net(classes, seed).to(dtype)
    x = torch.rand(rows, 2, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    y = net(x).argmax(1)
    net.seen.clear()
    return net, x, y


def ask(net, x, y, keep="last", target=None, watch=None):
    return Oracle(
        net, x, Criterion(y, target), rng=RowRandom(0, "start", torch.arange(len(x))), keep=keep, watch=watch
    )


def gradient(net, loss, x):
    x = x.detach().requires_grad_(True)
    value = loss(net(x))
    return value.item(), torch.autograd.grad(value.sum(), x)[0]


def slow_climb(net, loss, x, x_0, ball, steps, rho):
    """Algorithm 1 of arXiv:2003.01690 for one row, with the whole history in lists."""
    value, grad = gradient(net, loss, x_0)
    losses, best, grad_best, a = [value], x_0, grad, 2 * ball.eps
    top, tops, cuts, marks, seen = value, [value], [True], (0, *checkpoints(steps)), [x_0]
    x_k, x_before = x_0, x_0
    for k in range(1, steps + 1):
        z = ball.project(x, x_k + a * (grad.sign() if ball.norm == "linf" else grad / grad.norm()))
        alpha = 1.0 if k == 1 else 0.75
        x_before, x_k = x_k, ball.project(x, x_k + alpha * (z - x_k) + (1 - alpha) * (x_k - x_before))
        seen.append(x_k)
        value, grad = gradient(net, loss, x_k)
        losses.append(value)
        if value > top:
            top, best, grad_best = value, x_k, grad
        if k in marks:
            last = marks[marks.index(k) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k))
            cut = rises <= rho * (k - last) or (not cuts[-1] and tops[-1] == top)
            cuts.append(cut)
            tops.append(top)
            if cut:
                a, x_k, grad = a / 2, best, grad_best
    return seen, best, sum(cuts) - 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rho", [0.75, 0.3])  # 0.3: rows are mostly cut for standing still
def test_every_point_is_that_of_a_slow_row_by_row_twin(norm, rho):
    net, x, y = setup(dtype=torch.float64)
    ball, steps, cuts = Ball(norm, EPS[norm]), 40, []
    with frozen(net):
        found = apgd(ask(net, x, y), x, ball, steps=steps, rho=rho)
        seen = torch.stack(net.seen)
        assert len(seen) == steps + 1
        for row in range(len(x)):
            own = y[row : row + 1]
            expected, best, cut = slow_climb(
                net,
                lambda z, own=own: F.cross_entropy(z, own),
                x[row : row + 1],
                seen[0, row : row + 1],
                ball,
                steps,
                rho,
            )
            assert torch.allclose(seen[:, row], torch.cat(expected), atol=1e-9)
            assert torch.allclose(found[row], best[0], atol=1e-9)
            cuts.append(cut)
    assert min(cuts) >= 1 and len(set(cuts)) > 1  # rows choose their own step sizes


def slow_sparse(net, loss, x, x_0, ball, steps):
    """One phase of arXiv:2103.01208 for one row."""
    n, gap, a, x_k = x.numel(), max(int(0.04 * steps), 1), ball.eps, x_0
    top, grad = gradient(net, loss, x_k)
    best, grad_best, changed, seen = x_k, grad, int((x_k != x).sum()), [x_k]
    for k in range(1, steps + 1):
        m = min(max(math.ceil(changed / 1.5), 1), n)
        step = torch.zeros(n, dtype=x.dtype)
        chosen = grad.flatten().abs().argsort(descending=True)[:m]
        step[chosen] = grad.flatten()[chosen].sign() / m
        x_k = ball.project(x, x_k + a * step.reshape(x.shape))
        seen.append(x_k)
        value, grad = gradient(net, loss, x_k)
        if value > top:
            top, best, grad_best = value, x_k, grad
        if k % gap == 0:
            now = int((best != x).sum())
            if now < 0.95 * changed:
                a, x_k, grad = ball.eps, best, grad_best
            else:
                a = max(a / 1.5, ball.eps / 10)
            changed = now
    return seen, best


def test_l1_is_three_phases_in_shrinking_balls_as_in_the_slow_twin():
    net, x, y = setup(rows=4, dtype=torch.float64)
    ball, steps = Ball("l1", EPS["l1"]), 70
    with frozen(net):
        found = apgd(ask(net, x, y), x, ball, steps=steps)
        seen = torch.stack(net.seen)
        assert len(seen) == steps + 3
        assert ((seen[0] != x).flatten(1).sum(1) < 48).all()  # of 72: a projected Gaussian is sparse
        for row in range(len(x)):
            one, at, x_best = x[row : row + 1], 0, seen[0, row : row + 1]
            for scale, count in ((3, 21), (2, 21), (1, 28)):
                wide = Ball("l1", scale * ball.eps)
                expected, x_best = slow_sparse(
                    net,
                    lambda z, row=row: F.cross_entropy(z, y[row : row + 1]),
                    one,
                    wide.project(one, x_best),
                    wide,
                    count,
                )
                assert torch.allclose(seen[at : at + count + 1, row], torch.cat(expected), atol=1e-9)
                assert (
                    wide.distance(one.expand(count + 1, -1, -1, -1), seen[at : at + count + 1, row])
                    <= wide.eps * (1 + 1e-6)
                ).all()
                at += count + 1
            assert torch.allclose(found[row], x_best[0], atol=1e-9)
        assert (
            ball.distance(x.repeat(22, 1, 1, 1), seen[:22].flatten(0, 1)) > ball.eps * 1.5
        ).any()  # the wide balls were used


def test_points_of_the_wide_l1_balls_are_never_candidates():
    net, x, y = setup(rows=20)
    ball, shown = Ball("l1", 1.0), []

    def watch(rows, candidates):
        shown.append(ball.contains(x[rows], candidates))
        return shown[-1]

    with frozen(net):
        x_adv = apgd(ask(net, x, y, keep="best", watch=watch), x, ball, steps=20, restarts=2)
        assert ball.contains(x, x_adv).all()
        assert torch.cat(shown).all() and 0 < int((net(x_adv).argmax(1) != y).sum())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_not_weaker_than_pgd_with_as_many_steps(norm):
    losses = []
    for seed in range(3):
        net, x, y = setup(rows=16, seed=seed)
        ball = Ball(norm, EPS[norm] / 3)
        with frozen(net):
            for found in (
                pgd(ask(net, x, y, "best"), x, ball, steps=30, loss="ce"),
                apgd(ask(net, x, y, "best"), x, ball, steps=30),
            ):
                losses.append(float(margin(net(found), y).sum()))
    assert sum(losses[1::2]) >= sum(losses[::2]) - 0.01 * abs(sum(losses[::2]))


def test_training_gets_the_point_of_the_largest_loss():
    net, x, y = setup()
    with frozen(net):
        x_adv = apgd(ask(net, x, y), x, Ball("l2", 0.8), steps=15)
        seen = torch.stack(net.seen)
        losses = torch.stack([F.cross_entropy(net(point), y, reduction="none") for point in seen])
        assert torch.allclose(F.cross_entropy(net(x_adv), y, reduction="none"), losses.amax(0))
        assert (losses[-1] < losses.amax(0)).any()


def test_training_gets_the_worst_of_all_restarts():
    net, x, y = setup(rows=16)
    ball = Ball("linf", 0.05)
    with frozen(net):
        losses = [
            F.cross_entropy(
                net(apgd(ask(net, x, y), x, ball, steps=2, restarts=restarts)), y, reduction="none"
            )
            for restarts in (1, 2, 3)
        ]
    assert (losses[1] >= losses[0]).all() and (losses[2] >= losses[1]).all() and (losses[2] > losses[0]).any()


@pytest.mark.parametrize(
    ("classes", "loss", "note", "same"),
    [
        (2, "dlr", "margin", margin),
        (2, "dlr-targeted", "difference", margin),
        (3, "dlr", None, dlr),
        (3, "dlr-targeted", "difference", None),
        (4, "dlr-targeted", None, None),
    ],
)
def test_few_classes_change_the_loss_and_the_user_is_told(classes, loss, note, same):
    net, x, y = setup(classes=classes)
    oracle, ball = ask(net, x, y), Ball("linf", 0.1)
    with frozen(net):
        goal = net(x).scatter(1, y[:, None], float("-inf")).argmax(1)
        net.seen.clear()
        apgd(oracle, x, ball, steps=3, loss=loss, targets=1)
        first, second = net.seen[1:3]
        same = (
            (lambda z, y: (dlr_targeted if classes > 3 else difference)(z, y, goal)) if same is None else same
        )
        point = first.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(same(net(point), y).sum(), point)
    assert torch.allclose(
        second, ball.project(x, first + 0.2 * grad.sign())
    )  # the first step ascends that loss
    assert len(oracle.notes) == (note is not None) and (note is None or note in oracle.notes[0])


@pytest.mark.parametrize(
    ("classes", "targets", "runs"), [(2, 9, 1), (3, 9, 2), (4, 9, 3), (5, 2, 2), (12, 9, 9)]
)
def test_targets_are_at_most_the_wrong_classes_and_each_costs_one_run(classes, targets, runs):
    net, x, y = setup(classes=classes)
    oracle = ask(net, x, y)
    with frozen(net):
        apgd(oracle, x, Ball("linf", 0.01), steps=3, loss="dlr-targeted", targets=targets)
    assert oracle.backward_rows == runs * 4 * len(x)


def test_a_later_target_finds_what_the_first_cannot():
    """z_1 is the likeliest wrong class and out of reach; z_2 grows with the pixels."""

    class Trap(nn.Module):
        def forward(self, x):
            bright = x.flatten(1).mean(1)
            flat = torch.zeros_like(bright)
            return torch.stack((flat + 1, flat + 0.9, 10 * bright - 5, flat - 3), 1)

    x, y, found = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64), []
    for targets in (1, 2):
        x_adv = apgd(
            ask(Trap(), x, y, "best"), x, Ball("linf", 0.2), steps=5, loss="dlr-targeted", targets=targets
        )
        found.append((Trap()(x_adv).argmax(1) == 2).tolist())
    assert found == [[False, False], [True, True]]


def test_skip_goes_on_where_a_stage_before_stopped():
    net, x, y = setup()
    oracle, ball = ask(net, x, y), Ball("linf", 0.1)
    with frozen(net):
        ranked = net(x).scatter(1, y[:, None], float("-inf")).argsort(1, descending=True)
        net.seen.clear()
        apgd(oracle, x, ball, steps=3, loss="dlr-targeted", targets=9, skip=2)
        assert oracle.backward_rows == 2 * 4 * len(x)  # five classes: two wrong ones are left
        for run in range(2):
            first, second = net.seen[
                1 + 5 * run : 3 + 5 * run
            ]  # after the clean points: four passes a run, one that scores its best point
            point = first.clone().requires_grad_(True)
            (grad,) = torch.autograd.grad(dlr_targeted(net(point), y, ranked[:, 2 + run]).sum(), point)
            assert torch.allclose(second, ball.project(x, first + 0.2 * grad.sign()))


@pytest.mark.parametrize(("classes", "skip"), [(3, 2), (4, 3), (5, 9)])
def test_skipping_every_class_tries_nothing_and_says_so(classes, skip):
    net, x, y = setup(classes=classes)
    oracle = ask(net, x, y, "best")
    with frozen(net):
        assert torch.equal(apgd(oracle, x, Ball("linf", 0.1), steps=3, loss="dlr-targeted", skip=skip), x)
    assert oracle.backward_rows == 0 and any(f"skip {skip}" in note for note in oracle.notes)


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_a_target_of_the_caller_is_the_only_one(loss):
    net, x, y = setup()
    target = (y + 2) % 5
    oracle = ask(net, x, y, "best", target)
    with frozen(net):
        x_adv = apgd(oracle, x, Ball("linf", 0.4), steps=40, loss=loss)
        assert (net(x_adv).argmax(1) == target).sum() >= 5  # one of six rows may sit on a local top
    assert oracle.backward_rows == 41 * len(x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_fallen_row_leaves_at_once_and_the_others_go_on_unchanged(norm):
    net, x, y = setup(rows=8)
    ball, steps, asked = Ball(norm, 1e-3), 20, []
    y = y.clone()
    y[:4] = (y[:4] + 1) % 5  # these are wrong wherever we look

    def watch(rows, candidates):
        asked.extend(rows.tolist())
        return torch.ones(len(rows), dtype=torch.bool)

    oracle = ask(net, x, y, "best", watch=watch)
    with frozen(net):
        x_adv = apgd(oracle, x, ball, steps=steps, loss="dlr-targeted", targets=2)
        rest = apgd(ask(net, x, y, "best"), x, ball, steps=steps, loss="dlr-targeted", targets=2)[4:]
    assert sorted(asked) == [0, 1, 2, 3] and oracle.alive == 4
    phases = 3 if norm == "l1" else 1
    assert oracle.backward_rows == 8 + 4 * (
        2 * (steps + phases) - 1
    )  # all eight are asked once, then four have left
    assert torch.allclose(x_adv[4:], rest)


def test_nothing_is_asked_once_all_rows_have_left():
    net, x, y = setup()
    oracle = ask(
        net, x, (y + 1) % 5, "best", watch=lambda rows, candidates: torch.ones(len(rows), dtype=torch.bool)
    )
    with frozen(net):
        x_adv = apgd(oracle, x, Ball("linf", 0.1), steps=50, restarts=3)
    assert oracle.alive == 0 and oracle.backward_rows == len(x) and torch.isfinite(x_adv).all()


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"restarts": 0}, {"targets": 0}, {"skip": -1}, {"rho": 1.5}, {"rho": float("nan")}]
)
def test_bad_parameters_are_named(bad):
    net, x, y = setup(rows=1)
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.*{next(iter(bad.values()))}"):
        apgd(ask(net, x, y), x, Ball("linf", 0.1), **bad)

"""Square Attack."""

import math

import pytest
import torch
from torch import nn

from robustcli.attacks import square as module
from robustcli.attacks.noise import noise
from robustcli.attacks.square import square
from robustcli.core import pace as pace_module
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, ce, margin
from robustcli.core.modes import frozen
from robustcli.core.oracle import Oracle
from robustcli.core.pace import Pace
from robustcli.core.random import RowRandom


class Net(nn.Module):
    def __init__(self, channels=3, side=8, classes=4, seed=0, linear=False):
        super().__init__()
        torch.manual_seed(seed)
        body = (
            nn.Identity()
            if linear
            else nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
            )
        )
        self.body, self.head = body, nn.Linear((channels if linear else 8) * side * side, classes)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.head(self.body(x - 0.5).flatten(1))


def images(n, channels=3, height=8, width=8, seed=0):
    torch.manual_seed(seed)
    return 0.2 + 0.6 * torch.rand(n, channels, height, width)


def ask(
    net, x, ball, attack=square, keep="last", seed=0, ids=None, y=None, target=None, watch=None, **params
):
    with torch.no_grad():
        y = net(x).argmax(1) if y is None else y
    net.seen.clear() if hasattr(net, "seen") else None
    oracle = Oracle(
        net,
        x,
        Criterion(y, target),
        rng=RowRandom(seed, "start", torch.arange(len(x)) if ids is None else ids),
        keep=keep,
        watch=watch,
    )
    with frozen(net):
        return attack(oracle, x, ball, **params), oracle, y


def always(rows, points):
    return torch.ones(len(rows), dtype=torch.bool)


def sides(queries=10000, p=0.8, height=32, width=32, bumps=False, rescale=False):
    return [
        side for side, count in module._sides(queries, p, height, width, bumps, rescale) for _ in range(count)
    ]


def planned(u, side, x, norm="l2"):
    """One query per row of u [R, 5 + C], planned as a block of one: its two windows, its bump, its signs."""
    into, source, lying, sign = module._plan(u[:, None], side, x)
    window = module._window(side, x)
    return (
        into[:, 0] + window,
        source[:, 0] + window,
        module._bumps(side, norm, x).flatten(1)[lying[:, 0]],
        sign[:, 0],
    )


def paint(x, x_adv, ball, side, u):
    to, _, _, sign = planned(u, side, x)
    return module._paint(x, x_adv, ball, to, sign)


def move(x, x_adv, ball, side, u):
    return module._move(x, x_adv, ball, *planned(u, side, x, ball.norm))


def test_p_halves_after_the_published_queries():
    published = [
        0.8 / 2 ** sum(k > last for last in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        for k in range(10000)
    ]
    assert sides() == [max(round(math.sqrt(p * 1024)), 1) for p in published]
    assert sides(queries=300) == sides()[:300]


def test_a_rescaled_schedule_halves_at_the_same_shares_of_the_queries():
    whole = sides()
    for queries in (1, 7, 100, 1000, 5000, 20000):
        assert sides(queries=queries, rescale=True) == [
            whole[int(k / queries * 10000)] for k in range(queries)
        ]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 3), (4, 4), (5, 28), (32, 32)])
def test_windows_fit_and_bumps_are_odd_where_they_can_be(shape):
    painted, bumped = (
        sides(height=shape[0], width=shape[1]),
        sides(height=shape[0], width=shape[1], bumps=True),
    )
    assert (
        len(painted) == len(bumped) == 10000 and min(painted) >= 1 and max(painted) <= max(1, min(shape) - 1)
    )
    assert all(side % 2 == 1 and side >= 3 or side == min(shape) for side in bumped) and max(bumped) <= min(
        shape
    )


def test_windows_cover_all_positions_uniformly():
    n, height, width, side = 60_000, 5, 7, 3
    u = RowRandom(0, "start", torch.arange(n)).uniform((7,))
    for place in planned(u, side, torch.empty(n, 2, height, width))[:2]:
        assert place.shape == (n, 2, side * side) and torch.equal(place[:, 0], place[:, 1])
        corner = place[:, 0, 0]
        assert torch.equal(
            place[0, 0].reshape(side, side) - corner[0],
            torch.arange(side)[:, None] * width + torch.arange(side),
        )
        top, left = corner // width, corner % width
        assert (
            top.min() == 0 and top.max() == height - side and left.min() == 0 and left.max() == width - side
        )
        expected = n / ((height - side + 1) * (width - side + 1))
        counts = torch.bincount(top * (width - side + 1) + left)
        assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 11), (2, 11, 6)])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.5), ("l1", 2.0)])
def test_a_block_planned_at_once_is_what_each_query_would_work_out_for_itself(monkeypatch, norm, eps, shape):
    """Windows, bumps and signs of every query, bitwise, through all blocks, with rows leaving amid one."""
    n, queries, (channels, height, width) = 24, 200, shape
    x, ball, bumped, asked = images(n, *shape), Ball(norm, eps), norm != "linf", []
    name = "_move" if bumped else "_paint"
    real = getattr(module, name)
    monkeypatch.setattr(
        module,
        name,
        lambda x, x_adv, ball, *drawn: (asked.append((x, drawn)), real(x, x_adv, ball, *drawn))[1],
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4))
    _, oracle, _ = ask(net, x, ball, queries=queries, keep="best", watch=always)
    assert len(asked) == queries and oracle.alive > 0 and len({len(rows) for rows, _ in asked}) > 4

    def window(u_top, u_left, side):
        corner = (u_top * (height - side + 1)).long() * width + (u_left * (width - side + 1)).long()
        along = torch.arange(side)
        inside = (along[:, None] * width + along[None, :]).flatten()
        return (corner[:, None] + inside)[:, None, :].expand(-1, channels, -1)

    def signs(u):
        return torch.where(u[:, 5:] < 0.5, -1.0, 1.0)[:, :, None]

    rng = RowRandom(0, "start", torch.arange(n))
    (module._tiles if bumped else module._stripes)(x, ball, rng)  # the start's draws come first
    queue = iter(asked)
    for side, count in module._sides(queries, 0.8, height, width, bumped, False):
        draws = rng.uniform((count, 5 + channels))
        for k in range(count):
            rows, drawn = next(queue)
            u = draws[(rows[:, None] == x[None]).flatten(2).all(2).nonzero()[:, 1], k]
            expected = (window(u[:, 0], u[:, 1], side), signs(u))
            if bumped:
                bump = module._bumps(side, norm, x).flatten(1)[(u[:, 4] < 0.5).long()]
                expected = (expected[0], window(u[:, 2], u[:, 3], side), bump, expected[1])
            assert len(u) == len(rows) and len(drawn) == len(expected)
            assert all(
                torch.equal(got, old) and got.dtype == old.dtype
                for got, old in zip(drawn, expected, strict=True)
            )


def test_linf_starts_from_vertical_stripes():
    x = torch.full((40, 3, 5, 6), 0.5)
    change = module._stripes(x, Ball("linf", 0.25), RowRandom(0, "start", torch.arange(40))) - x
    assert change.abs().eq(0.25).all() and change.eq(change[:, :, :1]).all()
    assert 0.4 < change[:, :, 0].gt(0).float().mean() < 0.6


@pytest.mark.parametrize("channels", [1, 3])
def test_a_painted_window_is_plus_or_minus_eps_and_never_idle(channels):
    n, side, eps = 200, 3, 0.25
    ball, x = Ball("linf", eps), torch.full((n, channels, 6, 7), 0.5)
    rng = RowRandom(1, "start", torch.arange(n))
    x_adv = torch.full_like(x, 0.5 + eps)
    new = paint(x, x_adv, ball, side, rng.uniform((5 + channels,)))
    assert (new - x).abs().eq(eps).all()
    changed = new != x_adv
    assert changed.flatten(1).any(1).all() and changed.any(1).flatten(1).sum(1).eq(side * side).all()
    assert torch.isin(
        changed.flatten(2).sum(2), torch.tensor([0, side * side])
    ).all()  # one colour per channel


def test_painting_is_cut_by_the_box():
    x = torch.tensor([0.0, 0.1, 0.95, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 3, 3).contiguous()
    new = paint(x, x, Ball("linf", 0.3), 2, RowRandom(0, "start", torch.arange(4)).uniform((6,)))
    assert new.min() >= 0 and new.max() <= 1 and (new - x).abs().max() <= 0.3 + 1e-6


@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 4)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 12, 29])
def test_bumps_are_the_published_ones(side, norm, power):
    """Nested centred rectangles, the c-th adding 1 / (c + 1)^2 (l1: ^4).

    The lower half is negative. The length is 1 in the norm.
    """

    def unit(bump):
        return bump / torch.linalg.vector_norm(bump, ord=int(norm[1])) if bump.numel() else bump

    def rectangles(height, width):
        bump = torch.zeros(height, width)
        for c in range(max(height, width) // 2 + 1):
            top, left = height // 2 - c, width // 2 - c
            bump[max(top, 0) : max(height // 2 + c + 1, 0), max(left, 0) : width // 2 + c + 1] += (
                1 / (c + 1) ** power
            )
        return unit(bump)

    expected = torch.cat((rectangles(side // 2, side), -rectangles(side - side // 2, side)))
    expected = unit(expected)
    upright, lying = module._bumps(side, norm, torch.empty(0))
    assert torch.allclose(upright, expected, atol=1e-6) and torch.equal(lying, upright.T)


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 2, 2), (1, 4, 4), (3, 8, 5), (1, 28, 28), (3, 32, 32)])
def test_l2_starts_on_the_sphere_and_every_move_stays_on_it(shape):
    """With the box far away, all of the radius is used, before and after a move."""
    n, ball = 30, Ball("l2", 0.7, -9.0, 9.0)
    x, rng = torch.zeros(n, *shape), RowRandom(0, "start", torch.arange(n))
    x_adv = module._tiles(x, ball, rng)
    for side in {s for s in sides(height=shape[1], width=shape[2], bumps=True)}:
        assert torch.allclose(ball.distance(x, x_adv), torch.tensor(0.7, dtype=torch.float64), atol=1e-5)
        x_adv = move(x, x_adv, ball, side, rng.uniform((5 + shape[0],)))
    assert torch.allclose(ball.distance(x, x_adv), torch.tensor(0.7, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize(
    ("corner", "emptied"), [(0.999, 9), (0.0, 0), (0.2, 5)], ids=["apart", "the same", "overlapping"]
)
def test_a_move_takes_the_mass_of_both_windows_and_what_eps_leaves_unused(corner, emptied):
    """Windows of 9 of 81 pixels, two channels, half of eps^2 in use.

    The total becomes eps^2 and the pixels outside stay.
    """
    x, ball = torch.zeros(1, 2, 9, 9), Ball("l2", 1.0, -9.0, 9.0)
    x_adv = torch.full_like(x, 1 / 18)
    u = torch.tensor([[0.0, 0.0, corner, corner, 0.2, 0.2, 0.8]])  # into the first corner
    new = move(x, x_adv, ball, 3, u)
    outside = new.clone()
    outside[:, :, :3, :3] = 0
    zeros = outside.eq(0).flatten(2).sum(2) - 9
    assert (
        zeros.eq(emptied).all()
        and torch.isclose(outside, x_adv, atol=1e-5).flatten(2).sum(2).eq(72 - emptied).all()
    )
    assert torch.allclose(
        new[:, :, :3, :3].square().sum((2, 3)), torch.tensor((9 + emptied) / 324 + 0.25), rtol=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 5), (1, 28, 28)])
def test_l1_moves_use_the_whole_radius_and_stay_in_ball_and_box(shape):
    """Far from the box the published move is too long, and the projection ends on the sphere.

    Near it every point lies in both.
    """
    n, far, near = 30, Ball("l1", 3.0, -9.0, 9.0), Ball("l1", 3.0)
    for ball in (far, near):
        x, rng = images(n, *shape), RowRandom(0, "start", torch.arange(n))
        x_adv = module._tiles(x, ball, rng)
        for side in sorted({s for s in sides(height=shape[1], width=shape[2], bumps=True)}, reverse=True):
            x_adv = move(x, x_adv, ball, side, rng.uniform((5 + shape[0],)))
            assert ball.contains(x, x_adv).all()
            if ball is far:
                assert torch.allclose(
                    ball.distance(x, x_adv), torch.tensor(3.0, dtype=torch.float64), rtol=1e-4
                )


def test_an_l1_move_by_hand():
    """One channel, two windows with l1 mass 0.2 and 0.1 apart, 0.7 of eps unused.

    The first window takes all of it, the other is emptied.
    """
    x, ball = torch.zeros(1, 1, 9, 9), Ball("l1", 1.0, -9.0, 9.0)
    x_adv = x.clone()
    x_adv[0, 0, :3, :3], x_adv[0, 0, 6:, 6:] = 0.2 / 9, 0.1 / 9
    new = move(x, x_adv, ball, 3, torch.tensor([[0.0, 0.0, 0.999, 0.999, 0.2, 0.8]]))
    assert (
        new[0, 0, 6:, 6:].eq(0).all()
        and math.isclose(new[:, :, :3, :3].abs().sum(), 1.0, rel_tol=1e-5)
        and new.ne(0).sum() <= 9
    )


def test_the_first_tiles_fill_the_middle_five_by_five():
    x = torch.zeros(4, 3, 28, 28)
    change = module._tiles(x, Ball("l2", 1.0, -9.0, 9.0), RowRandom(0, "start", torch.arange(4)))
    inner = change[:, :, 1:26, 1:26]
    assert inner.ne(0).all() and math.isclose(inner.square().sum(), change.square().sum(), rel_tol=1e-6)
    tiles = inner.reshape(4, 3, 5, 5, 5, 5).transpose(3, 4).reshape(-1, 25)
    lengths = torch.linalg.vector_norm(tiles, dim=1)
    assert torch.allclose(lengths, lengths.mean(), rtol=1e-4)


def test_a_linear_model_is_solved_exactly_under_linf():
    """Once windows are single pixels, a query fixes a pixel of one channel: best corner, eps * ||w||_1."""
    net, eps = Net(channels=1, side=4, classes=2, linear=True), 0.01
    x = images(5, 1, 4, 4)
    x_adv, _, y = ask(net, x, Ball("linf", eps), queries=400, rescale=True)
    w = (net.head.weight[1] - net.head.weight[0]).detach() * (1 - 2 * y[:, None])
    gain = ((x_adv - x).flatten(1) * w).sum(1)
    assert torch.allclose(gain, eps * w.abs().sum(1), rtol=1e-4)


def test_an_l2_search_on_a_linear_model_comes_near_the_optimum():
    net = Net(channels=1, side=6, classes=2, linear=True)
    x = images(5, 1, 6, 6)
    x_adv, _, y = ask(net, x, Ball("l2", 0.1), queries=1000)
    w = (net.head.weight[1] - net.head.weight[0]).detach() * (1 - 2 * y[:, None])
    share = ((x_adv - x).flatten(1) * w).sum(1) / (0.1 * torch.linalg.vector_norm(w, dim=1))
    assert (share > 0.65).all() and (share <= 1 + 1e-4).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.6), ("l1", 3.0)])
def test_it_breaks_far_more_rows_than_noise_of_as_many_draws(norm, eps):
    net, x, ball = Net(), images(100), Ball(norm, eps)
    found, _, y = ask(net, x, ball, queries=150, keep="best")
    noisy, _, _ = ask(net, x, ball, attack=noise, draws=150, keep="best")
    with torch.no_grad():
        by_square, by_noise = (
            (net(found).argmax(1) != y).float().mean(),
            (net(noisy).argmax(1) != y).float().mean(),
        )
    assert by_square > by_noise + 0.2 and ball.contains(x, found).all()


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_point_is_kept_only_when_the_loss_grows(norm, loss):
    """The answer is the best of all points that were asked about, and every one was in the ball."""
    net, x, ball = Net(), images(6), Ball(norm, 0.2)
    x_adv, _, y = ask(net, x, ball, queries=60, loss=loss)
    asked = list(net.seen)
    assert len(asked) == 61 and all(ball.contains(x, point).all() for point in asked)
    bound = Criterion(y).bind(loss)
    with torch.no_grad():
        values = torch.stack([bound(net(point)) for point in asked])
        assert torch.allclose(bound(net(x_adv)), values.amax(0), atol=1e-6)
        assert (values.amax(0) > values[0]).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_towards_a_target_its_logit_grows(norm):
    net, x = Net(), images(8)
    with torch.no_grad():
        target = (net(x).argmax(1) + 1) % 4
    x_adv, _, _ = ask(net, x, Ball(norm, 0.2), queries=100, target=target)
    with torch.no_grad():
        assert (margin(net(x_adv), target) < margin(net(x), target)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_row_is_the_same_alone_with_others_and_after_others_left(norm):
    net, x, ball = Net(), images(16), Ball(norm, {"linf": 0.1, "l2": 0.6, "l1": 3.0}[norm])
    whole, oracle, y = ask(net, x, ball, queries=80, keep="best", watch=always)
    assert 0 < oracle.alive < 16
    for k in (0, 7, 15):
        alone, _, _ = ask(
            net,
            x[k : k + 1],
            ball,
            queries=80,
            keep="best",
            watch=always,
            ids=torch.tensor([k]),
            y=y[k : k + 1],
        )
        assert torch.allclose(alone, whole[k : k + 1], atol=1e-6)


def test_broken_rows_are_asked_no_more_and_none_left_ends_the_search(monkeypatch):
    x, net, painted, real = images(6), Net(), [], module._paint
    monkeypatch.setattr(module, "_paint", lambda x, *rest: (painted.append(len(x)), real(x, *rest))[1])
    _, oracle, _ = ask(net, x, Ball("linf", 0.8), queries=3000, keep="best", watch=always, restarts=3)
    assert oracle.alive == 0 and oracle.forward_rows < 6 * 400 and len(net.seen) < 400 and min(painted) > 0


def test_restarts_search_elsewhere_and_keep_the_worst():
    """Worst by (success, cross-entropy), the oracle's order."""
    net, x, ball = Net(), images(10), Ball("linf", 0.05)
    one, _, y = ask(net, x, ball, queries=20, loss="ce")
    three, oracle, _ = ask(net, x, ball, queries=20, restarts=3, loss="ce")
    with torch.no_grad():
        first, last = (torch.stack(((net(z).argmax(1) != y).float(), ce(net(z), y)), 1) for z in (one, three))
    worse = (last[:, 0] > first[:, 0]) | ((last[:, 0] == first[:, 0]) & (last[:, 1] > first[:, 1] + 1e-6))
    assert (
        oracle.forward_rows >= 10 * 63
        and worse.any()
        and (worse | (last - first).abs().amax(1).lt(1e-6)).all()
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 1, 4), (1, 2, 2), (3, 3, 3), (1, 4, 4), (3, 6, 11), (2, 11, 6)]
)
def test_tiny_and_oblong_images_work(norm, shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    x, ball = torch.rand(4, *shape), Ball(norm, 0.3)
    x_adv, _, _ = ask(net, x, ball, queries=80, rescale=True)
    assert x_adv.shape == x.shape and ball.contains(x, x_adv).all() and (x_adv != x).flatten(1).any(1).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_logits_that_are_nan_win_nothing(norm):
    class Holed(Net):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.5, torch.nan, logits)

    net, x = Holed(), images(12)
    x_adv, _, _ = ask(net, x, Ball(norm, 0.1), queries=40)
    asked = list(net.seen)
    with torch.no_grad():
        able = torch.stack([torch.isfinite(net(point)).all(1) for point in asked])
        assert 0 < able.float().mean() < 1  # NaN was met on the way
        assert (
            torch.equal(torch.isfinite(net(x_adv)).all(1), able.any(0))
            and Ball(norm, 0.1).contains(x, x_adv).all()
        )


class Alike(nn.Module):
    """Logits that are the same to the last bit in a batch of any size: float64, and each sum by itself."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(4, 3 * 8 * 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.weight, self.sizes = nn.Parameter(weight), []

    def forward(self, x):
        self.sizes.append(len(x))
        return ((4 * (x.flatten(1) - 0.5)).sin()[:, None] * self.weight).sum(2)


def traced(norm, eps, *, steady, watched=True, keep="best", target=False, **params):
    """(answer, points that the watch was shown, oracle, batch sizes) of Square on ten rows of `Alike`."""
    net, x, ball, shown = Alike(), images(10).double(), Ball(norm, eps), []
    y = net(x).argmax(1)
    aim = (y + 1) % 4 if target else None

    def watch(rows, points):
        shown.extend((int(row), point.clone()) for row, point in zip(rows, points, strict=True))
        return points.sum((1, 2, 3)) * 1e3 % 1 < 0.3  # any rule that depends on the point alone

    oracle = Oracle(
        net,
        x,
        Criterion(y, aim),
        rng=RowRandom(0, "start", torch.arange(len(x))),
        keep=keep,
        watch=watch if watched else None,
        ball=ball,
        steady=steady,
    )
    with frozen(net):
        return square(oracle, x, ball, queries=110, **params), shown, oracle, net.sizes


WAYS = [
    {},
    {"loss": "ce"},
    {"target": True, "loss": "ce"},
    {"restarts": 2, "rescale": True},
    {"watched": False, "target": True, "restarts": 2},
    {"watched": False, "loss": "ce", "keep": "closest"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(map(str, way)) or "plain")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.2), ("l1", 1.0)])
def test_asking_ahead_changes_no_point_no_verdict_and_no_count(monkeypatch, norm, eps, way):
    """Bit for bit what one query at a time finds, whatever k is; the model sees fewer batches."""
    plain, shown, one, single = traced(norm, eps, steady=False, **way)
    k = iter(RowRandom(0, "k", torch.zeros(1, dtype=torch.int64)).integers(1, 12, (999,))[0].tolist())
    monkeypatch.setattr(module.Pace, "ahead", lambda pace, rows, left: min(left, next(k)))
    ahead, shown_ahead, many, batches = traced(norm, eps, steady=True, **way)
    assert torch.equal(ahead, plain) and len(batches) < 0.6 * len(single)
    assert many.passes == one.passes == one.forward_rows and many.alive == one.alive
    assert many.forward_rows == many.passes + many.discarded_rows and many.discarded_rows > 0
    for name in ("points", "fallen", "hits", "_values"):
        assert torch.equal(getattr(many._best, name), getattr(one._best, name)), name
    for row in range(10):  # what the watch was shown of each row, in this order
        mine = [[point for of, point in points if of == row] for points in (shown, shown_ahead)]
        assert len(mine[0]) == len(mine[1]) and all(map(torch.equal, *mine))


def test_k_is_large_where_little_is_kept_and_batches_cost_much_and_small_elsewhere(monkeypatch):
    def settled(rows, each, base, rate, left=64):
        clock = [0.0]
        monkeypatch.setattr(pace_module.time, "perf_counter", lambda: clock[0])
        pace, carry = Pace(torch.zeros(rows, 3, 8, 8), steady=True), 0.0
        for _ in range(60):
            k = pace.ahead(rows, left)
            clock[0] += base + each * pace_module.bucket(rows * k)
            carry += rows * k * rate
            pace.saw(rows * k, int(carry))
            carry -= int(carry)
        return k

    assert settled(10, 1e-3, 1.0, 0.001) == 64  # a batch costs the same whatever its size
    assert settled(10, 1e-3, 1.0, 0.001, left=7) == 7
    assert settled(128, 1e-3, 0.0, 0.3) == 1  # only rows cost, and a third of the answers is kept
    assert 2 <= settled(10, 1e-3, 5e-3, 0.05) <= 12


def test_a_batch_without_room_is_made_smaller_and_changes_nothing(monkeypatch):
    plain, _, one, _ = traced("linf", 0.03, steady=False)
    real = Alike.forward

    def forward(net, x):
        if len(x) > 24:
            raise torch.OutOfMemoryError("out of memory")
        return real(net, x)

    monkeypatch.setattr(Alike, "forward", forward)
    ahead, _, oracle, sizes = traced("linf", 0.03, steady=True)
    assert torch.equal(ahead, plain) and oracle.discarded_rows and max(sizes) <= 24
    assert oracle.passes == one.passes


@pytest.mark.parametrize("bad", [{"queries": 0}, {"restarts": 0}, {"p": 0.0}, {"p": 1.5}])
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ask(Net(), images(1), Ball("linf", 0.1), **bad)

"""Smoothing: closed forms on linear classifiers, counts that depend on nothing but the draws, bad input."""

import itertools
import math

import pytest
import torch
from torch import nn

from robustcli.certificates import smoothing
from robustcli.certificates.answer import ABSTAIN
from robustcli.certificates.draws import BLOCK
from robustcli.certificates.smoothing import Smoothed, Smoothing
from robustcli.errors import NumericsError, UsageError

IDS = torch.tensor([3, 11, 250])


def half_space(w, b):
    """Class 1 where <w, x> + b > 0."""
    return lambda x: torch.stack((torch.zeros(len(x)), x.flatten(1) @ w + b), 1)


def plan(**given):
    return Smoothing(**({"sigma": 0.5, "n0": 32, "n": 2000, "stop": False} | given))


def images(count=3, side=2):
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_a_radius_never_exceeds_the_distance_to_a_plane(noise):
    """l2: |<w, x> + b| / |w|_2. l1: the same over max |w_i|; uniform noise on one axis is tight."""
    w = torch.tensor([0.6, 0.0, 0.8, 0.0]) if noise == "gaussian" else torch.tensor([1.0, 0.0, 0.0, 0.0])
    x = torch.zeros(12, 1, 2, 2)
    x[:, 0, :, 0] = torch.linspace(-0.6, 0.6, 12)[:, None]
    distance, truth = (x.flatten(1) @ w).abs().double(), (x.flatten(1) @ w > 0).long()
    gaps = []
    for n in (1000, 20_000):
        given = plan(noise=noise, n=n, alpha=1e-7)
        got = Smoothed(half_space(w, 0.0), 2, given).certify(x, torch.arange(12))
        kept = got.label != ABSTAIN
        assert (got.radius <= distance)[kept].all() and torch.equal(got.label[kept], truth[kept])
        assert kept.sum() > 5
        gaps.append(float((distance - got.radius).mean()))
    assert gaps[1] < 0.07 < gaps[0]


def ring(x):
    """Class 1 on rings around the origin of the plane."""
    return torch.stack((torch.zeros(len(x)), (4.4 * x.flatten(1).norm(dim=1)).sin()), 1)


@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_no_point_inside_a_radius_has_another_class(noise, count):
    """Rings in the plane. The smoothed class at many points in a radius is integrated on a grid of noise."""
    x = torch.rand(count, 1, 1, 2, generator=torch.Generator().manual_seed(2))
    got = Smoothed(ring, 2, plan(noise=noise, sigma=0.3, n=4000)).certify(x, torch.arange(count))
    axis = (torch.arange(80) + 0.5) / 80
    steps = {"gaussian": 0.3 * 2**0.5 * torch.erfinv(2 * axis - 1), "uniform": 0.3 * 3**0.5 * (2 * axis - 1)}
    grid = torch.cartesian_prod(steps[noise], steps[noise])
    tried = 0
    for image, label, radius in zip(x.flatten(1), got.label, got.radius, strict=True):
        if label == ABSTAIN:
            continue
        angle = torch.linspace(0, 2 * math.pi, 29)[:-1]
        ways = torch.stack((angle.cos(), angle.sin()), 1)
        ways = ways / (ways.norm(dim=1) if noise == "gaussian" else ways.abs().sum(1))[:, None]
        points = image + 0.999 * float(radius) * ways
        share = torch.stack(
            [ring((point + grid)[:, None, None, :]).argmax(1).float().mean() for point in points]
        )
        assert ((share > 0.5).long() == label).all()
        tried += len(points)
    assert tried >= 20 * count


def test_no_move_inside_a_radius_has_another_class():
    """Cyclic moves: the smoothed class of every image moved by less than the radius, from all moves of it."""
    x = torch.eye(144)[::11].reshape(-1, 1, 12, 12)
    waves = (torch.arange(12) * math.pi / 6).cos()
    f = half_space((waves[:, None] + 0.1 * waves).flatten(), 0.0)
    got = Smoothed(f, 2, plan(noise="translation", sigma=1.0, n=4000)).certify(x, torch.arange(len(x)))
    cells = torch.arange(-5, 6)
    chance = (torch.special.ndtr(cells + 0.5) - torch.special.ndtr(cells - 0.5)).double()
    pairs = list(itertools.product(range(-5, 6), repeat=2))
    tried = 0
    for image, label, radius in zip(x, got.label, got.radius, strict=True):
        for move in pairs:
            if label == ABSTAIN or not math.hypot(*move) < radius:
                continue
            moved = torch.stack([image.roll((move[0] + a, move[1] + b), (1, 2)) for a, b in pairs])
            share = f(moved).argmax(1).double() @ torch.outer(chance, chance).flatten()
            assert int(share > 0.5) == label
            tried += move != (0, 0)
    assert tried > 20


def blobs(x):
    """Three classes, nothing linear."""
    return torch.stack((x.flatten(1).sin().sum(1), x.flatten(1).cos().sum(1), x.flatten(1).mean(1) + 1), 1)


def test_counts_do_not_depend_on_batch_order_size_of_a_call_or_where_one_resumes():
    x, smoothed = images(), Smoothed(blobs, 3, plan())
    whole = smoothed.counts(x, IDS, 0, 1000)
    assert (whole.sum(1) == 1000).all() and (whole > 0).any(0).sum() > 1
    for middle in (1, 64, 333, 999):
        parts = smoothed.counts(x, IDS, 0, middle) + smoothed.counts(x, IDS, middle, 1000)
        assert torch.equal(parts, whole)
    assert torch.equal(smoothed.counts(x.flip(0), IDS.flip(0), 0, 1000).flip(0), whole)
    assert torch.equal(smoothed.counts(x[1:2], IDS[1:2], 0, 1000), whole[1:2])
    assert torch.equal(Smoothed(blobs, 3, plan(), rows=5 * BLOCK).counts(x, IDS, 0, 1000), whole)
    assert not torch.equal(smoothed.counts(x, IDS + 1, 0, 1000), whole)
    assert not torch.equal(Smoothed(blobs, 3, plan(seed=1)).counts(x, IDS, 0, 1000), whole)
    assert torch.equal(smoothed.certify(x, IDS).counts, smoothed.counts(x, IDS, 0, 2000))


def network():
    """Its second convolution goes by tiles."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 48, 5, padding=2)
    chain = first, nn.BatchNorm2d(32), nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*chain, nn.Linear(48 * 25, 3)).eval()


def test_a_network_is_asked_in_its_fast_form_with_the_counts_of_its_plain_one():
    net, x = network(), torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    fast, plain = Smoothed(net, 3, plan(sigma=2.0)), Smoothed(lambda x: net(x), 3, plan(sigma=2.0))
    whole = fast.counts(x, IDS[:2], 0, 256)
    assert (whole > 0).sum() >= 4 and (whole - plain.counts(x, IDS[:2], 0, 256)).abs().max() <= 1
    again = Smoothed(net, 3, plan(sigma=2.0))
    assert torch.equal(
        again.counts(x[1:], IDS[1:2], 200, 256) + again.counts(x[1:], IDS[1:2], 0, 200), whole[1:]
    )


def test_calls_have_one_size_whatever_n_is():
    seen = set()
    watched = lambda x: (seen.add(len(x)), blobs(x))[1]  # noqa: E731
    for n in (100, 5000):
        Smoothed(watched, 3, plan(n=n)).certify(images(), IDS)
    assert seen == {2 * BLOCK}


def bands(x):
    """Five classes in bands of width 0.63. Under noise of 0.45 none has the chance 1/2 near their edges."""
    return (2 * x.flatten(1)[:, :1] + torch.arange(5) * 2 * math.pi / 5).cos()


def test_an_early_stop_changes_no_radius():
    x = torch.zeros(16, 1, 1, 2)
    x[:, 0, 0, 0] = torch.linspace(-0.4, 0.6, 16)
    full = Smoothed(bands, 5, plan(sigma=0.45, n=5000)).certify(x, torch.arange(16))
    for rows in (BLOCK, 16 * BLOCK):  # looks stand at draws, not at the ends of calls
        smoothed = Smoothed(bands, 5, plan(sigma=0.45, n=5000, stop=True), rows=rows)
        short = smoothed.certify(x, torch.arange(16))
        assert torch.equal(full.label, short.label) and torch.equal(full.radius, short.radius)
        stopped = short.draws < 5000
        assert 3 < stopped.sum() < 16 and (short.label[stopped] == ABSTAIN).all()
        assert (short.counts.sum(1) == short.draws).all() and (short.lower[stopped] == 0).all()
        counted = [
            smoothed.counts(x[k : k + 1], torch.tensor([k]), 0, int(short.draws[k])) for k in range(16)
        ]
        assert torch.equal(short.counts, torch.cat(counted))


def test_a_radius_that_is_enough_ends_sampling():
    x = torch.zeros(12, 1, 1, 1)
    x[:, 0, 0, 0] = torch.linspace(0.05, 1.2, 12)
    f = half_space(torch.ones(1), 0.0)
    got = Smoothed(f, 2, plan(n=5000, enough=0.5, stop=True)).certify(x, torch.arange(12))
    full = Smoothed(f, 2, plan(n=5000)).certify(x, torch.arange(12))
    sure = got.draws < 5000
    assert 4 < sure.sum() < 12 and (got.radius < x.flatten()).all()
    assert (got.radius[sure & (got.label == 1)] >= 0.5).all()
    assert torch.allclose(got.radius[~sure], full.radius[~sure], atol=2e-4)
    assert (got.radius <= full.radius + 1e-12)[~sure].all()


def test_more_draws_and_a_larger_alpha_prove_more():
    x = torch.full((8, 1, 2, 2), 0.2)

    def certify(**given):
        return Smoothed(half_space(torch.ones(4), 0.0), 2, plan(**given)).certify(x, torch.arange(8))

    by_alpha = [certify(alpha=alpha, stop=True).radius for alpha in (1e-6, 1e-3, 0.05)]
    assert (by_alpha[0] < by_alpha[1]).all() and (by_alpha[1] < by_alpha[2]).all()
    by_n = [float(certify(n=n).radius.mean()) for n in (200, 2000, 8000)]
    assert by_n == sorted(by_n)
    counted = [
        plan(n=n).radius(float(smoothing.lower_bound(n * 9 // 10, n, 0.001))) for n in (100, 1000, 10_000)
    ]
    assert counted == sorted(counted)


def test_a_draw_of_the_choice_is_none_of_the_estimate():
    """A class chosen by draws that also estimate it would look better than it is."""
    seen = []
    Smoothed(lambda x: (seen.append(x.clone()), blobs(x))[1], 3, plan(n0=64, n=64)).certify(
        images(1), IDS[:1]
    )
    assert len(seen) == 2 and not torch.equal(*seen)


def test_predict_looks_with_draws_of_its_own():
    seen = []
    smoothed = Smoothed(lambda x: (seen.append(x.clone()), blobs(x))[1], 3, plan(n0=128, n=128))
    smoothed.certify(images(1), IDS[:1])
    smoothed.predict(images(1), IDS[:1], 128, 0.001)
    assert len(seen) == 3 and not torch.equal(seen[2], seen[0]) and not torch.equal(seen[2], seen[1])


def test_predict_abstains_near_a_tie_and_names_the_class_elsewhere():
    x = torch.tensor([0.0, 0.001, 0.4, -0.4]).reshape(4, 1, 1, 1)
    smoothed = Smoothed(half_space(torch.ones(1), 0.0), 2, plan())
    assert smoothed.predict(x, torch.arange(4), 1000, 0.001).tolist() == [ABSTAIN, ABSTAIN, 1, 0]
    assert ABSTAIN not in smoothed.predict(x, torch.arange(4), 1000, 1.0).tolist()


def test_stop_is_asked_before_each_call_and_progress_sums_to_n():
    asked, done = [], []
    Smoothed(blobs, 3, plan(n=1000)).certify(
        images(1), IDS[:1], stop=lambda: asked.append(1), progress=done.append
    )
    assert len(asked) == 1 + 8 and sum(done) == 1000
    done.clear()
    Smoothed(blobs, 3, plan(n=1000, stop=True, enough=1e-3)).certify(images(1), IDS[:1], progress=done.append)
    assert sum(done) == 1000 and len(done) <= 8


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"sigma": math.inf}, "sigma"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"n0": 0}, "n0"),
        ({"n": 31}, "n"),
        ({"noise": "laplace"}, "noise"),
        ({"enough": 0.0}, "enough"),
    ],
)
def test_a_value_out_of_range_is_named(given, key):
    with pytest.raises(UsageError) as failure:
        plan(**given)
    assert failure.value.exit_code == 2 and failure.value.where == f"smoothing.{key}"


def test_logits_that_are_no_numbers_are_named():
    with pytest.raises(NumericsError, match="sample 3 under gaussian noise"):
        Smoothed(lambda x: x.flatten(1) * math.nan, 4, plan()).certify(images(1), IDS[:1])


def test_rows_are_whole_blocks():
    with pytest.raises(ValueError, match="multiple of 64"):
        Smoothed(blobs, 3, plan(), rows=100)

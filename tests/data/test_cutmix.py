from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustcli.core.random import RowRandom
from robustcli.data.cutmix import beta, cutmix

Shape = tuple[int, int]
alphas = st.sampled_from([1e-300, 0.01, 0.5, 1.0, 2.0, 1e6, 1e300])


def rng(ids: torch.Tensor, epoch: int = 0, seed: int = 5) -> RowRandom:
    return RowRandom(seed, "cutmix", ids, epoch=epoch)


def pictures(batch: int, classes: int = 3, side: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random pixels, so that an image tells where each pixel comes from; labels and ids in no order."""
    source = torch.Generator().manual_seed(batch)
    x = torch.rand(batch, 2, side, side, generator=source)
    return (
        x,
        torch.randint(0, classes, (batch,), generator=source),
        torch.randperm(10 * batch, generator=source)[:batch],
    )


def origins(mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """int64 [B, H, W]: the row of x that each pixel was taken from (all channels agree)."""
    same = (mixed[:, None] == x[None]).all(2)
    assert bool((same.sum(1) == 1).all())
    return same.int().argmax(1)


@given(
    st.integers(1, 9),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    alphas,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_label_weight_is_the_share_of_pixels(
    batch: int, side: Shape, alpha: float, probability: float, epoch: int
) -> None:
    """Every image is constant and a class of its own, so a row's label can be counted from its pixels."""
    y = torch.arange(batch)
    x = (y.float() / batch)[:, None, None, None].expand(batch, 3, *side)
    mixed, soft = cutmix(x, y, rng(y + 7, epoch), batch, alpha=alpha, probability=probability)
    assert mixed.shape == x.shape and soft.shape == (batch, batch) and soft.dtype == torch.float32
    counted = (mixed[:, 0, None] == x[None, :, 0]).double().mean((2, 3))
    assert torch.allclose(soft.double(), counted, rtol=0, atol=1e-7)
    assert torch.allclose(soft.sum(1), torch.ones(batch), rtol=0, atol=2e-7)


def test_equals_the_slow_reference() -> None:
    """One row after the other, from the same draws."""
    x, y, ids = pictures(12, side=7)
    mixed, soft = cutmix(x, y, rng(ids, 4), 3, alpha=1.0, probability=0.6)
    draws = rng(ids, 4)
    keys = [high * 2**22 + low for high, low in draws.integers(0, 2**22, (2,)).tolist()]
    chosen = draws.uniform() < 0.6
    cy, cx = draws.integers(0, 7).tolist(), draws.integers(0, 7).tolist()
    share = draws.uniform((2,))[:, 1].tolist()
    cycle = sorted(range(12), key=lambda i: keys[i])
    assert 0 < int(chosen.sum()) < 12
    for i in range(12):
        j = cycle[(cycle.index(i) + 1) % 12]
        side = math.floor(7 * math.sqrt(share[i])) if chosen[i] else 0
        expected, area = x[i].clone(), 0
        for row in range(7):
            for column in range(7):
                if 0 <= row - (cy[i] - side // 2) < side and 0 <= column - (cx[i] - side // 2) < side:
                    expected[:, row, column] = x[j, :, row, column]
                    area += 1
        label = torch.zeros(3, dtype=torch.float64)
        label[y[i]] += (49 - area) / 49
        label[y[j]] += area / 49
        assert torch.equal(mixed[i], expected) and torch.allclose(
            soft[i].double(), label, rtol=0, atol=1e-7
        ), i


def test_window_is_one_rectangle_from_one_partner() -> None:
    x, y, ids = pictures(40, side=8)
    mixed, _ = cutmix(x, y, rng(ids), 3)
    origin = origins(mixed, x)
    partners = []
    for i in range(40):
        inside = origin[i] != i
        assert len(set(origin[i][inside].tolist())) <= 1
        partners += origin[i][inside][:1].tolist()
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None])
        for line in (rows, columns):
            assert int(line.int().diff().clamp(min=0).sum()) + int(line[0]) <= 1, "not in one stretch"
    assert len(partners) > 25 and len(set(partners)) == len(partners), "an image is pasted once"


def test_bitwise_repeatable_and_keyed() -> None:
    x, y, ids = pictures(32)
    first = cutmix(x, y, rng(ids), 3)
    again = cutmix(x.clone(), y, rng(ids), 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (rng(ids, epoch=1), rng(ids, seed=6), rng(ids + 1)):
        assert not torch.equal(cutmix(x, y, other, 3)[0], first[0])


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_order_of_the_batch_does_not_matter_but_its_members_do(alpha: float) -> None:
    x, y, ids = pictures(16)
    whole, soft = cutmix(x, y, rng(ids), 3, alpha=alpha)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    mixed, mixed_soft = cutmix(x[order], y[order], rng(ids[order]), 3, alpha=alpha)
    assert torch.equal(mixed, whole[order]) and torch.equal(mixed_soft, soft[order])
    part, _ = cutmix(x[:4], y[:4], rng(ids[:4]), 3, alpha=alpha)
    assert not torch.equal(part, whole[:4]), "the partners are those of the batch"


def test_probability_zero_is_the_identity() -> None:
    x, y, ids = pictures(9)
    mixed, soft = cutmix(x, y, rng(ids), 3, probability=0.0)
    assert torch.equal(mixed, x) and torch.equal(soft, torch.nn.functional.one_hot(y, 3).float())


def test_probability_is_the_share_of_mixed_rows_and_moves_no_other_draw() -> None:
    """Binomial(2000, 0.3): five standard deviations are 0.051."""
    ids = torch.arange(2000)
    x = torch.rand(2000, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y = ids % 3
    always, all_soft = cutmix(x, y, rng(ids), 3)
    some, some_soft = cutmix(x, y, rng(ids), 3, probability=0.3)
    as_always = (some == always).flatten(1).all(1) & (some_soft == all_soft).all(1)
    untouched = (some == x).flatten(1).all(1)
    assert bool((as_always | untouched).all())
    changes = ~(always == x).flatten(1).all(1)  # a small window at the border may hold no pixel
    share = float((as_always & changes).sum() / changes.sum())
    assert abs(share - 0.3) < 0.055


def test_a_single_image_stays_itself() -> None:
    x, y, ids = pictures(1)
    mixed, soft = cutmix(x, y, rng(ids), 3)
    assert torch.equal(mixed, x) and float(soft[0, y[0]]) == pytest.approx(1, abs=1e-7)


def test_input_is_not_changed_and_layout_is_free() -> None:
    x, y, ids = pictures(8)
    before = x.clone()
    mixed, soft = cutmix(x, y, rng(ids), 3)
    assert torch.equal(x, before) and not torch.equal(mixed, x)
    nhwc, other = cutmix(x.contiguous(memory_format=torch.channels_last), y, rng(ids), 3)
    assert torch.equal(nhwc, mixed) and torch.equal(other, soft)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 1.0, 2.0, 30.0])
def test_beta_has_its_distribution(alpha: float) -> None:
    """Against scipy's distribution on 20,000 fixed draws: at seven edges (5 deviations), and as a whole."""
    drawn = beta(rng(torch.arange(20_000)), alpha).double().numpy()
    # The tails of a small alpha end in 0 and 1 (float32); a test for continuous draws takes that for a fault.
    middle = drawn[(drawn > 1e-3) & (drawn < 1 - 1e-3)]
    low, high = stats.beta.cdf([1e-3, 1 - 1e-3], alpha, alpha)
    assert (
        stats.kstest(middle, lambda v: (stats.beta.cdf(v, alpha, alpha) - low) / (high - low)).pvalue > 1e-4
    )
    for edge in (1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        expected = stats.beta.cdf(edge, alpha, alpha)
        assert (
            abs(float((drawn < edge).mean()) - expected)
            < 5 * math.sqrt(expected * (1 - expected) / 20_000) + 1e-6
        ), edge


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(1e-300, 0.0, 0.0), (1e-6, 0.0, 1e-4), (1e6, 0.49, 0.5), (1e300, 0.5, 0.5)]
)
def test_alpha_extremes(alpha: float, low: float, high: float) -> None:
    """Distance of the draws to the nearest of 0 and 1: none at all for tiny alpha, a half for a large one."""
    drawn = beta(rng(torch.arange(5000)), alpha)
    assert bool(torch.isfinite(drawn).all()) and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    nearest = torch.minimum(drawn, 1 - drawn).quantile(torch.tensor([0.01, 0.99]))
    assert low <= float(nearest[0]) and float(nearest[1]) <= high
    assert 0.45 < float((drawn > 0.5).float().mean()) < 0.55 or alpha == 1e300


@pytest.mark.parametrize("zeros", [(0.0, 0.0), (0.0, 0.25), (1 - 2**-24, 0.25), (1 - 2**-24, 0.0)])
@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.5, 2.0, 1e300])
def test_beta_at_the_ends_of_the_uniforms(
    zeros: tuple[float, float], alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rng(torch.arange(1))
    monkeypatch.setattr(source, "uniform", lambda tail: torch.tensor([zeros]))
    assert 0 <= float(beta(source, alpha)) <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"probability": -0.1},
        {"probability": 1.1},
        {"probability": math.nan},
    ],
)
def test_bad_parameters(options: dict[str, float]) -> None:
    x, y, ids = pictures(4)
    with pytest.raises(ValueError, match=next(iter(options))):
        cutmix(x, y, rng(ids), 3, **options)


def test_bad_shapes() -> None:
    x, y, ids = pictures(4)
    with pytest.raises(ValueError, match="K = 0"):
        cutmix(x, y, rng(ids), 0)
    with pytest.raises(ValueError, match="3 labels and 4 images"):
        cutmix(x, y[:3], rng(ids), 3)

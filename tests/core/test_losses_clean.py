"""Losses of the clean logits: by hand, their gradients, how they are bound, how their state follows rows."""

import math

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion, RowLoss, bind_inner, kl_rows, nuclear_rows, soft_ce
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom

Y = torch.arange(6) % 3
MIXED = torch.rand(6, 3, generator=torch.Generator().manual_seed(7)).softmax(1)


def draw(seed, rows=6, classes=3):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_by_hand():
    p, q = [0.5, 0.25, 0.25], [0.2, 0.3, 0.5]
    got = kl_rows(torch.tensor([q]).log() + 3, torch.tensor([p]).log() - 1)
    assert got.tolist() == pytest.approx(
        [sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))], rel=1e-5
    )
    assert torch.equal(kl_rows(draw(0), draw(0)), torch.zeros(6, dtype=torch.float64))


def test_kl_has_gradients_to_both_sides_and_none_at_the_clean_point():
    z, clean = draw(0).requires_grad_(), draw(1).requires_grad_()
    assert torch.autograd.gradcheck(kl_rows, (z, clean))
    same = draw(0).requires_grad_()
    (grad,) = torch.autograd.grad(kl_rows(same, draw(0)).sum(), same)
    assert float(grad.abs().max()) < 1e-15


def test_mixed_cross_entropy_by_hand():
    expected = -(MIXED.double() * draw(0).log_softmax(1)).sum(1)
    assert torch.allclose(soft_ce(draw(0), MIXED), expected)
    hot = nn.functional.one_hot(Y, 3)
    assert torch.allclose(soft_ce(draw(0), hot), registry.losses.get("ce").fn(draw(0), Y))


@pytest.mark.parametrize(("rows", "classes"), [(6, 3), (2, 5), (1, 3), (8, 2)])
def test_nuclear_rows_sum_to_the_norm_and_have_its_gradient(rows, classes):
    z, clean = draw(0, rows, classes).requires_grad_(), draw(1, rows, classes)
    norm = torch.linalg.svdvals(z - clean).sum()
    assert torch.allclose(nuclear_rows(z, clean).sum(), norm)
    (ours,) = torch.autograd.grad(nuclear_rows(z, clean).sum(), z)
    step = 1e-6
    for i, k in ((0, 0), (rows - 1, classes - 1)):
        moved = z.detach().clone()
        moved[i, k] += step
        slope = (torch.linalg.svdvals(moved - clean).sum() - norm) / step
        assert float(ours[i, k]) == pytest.approx(float(slope.detach()), abs=1e-4)


def test_nuclear_of_few_directions_has_a_finite_gradient_along_them():
    """Trap: singular vectors of zero singular values are arbitrary; they must not become a way of ascent."""
    one = torch.outer(torch.tensor([1.0, 2.0, -2.0]), torch.tensor([0.6, 0.0, 0.8])).requires_grad_()
    (grad,) = torch.autograd.grad(nuclear_rows(one, torch.zeros(3, 3)).sum(), one)
    assert torch.allclose(grad, one.detach() / 3, atol=1e-6)
    zero = torch.zeros(3, 3, requires_grad=True)
    assert torch.equal(
        torch.autograd.grad(nuclear_rows(zero, torch.zeros(3, 3)).sum(), zero)[0], torch.zeros(3, 3)
    )
    broken = torch.full((2, 3), float("nan"))
    assert nuclear_rows(broken, torch.zeros(2, 3)).isnan().all()


def test_the_nuclear_loss_is_b_times_the_batch_loss():
    z, clean = draw(0), draw(1)
    norm = torch.linalg.svdvals(z - clean).sum()
    got = registry.losses.get("nuclear").fn(z, Y, clean, weight=0.5).sum()
    assert torch.allclose(got, nn.functional.cross_entropy(z, Y, reduction="sum") + 0.5 * norm)


@pytest.mark.parametrize("entry", list(registry.losses), ids=lambda e: e.name)
def test_every_loss_says_what_it_is_bound_to(entry):
    """One number per row with a gradient, from exactly the state that the registration names.

    State slices with the rows.
    """
    needs, asked = entry.facts.state, []
    assert needs in {("y",), ("clean",), ("y", "clean")}

    def clean():
        asked.append(1)
        return draw(1)

    bound = bind_inner(entry.name, Y, y_soft=None, clean=clean)
    assert len(asked) == ("clean" in needs) and len(bound.state) == len(needs)
    z = draw(0).requires_grad_()
    values = bound(z)
    assert values.shape == (6,) and (torch.autograd.grad(values.sum(), z)[0] != 0).any()
    part = torch.tensor([4, 1])
    assert all(torch.equal(a, b[part]) for a, b in zip(bound.rows(part).state, bound.state, strict=True))
    if "clean" in needs:
        with pytest.raises(ValueError, match="clean logits"):
            bind_inner(entry.name, Y, y_soft=None, clean=None)
        with pytest.raises(ValueError, match="targeted"):
            Criterion(Y, Y).bind(entry.name, clean)


def test_mixed_labels_reach_the_losses_that_know_them():
    def clean():
        return draw(1)

    assert torch.allclose(bind_inner("ce", Y, y_soft=MIXED, clean=None)(draw(0)), soft_ce(draw(0), MIXED))
    both = bind_inner("nuclear", Y, y_soft=MIXED, clean=clean, weight=2.0)(draw(0))
    assert torch.allclose(both, soft_ce(draw(0), MIXED) + 2 * nuclear_rows(draw(0), draw(1)))
    for name in ("margin", "kl"):
        assert torch.equal(
            bind_inner(name, Y, y_soft=MIXED, clean=clean)(draw(0)),
            bind_inner(name, Y, y_soft=None, clean=clean)(draw(0)),
        )


def test_clean_logits_carry_no_graph():
    held = draw(1).requires_grad_()
    bound = bind_inner("kl", Y, y_soft=None, clean=lambda: held * 2)
    assert not bound.state[0].requires_grad


# ---- through the oracle ------------------------------------------------------------------------------------

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).requires_grad_(False)
X = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def oracle(loss, **more):
    return Oracle(NET, X, Criterion(Y), loss=loss, rng=RowRandom(0, "start", torch.arange(6)), **more)


@pytest.mark.parametrize("name", ["kl", "nuclear"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_named_loss_and_the_bound_one_search_alike(name, keep):
    def attack(loss):
        return pgd(oracle(loss, keep=keep), X, Ball("linf", 0.2), steps=3)

    bound = bind_inner(name, Y, y_soft=None, clean=lambda: NET(X))
    assert torch.equal(attack(name), attack(bound)) and not torch.equal(attack(name), attack("ce"))
    o = oracle(name)
    pgd(o, X, Ball("linf", 0.2), steps=3)
    assert (o.forward_rows, o.backward_rows) == (6 * 4, 6 * 3)  # one clean pass for the whole attack


@pytest.mark.parametrize("bound", [False, True])
def test_the_state_leaves_with_the_rows(bound):
    """Rows that leave take their clean logits along: each remaining row keeps its own loss."""
    loss = bind_inner("kl", Y, y_soft=None, clean=lambda: NET(X)) if bound else "kl"
    wrong = NET(X).argmax(1) != Y
    assert 0 < int(wrong.sum()) < 6
    o = oracle(loss, keep="best", watch=lambda rows, x: torch.ones(len(rows), dtype=torch.bool))
    (x,) = o.compact(X)
    assert len(x) == int((~wrong).sum())
    near = (x + 0.1).clamp(0, 1)
    assert torch.allclose(o.gradient(near).loss, kl_rows(NET(near), NET(x)))


def test_a_bound_loss_may_hold_any_state():
    goal = torch.tensor([2, 0, 1, 2, 0, 1])
    ascend = RowLoss(lambda logits, target: logits.gather(1, target[:, None])[:, 0], (goal,))
    assert torch.equal(oracle(ascend).gradient(X).loss, NET(X).gather(1, goal[:, None])[:, 0])

"""Attack losses against small hand computations; criteria."""

import math

import pytest
import torch

from robustcli.core.losses import Criterion, dlr_targeted, mean_ce
from robustcli.registry import losses

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
Y = torch.tensor([0, 2])


def test_ce_by_hand():
    expected = [math.log(1 + math.exp(-2) + math.exp(-3)), math.log(3)]
    assert losses.get("ce").fn(LOGITS, Y).tolist() == pytest.approx(expected, abs=1e-6)


def test_margin_is_positive_exactly_when_wrong():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(1))
    margin = losses.get("margin").fn(logits, y)
    assert torch.equal(margin > 0, logits.argmax(1) != y)
    assert losses.get("margin").fn(LOGITS, Y).tolist() == [-2.0, 0.0]


@pytest.mark.parametrize("name", ["ce", "margin"])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_losses_are_one_number_per_row_with_a_gradient(name, classes):
    logits = torch.randn(5, classes, requires_grad=True)
    y = torch.arange(5) % classes
    loss = losses.get(name).fn(logits, y)
    assert loss.shape == (5,)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).any()


@pytest.mark.parametrize("name", ["ce", "margin"])
def test_a_targeted_loss_is_the_negative_towards_the_target(name):
    target = torch.tensor([1, 0])
    bound = Criterion(Y, target).bind(name)
    assert torch.equal(bound(LOGITS), -losses.get(name).fn(LOGITS, target))
    assert torch.equal(bound.rows(torch.tensor([1]))(LOGITS[1:]), bound(LOGITS)[1:])


def test_criteria():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]])
    y = torch.zeros(3, dtype=torch.int64)
    assert Criterion(y).hit(logits).tolist() == [False, True, False]
    assert Criterion(y, torch.tensor([0, 1, 1])).hit(logits).tolist() == [True, True, False]
    assert Criterion(y).hit(logits[1:2], torch.tensor([1])).tolist() == [True]


def test_mean_ce_smoothing_and_soft_labels():
    soft = torch.nn.functional.one_hot(Y, 3).float()
    assert torch.allclose(mean_ce(LOGITS, Y), mean_ce(LOGITS, Y, soft))
    log_p = LOGITS.log_softmax(1)
    q = 0.7 * soft + 0.3 / 3
    assert torch.allclose(mean_ce(LOGITS, Y, smoothing=0.3), -(q * log_p).sum(1).mean())
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match="label_smoothing"):
            mean_ce(LOGITS, Y, smoothing=bad)


def test_dlr_by_hand_and_free_of_shift_and_scale():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
    y, target = torch.tensor([0]), torch.tensor([3])
    assert losses.get("dlr").fn(logits, y).item() == pytest.approx(-(4 - 3) / (4 - 1))
    assert dlr_targeted(logits, y, target).item() == pytest.approx(-(4 - 0) / (4 - 0.5 * (1 + 0)))
    for moved in (logits * 1e4, logits + 7):
        assert losses.get("dlr").fn(moved, y).item() == pytest.approx(-1 / 3, rel=1e-5)
        assert dlr_targeted(moved, y, target).item() == pytest.approx(-4 / 3.5, rel=1e-5)
    with pytest.raises(ValueError, match="at least 3 classes"):
        losses.get("dlr").fn(logits[:, :2], y)
    with pytest.raises(ValueError, match="at least 4 classes"):
        dlr_targeted(logits[:, :3], y, torch.tensor([1]))

"""The judge: majority of draws for randomised models, threats without a radius, what it asks of the model."""

import pytest
import torch
from torch import nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.evaluation.judge import Judge


class Script(nn.Module):
    """Answers pass k with the k-th class of its script; knows how many rows it was asked for."""

    def __init__(self, *script):
        super().__init__()
        self.script, self.calls, self.asked = script, 0, []

    def forward(self, x):
        logits = torch.zeros(len(x), 3)
        logits[:, self.script[self.calls % len(self.script)]] = 1.0
        self.calls += 1
        self.asked.append(x)
        return logits


X = torch.full((4, 1, 2, 2), 0.5)
ZERO = Criterion(torch.zeros(4, dtype=torch.int64))
BALL = Ball("linf", 0.1)


@pytest.mark.parametrize(
    ("script", "hit", "label"),
    [
        ((1, 0), False, 0),
        ((1, 0, 2), True, 0),
        ((0, 1, 0), False, 0),
        ((2, 2, 0), True, 2),
        ((1, 2, 1, 0), True, 1),
        ((1, 1, 2), True, 1),
    ],
)
def test_a_majority_of_fresh_draws_decides_and_a_tie_is_no_success(script, hit, label):
    judge = Judge(Script(*script), BALL, draws=len(script))
    ruling = judge.rule(X, X, ZERO)
    assert ruling.hit.tolist() == [hit] * 4 and ruling.predicted.tolist() == [label] * 4
    sure = sum(k != 0 for k in script) >= 0.9 * len(
        script
    )  # a candidate of a running attack must be beyond doubt
    assert judge.hits(X, X, ZERO).tolist() == [sure] * 4 and judge.label(X).tolist() == [label] * 4
    assert judge.forward_rows == 3 * 4 * len(script)
    wrong = sum(k != 0 for k in script) / len(script)
    assert judge.success_rate(X, ZERO).tolist() == pytest.approx([wrong] * 4)
    assert torch.allclose(judge.logits(X).argmax(1), judge.logits(X).argmax(1)) and judge.logits(X).sum(
        1
    ).tolist() == pytest.approx([1.0] * 4)


def test_a_targeted_majority_counts_the_target_only():
    criterion = Criterion(torch.zeros(4, dtype=torch.int64), torch.full((4,), 2))
    assert not Judge(Script(2, 1, 1), BALL, draws=3).rule(X, X, criterion).hit.any()
    assert Judge(Script(2, 1, 2), BALL, draws=3).rule(X, X, criterion).hit.all()


def test_candidates_outside_are_not_shown_to_the_model():
    model = Script(1)
    judge = Judge(model, BALL)
    x_adv = X.clone()
    x_adv[1] += 0.2
    x_adv[3, 0, 0, 0] = float("nan")
    assert judge.hits(X, x_adv, ZERO).tolist() == [True, False, True, False]
    assert (judge.forward_rows, judge.refused_rows) == (2, 2) and all(
        torch.isfinite(x).all() and float(x.max()) <= 0.6 for x in model.asked
    )
    assert judge.hits(X, x_adv, ZERO).tolist() == judge.rule(X, x_adv, ZERO).hit.tolist()
    assert not judge.hits(X[:1], x_adv[1:2], ZERO, torch.tensor([1])).any() and judge.hits(
        X[:0], X[:0], ZERO, torch.zeros(0, dtype=torch.int64)
    ).shape == (0,)


def test_rows_name_the_labels_of_the_candidates():
    y = Criterion(torch.tensor([1, 0, 1, 0]))
    judge, rows = Judge(Script(1), BALL), torch.tensor([3, 0])
    far = torch.cat((X[:1], X[:1]))
    assert judge.hits(X[:2], far, y, rows).tolist() == [True, False]
    far[0] += 0.2
    assert judge.hits(X[:2], far, y, rows).tolist() == [False, False]
    far[1] = far[0]
    far[0] = 0.5
    assert judge.hits(X[:2], far, y, rows).tolist() == [True, False]


def test_without_a_radius_only_the_pixel_box_counts():
    judge = Judge(Script(1), BALL, bounded=False)
    x_adv = X.clone()
    x_adv[0], x_adv[1], x_adv[2, 0, 0, 0] = 1.0, 1.01, float("nan")
    ruling = judge.rule(X, x_adv, ZERO)
    assert (
        ruling.inside.tolist() == ruling.hit.tolist() == [True, False, False, True]
        and float(ruling.distance[0]) == 0.5
    )
    assert judge.refused_rows == 2


def test_no_draw_is_no_judge():
    with pytest.raises(ValueError, match="draws"):
        Judge(Script(1), BALL, draws=0)

"""The judge: majority of draws for randomised models, threats without a radius, what it asks of the model."""

import pytest
import torch
from torch import nn

from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.data.split import MemorySplit
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation


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
PLAIN = Search(torch.float32, fold_bn=False, channels_last=False)


@pytest.mark.parametrize(
    ("script", "hit", "label", "answer"),
    [
        ((1, 0), False, 0, 0),
        ((1, 0, 2), True, 0, 1),  # two draws of three are wrong, and no class is named twice
        ((0, 1, 0, 2, 2), True, 0, 2),
        ((0, 1, 0), False, 0, 0),
        ((2, 2, 0), True, 2, 2),
        ((1, 2, 1, 0), True, 1, 1),
        ((1, 1, 2), True, 1, 1),
    ],
)
def test_a_majority_of_fresh_draws_decides_and_a_tie_is_no_success(script, hit, label, answer):
    judge = Judge(Script(*script), BALL, draws=len(script))
    ruling = judge.rule(X, X, ZERO)
    assert ruling.hit.tolist() == [hit] * 4 and ruling.predicted.tolist() == [answer] * 4
    sure = sum(k != 0 for k in script) >= 0.9 * len(
        script
    )  # a candidate of a running attack must be beyond doubt
    assert judge.hits(X, X, ZERO).tolist() == [sure] * 4 and judge.label(X).tolist() == [label] * 4
    doubted = script.index(0) + 1 if 0 in script else len(script)  # then it is no candidate any more
    assert judge.forward_rows == 4 * (2 * len(script) + doubted)
    wrong = sum(k != 0 for k in script) / len(script)
    assert judge.success_rate(X, ZERO).tolist() == pytest.approx([wrong] * 4)
    assert torch.allclose(judge.logits(X).argmax(1), judge.logits(X).argmax(1)) and judge.logits(X).sum(
        1
    ).tolist() == pytest.approx([1.0] * 4)


def test_a_point_outside_is_no_hit_and_has_the_answer_of_all_draws():
    ruling = Judge(Script(1, 0, 2, 0, 2), BALL, draws=5).rule(X, X + 0.2, ZERO)
    assert not ruling.hit.any() and ruling.predicted.tolist() == [0] * 4


class Torn(nn.Module):
    """Right on dark images. On brighter ones three draws of five are wrong, each with another class."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        logits = torch.zeros(len(x), 4)
        logits[:, 0] = 1.0 + 0.1 * (self.calls % 5)  # the diagnosis sees two answers to one image
        bright = x.flatten(1).mean(1) > 0.505
        logits[bright, (0, 1, 0, 2, 3)[self.calls % 5]] = 2.0
        return logits + 0 * x.flatten(1).sum(1, keepdim=True)


def test_a_broken_sample_has_another_answer_than_its_label():
    def brighter(oracle, x, ball):
        return x + ball.eps

    split = MemorySplit(
        torch.full((6, 1, 2, 2), 127, dtype=torch.uint8), torch.zeros(6).long(), tuple("abcd")
    )
    plan = EvalPlan(BALL, [AttackCall("brighter", "brighter", brighter, {})], search=PLAIN, checks=6)
    result = RobustEvaluation(Torn(), plan).run(split, torch.arange(6), torch.device("cpu"))
    assert result.correct.all() and not result.survivors.any()
    assert result.answers.clean.tolist() == [0] * 6 and result.answers.attacked.tolist() == [1] * 6


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


def test_a_point_without_a_finite_logit_is_counted_once_however_often_it_is_asked_about():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), float("nan"))

    x, judge = torch.rand(2, 1, 4, 4), Judge(Broken(), Ball("linf", 0.1), draws=25)
    assert not judge.hits(x, x, judge.criterion(torch.zeros(2, dtype=torch.int64))).any()
    assert judge.broken_rows == 2 and judge.forward_rows == 2 * 3  # the third failure ends it

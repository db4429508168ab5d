"""The verdict in a union of balls is, sample by sample, the AND of the verdicts in the balls."""

import pytest
import torch
from torch import nn

import robustcli
from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.plan import AttackCall
from robustcli.evaluation.result import Evaluation
from robustcli.evaluation.union import united
from robustcli.records.alarm import Alarm

MASKED = Alarm("masked", "suspect", "zero gradients", "look")


def verdicts(generator, n, labels=("pgd", "square"), ids=None, alarms=()):
    """Random verdicts on n samples, under attacks that run one after the other."""
    ids = torch.arange(n) if ids is None else ids
    correct, stages = torch.rand(n, generator=generator) < 0.8, {}
    left = correct
    for label in labels:
        left = left & (torch.rand(n, generator=generator) < 0.7)
        stages[label] = left
    attacked = torch.where(correct & ~left, torch.randint(0, 3, (n,), generator=generator), NONE)
    calls = tuple(AttackCall(label, label, lambda oracle, x, ball: x, {}) for label in labels)
    return Evaluation(
        ids=ids, labels=torch.zeros(n, dtype=torch.int64), correct=correct,
        answers=Answers(torch.zeros(n, dtype=torch.int64), torch.ones(n).double(), attacked, (None,) * n),
        stages=stages, seconds=dict.fromkeys(labels, 1.0), passes_per_sample=dict.fromkeys(labels, 10.0),
        alarms=list(alarms), total_seconds=2.0, calls=calls, total=n, shards=(1, 1),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_the_survivors_are_the_and_of_those_of_each_ball(seed):
    """Property: union accuracy <= each ball's; broken_by is None exactly for those that stand in all."""
    generator = torch.Generator().manual_seed(seed)
    n = 1 + 13 * seed
    first = verdicts(generator, n)
    second, third = (verdicts(generator, n) for _ in range(2))
    parts = {"linf:0.1": first, "l2:1": second, "l1:9": third}
    whole = united(parts)
    expected = first.survivors & second.survivors & third.survivors
    assert torch.equal(whole.survivors, expected)
    assert all(whole.robust_acc <= part.robust_acc for part in parts.values())
    fell = whole.broken_by < len(whole.counted)
    assert torch.equal(fell, whole.correct & ~whole.survivors)
    assert torch.equal(whole.answers.attacked != NONE, fell)
    assert torch.equal(whole.correct, first.correct & second.correct & third.correct)
    assert [call.label for call in whole.calls] == list(whole.stages) and len(whole.stages) == 6


def test_alarms_say_their_ball_and_samples_that_a_ball_lacks_are_left_out():
    generator = torch.Generator().manual_seed(0)
    parts = {
        "linf:0.1": verdicts(generator, 6, alarms=[MASKED]),
        "l2:1": verdicts(generator, 4, ids=torch.tensor([0, 2, 3, 5])),
    }
    whole = united(parts)
    assert whole.ids.tolist() == [0, 2, 3, 5] and not whole.complete
    assert [alarm.evidence for alarm in whole.alarms] == ["in linf:0.1: zero gradients"]
    both = united({name: verdicts(generator, 4, alarms=[MASKED]) for name in parts})
    assert both.alarms == [MASKED]


def test_evaluate_takes_a_union():
    """From Python: a mapping of radii; the whole has the numbers of the single calls."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # the classes have equal shares
    x = torch.rand(24, 1, 4, 4)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    radii = {"linf": 0.03, "l2": 0.12, "l1": 0.4}
    more = {"attack": "pgd", "steps": 5, "checks": 0, "device": "cpu"}
    whole = robustcli.evaluate(model, x, y, eps=radii, **more)
    alone = {norm: robustcli.evaluate(model, x, y, eps=eps, norm=norm, **more) for norm, eps in radii.items()}
    assert list(whole.threats) == ["linf:0.03", "l2:0.12", "l1:0.4"]
    for norm, part in zip(radii, whole.threats.values(), strict=True):
        assert torch.equal(part.survivors, alone[norm].survivors)
    assert torch.equal(whole.survivors, torch.stack([v.survivors for v in alone.values()]).all(0))
    assert 0 < whole.robust_acc < whole.clean_acc < 1
    for refused in ({"eps": {"linf": 0.1}}, {"eps": radii, "step_size": 0.1}):
        with pytest.raises(ValueError, match="balls"):
            robustcli.evaluate(model, x, y, **{**more, **refused})
    with pytest.raises(ValueError, match="one eps and norm"):
        robustcli.attack(model, x, y, eps=radii)

"""A model behind its defences: K + 1 logits, and attacks that must be wrong and accepted at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustcli
from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import EvalPlan
from robustcli.evaluation.stage import Batch
from robustcli.models.guarded import Defence, GuardedModel

K = 3


class Net(nn.Module):
    def __init__(self, classes=K):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes))

    def forward(self, x):
        return self.layers(x)


class Bright(nn.Module):
    """A detector: how bright the image is."""

    def forward(self, x, logits, net):
        return x.flatten(1).mean(1)


def defence(name, label=None, **params):
    return Defence(label or name, name, params, registry.defences.get(name).fn(**params))


def guarded(threshold=None, *more, classes=K):
    """A network whose energy is watched; half of the images lie above the threshold."""
    model = GuardedModel([Net(classes)], [*more, defence("energy")], classes).eval()
    if threshold is not None:
        model.thresholds.fill_(threshold)
        model.spreads.fill_(0.1)
    return model


def images(n=24):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=K + 1, max_size=K + 1), min_size=1, max_size=6),
    st.integers(0, K - 1),
)
def test_a_hit_is_neither_right_nor_rejected(rows, label):
    logits = torch.tensor(rows, dtype=torch.float32)
    y = torch.full((len(rows),), label)
    criterion = Criterion(y, reject=K)
    joint = criterion.joint(logits)
    assert joint.shape == (len(rows), K) and torch.equal(criterion.joint(joint), joint)
    wrong = logits[:, :K].scatter(1, y[:, None], float("-inf")).amax(1)
    safe = torch.maximum(logits[:, label], logits[:, K])
    sure = wrong != safe  # equal logits may go either way
    assert torch.equal(criterion.hit(logits)[sure], (wrong > safe)[sure])
    assert torch.equal(criterion.hit(logits), criterion.hit(joint))
    margin = registry.losses.get("margin").fn(joint, y)
    assert torch.equal(margin, wrong - safe)


def test_the_last_logit_wins_exactly_where_a_detector_alarms():
    model, x = guarded(), images()
    logits, scores = model.look(x)
    assert not model.fitted and (model(x).argmax(1) < K).all() and torch.equal(model(x)[:, :K], logits)
    middle = float(scores["energy"].median())
    model = guarded(middle)
    rejected = model(x).argmax(1) == K
    assert torch.equal(rejected, scores["energy"] > middle) and 0 < int(rejected.sum()) < len(x)


def test_a_rejected_clean_image_is_not_right_and_a_rejected_point_is_no_hit():
    x = images()
    plain = guarded()
    y = plain(x)[:, :K].argmax(1)
    model = guarded(float(plain.look(x).scores["energy"].median()))
    judge = Judge(model, Ball("linf", 1.0))
    rejected = model(x).argmax(1) == K
    assert torch.equal(judge.clean(x, y).right, ~rejected)
    other = (y + 1) % K  # every image is wrong under these labels
    assert torch.equal(judge.rule(x, x, judge.criterion(other)).hit, ~rejected)


@pytest.mark.parametrize("name", registry.attacks.names())
def test_every_attack_works_on_the_joint_problem(name):
    """What it finds is wrong and accepted; and it is not led to points that are rejected."""
    entry = registry.attacks.get(name)
    x = images()
    middle = float(guarded().look(x).scores["energy"].median())
    model = guarded(middle)
    y = model(x)[:, :K].argmax(1)
    norm = entry.facts.norms[0]
    eps = {"l0": 6}.get(norm, 0.3)
    words = {"eps": eps, "norm": norm, "checks": 0, "device": "cpu", "search": "fp32"}
    short = {"queries": 200} if "queries" in registry.parameters(entry.fn) else {}
    verdict = robustcli.evaluate(model, x, y, attack=name, **words, **short)
    accepted = model(x).argmax(1) < K
    assert verdict.clean_acc == pytest.approx(float(accepted.float().mean()), abs=1e-6)
    assert (verdict.survivors <= accepted).all()
    facts = entry.facts
    if facts.kind != "unbounded" and facts.needs == "gradient" and not facts.for_others:
        assert int(verdict.survivors.sum()) < int(accepted.sum())


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "dlr-targeted"])
def test_apgd_finds_accepted_points_where_the_bare_attack_is_all_rejected(loss):
    """The way straight to another class leads over rejected ground; the joint loss goes around it."""
    model = guarded(classes=4)
    x = images()
    logits, scores = model.look(x)
    y = logits.argmax(1)
    model.thresholds.fill_(float(scores["energy"].quantile(0.9)))
    model.spreads.fill_(0.02)
    verdict = robustcli.evaluate(
        model, x, y, eps=0.25, attack="apgd", loss=loss, steps=60, checks=0, device="cpu", search="fp32"
    )
    x_adv = robustcli.attack(model.members[0], x, y, name="apgd", eps=0.25, steps=60, device="cpu")
    blind = model(x_adv).argmax(1)
    oblivious = ((blind != y) & (blind != 4)).float().mean()
    assert 1 - verdict.robust_acc >= float(oblivious)


def test_targets_and_goals_are_classes_and_never_reject():
    x = images()
    model = guarded(float(guarded().look(x).scores["energy"].quantile(0.8)))
    y = model(x)[:, :K].argmax(1)
    for target in ("random", "least-likely", 2):
        verdict = robustcli.evaluate(
            model, x, y, eps=0.5, attack="pgd", target=target, checks=0, device="cpu", search="fp32"
        )
        assert 0 <= verdict.robust_acc <= verdict.clean_acc


def test_a_model_without_detectors_accepts_all_and_purifiers_have_a_slope():
    model, x = GuardedModel([Net()], [defence("bit_depth", bits=3)], K).eval(), images()
    assert model.fitted and (model(x).argmax(1) < K).all()
    point = x.clone().requires_grad_(True)
    model(point)[:, :K].sum().backward()
    assert (point.grad != 0).any()
    assert torch.equal(model.net(x), Net()((x * 7).round() / 7))


@pytest.mark.parametrize("members, names", [(2, []), (1, ["energy", "energy"])])
def test_what_cannot_be_joined_is_said(members, names):
    with pytest.raises(ValueError, match="vote|label"):
        GuardedModel([Net() for _ in range(members)], [defence(name) for name in names], K)


def test_the_confidence_in_a_class_leaves_reject_aside():
    """Just below its threshold an image is nearly rejected, which says nothing of its name."""
    model, x = guarded(), images()
    y = model(x)[:, :K].argmax(1)
    model.thresholds.fill_(float(model.look(x).scores["energy"].quantile(0.7)))
    judge = Judge(model, Ball("linf", 0.1))
    plan = EvalPlan(Ball("linf", 0.1), [], seed=0)
    batch = Batch.judged(judge, plan, x, y, torch.arange(len(x)))
    named = batch.predicted < K
    alone = model.look(x).logits.softmax(1).amax(1)
    assert torch.allclose(batch.confidence[named], alone[named]) and 0 < int(named.sum()) < len(x)
    assert (batch.confidence[~named] < alone[~named]).all() and (batch.confidence > 0).all()

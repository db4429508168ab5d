"""The judge, the evaluation over batches, the 8-bit lattice and the alarms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.data.split import MemorySplit
from robustcli.evaluation.collect import Collector
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.lattice import from_lattice, to_lattice
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.stage import goals

CPU = torch.device("cpu")
PLAIN = Search(torch.float32, fold_bn=False, channels_last=False)


class Net(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.bn, self.head, self.scale = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Linear(128, 4),
            scale,
        )

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).flatten(1)) * self.scale


def data(n=60):
    pixels = torch.randint(
        0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        y = Net().eval()(pixels.float() / 255).argmax(1)
    y[::7] = (y[::7] + 1) % 4  # some are wrong from the start
    return MemorySplit(pixels, y, tuple("abcd"))


def call(name="pgd", **params):
    return AttackCall(name, name, registry.attacks.get(name).fn, params)


def measure(net, attacks, eps=0.05, norm="linf", split=None, **more):
    split = split or data()
    plan = EvalPlan(Ball(norm, eps), attacks, search=more.pop("search", PLAIN), **more)
    return RobustEvaluation(net, plan).run(split, torch.arange(len(split)), CPU)


def test_the_three_numbers_agree_with_each_other():
    result = measure(Net(), [call("fgsm"), call(steps=5)])
    right, standing = int(result.correct.sum()), int(result.survivors.sum())
    assert (result.clean_acc, result.robust_acc) == (
        right / 60,
        standing / 60,
    ) and result.attack_success == pytest.approx((right - standing) / right)
    assert result.n == 60 and list(result.stages) == ["fgsm", "pgd"]
    assert (result.stages["pgd"] <= result.stages["fgsm"]).all() and (
        result.stages["fgsm"] <= result.correct
    ).all()
    assert result.reliability == "ok" and 0 < standing < right


@pytest.mark.parametrize("search", [PLAIN, Search(), Search(torch.bfloat16)], ids=["plain", "folded", "bf16"])
def test_batch_size_never_changes_a_verdict(search):
    first = measure(Net(), [call(steps=4)], batch_size=60, search=search)
    for size in (7, 1):
        again = measure(Net(), [call(steps=4)], batch_size=size, search=search)
        assert torch.equal(again.ids, first.ids) and int((again.survivors != first.survivors).sum()) <= (
            0 if search is PLAIN else 1
        )


def test_eps_zero_is_clean_accuracy_and_a_huge_eps_breaks_everything():
    assert measure(Net(), [call(steps=3)], eps=0.0).robust_acc == measure(Net(), []).clean_acc
    assert measure(Net(), [call(steps=40)], eps=1.0).robust_acc == 0


def test_memory_holds_one_batch_at_a_time():
    alive = []

    class Watching(MemorySplit):
        def stream(self, batches, device):
            for item in super().stream(batches, device):
                alive.append(len(item[0]))
                yield item

    source = data()
    measure(
        Net(), [call(steps=1)], split=Watching(source.store, source.labels, source.classes), batch_size=16
    )
    assert alive == [32, 16, 16, 16, 12]  # the first is the look at the model


def test_the_model_is_as_before_even_when_a_batch_fails():
    net = Net().train()
    state = {k: v.clone() for k, v in net.state_dict().items()}

    def bomb(oracle, x, ball):
        oracle.gradient(x)
        raise RuntimeError("bomb")

    with pytest.raises(RuntimeError, match="bomb"):
        measure(net, [AttackCall("bomb", "bomb", bomb, {})])
    assert (
        net.training and net.bn.training and all(p.requires_grad and p.grad is None for p in net.parameters())
    )
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_points_outside_the_ball_never_count():
    def cheat(oracle, x, ball):
        return 1 - x

    result = measure(Net(), [AttackCall("cheat", "cheat", cheat, {})], eps=0.01)
    assert torch.equal(result.survivors, result.correct)
    assert result.reliability == "suspect" and [a.name for a in result.alarms] == ["outside-ball"]


def test_a_twin_that_invents_hits_breaks_nothing():
    net = Net().eval()
    x, y, _ = next(data().stream([torch.arange(60)], CPU))
    judge = Judge(net, Ball("linf", 0.1))
    assert not judge.rule(x, x, Criterion(net(x).argmax(1))).hit.any()
    wrong = judge.rule(x, x, Criterion((net(x).argmax(1) + 1) % 4))
    assert wrong.hit.all() and float(wrong.distance.max()) == 0 and y.shape == (60,)


class Alarming(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = Net().eval(), kind
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        z = self.net(x)
        if self.kind == "random-forward":
            return z + 0.1 * torch.rand_like(z)
        if self.kind == "softmax-output":
            return z.softmax(1)
        if self.kind == "non-finite-logits":
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.5, z, z * float("nan"))
        if self.kind == "model-mutated":
            self.count += 1
        if self.kind == "zero-gradient":
            return self.net((x * 4).round() / 4)
        return z


@pytest.mark.parametrize(
    "kind", ["random-forward", "softmax-output", "non-finite-logits", "model-mutated", "zero-gradient"]
)
def test_alarms(kind):
    result = measure(Alarming(kind), [call(steps=2)])
    assert kind in [alarm.name for alarm in result.alarms] and result.reliability != "ok"
    assert all(alarm.evidence and alarm.remedy for alarm in result.alarms)


@pytest.mark.parametrize("target", ["random", 2])
def test_targets(target):
    result = measure(Net(), [call(steps=20)], eps=0.5, target=target)
    assert result.robust_acc < result.clean_acc
    easier = measure(Net(), [call(steps=20)], eps=0.5)
    assert easier.robust_acc <= result.robust_acc


def test_the_least_likely_wrong_class_and_a_random_wrong_class():
    logits, y = torch.tensor([[0.0, 3.0, 1.0], [5.0, 9.0, 8.0]]), torch.tensor([0, 0])
    labels = {
        t: goals(EvalPlan(Ball("linf", 0.1), [], target=t), logits, y, torch.arange(2))
        for t in ("least-likely", "random")
    }
    assert labels["least-likely"].tolist() == [2, 2] and (labels["random"] != y).all()


def test_a_bad_target_is_named():
    with pytest.raises(ValueError, match="target"):
        measure(Net(), [call(steps=1)], target=9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    levels=st.sampled_from([0.5, 1.0, 4.0, 8.0, 100.0]),
)
def test_the_lattice_stays_inside_the_ball(seed, norm, levels):
    """Trap: truncating to uint8 on save, so that 8/255 becomes 9/255."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (3, 1, 4, 4), generator=g).float() / 255
    ball = Ball(norm, levels / 255 * {"linf": 1, "l2": 3, "l1": 8}[norm])
    x_adv = ball.project(x, x + torch.randn(x.shape, generator=g) * ball.eps)
    saved = from_lattice(to_lattice(x, x_adv, ball))
    assert ball.contains(x, saved).all()
    assert float((saved - x_adv).abs().max()) <= 1 / 255 + 1e-6
    assert torch.equal(to_lattice(x, x, ball), (x * 255).round().to(torch.uint8))


# ---- answers, and where the work is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "counted"),
    [(("fgsm", "spatial", "pgd"), ["fgsm", "pgd"]), (("spatial", "corruption"), ["spatial", "corruption"])],
    ids=["with a ball", "without one"],
)
def test_an_answer_is_the_one_of_the_model_in_fp32_at_the_point_that_broke_the_sample(names, counted):
    """Also where the search ran on a bf16 twin, and whatever the attack believed."""
    net, points, split = Net().eval(), {}, data()

    def keep(outcome):
        points.update(zip(outcome.ids.tolist(), outcome.x_adv, strict=True))

    calls = [AttackCall.of(registry.attacks.get(name), {}) for name in names]
    plan = EvalPlan(Ball("linf", 0.05), calls, search=Search(torch.bfloat16))
    result = RobustEvaluation(net, plan).run(split, torch.arange(60), CPU, on_batch=keep)
    x = split.store.pixels[result.ids].float() / 255
    with torch.no_grad():
        confidence, clean = net(x).softmax(1).max(1)
        attacked = net(torch.stack([points[i] for i in result.ids.tolist()])).argmax(1)
    answers, broken = result.answers, result.correct & ~result.survivors
    assert result.counted == counted and 3 < int(broken.sum()) < int(result.correct.sum())
    assert torch.equal(answers.clean, clean) and answers.files == (None,) * 60
    assert torch.allclose(answers.confidence.float(), confidence, atol=6e-5)
    assert torch.equal(answers.attacked, attacked.where(broken, -1))
    assert (attacked[broken] != result.labels[broken]).all()
    for row, by in enumerate(result.broken_by.tolist()):
        first = [label for label in counted if result.correct[row] and not result.stages[label][row]]
        assert [*counted, None][by] == (first[0] if first else None)


def test_logits_that_are_not_finite_are_no_answer():
    class Sick(Net):
        def forward(self, x):
            return super().forward(x) + torch.where(x.mean((1, 2, 3)) > 0.5, torch.nan, 0.0)[:, None]

    answers = measure(Sick(), [call(steps=1)]).answers
    sick = data().store.pixels.float().mean((1, 2, 3)) / 255 > 0.5
    assert 5 < int(sick.sum()) < 55
    assert (answers.clean[sick] == -1).all() and (answers.confidence[sick] == 0).all()
    assert (answers.clean[~sick] >= 0).all() and (answers.confidence[~sick] > 0).all()


def test_beats_come_inside_a_batch_and_end_with_its_work(monkeypatch):
    """Stage, step, standing and share move with the passes; the share never falls and ends near 1."""
    monkeypatch.setattr("robustcli.evaluation.pulse.EVERY", 0.0)
    given = {"fgsm": {}, "pgd": {"steps": 8, "restarts": 2}, "square": {"queries": 40}}
    calls = [AttackCall.of(registry.attacks.get(name), params) for name, params in given.items()]
    beats = []
    plan = EvalPlan(Ball("linf", 0.02), calls, search=PLAIN)
    result = RobustEvaluation(Net(), plan, beat=beats.append).run(data(), torch.arange(60), CPU)
    inside = [beat for beat in beats if beat.rows]
    shares = [beat.share for beat in inside]
    assert shares == sorted(shares) and 0.95 < shares[-1] <= 1 and {beat.rows for beat in inside} == {60}
    order = list(dict.fromkeys(beat.label for beat in inside))
    assert order[-3:] == ["fgsm", "pgd", "square"] and set(order[:-3]) <= {"clean images"}
    for label, of in (("pgd", 16), ("square", 40)):
        steps = [beat.step for beat in inside if beat.label == label and beat.step]
        assert steps == sorted(steps) and steps[0][0] <= 1 and steps[-1][0] >= of - 1
        assert {step[1] for step in steps} == {of}
    assert int(result.survivors.sum()) <= inside[-1].standing <= int(result.correct.sum())
    assert RobustEvaluation(Net(), plan).run(data(), torch.arange(60), CPU).robust_acc == result.robust_acc


@pytest.mark.parametrize("names", [("spatial", "corruption"), ("fgsm", "spatial")])
def test_what_a_resumed_evaluation_knows_is_what_its_batches_said(names):
    """Attacks without a ball count where the list has no other."""
    net, split = Net().eval(), data(16)
    calls = [AttackCall.of(registry.attacks.get(name), {}) for name in names]
    plan = EvalPlan(Ball("linf", 0.3), calls, search=PLAIN)
    (x, y, ids) = next(split.stream([torch.arange(16)], CPU))
    outcome = RobustEvaluation(net, plan).attack_batch(x, y, ids)
    collector = Collector(plan, ids, [None] * 16, None, None)
    collector.add(outcome)
    count, right, standing = collector.proven
    assert count == 16 and torch.equal(right, outcome.correct) and torch.equal(standing, outcome.survivors)
    assert int(standing.sum()) < int(right.sum())


@pytest.mark.parametrize("fold_bn", [True, False])
def test_a_copy_that_was_asked_to_be_plainer_is_no_fallback(fold_bn):
    x = next(data(8).stream([torch.arange(8)], CPU))[0]
    twin, note = Search(torch.float32, fold_bn=fold_bn, channels_last=False).faithful(Net().eval(), x)
    assert twin is not None and note == ""

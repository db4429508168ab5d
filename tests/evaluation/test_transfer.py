"""Transfer matrix, black box by surrogate, the sign test and its alarm."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.core.losses import Criterion
from robustcli.core.oracle import Oracle
from robustcli.core.random import RowRandom
from robustcli.data.split import MemorySplit
from robustcli.evaluation.judge import Judge
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.surrogate import transferred
from robustcli.evaluation.transferability import Transfer, transfer_alarms, transfer_matrix
from robustcli.proportions import sign_test

CPU = torch.device("cpu")
PLAIN = Search(torch.float32, fold_bn=False, channels_last=False)
SHAPE = (1, 4, 4)


class Linear(nn.Module):
    """Two classes, logits (w.x - b, 0): along linf, x is |w.x - b| / ||w||_1 away from the boundary."""

    def __init__(self, weight, bias=0.0, classes=2):
        super().__init__()
        self.weight, self.bias, self.classes = nn.Parameter(weight.float()), bias, classes

    def forward(self, x):
        score = x.flatten(1) @ self.weight - self.bias
        return torch.stack([score, *[torch.zeros_like(score) - k for k in range(self.classes - 1)]], 1)


class Flat(nn.Module):
    """The same answers as another model, from steps that have no gradient."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.nn.functional.one_hot(self.inner(x).argmax(1), 2).float() + 0 * self.inner(x)


def weights(seed):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed))


def data(model, n=80, seed=0):
    """Images away from the pixel limits, labelled by the model."""
    pixels = torch.randint(
        60, 196, (n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    with torch.no_grad():
        y = model(pixels.float() / 255).argmax(1)
    return MemorySplit(pixels, y, ("a", "b"))


def call(name="pgd", **params):
    entry = registry.attacks.get(name)
    return AttackCall(name, name, entry.fn, params, entry.facts.kind, entry.facts.needs)


def plain(name="pgd", **params):
    """The same, searched on the model itself."""
    return replace(call(name, **params), search=PLAIN)


def centred(weight):
    """A linear model whose boundary passes through grey, so that half of all images are on each side."""
    return Linear(weight, float(weight.sum()) * 0.5)


def matrix(models, attacks=None, eps=0.05, split=None, **more):
    split = split if split is not None else data(next(iter(models.values())))
    plan = EvalPlan(Ball("linf", eps), attacks or [call("fgsm")], search=PLAIN, **more)
    return transfer_matrix(models, plan, split, torch.arange(len(split)), CPU)


def test_a_linear_pair_gives_the_closed_form():
    """FGSM moves by eps * sign(w_s): it breaks t exactly when |score_t| < eps * <sign(w_s), w_t> towards the
    boundary.
    """
    a, b, eps = centred(weights(1)), centred(weights(1) + 1.5 * weights(2)), 0.03
    split = data(a, 300)
    result = matrix({"a": a, "b": b}, eps=eps, split=split)
    x = split.store.pixels.float() / 255
    with torch.no_grad():
        scores = torch.stack([m(x)[:, 0] for m in (a, b)])
    y = torch.where(split.labels == 0, 1.0, -1.0)
    joint = (scores * y > 0).all(0)
    assert (
        result.jointly_correct == int(joint.sum())
        and torch.equal(result.ids, joint.nonzero()[:, 0])
        and result.n == 300
    )
    assert result.correct.tolist() == [300, int((scores[1] * y > 0).sum())]
    for s, source in enumerate((a, b)):
        for t, target in enumerate((a, b)):
            drop = eps * float((source.weight.sign() * target.weight).sum().detach())
            assert int(result.broken[s, t]) == int((scores[t] * y < drop)[joint].sum())
    assert 0 < int(result.broken[0, 1]) < int(result.broken[1, 1]) < result.jointly_correct


def test_a_model_and_its_twin_carry_everything_over():
    model = centred(weights(3))
    result = matrix({"one": model, "two": model}, [call(steps=3)])
    assert len({int(k) for k in result.broken.flatten()}) == 1 and int(result.broken[0, 0]) > 0
    assert not result.gained.any() and not result.lost.any() and transfer_alarms(result) == []


@pytest.mark.parametrize("size", [1, 7, 80])
def test_batch_size_never_changes_the_matrix(size):
    models = {"a": centred(weights(1)), "b": centred(weights(1) + weights(2))}
    first, again = matrix(models, [call(steps=4)]), matrix(models, [call(steps=4)], batch_size=size)
    assert all(
        torch.equal(getattr(first, name), getattr(again, name))
        for name in ("correct", "ids", "broken", "gained", "lost")
    )


def test_the_diagonal_is_the_worst_of_the_list():
    """A second attack that finds nothing hides no point of the first, whatever their order."""
    models = {"a": centred(weights(1)), "b": centred(weights(1) + weights(2))}

    def lazy(oracle, x, ball):
        return x.clone()

    def outside(oracle, x, ball):
        return x + 0.9

    strong = matrix(models, [call("fgsm")])
    for useless in (lazy, outside):
        other = AttackCall("useless", "useless", useless, {})
        for attacks in ([call("fgsm"), other], [other, call("fgsm")]):
            assert torch.equal(matrix(models, attacks).broken, strong.broken)
    assert not matrix(models, [AttackCall("outside", "outside", outside, {})]).broken.any()


def test_counts_agree_with_each_other():
    models = {"a": centred(weights(1)), "b": centred(weights(2)), "c": centred(weights(1) + weights(2))}
    result = matrix(models, [call(steps=3)])
    own = result.broken.diagonal()[None]
    assert (
        torch.equal(result.broken - own, result.gained - result.lost) and not result.gained.diagonal().any()
    )
    assert result.matrix[0][1] == int(result.broken[0, 1]) / result.jointly_correct


def test_no_jointly_correct_sample_gives_no_rate():
    model = centred(weights(1))
    result = matrix({"a": model, "not a": Linear(-model.weight.detach(), -model.bias)})
    assert (
        result.jointly_correct == 0
        and result.matrix == [[None, None], [None, None]]
        and transfer_alarms(result) == []
    )


def test_eps_zero_breaks_nothing():
    assert not matrix(
        {"a": centred(weights(1)), "b": centred(weights(2))}, [call(steps=2)], eps=0.0
    ).broken.any()


def test_nothing_of_a_model_changes():
    models = {"a": centred(weights(1)).train(), "b": centred(weights(2))}
    matrix(models, [call(steps=2)])
    assert models["a"].training and all(
        p.requires_grad and p.grad is None for m in models.values() for p in m.parameters()
    )


def test_wrong_calls_are_refused_by_name():
    a, b = centred(weights(1)), centred(weights(2))
    with pytest.raises(ValueError, match="two models"):
        matrix({"a": a})
    with pytest.raises(ValueError, match="target"):
        matrix({"a": a, "b": b}, target=1)
    with pytest.raises(ValueError, match="spin"):
        matrix({"a": a, "b": b}, [AttackCall("spin", "spin", lambda oracle, x, ball: x, {}, "unbounded")])
    with pytest.raises(ValueError, match="2, 3"):
        matrix({"a": a, "b": Linear(weights(2), classes=3)})


def test_a_target_that_masks_its_gradients_raises_the_alarm_and_honest_models_do_not():
    honest, near = centred(weights(1)), centred(weights(1) + 0.2 * weights(2))
    result = matrix({"honest": honest, "masked": Flat(near)}, [call(steps=5)], eps=0.05)
    assert int(result.broken[1, 1]) < int(result.broken[0, 1])
    (alarm,) = transfer_alarms(result)
    assert (
        (alarm.name, alarm.level) == ("transfer-beats-white-box", "suspect")
        and "honest" in alarm.evidence
        and alarm.evidence.startswith("points made on honest break masked")
    )
    for seed in range(5):
        models = {str(k): centred(weights(1) + 0.5 * weights(10 * seed + k)) for k in range(3)}
        assert transfer_alarms(matrix(models, [call(steps=5)])) == []


def test_the_alarm_fires_where_chance_ends():
    """Two models, level 0.025 / 2: 7 against 0 (p = 2^-7) is more than chance, 6 against 0 (2^-6) is not."""
    for gained, fires in ((6, False), (7, True)):
        pair = torch.tensor([[0, gained], [0, 0]])
        assert (
            bool(
                transfer_alarms(
                    Transfer(
                        *(("a", "b"), 90, pair[0], torch.arange(90), pair, pair, torch.zeros_like(pair)),
                        *(torch.zeros_like(pair), pair[None], ("fgsm",)),
                    )
                )
            )
            is fires
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_sums_the_binomial_tail(gained, lost):
    n = gained + lost
    assert sign_test(gained, lost) == pytest.approx(
        sum(math.comb(n, k) for k in range(gained, n + 1)) / 2**n, rel=1e-9
    )


# ---- black box by surrogate --------------------------------------------------------------------------------


def victim_oracle(model, x, y, ball, **more):
    return Oracle(
        model,
        x,
        Criterion(y),
        rng=RowRandom(0, "start", torch.arange(len(x))),
        keep="best",
        ball=ball,
        **more,
    )


def test_a_surrogate_that_is_the_victim_finds_what_the_attack_finds():
    model, ball = centred(weights(1)), Ball("linf", 0.05)
    split = data(model)
    x, y = split.store.pixels.float() / 255, split.labels
    black = transferred(model, plain(steps=4))(victim_oracle(model, x, y, ball), x, ball)
    white = registry.attacks.get("pgd").fn(victim_oracle(model, x, y, ball), x, ball, steps=4)
    assert torch.equal(black, white) and bool(ball.contains(x, black).all())


def test_the_victim_is_asked_once_and_never_for_a_gradient():
    victim, ball = centred(weights(1)), Ball("linf", 0.05)
    split = data(victim)
    x, y = split.store.pixels.float() / 255, split.labels
    oracle = victim_oracle(victim, x, y, ball, clean_logits=victim(x).detach())
    surrogate = centred(weights(1) + 0.3 * weights(2)).train()
    found = transferred(surrogate, plain(steps=4, restarts=2))(oracle, x, ball)
    assert (oracle.forward_rows, oracle.backward_rows) == (len(x), 0) and surrogate.training
    assert Judge(victim, ball).rule(x, found, Criterion(y)).hit.sum() > 10


def test_a_surrogate_in_train_mode_is_searched_on_as_it_predicts():
    model, ball = centred(weights(1)), Ball("linf", 0.05)
    split = data(model)
    x, y = split.store.pixels.float() / 255, split.labels
    noisy = nn.Sequential(nn.Dropout(0.5), model).train()
    found = [
        transferred(noisy, replace(call("fgsm"), search=search))(victim_oracle(model, x, y, ball), x, ball)
        for search in (PLAIN, Search())
    ]
    expected = transferred(model, plain("fgsm"))(victim_oracle(model, x, y, ball), x, ball)
    assert all(torch.equal(part, expected) for part in found) and noisy.training and noisy[0].training
    assert all(p.requires_grad and p.grad is None for p in noisy.parameters())


def test_confirmed_rows_and_no_rows_at_all_are_no_trouble():
    victim, ball = centred(weights(1)), Ball("linf", 0.05)
    split = data(victim)
    x, y = split.store.pixels.float() / 255, split.labels.clone()
    y[::2] = 1 - y[::2]  # wrong from the start: confirmed at the clean point
    judge = Judge(victim, ball)
    attack = transferred(victim, plain(steps=2))
    found = attack(
        victim_oracle(
            victim, x, y, ball, watch=lambda rows, z: judge.rule(x[rows], z, Criterion(y), rows).hit
        ),
        x,
        ball,
    )
    assert found.shape == x.shape and torch.equal(found[::2], x[::2]) and bool(torch.isfinite(found).all())
    assert attack(victim_oracle(victim, x[:0], y[:0], ball), x[:0], ball).shape == x[:0].shape


def test_a_minimal_attack_on_the_surrogate_stays_in_the_ball():
    def far(oracle, x, ball):
        oracle.logits(1 - x)
        return oracle.result(1 - x)

    victim, ball = centred(weights(1)), Ball("linf", 0.01)
    split = data(victim)
    x, y = split.store.pixels.float() / 255, split.labels
    found = transferred(victim, AttackCall("far", "far", far, {}, "minimal", search=PLAIN))(
        victim_oracle(victim, x, y, ball), x, ball
    )
    assert torch.equal(found, x)


def test_stop_interrupts_the_search_on_the_surrogate():
    def stop():
        raise KeyboardInterrupt

    model, ball = centred(weights(1)), Ball("linf", 0.05)
    split = data(model)
    x, y = split.store.pixels.float() / 255, split.labels
    with pytest.raises(KeyboardInterrupt):
        transferred(model, plain(steps=4), stop=stop)(victim_oracle(model, x, y, ball), x, ball)


class Greedy(Linear):
    """A linear model that has memory for 20 images at a time."""

    def __init__(self, weight, error):
        super().__init__(weight, float(weight.sum()) * 0.5)
        self.error, self.refused = error, 0

    def forward(self, x):
        if len(x) > 20:
            self.refused += 1
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("search", [PLAIN, Search(torch.float32)])
def test_memory_that_runs_out_halves_the_batch_and_changes_no_number(error, search):
    """The second model meets its limit where the first one has already found its points."""
    first, split, said = centred(weights(1)), data(centred(weights(1))), []
    plan = EvalPlan(Ball("linf", 0.05), [call(steps=4)], search=search, batch_size=64)
    models = {"a": first, "b": centred(weights(1) + weights(2))}
    expected = transfer_matrix(models, plan, split, torch.arange(len(split)), CPU)
    greedy, seen = Greedy(weights(1) + weights(2), error), []
    found = transfer_matrix(
        {"a": first, "b": greedy},
        plan,
        split,
        torch.arange(len(split)),
        CPU,
        say=said.append,
        done=seen.append,
    )
    assert all(
        torch.equal(getattr(found, name), getattr(expected, name))
        for name in ("correct", "ids", "broken", "gained", "lost")
    )
    assert sum(seen) == found.n == 80 and max(seen) <= 20 and greedy.refused and int(expected.broken.sum())
    assert [line for line in said if "out of memory" in line] == [
        f"out of memory with {k} images: going on with {k // 2}" for k in (64, 32)
    ]


def test_an_image_that_does_not_fit_and_any_other_fault_pass_on():
    first, split = centred(weights(1)), data(centred(weights(1)))
    plan = EvalPlan(Ball("linf", 0.05), [call(steps=2)], search=PLAIN, batch_size=64)
    for error in (
        torch.OutOfMemoryError("no room"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ):
        greedy = Greedy(weights(2), error)
        greedy.forward = lambda x, greedy=greedy: (_ for _ in ()).throw(greedy.error)
        with pytest.raises(type(error), match=str(error)):
            transfer_matrix({"a": first, "b": greedy}, plan, split, torch.arange(len(split)), CPU)


# ---- which attack carries over -----------------------------------------------------------------------------


def test_a_pair_says_its_best_attack_and_what_each_breaks():
    """Two attacks that each solve one target: neither hides the other, and no sample counts for both."""
    a, b = centred(weights(1)), centred(weights(2))
    split = data(a, 200)

    def along(model):
        def attack(oracle, x, ball):
            away = torch.where(oracle.y == 0, -1.0, 1.0)[:, None] * model.weight.detach().sign()
            return oracle.result(ball.project(x, x + ball.eps * away.view(x.shape)))

        return attack

    attacks = [AttackCall(name, name, along(model), {}) for name, model in (("to a", a), ("to b", b))]
    result = matrix({"a": a, "b": b}, attacks, eps=0.05, split=split)
    assert result.attacks == ("to a", "to b") and result.best.tolist() == [[0, 1], [0, 1]]
    assert torch.equal(result.broken, result.by_attack.amax(0))
    alone = [matrix({"a": a, "b": b}, [attack], eps=0.05, split=split).broken for attack in attacks]
    assert torch.equal(result.by_attack, torch.stack(alone))
    assert not result.gained.any() and torch.equal(
        result.broken - result.broken.diagonal()[None], -result.lost
    )


@pytest.mark.parametrize("join", ["logits", "loss", "best"])
def test_models_together_meet_the_one_that_is_not_asked(join):
    """Linear models: their mean is the model of the mean weight, and a copy of one model changes nothing."""
    models = {str(k): centred(weights(1) + 0.8 * weights(k)) for k in (2, 3, 4)}
    plan = EvalPlan(Ball("linf", 0.03), [call(steps=3, loss="margin")], search=PLAIN)
    split = data(models["2"], 120)
    result = transfer_matrix(models, plan, split, torch.arange(120), CPU, together=join)
    assert result.together.shape == (1, 3)
    nets = list(models.values())
    for t in range(3):
        others = [net for k, net in enumerate(nets) if k != t]
        mean = Linear(sum(net.weight.detach() for net in others) / 2, sum(net.bias for net in others) / 2)
        pair = transfer_matrix({"mean": mean, **models}, plan, split, torch.arange(120), CPU)
        singles = [int(result.broken[k, t]) for k in range(3) if k != t]
        if join == "best":
            assert min(singles) <= int(result.together[0, t]) <= sum(singles)
        elif set(result.ids.tolist()) == set(pair.ids.tolist()):
            assert int(result.together[0, t]) == int(pair.broken[0, 1 + t])
    twice = {"a": nets[0], "b": nets[0], "c": nets[1]}
    pair = transfer_matrix(twice, plan, split, torch.arange(120), CPU, together=join)
    assert int(pair.together[0, 2]) == int(pair.broken[0, 2])


def test_turns_and_means_are_what_their_names_say():
    from robustcli.evaluation.joint import Turns, mean_of, strongest

    x = torch.rand(4, *SHAPE)
    nets = [centred(weights(k)) for k in range(3)]
    turns = Turns(nets)
    assert torch.allclose(mean_of(nets)(x), sum(net(x) for net in nets) / 3)
    assert all(torch.equal(turns(x), net(x)) for net in nets * 2)
    points = [x, x + 1, x + 2]
    harm = torch.tensor([[0.0, 5.0, 1.0, 2.0], [3.0, 1.0, 1.0, 2.0], [1.0, 2.0, 4.0, 2.0]])
    found = strongest(points, lambda point: harm[int((point - x).flatten()[0].round())])
    assert (found - x)[:, 0, 0, 0].round().tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("join", ["logits", "loss", "best"])
def test_several_surrogates_are_searched_on_together(join):
    """Twice the same one is that one; two others find what the mean of their weights finds."""
    victim, ball = centred(weights(1)), Ball("linf", 0.05)
    x, y = data(victim).store.pixels.float() / 255, data(victim).labels
    one, two = centred(weights(1) + weights(2)), centred(weights(1) - weights(2))
    search = plain(steps=4, loss="margin")

    def found(surrogates):
        oracle = victim_oracle(victim, x, y, ball, clean_logits=victim(x).detach())
        points = transferred(surrogates, search, join=join)(oracle, x, ball)
        assert (oracle.forward_rows, oracle.backward_rows) == (len(x), 0)
        return Judge(victim, ball).rule(x, points, Criterion(y)).hit

    assert torch.equal(found([one, one]), found(one))
    both, whole = found([one, two]), found(centred(weights(1)))
    if join == "best":
        assert (both | ~(found(one) & found(two))).all()
    else:
        assert torch.equal(both, whole)


def test_guarded_and_other_surrogates_do_not_mix():
    guarded = centred(weights(1))
    guarded.reject = 2
    with pytest.raises(ValueError, match="guarded"):
        transferred([guarded, centred(weights(2))], plain(steps=1))

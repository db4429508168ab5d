"""The training engine, each part against the plain step.

The parts: micro-batches, recomputation, free training, regularisers, several ranks.
"""

import copy

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.attacks.pgd import pgd
from robustcli.core.geometry import Ball
from robustcli.core.random import RowRandom
from robustcli.core.types import LossTerms
from robustcli.errors import Interrupted, NumericsError
from robustcli.runtime.distributed import Ranks
from robustcli.training.faults import raise_everywhere
from robustcli.training.forward import Forward, Shared, recompute
from robustcli.training.free import Free
from robustcli.training.hook import Hook
from robustcli.training.minmax import MinMax
from robustcli.training.settings import StepSettings

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
IDS = torch.arange(12)
BALL = Ball("linf", 0.1)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


def residual():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(Block(), Block()), nn.Flatten(), nn.Linear(64, 3)
    )


def settings_of(net, *, objective="madry", attack=None, ball=BALL, **more):
    entry = registry.objectives.get(objective)
    attack = attack or (lambda oracle, x, ball: pgd(oracle, x, ball, steps=2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return StepSettings(net, entry.fn, entry.facts.inner, attack, ball, optimizer, **more)


def minmax(net, **more):
    return MinMax(settings_of(net, **more))


def free(net, *, ball=BALL, **own):
    return Free(settings_of(net, ball=ball), **own)


def steps(step, count=3):
    for k in range(count):
        step(X, Y, IDS, seed=0, epoch=k)
    return step.settings.model.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def close(a, b, tol=1e-6):
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), atol=tol) for k in a)


@pytest.mark.parametrize("size", [1, 5, 6, 11])
@pytest.mark.parametrize("objective", ["madry", "trades", "mart"])
def test_micro_batches_add_up_to_the_whole_batch(size, objective):
    whole, parts = (
        steps(minmax(linear(), objective=objective)),
        steps(minmax(linear(), objective=objective, micro_batch=size)),
    )
    assert close(whole, parts) and not equal(whole, linear().state_dict())


def test_one_micro_batch_is_the_whole_batch_bitwise():
    assert equal(steps(minmax(residual())), steps(minmax(residual(), micro_batch=12)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_give_the_same_weights_and_move_batchnorm_once(dtype):
    """Trap: the second forward pass of a checkpointed block moves the running statistics again."""
    plain, less = residual(), residual()
    assert recompute(less) == 2 and recompute(linear()) == 0
    a, b = steps(minmax(plain, dtype=dtype)), steps(minmax(less, dtype=dtype))
    assert equal(a, b) and int(less[1][0].bn1.num_batches_tracked) == 3 and less[1][0].bn1.momentum == 0.1


def test_recomputed_blocks_may_be_differentiated_twice():
    """Trap: such a block is computed again for each of two backward passes."""
    plain, less = residual(), residual()
    recompute(less)
    gradalign = {"gradalign": registry.regularizers.get("gradalign").fn}
    a, b = steps(minmax(plain, regularizers=gradalign)), steps(minmax(less, regularizers=gradalign))
    assert equal(a, b) and int(less[1][0].bn1.num_batches_tracked) == int(plain[1][0].bn1.num_batches_tracked)
    assert less[1][0].bn1.momentum == 0.1


@pytest.mark.parametrize(("fewest", "sizes"), [(1, [6, 3, 2, 1, 0]), (2, [6, 3, 2, 0]), (5, [6, 0])], ids=str)
def test_micro_batches_are_halved_to_what_the_model_bears(fewest, sizes):
    step = minmax(linear(), fewest=fewest)
    assert [step.halve(12) for _ in sizes] == sizes


def test_no_halving_leaves_a_rest_that_the_model_does_not_bear():
    step = minmax(linear(), fewest=2)
    assert [step.halve(9) for _ in range(3)] == [5, 3, 0]


def test_recomputed_blocks_keep_fewer_activations():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        plain = residual()
        plain(X).sum().backward()
        before, less = sum(kept), residual()
        recompute(less)
        kept.clear()
        less(X).sum()
    assert sum(kept) < 0.5 * before


def test_a_recomputed_model_still_folds_and_copies():
    net = residual()
    recompute(net)
    step = minmax(net)
    steps(step, 1)
    assert step.twin_note == ""
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        net[3].bias.add_(1)
        assert torch.allclose(twin(X) + 1, net.eval()(X), atol=1e-5)


# ---- shared passes, regularisers ---------------------------------------------------------------------------


def test_the_same_pixels_are_answered_once():
    calls = []
    model = Shared(lambda x: calls.append(len(x)) or x.flatten(1))
    other = X.clone()
    assert model(X) is model(X) and model(other) is not model(X) and calls == [12, 12]


def test_a_regulariser_of_weight_0_changes_nothing_and_one_of_weight_2_adds_its_value():
    def term(weight):
        return {"size": lambda model, batch: weight * model(batch.x_adv).square().mean()}

    plain, none = steps(minmax(linear())), steps(minmax(linear(), regularizers=term(0.0)))
    assert close(plain, none, 1e-7)
    net = linear()
    before = copy.deepcopy(net)
    step = minmax(net, regularizers=term(2.0), attack=lambda oracle, x, ball: x)
    terms = step(X, Y, IDS, seed=0, epoch=0)
    expected = nn.functional.cross_entropy(before(X), Y) + 2 * before(X).square().mean()
    assert torch.allclose(terms.total, expected) and torch.allclose(
        terms.parts["size"], 2 * before(X).square().mean()
    )


# ---- free --------------------------------------------------------------------------------------------------


def test_free_training_by_hand():
    """Two batches, two replays each: weights and delta after the updates.

    They are computed with plain autograd in the order of Algorithm 1.
    """
    net, hand = linear(), linear()
    step = free(net, replays=2, step_size=0.04)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9)
    delta = torch.zeros_like(X)
    for k in range(2):
        step(X, Y, IDS, seed=0, epoch=k)
        for _ in range(2):
            point = (X + delta).clamp(0, 1).requires_grad_(True)
            optimizer.zero_grad()
            nn.functional.cross_entropy(hand(point), Y).backward()
            optimizer.step()
            delta = (delta + 0.04 * point.grad.sign()).clamp(-0.1, 0.1)
    assert equal(net.state_dict(), hand.state_dict()) and torch.equal(step.state()["delta"], delta)


def test_free_goes_on_from_its_state_and_one_replay_without_radius_is_natural():
    first, second = free(linear(), replays=3), free(linear(), replays=3)
    steps(first, 2)
    second.settings.model.load_state_dict(first.settings.model.state_dict())
    second.settings.optimizer.load_state_dict(copy.deepcopy(first.settings.optimizer.state_dict()))
    second.load(first.state())
    assert equal(steps(first, 1), steps(second, 1))
    still = free(linear(), ball=Ball("linf", 0.0), replays=1, step_size=1e-30)
    assert equal(steps(still), steps(minmax(linear(), objective="natural")))


# ---- faults and ranks --------------------------------------------------------------------------------------


class Pair(Ranks):
    """Rank 0 of two, the other of which sends what the test says."""

    def __init__(self, flags=(False, False, False)):
        super().__init__(0, 2)
        self.flags = flags

    def agree(self, *flags):
        return tuple(a or b for a, b in zip(flags, self.flags, strict=True))

    def mean(self, tensors):
        for tensor in tensors:
            tensor.mul_(1.0)


@pytest.mark.parametrize(
    ("index", "kind"), [(0, Interrupted), (1, torch.OutOfMemoryError), (2, NumericsError)]
)
def test_what_one_rank_meets_stops_all_and_changes_nothing(index, kind):
    net = residual()
    step = minmax(net, ranks=Pair(tuple(k == index for k in range(3))))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind):
        step(X, Y, IDS, seed=0, epoch=0)
    assert equal(before, net.state_dict()) and all(p.grad is None for p in net.parameters())


def test_a_stop_request_comes_before_other_faults_and_unknown_ones_pass():
    with pytest.raises(Interrupted):
        raise_everywhere(Pair((True, False, False)), NumericsError("here"))
    with pytest.raises(NumericsError, match="here"):
        raise_everywhere(Pair(), NumericsError("here"))
    with pytest.raises(KeyError):
        raise_everywhere(Pair((True, False, False)), KeyError("a bug"))
    raise_everywhere(Pair(), None)


def test_half_the_micro_batch_until_one():
    step = minmax(linear())
    assert [step.halve(12) for _ in range(5)] == [6, 3, 2, 1, 0]
    assert free(linear()).halve(12) == 0


def test_a_model_that_does_not_compile_runs_as_it_is(monkeypatch):
    def broken(model, **options):
        def run(x):
            raise RuntimeError("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    net = linear()
    forward = Forward(net, compiled=True)
    assert (
        torch.equal(forward(X), net(X)) and "not compiled" in forward.note and torch.equal(forward(X), net(X))
    )


def test_an_objective_may_return_a_total_alone():
    step = minmax(linear())
    step.descent.objective = lambda model, batch: LossTerms(model(batch.x).square().mean())
    assert float(step(X, Y, IDS, seed=0, epoch=0).total) > 0


def test_the_batch_of_an_objective_has_a_stream_of_its_own():
    seen = {}

    def objective(model, batch):
        seen["noise"] = batch.rng.uniform((4,))
        return LossTerms(model(batch.x).square().mean())

    step = minmax(linear())
    step.descent.objective = objective
    step(X, Y, IDS, seed=0, epoch=0)
    assert not torch.equal(seen["noise"], RowRandom(0, "start", IDS).uniform((4,)))


# ---- hooks -------------------------------------------------------------------------------------------------


class Witness(Hook):
    """Notes the weights that it sees after each step."""

    def __init__(self, net):
        self.net, self.seen = net, []

    def after_step(self, context):
        self.seen.append({key: value.clone() for key, value in self.net.state_dict().items()})


@pytest.mark.parametrize("first", ["witness", "awp"])
def test_another_hook_sees_weights_that_have_gone_back_whatever_the_order(first):
    """Trap: a hook behind the list's order kept the perturbed weights of another one."""
    net = linear()
    before = copy.deepcopy(net.state_dict())
    witness, moving = Witness(net), registry.hooks.get("awp").fn(net, gamma=0.1)
    hooks = [witness, moving] if first == "witness" else [moving, witness]
    step = minmax(net, hooks=hooks)
    step.settings.optimizer.param_groups[0]["lr"] = 0.0
    steps(step, 1)
    assert close(witness.seen[0], before) and close(net.state_dict(), before)

"""Guards under attackers who know them: the textbook breaks, what holds always, what must be noticed."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robustcli import registry
from robustcli.assembly.attacks import make_attacks
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.defences.bit_depth import BitDepth
from robustcli.evaluation.diagnosis import diagnose
from robustcli.evaluation.guarded.bank import Bank, matching
from robustcli.evaluation.guarded.calls import own_calls, replay_call
from robustcli.evaluation.guarded.evaluation import DRAWS, GuardEvaluation
from robustcli.evaluation.guarded.sanity import free_pixels, implied, planting
from robustcli.evaluation.guarded.scores import EXCESS, curve, stands_at
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.models.guarded import Defence, GuardedModel
from robustcli.proportions import Rate

K, N = 10, 32
CPU = torch.device("cpu")


class Digits:
    """Digits, and a network that has learnt them: seconds on a CPU."""

    def __init__(self, scale=1):
        torch.manual_seed(0)
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        x, y = nn.functional.interpolate(x, scale_factor=scale, mode="bilinear"), torch.tensor(labels)
        self.side = 8 * scale
        self.train, self.held, self.test = (
            (x[:1000], y[:1000]),
            (x[1000:1300], y[1000:1300]),
            (x[1300:], y[1300:]),
        )
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(self.side**2, 64), nn.ReLU(), nn.Linear(64, K))
        self.trained(self.net, lambda x, y: nn.functional.cross_entropy(self.net(x), y))

    def trained(self, module, loss):
        optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
        torch.manual_seed(0)
        for _ in range(300):
            rows = torch.randint(len(self.train[0]), (64,))
            optimiser.zero_grad()
            loss(self.train[0][rows], self.train[1][rows]).backward()
            optimiser.step()
        return module.eval()

    def convolutional(self, view):
        """A network that has also learnt what `view` makes of images."""
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        net = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), nn.Flatten())
        net.append(nn.Linear(32 * (self.side // 4) ** 2, K))
        ce = nn.functional.cross_entropy
        return self.trained(net, lambda x, y: ce(net(view(x)), y) + ce(net(x), y))

    def split(self, n=N):
        return MemorySplit(self.test[0][:n], self.test[1][:n], tuple(map(str, range(K))))

    def behind(self, *names, **params):
        """The network behind these defences; thresholds at the 95 % quantile of held-out images."""
        return self.guarded([self.defence(name, params) for name in names])

    def defence(self, name, params):
        module = registry.defences.get(name).fn(**params)
        if hasattr(module, "shaped"):
            module.shaped((1, self.side, self.side), K)
        if registry.defences.get(name).facts.fit == "training":
            self.trained(module, lambda x, y: module.loss(x))
        return Defence(name, name, params, module.eval())

    def guarded(self, defences):
        guard = GuardedModel([self.net], defences, K).eval()
        with torch.no_grad():
            scores = guard.look(self.held[0]).scores
        for k, name in enumerate(guard.detectors):
            guard.thresholds[k], guard.spreads[k] = scores[name].quantile(0.95), scores[name].std()
        return guard


#: Points close to the boundary, which a change of the image moves back: how such defences were first shown.
NEAREST = Spec(name="fmn", steps=60)


@pytest.fixture(scope="module")
def digits():
    return Digits()


def plan(eps, *attacks, norm="linf", **more):
    specs = attacks or (Spec(name="apgd", steps=20),)
    return EvalPlan(
        Ball(norm, eps), make_attacks(list(specs), norm, "attacks", Search()), search=Search(), **more
    )


def measured(guard, split, eps, *attacks, **more):
    result = GuardEvaluation(guard, plan(eps, *attacks, **more)).run(split, torch.arange(len(split)), CPU)
    adaptive, bare = result.adaptive.survivors, result.bare.survivors
    assert (adaptive <= result.oblivious).all() and (result.oblivious <= result.adaptive.correct).all()
    assert not (result.rejected & result.adaptive.correct).any()
    return result, *(float(flags.float().mean()) for flags in (bare, result.oblivious, adaptive))


# ---- the textbook breaks -----------------------------------------------------------------------------------


def test_a_reconstruction_detector_catches_blind_points_and_almost_no_adaptive_ones(digits):
    guard = digits.behind("reconstruction", width=8)
    result, bare, oblivious, adaptive = measured(guard, digits.split(16), 0.25)
    wrong = {view: seen.label != result.labels for view, seen in result.points.items()}
    caught = {
        view: float((seen.scores[EXCESS][wrong[view]] > 0).float().mean())
        for view, seen in result.points.items()
    }
    assert caught["oblivious"] >= 0.5 and caught["adaptive"] <= 0.1
    assert oblivious - bare >= 0.4 and adaptive <= bare + 0.03


@pytest.mark.slow
def test_random_resizing_loses_half_of_what_it_promised():
    """A network that knows resized images moves the nearest points back, and falls to means over draws."""
    larger = Digits(scale=2)
    defence = larger.defence("random_resize_pad", {"least": 0.7})
    larger.net = larger.convolutional(defence.module)
    guard = larger.guarded([defence])
    torch.manual_seed(0)  # of the draws
    result, bare, oblivious, adaptive = measured(guard, larger.split(6), 0.15, NEAREST)
    assert oblivious - bare >= 0.2 and adaptive - bare <= (oblivious - bare) / 2
    assert result.draws == DRAWS == 100 and 0 <= result.votes.min() <= result.votes.max() <= DRAWS
    fell = result.adaptive.correct & ~result.adaptive.survivors
    assert (result.votes[fell] > 30).all(), "fresh draws agree with the verdict, but for chance"
    assert "random-forward" not in {alarm.name for alarm in result.alarms}


def test_an_autoencoder_in_front_holds_no_more_than_the_network_behind_it(digits):
    guard = digits.behind("autoencoder", width=8)
    result, bare, oblivious, adaptive = measured(guard, digits.split(24), 0.25, NEAREST)
    assert oblivious >= bare + 0.1 and adaptive <= bare + 0.03


# ---- what holds always -------------------------------------------------------------------------------------


def test_a_guard_that_never_alarms_has_the_verdict_of_the_bare_network(digits):
    guard = digits.behind("energy")
    guard.thresholds.fill_(1e6)
    result, bare, oblivious, adaptive = measured(guard, digits.split(8), 0.08)
    assert torch.equal(result.oblivious, result.bare.survivors) and 0 < adaptive <= bare < 1
    assert torch.equal(result.adaptive.correct, result.bare.correct) and not result.rejected.any()


def test_a_guard_that_rejects_everything_is_right_on_nothing(digits):
    guard = digits.behind("energy")
    guard.thresholds.fill_(-1e6)
    result, _, oblivious, adaptive = measured(guard, digits.split(8), 0.05)
    assert result.rejected.all() and oblivious == adaptive == result.adaptive.clean_acc == 0
    assert result.planted is None


def test_the_scores_of_points_do_not_stop_at_the_threshold(digits):
    """The first accepted point lies just below it; what the attacker can do to the score is further in."""
    guard = digits.behind("energy")
    result, *_ = measured(guard, digits.split(16), 0.3)
    found = result.points["adaptive"].scores[EXCESS][~result.adaptive.survivors & result.adaptive.correct]
    assert len(found) > 8 and float(found.median()) < -0.2


# ---- the searches ------------------------------------------------------------------------------------------


def test_points_are_led_to_the_logits_of_an_accepted_image_of_another_class(digits):
    guard, split = digits.behind("energy"), digits.split()
    ball = Ball("linf", 0.4)
    bank = Bank.of(guard, ball, split, torch.arange(len(split)), CPU)
    assert (guard(bank.x).argmax(1) == bank.y).all()
    assert torch.equal(bank.nearest(bank.x, bank.y), torch.arange(len(bank.y)))
    call = AttackCall("matching", "matching", matching(bank), {"steps": 30, "targets": 2})
    result = RobustEvaluation(guard, EvalPlan(ball, [call])).run(split, torch.arange(len(split)), CPU)
    assert result.correct.sum() > 20 and result.survivors.sum() <= 3


def test_a_model_that_never_rejects_gets_no_attack_on_its_rejection_and_no_attack_comes_twice(digits):
    ball, guard, bare = Ball("linf", 0.1), digits.behind("energy"), digits.behind("bit_depth")
    configured = make_attacks([Spec(name="square", queries=10)], "linf", "attacks", Search())
    assert [call.name for call in own_calls(guard, configured, ball)] == ["apgd", "orthogonal", "weighted"]
    assert [call.name for call in own_calls(bare, [], ball)] == ["apgd", "square"]


def test_a_replay_finds_the_point_of_its_sample(digits):
    ids = torch.tensor([3, 7, 20])
    points = torch.rand(3, 1, 8, 8)
    split = digits.split()
    call = replay_call(ids, points)
    evaluation = RobustEvaluation(digits.net, EvalPlan(Ball("linf", 1.0), [call]))
    seen = []
    evaluation.run(split, ids.flip(0), CPU, on_batch=seen.append)
    wrong = digits.net(points).argmax(1) != split.labels[ids]
    assert wrong.any() and torch.equal(seen[0].x_adv[wrong], points[wrong])


# ---- what must be noticed ----------------------------------------------------------------------------------


class Stepped(nn.Module):
    """Rounds without a surrogate: its gradient is 0."""

    def forward(self, x):
        return (x * 30).round() / 30


@pytest.mark.parametrize("masked", [False, True])
def test_a_search_that_misses_planted_points_is_noticed(digits, masked):
    defences = [digits.defence("bit_depth", {"bits": 5})]
    if masked:
        defences = [Defence("bit_depth", "bit_depth", {}, Stepped())]
    guard = digits.guarded(defences)
    split, found = digits.split(16), plan(0.03)
    searcher = RobustEvaluation(guard, found)
    standing = searcher.run(split, torch.arange(16), CPU).survivors
    assert standing.sum() >= 10
    result, alarms = planting(searcher, found.attacks, split, standing.nonzero()[:, 0], CPU)
    assert result.n >= 8
    assert [alarm.name for alarm in alarms] == ["planted-missed"] * masked
    assert (result.found >= 0.9 * result.n) is not masked


def test_a_masked_gradient_makes_the_whole_number_suspect(digits):
    guard = digits.guarded([Defence("bit_depth", "bit_depth", {}, Stepped())])
    result, *_ = measured(guard, digits.split(6), 0.1)
    assert result.verdict.reliability == "suspect"


class Uneven(nn.Module):
    """score = the spread of the pixels: honest slopes, and almost all of the box is rejected."""

    def forward(self, x, logits, net):  # noqa: ARG002
        return x.flatten(1).std(1, correction=0)


def test_a_guard_that_rejects_most_of_the_box_is_not_suspected_for_it():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    net[1].weight.data, net[1].bias.data = (
        torch.tensor([[-0.5], [0.5]]).expand(2, 16),
        torch.tensor([4.0, -4]),
    )
    guard = GuardedModel([net], [Defence("uneven", "energy", {}, Uneven())], 2).eval()
    guard.thresholds, guard.spreads = torch.tensor([0.02]), torch.tensor([0.01])
    x = torch.linspace(0.1, 0.9, 16)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    found = diagnose(guard, x, (x[:, 0, 0, 0] > 0.5).long(), torch.arange(16), Ball("linf", 0.1), seed=0)
    assert [alarm.name for alarm in found.alarms] == ["too-few-classes"]


@pytest.mark.parametrize("module", [BitDepth(5), Stepped()])
def test_a_guard_that_stands_with_all_pixels_free_is_suspected_by_its_own_test(digits, module):
    guard = digits.guarded([Defence("bit_depth", "bit_depth", {}, module)])
    alarms = free_pixels(RobustEvaluation(guard, plan(0.1)), digits.split(16), torch.arange(16), CPU)
    assert [alarm.name for alarm in alarms] == ["survives-huge-eps"] * isinstance(module, Stepped)


def test_more_than_the_bare_network_has_at_half_the_radius_is_suspect():
    assert implied(Rate(60, 100), None) == [] and implied(Rate(60, 100), Rate(55, 100)) == []
    (alarm,) = implied(Rate(60, 100), Rate(40, 100))
    assert alarm.level == "suspect" and "60 of 100" in alarm.evidence and "40 at eps / 2" in alarm.evidence


# ---- curves ------------------------------------------------------------------------------------------------


def test_curves_count_what_lies_above_the_threshold():
    clean, wrong = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0])
    found = curve("s", "adaptive", clean, wrong, 2.7)
    assert (found.clean, found.wrong, found.caught) == (4, 2, 1)
    assert found.auroc == pytest.approx((3 + 4) / 8) and (found.fpr[-1], found.tpr[-1]) == (1, 1)
    assert curve("s", "adaptive", clean, wrong[:0], 0.0).auroc is None


def test_another_threshold_moves_clean_images_and_points():
    clean = {EXCESS: torch.tensor([-4.0, -3.0, -2.0, -1.0])}
    right, wrong = torch.tensor([True, True, True, False]), torch.tensor([True, True, False, True])
    found = torch.tensor([-3.5, 0.0, 0.0, 0.0])
    assert stands_at(0.01, clean, right, wrong, found) == 2  # nobody is rejected, and one point is accepted
    assert stands_at(0.8, clean, right, wrong, found) == 1  # the threshold is -3


def test_a_rejected_clean_image_does_not_seem_to_stand_at_a_threshold_that_accepts_it(digits):
    """No search ran on it; its point is made from the oblivious one."""
    guard = digits.behind("energy")
    guard.thresholds.fill_(-1e6)
    result, *_ = measured(guard, digits.split(12), 0.3)
    found = result.points["adaptive"]
    wrong = found.label != result.labels
    right = result.clean.label == result.labels
    assert result.rejected.all() and wrong[result.bare.correct].float().mean() > 0.8
    assert stands_at(0.01, result.clean.scores, right, wrong, found.scores[EXCESS]) <= 6

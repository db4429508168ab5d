"""Bounds, then attacks: what is verified stands everywhere, what is falsified was found and confirmed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from robustcli import registry
from robustcli.certificates.answer import Answer
from robustcli.core.bounds import METHODS
from robustcli.core.geometry import Ball
from robustcli.errors import UsageError
from robustcli.evaluation.certificates import deterministic as cascade
from robustcli.evaluation.certificates.bounds import Least
from robustcli.evaluation.certificates.deterministic import CASCADE, Deterministic, Effort, deterministic
from robustcli.evaluation.certificates.falsify import Falsifier
from robustcli.evaluation.certificates.ladder import Ladder, Proof, place_of
from robustcli.evaluation.plan import AttackCall
from robustcli.models.normalised import NormalisedModel

CPU = torch.device("cpu")
ATTACKS = (AttackCall.of(registry.attacks.get("apgd"), {"steps": 15, "loss": "margin"}),)
SHAPE = (1, 2, 2)


def network(seed: int) -> nn.Module:
    """Three classes of images of four pixels, with a convolution and both kinds of ReLU neurons."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    for module in layers:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=1.0)
    return NormalisedModel(layers, [0.5], [0.5])


def samples(model: nn.Module, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images with the classes that the model gives them; one in five has another label."""
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = model(x).argmax(1)
    return x, torch.where(torch.arange(n) % 5 == 4, (y + 1) % 3, y), torch.arange(n)


def certify(
    model: nn.Module, ball: Ball, radii: Sequence[float], method: str, x, y, ids, **effort
) -> list[Answer]:
    tried = Effort(alpha_steps=5, attacks=ATTACKS, **effort)
    made = deterministic(model, ball, radii, method, shape=SHAPE, device=CPU, effort=tried)
    return made(x, y, ids)


def grid(ball: Ball, sides: int) -> Tensor:
    """Changes [N, 4] of four pixels inside a ball of radius 1: a lattice with all corners."""
    steps = torch.linspace(-1, 1, sides)
    points = torch.cartesian_prod(*[steps] * 4)
    length = torch.linalg.vector_norm(points, ord={"linf": float("inf"), "l2": 2, "l1": 1}[ball.norm], dim=1)
    return points / length.clamp_min(1)[:, None]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_point_of_a_lattice_contradicts_a_certificate(norm: str) -> None:
    radii = (0.02, 0.05, 0.1, 0.2)
    ball = Ball(norm, 0.1)
    changes, proven, broken = grid(ball, 7), 0, 0
    for seed in range(3):
        model = network(seed)
        x, y, ids = samples(model, 20)
        for image, label, answer in zip(x, y, certify(model, ball, radii, CASCADE, x, y, ids), strict=True):
            if answer.stage == "clean":
                assert answer.status == "falsified" and answer.radius == 0 and answer.label != label
                continue
            assert answer.radius in (0.0, *radii)
            assert (answer.status == "verified") == (answer.radius >= 0.1)
            points = (image + answer.radius * changes.reshape(-1, *SHAPE)).clamp(0, 1)
            with torch.no_grad():
                assert bool((model(points).argmax(1) == label).all())
            proven += answer.radius > 0
            broken += answer.status == "falsified"
    assert proven >= 20 and broken >= 3  # both kinds were met


@pytest.mark.slow
def test_ten_thousand_attacks_find_nothing_inside_certified_radii() -> None:
    """Each attempt is APGD from a random start in the ball of a radius that the cascade proved."""
    attempts, radii = 0, (0.01, 0.03, 0.06, 0.1, 0.15, 0.2)
    for seed in range(50):
        model = network(100 + seed).eval()
        x, y, ids = samples(model, 10, seed)
        for norm in ("linf", "l2", "l1"):
            answers = certify(model, Ball(norm, 0.1), radii, CASCADE, x, y, ids)
            for radius in {answer.radius for answer in answers} - {0.0}:
                rows = torch.tensor([k for k, a in enumerate(answers) if a.radius == radius]).repeat(16)
                search = Falsifier(model, Ball(norm, radius), ATTACKS, seed, lambda: None)
                broken, _, _ = search(x[rows], y[rows], torch.arange(len(rows)))
                assert not bool(broken.any()), (seed, norm, radius)
                attempts += len(rows)
    assert attempts >= 10_000


def test_a_dearer_method_proves_no_less() -> None:
    model = network(1)
    x, y, ids = samples(model, 24)
    radii = [0.01 * k for k in range(1, 13)]
    ball = Ball("linf", radii[5])
    found = {m: [a.radius for a in certify(model, ball, radii, m, x, y, ids)] for m in (*METHODS, CASCADE)}
    for cheap, dear in itertools.pairwise(METHODS):
        if (cheap, dear) != ("crown-ibp", "crown"):  # their slopes differ: neither is always the tighter
            assert all(a <= b for a, b in zip(found[cheap], found[dear], strict=True)), (cheap, dear)
    best = [max(column) for column in zip(*(found[m] for m in METHODS), strict=True)]
    assert found[CASCADE] == best and sum(best) > sum(found["ibp"])


def test_points_that_falsify_are_inside_and_of_another_class() -> None:
    model, ball = network(0).eval(), Ball("linf", 0.3)
    x, y, ids = samples(model, 20)
    broken, named, points = Falsifier(model, ball, ATTACKS, 0, lambda: None)(x, y, ids)
    right = (ids % 5 != 4) & broken
    assert int(right.sum()) >= 3
    with torch.no_grad():
        assert torch.equal(model(points[right]).argmax(1), named[right]) and bool((named != y)[right].all())
    assert bool(ball.contains(x[right], points[right]).all())
    answers = certify(model, ball, [0.3], CASCADE, x, y, ids)
    attacked = [k for k, answer in enumerate(answers) if answer.stage == "attack"]
    assert attacked and all(answers[k].found == named[k] and broken[k] for k in attacked)


def test_batches_do_not_change_answers() -> None:
    model, ball, radii = network(2), Ball("linf", 0.1), [0.05, 0.1]
    x, y, ids = samples(model, 13)

    def plain(answers: list[Answer]) -> list[tuple]:
        return [(a.label, a.radius, a.status, a.stage, a.found) for a in answers]

    whole = plain(certify(model, ball, radii, CASCADE, x, y, ids))
    assert plain(certify(model, ball, radii, CASCADE, x, y, ids, batch_size=5)) == whole
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    shuffled = plain(certify(model, ball, radii, CASCADE, x[order], y[order], ids[order]))
    assert shuffled == [whole[k] for k in order.tolist()]


# ---- with bounds made up here ------------------------------------------------------------------------------


class MadeUp:
    """Bounds that prove radii up to a limit of each method; `now` advances by `seconds` per image."""

    def __init__(self, limits: dict[str, float], most: int = 100) -> None:
        self.limits, self.most = limits, most
        self.calls: list[tuple[str, int, float]] = []
        self.now = 0.0
        self.looser = ""
        self.seconds: dict[str, float] = {}

    def least(self, method: str, x: Tensor, label: Tensor, ball: Ball) -> Least:
        if len(x) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.calls.append((method, len(x), ball.eps))
        self.now += len(x) * self.seconds.get(method, 1.0)
        margins = torch.full((len(x),), self.limits[method] - ball.eps + 1e-9, dtype=torch.float64)
        plain = margins - self.limits[method] + self.limits["crown"] if method == "alpha-crown" else margins
        return Least(margins, plain, {0} if method == self.looser else set())

    def forecast(self, method: str, batch: int) -> int:
        return batch * len(method)

    def fitting(self, method: str, most: int | None, device: torch.device) -> int:
        return most or 8


def made_up(
    bounds: MadeUp, radii: list[float], eps: float, said: list[str] | None = None, **effort
) -> Deterministic:
    model = network(0)
    said = [] if said is None else said
    return Deterministic(
        model,
        Ball("linf", eps),
        radii,
        CASCADE,
        bounds,
        CPU,
        Effort(attacks=(), **effort),
        lambda: None,
        said.append,
    )


def right_samples(n: int) -> tuple[Tensor, Tensor, Tensor]:
    x, _, ids = samples(network(0), n)
    with torch.no_grad():
        return x, network(0)(x).argmax(1), ids


LIMITS = {"ibp": 1.0, "crown-ibp": 2.0, "crown": 3.0, "alpha-crown": 4.0}


@pytest.mark.parametrize(
    ("eps", "status", "stage"),
    [
        (1.0, "verified", "ibp"),
        (2.0, "verified", "crown-ibp"),
        (3.0, "verified", "crown"),
        (4.0, "verified", "alpha-crown"),
        (5.0, "unknown", "unknown"),
    ],
)
def test_the_stage_is_the_first_that_proves_the_threat(eps: float, status: str, stage: str) -> None:
    for answer in made_up(MadeUp(LIMITS), [eps], eps)(*right_samples(3)):
        assert (answer.status, answer.stage) == (status, stage)
    for answer in made_up(MadeUp(LIMITS), [1.0, 2.0, 3.0, 4.0, 5.0], eps)(*right_samples(3)):
        assert (answer.status, answer.radius) == (status, 4.0)
        assert answer.evidence["method"] == "alpha-crown" and answer.evidence["margin"] > 0


def test_a_radius_that_crown_proves_is_named_after_it() -> None:
    for answer in made_up(MadeUp(LIMITS), [1.0, 3.0, 9.0], 3.0)(*right_samples(3)):
        assert (answer.stage, answer.radius, answer.evidence["method"]) == ("crown", 3.0, "crown")
        assert answer.evidence["margin"] == pytest.approx(1e-9)  # that of crown: alpha-crown has 1 more


def test_only_open_samples_meet_the_next_method() -> None:
    bounds = MadeUp({**LIMITS, "ibp": 5.0})
    made_up(bounds, [1.0, 5.0], 1.0)(*right_samples(3))
    assert {method for method, _, _ in bounds.calls} == {"ibp"}


def test_samples_say_where_plain_crown_was_looser() -> None:
    bounds = MadeUp({**LIMITS, "ibp": 0.0})
    bounds.looser = "alpha-crown"
    found = made_up(bounds, [1.0, 3.0], 3.0)(*right_samples(3))
    assert [answer.evidence["crown_looser"] for answer in found] == [True, False, False]
    bounds = MadeUp(LIMITS)
    assert all("crown_looser" not in a.evidence for a in made_up(bounds, [1.0], 1.0)(*right_samples(2)))


def test_a_budget_ends_in_unknown_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = MadeUp(dict.fromkeys(LIMITS, 0.0))
    monkeypatch.setattr(cascade.time, "perf_counter", lambda: bounds.now)
    for answer in made_up(bounds, [4.0], 4.0, budget=2.0)(*right_samples(2)):
        assert (answer.status, answer.stage, answer.seconds) == ("unknown", "budget", 2.0)
    assert [method for method, _, _ in bounds.calls] == ["ibp", "crown-ibp"]  # no third
    for answer in made_up(MadeUp(LIMITS), [4.0], 4.0, budget=2.0)(*right_samples(2)):
        assert answer.stage == "alpha-crown"  # the clock of the other bounds stands still


def test_a_stage_that_is_too_dear_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage took for the first images is more than the others have, and those after it are not."""
    bounds = MadeUp(LIMITS)
    monkeypatch.setattr(cascade.time, "perf_counter", lambda: bounds.now)
    bounds.seconds = {"crown-ibp": 10.0}
    answers = made_up(bounds, [4.0], 4.0, budget=5.0)(*right_samples(12))
    assert [size for method, size, _ in bounds.calls if method == "crown-ibp"] == [8]
    assert [answer.seconds for answer in answers] == [11.0] * 8 + [2.0] * 4
    assert [answer.stage for answer in answers] == ["budget"] * 8 + ["alpha-crown"] * 4


def test_a_stop_is_heard_between_passes_of_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds, heard = MadeUp({**LIMITS, "ibp": 9.0}), []
    bounds.seconds = {"ibp": 3.0}
    monkeypatch.setattr(cascade.time, "perf_counter", lambda: bounds.now)
    made = made_up(bounds, [4.0], 4.0)
    made._stop = lambda: heard.append(bounds.now)
    assert [answer.status for answer in made(*right_samples(15))] == ["verified"] * 15
    assert [size for _, size, _ in bounds.calls] == [8, 3, 3, 1]
    assert heard == [0.0, 0.0, 24.0, 33.0, 42.0]  # the first before the look at the clean images


def test_what_does_not_fit_is_halved() -> None:
    bounds, said = MadeUp({**LIMITS, "ibp": 9.0}, most=3), []
    answers = made_up(bounds, [4.0], 4.0, said)(*right_samples(10))
    assert [answer.status for answer in answers] == ["verified"] * 10
    assert [size for _, size, _ in bounds.calls] == [2] * 5
    assert said == [f"out of memory with {n} images under ibp: going on with {n // 2}" for n in (8, 4)]
    with pytest.raises(RuntimeError, match="allocate"):
        made_up(MadeUp(LIMITS, most=0), [4.0], 4.0)(*right_samples(2))


def test_the_forecast_is_that_of_the_largest_pass() -> None:
    made = made_up(MadeUp(LIMITS), [4.0], 4.0)
    assert made.forecast(100) == 8 * len("alpha-crown") and made.forecast(2) == 2 * len("alpha-crown")


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_bisection_finds_each_end(size: int) -> None:
    radii = [float(k + 1) for k in range(size)]
    ladder, asked = Ladder(radii, size // 2, size + 1), []

    def prove(images: Sequence[int], radius: float) -> list[Proof]:
        asked.append(images)
        return [Proof(image + 0.5 - radius, "m") for image in images]  # image k is proven up to radius k

    ladder.climb(range(size + 1), prove)
    assert [ladder.radius(k) for k in range(size + 1)] == [float(k) for k in range(size + 1)]
    assert [ladder.verified(k) for k in range(size + 1)] == [k > size // 2 for k in range(size + 1)]
    most = size.bit_length()
    assert all(sum(k in group for group in asked) <= most for k in range(size + 1))
    assert ladder.open(range(size + 1)) == list(range(size))


@pytest.mark.parametrize(
    ("radii", "eps"),
    [
        ([0.1, 0.2], 0.3),
        ([0.2, 0.1], 0.1),
        ([0.1, 0.1], 0.1),
        ([0.0, 0.1], 0.1),
        ([float("nan")], 0.1),
        ([], 0.1),
    ],
)
def test_radii_that_cannot_be_climbed(radii: list[float], eps: float) -> None:
    with pytest.raises(ValueError, match="radii"):
        place_of(radii, eps)


@pytest.mark.parametrize(
    "effort", [{"alpha_steps": 0}, {"budget": 0.0}, {"budget": float("nan")}, {"budget": -1.0}]
)
def test_bad_effort(effort: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(effort))):
        Effort(**effort)


def test_what_has_no_bounds_is_refused() -> None:
    class Draws(nn.Linear):
        randomised = True

    with pytest.raises(UsageError, match="without draws"):
        certify(Draws(1, 2), Ball("linf", 0.1), [0.1], "ibp", *samples(network(0), 1))
    with pytest.raises(ValueError, match=r"unknown method 'magic'; known: ibp, .*cascade"):
        certify(network(0), Ball("linf", 0.1), [0.1], "magic", *samples(network(0), 1))

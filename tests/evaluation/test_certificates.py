"""Certified and attacked on the same samples: closed forms on a linear network, and what must not be."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustcli.assembly.attacks import make_attacks
from robustcli.certificates.answer import Answer
from robustcli.certificates.smoothing import Smoothing
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.core.types import declares_draws
from robustcli.data.split import MemorySplit
from robustcli.evaluation.certificates.attacked import Attacked
from robustcli.evaluation.certificates.certifier import radii_of
from robustcli.evaluation.certificates.measured import Certification
from robustcli.evaluation.certificates.smoothed import NoisyModel, SmoothedCertifier
from robustcli.evaluation.plan import EvalPlan

CPU, RADII = torch.device("cpu"), (0.05, 0.1, 0.2)
BALL = Ball("l2", 0.2)
#: Distances to the boundary of the images of `split`, and what the network says of them with these labels.
DISTANCES = torch.tensor([0.02, 0.07, 0.15, 0.4, 0.12])
PLAN = EvalPlan(BALL, make_attacks([Spec(name="pgd", steps=5)], "l2"), checks=0)


class Halves(nn.Module):
    """Class 1 where the mean of 4 pixels is above 1/2: the boundary is 2 |mean - 1/2| away in l2."""

    def forward(self, x):
        z = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


@pytest.fixture
def split():
    """Images of class 1 at `DISTANCES`; the last one is labelled 0, and wrong."""
    x = (0.5 + DISTANCES / 2)[:, None, None, None].expand(5, 1, 2, 2).contiguous()
    return MemorySplit(x, torch.tensor([1, 1, 1, 1, 0]), ("low", "high"))


class Proves:
    """Claims one radius for all, for the right class."""

    name, norm = "claims", "l2"

    def __init__(self, radius, **more):
        self.radius, self.more = radius, more

    def __call__(self, x, y, ids):
        answer = Answer(label=1, radius=self.radius, status="unknown", stage=self.name, seconds=0.5)
        return [replace(answer, **self.more) for _ in y]

    def forecast(self, batch):
        return 8 * batch


def certified(split, certifier, **more):
    attacked = Attacked(Halves(), PLAN, RADII)
    return Certification(certifier, attacked, BALL.eps, size=2, **more).run(split, torch.arange(5), CPU)


def test_the_smallest_radius_that_breaks_a_sample_is_the_first_beyond_its_distance(split):
    attacked = Attacked(Halves(), PLAN, RADII)
    attacked.prepare(split, torch.arange(5), CPU)
    blows = attacked(split, torch.arange(5), CPU)
    assert blows.at.tolist() == [0.05, 0.1, 0.2, float("inf"), float("inf")]
    assert blows.clean.tolist() == [1, 1, 1, 1, 1] and blows.found.tolist() == [0, 0, 0, -1, -1]
    assert blows.by == ["pgd-5", "pgd-5", "pgd-5", None, None] and blows.tallies["refused"] == 0


def test_a_success_that_is_not_confirmed_is_none(split):
    attacked = Attacked(Halves(), PLAN, RADII, confirm=lambda x, y, ids: torch.where(ids == 1, 0, -1))
    attacked.prepare(split, torch.arange(5), CPU)
    assert attacked(split, torch.arange(5), CPU).at.tolist()[:3] == [float("inf"), 0.1, float("inf")]


def test_rows_have_proof_and_attack_side_by_side(split):
    told = []
    result = certified(split, Proves(0.01), told=lambda answer, x, sample: told.append((sample, x.shape)))
    rows = result.rows
    assert told == [(k, (1, 2, 2)) for k in range(5)] and result.shards == (3, 3)
    assert [row.broken_at for row in rows] == [0.05, 0.1, 0.2, None, None]
    assert [row.status for row in rows] == ["falsified"] * 3 + ["unknown"] * 2
    assert [row.stage for row in rows] == ["pgd-5"] * 3 + ["claims"] * 2
    assert [row.certified(0.01) for row in rows] == [True] * 4 + [False]
    assert [row.standing(0.1) for row in rows] == [False, False, True, True, False]
    assert not any(row.inverted for row in rows)


def test_a_certificate_that_an_attack_refutes_is_an_inversion(split):
    rows = certified(split, Proves(0.1, status="verified")).rows
    assert [row.inverted for row in rows] == [True, True, False, False, False]
    assert [row.status for row in rows] == ["verified"] * 5  # the error is about both: none is set right


def test_what_the_method_itself_broke_counts_as_broken_at_the_threat(split):
    found = Proves(0.0, status="falsified", stage="attack", found=0)
    row = certified(split, found).rows[3]
    assert (row.broken_at, row.attacked, row.broken_by, row.standing(0.1)) == (0.2, "low", "attack", True)
    assert not row.standing(0.2)


def test_smoothing_proves_no_more_than_the_distance_and_its_memory_does_not_grow_with_n(split):
    model, plan = Halves(), Smoothing(sigma=0.1, n0=64, n=640)
    certifier = SmoothedCertifier(model, 2, BALL, plan, shape=(1, 2, 2), device=CPU)
    x, y, ids = next(iter(split.stream([torch.arange(5)], CPU)))
    answers = certifier(x, y, ids)
    assert certifier.norm == "l2" and [answer.label for answer in answers[1:]] == [1] * 4
    for answer, distance in zip(answers, DISTANCES.tolist(), strict=True):
        assert 0 <= answer.radius <= distance and sum(answer.evidence["counts"]) == answer.evidence["draws"]
    assert answers[3].radius > 0.2 and answers[3].status == "verified" and answers[4].status == "falsified"
    more = SmoothedCertifier(model, 2, BALL, replace(plan, n=10**6), shape=(1, 2, 2), device=CPU)
    assert certifier.forecast(1) == more.forecast(64)
    far = certifier.confirm(1 - x, y, ids)  # as far on the other side
    assert far.tolist()[1:4] == [0, 0, 0] and certifier.confirm(x, y, ids).tolist()[:4] == [-1] * 4


def test_the_smoothed_model_draws_the_same_after_the_same_reset(split):
    model, x = NoisyModel(Halves(), Smoothing(sigma=0.1, n0=1, n=1)), torch.full((3, 1, 2, 2), 0.5)
    model.reset("a")
    first = [model(x), model(x)]
    model.reset("a")
    assert all(torch.equal(model(x), logits) for logits in first) and not torch.equal(*first)
    model.reset("b")
    assert not torch.equal(model(x), first[0]) and declares_draws(model)


def test_the_radius_of_the_threat_is_always_asked_for():
    assert radii_of(BALL, None) == pytest.approx((0.05, 0.1, 0.15, 0.2))
    assert radii_of(BALL, [0.3, 0.1]) == (0.1, 0.2, 0.3)

"""Distances of the closest errors: which point counts, what 0 and inf mean."""

import math

import pytest
import torch
from torch import nn

from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.evaluation.nearest import closest_errors, milestones
from robustcli.evaluation.plan import AttackCall, EvalPlan


class Brightness(nn.Module):
    """Class 1 exactly when the mean pixel is above a half."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def far_then_near_then_far(oracle, x, ball):
    for step in (0.4, 0.25, 0.3):
        oracle.logits((x + step).clamp(0, 1))
    return oracle.result(x)


def measure(fn, **more):
    """Images of brightness 0.2, 0.3, 0.4 and 0.6, all labelled 0: the last is wrong from the start."""
    split = MemorySplit(
        torch.tensor([0.2, 0.3, 0.4, 0.6]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous(),
        torch.zeros(4, dtype=torch.int64),
        ("a", "b"),
    )
    plan = EvalPlan(Ball("linf", 0.01), [AttackCall("m", "m", fn, {}, more.pop("kind", "minimal"))], **more)
    return closest_errors(Brightness(), plan, split, torch.arange(4), torch.device("cpu"))


@pytest.mark.parametrize("size", [1, 4])
def test_the_closest_success_counts_wherever_it_is(size):
    """0.2 falls only at + 0.4, the others at + 0.25: far outside the ball of 0.01, which bounds nothing."""
    found = measure(far_then_near_then_far, batch_size=size)
    assert (
        found.values["m"].tolist() == pytest.approx([0.4, 0.25, 0.25, 0.0])
        and found.values["m"].dtype is torch.float64
    )
    assert found.ids.tolist() == [0, 1, 2, 3] and found.labels.tolist() == [0, 0, 0, 0]


def test_never_broken_is_infinite_and_wrong_from_the_start_is_zero():
    assert measure(lambda oracle, x, ball: oracle.result(x)).values["m"].tolist() == [math.inf] * 3 + [0.0]


def test_a_point_outside_the_pixel_box_is_no_error():
    assert measure(lambda oracle, x, ball: x + 2).values["m"].tolist() == [math.inf] * 3 + [0.0]


def test_other_attacks_and_targets_are_refused():
    with pytest.raises(ValueError, match="minimal-norm"):
        measure(far_then_near_then_far, kind="fixed")
    with pytest.raises(ValueError, match="target"):
        measure(far_then_near_then_far, target=1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_halves_the_batch_and_changes_no_distance(error):
    """Two attacks; the limit is met in the second only, when the batch has a distance from the first."""

    def greedy(oracle, x, ball):
        if len(x) > 5:
            raise error
        return far_then_near_then_far(oracle, x, ball)

    pixels = torch.linspace(0.1, 0.7, 24).reshape(24, 1, 1, 1).expand(24, 1, 2, 2).contiguous()
    split, said, seen = MemorySplit(pixels, torch.zeros(24, dtype=torch.int64), ("a", "b")), [], []

    def distances(fn, **more):
        calls = [
            AttackCall("one", "one", far_then_near_then_far, {}, "minimal"),
            AttackCall("two", "two", fn, {}, "minimal"),
        ]
        return closest_errors(
            Brightness(),
            EvalPlan(Ball("linf", 0.01), calls, batch_size=12),
            split,
            torch.arange(24),
            torch.device("cpu"),
            **more,
        )

    found, expected = distances(greedy, say=said.append, done=seen.append), distances(far_then_near_then_far)
    assert all(torch.equal(found.values[name], expected.values[name]) for name in ("one", "two"))
    assert (
        torch.equal(found.ids, torch.arange(24))
        and torch.equal(found.labels, expected.labels)
        and sum(seen) == 24
    )
    assert said == [f"out of memory with {k} images: going on with {k // 2}" for k in (12, 6)]


def counted(oracle, x, ball, *, queries=100):
    """Errors at 0.4 after 7 queries, at 0.25 after 30."""
    places = torch.arange(len(x))
    for step, spent in ((0.4, 7), (0.25, 30)):
        points = (x + step).clamp(0, 1)
        hits = oracle.decide(points, places)
        oracle.meet_hits(points, hits)
        oracle.found(
            places[hits], torch.full((int(hits.sum()),), spent), torch.full((int(hits.sum()),), step)
        )
    return oracle.result(x)


def test_distances_fall_as_queries_are_spent():
    split = MemorySplit(torch.full((3, 1, 2, 2), 0.3), torch.tensor([0, 0, 1]), ("a", "b"))
    call = AttackCall("m-100", "m", counted, {}, "minimal", "decisions")
    plan = EvalPlan(Ball("linf", 0.01), [call])
    found = closest_errors(Brightness(), plan, split, torch.arange(3), torch.device("cpu"))
    assert milestones(call) == [10, 20, 50, 100]
    assert found.after["m-100"].tolist() == [pytest.approx([0.4, 0.4, 0.25, 0.25])] * 2 + [[0.0] * 4]
    assert milestones(AttackCall("m", "m", counted, {}, "minimal", "gradient")) == []

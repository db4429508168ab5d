"""What an evaluation does by itself.

It escalates where gradients are masked, takes fp32 where the fast search misses hits, and cuts batches.
"""

import pytest
import torch
import zoo
from torch import nn

import robustcli
from robustcli.assembly.attacks import make_attacks
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.evaluation.escalation import escalations, gap, trusted
from robustcli.evaluation.plan import EvalPlan, Search
from robustcli.evaluation.robust import RobustEvaluation
from robustcli.evaluation.sizing import BatchSizer, halving, in_batches

N = 64


def measure(model, **more):
    x, y = (part[1400 : 1400 + N] for part in zoo.digits())
    return robustcli.evaluate(
        model,
        x,
        y,
        eps=zoo.EPS,
        device="cpu",
        search="fp32",
        **({"attack": "pgd", "steps": 10, "checks": 48} | more),
    )


@pytest.mark.parametrize("name", ["scaled", pytest.param("quantised", marks=pytest.mark.slow)])
def test_a_fake_falls_to_the_stage_that_its_diagnosis_asked_for(name):
    """Scaling changes no label, so the number must come down to that of the undefended network.

    Quantising costs the attack something.
    """
    fake = zoo.FAKES[name][0]()
    naive, found = measure(fake, checks=0), measure(fake)
    assert found.reliability != "ok" and found.robust_acc < naive.robust_acc - 0.2, (
        "without escalation the defence looks better than it is"
    )
    if name == "scaled":
        assert found.robust_acc <= measure(zoo.honest("conv"), steps=40, checks=0).robust_acc + 0.05
    assert any(stage.startswith(("rescaled:", "bpda:", "escalated:")) for stage in found.stages)


def test_an_honest_model_gets_no_extra_stage():
    found = measure(zoo.honest("bn"))
    assert list(found.stages) == ["pgd-10"] and found.reliability == "ok"


@pytest.mark.slow
def test_a_randomised_model_is_judged_by_majority_with_averaged_gradients():
    found = measure(zoo.FAKES["resized"][0](), checks=16)
    assert "random-forward" in [alarm.name for alarm in found.alarms] and "eot:apgd-ce" in found.stages
    assert found.passes_per_sample["pgd-10"] > 10 * 20  # EOT in the plan's own attack too


def test_stages_follow_the_names_and_square_is_not_run_twice():
    plan = EvalPlan(Ball("linf", 0.1), [])
    assert [call.label for call in escalations(("rescale", "bpda", "eot", "square"), plan)] == [
        "rescaled:apgd-ce",
        "bpda:apgd-ce",
        "eot:apgd-ce",
        "escalated:square",
    ]
    assert not escalations((), plan)
    once = escalations(("square",), plan)
    assert not escalations(("square",), EvalPlan(Ball("linf", 0.1), once)) and escalations(
        ("square",), EvalPlan(Ball("l1", 1.0), [])
    )
    beyond = escalations(("minimal",), plan)
    assert [call.label for call in beyond] == ["escalated:apgd-wide", "escalated:fab-t"] and not escalations(
        ("minimal",), EvalPlan(plan.ball, beyond)
    )
    standard, rapid = (
        EvalPlan(Ball("l2", 1.0), make_attacks([Spec.of("autoattack", version=version)], "l2"))
        for version in ("standard", "rapid")
    )
    assert not escalations(("minimal",), standard)
    assert [call.label for call in escalations(("minimal",), rapid)] == ["escalated:fab-t"]


class Coarse(nn.Module):
    """A twin whose gradients point nowhere: it rounds its input."""

    def forward(self, x):
        return zoo.honest("conv")((x * 2).round() / 2)


def test_a_search_that_misses_hits_is_found_out():
    x, y = (part[1400:1448] for part in zoo.digits())
    (call,) = make_attacks([Spec.of("pgd", steps=50)], "linf")
    plan, ids = EvalPlan(Ball("linf", zoo.EPS), [call], search=Search(torch.bfloat16)), torch.arange(48)
    model = zoo.honest("conv")
    why, fell = gap(Coarse(), model, model, x, y, ids, call, plan)
    assert "pgd-50 in bfloat16 missed" in why and fell.any()
    assert gap(plan.search.twin(model, x), model, model, x, y, ids, call, plan)[0] == ""


def test_a_family_that_misses_hits_goes_to_fp32_and_the_others_stay():
    """Of four attacks the two that climb gradients of the ball search on a coarse twin.

    One that bears no low precision is not asked.
    """
    x, y = (part[1400:1448] for part in zoo.digits())
    model, said, asked = zoo.honest("conv"), [], []
    calls = make_attacks(
        [
            Spec.of("pgd", steps=20),
            Spec.of("noise", draws=3),
            Spec.of("apgd", steps=20),
            Spec.of("fab", steps=5),
        ],
        "linf",
    )
    plan = EvalPlan(Ball("linf", zoo.EPS), calls, search=Search(torch.bfloat16))

    def twin_of(search, shown):
        asked.append(search.dtype)
        return Coarse() if search.dtype is torch.bfloat16 else model

    found = trusted(plan, model, twin_of, x, y, torch.arange(48), said.append)
    assert [call.searching(plan.search).dtype for call in found] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]
    assert found[0].search.plain and found[1].search is None and found[3].search is None
    assert (
        len(said) == 1
        and said[0].startswith("fixed attacks search on the plain fp32 model: pgd-20")
        and len(asked) == 4
    )


def test_a_minimal_norm_search_runs_in_fp32_whatever_the_plan_says():
    seen = []
    x, y = (part[1400:1416] for part in zoo.digits())
    calls = make_attacks(
        [Spec.of("apgd", steps=2), Spec.of("fab", steps=2), Spec.of("square", queries=2)], "l2"
    )

    class Spied(RobustEvaluation):
        def _twin(self, search, x):
            seen.append(search.dtype)
            return self.model

    plan = EvalPlan(Ball("l2", 0.3), calls, search=Search(torch.bfloat16))
    Spied(zoo.honest("conv"), plan).run(
        MemorySplit(x, y, tuple("0123456789")), torch.arange(16), torch.device("cpu")
    )
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


def test_memory_that_runs_out_halves_the_batch_and_changes_no_verdict():
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.largest = zoo.honest("conv"), 0

        def forward(self, x):
            if len(x) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.largest = max(self.largest, len(x))
            return self.net(x)

    said = []
    model = Greedy()
    found = measure(model, batch_size=64, checks=8, say=said.append)
    assert torch.equal(found.survivors, measure(zoo.honest("conv"), checks=8).survivors)
    assert model.largest <= 20 and any(
        "out of memory with 64 images: going on with 32" in line for line in said
    )


def test_a_batch_that_the_device_cannot_take_is_halved_too():
    x, y = (part[:10] for part in zoo.digits())

    class Tight(MemorySplit):
        def stream(self, batches, device):
            for batch in batches:
                if len(batch) > 3:
                    raise torch.OutOfMemoryError("no room for the pixels")
                yield from super().stream([batch], device)

    said = []
    got = list(
        in_batches(
            Tight(x, y, tuple("0123456789")),
            torch.arange(10),
            torch.device("cpu"),
            8,
            lambda x, y, ids: ids.tolist(),
            said.append,
        )
    )
    assert sum(got, []) == list(range(10)) and max(map(len, got)) == 2 and len(said) == 2


def test_the_last_image_that_does_not_fit_is_an_error():
    sizer = BatchSizer(8, torch.device("cpu"))
    with halving(sizer, 8) as attempt:
        raise torch.OutOfMemoryError("no")
    assert attempt.failed and sizer.size == 4
    with pytest.raises(torch.OutOfMemoryError), halving(sizer, 1):
        raise torch.OutOfMemoryError("no")
    with halving(sizer, 4) as attempt:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert attempt.failed and sizer.size == 2
    with pytest.raises(RuntimeError, match="shapes"), halving(sizer, 4):
        raise RuntimeError("shapes cannot be multiplied")

"""rapid's audit: who is looked at, what that proves, how often it errs, what happens when samples fall."""

import itertools
import random
from dataclasses import replace
from math import comb

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

import robustcli
from robustcli.assembly.attacks import make_attacks, make_audit
from robustcli.config.spec import Spec
from robustcli.core.geometry import Ball
from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.audit import PASSES, audited, depth, in_order, joined
from robustcli.evaluation.bound import Audit, most_breakable, most_breakable_of_one_draw
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan
from robustcli.evaluation.result import Evaluation

CALL = AttackCall("rapid:all", "apgd", lambda *a, **k: None, {})
SHORT = AttackCall("short", "fab", lambda *a, **k: None, {})
LONG = AttackCall("long", "square", lambda *a, **k: None, {}, needs="scores")


def evaluation(ids, standing, calls=(CALL,), clean=None):
    clean = torch.ones_like(standing) if clean is None else clean
    stages = {call.label: standing for call in calls}
    costs = dict.fromkeys(stages, 1.0)
    return Evaluation(
        ids,
        torch.zeros_like(ids),
        clean,
        Answers.unknown([None] * len(ids)).broken(
            (clean & ~standing).nonzero()[:, 0], answer(ids, clean & ~standing)
        ),
        stages,
        costs,
        costs,
        [],
        1.0,
        calls=tuple(calls),
        total=len(ids),
    )


def answer(ids, broken):
    """What the model answers at the points that break these samples: another class for each."""
    return ids[broken] + 1


def told(result):
    """{id: the answer at the point that broke it} of an evaluation."""
    answers = result.answers.attacked.tolist()
    return {i: answer for i, answer in zip(result.ids.tolist(), answers, strict=True) if answer != NONE}


def audit_of(n, standing, weak, long_weak=(), samples=64, seed=0, part=False):
    """An evaluation of n samples, the first `standing` of which stand.

    Those in `weak` fall to the short attacks, those in `long_weak` to the long list.

    Returns (evaluation after the audit, ids looked at, ids fallen, calls made as (labels, ids)).
    """
    ids, asked = torch.arange(n) * 3, []  # ids are not places
    weak, long_weak = {3 * k for k in weak}, {3 * k for k in (*weak, *long_weak)}

    def rerun(attacks, where, name):
        asked.append(([call.label for call in attacks], ids[where].tolist()))
        falls = long_weak if name else weak
        return evaluation(
            ids[where],
            torch.tensor([int(i) not in falls for i in ids[where]], dtype=torch.bool),
            tuple(attacks),
        )

    plan = EvalPlan(Ball("linf", 0.1), [CALL], seed, audit=AuditPlan(samples, lambda passes: [SHORT], [LONG]))
    found, (looked, fallen) = audited(
        plan, evaluation(ids, torch.arange(n) < standing), torch.arange(n), rerun, part=part
    )
    # Each sample that fell, to the list or to the audit, has its answer, and no other has one.
    broken = (found.correct & ~found.survivors).nonzero()[:, 0]
    assert told(found) == {int(i): int(i) + 1 for i in found.ids[broken]}
    return found, set(looked.tolist()), set(fallen.tolist()), asked


def test_none_falls_and_the_record_bounds_what_the_attacks_could_still_break():
    found, looked, fallen, asked = audit_of(1000, 621, ())
    audit = found.audit
    assert (
        (audit.n, audit.fallen, audit.escalated, audit.confidence) == (64, 0, False, 0.95)
        and len(looked) == 64
        and not fallen
        and len(asked) == 1
    )
    assert audit.words() == "audit 0 of 64: its attacks would break at most 2.6 points more, 95 %"
    assert found.survivors.sum() == 621 and list(found.stages) == ["rapid:all", "rapid:audit"]
    assert audit.to_json() == {
        "n": 64,
        "fallen": 0,
        "bound": audit.bound,
        "confidence": 0.95,
        "escalated": False,
    }


def test_one_fall_counts_and_doubles_the_audit():
    first = in_order(0, torch.arange(200) * 3)[:64].tolist()
    found, looked, fallen, asked = audit_of(200, 200, {first[10]})
    assert (found.audit.n, found.audit.fallen, found.audit.escalated) == (128, 1, False) and fallen == {
        3 * first[10]
    }
    assert (
        found.survivors.sum() == 199
        and [len(ids) for _, ids in asked] == [64, 64]
        and not set(asked[0][1]) & set(asked[1][1])
    )


@pytest.mark.parametrize("places", [(0, 1), (3, 100)], ids=["both at once", "one, then another"])
def test_two_falls_run_the_long_list_on_all_survivors(places):
    order = in_order(0, torch.arange(200) * 3).tolist()
    weak = {order[k] for k in places}
    found, _, fallen, asked = audit_of(200, 200, weak, long_weak={order[150], order[199]})
    assert (
        found.audit.escalated
        and found.audit.bound is None
        and found.audit.words().startswith("escalated: 2 of ")
    )
    assert asked[-1][0] == ["long"] and set(asked[-1][1]) == {3 * k for k in range(200)} - fallen
    assert list(found.stages) == ["rapid:all", "rapid:audit", "long"] and found.survivors.sum() == 200 - 4
    assert (found.stages["long"] <= found.stages["rapid:audit"]).all()  # never up again


def test_all_are_looked_at_when_there_are_fewer_and_nothing_is_left_to_bound():
    found, looked, _, _ = audit_of(100, 30, {5})
    assert (found.audit.n, found.audit.fallen, found.audit.bound) == (30, 1, 0.0) and looked == {
        3 * k for k in range(30)
    }
    nobody, _, _, asked = audit_of(50, 0, ())
    assert (nobody.audit.n, nobody.audit.bound) == (0, 0.0) and not asked


def test_zero_means_not_audited_and_says_so():
    found, looked, _, asked = audit_of(100, 60, {1, 2, 3}, samples=0)
    assert (
        found.audit == Audit(0, 0, 0.6) and found.audit.words() == "not audited" and not looked and not asked
    )


def test_the_order_is_a_function_of_seed_and_id_alone():
    ids = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    whole = ids[in_order(7, ids)]
    half = ids[:250]
    assert torch.equal(half[in_order(7, half)], whole[torch.isin(whole, half)])
    assert not torch.equal(ids[in_order(8, ids)], whole) and sorted(whole.tolist()) == list(range(500))


@pytest.mark.parametrize("standing", [1, 6, 64, 65, 127, 128, 5000])
@pytest.mark.parametrize("draws", [1, 20])
@pytest.mark.parametrize("part", [False, True])
def test_the_passes_stay_below_25000_whatever_stands(standing, draws, part):
    plan = AuditPlan(64, lambda passes: [SHORT])
    first, passes = depth(plan, standing, part=part, draws=draws)
    looked = min(standing, first if part else 2 * first)
    assert 1 <= first <= min(standing, 128) and passes >= 12 and looked * draws * (passes + 8) <= PASSES
    assert draws > 1 or first == min(standing, 128 if part else 64)


def test_more_samples_cost_more_passes_and_fewer_less():
    few, usual, wide = (
        depth(AuditPlan(k, lambda passes: [SHORT]), 5000, part=False, draws=1) for k in (4, 64, 640)
    )
    assert (few[0], wide[0]) == (4, 640) and abs(wide[1] - usual[1]) <= 1 and abs(few[1] - usual[1]) <= 1


@settings(max_examples=60, deadline=None)
@given(standing=st.integers(1, 14), first=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_bound_covers_at_95_percent_by_enumeration(standing, first, seed):
    """For every number D of breakable samples, outcomes with a bound below D are at most 5 % likely."""
    first = min(first, standing)
    more = min(first, standing - first)
    for d in range(standing + 1):
        wrong = total = 0
        for breakable in itertools.islice(itertools.combinations(range(standing), d), 400):
            one, two = sum(k < first for k in breakable), sum(first <= k < first + more for k in breakable)
            bound = (
                most_breakable(standing, first, 0, 0)
                if one == 0
                else most_breakable(standing, first, more, 1)
                if one == 1 and two == 0
                else standing
            )
            wrong, total = wrong + (bound < d), total + 1
        if comb(standing, d) <= 400:
            assert wrong / total <= 0.05


def test_bounds_by_hand():
    assert most_breakable(64, 64, 0, 0) == 0 and most_breakable(30, 30, 0, 1) == 1
    # C(100 - D, 50) / C(100, 50): 0.0587 for D = 4 and 0.0281 for D = 5.
    assert most_breakable(100, 50, 0, 0) == 4 == most_breakable_of_one_draw(100, 50, 0)
    assert most_breakable_of_one_draw(100, 0, 0) == 100 and most_breakable_of_one_draw(20, 20, 3) == 3
    assert (
        most_breakable(10_000, 64, 64, 1) > most_breakable(10_000, 64, 0, 0) - 200
        and most_breakable(10_000, 64, 0, 0) == 455
    )


@pytest.mark.parametrize("n", [200, 1000])
def test_the_rule_errs_as_seldom_as_promised(n):
    """60 % stand; the audit's attacks would break 5 points of all samples, or 0.3.

    Escalated: nearly always, and seldom.
    """
    standing, draw = round(0.6 * n), random.Random(0)

    def escalates(weak):
        order = draw.sample(range(standing), min(128, standing))
        one = sum(k < weak for k in order[:64])
        return one >= 2 or (one == 1 and any(k < weak for k in order[64:]))

    large = [escalates(round(0.05 * n)) for _ in range(4000)]
    exact = 0.003 * n
    small = [escalates(int(exact) + (draw.random() < exact % 1)) for _ in range(4000)]
    assert sum(large) / 4000 >= 0.98 and sum(small) / 4000 <= 0.15
    # The same rule by the code itself, on one order.
    order = in_order(0, torch.arange(standing) * 3).tolist()
    assert (
        audit_of(n, standing, set(order[60:66]))[0].audit.escalated
        and not audit_of(n, standing, set(order[63:64]))[0].audit.escalated
    )


def test_a_part_looks_at_what_a_doubled_audit_would_and_never_escalates():
    found, looked, fallen, asked = audit_of(1000, 600, set(range(600)), part=True)
    assert (
        len(looked) == len(fallen) == 128
        and found.audit.due
        and not found.audit.escalated
        and len(asked) == 1
    )


def test_parts_put_together_say_what_the_whole_would():
    ids, standing = torch.arange(400), torch.ones(400, dtype=torch.bool)
    whole = evaluation(ids, standing)
    halves = [ids[k::2] for k in (0, 1)]
    looked = torch.cat([half[in_order(0, half)][:128] for half in halves])
    quiet = joined(0, whole, looked, ids[:0], ids[:0], "run it")
    run = next(
        (k for k, i in enumerate(ids[in_order(0, ids)].tolist()) if i not in set(looked.tolist())), 256
    )
    assert (
        quiet.audit.n == 256
        and quiet.audit.bound == most_breakable_of_one_draw(400, run, 0) / 400
        and run >= 128
        and quiet.alarms == []
    )
    one = joined(0, whole, looked, looked[:1], looked[:1] + 1, "run it")
    assert told(one) == {int(looked[0]): int(looked[0]) + 1}
    assert (one.audit.fallen, one.audit.due) == (1, False) and one.survivors.sum() == 399 and one.alarms == []
    fallen = looked[:2].sort().values
    two = joined(0, whole, looked, fallen, fallen + 1, "run it")
    assert told(two) == {int(i): int(i) + 1 for i in fallen}
    (alarm,) = two.alarms
    assert (
        two.audit.due
        and two.audit.bound is None
        and (alarm.name, alarm.level, alarm.remedy) == ("escalation-due", "suspect", "run it")
    )
    assert joined(0, whole, ids[:0], ids[:0], ids[:0], "").audit.words() == "not audited"


def measure(model, n=24, **more):
    x, y = (part[1400 : 1400 + n] for part in zoo.digits())
    options = {"attack": "autoattack", "version": "rapid", "device": "cpu", "search": "fp32", "checks": 0}
    return robustcli.evaluate(
        model,
        x,
        y,
        eps=zoo.EPS,
        **{key: value for key, value in (options | more).items() if value is not None},
    )


def test_an_honest_model_passes_its_audit():
    found = measure(zoo.honest("robust"), audit=4)
    assert (found.audit.n, found.audit.fallen, found.audit.escalated) == (
        4,
        0,
        False,
    ) and 0 < found.audit.bound < 1
    assert (
        list(found.stages)[-1] == "rapid:audit"
        and found.audit.passes == round(found.passes_per_sample["rapid:audit"] * 24) <= PASSES / 16
    )
    assert measure(zoo.honest("robust"), attack="pgd", version=None, steps=2).audit is None


def test_a_model_without_gradients_escalates_and_ends_below_what_rapid_says():
    """Rounded inputs give gradients of zero: rapid breaks little, Square breaks the rest."""
    fake = zoo.FAKES["quantised"][0]()
    bare, found = measure(fake, audit=0, n=16), measure(fake, audit=4, n=16)
    assert bare.audit.n == 0 and not bare.audit.escalated
    added = list(found.stages)[-5:]
    assert found.audit.escalated and added == ["apgd-ce", "apgd-t", "fab-t", "square", "apgd-wide"]
    assert found.survivors.sum() < bare.survivors.sum() - 2 and (found.survivors <= bare.survivors).all()


def test_the_plan_of_an_audit_comes_from_the_configuration():
    audit = make_audit([Spec.of("autoattack", version="rapid", audit=3)], "l2")
    assert audit.samples == 3 and replace(audit, samples=4).samples == 4
    assert [call.label for call in audit.escalation] == [
        call.label for call in make_attacks([Spec.of("autoattack")], "l2")
    ]

"""Ours and torchattacks' side by side: the test of chance, the rows, the alarm."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.data.split import MemorySplit
from robustcli.evaluation.crosscheck import _PEERS, cross_check, peer_of
from robustcli.evaluation.library import torchattacks_call
from robustcli.evaluation.plan import AttackCall, EvalPlan, Search
from robustcli.proportions import mcnemar
from robustcli.registry import parameters

peer = pytest.mark.skipif(find_spec("torchattacks") is None, reason="torchattacks is optional")


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(b, c):
    from scipy.stats import binomtest

    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9) and mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_of_many_samples_is_quick_and_finite():
    assert mcnemar(5000, 5000) == 1.0 and 0 <= mcnemar(4000, 6000) < 1e-80


def call(name, label=None, fn=None, **params):
    entry = registry.attacks.get(name)
    return AttackCall(label or name, name, fn or entry.fn, params, entry.facts.kind, entry.facts.needs)


def check(calls, norm="linf", eps=0.03, **more):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
        ).eval()
    pixels = torch.randint(
        0, 256, (60, 3, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    with torch.no_grad():
        labels = net(pixels.float() / 255).argmax(1)
    plan = EvalPlan(
        Ball(norm, eps), calls, batch_size=60, search=Search(torch.float32, False, False), checks=8
    )
    return cross_check(
        net, plan, MemorySplit(pixels, labels, tuple("abcd")), torch.arange(60), torch.device("cpu"), **more
    )


@peer
def test_the_same_attack_agrees_sample_by_sample():
    rows, alarms = check([call("fgsm"), call("pgd", start="zero", steps=5), call("mi_fgsm", steps=5)])
    assert [row["verdict"] for row in rows] == ["agree"] * 3 and not alarms
    for row, name in zip(rows, ("FGSM", "PGD-5", "MIFGSM-5"), strict=True):
        assert (
            row["peer"] == f"torchattacks:{name}"
            and row["only_ours"] == row["only_peer"] == 0
            and row["p"] == 1.0
        )
        assert row["n"] == 60 and 0 < row["standing"] == row["peer_standing"] < 60


@peer
def test_a_weak_attack_of_ours_is_an_alarm_and_a_strong_one_is_not():
    def idle(oracle, x, ball, *, steps=5, step_size=None, start="uniform"):
        return oracle.result(x)

    def strong(oracle, x, ball, *, steps=5, step_size=None, start="uniform"):
        return registry.attacks.get("pgd").fn(oracle, x, ball, steps=20)

    rows, alarms = check(
        [call("pgd", "idle", idle), call("pgd", "strong", strong, steps=1, step_size=0.001)], eps=0.06
    )
    assert [row["verdict"] for row in rows] == ["ours weaker", "ours stronger"] and all(
        row["p"] < 0.01 for row in rows
    )
    assert (
        rows[0]["standing"] == 60
        and rows[0]["only_peer"] == 60 - rows[0]["peer_standing"]
        and rows[0]["only_ours"] == 0
    )
    assert (
        [(a.name, a.level) for a in alarms] == [("cross-check", "suspect")]
        and "ours is weaker" in alarms[0].evidence
        and "idle" in alarms[0].evidence
    )


@peer
def test_what_cannot_be_compared_says_so():
    rows, alarms = check([call("pgd", steps=2, restarts=2), call("fmn", steps=2)], "linf")
    assert (
        rows[0]["note"] == "it knows no restarts"
        and rows[1]["verdict"] == "not compared"
        and "no fmn under linf" in rows[1]["note"]
        and not alarms
    )
    assert peer_of(torchattacks_call("torchattacks:PGD", {}, "linf"), Ball("linf", 0.1)) == (
        None,
        "it is torchattacks' own",
    )
    rows, _ = check([call("pgd", steps=2)], "l1", 1.0)
    assert rows == [
        {"attack": "pgd", "peer": None, "verdict": "not compared", "note": "torchattacks has no pgd under l1"}
    ]


@peer
@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name, item in _PEERS.items() for norm in item.classes]
)
def test_every_counterpart_takes_our_parameters(name, norm):
    words = _PEERS[name].words
    assert set(words) <= set(parameters(registry.attacks.get(name).fn)), "our parameters have these names"
    found, note = peer_of(call(name), Ball(norm, 0.1))
    assert (
        found is not None
        and found.name == f"torchattacks:{_PEERS[name].classes[norm]}"
        and set(found.params) == set(words.values())
        and note == ""
    )


@peer
def test_a_step_size_left_open_is_the_one_our_attack_takes():
    ball = Ball("linf", 0.1)
    assert peer_of(call("pgd", steps=5), ball)[0].params["alpha"] == pytest.approx(0.05)
    assert peer_of(call("mi_fgsm", steps=5), ball)[0].params["alpha"] == pytest.approx(0.02)
    assert peer_of(call("pgd", steps=5, step_size=0.07), ball)[0].params["alpha"] == 0.07
    assert peer_of(call("apgd", loss="dlr-targeted"), ball)[0].name == "torchattacks:APGDT"
    assert peer_of(call("pgd", start="zero"), ball)[0].params["random_start"] is False

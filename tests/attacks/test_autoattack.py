"""AutoAttack's versions are data: order, parameters, labels."""

import pytest

from robustcli import registry
from robustcli.assembly.attacks import make_attacks, make_audit, planned_passes
from robustcli.config.spec import Spec

VERSIONS = ("standard", "plus", "rand", "rapid")


def stages(norm="linf", **params):
    return make_attacks([Spec.of("autoattack", **params)], norm)


def test_standard_is_the_published_list_and_a_search_from_outside_the_ball():
    calls = stages()
    assert [call.label for call in calls] == ["apgd-ce", "apgd-t", "fab-t", "square", "apgd-wide"]
    assert [dict(call.params) for call in calls] == [
        {"steps": 100, "restarts": 1, "loss": "ce"},
        {"steps": 100, "restarts": 1, "loss": "dlr-targeted", "targets": 9},
        {"steps": 100, "restarts": 1, "targeted": True, "targets": 9},
        {"queries": 5000},
        {"steps": 100, "restarts": 1, "loss": "margin", "widest": 3.0},
    ]
    assert [call.kind for call in calls] == ["fixed", "fixed", "minimal", "fixed", "fixed"] and calls[
        3
    ].needs == "scores"
    assert [call.label for call in stages("l2")] == [call.label for call in calls] + ["fab-random"]
    assert [call.label for call in stages("l1")] == [call.label for call in calls[:4]]
    last = 1  # each search scores its last point, each ball its first
    assert planned_passes(calls, 10, "linf") == (202 + last) + 9 * (202 + last) + 2701 + 5002 + (206 + last)


def test_l1_takes_twelve_restarts_and_five_classes():
    calls = stages("l1")
    assert [call.label for call in calls] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert calls[0].params["restarts"] == 12 and calls[1].params["targets"] == 5


def test_rand_averages_gradients_and_plus_restarts():
    assert [call.search.draws for call in stages(version="rand")] == [20, 20]
    assert [call.label for call in stages(version="plus")] == [
        "apgd-ce",
        "apgd-dlr",
        "fab",
        "square",
        "apgd-t",
        "fab-t",
    ]
    assert all(
        call.search is None for version in ("standard", "plus", "rapid") for call in stages(version=version)
    )


#: The list before it got stages from outside the ball.
EARLIER = [
    Spec.of("apgd", steps=60, restarts=3),
    Spec.of("apgd", steps=50, loss="dlr-targeted", targets=3),
    Spec.of("apgd", steps=15, loss="dlr-targeted", targets=6),
]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rapid_says_so_in_every_stage_and_costs_a_seventh(norm):
    calls = stages(norm, version="rapid")
    assert all(call.label.startswith("rapid:") for call in calls)
    cost, whole = (planned_passes(some, 10, norm) for some in (calls, stages(norm)))
    assert cost <= 1.35 * planned_passes(make_attacks(EARLIER, norm), 10, norm) and cost * 7 < whole


def test_rapid_heads_for_every_class_once_and_looks_from_outside():
    linf, l2, l1 = (stages(norm, version="rapid") for norm in ("linf", "l2", "l1"))
    assert [call.label[6:] for call in linf] == ["apgd-ce", "apgd-wide", "apgd-t3", "apgd-t6"]
    assert [call.label[6:] for call in l2] == ["apgd-ce", "apgd-wide", "apgd-t3", "apgd-t6", "fab-1"]
    assert [call.label[6:] for call in l1] == ["apgd-ce", "apgd-t2", "fab-1"]
    for calls in (linf, l2):
        near, far = (
            next(call.params for call in calls if call.label.endswith(name)) for name in ("t3", "t6")
        )
        assert far["skip"] == near["targets"] and near["targets"] + far["targets"] == 9
    assert all(call.params["widest"] == 3 for calls in (linf, l2) for call in calls if "wide" in call.label)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("passes", [12, 187, 390, 1900, 12000])
def test_short_forms_cost_what_they_are_given(norm, passes):
    audit = make_audit([Spec.of("autoattack", version="rapid")], norm)
    calls = audit.short_forms(passes)
    names = {"linf": ["fab", "square"], "l2": ["fab", "fab", "square"], "l1": ["apgd", "fab", "square"]}
    assert [call.name for call in calls] == names[norm] or passes == 12
    assert 0.85 * passes <= planned_passes(calls, 10, norm) <= passes
    assert [call.label for call in audit.escalation] == [call.label for call in stages(norm)]
    assert all(call.precision == "fp32" for call in calls if call.name != "apgd")


def test_only_rapid_is_audited_and_not_beside_the_long_list():
    assert all(
        make_audit([Spec.of("autoattack", version=version)], "linf") is None
        for version in ("standard", "plus", "rand")
    )
    assert (
        make_audit([Spec.of("pgd")], "linf") is None
        and make_audit([Spec.of("pgd"), Spec.of("autoattack", version="rapid", audit=7)], "linf").samples == 7
    )
    assert make_audit([Spec.of("autoattack", version="rapid"), Spec.of("autoattack")], "linf") is None


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_stage_binds_to_its_attack(version, norm):
    for call in stages(norm, version=version):
        facts = registry.attacks.get(call.name).facts
        assert norm in facts.norms and set(call.params) <= set(registry.parameters(call.fn))
        assert (call.kind, call.needs, call.precision) == (facts.kind, facts.needs, facts.precision)


def test_an_ensemble_beside_a_single_attack_keeps_labels_apart():
    calls = make_attacks(
        [
            Spec.of("autoattack", version="rapid"),
            Spec.of("pgd", steps=5),
            Spec.of("autoattack", version="rapid"),
        ],
        "linf",
    )
    assert len({call.label for call in calls}) == len(calls) and "rapid:apgd-ce#2" in [
        call.label for call in calls
    ]

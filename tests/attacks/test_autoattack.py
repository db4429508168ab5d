"""AutoAttack's versions are data: order, parameters, labels."""

import pytest

from robustcli import registry
from robustcli.config.schema import Spec
from robustcli.jobs.compose import make_attacks, planned_passes

registry.ensembles.discover()
VERSIONS = ("standard", "plus", "rand", "rapid")


def stages(norm="linf", **params):
    return make_attacks([Spec.of("autoattack", **params)], norm)


def test_standard_is_the_published_list():
    calls = stages()
    assert [call.label for call in calls] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [dict(call.params) for call in calls] == [
        {"steps": 100, "restarts": 1, "loss": "ce"},
        {"steps": 100, "restarts": 1, "loss": "dlr-targeted", "targets": 9},
        {"steps": 100, "restarts": 1, "targeted": True, "targets": 9},
        {"queries": 5000},
    ]
    assert [call.kind for call in calls] == ["fixed", "fixed", "minimal", "fixed"] and calls[-1].needs == "scores"
    assert planned_passes(calls) == 200 + 1800 + 1800 + 5000


def test_l1_takes_five_restarts_and_five_classes_and_no_square():
    calls = stages("l1")
    assert [call.label for call in calls] == ["apgd-ce", "apgd-t", "fab-t"]
    assert calls[0].params["restarts"] == 5 and calls[1].params["targets"] == 5


def test_rand_averages_gradients_and_plus_restarts():
    assert [call.search.draws for call in stages(version="rand")] == [20, 20]
    assert [call.label for call in stages(version="plus")] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert all(call.search is None for version in ("standard", "plus", "rapid") for call in stages(version=version))


def test_rapid_says_so_in_every_stage_and_costs_less_than_a_tenth():
    assert all(call.label.startswith("rapid:") for call in stages(version="rapid"))
    assert planned_passes(stages(version="rapid")) * 10 < planned_passes(stages())


def test_rapid_heads_for_every_class_once():
    calls = stages(version="rapid")
    assert [call.label for call in calls] == ["rapid:apgd-ce", "rapid:apgd-t3", "rapid:apgd-t6"]
    assert [dict(call.params) for call in calls] == [
        {"steps": 60, "restarts": 3, "loss": "ce"},
        {"steps": 50, "restarts": 1, "loss": "dlr-targeted", "targets": 3},
        {"steps": 15, "restarts": 1, "loss": "dlr-targeted", "targets": 6, "skip": 3},
    ]
    assert calls[2].params["skip"] == calls[1].params["targets"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_stage_binds_to_its_attack(version, norm):
    for call in stages(norm, version=version):
        facts = registry.attacks.get(call.name).facts
        assert norm in facts["norms"] and set(call.params) <= set(registry.parameters(call.fn))
        assert (call.kind, call.needs) == (facts["kind"], facts["needs"])


def test_an_ensemble_beside_a_single_attack_keeps_labels_apart():
    calls = make_attacks([Spec.of("autoattack", version="rapid"), Spec.of("pgd", steps=5), Spec.of("autoattack", version="rapid")], "linf")
    assert len({call.label for call in calls}) == len(calls) and "rapid:apgd-ce#2" in [call.label for call in calls]

"""--attack NAME:key=value: parameters beside the name, and the refusals that name them."""

import pytest

from robustcli.cli.attack_flags import measured_attacks
from robustcli.config.load import load_config


def plan(cli, *words):
    """The labels of the attacks that would run, or the line of the refusal."""
    answer = cli(
        "eval", "--model", "small_cnn", "--data", "digits", "--eps", "0.1", *words, "--dry-run", "--json"
    )
    if answer.code:
        return answer.document["error"]["message"]
    return answer.document["plan"]["attacks"].split(", ")


def test_parameters_stand_behind_the_name(cli):
    assert plan(cli, "--attack", "pgd:steps=7:restarts=2,fgsm") == ["pgd-7x2", "fgsm"]
    assert plan(cli, "--attack", "pgd:steps=7,pgd:steps=50") == ["pgd-7", "pgd-50"]
    assert plan(cli, "--attack", "pgd:step_size=2/255:steps=4") == ["pgd-4"]


def test_steps_of_all_attacks_win(cli):
    assert plan(cli, "--attack", "pgd:steps=7:restarts=2", "--steps", "3") == ["pgd-3x2"]


def test_a_version_and_a_parameter_of_an_ensemble(cli):
    assert plan(cli, "--attack", "autoattack:rapid:audit=0")[0] == "rapid:apgd-ce"


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ("pgd:stepss=7", "attacks.0.stepss: no such parameter of attack 'pgd'; did you mean 'steps'?"),
        ("fgsm,pgd:steps=x", "attacks.1.steps: expected a whole number, got 'x'"),
        ("pgd:steps", "unknown attack 'pgd:steps'"),
        ("autoattack:rapid:steps=1", "attacks.0.steps: no such parameter of attack ensemble 'autoattack'"),
    ],
)
def test_what_does_not_go_is_named(cli, attack, told):
    assert told in plan(cli, "--attack", attack)


def test_names_are_bare_where_parameters_stand_behind_them():
    loaded = load_config(None, [])
    found = measured_attacks(loaded, "pgd:steps=7, autoattack:rapid,torchattacks:PGD")
    assert list(found.values()) == ["pgd", "autoattack:rapid", "torchattacks:PGD"]

"""--attack as a setting: a comma inside brackets belongs to the value."""

import pytest

from robustcli.cli.attack_flags import attack_list


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fgsm,pgd:steps=2", 'attacks=[{name: "fgsm"}, {name: "pgd", steps: 2}]'),
        (
            "mi_fgsm:transforms=[di,ti]:steps=2,fgsm",
            'attacks=[{name: "mi_fgsm", transforms: [di,ti], steps: 2}, {name: "fgsm"}]',
        ),
    ],
)
def test_only_commas_outside_brackets_part_attacks(given, expected):
    assert attack_list(given) == expected

"""Assignments to one section meet: a value for the section and keys below it, in any order and layer."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from robustcli.config.overlay import PREFIX

NAME = "data: expected a mapping, got 'folder:P'"
CONTRADICTIONS = (
    (("data=folder:P", "data.size=8"), NAME),
    (("ball=0.1", "ball.norm=l2"), "ball: expected a mapping, got 0.1"),
    (("data.splits=a", "data.splits.test=b"), "data.splits: expected a mapping, got 'a'"),
    (("train=null", "train.steps=3"), "train: expected a mapping, got nothing; the section is empty"),
    (("adversary=3", "adversary.steps=3"), "adversary: expected a mapping, got 3"),
    (("attacks=fgsm", "attacks.0.steps=3"), "attacks: expected a list, got 'fgsm'"),
    (
        ("data.augment=none", "data.augment.crop=2"),
        "data.augment: set to 'none', and data.augment.crop is set too; keep one of the two",
    ),
    (
        ("data.cutmix=null", "data.cutmix.alpha=2"),
        "data.cutmix: set to nothing, and data.cutmix.alpha is set too; keep one of the two",
    ),
    (
        ("ball.eps=0.2", "ball.eps.x=3"),
        "ball.eps: set to 0.2, and ball.eps.x is set too; keep one of the two",
    ),
    (
        ("data.classes=[a, b]", "data.classes.x=c"),
        "data.classes: set to a list, and data.classes.x is set too; keep one of the two",
    ),
)


def _environ(*settings: str) -> dict[str, str]:
    """The variables that say the same as these assignments."""
    pairs = [setting.split("=", 1) for setting in settings]
    return {PREFIX + key.upper().replace(".", "__"): value for key, value in pairs}


@pytest.mark.parametrize(("settings", "problem"), CONTRADICTIONS)
def test_a_value_and_keys_below_it_on_one_layer_are_an_error(
    loader: Any, settings: tuple[str, ...], problem: str
) -> None:
    for ordered in permutations(settings):
        found = loader.problems("seed: 1", *ordered)
        assert len(found) == 1 and found[0].startswith(f"command line: {problem}"), found
    variable = next(iter(_environ(settings[0])))
    assert loader.problems(None, environ=_environ(*settings))[0].startswith(
        f"environment {variable}: {problem}"
    )


@pytest.mark.parametrize(("settings", "problem"), CONTRADICTIONS[:6])
def test_what_no_section_can_be_is_not_forgotten_for_keys_of_an_upper_layer(
    loader: Any, settings: tuple[str, ...], problem: str
) -> None:
    value, below = settings
    variable = next(iter(_environ(value)))
    assert loader.problems(None, below, environ=_environ(value))[0].startswith(
        f"environment {variable}: {problem}"
    )
    text = value.replace("=", ": ")
    if text.count(".") == 0:
        assert loader.problems(text, below)[0].startswith(f"c.yaml:1: {problem}")


def test_keys_of_an_upper_layer_replace_a_word_that_may_stand_there(loader: Any) -> None:
    data = loader(
        "data: {augment: none, cutmix: null}", "data.augment.crop=2", "data.cutmix.alpha=2"
    ).config.data
    assert (data.augment.crop, data.cutmix.alpha) == (2, 2.0)
    assert loader("data: {augment: {crop: 2}}", "data.augment=none").config.data.augment == "none"


@pytest.mark.parametrize(
    "settings",
    [
        ("data.size=8", "data={name: fake}"),
        ("data={size: 8}", "data={name: fake}"),
        ("data.size=8", "data={}"),
    ],
)
def test_a_mapping_joins_the_keys_of_its_section(loader: Any, settings: tuple[str, ...]) -> None:
    for ordered in permutations(settings):
        assert loader("data: {name: fake}", *ordered).config.data.size == 8
        assert loader("data: {name: fake}", *ordered).config.data.name == "fake"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("adversary.steps=3", "adversary={name: pgd}"), ("pgd", {"steps": 3})),
        (("adversary.steps=3", "adversary={name: pgd, steps: 4}"), ("pgd", {"steps": 4})),
        (("adversary={name: pgd, steps: 4}", "adversary={name: fgsm}"), ("fgsm", {})),
    ],
)
def test_a_spec_in_braces_keeps_what_was_set_of_the_same_method(
    loader: Any, settings: tuple[str, ...], expected: Any
) -> None:
    spec = loader("seed: 1", *settings).config.adversary
    assert (spec.name, spec.params) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("attacks=[fgsm]", "attacks.1=pgd"), [("fgsm", {}), ("pgd", {})]),
        (("attacks.1=pgd", "attacks=[fgsm]"), [("fgsm", {}), ("pgd", {})]),
        (("attacks.0.steps=3", "attacks=[pgd]"), [("pgd", {"steps": 3})]),
    ],
)
def test_elements_join_the_list_of_their_layer(
    loader: Any, settings: tuple[str, ...], expected: list[Any]
) -> None:
    found = loader("seed: 1", *settings).config.attacks
    assert [(spec.name, spec.params) for spec in found] == expected
    problem = "command line: attacks.7: no such element; the list has 1 element, counted from 0"
    assert loader.problems("seed: 1", "attacks=[pgd]", "attacks.7=pgd") == [problem]

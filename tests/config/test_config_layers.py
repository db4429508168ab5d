"""defaults < config and what it extends < environment < command line, and where each value came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustcli.config.load import load_config
from robustcli.config.overlay import RESERVED_ENVIRONMENT, Override, parse_assignment
from robustcli.errors import ConfigError


def test_precedence_and_origins(loader: Any) -> None:
    loader.write("seed: 1\nthreads: 1\ndevice: cpu\nname: base\n", "base.yaml")
    loaded = loader(
        "extends: base.yaml\nseed: 2\nthreads: 2\ndevice: cpu\n",
        "seed=4",
        environ={"ROBUSTCLI_SEED": "3", "ROBUSTCLI_THREADS": "3"},
    )
    config, origins, folder = loaded.config, loaded.origins, str(loader.folder)
    assert (config.seed, config.threads, config.device, config.name) == (4, 3, "cpu", "base")
    assert origins["seed"] == "command line" and origins["threads"] == "environment ROBUSTCLI_THREADS"
    assert origins["device"] == f"{folder}/c.yaml:4" and origins["name"] == f"{folder}/base.yaml:4"
    assert origins["precision"] == "default"
    assert loaded.path == Path(folder) / "c.yaml"


def test_origin_names_the_flag_and_later_wins(registries: Any) -> None:
    overrides = [
        Override("ball.eps", "4/255", "--eps"),
        Override("ball.eps", "8/255", "--eps"),
        Override("seed", "1", "--seed"),
    ]
    loaded = load_config(None, overrides, environ={}, registries=registries)
    assert (
        loaded.config.ball.eps == 8 / 255
        and loaded.origins["ball.eps"] == "--eps"
        and loaded.origins["seed"] == "--seed"
        and loaded.path is None
    )


def test_files_are_named_relative_to_the_working_directory(
    loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(loader.folder)
    loader.write("seed: 1\nseeds: 2\n", "sub/c.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config("sub/c.yaml", environ={}, registries=loader.registries)
    assert caught.value.problems == ["sub/c.yaml:2: seeds: unknown key; did you mean 'seed'?"]


@pytest.mark.parametrize(
    ("base", "settings", "expected"),
    [
        (
            "adversary: {name: pgd, steps: 7, clip: false}",
            ["adversary.steps=9"],
            ("pgd", {"steps": 9, "clip": False}),
        ),
        ("adversary: {name: pgd, steps: 7}", ["adversary=fgsm"], ("fgsm", {})),
        ("adversary: {name: pgd, steps: 7}", ["adversary.name=fgsm"], ("fgsm", {})),
        ("adversary: {name: pgd, steps: 7}", ["adversary=pgd"], ("pgd", {"steps": 7})),
        (
            "adversary: {name: pgd, steps: 7}",
            ["adversary={name: fgsm, step_size: 1/255}"],
            ("fgsm", {"step_size": "1/255"}),
        ),
        ("adversary: fgsm", ["adversary.step_size=0.1"], ("fgsm", {"step_size": 0.1})),
        ("adversary: fgsm", ["adversary=pgd", "adversary.steps=3"], ("pgd", {"steps": 3})),
        ("adversary: fgsm", ["adversary.steps=3", "adversary=pgd"], ("pgd", {"steps": 3})),
        ("adversary: {name: pgd}", [], ("pgd", {})),
        ("adversary: {clip: false}", [], ("pgd", {"steps": 10, "clip": False})),
        ("seed: 1", ["adversary.clip=false"], ("pgd", {"steps": 10, "clip": False})),
        ("seed: 1", ["adversary=pgd"], ("pgd", {})),
    ],
)
def test_specs_merge_by_name(
    loader: Any, base: str, settings: list[str], expected: tuple[str, dict[str, Any]]
) -> None:
    spec = loader(base, *settings).config.adversary
    assert (spec.name, spec.params) == expected


def test_a_new_model_inherits_nothing_of_the_old_one(loader: Any) -> None:
    config = loader(
        "model: {name: small_cnn, widths: [4], weights: w.npz, normalize: imagenet}", "model.name=mlp"
    ).config
    assert (config.model.name, config.model.params, config.model.weights, config.model.normalize) == (
        "mlp",
        {},
        None,
        None,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["attacks.0.steps=40"], [("pgd", {"steps": 40}), ("fgsm", {})]),
        (["attacks.1=pgd", "attacks.1.steps=2"], [("pgd", {"steps": 20}), ("pgd", {"steps": 2})]),
        (["attacks.2.name=pgd"], [("pgd", {"steps": 20}), ("fgsm", {}), ("pgd", {})]),
        (["attacks=[fgsm]"], [("fgsm", {})]),
        (
            ["attacks=[fgsm, {name: pgd, steps: 3}]", "attacks.1.steps=4"],
            [("fgsm", {}), ("pgd", {"steps": 4})],
        ),
    ],
)
def test_list_elements(loader: Any, settings: list[str], expected: Any) -> None:
    found = loader("attacks: [{name: pgd, steps: 20}, fgsm]", *settings).config.attacks
    assert [(spec.name, spec.params) for spec in found] == expected


def test_list_elements_that_are_not_there(loader: Any) -> None:
    assert loader.problems("seed: 1", "attacks.5=pgd") == [
        "command line: attacks.5: no such element; the list has 1 element, counted from 0"
    ]
    for key in ("attacks.-1", "attacks.x", "attacks.99999999999999999999", "attacks.\u00b2"):
        assert loader.problems("seed: 1", f"{key}=pgd"), key


@pytest.mark.parametrize(
    ("base", "settings", "expected"),
    [
        ("train: {epochs: 5}", ["train.minutes=2"], (None, None, 2.0)),
        ("train: {steps: 5}", ["train.epochs=2"], (2.0, None, None)),
        ("train: {steps: 5}", [], (None, 5, None)),
        ("train: {steps: 5}", ["train.steps=null"], (10.0, None, None)),
        ("train: {steps: 5}", ["train.steps=6"], (None, 6, None)),
        ("train: {steps: 5}", ["train.batch_size=6"], (None, 5, None)),
        ("train: {steps: 5}", ["train.epochs=null", "train.minutes=1"], (None, None, 1.0)),
    ],
)
def test_a_length_from_above_replaces_one_from_below(
    loader: Any, base: str, settings: list[str], expected: Any
) -> None:
    train = loader(base, *settings).config.train
    assert (train.epochs, train.steps, train.minutes) == expected


def test_two_lengths_on_one_layer_are_an_error(loader: Any) -> None:
    problem = (
        "command line: train.minutes: at most one of epochs, steps, minutes can be set, and epochs is; "
        "set the other to null"
    )
    assert loader.problems("seed: 1", "train.epochs=1", "train.minutes=1") == [problem]


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("out=2024", "out", "2024"), ("out=null", "out", None), ("out=a=b", "out", "a=b"),
        ("out=a #b", "out", "a #b"), ("out=*a", "out", "*a"), ("out=", "out", None), ("out= x ", "out", "x"),
        ('out="a b"', "out", "a b"), ("out='010'", "out", "010"), ("name=1e3", "name", "1e3"),
        ("name=true", "name", "true"), ("data.name=folder:C:/x y", "data.name", "folder:C:/x y"),
        ("data.augment={crop: 2}", "data.augment.crop", 2),
        ("data.augment.flip=true", "data.augment.flip", True),
        ("eval.fail_under.robust_acc=0.45", "eval.fail_under", {"robust_acc": 0.45}),
        ("eval.fail_under={clean_acc: .9}", "eval.fail_under", {"clean_acc": 0.9}),
        ("eval.target=3", "eval.target", 3), ("ball.eps=8/255", "ball.eps", 8 / 255),
        ("ball.eps=~", "ball.eps", None), ("model.weights=7", "model.weights", "7"),
    ],
)  # fmt: skip
def test_values_of_assignments(loader: Any, setting: str, path: str, value: Any) -> None:
    for found in (
        loader("seed: 1", setting).config,
        loader(
            None,
            environ={
                "ROBUSTCLI_" + setting.partition("=")[0].upper().replace(".", "__"): setting.partition("=")[2]
            },
        ).config,
    ):
        for part in path.split("."):
            found = getattr(found, part)
        assert found == value


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("ball.epz=1", "command line: ball.epz: unknown key; did you mean 'eps'?"),
        (
            "ball.eps.x=1",
            "command line: ball.eps: expected a number such as 8/255, 0.03 or 1e-3, got a mapping",
        ),
        ("seed=[1", "command line: seed: not YAML:"),
        ("seed={a: 1, a: 2}", "command line: seed.a: duplicate key"),
        ("attacks=[*x]", "command line: attacks: alias '*x' has no anchor"),
        ("extends=x.yaml", "command line: extends: unknown key"),
        ("data.download=no", "command line: data.download: expected true or false, got 'no'; write false"),
        ("seed='1' '2'", "command line: seed: not YAML:"),
        ("name=a\nb", "command line: name: control character"),
        ("name=a\udcc4", "command line: name: text that is not UTF-8"),
    ],
)
def test_wrong_assignments(loader: Any, setting: str, problem: str) -> None:
    problems = loader.problems("seed: 1", setting)
    assert any(found.startswith(problem) for found in problems), problems


@pytest.mark.parametrize("text", ["seed", "", "=3", ".a=3", "a.=3", "a..b=3", "a b=3", "a\n=3"])
def test_what_is_no_assignment(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignment(text, "--set")
    assert caught.value.exit_code == 2 and caught.value.problems[0].startswith("--set: ")


def test_assignment_parts() -> None:
    assert parse_assignment("a.b=c=d", "--set") == Override("a.b", "c=d", "--set")
    assert parse_assignment(" attacks.0.steps =40", "command line") == Override(
        "attacks.0.steps", "40", "command line"
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ROBUSTCLI_SEDE", "environment ROBUSTCLI_SEDE: no such setting; did you mean 'ROBUSTCLI_SEED'?"),
        (
            "ROBUSTCLI_BALL__EPZ",
            "environment ROBUSTCLI_BALL__EPZ: ball.epz: unknown key; did you mean 'eps'?",
        ),
        (
            "ROBUSTCLI_BAL__EPS",
            "environment ROBUSTCLI_BAL__EPS: no such setting; did you mean 'ROBUSTCLI_BALL__EPS'?",
        ),
        ("ROBUSTCLI_", "environment ROBUSTCLI_: no such setting"),
        ("ROBUSTCLI___", "environment ROBUSTCLI___: no such setting"),
        ("ROBUSTCLI_BALL__", "environment ROBUSTCLI_BALL__: no such setting"),
        ("ROBUSTCLI_ATTACKS__9", "environment ROBUSTCLI_ATTACKS__9: attacks.9: no such element"),
        (
            "ROBUSTCLI_ADVERSARY__STPES",
            "environment ROBUSTCLI_ADVERSARY__STPES: adversary.stpes: "
            "no such parameter of attack 'pgd'; did you mean 'steps'?",
        ),
    ],
)
def test_wrong_environment(loader: Any, name: str, problem: str) -> None:
    assert [found for found in loader.problems(None, environ={name: "1"}) if found.startswith(problem)]


def test_environment_leaves_others_alone(loader: Any) -> None:
    environ = {f"ROBUSTCLI_{name}": "x" for name in RESERVED_ENVIRONMENT} | {
        "SEED": "3",
        "robustcli_seed": "3",
        "_ROBUSTCLI_COMPLETE": "x",
        "XROBUSTCLI_SEED": "3",
    }
    assert "DEBUG" in RESERVED_ENVIRONMENT and loader(None, environ=environ).config.seed == 0
    assert loader(None, environ={"ROBUSTCLI_ATTACKS__0__STEPS": "7"}).config.attacks[0].params == {"steps": 7}


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, registries: Any) -> None:
    monkeypatch.setenv("ROBUSTCLI_SEED", "31")
    assert load_config(None, registries=registries).config.seed == 31
    assert load_config(None, environ={}, registries=registries).config.seed == 0


def test_extends_chain(loader: Any) -> None:
    loader.write(
        "seed: 1\nball: {norm: l2, eps: 0.5}\nattacks: [pgd, fgsm]\n"
        "adversary: {name: pgd, steps: 3, clip: false}\n",
        "lib/a.yaml",
    )
    loader.write("extends: a.yaml\nthreads: 2\nball: {eps: 0.25}\nadversary: {steps: 4}\n", "lib/b.yaml")
    loaded = loader("extends: lib/b.yaml\nattacks: [pgd]\n")
    config = loaded.config
    assert (config.seed, config.threads, config.ball.norm, config.ball.eps) == (1, 2, "l2", 0.25)
    assert config.adversary.params == {"steps": 4, "clip": False} and len(config.attacks) == 1
    assert loaded.origins["seed"].endswith("lib/a.yaml:1") and loaded.origins["adversary.steps"].endswith(
        "lib/b.yaml:4"
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("c.yaml", "extends this file in a circle"), ("./sub/../c.yaml", "extends this file in a circle"),
        ("gone.yaml", "No such file"), ("/etc/passwd", "expected a .yaml file relative"),
        ("/x.yaml", "expected a .yaml file relative"),
        ("../../../etc/passwd", "expected a .yaml file relative"), ("[a.yaml]", "got a list"), ("3", "got 3"),
        ("sub", "expected a .yaml file"), ("sub.yaml", "a directory"), ("loop.yaml", "symbolic links"),
        ('"a\\0.yaml"', "expected a .yaml file"), ("null", ""),
    ],
)  # fmt: skip
def test_wrong_extends(loader: Any, value: str, problem: str) -> None:
    (loader.folder / "sub").mkdir()
    (loader.folder / "sub.yaml").mkdir()
    (loader.folder / "loop.yaml").symlink_to("loop.yaml")
    text = f"seed: 1\nextends: {value}\n"
    if not problem:
        assert loader(text).config.seed == 1
        return
    problems = loader.problems(text)
    assert len(problems) == 1 and problems[0].startswith("c.yaml:2: extends: ") and problem in problems[0], (
        problems
    )


def test_extends_circle_over_two_files_and_depth(loader: Any) -> None:
    loader.write("extends: c.yaml\n", "b.yaml")
    assert "in a circle" in loader.problems("extends: b.yaml\n")[0] and loader.problems("extends: b.yaml\n")[
        0
    ].startswith("b.yaml:1: extends:")
    for k in range(12):
        loader.write(f"extends: d{k + 1}.yaml\n" if k < 11 else "seed: 1\n", f"d{k}.yaml")
    assert "more than 8 files" in loader.problems("extends: d0.yaml\n")[0]
    assert loader("extends: d5.yaml\n").config.seed == 1


def test_mistakes_of_both_files_and_a_broken_base(loader: Any) -> None:
    loader.write("seed: x\n", "base.yaml")
    assert {p.partition(": ")[0] for p in loader.problems("extends: base.yaml\nthreads: y\n")} == {
        "base.yaml:1",
        "c.yaml:2",
    }
    loader.write("seed: [\n", "base.yaml")
    problems = loader.problems("extends: base.yaml\nadversary.x: 3\n", "adversary.beta=3")
    assert len(problems) == 1 and problems[0].startswith("base.yaml:2: not YAML")


def test_code_is_named_on_the_command_line_only(loader: Any) -> None:
    assert loader("seed: 1", "model.name=net.py:make").config.model.name == "net.py:make"
    refused = "a config never names code"
    assert (
        refused in loader.problems("model: net.py:make")[0]
        and refused in loader.problems("model: {name: net.py}")[0]
    )
    assert refused in loader.problems(None, environ={"ROBUSTCLI_MODEL": "net.py:make"})[0]
    loader.write("model: net.py:make\n", "base.yaml")
    assert refused in loader.problems("extends: base.yaml\nseed: 1\n")[0]

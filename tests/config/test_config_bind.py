"""A spec bound to a function by the function's own signature."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from pydantic import AfterValidator, Field

from robustcli.config.bind import Registries, bind_spec
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.config.spec import Spec
from robustcli.errors import ConfigError
from robustcli.facts import NoFacts
from robustcli.registry import Registry


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"must be even, got {value}")
    return value


@pytest.fixture
def things() -> Registry[Any, Any]:
    registry: Registry[Any, Any] = Registry("thing", "", NoFacts)

    @registry.register("t")
    def thing(
        x: Any,
        y: Any = None,
        *,
        number: float = 1.0,
        maybe: float | None = None,
        count: Annotated[int, Field(ge=1)] = 1,
        even: Annotated[int, AfterValidator(_even)] = 2,
        flag: bool = False,
        word: str = "w",
        choice: Literal["a", "b"] | float = "a",
        pair: tuple[float, float] = (0.0, 1.0),
        many: Sequence[int] = (),
        either: Union[int, str, None] = None,  # noqa: UP007
        old: Optional[list[bool]] = None,  # noqa: UP045
        table: dict[str, float | None] = {},  # noqa: B006
        free: Any = None,
        bare: list = [],  # type: ignore[type-arg]  # noqa: B006
    ) -> None:
        """A thing."""

    @registry.register("needs")
    def needs(x: Any, *, a: int, b: int = 2) -> None:
        """Needs a."""

    return registry


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("number", "2/255", 2 / 255), ("number", 3, 3.0), ("number", "1e-3", 1e-3), ("maybe", "1/2", 0.5),
        ("maybe", None, None), ("count", "3", 3), ("even", 4, 4), ("flag", True, True), ("word", "no", "no"),
        ("choice", "b", "b"), ("choice", "1/4", 0.25), ("pair", ["1/255", 2], (1 / 255, 2.0)),
        ("many", [1, "2"], [1, 2]), ("either", 3, 3), ("either", "x", "x"), ("either", None, None),
        ("old", [True], [True]), ("old", None, None),
        ("table", {"a": "1/2", "b": None}, {"a": 0.5, "b": None}), ("free", {"x": [1]}, {"x": [1]}),
        ("bare", [1, "a"], [1, "a"]),
    ],
)  # fmt: skip
def test_coercion(things: Any, key: str, raw: Any, value: Any) -> None:
    bound = bind_spec(things, Spec.of("t", **{key: raw}), "x")
    assert (
        bound.params == {key: value}
        and type(bound.params[key]) is type(value)
        and bound.name == "t"
        and bound.fn is things.get("t").fn
    )


@pytest.mark.parametrize(
    ("key", "raw", "why"),
    [
        ("number", True, "expected a number"), ("number", "nan", "finite"), ("number", None, "got nothing"),
        ("maybe", "x", "expected a number"), ("count", 0, "must be >= 1, got 0"),
        ("count", 1.0, "whole number, got 1.0; write 1"), ("count", True, "whole number"),
        ("even", 3, "must be even"), ("flag", "no", "write false"), ("flag", 1, "write true"),
        ("word", 3, "in quotes"), ("choice", "c", "expected"), ("pair", [1], "missing"),
        ("pair", [1, 2, 3], "at most 2"), ("pair", 1, "a list"), ("many", ["x"], "whole"),
        ("either", 1.5, "whole number"), ("old", ["no"], "write false"),
        ("table", {"a": "x"}, "expected a number"), ("table", [1], "a mapping"), ("bare", 3, "a list"),
    ],
)  # fmt: skip
def test_wrong_values(things: Any, key: str, raw: Any, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_spec(things, Spec.of("t", **{key: raw}), "a.b")
    assert (
        len(caught.value.problems) == 1
        and caught.value.problems[0].startswith(f"a.b.{key}: ")
        and why in caught.value.problems[0]
    ), caught.value.problems


def test_every_mistake_of_a_spec_at_once(things: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        bind_spec(things, Spec.of("t", nmuber=1, count=0, flag="on", x=3), "attacks.0")
    assert caught.value.problems == [
        "attacks.0.nmuber: no such parameter of thing 't'; did you mean 'number'?",
        "attacks.0.count: must be >= 1, got 0",
        "attacks.0.flag: expected true or false, got 'on'; write true",
        caught.value.problems[3],
    ]
    assert caught.value.problems[3].startswith(
        "attacks.0.x: no such parameter of thing 't'; it has: number, maybe"
    ), "positional arguments belong to the caller"


def test_required_and_unknown(things: Any) -> None:
    assert bind_spec(things, Spec.of("needs", a=1), "x").params == {"a": 1}
    for spec, problem in (
        (Spec.of("needs"), "x.a: missing; thing 'needs' needs it"),
        (Spec.of("need"), "x.name: unknown thing 'need'; did you mean 'needs'? known: needs, t"),
    ):
        with pytest.raises(ConfigError) as caught:
            bind_spec(things, spec, "x")
        assert (
            caught.value.problems == [problem]
            and caught.value.what == problem
            and caught.value.exit_code == 2
        )


def test_without_binding_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from robustcli.config.load import load_config; "
        "load_config('smoke/digits', environ={}, bind=False); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert not {"torch", "torchvision", "scipy", "sklearn", "matplotlib", "numpy"} & set(done.stdout.split())


def test_the_real_registries_have_the_documented_names() -> None:
    real = Registries.discover()
    assert {"fgsm", "pgd"} <= set(real.attacks.names()) and {"natural", "madry", "mixed"} <= set(
        real.objectives.names()
    )
    assert {"small_cnn", "mlp", "resnet18", "preact_resnet18", "wide_resnet"} <= set(
        real.models.names()
    ) and {"sgd", "adamw"} <= set(real.optimizers.names())
    assert {"constant", "cyclic", "one_cycle", "step", "cosine"} <= set(real.schedules.names()) and {
        "digits",
        "fake",
        "folder",
        "npz",
    } <= set(real.datasets.names())
    assert bind_spec(real.attacks, Spec.of("pgd", steps=3, step_size="2/255"), "adversary").params == {
        "steps": 3,
        "step_size": 2 / 255,
    }


@pytest.mark.parametrize("kind", ["attacks", "objectives", "models", "optimizers", "schedules"])
def test_every_default_of_the_real_registries_passes_its_own_check(kind: str) -> None:
    """A default that its own annotation refuses could never be written into a config."""
    from inspect import Parameter

    from robustcli.registry import parameters

    registry = getattr(Registries.discover(), kind)
    checked = 0
    for entry in registry:
        defaults = {
            key: list(p.default) if isinstance(p.default, tuple) else p.default
            for key, p in parameters(entry.fn).items()
            if p.default is not Parameter.empty
        }
        required = {key for key, p in parameters(entry.fn).items() if p.default is Parameter.empty}
        if not required:
            bind_spec(registry, Spec.of(entry.name, **defaults), kind)
            checked += 1
    assert checked


@pytest.fixture(scope="module")
def real() -> Registries:
    return Registries.discover()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("attacks=[{name: pgd, steps: 0}]", "attacks.0.steps: must be >= 1, got 0"),
        ("attacks=[{name: pgd, step_size: 0}]", "attacks.0.step_size: must be > 0, got 0"),
        ("attacks=[{name: pgd, step_size: -1/255}]", "attacks.0.step_size: must be > 0, got '-1/255'"),
        ("attacks=[{name: pgd, restarts: 0}]", "attacks.0.restarts: must be >= 1, got 0"),
        ("adversary.start_scale=0", "adversary.start_scale: must be > 0, got 0"),
        ("train.val_attack.steps=-2", "train.val_attack.steps: must be >= 1, got -2"),
        ("train.optimizer.lr=-1", "train.optimizer.lr: must be > 0, got -1"),
        ("train.optimizer.lr=0", "train.optimizer.lr: must be > 0, got 0"),
        ("train.optimizer.momentum=1", "train.optimizer.momentum: must be < 1, got 1"),
        ("train.optimizer.weight_decay=-1e-9", "train.optimizer.weight_decay: must be >= 0, got -1e-09"),
        ("train.optimizer={name: adamw, beta2: -0.1}", "train.optimizer.beta2: must be >= 0, got -0.1"),
        ("train.schedule={name: step, milestones: [0.5, 1]}",
         "train.schedule.milestones: must be < 1, got 1"),
        ("train.schedule={name: step, gamma: 0}", "train.schedule.gamma: must be > 0, got 0"),
        ("train.schedule={name: cyclic, peak: 1}", "train.schedule.peak: must be < 1, got 1"),
        ("train.schedule={name: one_cycle, end: 2}", "train.schedule.end: must be <= 1, got 2"),
        ("train.schedule={name: cosine, warmup: -1}", "train.schedule.warmup: must be >= 0, got -1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_die_at_load(
    real: Registries, tmp_path: Path, setting: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [parse_assignment(setting, "command line")], environ={}, registries=real)
    assert caught.value.problems == [f"command line: {problem}"] and (
        caught.value.exit_code,
        caught.value.code,
    ) == (2, "E-CONFIG")
    key, _, value = setting.partition("=")
    file = tmp_path / "c.yaml"
    lines = [f"{'  ' * depth}{part}:" for depth, part in enumerate(key.split("."))]
    file.write_text("\n".join(lines) + f" {value}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ={}, registries=real)
    assert caught.value.problems == [f"{file}:{len(lines)}: {problem}"]


def test_the_ends_of_the_ranges_are_allowed(real: Registries) -> None:
    bind_spec(real.attacks, Spec.of("pgd", steps=1, restarts=1, step_size="1/1000000000"), "x")
    bind_spec(real.optimizers, Spec.of("sgd", momentum=0, weight_decay=0), "x")
    bind_spec(real.schedules, Spec.of("one_cycle", warmup=0, start=1, end=0), "x")


def test_attacks_of_torchattacks_load_without_the_package(
    real: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    setting = parse_assignment(
        "attacks=[{name: 'torchattacks:PGD', alpha: 2/255}, 'torchattacks:XYZ']", "command line"
    )
    loaded = load_config(None, [setting], environ={}, registries=real)
    assert [spec.name for spec in loaded.config.attacks] == [
        "torchattacks:PGD",
        "torchattacks:XYZ",
    ] and loaded.config.attacks[0].params == {"alpha": "2/255"}


@pytest.mark.parametrize("path", ["adversary", "train.val_attack"])
def test_nothing_is_trained_against_torchattacks(real: Registries, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            None,
            [parse_assignment(f"{path}={{name: 'torchattacks:PGD'}}", "command line")],
            environ={},
            registries=real,
        )
    assert caught.value.problems == [
        f"command line: {path}.name: torchattacks:PGD only measures; write it into `attacks`"
    ]
    with pytest.raises(ConfigError, match="evaluation.outside makes the call"):
        bind_spec(real.attacks, Spec.of("torchattacks:PGD"), "attacks.0")
    with pytest.raises(ConfigError, match="unknown model"):
        bind_spec(real.models, Spec.of("torchattacks:PGD"), "attacks.0")

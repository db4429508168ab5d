"""Small registries that need no torch, a writer of config files, and the generator of fuzzed configs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from robustcli.config.bind import Registries
from robustcli.config.load import Loaded, load_config
from robustcli.config.overlay import Override, parse_assignment
from robustcli.errors import ConfigError
from robustcli.registry import Registry

_Registry = Registry[Any, Any]


def _stated(**facts: Any) -> SimpleNamespace:
    """Any facts, and those that a config asks for."""
    return SimpleNamespace(**{"norms": None, "path": False, **facts})


def _attacks() -> _Registry:
    attacks: _Registry = Registry("attack", "", _stated)

    @attacks.register("pgd", norms=("linf", "l2", "l1", "l0"))
    def pgd(
        oracle: Any,
        *,
        steps: Annotated[int, Field(ge=1)] = 10,
        step_size: float | None = None,
        start: Literal["uniform", "gaussian", "zero"] = "uniform",
        clip: bool = True,
        restarts: int = 1,
        loss: Literal["ce", "margin"] | None = None,
    ) -> None:
        """PGD."""

    @attacks.register("fgsm", norms=("linf", "l2", "l1", "l0"))
    def fgsm(oracle: Any, *, step_size: float | None = None) -> None:
        """FGSM."""

    attacks.register("corner", norms=("linf",))(_nothing)

    return attacks


def _models() -> _Registry:
    models: _Registry = Registry("model", "", _stated)
    models.register("small_cnn")(_small_cnn)
    models.register("wide_resnet")(_wide_resnet)
    for name in ("mlp", "resnet18", "preact_resnet18"):
        models.register(name)(_nothing)
    return models


def _small_cnn(
    info: Any,
    *,
    widths: tuple[int, ...] = (8, 16),
    dropout: float = 0.0,
    label: str = "",
    options: dict[str, float | bool] | None = None,
) -> None:
    """Parameters of every kind."""


def _wide_resnet(info: Any, *, depth: int, width: int = 10) -> None:
    """A required parameter."""


def _bits(*, bits: int = 4) -> None:
    """Fewer grey levels."""


def _sgd(
    model: Any, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4, nesterov: bool = False
) -> None:
    """SGD."""


def _adamw(
    model: Any, *, lr: float = 1e-3, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)
) -> None:
    """AdamW."""


def _nothing(first: Any) -> None:
    """No parameters."""


def _filled(kind: str, *functions: tuple[str, Callable[..., Any]], **facts: Any) -> _Registry:
    registry: _Registry = Registry(kind, "", _stated)
    for name, fn in functions:
        registry.register(name, path=name in ("folder", "npz"), **facts)(fn)
    return registry


@pytest.fixture(scope="session")
def registries() -> Registries:
    """The names and parameters the shipped configs use, without torch."""
    return Registries(
        attacks=_attacks(),
        objectives=_filled("objective", *((name, _nothing) for name in ("natural", "madry", "mixed"))),
        models=_models(),
        optimizers=_filled("optimizer", ("sgd", _sgd), ("adamw", _adamw)),
        schedules=_filled(
            "schedule", *((name, _nothing) for name in ("constant", "cyclic", "one_cycle", "step", "cosine"))
        ),
        regularizers=_filled("regularizer", ("gradalign", _nothing), ("nuclear", _nothing)),
        steps=_filled("training step", ("minmax", _nothing), ("free", _nothing)),
        hooks=_filled("training hook", *((name, _nothing) for name in ("awp", "ema", "swa"))),
        trackers=_filled("tracker", ("tensorboard", _nothing)),
        defences=_filled("defence", ("energy", _nothing), ("bit_depth", _bits)),
        datasets=_filled(
            "data set", *((name, _nothing) for name in ("digits", "fake", "mnist", "folder", "npz"))
        ),
    )


class Loader:
    """loader(text, "a.b=c", …) -> Loaded; loader.problems(…) -> the problems with the directory cut off."""

    def __init__(self, folder: Path, registries: Registries) -> None:
        self.folder, self.registries = folder, registries

    def write(self, text: str | bytes, name: str = "c.yaml") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def __call__(self, text: str | bytes | None, *settings: str, **options: Any) -> Loaded:
        path = None if text is None else self.write(text)
        overrides: list[Override] = [parse_assignment(setting, "command line") for setting in settings]
        return load_config(path, overrides, **{"environ": {}, "registries": self.registries, **options})

    def problems(self, text: str | bytes | None, *settings: str, **options: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self(text, *settings, **options)
        assert caught.value.exit_code == 2
        assert caught.value.what == caught.value.problems[0]
        return [problem.replace(f"{self.folder}/", "") for problem in caught.value.problems]


@pytest.fixture
def loader(tmp_path: Path, registries: Registries) -> Loader:
    return Loader(tmp_path, registries)


def _helper(name: str) -> ModuleType:
    """A module beside this file; test folders are not packages."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fuzzed_configs() -> Callable[[int, int], Iterator[tuple[str, bytes]]]:
    """fuzzed_configs(count, seed) yields (how it was made, bytes)."""
    generate: Callable[[int, int], Iterator[tuple[str, bytes]]] = _helper("config_fuzz").fuzzed_configs
    return generate


@pytest.fixture(scope="session")
def config_strategies() -> ModuleType:
    """Hypothesis strategies derived from the schema."""
    return _helper("config_strategies")

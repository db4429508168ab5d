"""A user's factory: found, called with what it takes, its faults told as file:line."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli.errors import ConfigError, PolicyError, UsageError
from robustcli.models.build import build_model
from robustcli.models.factory import build_plugin
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel
from robustcli.models.plugin import is_plugin, split_plugin
from robustcli.models.source import load_model
from robustcli.registry import models

GOOD = """
import random
import torch
from torch import nn
from neighbour_file import WIDTH

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))

def counted(num_classes, width=WIDTH, *, bias: bool = True):
    random.random(), torch.rand(3)
    layers = nn.Linear(3 * 8 * 8, width), nn.ReLU(), nn.Linear(width, num_classes, bias=bias)
    return nn.Sequential(nn.Flatten(), *layers)

def number():
    return 7

def needs(depth):
    return plain()

def fails():
    x = 1
    return x / 0

class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.fc = nn.Linear(192, num_classes)
    def forward(self, x):
        return self.fc(x.flatten(1))

built = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
detector = lambda: nn.Flatten()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_file.py").write_text("WIDTH = 5\n")
    path = tmp_path / "my nets.py"
    path.write_text(GOOD)
    yield path
    sys.modules.pop("neighbour_file", None)


def test_names() -> None:
    assert is_plugin("a/b.py:f") and is_plugin("b.py") and is_plugin("C:\\x\\b.py:f")
    assert not any(
        map(
            is_plugin,
            ["resnet18", "run:x", "torchvision:resnet18", "a.pyc:f", "a.py:f:g", "a.npz", "a.py:f g"],
        )
    )
    assert split_plugin("C:\\x\\b.py:f") == (Path("C:\\x\\b.py"), "f") and split_plugin("b.py")[1] == ""
    with pytest.raises(UsageError):
        split_plugin("resnet18")


@pytest.mark.parametrize("factory", ["plain", "Net", "built"])
def test_factories_of_every_kind(file: Path, factory: str) -> None:
    model = load_model(f"{file}:{factory}")
    assert isinstance(model, nn.Module) and not model.training
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_num_classes_and_parameters_reach_the_factory(file: Path) -> None:
    model = load_model(f"{file}:counted", num_classes=4, params={"width": 6, "bias": False})
    assert isinstance(model, nn.Sequential) and model[1].out_features == 6 and model[3].bias is None
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_no_bytecode_no_path_left_and_no_generator_moved(file: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), list(sys.path), sys.dont_write_bytecode
    first, second = (load_model(f"{file}:counted", num_classes=4) for _ in range(2))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1:] == (
        random.getstate(),
        sys.path,
        sys.dont_write_bytecode,
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not (file.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (":plane", "no factory 'plane'; did you mean 'plain'"),
        ("", "which factory.*it defines: plain, counted"),
        (":number", "returned int, not an nn.Module"),
        (":needs", "needs depth"),
        (":counted", "needs num_classes"),
        (":WIDTH", "no factory"),
        (":fails", r"ZeroDivisionError.*my nets.py:23"),
    ],
)
def test_faults_are_one_line(file: Path, spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_model(f"{file}{spec}")
    assert caught.value.code == "E-PLUGIN" and "\n" not in caught.value.line()


def test_unknown_parameter_names_the_nearest(file: Path) -> None:
    with pytest.raises(UsageError, match="takes no parameter 'widht'; did you mean 'width'"):
        load_model(f"{file}:counted", num_classes=3, params={"widht": 3})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (\n", r"SyntaxError.*bad.py:1"),
        ("a = 1\nimport no_such_module_at_all\n", r"ModuleNotFoundError.*bad.py:2"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3.*bad.py:2"),
        ("def f():\n    raise ValueError('first\\nsecond')\nf()\n", r"ValueError: first; .*bad.py:2"),
    ],
)
def test_a_file_that_fails_is_told_by_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_model(f"{tmp_path / 'bad.py'}:f")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such plugin file"):
        load_model(f"{tmp_path / 'none.py'}:f")


def test_a_name_read_from_a_file_never_runs_code(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(PolicyError):
        build_model(f"{tmp_path / 'evil.py'}:f", {}, ModelInfo(2, 1, 8, (0.5,), (0.5,)), seed=0)
    assert not (tmp_path / "ran").exists()


def test_a_factory_can_be_trained(file: Path, info: ModelInfo) -> None:
    model = build_plugin(f"{file}:counted", {"width": 6}, info, seed=3)
    again = build_plugin(f"{file}:counted", {"width": 6}, info, seed=3)
    assert model.arch == "plugin:counted" and model.params == {"width": 6} and model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x), model.backbone(x))  # it takes pixels, unless told otherwise
    told = build_plugin(f"{file}:counted", {"width": 6}, info, seed=3, normalize="imagenet")
    assert not torch.equal(told(x), model(x))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("detector", r"not a classifier of 3 classes.*\[B, 192\]"),
        ("plain", "cannot take 3 images of 3x16x16"),
    ],
)
def test_a_net_that_does_not_fit_the_data_dies_at_the_start(file: Path, factory: str, words: str) -> None:
    size = 16 if factory == "plain" else 8
    with pytest.raises(ConfigError, match=words):
        build_plugin(f"{file}:{factory}", {}, ModelInfo(3, 3, size, (0.5,) * 3, (0.5,) * 3), seed=0)


def test_a_file_may_register_models(tmp_path: Path, info: ModelInfo) -> None:
    path = tmp_path / "more.py"
    path.write_text(
        "from torch import nn\nfrom robustcli.registry import models\n\n"
        '@models.register("linear_of_a_test")\ndef linear(info, *, bias: bool = True):\n'
        "    layer = nn.Linear(info.inputs * info.size**2, info.num_classes, bias=bias)\n"
        "    return nn.Sequential(nn.Flatten(), layer)\n"
    )
    try:
        for _ in range(2):  # a second run replaces the first
            model = load_model(
                "linear_of_a_test",
                params={"bias": False},
                plugin=str(path),
                num_classes=info.num_classes,
                channels=info.channels,
                size=info.size,
            )
        assert isinstance(model, NormalisedModel)
        assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3) and model.params == {"bias": False}
    finally:
        models._entries.pop("linear_of_a_test", None)

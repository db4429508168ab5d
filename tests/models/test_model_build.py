"""build_model: parameters, names, normalisation, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from robustcli.errors import ConfigError, DataError, PolicyError, ResourceError
from robustcli.models.build import build_model
from robustcli.models.info import ModelInfo
from robustcli.models.normalised import NormalisedModel, parse_normalize
from robustcli.models.size import check_classes, fingerprint


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("wide_resnet", {"depth": 17}, "depth 17 is not 6 n . 4; the nearest are 16 and 22"),
        ("wide_resnet", {"depth": 4}, "nearest are 10 and 16"),
        ("wide_resnet", {"depth": True}, "model.depth"),
        ("wide_resnet", {"depth": 16.5}, "model.depth"),
        ("wide_resnet", {"width": 0}, "model.width"),
        ("wide_resnet", {"dropout": 1.0}, "model.dropout"),
        ("wide_resnet", {"dropout": float("nan")}, "model.dropout"),
        ("wide_resnet", {"activation": "mish"}, "model.activation"),
        ("resnet18", {"stem": "cifra"}, "model.stem"),
        ("resnet18", {"width": 10**30}, "model.width"),
        ("small_cnn", {"widths": []}, "at least one block"),
        ("small_cnn", {"widths": [4, -1]}, "model.widths"),
        ("small_cnn", {"widths": 7}, "model.widths"),
        ("small_cnn", {"widths": [4, 4], "strides": [1]}, "1 strides for 2 widths"),
        ("small_cnn", {"widths": [4, "x"]}, "model.widths"),
        ("mlp", {"hidden": [0]}, "model.hidden"),
        ("xcit", {"dim": 20}, "20 is no multiple of 8"),
        ("xcit", {"convs": 3}, "patch: 16 needs more than 3"),
        ("convnext", {}, "4 stages need images of 32 pixels, and these have 8"),
        ("convnext", {"dims": [8], "depths": [1, 1]}, "2 depths for 1 dims"),
        ("convnext", {"dims": [7], "depths": [1], "stem": "convstem"}, "half of 7 channels"),
        ("resnet19", {}, "unknown model 'resnet19'; did you mean 'resnet18'"),
        ("", {}, "unknown model"),
    ],
)
def test_bad_parameters_are_one_line(info: ModelInfo, name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build_model(name, params, info, seed=0)
    assert "\n" not in caught.value.line() and caught.value.exit_code == 2


def test_all_faults_in_one_pass(info: ModelInfo) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model("wide_resnet", {"depth": 17, "widht": 2, "dropout": 3}, info, seed=0)
    assert len(caught.value.problems) == 3 and any("did you mean 'width'" in p for p in caught.value.problems)


def test_defaults_are_part_of_the_parameters(info: ModelInfo) -> None:
    model = build_model("small_cnn", {"widths": [4]}, info, seed=0)
    assert model.params == {"widths": (4,), "strides": (), "activation": "relu"}
    assert (model.arch, model.info, model.training) == ("small_cnn", info, True)


def test_python_code_is_never_a_model_name(info: ModelInfo) -> None:
    with pytest.raises(PolicyError) as caught:
        build_model("evil.py:factory", {}, info, seed=0)
    assert caught.value.exit_code == 9


def test_more_memory_than_the_machine_has_is_refused_before_it_is_taken(info: ModelInfo) -> None:
    with pytest.raises(ResourceError, match="GB") as caught:
        build_model("wide_resnet", {"depth": 1000, "width": 4096}, info, seed=0)
    assert caught.value.exit_code == 6


def test_a_failed_allocation_is_a_resource_error(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    import robustcli.models.architectures.small_cnn as module

    def fail(net: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(module, "kaiming", fail)
    monkeypatch.setattr("robustcli.models.build._check_memory", lambda name, net: None)
    with pytest.raises(ResourceError):
        build_model("small_cnn", {"widths": [4]}, info, seed=0, meta=True)


def test_normalisation_is_inside(info: ModelInfo) -> None:
    model = build_model("small_cnn", {"widths": [4]}, info, seed=0).eval()
    x = torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor(info.mean).view(1, 3, 1, 1), torch.tensor(info.std).view(1, 3, 1, 1)
    assert torch.equal(model(x), model.backbone((x - mean) / std))
    other = build_model("small_cnn", {"widths": [4]}, info, seed=0, normalize="0.1,0.1,0.1,1,1,1").eval()
    assert torch.allclose(other(x), model.backbone(x - 0.1), atol=1e-6)
    assert other.info is not None and other.info.mean == (0.1, 0.1, 0.1)


def test_grey_images_for_a_net_of_three_channels() -> None:
    wide = ModelInfo(3, 1, 8, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    model = build_model("small_cnn", {"widths": [4]}, wide, seed=0).eval()
    x = torch.rand(2, 1, 8, 8)
    rgb = NormalisedModel(model.backbone, wide.mean, wide.std).eval()
    assert torch.equal(model(x), rgb(x.expand(-1, 3, -1, -1)))
    with pytest.raises(DataError):
        model(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    "fault",
    [
        {"num_classes": 1},
        {"num_classes": True},
        {"channels": 0},
        {"size": 0},
        {"mean": (0.5,)},
        {"std": (0.0, 1, 1)},
        {"std": (math.inf, 1, 1)},
        {"mean": (math.nan, 0, 0)},
    ],
)
def test_model_info_ranges(fault: dict[str, Any]) -> None:
    good: dict[str, Any] = {"num_classes": 2, "channels": 3, "size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert ModelInfo(**ModelInfo(**good).as_dict()) == ModelInfo(**good)
    with pytest.raises(ConfigError):
        ModelInfo(**(good | fault))


def test_parse_normalize() -> None:
    assert parse_normalize("imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert parse_normalize(" 0.1, 0.2") == ((0.1,), (0.2,))
    assert parse_normalize("1/2,1/4", channels=3) == ((0.5,) * 3, (0.25,) * 3)
    assert parse_normalize("0.1,0.2,0.3,1,2,3") == ((0.1, 0.2, 0.3), (1, 2, 3))


@pytest.mark.parametrize(
    "text", ["", "x", "0.5", "0.1,0.2,0.3", "0.5,0", "0.5,-1", "nan,1", "123.7,58.4", "0.5,inf"]
)
def test_parse_normalize_refuses(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_normalize(text)


def test_classes_must_fit() -> None:
    check_classes(3, 3)
    check_classes(3, ["a", "b", "c"], ("a", "b", "c"))
    check_classes(3, ["a", "b", "c"])
    for data, words in (
        (9, "has 10 classes, the data have 9"),
        ([str(i) for i in range(11)], "has 10 classes, the data have 11"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            check_classes(10, data)
        assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="class 1 is 'b' in the model and 'x' in the data"):
        check_classes(3, ["a", "x", "c"], ["a", "b", "c"])


def test_fingerprint_tells_what_must_agree(info: ModelInfo) -> None:
    base = fingerprint(build_model("small_cnn", {"widths": [4, 6]}, info, seed=0))
    assert base == fingerprint(build_model("small_cnn", {"widths": (4, 6)}, info, seed=9))
    others = [
        build_model("small_cnn", {"widths": [4, 7]}, info, seed=0),
        build_model("small_cnn", {"widths": [4, 6], "strides": [1, 1]}, info, seed=0),
        build_model("small_cnn", {"widths": [4, 6]}, ModelInfo(4, 3, 8, info.mean, info.std), seed=0),
        build_model("small_cnn", {"widths": [4, 6]}, info, seed=0, normalize="imagenet"),
        build_model("small_cnn", {"widths": [4, 6]}, info, seed=0).double(),
    ]
    prints = [fingerprint(m) for m in others]
    assert all(p != base for p in prints) and prints[1]["shapes"] == base["shapes"]
    foreign = fingerprint(torch.nn.Linear(2, 2))
    assert foreign["arch"] == "Linear" and foreign["num_classes"] is None

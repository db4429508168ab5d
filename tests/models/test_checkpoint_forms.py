"""The forms in which people have weights: each gives the logits of the network that was saved.

The converter runs in this process; tests/store/test_foreign_weights.py has its cage.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustcli.errors import CheckpointError, RobustCliError
from robustcli.models.build import build_model
from robustcli.models.fill import load_weights
from robustcli.models.info import ModelInfo
from robustcli.models.meta import model_meta
from robustcli.models.normalised import NormalisedModel
from robustcli.models.source import load_model
from robustcli.store import weights
from robustcli.store.checkpoint import save_checkpoint

State = dict[str, Tensor]
DATA: dict[str, Any] = {"channels": 3, "size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
INFO = ModelInfo(num_classes=3, **DATA)
PARAMS = {"widths": [4], "strides": [2]}
MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(
    weights.torch_version() < weights.SAFE_TORCH, reason="foreign files need torch >= 2.10"
)


@pytest.fixture(autouse=True)
def caged(converter_in_this_process: None) -> None:
    """Every test of this file."""


def network(seed: int = 4) -> NormalisedModel:
    return build_model("small_cnn", PARAMS, INFO, seed=seed).eval()


def bare(seed: int = 4) -> State:
    return dict(network(seed).backbone.state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def averaged(state: State) -> dict[str, Any]:
    model = network()
    model.backbone.load_state_dict(state)
    return AveragedModel(model.backbone).state_dict()


class Normalizer(nn.Module):
    """The layer that the library `robustness` puts in front of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("new_mean", MEAN.view(3, 1, 1))
        self.register_buffer("new_std", STD.view(3, 1, 1))


def madry(state: State) -> State:
    """AttackerModel: the network and its normaliser, each in two places."""
    layer = dict(Normalizer().state_dict())
    return {
        **under("module.normalizer.", layer),
        **under("module.model.", state),
        **under("module.attacker.normalize.", layer),
        **under("module.attacker.model.", state),
    }


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 9,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict({**under("model.", state), "criterion.weight": torch.ones(3)}),
        "hyper_parameters": argparse.Namespace(lr=0.1, out=Path("a/b"), widths=[4]),
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": np.float64(0.1)}]}],
    }


def whole(state: State) -> dict[str, Any]:
    net = network().backbone
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    return {
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
        "best_acc": np.float32(0.5),
        "curve": np.arange(3.0),
        "model": state,
        "optimizer": optimizer.state_dict(),
    }


OTHER = bare(seed=5)
#: name -> what `torch.save` is given. Raw weights beside an average are OTHER.
PICKLED: dict[str, Callable[[State], Any]] = {
    "raw": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 1},
    "model": lambda s: {"model": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 7},
    "state_dict_ema beside raw": lambda s: {"state_dict": OTHER, "state_dict_ema": s},
    "model_ema": lambda s: {"model": OTHER, "model_ema": {"module": s}},
    "AveragedModel": averaged,
    "AveragedModel beside raw": lambda s: {"model": OTHER, "swa_model": averaged(s)},
    "ema in one state dict": lambda s: {"state_dict": {**under("model.", OTHER), **under("ema_model.", s)}},
    "DataParallel": lambda s: {"state_dict": under("module.", s)},
    "DDP of a compiled": lambda s: under("module._orig_mod.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "nested": lambda s: under("module.model.net.", s),
    "some wrapper": lambda s: {"state_dict": under("classifier_of_mine.model.", s)},
    "Lightning": lightning,
    "whole": whole,
    "half": lambda s: {name: t.half() if t.is_floating_point() else t for name, t in s.items()},
    "an average and its decay": lambda s: {"model": OTHER, "ema": {"shadow": s, "decay": 0.99}},
    "deep": lambda s: {"checkpoint": {"model": {"state_dict": s}}, "best_acc": torch.tensor(0.9)},
    "in a list": lambda s: (3, {"a": [{"b": {"c": under("module.", s)}}]}),
    "the same twice": lambda s: {"model": s, "net": {name: t.clone() for name, t in s.items()}},
    "moments and gradients": lambda s: {"optimizer": {"exp_avg": OTHER}, "grads": OTHER, "model": s},
    "without counts": lambda s: {name: t for name, t in s.items() if "num_batches" not in name},
    "polyak beside raw": lambda s: {"net": OTHER, "polyak": s},
    "numbered": lambda s: {"model": under("1.", s)},
}


@pytest.mark.parametrize("form", PICKLED)
def test_a_form_gives_the_network_that_was_saved(tmp_path: Path, form: str) -> None:
    torch.save(PICKLED[form](bare()), tmp_path / "w.pt")
    said: list[str] = []
    model = load_model(
        "small_cnn", params=PARAMS, weights=tmp_path / "w.pt", **DATA, allow_pickle=True, say=said.append
    )
    tolerance = 5e-3 if form == "half" else 0
    torch.testing.assert_close(model(X), network()(X), rtol=0, atol=tolerance)
    assert bool(said) == any(word in form for word in ("beside raw", "ema", "average", "Lightning")), said


@pytest.mark.parametrize("form", ["state_dict_ema beside raw", "model_ema", "ema in one state dict"])
def test_the_raw_weights_can_be_chosen(tmp_path: Path, form: str) -> None:
    torch.save(PICKLED[form](bare()), tmp_path / "w.pt")
    given = {"params": PARAMS, **DATA, "allow_pickle": True, "say": lambda text: None}
    model = load_model("small_cnn", weights=tmp_path / "w.pt", weights_kind="raw", **given)
    assert torch.equal(model(X), network(seed=5)(X))


NORMALISED: dict[str, Callable[[State], State]] = {
    "robustness": madry,
    "robustness, one place": lambda s: {
        "normalizer.new_mean": MEAN, "normalizer.new_std": STD, **under("attacker.model.", s)
    },
    "a Sequential": lambda s: {
        "0.mean": MEAN.view(1, 3, 1, 1), "0.std": STD.view(1, 3, 1, 1), **under("1.", s)
    },
    "beside it": lambda s: {"normalize.mu": MEAN, "normalize.sigma": STD, **s},
}  # fmt: skip


@pytest.mark.parametrize("form", NORMALISED)
def test_a_normaliser_in_the_file_normalises(tmp_path: Path, form: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file({name: t.clone() for name, t in NORMALISED[form](bare()).items()}, file)
    expected = network().backbone((X - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1))
    model = load_model("small_cnn", params=PARAMS, weights=file, **DATA, say=lambda text: None)
    torch.testing.assert_close(model(X), expected)
    assert isinstance(model, NormalisedModel) and model.info is not None
    assert model.info.mean == pytest.approx(MEAN.tolist())
    agreeing = load_model(
        "small_cnn", params=PARAMS, weights=file, **DATA, normalize="0.1,0.2,0.3,0.5,0.6,0.7"
    )
    torch.testing.assert_close(agreeing(X), expected)
    with pytest.raises(RobustCliError, match=r"normaliser of 0\.1,0\.2,0\.3,0\.5,0\.6,0\.7"):
        load_model("small_cnn", params=PARAMS, weights=file, **DATA, normalize="imagenet")
    with pytest.raises(RobustCliError, match=r"--normalize 0\.1,0\.2,0\.3,0\.5,0\.6,0\.7"):
        load_weights(network().backbone, file)


def test_a_checkpoint_of_ours_by_its_file_and_away_from_it(tmp_path: Path) -> None:
    meta = model_meta(network(), ("ant", "bee", "cat"))
    step = save_checkpoint(
        tmp_path / "checkpoints", 1, {"model": network().state_dict()}, meta, tags=("last",)
    )
    for name in (
        step / "model.safetensors",
        f"run:{step / 'model.safetensors'}",
        step,
        f"run:{step.parent}/last",
    ):
        back = load_model(name)
        assert torch.equal(back(X), network()(X)) and getattr(back, "classes", None) == ("ant", "bee", "cat")
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((step / "model.safetensors").read_bytes())
    assert torch.equal(load_model("small_cnn", params=PARAMS, weights=moved, size=8)(X), network()(X))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_a_fine_tuned_torchvision_head_tells_its_classes(tmp_path: Path, name: str) -> None:
    import torchvision

    torch.manual_seed(1)
    net = torchvision.models.get_model(name, num_classes=3).eval()
    save_file(under("module.", dict(net.state_dict())), tmp_path / "w.safetensors")
    x = torch.rand(2, 3, 40, 40)
    model = load_model(f"torchvision:{name}", weights=tmp_path / "w.safetensors", normalize="0,1")
    torch.testing.assert_close(model(x), net(x))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (lambda s: {**under("a.", s), **under("b.", OTHER)}, "two networks that differ: under 'a.' and 'b.'"),
        (
            lambda s: {**under("model.", s), "head.weight": torch.ones(2, 2)},
            r"unexpected: head.weight \(not under model.\)",
        ),
        (lambda s: {**under("model.", s), "model.more": torch.ones(2)}, "unexpected: more"),
        (lambda s: dict(list(under("net.", s).items())[1:]), "missing: .*the file holds .* the model has"),
        (lambda s: {"unrelated": torch.ones(2)}, "missing: .*; unexpected: unrelated; the file holds 1 "),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    tmp_path: Path, state: Callable[[State], State], words: str
) -> None:
    save_file({name: t.clone() for name, t in state(bare()).items()}, tmp_path / "w.safetensors")
    model = network(seed=6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


B, G = OTHER, bare()
SEVERAL: dict[str, dict[str, Any]] = {
    "'model' and 'state_dict'": {"state_dict": B, "model": G},
    "'net' and 'model'": {"model": G, "net": B},
    "'model' and 'model_best'": {"model": B, "model_best": G},
    "'state_dict' and 'best_state_dict'": {"state_dict": B, "best_state_dict": G},
    "'ema_0.99' and 'ema_0.999'": {"model": B, "ema_0.99": B, "ema_0.999": G},
    "'a / 0' and 'a / 1 / b'": {"a": [B, {"b": G}]},
    "the average under 'ema' holds": {"model": B, "ema": {n: t for n, t in G.items() if "running" not in n}},
}


@pytest.mark.parametrize("words", SEVERAL)
def test_of_several_sets_that_differ_none_is_taken_by_its_name(tmp_path: Path, words: str) -> None:
    torch.save(SEVERAL[words], tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model("small_cnn", params=PARAMS, weights=tmp_path / "w.pt", **DATA, allow_pickle=True)
    assert caught.value.code == "E-CKPT-SHAPE"
    assert "torch.load(FILE)['" in caught.value.hint or "--weights-kind raw" in caught.value.hint


def test_an_average_without_names_is_left_aside_aloud(tmp_path: Path) -> None:
    shadow = list(network().backbone.parameters())
    torch.save({"model": OTHER, "ema_shadow_params": [p.detach() for p in shadow]}, tmp_path / "w.pt")
    said: list[str] = []
    given = {"params": PARAMS, "weights": tmp_path / "w.pt", **DATA, "allow_pickle": True}
    assert torch.equal(load_model("small_cnn", **given, say=said.append)(X), network(seed=5)(X))
    assert "'ema_shadow_params' is a list of tensors without names, and was left aside" in said[0]
    with pytest.raises(CheckpointError, match="without names"):
        load_model("small_cnn", **given, weights_kind="averaged")


def test_counts_that_training_weighs_by_are_not_made_up(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=None))
    state = {name: t for name, t in net.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="missing: 1.num_batches_tracked"):
        load_weights(net, tmp_path / "w.safetensors")

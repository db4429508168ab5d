"""A guard on the disk: it opens as the same model, or not at all."""

import json
import os

import pytest
import torch
from torch import nn

from robustcli import registry
from robustcli.errors import RobustCliError, UsageError
from robustcli.models.build import build_model
from robustcli.models.defended import make_defence
from robustcli.models.guard_file import Calibrated, GuardFacts, open_guard, read_guard, save_guard
from robustcli.models.guarded import GuardedModel
from robustcli.models.info import ModelInfo
from robustcli.store import tensorfile
from robustcli.store.sealed import proof, seal

INFO = ModelInfo(3, 1, 8, (0.2,), (0.5,))
CLASSES = ("a", "b", "c")
FACTS = GuardFacts(
    CLASSES,
    0.05,
    Calibrated(n=99, spread_n=99, rank=95, alarms=4, interval=[0.01, 0.1], source="images", digest="d"),
    {"energy": [0.0, 1.0]},
    {"config": {}, "data": {"name": "x", "digest": "y"}},
)


def images():
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Sized(nn.Module):
    """A detector whose buffer takes its size from the data, as `guard fit` finds it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("means", torch.zeros(0))

    def _load_from_state_dict(self, state, prefix, *args):
        self.means = torch.empty_like(state.get(f"{prefix}means", self.means))
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, x, logits, net):
        return logits.sum(1) - self.means.sum()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A guard of two detectors and a purifier, with thresholds that are no round numbers."""
    registry.defences.names()
    monkeypatch.setattr(registry.defences, "_entries", dict(registry.defences._entries))
    stated = {
        "kind": "detector",
        "random": False,
        "differentiable": True,
        "fit": "statistics",
        "use": "a test",
    }
    registry.defences.register("sized", **stated)(lambda: Sized())
    guard = made("bit_depth", "energy", "sized")
    guard.modules_by_label["sized"].means = torch.arange(5.0)
    guard.thresholds = torch.tensor([-1.2345678, 0.1])
    guard.spreads = torch.tensor([0.3, 1e-7])
    guard.answer = guard(images()).detach()
    guard.sha256 = save_guard(tmp_path, guard, FACTS)
    return tmp_path, guard


def made(*names):
    member = build_model("small_cnn", {"widths": [4]}, INFO, seed=3)
    defences = [make_defence(name, name, {}, INFO.shape, 3) for name in names]
    return GuardedModel([member], defences, 3, scale=0.7).eval()


def rewritten(folder, change):
    """The manifest with a change, sealed again: a forger can do that."""
    document = json.loads((folder / "guard.json").read_text())
    change(document)
    plain = {key: document[key] for key in document if key not in ("format", "schema_version", "sha256")}
    (folder / "guard.json").write_bytes(seal(plain, document["format"], document["schema_version"])[0])


def test_it_opens_as_the_same_model_to_the_bit(folder):
    path, guard = folder
    again = open_guard(path)
    assert torch.equal(again(images()), guard.answer)
    assert torch.equal(again.thresholds, guard.thresholds) and torch.equal(again.spreads, guard.spreads)
    assert again.sha256 == guard.sha256 == read_guard(path)[1] and again.classes == CLASSES
    assert not again.training and sorted(os.listdir(path)) == ["guard.json", "weights.safetensors"]
    other = path / "again"
    other.mkdir()
    assert (path / "weights.safetensors").read_bytes() == (
        save_guard(other, again, FACTS) and (other / "weights.safetensors").read_bytes()
    )


@pytest.mark.parametrize("file", ["guard.json", "weights.safetensors"])
def test_no_changed_byte_and_no_cut_passes(folder, file):
    path, _ = folder
    data = (path / file).read_bytes()
    for at in range(0, len(data), max(1, len(data) // 40)):
        (path / file).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(path, 4)
        (path / file).write_bytes(data[:at])
        refused(path, 4)
    (path / file).unlink()
    assert refused(path, 4).code == "E-CKPT-MISSING"


def refused(path, exit_code):
    with pytest.raises(RobustCliError) as caught:
        open_guard(path)
    assert caught.value.exit_code == exit_code, caught.value
    return caught.value


FORGED = {
    "unknown defence": (lambda d: d["defences"][0].update(name="nothing"), "unknown defence 'nothing'"),
    "bad parameter": (lambda d: d["defences"][0]["params"].update(bits=99), "bits"),
    "no parameter of it": (lambda d: d["defences"][0]["params"].update(x=1), "no such parameter"),
    "one threshold less": (lambda d: d["thresholds"].pop(), "2 detectors, 1 thresholds"),
    "spread 0": (lambda d: d["spreads"].__setitem__(0, 0.0), "spreads"),
    "other detectors": (lambda d: d["detectors"].__setitem__(0, "mine"), "scores of mine"),
    "order": (lambda d: d["defences"].reverse(), "scores of energy, sized, and of sized, energy"),
    "a path": (lambda d: d.update(files={"../x": d["files"]["weights.safetensors"]}), "files"),
    "a key more": (lambda d: d.update(run="rm"), "run"),
    "a key less": (lambda d: d.pop("fpr"), "fpr"),
    "no member": (lambda d: d.update(members=[]), "members"),
    "another network": (lambda d: d["members"][0]["model"]["params"].update(widths=[5]), "another network"),
    "code": (lambda d: d["members"][0]["model"].update(arch="plugin:net"), "--plugin FILE.py:net"),
    "two labels": (lambda d: d["defences"][1].update(label="bit_depth"), "one label"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_manifest_is_refused(folder, name):
    path, _ = folder
    change, said = FORGED[name]
    rewritten(path, change)
    assert said in str(refused(path, 4))


def test_a_newer_version_is_named(folder):
    path, _ = folder
    document = json.loads((path / "guard.json").read_text())
    (path / "guard.json").write_bytes(seal({"a": 1}, document["format"], 2)[0])
    assert "schema_version 2" in str(refused(path, 4))


@pytest.mark.parametrize(
    ("key", "value", "exit_code"),
    [
        ("members.0.mean", torch.zeros(1, 2, 1, 1), 4),
        ("members.0.mean", None, 4),
        ("members.0.extra", torch.zeros(1), 4),
        ("modules_by_label.sized.means", None, 4),
        ("modules_by_label.energy.more", torch.zeros(1), 4),
        ("members.0.mean", torch.full((1, 1, 1, 1), torch.nan), 5),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, key, value, exit_code):
    path, _ = folder
    tensors = tensorfile.decode((path / "weights.safetensors").read_bytes(), {}, "")
    tensors.pop(key, None)
    if value is not None:
        tensors[key] = value
    data, _ = tensorfile.encode(tensors)
    (path / "weights.safetensors").write_bytes(data)
    rewritten(path, lambda d: d.update(files={"weights.safetensors": proof(data)}))
    refused(path, exit_code)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    guard = made("energy")
    with pytest.raises(ValueError, match="no threshold"):
        save_guard(tmp_path, guard, FACTS)
    guard.thresholds = torch.zeros(1)
    guard.members[0] = nn.Flatten()
    with pytest.raises(UsageError, match="nothing says how to build it"):
        save_guard(tmp_path, guard, FACTS)
    assert not os.listdir(tmp_path)

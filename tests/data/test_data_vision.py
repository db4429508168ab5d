"""The thin loader around torchvision: on disk, not on disk, downloaded, damaged; a broken torchvision."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robustcli.config.sections import Augment, DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.sets import vision
from robustcli.data.stream import StreamSplit
from robustcli.errors import DataError, ResourceError
from robustcli.registry import datasets


def load(root: Path, name: str, *, allow_download: bool = False, **options):
    return load_data(
        DataConfig(name=name, root=str(root), workers=0, **options), allow_download=allow_download
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "gtsrb", "imagenet"])
def test_not_on_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, name)
    error = caught.value
    assert f"{name} is not on disk" in error.what and str(tmp_path) in error.where and error.exit_code == 3
    assert "--download" in error.hint or name == "imagenet"
    assert not list(tmp_path.iterdir()), "nothing is written without --download"


def fake_cifar(calls: list[dict], *, present: bool, fail: Exception | None = None):
    def build(root: str, *, train: bool, download: bool = False):
        calls.append({"train": train, "download": download})
        print("torchvision talks")
        if fail is not None and download:
            raise fail
        if not present and not download:
            raise RuntimeError("Dataset not found or corrupted.")
        n = 40 if train else 20
        data = np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(
            data=data, targets=[k % 10 for k in range(n)], classes=[f"class {k}" for k in range(10)]
        )

    return build


def test_cifar_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torchvision

    calls: list[dict] = []
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake_cifar(calls, present=True))
    bundle = load(tmp_path, "cifar10")
    assert all(not call["download"] for call in calls)
    assert (
        bundle.shape == (3, 32, 32)
        and bundle.classes[3] == "class 3"
        and bundle.augment == Augment(crop=4, flip=True)
    )
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (30, 10, 20)
    assert bundle.mean == (0.4914, 0.4822, 0.4465) and bundle.presets == {
        "linf": 8 / 255,
        "l2": 0.5,
        "l1": 12.0,
        "l0": 24.0,
    }
    assert capsys.readouterr().out == "", "stdout is for results"
    stored = (
        torch.from_numpy(fake_cifar([], present=True)("", train=False).data).permute(0, 3, 1, 2).float() / 255
    )
    ((x, _, _),) = bundle.test.stream([torch.arange(20)], torch.device("cpu"))
    assert torch.equal(x, stored)


@pytest.mark.parametrize("how", ["flag", "config"])
def test_download_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    import torchvision

    calls: list[dict] = []
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake_cifar(calls, present=False))
    with pytest.raises(DataError, match="not on disk"):
        load(tmp_path, "cifar10")
    assert [call["download"] for call in calls] == [False]
    bundle = load(tmp_path, "cifar10", allow_download=how == "flag", download=how == "config")
    assert len(bundle.test) == 20 and calls[-1] == {"train": False, "download": True}


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(
        torchvision.datasets, "CIFAR100", fake_cifar([], present=False, fail=OSError("no route to host"))
    )
    with pytest.raises(DataError) as caught:
        load(tmp_path, "cifar100", allow_download=True)
    assert caught.value.code == "E-DOWNLOAD" and "no route to host" in caught.value.what and caught.value.hint


def test_svhn_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real class reads real .mat files; only their expected checksums are ours."""
    import torchvision
    from scipy.io import savemat

    sums = {}
    for part, n in (("train", 40), ("test", 20)):
        data = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        savemat(
            tmp_path / f"{part}_32x32.mat",
            {"X": data, "y": np.array([[k % 10 + 1] for k in range(n)], dtype=np.uint8)},
        )
        sums[part] = hashlib.md5(
            (tmp_path / f"{part}_32x32.mat").read_bytes(), usedforsecurity=False
        ).hexdigest()
    listed = {part: [f"no-host://{part}", f"{part}_32x32.mat", sums[part]] for part in sums}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    bundle = load(tmp_path, "svhn")
    assert (
        bundle.shape == (3, 32, 32)
        and len(bundle.test) == 20
        and bundle.augment == Augment(crop=4, flip=False)
    )
    assert bundle.test.labels.tolist() == [
        (k % 10 + 1) % 10 for k in range(20)
    ]  # class 10 of the file is digit 0


@pytest.fixture
def gtsrb(tmp_path: Path, picture) -> Path:
    base = tmp_path / "gtsrb"
    for k in range(3):
        folder = base / "GTSRB/Training" / f"{k:05d}"
        folder.mkdir(parents=True)
        for i in range(4):
            picture(10 * k + i, 20 + i).save(folder / f"{i}.ppm")
        (folder / "GT.csv").write_text("not an image")
    tests = base / "GTSRB/Final_Test/Images"
    tests.mkdir(parents=True)
    for i in range(6):
        picture(100 + i, 25).save(tests / f"{i}.ppm")
    rows = "".join(f"{i}.ppm;20;20;{i % 3}\n" for i in (3, 1, 2, 0, 4, 5))
    (base / "GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n" + rows)
    return tmp_path


def test_gtsrb(gtsrb: Path, picture) -> None:
    bundle = load(gtsrb, "gtsrb")
    assert (
        bundle.shape == (3, 32, 32)
        and bundle.augment == Augment(crop=4, flip=False)
        and bundle.presets == {"linf": 8 / 255}
    )
    assert (len(bundle.train) + len(bundle.val), bundle.test.labels.tolist()) == (12, [0, 1, 2, 0, 1, 2])
    ((x, _, _),) = bundle.test.stream([torch.tensor([3])], torch.device("cpu"))
    expected = np.asarray(picture(103, 25).resize((32, 32), 2)).transpose(2, 0, 1)
    assert torch.equal(x[0], torch.from_numpy(expected.copy()).float() / 255)
    assert load(gtsrb, "gtsrb", size=16).shape == (3, 16, 16)


def test_gtsrb_has_43_named_signs() -> None:
    assert len(vision.SIGNS) == len(set(vision.SIGNS)) == 43 and vision.SIGNS[14] == "stop"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("0.ppm;1;1;3\n", "label 3 at index 0"),
        ("0.ppm;1;1;x\n", "damaged table"),
        ("", "the test split is empty"),
        ("../../secret.ppm;1;1;0\n", "cannot open the file"),
    ],
)
def test_gtsrb_table(gtsrb: Path, picture, row: str, text: str) -> None:
    picture(1).save(gtsrb / "gtsrb/GTSRB/secret.ppm")  # where the path of the last case points
    (gtsrb / "gtsrb/GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n" + row)
    with pytest.raises(DataError) as caught:
        load(gtsrb, "gtsrb")
    assert text in caught.value.line() and caught.value.where


def test_imagenet_folders(tmp_path: Path, picture) -> None:
    for part, count in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537"):
            (tmp_path / part / wnid).mkdir(parents=True)
            for i in range(count):
                picture(i, (60, 40)).save(tmp_path / part / wnid / f"{i}.JPEG")
    bundle = load(tmp_path, "imagenet", storage="stream")
    assert (
        bundle.name == "imagenet" and bundle.shape == (3, 224, 224) and isinstance(bundle.test, StreamSplit)
    )
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (6, 2, 4) and bundle.presets == {
        "linf": 4 / 255,
        "l2": 3.0,
    }
    assert bundle.augment == Augment(crop=0, flip=True) and bundle.mean == (0.485, 0.456, 0.406)
    assert load(tmp_path, "imagenet", size=28).shape == (3, 28, 28)


def test_imagenet_archives_are_unpacked_only_when_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture
) -> None:
    import torchvision

    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"")
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(DataError, match="not unpacked"):
        load(tmp_path, "imagenet")

    def unpack(root: str, *, split: str) -> None:
        for wnid in ("a", "b"):
            (Path(root) / split / wnid).mkdir(parents=True)
            for i in range(4):
                picture(i, 40).save(Path(root) / split / wnid / f"{i}.png")

    monkeypatch.setattr(torchvision.datasets, "ImageNet", unpack)
    bundle = load(tmp_path, "imagenet", allow_download=True, size=16)
    assert len(bundle.train) + len(bundle.val) + len(bundle.test) == 8


def test_mnist_download_asks_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_idx) -> None:
    import torchvision

    def build(root: str, *, train: bool, download: bool = False) -> object:
        if not download:
            raise RuntimeError("Dataset not found.")
        stem, n = ("train", 40) if train else ("t10k", 20)
        raw = Path(root) / "MNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", np.random.default_rng(n).integers(0, 256, (n, 28, 28)))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", np.arange(n) % 10)
        return object()

    monkeypatch.setattr(torchvision.datasets, "MNIST", build)
    with pytest.raises(DataError, match="not on disk"):
        load(tmp_path, "mnist")
    assert len(load(tmp_path, "mnist", allow_download=True).test) == 20


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        ImportError("no libcudart"),
        OSError("undefined symbol"),
        AttributeError("x"),
    ],
)
def test_torchvision_that_does_not_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(module: str) -> None:
        raise error

    monkeypatch.setattr(vision.importlib, "import_module", broken)
    with pytest.raises(ResourceError) as caught:
        vision.import_torchvision()
    assert caught.value.code == "E-TORCHVISION" and caught.value.exit_code == 6
    assert (
        "pip install torchvision in a fresh environment resolves both" in caught.value.hint
        and str(error) in caught.value.what
    )


def test_torchvision_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ResourceError, match="import torchvision failed"):
        load(tmp_path, "cifar10")


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("mnist", "linf", 0.3), ("mnist", "l2", 2.0), ("fashion-mnist", "linf", 0.1),
        ("cifar10", "linf", 8 / 255), ("cifar100", "l2", 0.5), ("svhn", "l1", 12.0),
        ("gtsrb", "linf", 8 / 255), ("imagenet", "linf", 4 / 255), ("imagenet", "l2", 3.0),
        ("digits", "linf", 0.1), ("fake", "linf", 8 / 255), ("digits", "l1", None),
        ("cifar10", "l0", 24.0), ("mnist", "l0", 10.0), ("digits", "l0", 2.0), ("fake", "l0", 5.0),
        ("folder", "linf", None), ("npz", "l2", None),
    ],
)  # fmt: skip
def test_presets(name: str, norm: str, eps: float | None) -> None:
    assert datasets.get(name).facts.presets.get(norm) == eps


def test_preset_of_a_bundle() -> None:
    bundle = load_data(DataConfig(name="fake", size=4), allow_download=False)
    assert bundle.presets == {"linf": 8 / 255, "l2": 0.5, "l0": 5}

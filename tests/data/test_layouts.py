"""Image sets as users have them: each layout gives the right labels, or the error that names the key.

The class of an image is its brightest channel (red, green, blue), so that a wrong label shows.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustcli.config.sections import DataConfig
from robustcli.data.datasets import load_data
from robustcli.data.layout.words import in_order, part_named
from robustcli.data.looks import look_at, twins
from robustcli.data.sampling import stored_by_class
from robustcli.errors import DataError

CPU, NAMES = torch.device("cpu"), "abc"


def pixels(k: int, number: int, height: int = 8, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3] whose brightest channel is k."""
    x = np.random.default_rng(1000 * k + number).integers(0, 60, (height, width, 3))
    x[..., k] += 150
    return x.astype(np.uint8)


def put(path: Path, k: int, number: int = 0, height: int = 8, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(k, number, height, width)).save(path)


def folders(root: Path, *splits: str, pattern: str = "{split}/{name}/{i}.png", **size: int) -> None:
    """Six images of each class in every split."""
    for number, split in enumerate(splits):
        for k, name in enumerate(NAMES):
            for i in range(6):
                put(
                    root / pattern.format(split=split, name=name, i=i, half=i % 2), k, 10 * number + i, **size
                )


def tiny(root: Path) -> None:
    folders(root, "train", pattern="{split}/{name}/images/{name}_{i}.JPEG")
    folders(root, "val", pattern="{split}/images/{name}{i}.JPEG")
    folders(root, "test", pattern="{split}/images/{name}{i}.JPEG")
    lines = [f"{name}{i}.JPEG\t{name}\t0\t0\t8\t8" for name in NAMES for i in range(6)]
    (root / "val/val_annotations.txt").write_text("\n".join(lines))


def lacking(root: Path) -> None:
    folders(root, "train", "test")
    for file in (root / "test/b").iterdir():
        file.unlink()
    (root / "test/b").rmdir()


def numbered(root: Path) -> None:
    for split in ("train", "test"):
        for k in range(12):
            for i in range(2):
                put(root / f"{split}/{k}/{i}.png", k % 3, 10 * k + i)


def linked(root: Path) -> None:
    folders(root.parent / "pool", "train", "test")
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for name in NAMES:
            (root / split / name).symlink_to(root.parent / "pool" / split / name)


def deep(root: Path, channel: str = "L") -> None:
    """12-bit values in 16-bit files: class k has the grey level 1000 k + 1000."""
    for split in ("train", "test"):
        for k, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                level = np.full((8, 8), 1000 * k + 1000 + i, dtype=np.uint16)
                Image.fromarray(level).save(root / split / name / f"{i}.png")


def arrays(root: Path, **stored: np.ndarray) -> None:
    root.parent.mkdir(exist_ok=True)
    np.savez(root, **stored)


X = np.stack([pixels(k, i) for i in range(6) for k in range(3)])
Y = np.arange(18) % 3


def medmnist(root: Path) -> None:
    column = Y[:, None].astype(np.uint8)
    pairs = {
        f"{part}_{what}": value
        for part in ("train", "val", "test")
        for what, value in (("images", X), ("labels", column))
    }
    arrays(root, **pairs)


def table(root: Path) -> None:
    folders(root.parent, "photos")
    lines = [
        f"photos/{name}/{i}.png,{name},{('Training', 'held-out')[i % 2]}" for name in NAMES for i in range(6)
    ]
    root.write_text("\n".join(["path,label,split", *lines]))


def load(name: str, parts: tuple[str, ...] = ("train", "val", "test"), **options: Any):
    config = DataConfig(name=name, **{"workers": 0, **options})
    return load_data(config, parts=parts, whole=lambda digest: parts == ("test",))


def brightest(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)).argmax(1)


Build = Callable[[Path], None]
#: name -> kind, how it is made, settings, images to measure by a foreign model, and to train on.
FORMS: dict[str, tuple[str, Build, dict[str, Any], int, int]] = {
    "capitals": ("folder", lambda r: folders(r, "Train", "Test"), {}, 18, 15),
    "other names": ("folder", lambda r: folders(r, "training_set", "dev", "Held-Out"), {}, 18, 18),
    "class folders alone": ("folder", lambda r: folders(r, "", pattern="{name}/{i}.png"), {}, 18, 10),
    "a test alone": ("folder", lambda r: folders(r, "test"), {}, 18, 10),
    "folders below classes": (
        "folder",
        lambda r: folders(r, "train", "test", pattern="{split}/{name}/p{half}/{i}.png"),
        {},
        18,
        15,
    ),
    "Tiny-ImageNet": ("folder", tiny, {}, 18, 15),
    "a class without test images": ("folder", lacking, {}, 12, 15),
    "named by hand": (
        "folder",
        lambda r: folders(r, "train", "2019"),
        {"splits": {"test": 2019}},
        18,
        15,
    ),
    "an ignored folder": (
        "folder",
        lambda r: folders(r, "train", "test", "more"),
        {"splits": {"ignore": ["more"]}},
        18,
        15,
    ),
    "links": ("folder", linked, {"link_root": "POOL"}, 18, 15),
    "oblong": ("folder", lambda r: folders(r, "train", "test", height=10, width=16), {"size": 8}, 18, 15),
    "MedMNIST": ("npz", medmnist, {}, 18, 18),
    "generated": ("npz", lambda r: arrays(r, image=X, label=Y), {}, 18, 10),
    "uint16": ("npz", lambda r: arrays(r, x=X.astype(np.uint16) * 16, y=Y), {"max_value": 4095}, 18, 10),
    "images between splits and classes": (
        "folder",
        lambda r: folders(r, "train", "test", pattern="{split}/images/{name}/{i}.png"),
        {},
        18,
        15,
    ),
    "a word inside the names": ("folder", lambda r: folders(r, "images_train", "images_test"), {}, 18, 15),
    "numbers after the names": ("folder", lambda r: folders(r, "train2017", "val2017", "test-1"), {}, 18, 18),
    "bytes in uint16": ("npz", lambda r: arrays(r, x=X.astype(np.uint16), y=Y), {"max_value": 255}, 18, 10),
    "a table": ("csv", table, {}, 9, 6),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_layout_has_the_right_labels(tmp_path: Path, form: str) -> None:
    kind, build, options, measured, trained = FORMS[form]
    place = tmp_path / {"folder": "set", "npz": "set/a.npz", "csv": "set/list.csv"}[kind]
    place.parent.mkdir(exist_ok=True)
    build(place)
    if "link_root" in options:
        options = {"link_root": str(tmp_path / "pool")}
    foreign = load(f"{kind}:{place}", ("test",), **options)
    ((x, y, _),) = foreign.test.stream([torch.arange(len(foreign.test))], CPU)
    assert len(y) == measured and torch.equal(brightest(x), y) and foreign.shape == (3, 8, 8)
    own = load(f"{kind}:{place}", **options)
    ((x, y, _),) = own.train.stream([torch.arange(len(own.train))], CPU)
    assert len(y) == trained and torch.equal(brightest(x), y)
    assert float(x.max()) > 0.5 and not own.warnings


def test_numeric_names_are_sorted_as_numbers_and_said(tmp_path: Path) -> None:
    numbered(tmp_path)
    bundle = load(f"folder:{tmp_path}")
    assert bundle.classes == tuple(str(k) for k in range(12))
    ((x, y, _),) = bundle.test.stream([torch.arange(len(bundle.test))], CPU)
    assert torch.equal(brightest(x), y % 3)
    assert any("0, 1, 2, 3, 4 … 11" in note for note in bundle.notes)


@pytest.mark.parametrize("stated", ["list", "lines", "json"])
def test_a_stated_order(tmp_path: Path, stated: str) -> None:
    folders(tmp_path / "set", "train", "test")
    file = tmp_path / "names"
    file.write_text("c\na\nb\nd\n" if stated == "lines" else json.dumps({"a": 1, "b": 2, "c": 0, "d": 3}))
    classes = ["c", "a", "b"] if stated == "list" else str(file)
    bundle = load(f"folder:{tmp_path / 'set'}", ("test",), classes=classes)
    ((x, y, _),) = bundle.test.stream([torch.arange(len(bundle.test))], CPU)
    assert torch.equal((brightest(x) + 1) % 3, y)


def test_a_stated_order_of_arrays_maps_their_labels(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz", x=X, y=Y, classes=np.array(["a", "b", "c"]))
    bundle = load(f"npz:{tmp_path / 'a.npz'}", ("test",), classes=["c", "a", "b"])
    ((x, y, _),) = bundle.test.stream([torch.arange(18)], CPU)
    assert torch.equal((brightest(x) + 1) % 3, y)


def test_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    deep(tmp_path)
    dim, right = load(f"folder:{tmp_path}"), load(f"folder:{tmp_path}", max_value=4095)
    assert len(dim.warnings) == 1 and "data.max_value=4095" in dim.warnings[0] and not right.warnings
    ((x, y, _),) = right.test.stream([torch.arange(len(right.test))], CPU)
    levels = (1000 * y + 1000 + torch.arange(6).repeat(3)) * 255 / 4095
    assert torch.equal((x[:, 0, 0, 0] * 255).round(), levels.round())


def test_grey_for_a_network_of_colour_and_the_other_way(tmp_path: Path) -> None:
    deep(tmp_path / "grey")
    assert load(f"folder:{tmp_path / 'grey'}", channels=3, max_value=4095).shape == (3, 8, 8)
    folders(tmp_path / "colour", "train", "test")
    assert load(f"folder:{tmp_path / 'colour'}", channels=1).shape == (1, 8, 8)
    arrays(tmp_path / "a.npz", x=X[..., :1], y=Y)
    assert load(f"npz:{tmp_path / 'a.npz'}", channels=3).shape == (3, 8, 8)


REFUSED: dict[str, tuple[Build, dict[str, Any], str, str]] = {
    "another folder of the same classes": (
        lambda r: folders(r, "train", "new"),
        {},
        "'new' has the class folders of train",
        "data.splits.test=new",
    ),
    "two folders for one split": (
        lambda r: folders(r, "train", "Test", "holdout"),
        {},
        "two folders for one split, test: Test, holdout",
        "data.splits.test=holdout",
    ),
    "a test without labels": (
        lambda r: (folders(r, "train"), folders(r, "test", pattern="{split}/{name}{i}.png")),
        {},
        "the images in 'test' have no labels",
        "data.splits.ignore=[test]",
    ),
    "two levels of classes": (
        lambda r: folders(r, "2019", "2020"),
        {},
        "2019 and 2020 both hold the folders a, b, c",
        "data.splits.train=2019 data.splits.test=2020",
    ),
    "one class": (
        lambda r: folders(r, "", pattern="all/{name}{i}.png"),
        {},
        "only one class, 'all'",
        "deeper",
    ),
    "splits without class folders": (
        lambda r: folders(r, "train", "test", pattern="{split}/{name}{i}.png"),
        {},
        "images without labels: test, train",
        "data.classes=[test,train]",
    ),
    "the same with longer names": (
        lambda r: folders(r, "images_train", "images_test", pattern="{split}/{name}{i}.png"),
        {},
        "images without labels",
        "csv:PATH",
    ),
    "two folders with the word of one split": (
        lambda r: folders(r, "train_1", "train_2", "a_test"),
        {},
        "a_test and train_1 both hold",
        "data.splits.train=train_1 data.splits.test=a_test",
    ),
    "one folder below the splits": (
        lambda r: folders(r, "train", "test", pattern="{split}/all/{name}/{i}.png"),
        {},
        "only one class, 'all'",
        "data.splits.test=test/all data.splits.train=train/all",
    ),
    "one odd image": (
        lambda r: (folders(r, "train", "test"), put(r / "train/a/0.png", 0, height=4, width=4)),
        {},
        "expected 3x8x8, got 3x4x4",
        "data.size=8",
    ),
    "links": (linked, {}, "link leaves the data folder", "data.link_root="),
    "oblong": (
        lambda r: folders(r, "train", "test", height=10, width=16),
        {},
        "not square: 3x10x16",
        "data.size=10",
    ),
    "brighter than white": (deep, {"max_value": 2000}, "outside 0..2000 (data.max_value)", ""),
    "a class that is not stated": (
        lambda r: folders(r, "train"),
        {"classes": ["a", "b"]},
        "data.classes does not name the class 'c'",
        "data.classes has 2 names",
    ),
    "a stated folder that is not there": (
        lambda r: folders(r, "train"),
        {"splits": {"test": "../x"}},
        "no folder '../x'",
        "inside the data folder",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_told_names_the_key(tmp_path: Path, form: str) -> None:
    build, options, what, hint = REFUSED[form]
    build(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load(f"folder:{tmp_path / 'set'}", **options)
    assert caught.value.exit_code == 3 and what in caught.value.what and hint in caught.value.hint


def test_classes_that_are_called_as_splits(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test", pattern="{split}/{name}{i}.png")
    assert load(f"folder:{tmp_path}", classes=["train", "test"]).classes == ("train", "test")
    for k, name in enumerate(("train_station", "bridge")):
        put(tmp_path / f"set/{name}/{k}/0.png", k)
    assert load(f"folder:{tmp_path / 'set'}", ("test",)).classes == ("bridge", "train_station")


@pytest.mark.parametrize("storage", ["memory", "stream", "cached"])
def test_one_odd_image_is_named(tmp_path: Path, storage: str) -> None:
    folders(tmp_path / "set", "train", "test")
    put(tmp_path / "set/train/a/0.png", 0, height=4, width=4)
    with pytest.raises(DataError, match=r"expected 3x8x8, got 3x4x4") as caught:
        bundle = load(f"folder:{tmp_path / 'set'}", storage=storage, cache=str(tmp_path / "cache"))
        list(bundle.train.stream([torch.arange(len(bundle.train))], CPU))
    assert str(caught.value.where).endswith("train/a/0.png")


def test_bytes_in_sixteen_bits_are_told_their_white(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz", x=X.astype(np.uint16), y=Y)
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path / 'a.npz'}")
    assert caught.value.code == "E-RANGE" and "data.max_value=255" in caught.value.hint
    for name in NAMES:
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8), 90 + i, np.uint16)).save(tmp_path / "set" / name / f"{i}.png")
    (warning,) = load(f"folder:{tmp_path / 'set'}", ("test",)).warnings
    assert "data.max_value=255" in warning


def test_links_that_never_end(tmp_path: Path) -> None:
    folders(tmp_path / "set", "train", "test")
    (tmp_path / "set/loop").symlink_to("loop")
    with pytest.raises(DataError, match="cannot follow the link"):
        load(f"folder:{tmp_path / 'set'}")
    (tmp_path / "set/loop").unlink()
    (tmp_path / "set/train/a/back").symlink_to(tmp_path / "set/train/a")
    with pytest.raises(DataError, match="a link that leads back"):
        load(f"folder:{tmp_path / 'set'}")


def test_a_split_is_read_only_when_it_is_needed(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test")
    (tmp_path / "train/a/0.png").write_bytes(b"broken")
    bundle = load(f"folder:{tmp_path}", ("test",))
    assert len(bundle.test) == 18 and bundle.read_names == ("test",)
    with pytest.raises(DataError, match="not a readable image"):
        _ = bundle.mean
    for file in (tmp_path / "test/b").iterdir():
        file.write_bytes(b"broken")
    folders(tmp_path, "train")
    assert len(load(f"folder:{tmp_path}", ("train", "val")).train) == 15


def test_one_image_of_a_class_is_measured(tmp_path: Path) -> None:
    for k, name in enumerate(NAMES):
        put(tmp_path / name / "0.png", k)
    assert len(load(f"folder:{tmp_path}", ("test",)).test) == 3


def test_the_snippet_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/data.md", "exec"), {})
    assert "(1, 8, 8) 1213 135 449" in capsys.readouterr().out


def packed(path: Path, packing: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_member_of_any_packing(tmp_path: Path, packing: int) -> None:
    path = packed(tmp_path / "a.npz", packing, x=npy(X), y=npy(Y))
    raw = bytearray(path.read_bytes())
    for place in range(60, 900, 40):
        raw[place] ^= 255
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"not a readable \.npz file"):
        load(f"npz:{path}")


@pytest.mark.parametrize("text", ["<U0", "<U1", "|S0"])
def test_names_that_claim_gigabytes(tmp_path: Path, text: str) -> None:
    count = 2**30 if text.endswith("0") else 2**21
    header = f"{{'descr': '{text}', 'fortran_order': False, 'shape': ({count},), }}\n".encode()
    names = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    names += bytes(0 if text.endswith("0") else 4 * count)
    path = packed(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, x=npy(X), y=npy(Y), classes=names)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match=f"promises {count} texts"):
        load(f"npz:{path}")


def test_wide_integers_are_never_told_to_become_bytes(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz", x=X.astype(np.int32) * 16, y=Y)
    with pytest.raises(DataError) as caught:
        load(f"npz:{tmp_path / 'a.npz'}")
    assert "uint16" in caught.value.hint and "uint8)" not in caught.value.hint


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Test", "test"),
        ("held_out", "test"),
        ("EVAL", "test"),
        ("dev-set", "val"),
        ("trainData", "train"),
        ("cat", None),
        ("set", None),
    ],
)
def test_names_of_splits(name: str, part: str | None) -> None:
    assert part_named(name) == part


def test_order_of_names() -> None:
    assert in_order(["10", "9", "0"]) == ("0", "9", "10") and in_order(["10", "9", "x"]) == ("10", "9", "x")


def test_images_stored_class_by_class() -> None:
    assert stored_by_class(torch.arange(100) // 10) and not stored_by_class(torch.arange(100) % 10)
    assert not stored_by_class(torch.zeros(1, dtype=torch.int64))


def test_the_same_picture_twice(tmp_path: Path) -> None:
    folders(tmp_path, "train", "test")
    put(tmp_path / "test/a/again.bmp", 0, 0)
    put(tmp_path / "train/b/wrong.png", 0, 1)
    stored = load(f"folder:{tmp_path}").stored
    found = twins({name: look_at(stored, name) for name in stored.names})
    assert {(pair.kind, *sorted(pair.where)) for pair in found} == {
        ("in two splits", "test/a/again.bmp", "train/a/0.png"),
        ("under two labels", "train/a/1.png", "train/b/wrong.png"),
    }

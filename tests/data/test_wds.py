"""`wds:PATH`: what tar shards become, and what is said of damaged and hostile ones."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.looks import look_at
from robustcli.data.packed import shards as shards_module
from robustcli.data.sets.wds import expanded
from robustcli.errors import DataError
from robustcli.models.meant import meant_data

CPU = torch.device("cpu")
STORAGES = pytest.mark.parametrize("storage", ["memory", "stream", "cached"])
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def write(
    path: Path, members: Members, change: Callable[[tarfile.TarInfo], None] = lambda info: None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, stored in members:
            info = tarfile.TarInfo(name)
            info.size = len(stored)
            change(info)
            archive.addfile(info, io.BytesIO(stored) if info.isreg() else None)
    return path


@pytest.fixture
def samples(picture) -> Callable[..., Members]:
    """samples(3, 5): .png and .cls of the pictures 3 and 4, whose label is k % 2."""

    def make(first: int, end: int, label: Callable[[int], Any] = lambda k: k % 2) -> Members:
        members = []
        for k in range(first, end):
            file = io.BytesIO()
            picture(k).save(file, format="PNG")
            members += [(f"{k:04d}.png", file.getvalue()), (f"{k:04d}.cls", str(label(k)).encode())]
        return members

    return make


def load(path: object, **options: Any) -> DataBundle:
    return load_data(DataConfig(name=f"wds:{path}", **{"workers": 0, **options}))


def refused(path: object, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, **options).train.stream([torch.arange(1)], CPU).__next__()
    assert caught.value.exit_code == 3 and caught.value.what and caught.value.where and caught.value.hint
    return caught.value


def everything(split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (batch,) = split.stream([torch.arange(len(split))], CPU)
    return batch


@STORAGES
def test_shards_of_one_split_and_of_two(tmp_path: Path, samples, picture, storage: str) -> None:
    write(tmp_path / "s/train-0.tar", samples(0, 8))
    write(tmp_path / "s/train-1.tar", samples(8, 12))
    write(tmp_path / "s/test-0.tar", samples(20, 24))
    bundle = load(tmp_path / "s", storage=storage, val_fraction=0.25)
    assert (bundle.name, bundle.classes, bundle.shape) == ("wds:s", ("0", "1"), (3, 8, 8))
    assert [len(split) for split in (bundle.train, bundle.val, bundle.test)] == [9, 3, 4]
    for split, first in ((bundle.train, 0), (bundle.val, 0), (bundle.test, 20)):
        for x, y, i in zip(*everything(split), strict=True):
            k = first + int(i)
            assert torch.equal(x, torch.from_numpy(np.asarray(picture(k)).copy()).permute(2, 0, 1) / 255)
            assert int(y) == k % 2
    assert bundle.test.files(torch.tensor([1])) == ["test-0.tar/0021.png"]
    one = load(tmp_path / "s/train-{0..1}.tar", storage=storage, val_fraction=0.25)
    assert len(one.train) + len(one.val) + len(one.test) == 12 and one.name == "wds:train-{0..1}.tar"
    alone = DataConfig(name=f"wds:{tmp_path}/s/test-0.tar", storage=storage, workers=0)
    assert len(load_data(alone, parts=("test",)).test) == 2  # some of each class, as of any data of one split


def test_workers_read_the_same_shards(tmp_path: Path, samples) -> None:
    path = write(tmp_path / "s/a.tar", samples(0, 24))
    here, there = (load(path, storage="stream", workers=workers) for workers in (0, 2))
    batches = [torch.arange(3), torch.arange(3, 9)]
    for ours, theirs in zip(here.train.stream(batches, CPU), there.train.stream(batches, CPU), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_labels_are_numbers_names_or_json(tmp_path: Path, samples) -> None:
    write(tmp_path / "n/train/0.tar", samples(0, 12))
    write(tmp_path / "n/test/0.tar", samples(0, 12))
    (tmp_path / "n/classnames.txt").write_text("cat\ndog\n")
    assert load(tmp_path / "n").classes == ("cat", "dog")
    assert load(tmp_path / "n", classes=["dog", "cat"]).test.labels.tolist() == [1, 0] * 6
    path = write(tmp_path / "t.tar", samples(0, 12, lambda k: ("cat", "dog")[k % 2]))
    assert load(path).classes == ("cat", "dog")
    told = []
    for name, stored in samples(0, 12):
        as_json = json.dumps({"label": stored.decode()}).encode() if name.endswith("cls") else stored
        told.append((name.replace("cls", "json"), as_json))
    bundle = load(
        write(tmp_path / "j.tar", [*told, ("readme.txt", b"x"), ("meta.json", b"{}")]), classes=["a", "b"]
    )
    assert bundle.classes == ("a", "b") and "2 files that are not images left aside" in bundle.notes


@STORAGES
def test_the_digest_sees_another_label(tmp_path: Path, samples, storage: str) -> None:
    a = load(write(tmp_path / "a/x.tar", samples(0, 12)), storage=storage)
    b = load(write(tmp_path / "b/x.tar", samples(0, 12, lambda k: (k + 1) % 2)), storage=storage)
    assert a.digest != b.digest


def hostile(kind: str, members: Members, path: Path) -> Path:
    """A shard of good samples and one bad one."""
    bad = {"link": "aa.png", "leaves": "../aa.png", "absolute": "/aa.png", "long": "a" * 2000 + ".png"}
    name, good = bad.get(kind, "aa.png"), members

    def change(info: tarfile.TarInfo) -> None:
        if kind in ("link", "device") and info.name == "aa.png":
            info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/hostname", 0
            if kind == "device":
                info.type = tarfile.CHRTYPE

    extra = {
        "no label": [("aa.png", members[0][1])],
        "no image": [("aa.cls", b"1")],
        "not a label": [("aa.png", members[0][1]), ("aa.cls", b"seventeen")],
        "a raised digit": [("aa.png", members[0][1]), ("aa.cls", "²".encode())],
        "out of range": [("aa.png", members[0][1]), ("aa.cls", b"-1")],
        "twice": [members[0], ("aa.cls", b"1")][:1],
        "no image file": [("aa.png", b"<html>"), ("aa.cls", b"1")],
    }.get(kind, [(name, members[0][1]), (name.replace(".png", ".cls"), b"1")])
    write(path, [*good, *extra] if kind != "cut" else good, change)
    if kind == "cut":  # inside the last image
        stored = path.read_bytes()
        path.write_bytes(stored[: stored.rindex(b"IEND")])
    if kind == "end lost":  # at the border of two members, where nothing else shows it
        path.write_bytes(path.read_bytes()[: 512 * 3])
    return path


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("link", "a link"),
        ("device", "no plain file"),
        ("leaves", "leaves the shard"),
        ("absolute", "leaves the shard"),
        ("long", "too long"),
        ("no label", "no label beside the image"),
        ("no image", "no image beside the label"),
        ("not a label", "'seventeen' is none of the 2 classes"),
        ("a raised digit", "'²' is none of the 2 classes"),
        ("out of range", "'-1' is none of the 2 classes"),
        ("twice", "two members are called"),
        ("no image file", "not a readable image"),
        ("cut", "cut off"),
    ],
)
def test_what_cannot_be_read_is_an_unreadable_image(tmp_path: Path, samples, kind: str, text: str) -> None:
    root = tmp_path / "s"
    hostile(kind, samples(0, 12), root / "train-0.tar")
    write(root / "test-0.tar", samples(0, 4))
    for storage in ("memory", "stream"):
        bundle = load(root, storage=storage, bad_image="skip", max_bad=0.3, val_fraction=0)
        assert len(bundle.train) in (11, 12) and len(bundle.test) == 4
        assert any(note.startswith("skipped") and text in note for note in bundle.notes), bundle.notes
    assert text in refused(root, val_fraction=0).what
    assert text in refused(root, bad_image="skip", max_bad=0.01, val_fraction=0).what
    looks = look_at(load_data(DataConfig(name=f"wds:{root}"), parts=()).stored, "train")
    assert len(looks.faults) in (1, 2) and any(text in fault.what for fault in looks.faults)
    (root / "train-0.tar").rename(root / "eval-0.tar")
    (root / "test-0.tar").rename(root / "train-0.tar")
    assert "never skipped" in refused(root, bad_image="skip", max_bad=1).hint, "evaluation images"


def test_a_shard_that_ends_early_says_so(tmp_path: Path, samples) -> None:
    path = write(tmp_path / "s/x.tar", samples(0, 8))
    whole = path.read_bytes()
    archive = tarfile.open(path)
    border = archive.getmembers()[8].offset
    path.write_bytes(whole[:border])
    assert "what follows is lost" in refused(path).what
    path.write_bytes(whole[:border] + b"\xff" * 512 + whole[border:])
    assert "damaged" in refused(path).what
    path.write_bytes(whole + whole)
    assert "more members stand behind its end" in refused(path).what


def test_huge_members_are_not_read(tmp_path: Path, samples, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.tar", samples(0, 8))
    monkeypatch.setattr(shards_module, "MOST_BYTES", 100)
    assert "more than 100 (bomb?)" in refused(path).what
    bomb = bytearray(path.read_bytes())
    bomb[156:157] = tarfile.XHDTYPE  # the first header promises 8 GiB of names
    bomb[124:136] = b"77777777777\0"
    bomb[148:156] = b" " * 8
    bomb[148:156] = b"%06o\0 " % sum(bomb[:512])
    path.write_bytes(bomb)
    assert "a header of" in refused(path).what


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: root / "nothing", "no such file or folder"),
        (lambda root: root, "no .tar shards"),
        (lambda root: root / "x-{0..3}.tar", "4 of 4 shards are missing"),
        (lambda root: root / "x-{3..0}.tar", "no range of shards"),
        (lambda root: root / "x-{0..999999999}.tar", "no range of shards"),
        (lambda root: root / "x-{a}.tar", "no list of shards"),
    ],
)
def test_what_is_said_of_no_shards(tmp_path: Path, make, text: str) -> None:
    assert text in refused(make(tmp_path)).what


def test_packed_shards_are_refused(tmp_path: Path, samples) -> None:
    path = write(tmp_path / "x.tar", samples(0, 4))
    path.write_bytes(b"\x1f\x8b" + path.read_bytes())
    assert "gunzip" in refused(path).hint
    path.rename(tmp_path / "x.tar.gz")
    assert "gunzip" in refused(tmp_path).hint


def test_what_the_names_leave_open_is_an_error(tmp_path: Path, samples) -> None:
    for name in ("a-0", "b-0"):
        write(tmp_path / f"{name}.tar", samples(0, 8))
    assert "data.splits.train=a data.splits.test=b" in refused(tmp_path).hint
    bundle = load(tmp_path, splits={"train": "a", "test": "b"})
    assert len(bundle.test) == 8
    write(tmp_path / "dev-0.tar", samples(0, 8))
    write(tmp_path / "val-0.tar", samples(0, 8))
    assert "two words for one split, val" in refused(tmp_path).what


def test_braces_and_paths_name_shards(tmp_path: Path) -> None:
    assert expanded("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert expanded("{x,y}/{0..1}.tar") == ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]
    (tmp_path / "s").mkdir()
    (tmp_path / "s/0.tar").touch()
    known = ["folder", "npz", "csv", "wds", "hf"]
    assert meant_data(str(tmp_path / "s"), known) == f"wds:{tmp_path / 's'}"
    assert meant_data("a-{0..3}.tar", known) == "wds:a-{0..3}.tar"
    assert meant_data("x.parquet", known) == "hf:x.parquet"
    assert meant_data(str(tmp_path), known) == f"folder:{tmp_path}"

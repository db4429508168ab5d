"""`hf:PATH`: what parquet files become, and what is said of wrong ones."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.extra import extra_split
from robustcli.data.looks import look_at
from robustcli.errors import DataError, ResourceError

pa = pytest.importorskip("pyarrow", reason="the extra `parquet` (pyarrow) is not installed")
pq = pytest.importorskip("pyarrow.parquet")

CPU = torch.device("cpu")
STORAGES = pytest.mark.parametrize("storage", ["memory", "stream", "cached"])
NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(picture) -> Callable[..., Path]:
    """write(path, 3, 9): a file with the pictures 3 to 8, whose label is k % 2."""

    def make(
        path: Path, first: int, end: int, *, names: Any = NAMES, column: str = "label", **others: Any
    ) -> Path:
        stored = []
        for k in range(first, end):
            file = io.BytesIO()
            picture(k).save(file, format="PNG")
            stored.append({"bytes": file.getvalue(), "path": f"{k}.png"})
        table = pa.table({"image": stored, column: [k % 2 for k in range(first, end)], **others})
        path.parent.mkdir(parents=True, exist_ok=True)
        described = {"huggingface": json.dumps(names)} if names else None
        pq.write_table(table.replace_schema_metadata(described), path, row_group_size=5)
        return path

    return make


def load(path: object, **options: Any) -> DataBundle:
    return load_data(DataConfig(name=f"hf:{path}", **{"workers": 0, **options}))


def refused(path: object, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 3 and caught.value.what and caught.value.where and caught.value.hint
    return caught.value


def put(root: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), root / "x.parquet")


def everything(split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (batch,) = split.stream([torch.arange(len(split))], CPU)
    return batch


@STORAGES
def test_the_layout_of_the_hub(tmp_path: Path, write, picture, storage: str) -> None:
    root = tmp_path / "set"
    write(root / "data/train-00000-of-00002.parquet", 0, 8)
    write(root / "data/train-00001-of-00002.parquet", 8, 12)
    write(root / "data/test-00000-of-00001.parquet", 20, 24)
    bundle = load(root, storage=storage, val_fraction=0.25)
    assert (bundle.name, bundle.classes, bundle.shape) == ("hf:set", ("cat", "dog"), (3, 8, 8))
    assert [len(split) for split in (bundle.train, bundle.val, bundle.test)] == [9, 3, 4]
    for split, first in ((bundle.train, 0), (bundle.val, 0), (bundle.test, 20)):
        for x, y, i in zip(*everything(split), strict=True):
            k = first + int(i)
            assert torch.equal(x, torch.from_numpy(np.asarray(picture(k)).copy()).permute(2, 0, 1) / 255)
            assert int(y) == k % 2
    assert bundle.test.files(torch.tensor([1])) == ["data/test-00000-of-00001.parquet[1]"]
    os.remove(root / "data/train-00001-of-00002.parquet")
    assert "1 of 2 files of train are there" in refused(root).what


def test_one_file_words_and_configurations(tmp_path: Path, write) -> None:
    one = write(tmp_path / "one.parquet", 0, 24)
    assert [len(split) for split in (load(one).train, load(one).val, load(one).test)] == [16, 2, 6]
    for place in ("train/0000", "validation/0000", "test/0000", "extra/0000"):
        write(tmp_path / f"b/full/{place}.parquet", 0, 8)
    bundle = load(tmp_path / "b", size=4)
    assert [len(split) for split in (bundle.train, bundle.val, bundle.test)] == [8, 8, 8]
    assert bundle.shape == (3, 4, 4) and "left aside: extra" in bundle.notes
    assert len(load(tmp_path / "b", splits={"test": "extra"}).test) == 8
    write(tmp_path / "b/cropped/train-00000-of-00001.parquet", 0, 8)
    assert "several data sets: cropped, full" in refused(tmp_path / "b").what


def test_workers_and_extra_data(tmp_path: Path, write) -> None:
    path = write(tmp_path / "a.parquet", 0, 24)
    here, there = (load(path, storage="stream", workers=workers) for workers in (0, 2))
    batches = [torch.arange(3), torch.arange(3, 9)]
    for ours, theirs in zip(here.train.stream(batches, CPU), there.train.stream(batches, CPU), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    more = write(tmp_path / "more.parquet", 24, 40)
    assert len(extra_split(f"hf:{more}", here, DataConfig(workers=0))) == 16


@pytest.mark.parametrize("place", ["dataset_info.json", "README.md", "names", "nowhere"])
def test_where_the_names_of_classes_stand(tmp_path: Path, write, place: str) -> None:
    root = tmp_path / "set"
    labels = {"label": pa.array(["dog", "cat"] * 6)} if place == "names" else {}
    write(
        root / "train-00000-of-00001.parquet",
        0,
        12,
        names=None,
        column="other" if labels else "label",
        **labels,
    )
    if place == "dataset_info.json":
        (root / place).write_text(json.dumps(NAMES["info"]))
    if place == "README.md":
        head = "dataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
        (root / place).write_text(f"---\n{head}          '0': cat\n          '1': dog\n---\n# text\n")
    assert load(root, val_fraction=0.25).classes == (("0", "1") if place == "nowhere" else ("cat", "dog"))


@pytest.mark.parametrize("kind", ["grey", "colour", "float", "int64", "fixed", "first"])
def test_arrays(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 6, 6) if kind in ("grey", "fixed") else (24, 6, 6, 3), dtype=np.uint8)
    stored = x / np.float32(255) if kind == "float" else x.transpose(0, 3, 1, 2) if kind == "first" else x
    element = {"float": pa.float32(), "int64": pa.int64()}.get(kind, pa.uint8())
    column = element
    for length in reversed(stored.shape[1:]):
        column = pa.list_(column, length) if kind == "fixed" else pa.list_(column)
    table = pa.table({"image": pa.array(stored.tolist(), column), "label": [k % 2 for k in range(24)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    bundle = load(tmp_path / "x.parquet")
    images = torch.from_numpy(x.reshape(24, 6, 6, -1)).permute(0, 3, 1, 2) / 255
    for split in (bundle.train, bundle.val, bundle.test):
        pixels, labels, ids = everything(split)
        assert torch.allclose(pixels, images[ids], atol=1e-7) and labels.tolist() == (ids % 2).tolist()
    ragged = pa.table({"image": [[[1, 2], [3, 4]], [[1, 2]]] * 8, "label": [0, 1] * 8})
    pq.write_table(ragged, tmp_path / "y.parquet")
    assert "differ in shape" in refused(tmp_path / "y.parquet").what


def test_what_cannot_be_read_is_an_unreadable_image(tmp_path: Path, write, monkeypatch) -> None:
    path = write(tmp_path / "set/train-00000-of-00001.parquet", 0, 20)
    table = pq.read_table(path).to_pydict()
    table["image"][2] = {"bytes": None, "path": "/etc/hostname"}
    table["image"][9] = {"bytes": b"<html>", "path": None}
    table["label"][13] = -1
    pq.write_table(pa.table(table), path, row_group_size=5)
    write(tmp_path / "set/test-00000-of-00001.parquet", 0, 4)
    for storage in ("memory", "stream"):
        bundle = load(tmp_path / "set", storage=storage, bad_image="skip", max_bad=0.3, val_fraction=0)
        assert len(bundle.train) == 17 and len(bundle.test) == 4
        told = [note for note in bundle.notes if note.startswith("skipped")]
        texts = ("only a path", "not a readable image", "none of the 2 classes")
        assert len(told) == 3 and all(text in note for text, note in zip(texts, told, strict=True))
    assert "(+2 more in train)" in refused(tmp_path / "set").what
    looks = look_at(load_data(DataConfig(name=f"hf:{tmp_path}/set"), parts=()).stored, "train")
    assert len(looks.faults) == 3 and len(looks.images) == 17
    stored = bytearray(path.read_bytes())
    stored[4:900] = b"\0" * 896  # pages of the first row group
    path.write_bytes(stored)
    assert "not a readable parquet file" in refused(tmp_path / "set").what


def test_hidden_labels_are_left_aside(tmp_path: Path, write) -> None:
    write(tmp_path / "s/train-00000-of-00001.parquet", 0, 24)
    path = write(tmp_path / "s/test-00000-of-00001.parquet", 0, 4)
    pq.write_table(pa.table(pq.read_table(path).to_pydict() | {"label": [-1] * 4}), path)
    bundle = load(tmp_path / "s")
    assert "test: images without labels, left aside" in bundle.notes and len(bundle.test) == 6


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: (root / "x.parquet").write_bytes(b"PAR1 cut off"), "not a readable parquet file"),
        (lambda root: put(root, text=["a"], label=[1]), "no column of images"),
        (lambda root: put(root, image=[b"a"], z=[1.5]), "no column of labels"),
        (lambda root: os.mkfifo(root / "x.parquet"), "not a regular file"),
        (lambda root: os.symlink("/etc/hostname", root / "x.parquet"), "link leaves the data folder"),
        (lambda root: None, "no .parquet files"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_wrong_file(tmp_path: Path, make, text: str) -> None:
    make(tmp_path)
    assert text in refused(tmp_path).what


@pytest.mark.parametrize("other", ["image", "label", "arrays"])
def test_all_files_of_a_split_have_the_same_columns(tmp_path: Path, write, other: str) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", 0, 10)
    second = tmp_path / "train-00001-of-00002.parquet"
    table = pq.read_table(write(second, 10, 20))
    if other == "arrays":
        table = pa.table({"image": [[[0, 1], [2, 3]]] * 10, "label": table["label"]})
    else:
        table = table.rename_columns({other: {"image": "img", "label": "target"}[other]})
    pq.write_table(table, second)
    fault = refused(tmp_path)
    assert "other columns than in" in fault.what and fault.where.endswith("train-00001-of-00002.parquet")


def test_a_name_of_the_hub_is_read_from_its_cache_alone(tmp_path: Path, write, monkeypatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    error = refused("some/pets")
    assert error.code == "E-DOWNLOAD" and "hf download some/pets" in error.hint
    repo = tmp_path / "hub/hub/datasets--some--pets"
    write(repo / "blobs/abc", 0, 24)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("123")
    (repo / "snapshots/123/data").mkdir(parents=True)
    (repo / "snapshots/123/data/train-00000-of-00001.parquet").symlink_to("../../../blobs/abc")
    bundle = load("some/pets")
    assert bundle.name == "hf:some/pets" and len(bundle.train) == 16
    assert refused("../../etc").code == "E-FILE"
    (repo / "refs/main").write_text("../../../..")
    assert len(load("some/pets").train) == 16, "the only version"


def test_no_code_of_a_file_runs(tmp_path: Path, write) -> None:
    """Old pyarrow unpickled types that a file named; ours never asks for them."""
    canary = tmp_path / "canary"
    pickled = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    field = pa.field("image", pa.binary(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled,
    })  # fmt: skip
    source = pq.read_table(write(tmp_path / "a.parquet", 0, 24)).to_pydict()
    columns = [pa.array([image["bytes"] for image in source["image"]]), pa.array(source["label"])]
    table = pa.Table.from_arrays(columns, schema=pa.schema([field, pa.field("label", pa.int64())]))
    pq.write_table(table, tmp_path / "b.parquet")
    assert len(load(tmp_path / "b.parquet").train) == 16 and not canary.exists()


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ResourceError, match=r"robustcli\[parquet\]") as caught:
        load(tmp_path)
    assert caught.value.code == "E-EXTRA"

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.config.sections import Augment, DataConfig
from robustcli.data import listings as module
from robustcli.data.datasets import load_data
from robustcli.data.split import MemorySplit
from robustcli.data.stream import StreamSplit
from robustcli.errors import DataError

CPU = torch.device("cpu")
SPLITS = {"train/cat": 12, "train/dog": 8, "test/cat": 4, "test/dog": 3}
STORAGES = pytest.mark.parametrize("storage", ["memory", "stream", "cached"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(root: Path, **options):
    return load_data(DataConfig(name=f"folder:{root}", **{"workers": 0, **options}), allow_download=False)


def refused(root: Path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        load(root, **options)
    error = caught.value
    assert error.exit_code == 3 and error.what and error.where and error.hint
    return error


def everything(split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (batch,) = split.stream([torch.arange(len(split))], CPU)
    return batch


@STORAGES
def test_train_and_test(make_folder, picture, storage: str) -> None:
    bundle = load(make_folder(SPLITS), storage=storage)
    assert isinstance(bundle.train, StreamSplit if storage == "stream" else MemorySplit)
    assert (
        bundle.name == "folder:images"
        and bundle.classes == ("cat", "dog")
        and bundle.shape == (3, 8, 8)
        and bundle.num_classes == 2
    )
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (18, 2, 7)
    assert bundle.presets == {} and len(bundle.digest) == 64
    x, y, ids = everything(bundle.test)
    assert y.tolist() == [0, 0, 0, 0, 1, 1, 1] and ids.tolist() == list(range(7))
    expected = torch.from_numpy(np.asarray(picture(3000 + 1)).transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(x[5], expected) and x.dtype == torch.float32


def test_ids_follow_the_stored_split(make_folder) -> None:
    bundle = load(make_folder(SPLITS))
    train, val = everything(bundle.train)[2], everything(bundle.val)[2]
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(20))
    assert torch.equal(bundle.train.labels, (bundle.train.ids >= 12).long())
    part = bundle.train.subset(torch.tensor([3, 1]))
    assert part.ids.tolist() == [int(train[3]), int(train[1])]
    assert torch.equal(everything(part)[0], everything(bundle.train)[0][[3, 1]])


def test_memory_and_stream_agree(make_folder) -> None:
    root = make_folder(SPLITS)
    memory, stream = load(root, storage="memory"), load(root, storage="stream")
    for part in ("train", "val", "test"):
        for a, b in zip(everything(getattr(memory, part)), everything(getattr(stream, part)), strict=True):
            assert torch.equal(a, b)
    assert memory.mean == stream.mean and memory.std == stream.std and memory.augment == stream.augment


def test_auto_streams_what_does_not_fit(make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(SPLITS)
    assert isinstance(load(root).train, MemorySplit)
    monkeypatch.setattr(module, "MEMORY_BYTES", 27 * 3 * 64 - 1)
    assert isinstance(load(root).train, StreamSplit)


def test_three_splits_and_other_names(make_folder) -> None:
    bundle = load(
        make_folder(
            {
                "training/a": 3,
                "training/b": 3,
                "valid/a": 2,
                "valid/b": 2,
                "test/a": 1,
                "test/b": 1,
                "docs/c": 0,
            }
        )
    )
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (6, 4, 2)
    assert any("folders left aside: docs" in note for note in bundle.notes)


def test_only_class_folders_are_split_by_seed(make_folder) -> None:
    root = make_folder({"cat": 40, "dog": 20})
    bundle = load(root)
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (40, 5, 15)
    assert torch.bincount(bundle.test.labels).tolist() == [10, 5]
    ids = [everything(split)[2].tolist() for split in (bundle.train, bundle.val, bundle.test)]
    assert sorted(sum(ids, [])) == list(range(60))
    assert load(root, split_seed=1).test.ids.tolist() != bundle.test.ids.tolist()
    assert load(root).test.ids.tolist() == bundle.test.ids.tolist()


def test_only_a_test_folder(make_folder) -> None:
    bundle = load(make_folder({"test/a": 8, "test/b": 8}))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (10, 2, 4)
    assert any("only the test split" in note for note in bundle.notes)


def test_lone_val_is_the_test(make_folder) -> None:
    bundle = load(make_folder({"train/a": 8, "train/b": 8, "val/a": 2, "val/b": 2}))
    assert (len(bundle.train), len(bundle.val), len(bundle.test)) == (14, 2, 4)


@STORAGES
def test_grey_folder_has_one_channel(make_folder, storage: str) -> None:
    assert load(make_folder(SPLITS, mode="L"), storage=storage).shape == (1, 8, 8)


@STORAGES
def test_one_colour_image_makes_all_rgb(make_folder, picture, storage: str) -> None:
    root = make_folder(SPLITS, mode="L")
    picture(1).save(root / "test/dog/002.png")
    bundle = load(root, storage=storage)
    x, _, _ = everything(bundle.test)
    assert bundle.shape == (3, 8, 8)
    assert torch.equal(x[0, 0], x[0, 2]) and not torch.equal(x[6, 0], x[6, 2])


def test_size(make_folder) -> None:
    root = make_folder(SPLITS, size=(10, 12))
    assert load(root, size=6).shape == (3, 6, 6)
    assert "not square: 3x12x10" in refused(root).what


@STORAGES
def test_one_odd_size(make_folder, picture, storage: str) -> None:
    root = make_folder(SPLITS)
    picture(1, 9).save(root / "test/dog/001.png")
    if storage != "stream":
        error = refused(root, bad_image="skip", max_bad=1)
    else:
        with pytest.raises(DataError) as caught:
            everything(load(root, storage=storage).test)
        error = caught.value
    assert (
        "expected 3x8x8, got 3x9x9" in error.what and "001.png" in error.where and "data.size" in error.hint
    )


def test_other_files_are_counted_hidden_ones_not_seen(make_folder) -> None:
    root = make_folder(SPLITS)
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/.DS_Store").write_text("x")
    (root / "train/.hidden").mkdir()
    (root / "__MACOSX").mkdir()
    assert "1 files that are not images left aside" in load(root).notes


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({}, "no such folder"),
        ({"train": 0, "test/a": 1}, "no class folders"),
        ({"train/a": 2, "train/b": 0, "test/a": 1, "test/b": 1}, "no image of class 'b' in the train split"),
        ({"train/a": 2, "train/b": 2, "test/a": 1, "test/c": 1}, "missing 'b'; unexpected 'c'"),
        ({"train/a": 2, "test/a": 1, "test/b": 1}, "unexpected 'b'"),
        ({"train/a\x1b[31m": 1}, "control or undecodable"),
        ({"train/a": 1, "training/a": 1}, "two folders for one split"),
        ({"val/a": 1, "test/a": 1}, "no images to train on: only val and test"),
    ],
)
def test_wrong_trees(make_folder, counts: dict[str, int], text: str) -> None:
    root = make_folder(counts)
    assert text in refused(root).what


def test_only_hidden_files(make_folder) -> None:
    root = make_folder(SPLITS)
    for file in (root / "test/dog").iterdir():
        file.rename(file.with_name("." + file.name))
    assert "test has no image of 1 of 2 classes: dog" in load(root).notes
    for file in (root / "train/dog").iterdir():
        file.rename(file.with_name("." + file.name))
    assert "no image of class 'dog' in the train split" in refused(root).what


def test_class_folder_may_not_lead_outside(make_folder, tmp_path: Path, picture) -> None:
    root = make_folder(SPLITS)
    (tmp_path / "elsewhere").mkdir()
    picture(1).save(tmp_path / "elsewhere/x.png")
    (root / "train/emu").symlink_to(tmp_path / "elsewhere")
    assert "link leaves the data folder" in refused(root).what


def test_val_fraction_zero(make_folder) -> None:
    bundle = load(make_folder(SPLITS), val_fraction=0)
    assert (len(bundle.train), len(bundle.val)) == (20, 0)
    assert "val: none (data.val_fraction=0): the last checkpoint is the best" in bundle.notes


def test_rare_class_may_miss_in_a_carved_val(make_folder) -> None:
    bundle = load(make_folder({"train/a": 9, "train/b": 1, "test/a": 1, "test/b": 1}))
    assert any("val has no image of 1 of 2 classes" in note for note in bundle.notes)


def spoil(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(b"broken")


@STORAGES
def test_bad_image_fails_by_default(make_folder, storage: str) -> None:
    root = make_folder(SPLITS)
    spoil(root, "train/dog/003.png", "train/cat/001.png")
    if storage != "stream":
        error = refused(root, val_fraction=0.05)
        assert "(+1 more in train)" in error.what
    else:
        with pytest.raises(DataError) as caught:
            everything(load(root, storage=storage).train)
        error = caught.value
    assert error.where.endswith("train/cat/001.png") and error.exit_code == 3


def positions(root: Path) -> tuple[list[int], list[int]]:
    bundle = load(root)
    return bundle.train.ids.tolist(), bundle.val.ids.tolist()


def file_of(i: int) -> str:
    return f"train/cat/{i:03d}.png" if i < 12 else f"train/dog/{i - 12:03d}.png"


@STORAGES
def test_skip_drops_training_images_and_keeps_ids(make_folder, storage: str) -> None:
    root = make_folder(SPLITS)
    train, val = positions(root)
    spoil(root, file_of(train[4]))
    os.unlink(root / file_of(train[6]))
    os.mkfifo(root / file_of(train[6]))
    bundle = load(root, storage=storage, bad_image="skip", max_bad=0.2)
    assert bundle.train.ids.tolist() == [i for i in train if i not in (train[4], train[6])]
    assert bundle.val.ids.tolist() == val
    assert everything(bundle.train)[0].shape[0] == 16
    skipped = [note for note in bundle.notes if note.startswith("skipped")]
    assert len(skipped) == 2 and file_of(train[4]) in skipped[0] and "not a readable image" in skipped[0]


@STORAGES
def test_notes_are_plain_text_whatever_the_file_names(make_folder, storage: str) -> None:
    root = make_folder(
        {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1, "other\x1b[2J": 0}
    )
    odd = os.fsdecode(os.fsencode(root / "train/a") + b"/\xff\x1b[2J.png")
    (root / "train/a/000.png").rename(odd)
    Path(odd).write_bytes(b"broken")
    bundle = load(root, storage=storage, bad_image="skip", max_bad=0.2)
    assert len(bundle.train) == 7 and any(note.startswith("skipped") for note in bundle.notes)
    for note in bundle.notes:
        assert note.isprintable() and note.encode()
    with pytest.raises(DataError) as caught:
        everything(load(root, storage=storage).train)
    assert caught.value.line().isprintable() and caught.value.line().encode()


@STORAGES
def test_skip_has_a_cap(make_folder, storage: str) -> None:
    root = make_folder(SPLITS)
    train, _ = positions(root)
    spoil(root, file_of(train[4]), file_of(train[5]))
    error = refused(root, storage=storage, bad_image="skip", max_bad=0.1)
    assert "2 of 18 training images are unreadable, more than data.max_bad=0.1" in error.what


def test_evaluation_images_are_never_skipped(make_folder) -> None:
    root = make_folder(SPLITS)
    _, val = positions(root)
    spoil(root, "test/cat/001.png")
    error = refused(root, bad_image="skip", max_bad=1)
    assert error.where.endswith("test/cat/001.png") and "never skipped" in error.hint
    (root / "test/cat/001.png").unlink()
    spoil(root, file_of(val[0]))
    assert "never skipped" in refused(root, bad_image="skip", max_bad=1).hint


def test_all_images_bad(make_folder) -> None:
    root = make_folder({"a": 2, "b": 2})
    spoil(root, "a/000.png", "a/001.png", "b/000.png", "b/001.png")
    assert refused(root, bad_image="skip", max_bad=1).where.endswith("a/000.png")


def test_digest_sees_pixels_labels_and_names(make_folder, picture) -> None:
    root = make_folder(SPLITS)
    first = load(root).digest
    assert load(root).digest == first
    assert load(root, storage="stream").digest == load(root, storage="stream").digest
    picture(77).save(root / "train/cat/003.png")
    second = load(root).digest
    (root / "train/cat/003.png").rename(root / "train/dog/999.png")
    third = load(root).digest
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "wolf")
    assert len({first, second, third, load(root).digest}) == 4


def test_stream_digest_sees_names_and_sizes(make_folder) -> None:
    root = make_folder(SPLITS)
    first = load(root, storage="stream").digest
    (root / "train/cat/003.png").rename(root / "train/cat/990.png")
    assert load(root, storage="stream").digest != first


def test_augment_choice(make_folder) -> None:
    root = make_folder(SPLITS, size=16)
    assert load(root).augment == Augment(crop=4, flip=True)
    assert "augment: crop 4, flip (auto)" in load(root).notes
    assert load(root, size=65).augment == Augment(crop=0, flip=True)
    assert load(root, augment="none").augment == Augment(crop=0, flip=False)
    assert load(root, augment=Augment(crop=2, flip=False)).augment == Augment(crop=2, flip=False)


def test_statistics(make_folder) -> None:
    bundle = load(make_folder(SPLITS))
    x, _, _ = everything(bundle.train)
    assert bundle.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=2e-5)
    assert bundle.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), abs=2e-5)

"""`csv:PATH`: what a table of paths and labels becomes, and what is said of a wrong one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.cli.main import run
from robustcli.config.sections import DataConfig
from robustcli.data.bundle import DataBundle
from robustcli.data.datasets import load_data
from robustcli.data.extra import extra_split
from robustcli.data.split import MemorySplit
from robustcli.data.stream import StreamSplit
from robustcli.errors import DataError

CPU = torch.device("cpu")
STORAGES = pytest.mark.parametrize("storage", ["memory", "stream", "cached"])
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def images(tmp_path: Path, picture) -> Path:
    """A folder of 0.png to 23.png; image k shows picture(k)."""
    folder = tmp_path / "set" / "photos"
    folder.mkdir(parents=True)
    for k in range(24):
        picture(k).save(folder / f"{k}.png")
    return folder.parent


@pytest.fixture
def table(images: Path) -> Make:
    """table("a,b", ...): these lines below the header path,label; `header` for another one."""

    def make(*lines: str, header: str = "path,label") -> Path:
        path = images / "list.csv"
        path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
        return path

    return make


def labelled(k: int) -> str:
    return f"photos/{k}.png,{'cat' if k < 16 else 'dog'}"


def load(path: Path, **options) -> DataBundle:
    return load_data(DataConfig(name=f"csv:{path}", **{"workers": 0, **options}))


def refused(path: Path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    error = caught.value
    assert error.exit_code == 3 and error.what and error.where and error.hint
    return error


def everything(split) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (batch,) = split.stream([torch.arange(len(split))], CPU)
    return batch


def splits(bundle: DataBundle):
    return bundle.train, bundle.val, bundle.test


# ---- what becomes of a table ---------------------------------------------------------------------------


@STORAGES
def test_every_image_has_its_label(table: Make, picture, storage: str) -> None:
    bundle = load(table(*map(labelled, range(24))), storage=storage)
    assert (bundle.name, bundle.classes, bundle.shape) == ("csv:list.csv", ("cat", "dog"), (3, 8, 8))
    assert isinstance(bundle.train, StreamSplit if storage == "stream" else MemorySplit)
    assert [len(split) for split in splits(bundle)] == [16, 2, 6]
    names = sorted(f"{k}.png" for k in range(24))
    seen = []
    for split in splits(bundle):
        for x, y, i in zip(*everything(split), strict=True):
            k = int(names[int(i)].removesuffix(".png"))
            pixels = torch.from_numpy(np.asarray(picture(k)).transpose(2, 0, 1).copy()).float() / 255
            assert torch.equal(x, pixels) and int(y) == (k >= 16)
            seen.append(k)
    assert sorted(seen) == list(range(24)), "the id is the place of the path among the sorted paths"


def test_the_order_of_the_lines_does_not_matter(table: Make) -> None:
    first = load(table(*map(labelled, range(24))))
    other = load(table(*map(labelled, reversed(range(24)))))
    assert first.digest == other.digest and torch.equal(first.test.ids, other.test.ids)


def test_a_column_of_splits(table: Make) -> None:
    lines = [f"{labelled(k)},{('train', 'val', 'test')[k % 3]}" for k in range(24)]
    bundle = load(table(*lines, header="path,label,split"))
    assert [len(split) for split in splits(bundle)] == [8, 8, 8]
    assert not [note for note in bundle.notes if "split_seed" in note]
    lines = [f"{labelled(k)},{'test' if k % 3 else 'train'}" for k in range(24)]
    two = load(table(*lines, header="path,label,split"), val_fraction=0.25)
    assert len(two.test) == 16 and len(two.train) + len(two.val) == 8


def test_integer_labels_are_sorted_as_numbers(table: Make) -> None:
    lines = [f"photos/{k}.png,{14 - k % 8},{('train', 'val', 'test')[k // 8]}" for k in range(24)]
    bundle = load(table(*lines, header="path,label,split"))
    assert bundle.classes == tuple(str(k) for k in range(7, 15))
    lines = [f"photos/{k}.png,{('2', '10', 'x')[k % 3]}" for k in range(24)]
    assert load(table(*lines)).classes == ("10", "2", "x")


def test_spreadsheets_and_hands_write_more_than_the_fields(images: Path, table: Make) -> None:
    plain = load(table(*map(labelled, range(24))))
    text = "split , path,who,label\r\n"
    text += "".join(f'train, "photos/../photos/{k}.png",me ,{labelled(k)[-3:]} \r\n' for k in range(24))
    (images / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    bundle = load(images / "list.csv")
    assert bundle.digest == plain.digest and "columns left aside: who" in bundle.notes


def test_a_repeated_line_counts_once(table: Make) -> None:
    once = load(table(*map(labelled, range(24))))
    twice = load(table(*map(labelled, range(24)), "./photos/3.png,cat", labelled(3)))
    assert once.digest == twice.digest and "2 repeated lines left aside" in twice.notes


@STORAGES
def test_the_digest_sees_another_label(table: Make, storage: str) -> None:
    first = load(table(*map(labelled, range(24))), storage=storage).digest
    lines = [labelled(k) for k in range(24)]
    lines[0], lines[20] = lines[0].replace("cat", "dog"), lines[20].replace("dog", "cat")
    assert load(table(*lines), storage=storage).digest != first


def test_a_table_as_extra_data(table: Make, images: Path) -> None:
    bundle = load(table(*map(labelled, range(24))))
    (images / "more.csv").write_text(
        "\n".join(["path,label", *map(labelled, range(8, 24))]), encoding="utf-8"
    )
    for storage in ("memory", "stream"):
        config = DataConfig(storage=storage, workers=0)
        extra = extra_split(f"csv:{images / 'more.csv'}", bundle, config)
        assert len(extra) == 16 and torch.bincount(extra.labels).tolist() == [8, 8]
        assert isinstance(extra.parts[0], StreamSplit) == (storage == "stream")


def test_unreadable_training_images_may_be_skipped(table: Make, images: Path) -> None:
    (images / "photos/0.png").write_bytes(b"broken")
    lines = [f"{labelled(k)},{('train', 'val', 'test')[k % 3]}" for k in range(24)]
    bundle = load(table(*lines, header="path,label,split"), bad_image="skip", max_bad=0.2)
    assert len(bundle.train) == 7 and any(note.startswith("skipped") for note in bundle.notes)


# ---- what is said of a wrong one -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "line", "text"),
    [
        (["path,class", "photos/0.png,cat"], 1, "no column label"),
        (["path;label", "photos/0.png;cat"], 1, "no column path and label"),
        ([""], 1, "no column path and label"),
        (["path,label,label", "photos/0.png,cat,cat"], 1, "two columns of one name"),
        (["path,label", "photos/0.png"], 2, "more or fewer fields"),
        (["path,label", "photos/0.png,cat", "photos/1,1.png,cat"], 3, "more or fewer fields"),
        (["path,label", "photos/0.png,"], 2, "an empty path or label"),
        (["path,label", " ,cat"], 2, "an empty path or label"),
        (["path,label", "photos/0.png,\x1b[2J"], 2, "control characters"),
        (
            ["path,label", "photos/0.png\0,cat"],
            2,
            "not a table" if sys.version_info < (3, 11) else "control characters",
        ),
        (["path,label,split", "photos/0.png,cat,tset"], 2, "unknown split 'tset'"),
        (["path,label", "photos/0.png,cat", 'photos/1.png,"dog'], 3, "not a table"),
        (["path,label", "photos/0.png,cat", "photos/99.png,dog", "x,dog"], 3, "'photos/99.png' (+1 more)"),
        (["path,label", "photos/0.png,cat", "./photos/0.png,dog"], 3, "label 'dog', and 'cat' in line 2"),
        (
            ["path,label,split", "photos/0.png,cat,train", "photos/0.png,cat,test"],
            3,
            "split 'test', and 'train' in line 2",
        ),
        (["path,label", "../set/photos/0.png,cat"], 2, "leaves the folder of the table"),
        (["path,label", "/etc/hostname,cat"], 2, "leaves the folder of the table"),
        (["path,label", "elsewhere/0.png,cat"], 2, "leaves the folder of the table"),
        (["path,label", "elsewhere/9.png,cat", "elsewhere/0.png,cat"], 2, "leaves the folder of the table"),
    ],
)
def test_a_fault_has_its_line(images: Path, picture, lines: list[str], line: int, text: str) -> None:
    (images.parent / "other").mkdir()
    picture(1).save(images.parent / "other/0.png")
    (images / "elsewhere").symlink_to(images.parent / "other")
    (images / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    error = refused(images / "list.csv")
    assert text in error.what and error.where == f"{images / 'list.csv'}:{line}"
    assert error.line().isprintable()


def test_text_in_another_encoding(images: Path) -> None:
    (images / "list.csv").write_bytes("path,label\nphotos/0.png,café\n".encode("latin-1"))
    error = refused(images / "list.csv")
    assert error.what == "not UTF-8 text" and error.where.endswith("list.csv:2")


@pytest.mark.parametrize(
    ("header", "lines", "code", "text"),
    [
        ("path,label", [], "E-EMPTY", "the table names no image"),
        (
            "path,label,split",
            [f"{labelled(0)},train", "photos/20.png,dog,test"],
            "E-EMPTY",
            "no image of class 'dog' in the train split",
        ),
        (
            "path,label,split",
            [f"{labelled(0)},val", f"{labelled(1)},test"],
            "E-DATA",
            "no images to train on: only val and test",
        ),
    ],
)
def test_a_fault_of_the_whole_table(table: Make, header: str, lines: list[str], code: str, text: str) -> None:
    path = table(*lines, header=header)
    error = refused(path)
    assert error.what == text and error.code == code and error.where == str(path)


def test_no_table(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.csv").what
    assert "not a regular file" in refused(tmp_path).what


@pytest.mark.parametrize("storage", ["memory", "cached"])
def test_an_unreadable_image_has_its_line(table: Make, images: Path, storage: str) -> None:
    path = table(*map(labelled, range(24)))
    (images / "photos/7.png").write_bytes(b"broken")
    error = refused(path, storage=storage)
    assert error.code == "E-IMAGE" and error.where == f"{path}:9: photos/7.png"
    (images / "photos/7.png").unlink()
    os.mkfifo(images / "photos/7.png")
    assert "not a regular file" in refused(path, storage=storage).what


def test_images_of_another_size_and_a_link_outside(table: Make, images: Path, picture) -> None:
    path = table(*map(labelled, range(24)))
    picture(1, 9).save(images / "photos/7.png")
    assert refused(path).where == f"{path}:9: photos/7.png"
    assert load(path, size=4).shape == (3, 4, 4)
    picture(1).save(images.parent / "outside.png")
    (images / "photos/7.png").unlink()
    (images / "photos/7.png").symlink_to(images.parent / "outside.png")
    error = refused(path)
    assert error.what == "link leaves the data folder" and error.where == f"{path}:9: photos/7.png"


# ---- as a user runs it ---------------------------------------------------------------------------------

SMALL = (
    "data.size=8",
    "model.name=small_cnn",
    "model.widths=[4]",
    "model.strides=[2]",
    "threads=1",
    "device=cpu",
)
TRAIN = (
    "train.steps=2",
    "train.batch_size=4",
    "train.val_n=2",
    "train.epochs=null",
    "train.val_attack.steps=1",
)


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    states = torch.get_rng_state(), np.random.get_state()
    code = run(list(words))
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    out, err = capsys.readouterr()
    return code, out, err


def test_train_and_eval_on_the_command_line(
    table: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table(*map(labelled, range(24)))
    monkeypatch.chdir(tmp_path)
    named = ("data.name=csv:set/list.csv", "data.size=8")
    code, _, err = command(capsys, "train", "train/folder", *named, *SMALL, *TRAIN, "--out", "model")
    assert code == 0, err
    asked = ("--model", "run:model", *named, "device=cpu", "--n", "6", "--json")
    code, out, err = command(capsys, "eval", "eval/csv", *asked)
    assert code == 0, err
    document = json.loads(out)
    assert document["n"] == 6 and document["attacks"][0]["name"] == "pgd-20"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("csv:set/none.csv", 3, "set/none.csv"),
        ("csv:set/list.csv", 3, "set/list.csv:3; paths count from the folder of the table"),
        ("csv", 2, "data.name: csv needs a path; write csv:PATH"),
        ("csv:", 2, "data.name: csv needs a path; write csv:PATH"),
    ],
)
def test_a_wrong_one_on_the_command_line(
    table: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
    text: str,
) -> None:
    table(labelled(0), "photos/99.png,dog")
    monkeypatch.chdir(tmp_path)
    got, _, err = command(capsys, "train", "train/folder", f"data.name={name}", *SMALL, *TRAIN)
    assert got == code and text in " ".join(err.split()), err

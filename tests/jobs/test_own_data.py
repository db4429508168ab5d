"""A user's own folders under `eval`, `train` and `data check`: the right images, the right labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import robustcli

FAST = ("attacks=[{name: fgsm}]", "eval.checks=0", "threads=1", "data.workers=0")
#: Right on every image whose brightest channel is its class.
NET = """
import torch
from torch import nn
def net(num_classes):
    m = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    m[2].weight.data = torch.eye(3).repeat(num_classes // 3 + 1, 1)[:num_classes]
    m[2].bias.data.zero_()
    return m
"""
CONV = """
import torch
def net(num_classes):
    return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 8), torch.nn.Flatten())
"""


def put(path, k: int, number: int = 0, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(100 * k + number).integers(0, 60, (side, side, 3))
    x[..., k % 3] += 150
    Image.fromarray(x.astype(np.uint8)).save(path)


@pytest.fixture
def measure(cli, tmp_path):
    """measure(words …): clean accuracy, n, alarms and messages of an evaluation of NET."""
    (tmp_path / "net.py").write_text(NET)

    def call(*words):
        answer = cli("eval", "--plugin", "net.py:net", "--eps", "2/255", *FAST, *words, "--json")
        assert answer.code == 0, answer.err
        found = answer.document
        return found["clean_acc"], found["n"], [alarm["name"] for alarm in found["alarms"]], answer.err

    return call


def test_a_capital_test_folder_is_the_test_and_wrong_labels_alarm(measure, tmp_path):
    for split, shift in (("train", 0), ("Test", 1)):
        for k, name in enumerate("abc"):
            for i in range(8):
                put(tmp_path / f"d/{split}/{name}/{i}.png", (k + shift) % 3, i)
    clean, n, alarms, _ = measure("--data", "folder:d")
    assert (clean, n) == (0.0, 24) and "below-chance" in alarms
    (summary,) = tmp_path.glob("runs/eval/*-1/summary.json")
    assert json.loads(summary.read_text())["classes"] == ["a", "b", "c"]
    clean, n, alarms, _ = measure("--data", "folder:d", "eval.split=train", "data.val_fraction=0")
    assert (clean, n) == (1.0, 24) and "below-chance" not in alarms


@pytest.mark.parametrize("place", ["all", "all/test"])
def test_own_images_are_measured_whole_by_a_foreign_model(measure, tmp_path, place):
    for k, name in enumerate("abc"):
        for i in range(4):
            put(tmp_path / place / name / f"{i}.png", k, i)
    assert measure("--data", "folder:all")[:2] == (1.0, 12)
    assert measure("--data", "folder:all", "data.test_fraction=0.25")[1] == 3


def test_a_network_without_a_normalisation_takes_that_of_the_images_that_are_measured(cli, tmp_path):
    """And the runs that commands leave in the folder of the classes are no class of it."""
    for k, name in enumerate("abc"):
        put(tmp_path / name / "0.png", k)
    for out in ((), ("--out", "mine"), ()):
        answer = cli("eval", "--model", "mlp", "--data", "folder:.", "--eps", "2/255", *FAST, *out, "--json")
        assert answer.code == 0 and "measured on 3 test images" in answer.err, answer.err
        assert (answer.document["n"], answer.document["classes"]) == (3, ["a", "b", "c"])


def test_a_damaged_training_file_does_not_stop_a_measurement(measure, tmp_path, cli):
    for split in ("train", "test"):
        for k, name in enumerate("abc"):
            put(tmp_path / f"d/{split}/{name}/0.png", k)
    (tmp_path / "d/train/a/0.png").write_bytes(b"")
    assert measure("--data", "folder:d")[:2] == (1.0, 3)
    answer = cli("data", "check", "d", "--json")
    assert answer.code == 3 and answer.document["ok"] is False
    assert answer.document["error"]["code"] == "E-IMAGE" and "a training would fail" in answer.err
    assert answer.document["splits"]["train"]["unreadable"][0]["file"].endswith("train/a/0.png")


def test_a_run_is_measured_on_its_seeded_quarter_in_its_own_order_of_classes(cli, tmp_path, monkeypatch):
    for k in range(12):
        for i in range(8):
            put(tmp_path / f"d/{k}/{i}.png", k, i)
    model = ("model.name=small_cnn", "model.widths=[4]", "model.strides=[2]", "adversary.steps=1", *FAST)
    text_order = sorted(str(k) for k in range(12))
    words = ("train.steps=2", "train.batch_size=16", "train.val_attack.steps=1", "--eps", "2/255")
    stated = f"data.classes=[{','.join(text_order)}]"
    assert cli("train", "--data", "folder:d", *model, *words, stated, "--out", "old").code == 0
    own = cli("eval", "--model", "run:old", *FAST, "--json")
    assert own.document["n"] == 24, own.err  # 2 of the 8 images of each of 12 classes
    (tmp_path / "own.yaml").write_text("data: {name: 'folder:d'}\nball: {eps: 2/255}\n")
    again = cli("eval", "own.yaml", "--model", "run:old", *FAST, "--json")
    assert again.document["n"] == 24 and "classes in the order of the run: 0, 1, 10, 11, 2 … 9" in again.err
    assert again.document["clean_acc"] == own.document["clean_acc"]
    (tmp_path / "other").mkdir()
    for k in range(12):
        put(tmp_path / f"other/{k}/0.png", k, 50)
    other = cli("eval", "--model", "run:old", "--data", "folder:other", *FAST, "--json")
    assert other.code == 0 and other.document["n"] == 12, other.err


def test_training_without_validation_and_a_dry_run_that_writes_nothing(cli, tmp_path):
    for k, name in enumerate("abc"):
        for i in range(8):
            put(tmp_path / f"d/{name}/{i}.png", k, i, side=40)
    words = ("train", "--data", "folder:d", "data.size=8", "--eps", "2/255", "threads=1", "adversary.steps=1")
    tiny = ("model.widths=[4]", "model.strides=[2]", "train.batch_size=8", "train.steps=2", "data.workers=0")
    cached = ("data.storage=cached", "data.cache=cc")
    dry = cli(*words, *tiny, *cached, "--dry-run")
    assert dry.code == 0 and not (tmp_path / "cc").exists(), dry.err
    bench = cli("bench", *words[1:], *tiny, *cached, "--dry-run")
    assert bench.code == 0 and not (tmp_path / "cc").exists(), bench.err
    assert "images of 40x40 are resized to 8x8" in dry.err and "8x8 (files: 40x40)" in dry.out
    answer = cli(*words, *tiny, "data.val_fraction=0", "--out", "o", "--json")
    assert answer.code == 0 and "the last checkpoint is the best" in answer.err
    assert answer.document["checkpoint"].endswith("step-00000002")


def test_grey_images_for_a_network_of_colour_name_the_key(cli, measure, tmp_path):
    for k, name in enumerate("abc"):
        put(tmp_path / f"d/test/{name}/0.png", k)
        image = Image.open(tmp_path / f"d/test/{name}/0.png").convert("L")
        image.save(tmp_path / f"d/test/{name}/0.png")
    assert measure("--data", "folder:d", "data.channels=3")[1] == 3
    (tmp_path / "net.py").write_text(CONV)
    answer = cli("eval", "--plugin", "net.py:net", "--eps", "2/255", *FAST, "--data", "folder:d")
    assert answer.code == 2 and "data.channels=3 for a network of colour" in answer.err


def test_first_images_of_one_class_are_warned_of_and_a_benchmark_samples(cli, measure, tmp_path):
    for k, name in enumerate("abc"):
        for i in range(6):
            put(tmp_path / f"d/test/{name}/{i}.png", k, i)
    clean, n, _, err = measure("--data", "folder:d", "--first", "6")
    assert (clean, n) == (1.0, 6) and "of 1 of 3 classes; --n 6 takes every class by its share" in err
    seen = []

    class Seen(torch.nn.Module):
        def forward(self, x):
            if type(x) is torch.Tensor:  # and no proxy of a trace
                seen.append(x.mean((2, 3)).argmax(1))
            return x.mean((2, 3))

    said = []
    robustcli.benchmark(Seen(), 6, f"folder:{tmp_path / 'd'}", eps=1 / 255, version="rapid", say=said.append)
    assert any("a fixed sample of 6" in text for text in said)
    assert set(torch.cat(seen).tolist()) == {0, 1, 2}


def test_data_check_tells_what_a_set_is(cli, tmp_path):
    for split in ("train", "Test"):
        for k, name in enumerate("abc"):
            for i in range(4):
                put(tmp_path / f"d/{split}/{name}/{i}.png", k, i + 10 * (split == "Test"))
    put(tmp_path / "d/Test/a/again.png", 0, 0)
    answer = cli("data", "check", "folder:d")
    assert answer.code == 0, answer.err
    assert "in two splits" in answer.out and "8-bit colour" in answer.out
    found = json.loads(cli("data", "check", "d", "--json").out)
    assert found["ok"] and found["classes"] == ["a", "b", "c"]
    assert found["splits"]["test"] == {
        "images": 13,
        "counts": {"a": 5, "b": 4, "c": 4},
        "sizes": {"8x8": 13},
        "depths": {"8-bit colour": 13},
        "unreadable": [],
    }
    assert found["same_images"]["in_two_splits"] == 1 and found["same_images"]["under_two_labels"] == 0
    assert cli("data", "check", "nowhere").code == 2
    for file in ("nowhere.npz", "data.name=nowhere.npz", "~/nowhere.npz"):
        missing = cli("data", "check", file)
        assert missing.code == 3 and "E-FILE" in missing.err and "nowhere.npz" in missing.err, file


@pytest.mark.parametrize("shape", [(18, 192), (18,), (), (18, 1, 3, 8, 8)])
def test_data_check_of_arrays_that_are_no_images(cli, tmp_path, shape):
    np.savez(tmp_path / "a.npz", x=np.full(shape, 200, np.uint8), y=np.arange(18) % 3)
    result = cli("data", "check", f"npz:{tmp_path / 'a.npz'}")
    assert result.code == 3 and "E-SHAPE" in result.err


def test_data_check_exits_as_the_training_would(cli):
    answer = cli("data", "check", "fake", "data.size=8", "data.augment={crop: 9}", "--json")
    assert answer.code == 2 and json.loads(answer.out)["error"]["exit"] == 2

"""What users write for a model, for data and for a key: it means the obvious, or the hint has the words."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

TRAIN = (
    *(
        "train",
        "data.name=fake",
        "data.size=8",
        "model.name=small_cnn",
        "model.widths=[4]",
        "model.strides=[2]",
    ),
    *("train.steps=2", "train.batch_size=16", "train.val_n=8", "adversary=fgsm", "train.val_attack=fgsm"),
    *("ball.eps=0.03", "attacks=[fgsm]", "threads=1"),
)
LAST = "a/checkpoints/step-00000002"


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_every_way_to_name_a_run_measures_it_as_it_was_trained(cli, tmp_path):
    assert cli(*TRAIN, "--out", "a").code == 0
    digests = set()
    ways = (
        *("run:a", "a", "a/", "a/checkpoints", LAST, f"{LAST}/model.safetensors"),
        *(
            f"run:{LAST}",
            "run:a/checkpoints/best",
            "run:a/checkpoints/step-2",
            f"run:{LAST}/model.safetensors",
        ),
    )
    for k, way in enumerate(ways):
        said = ("--model", way) if k % 2 else (f"model.name={way}",)
        answer = cli("eval", *said, "--n", "4", "--out", f"e{k}")
        assert answer.code == 0, (way, answer.err)
        row = rows(tmp_path / f"e{k}")[-1]
        digests.add((row["hashes"]["model"], row["data"], row["eps"]))
    assert len(digests) == 1 and {(data, eps) for _, data, eps in digests} == {("fake", 0.03)}
    bare = ("--model", "small_cnn", "model.widths=[4]", "model.strides=[2]", "data.name=fake", "data.size=8")
    weights = ("--weights", f"{LAST}/model.safetensors", "eval.n=4", "attacks=[fgsm]", "ball.eps=0.03")
    assert cli("eval", *bare, *weights, "--out", "w").code == 0
    assert rows(tmp_path / "w")[-1]["hashes"]["model"] in {digest for digest, _, _ in digests}
    missing = cli("eval", "--model", "run:a/checkpoints/step-7")
    assert missing.code == 4 and "there are step-00000002" in missing.err


def test_a_directory_with_foreign_weights_gets_the_words(cli, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    answer = cli("eval", "--model", "hub", "data.name=fake", "data.size=8")
    assert answer.code == 2 and "write --model NAME --weights hub/model.safetensors" in answer.err
    (folder / "config.json").write_text('{"architecture": "resnet18", "num_classes": 10}')
    answer = cli("eval", "--model", "hub", "data.name=fake", "data.size=8")
    assert "write --model timm:resnet18 --weights hub/model.safetensors" in answer.err
    answer = cli("eval", "--model", "hub/model.safetensors", "data.name=fake", "data.size=8")
    assert answer.code == 2 and "--model NAME --weights hub/model.safetensors" in answer.err
    (tmp_path / "empty").mkdir()
    assert cli("eval", "--model", "empty", "data.name=fake", "data.size=8").code == 2


def test_a_bare_path_of_data_means_what_it_is(cli, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=images.transpose(0, 3, 1, 2), y=np.arange(40) % 2)
    for k, image in enumerate(images):
        place = tmp_path / "photos" / f"c{k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    for path, name in (("photos", "folder:photos"), ("photos/", "folder:photos/"), ("d.npz", "npz:d.npz")):
        shown = cli("config", "show", f"data.name={path}")
        assert shown.code == 0 and f"name: {name}" in shown.out
        assert cli("train", "--data", path, "data.size=8", "ball.eps=0.03", "--dry-run").code == 0
    assert "unknown data set" in cli("train", "--data", "nothing_here").err


@pytest.mark.parametrize(
    ("word", "home"),
    [
        ("lr=0.1", "train.optimizer.lr"),
        ("momentum=0.8", "train.optimizer.momentum"),
        ("epochs=3", "train.epochs"),
        ("step_size=0.1", "adversary.step_size"),
        ("widths=[4]", "model.widths"),
    ],
)
def test_a_bare_key_is_told_where_it_lives(cli, word, home):
    answer = cli("train", word)
    assert answer.code == 2 and f"'{home}'" in answer.err


@pytest.mark.parametrize("flags", [("--model", "a" * 5000), ("--model", "mlp", "--data", "a" * 5000)])
def test_a_name_that_no_path_can_have_is_no_path(cli, flags):
    assert cli("eval", *flags).code == 2

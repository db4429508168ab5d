"""samples.jsonl: what an evaluation found on each image, as a program reads it."""

import json

import numpy as np
import pytest
import torch
from jobs_support import TINY
from PIL import Image

from robustcli.models.source import load_model
from robustcli.records.read import read_rows

NAMES = ("ant", "bee", "cow")


@pytest.fixture
def pictures(tmp_path):
    """A folder of noisy 8x8 images, three classes, train and test."""
    draw = np.random.default_rng(0)
    for part, n in (("train", 16), ("test", 5)):
        for k, name in enumerate(NAMES):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(draw.normal(70 + 50 * k, 45, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"data.name=folder:{tmp_path / 'pictures'}"


def test_each_image_has_a_line_with_what_the_model_says_of_it(pictures, cli, tmp_path):
    words = (*TINY[2:], pictures, "data.size=8", "search.precision=fp32", "ball.eps=24/255")
    trained = cli("train", *words, "objective=natural", "train.steps=60", "--out", "model")
    assert trained.code == 0 and "next steps:\n  robustcli eval --model run:model " in trained.err
    assert ", val clean " in trained.err and "training: 100 % step 60/60" in trained.err
    attacks = ("--attack", "fgsm,spatial,pgd", "--eps", "24/255")
    measured = cli(
        "eval",
        pictures,
        "data.size=8",
        "--model",
        "run:model",
        *attacks,
        "--out",
        "measured",
        "eval.checks=0",
    )
    assert measured.code == 0
    rows = read_rows(tmp_path / "measured" / "samples.jsonl")
    paths = [f"test/{name}/{i}.png" for name in NAMES for i in range(5)]
    assert [row.file for row in rows] == paths and [row.id for row in rows] == list(range(15))
    assert [row.label for row in rows] == [path.split("/")[1] for path in paths]

    net = load_model("run:model").eval()
    images = [np.asarray(Image.open(tmp_path / "pictures" / path)) for path in paths]
    with torch.no_grad():
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        confidence, answer = net(x).softmax(1).max(1)
    assert [row.clean for row in rows] == [NAMES[k] for k in answer.tolist()]
    assert [row.confidence for row in rows] == pytest.approx(confidence.tolist(), abs=6e-5)
    summary = json.loads((tmp_path / "measured" / "summary.json").read_text())
    broken = [row for row in rows if row.broken_by is not None]
    right = [row for row in rows if row.correct]
    assert len(right) == round(summary["clean_acc"] * 15) and {row.broken_by for row in broken} <= {
        "fgsm",
        "pgd-10",
    }
    assert 0 < len(broken) == len(right) - round(summary["robust_acc"] * 15)
    assert all(row.attacked not in (None, row.label) for row in broken)

    weakest = summary["weakest"]["images"]
    assert weakest and all(row["file"] in measured.out for row in weakest)
    assert summary["per_class"].keys() == set(NAMES) and summary["weakest"]["classes"][0] in NAMES

    # An attack without a ball: success, gallery and files are about the same images.
    spatial = ("--attack", "spatial", "--eps", "24/255", "attack.save=4", "--json", "--out", "turned")
    spatial = (pictures, "data.size=8", "--model", "run:model", *spatial)
    answer = cli("attack", *spatial)
    document, rows = answer.document, read_rows(tmp_path / "turned" / "samples.jsonl")
    broken = [row for row in rows if row.broken_by == "spatial"]
    assert broken and document["norm"] == "none"
    assert document["attack_success"] == len(broken) / sum(row.correct for row in rows)
    assert document["robust_acc_float"] == document["robust_acc"] and document["images_written"] == min(
        4, len(broken)
    )
    assert "no gallery" not in answer.err and (tmp_path / "turned" / "plots" / "gallery.png").is_file()
    none = cli("attack", *spatial[:-1], "plain", "attack.gallery=0")
    assert "no gallery: attack.gallery is 0" in none.err

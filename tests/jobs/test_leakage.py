"""`train` and `data check` look for test images among those of data.extra."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustcli.config.sections import DataConfig
from robustcli.data.datasets import load_data

TRAIN = (
    *("train", "train/digits", "model={name: small_cnn, widths: [6], strides: [2]}", "adversary.steps=1"),
    *("train.val_n=16", "train.steps=4", "train.batch_size=64", "train.val_attack.steps=1", "threads=1"),
    *("data.extra_ratio=0.5", "data.val_fraction=0.3"),
)


@pytest.fixture
def extra(tmp_path: Path) -> Callable[[int], str]:
    """extra(7): a file of 200 digits that are neither of training nor test, and 7 mirrored test images."""
    data = load_data(DataConfig(name="digits", val_fraction=0.3))

    def make(leaked: int) -> str:
        honest, test = torch.arange(200), torch.arange(leaked)
        x = torch.cat([data.val.raw(honest), data.test.raw(test).flip(3)])
        y = torch.cat([data.val.labels[honest], data.test.labels[test]])
        np.savez(tmp_path / f"{leaked}.npz", x=x.numpy(), y=y.numpy(), classes=np.array(data.classes))
        return f"data.extra=npz:{tmp_path / f'{leaked}.npz'}"

    return make


def test_a_training_says_what_its_extra_data_holds(cli, tmp_path: Path, extra) -> None:
    out = tmp_path / "run"
    done = cli(*TRAIN, extra(7), "--out", str(out), "--json", "--no-report")
    assert done.code == 0, done.err
    found = done.document
    told = found["leakage"]
    assert (told["level"], told["exact"], told["extra"], told["test"]) == ("suspect", 7, 207, 449)
    assert told["pixels"]["near"] == 7 and told["pixels"]["near_in_training_images"] <= 1
    assert told["features"]["ratio"] <= 0.5 and told["pixels"]["chance"] < 0.01
    assert {pair["found"].split(",")[0] for pair in told["closest"][:7]} == {"exact"}
    assert [alarm for alarm in found["alarms"] if "extra-holds-test" in alarm and "7 exact copies" in alarm]
    rows = list(csv.DictReader((out / "plots/leakage.csv").open()))
    assert len(rows) == 100 and [row["extra"] for row in rows[:7]] == [str(k) for k in range(200, 207)]
    assert (out / "plots/leakage.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_report_shows_the_closest_pairs(cli, tmp_path: Path, extra) -> None:
    out = tmp_path / "run"
    assert cli(*TRAIN, extra(7), "--out", str(out), "--json").code == 0
    assert cli("report", str(out)).code == 0
    page = (out / "report.html").read_text()
    assert "Test images among the extra images" in page and "extra-holds-test" in page


def test_a_training_may_leave_the_look_out(cli, tmp_path: Path, extra) -> None:
    done = cli(
        *TRAIN, extra(7), "data.leakage=false", "--out", str(tmp_path / "off"), "--json", "--no-report"
    )
    assert done.code == 0 and "leakage" not in done.document and not done.document["alarms"]
    assert not (tmp_path / "off/plots/leakage.png").exists()


def test_data_check_looks_at_pixels(cli, extra) -> None:
    done = cli("data", "check", "digits", extra(3), "data.val_fraction=0.3", "--json")
    told = done.document["leakage"]
    assert done.code == 0 and (told["exact"], told["level"]) == (3, "suspect") and "features" not in told
    assert "extra-holds-test" in done.err
    honest = cli("data", "check", "digits", extra(0), "data.val_fraction=0.3", "--json").document["leakage"]
    assert honest["level"] != "suspect" and honest["exact"] == 0
    wrong = cli("data", "check", "digits", "data.extra=npz:nothing.npz", "--json")
    assert wrong.code == 3 and json.loads(wrong.out)["problems"][0]["for"] == "data.extra"

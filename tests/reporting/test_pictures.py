"""The pictures of a run: each shows its records, and its CSV is what it shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from robustcli.proportions import wilson
from robustcli.records.eval import EvalRow
from robustcli.records.read import AnyRow
from robustcli.records.sweep import SweepRow
from robustcli.records.train import TrainRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures import drawn, pictures_of, save_pictures


def dossier(
    rows: Sequence[AnyRow], samples: Sequence[AnyRow] = (), document: Mapping[str, Any] | None = None
) -> Dossier:
    """A run with these records."""
    made = Dossier(Path("run"), "eval", "id", "done", 0, {}, {}, document or {}, list(rows))
    made.__dict__["samples"] = list(samples)
    return made


def lines(picture: Picture) -> list[dict[str, str]]:
    """The lines of the CSV."""
    return list(csv.DictReader(io.StringIO(picture.table.csv())))


def named(found: Dossier, name: str) -> Picture:
    """The one picture of this name."""
    (picture,) = [one for one in pictures_of(found) if one.name == name]
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n" and picture.title and picture.caption
    return picture


def sweep(values: Mapping[float, int], key: str = "eps") -> list[SweepRow]:
    total = {"kind": "worst", "norm": "linf", "eps": 0.1, "clean_correct": 90, "n": 100, "label": "pgd"}
    return [
        SweepRow(total=EvalRow(**total, correct=right), key=key, value=value, attacks=[], since_half=None)
        for value, right in values.items()
    ]


def train(robust: Sequence[float], **more: Any) -> list[TrainRow]:
    common: dict[str, Any] = {"norm": "linf", "eps": 0.1, "n": 100, "attack": "pgd", "model": "net"}
    return [
        TrainRow(
            step=k, epoch=float(k), lr=0.1, loss=2.0, parts={"ce": 2.0}, clean_acc=0.9, robust_acc=value,
            **{**common, **more},
        )
        for k, value in enumerate(robust, 1)
    ]  # fmt: skip


def test_a_run_without_records_has_no_pictures() -> None:
    assert drawn(dossier([])) == ([], [])


def test_training_curves_name_the_best_epoch_and_what_was_lost_after_it() -> None:
    best = {"epoch": 2.0, "robust_acc": 0.6}
    picture = named(dossier(train([0.5, 0.6, 0.55]), document={"best": best}), "training")
    assert "epoch 2, with robust accuracy 60.0 %" in picture.caption
    assert "best minus last: 5.0 points" in picture.caption
    found = lines(picture)
    assert [float(line["robust_acc"]) for line in found] == [0.5, 0.6, 0.55]
    low, high = wilson(60, 100)
    assert (float(found[1]["robust_low"]), float(found[1]["robust_high"])) == (low, high)
    assert set(found[0]) == {"epoch", "loss", "learning_rate"} | {
        f"{name}_{part}" for name in ("clean", "robust") for part in ("acc", "low", "high", "n")
    }


@pytest.mark.parametrize(("key", "section"), [("eps", "verdict"), ("steps", "strength")])
def test_a_sweep_is_drawn_with_its_worst_case(key: str, section: str) -> None:
    picture = named(dossier(sweep({1.0: 80, 2.0: 40}, key)), f"sweep_{key}")
    assert picture.section == section and "80.0 %" in picture.caption and "40.0 %" in picture.caption
    clean, *worst = lines(picture)
    assert (clean["series"], clean[key], clean["accuracy"]) == ("clean", "", "0.9")
    assert [(line[key], line["accuracy"]) for line in worst] == [("1.0", "0.8"), ("2.0", "0.4")]
    assert (float(worst[0]["low"]), float(worst[0]["high"])) == wilson(80, 100)


def test_pictures_are_saved_with_their_numbers_beside_them(tmp_path: Path) -> None:
    pictures = pictures_of(dossier([*sweep({1.0: 80}), *train([0.5])]))
    paths = save_pictures(pictures, tmp_path / "plots")
    assert [path.name for path in paths] == ["training.png", "sweep_eps.png"]
    for path, picture in zip(paths, pictures, strict=True):
        assert path.read_bytes() == picture.png
        assert path.with_suffix(".csv").read_text() == picture.table.csv()
    assert len(list((tmp_path / "plots").iterdir())) == 4

"""The pictures of a run: each shows its records, and its CSV is what it shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from robustcli.proportions import Rate, wilson
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.distance import DistanceRow, SampleDistance
from robustcli.records.eval import EvalRow
from robustcli.records.read import AnyRow
from robustcli.records.sample import SampleRow
from robustcli.records.sweep import SweepRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures import comparison_of, drawn, save_pictures
from robustcli.reporting.pictures.reliability import confidence_bins, expected_error
from robustcli.store.examples import NAME, Example, Examples, write_examples


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
    (picture,) = [one for one in drawn(found).pictures if one.name == name]
    assert picture.png[:8] == b"\x89PNG\r\n\x1a\n" and picture.title and picture.caption
    return picture


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rendered: for tests of the numbers."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **how: file.write(b"\x89PNG\r\n\x1a\n"))


def judged(samples: Sequence[SampleRow], stages: Mapping[str, int] | None = None) -> Dossier:
    """An evaluation with these samples. stages: label of an attack -> who stands after it."""
    names = list(dict.fromkeys(sample.label for sample in samples))
    stands = [sample.correct and sample.broken_by is None for sample in samples]

    def of(name: str, right: Sequence[bool]) -> list[int]:
        mine = [flag for flag, sample in zip(right, samples, strict=True) if sample.label == name]
        return [sum(mine), len(mine)]

    right = [sample.correct for sample in samples]
    common: dict[str, Any] = {
        "norm": "linf", "eps": 0.1, "n": len(samples), "clean_correct": sum(right), "data": "set"
    }  # fmt: skip
    rows = [EvalRow(kind="clean", correct=sum(right), per_class={n: of(n, right) for n in names}, **common)]
    rows += [
        EvalRow(kind="attack", label=label, correct=standing, passes_per_sample=10.0, **common)
        for label, standing in (stages or {}).items()
    ]
    rows.append(
        EvalRow(kind="worst", correct=sum(stands), per_class={n: of(n, stands) for n in names}, **common)
    )
    return dossier(rows, samples)


def sample(
    k: int, label: str, clean: str | None, attacked: str | None = None, sure: float = 0.9
) -> SampleRow:
    broken = None if attacked is None else "pgd"
    return SampleRow(
        id=k, file=None, label=label, clean=clean, confidence=sure, attacked=attacked, broken_by=broken
    )


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


@pytest.mark.usefixtures("quick")
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


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("key", "section"), [("eps", "verdict"), ("steps", "strength")])
def test_a_sweep_is_drawn_with_its_worst_case(key: str, section: str) -> None:
    picture = named(dossier(sweep({1.0: 80, 2.0: 40}, key)), f"sweep_{key}")
    assert picture.section == section and "80.0 %" in picture.caption and "40.0 %" in picture.caption
    clean, *worst = lines(picture)
    assert (clean["series"], clean[key], clean["accuracy"]) == ("clean", "", "0.9")
    assert [(line[key], line["accuracy"]) for line in worst] == [("1.0", "0.8"), ("2.0", "0.4")]
    assert (float(worst[0]["low"]), float(worst[0]["high"])) == wilson(80, 100)


def test_pictures_are_saved_with_their_numbers_beside_them(tmp_path: Path) -> None:
    pictures = drawn(dossier([*sweep({1.0: 80}), *train([0.5])])).pictures
    paths = save_pictures(pictures, tmp_path / "plots")
    assert [path.name for path in paths] == ["training.png", "sweep_eps.png"]
    for path, picture in zip(paths, pictures, strict=True):
        assert path.read_bytes() == picture.png
        assert path.with_suffix(".csv").read_text() == picture.table.csv()
    assert len(list((tmp_path / "plots").iterdir())) == 4


FOUR = [sample(0, "a", "a"), sample(1, "a", "a", "b"), sample(2, "b", "a"), sample(3, "b", None, sure=0.0)]


@pytest.mark.usefixtures("quick")
def test_classes_stand_with_both_accuracies_the_weakest_first() -> None:
    found = lines(named(judged(FOUR), "classes"))
    assert [(line["class"], line["clean_acc"], line["robust_acc"]) for line in found] == [
        ("b", "0.0", "0.0"),
        ("a", "1.0", "0.5"),
    ]
    assert (float(found[1]["robust_low"]), float(found[1]["robust_high"])) == wilson(1, 2)


@pytest.mark.usefixtures("quick")
def test_confusions_are_the_answers_of_samples() -> None:
    cells = {
        kind: {
            (line["label"], line["answer"]): int(line["samples"])
            for line in lines(named(judged(FOUR), f"confusion_{kind}"))
        }
        for kind in ("clean", "adversarial")
    }
    clean = {("a", "a"): 2, ("a", "b"): 0, ("a", "no answer"): 0}
    assert cells["clean"] == {**clean, ("b", "a"): 1, ("b", "b"): 0, ("b", "no answer"): 1}
    assert cells["adversarial"] == {**cells["clean"], ("a", "a"): 1, ("a", "b"): 1}


@pytest.mark.usefixtures("quick")
def test_many_classes_show_the_weakest_and_the_pairs_that_are_confused() -> None:
    samples = [
        sample(k, f"c{k % 100}", f"c{k % 100}", "c0" if k % 100 < 3 and k % 100 else None) for k in range(300)
    ]
    found = judged(samples)
    assert [line["drawn"] for line in lines(named(found, "classes"))].count("named") == 20
    pairs = lines(named(found, "confusion_adversarial"))
    assert [(line["label"], line["answer"], line["samples"], line["of"]) for line in pairs] == [
        ("c1", "c0", "3", "3"),
        ("c2", "c0", "3", "3"),
    ]
    left_out = drawn(found).left_out
    assert any("without an attack: no sample of 100 classes" in reason for reason in left_out)


@pytest.mark.usefixtures("quick")
def test_the_plateau_has_the_stages_and_is_never_invented() -> None:
    samples = [sample(k, "a", "a", "b" if k < 4 else None) for k in range(10)]
    found = lines(named(judged(samples, {"one": 7, "two": 6}), "plateau"))
    assert [(line["attack"], line["passes_per_sample"], line["accuracy"]) for line in found] == [
        ("clean", "0.0", "1.0"),
        ("one", "10.0", "0.7"),
        ("two", "20.0", "0.6"),
    ]
    alone = drawn(judged(samples, {"one": 6}))
    assert "plateau" not in [one.name for one in alone.pictures]
    assert any("one attack alone" in reason for reason in alone.left_out)


@pytest.mark.usefixtures("quick")
def test_the_reliability_diagram_has_the_calibration_error_and_n_per_bin() -> None:
    samples = [sample(k, "a", "a" if k < 3 else "b", sure=0.75) for k in range(4)]
    samples += [sample(4, "a", "a", sure=1.0), sample(5, "a", "b", sure=0.7), sample(6, "a", None, sure=0.0)]
    bins = confidence_bins(samples[:6])
    assert [(one.low, one.right) for one in bins] == [(0.6, Rate(0, 1)), (0.7, Rate(3, 4)), (0.9, Rate(1, 1))]
    assert expected_error(bins) == pytest.approx(0.7 / 6)
    picture = named(judged(samples), "reliability")
    assert [line["n"] for line in lines(picture)] == ["1", "4", "1"] and "11.7 points" in picture.caption
    assert any("no sample has a finite answer" in reason for reason in drawn(judged(samples[6:])).left_out)


@pytest.mark.usefixtures("quick")
def test_certified_accuracy_stands_beside_the_attacked_one() -> None:
    common: dict[str, Any] = {"method": "ibp", "norm": "linf", "n": 2, "attacks": ["pgd"], "data": "set"}
    rows = [CertifyRow(eps=eps, certified=k, standing=2 - k, **common) for eps, k in ((0.0, 1), (0.1, 0))]
    proof: dict[str, Any] = {"file": None, "label": "a", "predicted": "a", "clean": "a", "seconds": 0.0}
    samples = [
        CertificateRow(id=k, radius=0.1 * k, status="verified", stage="ibp", **proof) for k in range(2)
    ]
    found = lines(named(dossier(rows, samples), "certified"))
    assert [(line["series"], line["eps"], line["accuracy"]) for line in found] == [
        ("under pgd", "0.0", "0.5"),
        ("under pgd", "0.1", "1.0"),
        ("certified by ibp", "0.0", "0.5"),
        ("certified by ibp", "0.1", "0.0"),
    ]


@pytest.mark.usefixtures("quick")
def test_transfer_has_a_line_for_each_pair() -> None:
    common: dict[str, Any] = {
        "data": "set", "split": "test", "attack": "pgd", "params": [], "norm": "linf", "eps": 0.1, "seed": 0,
        "samples": 9, "n": 8, "source_reference": "", "target_reference": "", "gained": 0, "lost": 0,
        "hashes": {},
    }  # fmt: skip
    pairs = [("a", "a", 8), ("a", "b", 2), ("b", "a", 1), ("b", "b", 4)]
    rows = [TransferRow(source=source, target=target, k=k, **common) for source, target, k in pairs]
    found = lines(named(dossier(rows), "transfer"))
    assert [(line["made_on"], line["shown_to"], float(line["broken"])) for line in found] == [
        (source, target, k / 8) for source, target, k in pairs
    ]


@pytest.mark.usefixtures("quick")
def test_runs_are_compared_on_the_same_samples() -> None:
    first = judged([sample(k, "a", "a", "b" if k < 6 else None) for k in range(10)])
    second = judged([sample(k, "a", "a", "b" if k < 2 else None) for k in range(10)])
    (picture,) = comparison_of([first, second])
    found = {(line["run"], line["measure"]): line for line in lines(picture)}
    assert float(found["run (2)", "robust accuracy"]["difference"]) == pytest.approx(0.4)
    assert found["run (1)", "robust accuracy"]["difference"] == ""
    assert found["run (2)", "robust accuracy"]["accuracy"] == "0.8"
    assert comparison_of([first]) == [] and comparison_of([first, dossier([])]) == []


@pytest.mark.parametrize(("eps", "factor"), [(8 / 255, 15), (0.1, 5), (0.4 / 255, 318), (1.0, 0.5)])
def test_examples_make_eps_visible_and_cut_nothing_off(tmp_path: Path, eps: float, factor: float) -> None:
    clean = np.full((8, 8, 1), 100, np.uint8)
    change = (eps * np.sign(np.linspace(-1, 1, 64))).reshape(8, 8, 1).astype(np.float16)
    rows = [Example(7, "cat", "dog", eps, clean, change)]
    write_examples(tmp_path / NAME, Examples(rows, "linf", "A run. 1 of 3 broken samples."))
    made = replace(dossier([]), path=tmp_path)
    picture = named(made, "examples")
    assert (
        f"Differences x {factor:g}, grey = no change" in picture.caption and "cut off" not in picture.caption
    )
    (line,) = lines(picture)
    assert (line["sample"], line["label"], line["answer"], line["norm"]) == ("7", "cat", "dog", "linf")
    assert float(line["distance"]) == eps and float(line["amplified"]) == factor
    with Image.open(io.BytesIO(picture.png)) as image:
        sheet = np.asarray(image.convert("RGB"))
        assert image.width < 1000, "its words are read on a telephone"
    right = sheet[:, 2 * sheet.shape[1] // 3 :]
    reached = min(255, 127.5 + factor * 255 * eps)
    assert reached > 200 and (abs(right.astype(float) - reached) <= 1).all(axis=2).sum() > 1000


@pytest.mark.usefixtures("quick")
def test_a_run_without_examples_says_why() -> None:
    assert "Examples: no attack broke a sample." in drawn(judged([sample(0, "a", "a")])).left_out
    kept = drawn(judged([sample(0, "a", "a", "b")])).left_out
    assert any(reason.startswith("Examples: the run has kept no images") for reason in kept)


HOSTILE = ["日本語", "<script>", "$x_1$ \\frac{", "=cmd", "_under", "x" * 200, "\x1b[31m\n", "", 'a,"b']


@pytest.mark.parametrize(
    "samples",
    [
        [sample(0, "only", "only")],
        [sample(0, "only", None, sure=0.0)],
        [sample(k, "only", "only", "other") for k in range(3)],
        [sample(k, name, HOSTILE[k - 1]) for k, name in enumerate(HOSTILE)],
    ],
    ids=["one sample", "no answer", "all broken", "hostile names"],
)
def test_odd_records_are_drawn_or_left_out(samples: Sequence[SampleRow]) -> None:
    found = drawn(judged(samples, {"pgd": 0, "apgd": 0} if samples[0].attacked else {}))
    assert len(found.pictures) + len(found.left_out) == 6
    for picture in found.pictures:
        assert picture.png[:4] == b"\x89PNG" and all(None not in line for line in lines(picture))


@pytest.mark.usefixtures("quick")
def test_distances_are_those_of_the_file_or_left_out(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "data": "set", "split": "test", "model": "net", "norm": "l2", "seed": 0, "n": 2, "hashes": {},
        "attack": "fmn", "params": {}, "clean_correct": 2, "broken": 1, "quartiles": [0.5, 0.5, None],
    }  # fmt: skip
    row = DistanceRow(label="fmn-100", **common).to_json()
    path = tmp_path / "distances.jsonl"
    found = [SampleDistance(k, "a", {"fmn-100": far}).to_json() for k, far in enumerate((0.5, None))]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in found))
    made = replace(dossier([], document={"sweep": [row]}), path=tmp_path)
    drawn_points = [(line["eps"], line["accuracy"]) for line in lines(named(made, "distances"))]
    assert drawn_points == [("0.0", "1.0"), ("0.5", "1.0"), ("0.5", "0.5")]
    path.write_text(path.read_text()[:-9])
    assert any(why.startswith("Distances: distances.jsonl cannot be read") for why in drawn(made).left_out)

"""Pictures: right size, right pixels, no crash on odd names and few points; written whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.errors import ResourceError
from robustcli.records.train import TrainRow
from robustcli.reporting.pictures import lines
from robustcli.reporting.pictures.gallery import gallery
from robustcli.reporting.pictures.lines import eps_curve
from robustcli.reporting.pictures.training import training_curves
from robustcli.reporting.pixels import amplified, fitting

ODD = "$x_1$ _<b> \x1b[31m 日本 \\frac{"


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def train_rows(count: int, **changes: Any) -> list[TrainRow]:
    common: dict[str, Any] = {
        "norm": "linf",
        "eps": 8 / 255,
        "n": 200,
        "attack": "pgd",
        "params": {"steps": 10},
        "clean_acc": 0.75,
        "robust_acc": 0.5,
    }
    common |= changes
    return [
        TrainRow(
            step=10 * i,
            epoch=float(i),
            lr=0.1 / i,
            loss=2.0 / i,
            parts={"ce": 1.0 / i, ODD: 1.0 / i},
            **common,
        )
        for i in range(1, count + 1)
    ]


# ---- plots -------------------------------------------------------------------------------------------------


def test_the_curve_is_drawn_where_the_numbers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    original = lines.accuracy_axis
    monkeypatch.setattr(lines, "accuracy_axis", lambda axes: (drawn.append(axes), original(axes))[1])
    path = tmp_path / "plots" / "curve.png"
    eps_curve(
        path,
        {"natural": [(0, 0.9, 0.85, 0.95), (8 / 255, 0.1, 0.05, 0.2)], ODD: [(8 / 255, 0.5, 0.4, 0.6)]},
        title=ODD,
    )
    (axes,) = drawn
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [0, pytest.approx(8)] and list(line.get_ydata()) == [90, 10]
    bars = axes.containers[0].lines[2][0].get_segments()
    assert [(segment[0][1], segment[1][1]) for segment in bars] == [
        pytest.approx((85, 95)),
        pytest.approx((5, 20)),
    ]
    assert axes.get_ylim() == (0, 100) and "255" in axes.get_xlabel() and "%" in axes.get_ylabel()
    image = pixels(path)
    assert image.shape == (710, 960, 3) and (image == 255).all(axis=2).mean() > 0.5
    blue = np.array([0, 0x72, 0xB2])
    assert (np.abs(image.astype(int) - blue).sum(axis=2) < 30).sum() > 200, "the first line is not there"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_have_one_axis_in_their_own_unit(
    norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(lines, "accuracy_axis", drawn.append)
    eps_curve(tmp_path / "curve.png", {"a": [(0, 1, 0.9, 1), (0.5, 0.5, 0.4, 0.6)]}, norm=norm)
    assert list(drawn[0].containers[0].lines[0].get_xdata()) == [0, 0.5] and norm in drawn[0].get_xlabel()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_training_curves(count: int, tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    training_curves(path, train_rows(count), title=ODD)
    assert pixels(path).shape == (1344, 960, 3)


def test_training_without_validation_has_no_accuracy_panel(tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    training_curves(path, train_rows(3, n=0, clean_acc=None, robust_acc=None))
    assert pixels(path).shape == (691, 960, 3)
    training_curves(path, train_rows(3, robust_acc=None))
    assert pixels(path).shape == (1344, 960, 3)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: eps_curve(tmp_path / "a.png", {}),
        lambda: eps_curve(tmp_path / "a.png", {"a": []}),
        lambda: training_curves(tmp_path / "a.png", []),
    ):
        with pytest.raises(ValueError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        eps_curve(tmp_path / name, {"a": [(0, 1, 0.9, 1), (0.1, 0.5, 0.4, 0.6)]})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(ResourceError, match="plots"):
        eps_curve(tmp_path / "plots" / "a.png", {"a": [(0, 1, 0.9, 1)]})
    with pytest.raises(ResourceError, match="plots"):
        gallery(tmp_path / "plots" / "g.png", images(1, 8, 1), images(1, 8, 1), ["a"], ["b"])


def test_an_odd_environment_is_nothing_to_speak_of(tmp_path: Path) -> None:
    """No home, and a backend that matplotlib does not know."""
    code = (
        "import os\nfrom pathlib import Path\nfrom robustcli.reporting.pictures.lines import eps_curve\n"
        "eps_curve(Path('a.png'), {'a': [(0, 1, 0.9, 1), (0.1, 0.5, 0.4, 0.6)]})\n"
        "assert os.environ['MPLBACKEND'] == 'nope'"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LC_ALL": "C",
        "HOME": "/nonexistent",
        "MPLBACKEND": "nope",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# ---- gallery -----------------------------------------------------------------------------------------------


def images(n: int, side: int, channels: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def test_amplified_difference() -> None:
    clean = np.array([[0, 100, 100, 100, 255, 100]], dtype=np.uint8)
    adversarial = np.array([[0, 101, 99, 200, 250, 100]], dtype=np.uint8)
    assert amplified(clean, adversarial, 10).tolist() == [[128, 138, 118, 255, 78, 128]]
    assert amplified(clean, clean, 1000).tolist() == [[128] * 6]


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    """Each pixel of the three tiles is a flat square of 38 x 38, the clean one in its own grey."""
    clean = images(1, 8, 1)
    adversarial = np.clip(clean.astype(int) + images(1, 8, 1, 1) % 3 - 1, 0, 255).astype(np.uint8)
    path = tmp_path / "plots" / "gallery.png"
    gallery(path, clean, adversarial, ["3"], ["5"], amplify=20)
    sheet, side = pixels(path), 8 * 38
    sheet = sheet[len(sheet) - side - 112 :]  # below the lines of text
    for k, expected in enumerate((clean, adversarial, amplified(clean, adversarial, 20))):
        left = 20 + k * (side + 20)
        tile = sheet[:side, left : left + side]
        assert np.array_equal(tile, np.repeat(expected[0].repeat(38, 0).repeat(38, 1), 3, axis=2))


@given(seed=st.integers(0, 99), largest=st.integers(1, 255))
@settings(max_examples=30, deadline=None)
def test_the_factor_by_itself_is_the_largest_that_cuts_nothing_off(seed: int, largest: int) -> None:
    clean = images(2, 8, 1, seed)
    change = np.random.default_rng(seed + 1).integers(-largest, largest + 1, clean.shape)
    adversarial = np.clip(clean + change, 0, 255).astype(np.uint8)
    factor = fitting(clean, adversarial)
    exact = 127.5 + factor * (adversarial.astype(float) - clean)
    assert exact.min() >= 0 and exact.max() <= 255 and factor >= 0.4
    beyond = 127.5 + (factor + (1 if factor >= 1 else 0.1)) * (adversarial.astype(float) - clean)
    assert beyond.max() > 254.4 or beyond.min() < 0.6
    assert fitting(clean, clean) == 1.0


@pytest.mark.parametrize(
    ("n", "side", "channels"),
    [(1, 8, 1), (3, 32, 3), (5, 28, 1), (8, 32, 3), (2, 224, 3), (2, 3, 4), (1, 1, 2)],
)
def test_every_shape(n: int, side: int, channels: int, tmp_path: Path) -> None:
    path = tmp_path / "gallery.png"
    names = [ODD * (k + 1) for k in range(n)]
    gallery(
        path,
        images(n, side, channels),
        images(n, side, channels, 1),
        names,
        names[::-1],
        clean_predicted=names,
        title=ODD * 20,
    )
    sheet = pixels(path)
    assert 3 * 300 < sheet.shape[1] < 1200 and sheet.shape[0] > n * max(side, 270)


def test_right_and_wrong_answers_have_their_colours(tmp_path: Path) -> None:
    def colours(predicted: str) -> tuple[int, int]:
        path = tmp_path / f"{predicted}.png"
        gallery(
            path,
            np.zeros((1, 8, 8, 1), np.uint8),
            np.zeros((1, 8, 8, 1), np.uint8),
            ["cat"],
            [predicted],
            clean_predicted=[predicted],
        )
        sheet = pixels(path).reshape(-1, 3)
        return tuple(
            int((sheet == colour).all(axis=1).sum()) for colour in ((0x00, 0x71, 0x4F), (0xB8, 0x43, 0x0C))
        )  # type: ignore[return-value]

    right, wrong = colours("cat"), colours("dog")
    assert right[0] > 50 and right[1] == 0 and wrong[0] == 0 and wrong[1] > 50


@pytest.mark.parametrize(
    "changes",
    [
        {"clean": np.zeros((1, 8, 8, 1), np.float32)},
        {"clean": np.zeros((8, 8, 1), np.uint8)},
        {"clean": np.zeros((2, 8, 8, 1), np.uint8)},
        {
            "clean": np.zeros((0, 8, 8, 1), np.uint8),
            "adversarial": np.zeros((0, 8, 8, 1), np.uint8),
            "true": [],
            "predicted": [],
        },
        {"true": ["a", "b"]},
        {"predicted": []},
        {"clean_predicted": []},
        {"amplify": 0},
        {"amplify": float("nan")},
    ],
)
def test_other_inputs_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    fine: dict[str, Any] = {
        "clean": np.zeros((1, 8, 8, 1), np.uint8),
        "adversarial": np.zeros((1, 8, 8, 1), np.uint8),
        "true": ["a"],
        "predicted": ["b"],
    }
    with pytest.raises(ValueError):
        gallery(tmp_path / "g.png", **{**fine, **changes})
    assert list(tmp_path.iterdir()) == []

"""Sweep curves and the transfer heatmap: drawn where the numbers are, nothing cut, odd names survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from robustcli.proportions import Rate
from robustcli.reporting.pictures.heatmap import heatmap
from robustcli.reporting.pictures.sweep import sweep_curve
from robustcli.reporting.sweep_table import sweep_table

ODD = "$x_1$ _<b> \x1b[31m 日本 \\frac{"
STEPS = [(1.0, Rate(80, 100)), (10.0, Rate(50, 100)), (200.0, Rate(45, 100))]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they were saved."""
    found: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: (found.append(self), original(self, *args, **more))[1]
    )
    return found


def nothing_cut(path: Path) -> bool:
    """Whether something is drawn, and nothing of it touches the border of the picture."""
    from PIL import Image

    with Image.open(path) as image:
        ink = np.asarray(image.convert("L")) < 250
    return bool(ink.any()) and not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())


def test_steps_are_drawn_on_a_logarithmic_axis_with_their_band(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "plots" / "sweep.png"
    sweep_curve(path, "steps", STEPS, clean=Rate(90, 100), title=ODD)
    axes = drawn[0].axes[0]
    assert (
        axes.get_xscale() == "log"
        and list(axes.get_xticks()) == [1, 10, 200]
        and axes.get_xlabel() == "attack steps"
    )
    clean, line = axes.lines
    assert list(clean.get_ydata()) == [90, 90]
    assert list(line.get_xdata()) == [1, 10, 200] and list(line.get_ydata()) == [80, 50, 45]
    band = axes.collections[0].get_paths()[0].vertices
    low, high = Rate(50, 100).display
    assert sorted(y for x, y in band if x == 10) == pytest.approx([100 * low, 100 * high])
    assert path.read_bytes()[:4] == b"\x89PNG" and nothing_cut(path) and axes.get_ylim() == (0, 100)


@pytest.mark.parametrize(("norm", "factor"), [("linf", 255), ("l2", 1)])
def test_eps_has_the_unit_of_its_norm(tmp_path: Path, drawn: list[Figure], norm: str, factor: int) -> None:
    sweep_curve(
        tmp_path / "eps.png",
        "eps",
        [(0.0, Rate(9, 10)), (0.1, Rate(1, 10))],
        clean=Rate(9, 10),
        title="t",
        norm=norm,
    )
    axes = drawn[0].axes[0]
    assert (
        list(axes.lines[1].get_xdata()) == [0, pytest.approx(0.1 * factor)]
        and ("255" in axes.get_xlabel()) is (factor > 1)
        and norm in axes.get_xlabel()
    )


def test_one_value_and_many_values_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    sweep_curve(tmp_path / "one.png", "restarts", STEPS[:1], clean=Rate(90, 100), title="t")
    sweep_curve(
        tmp_path / "many.png",
        "steps",
        [(float(k), Rate(50, 100)) for k in range(30, 80)],
        clean=Rate(90, 100),
        title="t",
    )
    assert (
        list(drawn[0].axes[0].get_xticks()) == [1]
        and len(drawn[1].axes[0].get_xticks()) < 15
        and nothing_cut(tmp_path / "many.png")
    )
    with pytest.raises(ValueError, match="no points"):
        sweep_curve(tmp_path / "none.png", "steps", [], clean=Rate(90, 100), title="t")
    assert not (tmp_path / "none.png").exists()


def test_the_table_names_radius_and_success() -> None:
    row: dict[str, Any] = {
        "value": 8 / 255,
        "norm": "linf",
        "n": 100,
        "clean_correct": 80,
        "correct": 20,
        "passes_per_sample": 40.5,
        "seconds": 1.23456,
    }
    text = sweep_table("eps", [row], "sweep").markdown()
    assert "8/255" in text and "20.0 %" in text and "75.0 %" in text and "of 80" in text
    steps = sweep_table("steps", [{**row, "value": 20, "clean_correct": 0, "correct": 0}], "sweep")
    assert steps.rows[0][0] == 20 and steps.rows[0][2] is None and "smaller ones" not in steps.note


def test_the_heatmap_shows_each_share_in_its_place(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["a", "b" * 60, ODD]
    rates = [[Rate(10 * (3 * s + t), 90) for t in range(3)] for s in range(3)]
    heatmap(
        tmp_path / "plots" / "matrix.png",
        names,
        [rates[0], [rates[1][0], None, rates[1][2]], rates[2]],
        title="a long title " * 12,
    )
    axes = drawn[0].axes[0]
    values = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert (
        values[0, 2] == pytest.approx(100 * 20 / 90)
        and np.isnan(values[1, 1])
        and values[2, 0] == pytest.approx(100 * 60 / 90)
    )
    placed = {
        tuple(text.xy): text.get_text()
        for text in axes.texts
        if text.get_text().endswith("%") and hasattr(text, "xy")
    }
    assert placed[(2, 0)] == "22.2 %" and placed[(0, 2)] == "66.7 %" and (1, 1) not in placed
    assert nothing_cut(tmp_path / "plots" / "matrix.png") and len(axes.patches) == 3, "the diagonal is framed"
    assert axes.get_xlabel() == "shown to" and axes.get_ylabel() == "made on"


def test_a_matrix_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    for names, rates in (
        ([], []),
        (["a", "b"], [[Rate(1, 2)] * 2]),
        (["a", "b"], [[Rate(1, 2)] * 2, [Rate(1, 2)]]),
    ):
        with pytest.raises(ValueError, match="rates"):
            heatmap(tmp_path / "m.png", names, rates, title="t")

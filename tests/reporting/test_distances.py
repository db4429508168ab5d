"""Distances: the curve, the quantiles and the table say the same thing about the same numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcli.proportions import wilson
from robustcli.reporting.distances import distance_points, distance_quantile, distance_table
from robustcli.reporting.pictures import distances as module
from robustcli.reporting.pictures.distances import distance_curve

FOUND = [0.0, 0.0, 0.02, 0.01, 0.02, 0.05, math.inf, math.inf]
SOME = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 2.0, math.inf]), min_size=1, max_size=12)


def test_the_curve_falls_at_each_distance() -> None:
    points = distance_points(FOUND)
    assert [(eps, accuracy) for eps, accuracy, *_ in points] == [
        (0.0, 6 / 8),
        (0.01, 5 / 8),
        (0.02, 3 / 8),
        (0.05, 2 / 8),
    ]
    assert tuple(points[2][2:]) == wilson(3, 8)


@given(SOME)
def test_the_curve_starts_at_the_clean_accuracy_and_ends_at_what_nothing_broke(found: list[float]) -> None:
    points = distance_points(found)
    assert points[0][:2] == (0.0, sum(d > 0 for d in found) / len(found)) and points[-1][1] == sum(
        map(math.isinf, found)
    ) / len(found)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in zip(points, points[1:], strict=False))


@given(SOME, st.floats(0.01, 1.0))
def test_a_quantile_is_the_smallest_radius_that_breaks_its_share(found: list[float], share: float) -> None:
    radius = distance_quantile(found, share)
    assert radius in found
    assert sum(d <= radius for d in found) >= share * len(found) - 1e-6
    assert sum(d < radius for d in found) < share * len(found)


def test_quantiles_are_no_averages_with_inf_and_no_victims_of_rounding() -> None:
    assert (
        distance_quantile([1.0, math.inf], 0.5) == 1.0 and distance_quantile([1.0, math.inf], 1.0) == math.inf
    )
    assert distance_quantile([float(k) for k in range(1, 101)], 0.07) == 7.0  # 0.07 * 100 > 7


def test_the_table_has_one_line_per_attack() -> None:
    table = distance_table({"fmn": FOUND, "cw": [math.inf] * 3}, norm="l2")
    assert [list(row[2:]) for row in table.rows] == [[0.0, 0.02, 0.05], [math.inf] * 3]
    assert "75.0 %" in table.markdown() and "l2" in table.markdown() and "inf" in table.markdown()
    assert (
        table.csv().splitlines()[0]
        == "attack,broken,broken_low,broken_high,broken_n,first_quartile,median,third_quartile"
    )
    assert table.csv().splitlines()[1].endswith(",8,0.0,0.02,0.05")


def test_the_picture_shows_stairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[tuple[float, float]]] = {}
    original = module.eps_curve

    def spy(path, curves, **more):
        drawn.update({name: [(point[0], point[1]) for point in points] for name, points in curves.items()})
        original(path, curves, **more)

    monkeypatch.setattr(module, "eps_curve", spy)
    path = tmp_path / "plots" / "distances.png"
    distance_curve(path, {"fmn": [0.1, 0.2], "none": [math.inf], "many": [k / 100 for k in range(100)]})
    assert drawn["fmn"] == [(0.0, 1.0), (0.1, 1.0), (0.1, 0.5), (0.2, 0.5), (0.2, 0.0)] and drawn["none"] == [
        (0.0, 1.0)
    ]
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("bad", [[], [-0.1], [math.nan]])
def test_numbers_that_are_no_distances_are_refused(bad: list[float]) -> None:
    for use in (
        distance_points,
        lambda found: distance_quantile(found, 0.5),
        lambda found: distance_table({"a": found}),
    ):
        with pytest.raises(ValueError, match="distance"):
            use(bad)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="share"):
            distance_quantile([1.0], share)


def test_a_table_under_l0_counts_pixels() -> None:
    """Trap: pixel units of [0, 1], in which a median of 2 would be outside the box."""
    assert "l0 radius in pixels that" in distance_table({"a": [2.0, 3.0]}, norm="l0").note
    assert "l2 radius in pixel units of [0, 1] that" in distance_table({"a": [2.0]}, norm="l2").note

"""Rows of certificates survive JSON and refuse contradictions; tables and the picture say what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from robustcli.errors import DataError
from robustcli.proportions import clopper_pearson
from robustcli.records.certify import CertificateRow, CertifyRow, average_radius, certify_rows
from robustcli.reporting.certify_table import certify_table, status_table
from robustcli.reporting.pictures.certified import certified_curve


def sample(number: int, **changes: Any) -> CertificateRow:
    values: dict[str, Any] = {
        "id": number, "file": None, "label": "a", "predicted": "a", "clean": "a", "radius": 0.25,
        "status": "verified", "stage": "ibp", "seconds": 0.5, "evidence": {"margin": 1.5},
    }  # fmt: skip
    return CertificateRow(**{**values, **changes})


BROKEN = {"broken_at": 0.5, "attacked": "b", "broken_by": "pgd-20"}
SAMPLES = [
    sample(0),
    sample(1, radius=0.5),
    sample(2, radius=0.0, status="falsified", stage="pgd-20", **BROKEN),
    sample(3, predicted=None, radius=0.0, status="abstain"),
    sample(4, predicted="b", clean="b", status="falsified", stage="clean"),
]
ROWS = certify_rows(SAMPLES, [0.25, 0.5], ["pgd-20"], {"method": "ibp", "norm": "l2"})


def test_rows_round_trip() -> None:
    for row in SAMPLES:
        assert CertificateRow.from_json(json.loads(json.dumps(row.to_json()))) == row
    for rate in ROWS:
        assert CertifyRow.from_json(json.loads(json.dumps(rate.to_json()))) == rate
    edited = {**ROWS[1].to_json(), "certified_acc": 0.9}
    with pytest.raises(DataError, match="certified_acc does not follow"):
        CertifyRow.from_json(edited)


def test_counts_at_each_radius() -> None:
    assert [(row.eps, row.certified, row.standing) for row in ROWS] == [
        (0.0, 3, 4),
        (0.25, 2, 4),
        (0.5, 1, 3),
    ]
    assert ROWS[1].to_json()["intervals"]["certified_acc"] == list(clopper_pearson(2, 5))
    assert [row.inverted for row in SAMPLES] == [False] * 5 and sample(9, radius=0.5, **BROKEN).inverted


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "proven"},
        {"radius": -1.0},
        {"radius": float("nan")},
        {"predicted": None},
        {"broken_at": 0.5},
        {"seconds": float("inf")},
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        sample(0, **changes)


def test_more_certified_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="certified=6"):
        CertifyRow(method="ibp", norm="l2", eps=0.5, certified=6, standing=0, n=5)


def test_average_radius_is_over_all_samples_and_wrong_ones_count_as_0() -> None:
    mean, (low, high) = average_radius(SAMPLES)
    assert mean == pytest.approx(0.75 / 5)
    spread = (sum((r - mean) ** 2 for r in (0.25, 0.5, 0, 0, 0)) / 4) ** 0.5
    assert (low, high) == (0.0, pytest.approx(mean + 1.96 * spread / 5**0.5))


def test_tables() -> None:
    text = certify_table(ROWS).markdown()
    assert "| clean" in text and "| l2 0.25" in text and "40.0 %" in text and "proven by ibp" in text
    told = status_table(SAMPLES, 0.5, "l2").markdown()
    order = [told.index(word) for word in ("verified", "falsified", "abstain")]
    assert order == sorted(order) and "pgd-20" in told and "0.5" in told


def test_the_picture_has_stairs_where_each_sample_has_a_radius_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    module = "robustcli.reporting.pictures.certified"
    certified_curve(tmp_path / "a.png", ROWS, SAMPLES, title="t")
    assert Image.open(tmp_path / "a.png").size[0] > 300
    monkeypatch.setattr(f"{module}.eps_curve", lambda path, curves, **more: drawn.append(curves))
    certified_curve(tmp_path / "b.png", ROWS, SAMPLES, title="t")
    certified_curve(tmp_path / "c.png", ROWS, [*SAMPLES[:4], sample(4, radius=0.3)], title="t")
    asked, stairs = (curves["certified by ibp"] for curves in drawn)
    assert [point[:2] for point in asked] == [(0.0, 0.6), (0.25, 0.4), (0.5, 0.2)]
    assert [tuple(point[:2]) for point in stairs] == [
        (0.0, 0.6), (0.25, 0.6), (0.25, 0.4), (0.3, 0.4), (0.3, 0.2), (0.5, 0.2), (0.5, 0.0),
    ]  # fmt: skip

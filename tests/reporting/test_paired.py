"""Two runs on the same samples: what differs, by how much, and whether that is chance."""

import json

import pytest

from robustcli.proportions import mcnemar
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.paired import CERTIFIED, CLEAN, ROBUST, compare, paired, paired_table
from robustcli.store.identity import Identity


def run_of(path, standing, *, data="d1", eps=0.1, attack="pgd", wrong=(), first=0):
    """An evaluation in which the samples with True in `standing` hold; those in `wrong` are wrong anyway."""
    path.mkdir()
    Identity.new("eval").write(path)
    ids = range(first, first + len(standing))
    right = sum(i not in wrong for i in ids)
    rows = [
        EvalRow(
            kind=kind,
            norm="linf",
            eps=eps,
            correct=correct,
            clean_correct=right,
            n=len(standing),
            split="test",
            hashes={"data": data},
        )  # fmt: skip
        for kind, correct in (("clean", right), ("worst", sum(standing)))
    ]
    samples = [
        SampleRow(
            id=i,
            file=None,
            label="a",
            clean="b" if i in wrong else "a",
            confidence=1.0,
            attacked=None if holds or i in wrong else "b",
            broken_by=None if holds or i in wrong else attack,
        )  # fmt: skip
        for i, holds in zip(ids, standing, strict=True)
    ]
    for name, content in (("metrics", rows), ("samples", samples)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in content))
    (path / "summary.json").write_text(json.dumps({"attacks": [{"name": attack}]}))
    return Dossier.read(path)


def test_a_difference_is_counted_sample_by_sample(tmp_path):
    one = run_of(tmp_path / "one", [True] * 10 + [False] * 30)
    two = run_of(tmp_path / "two", [False] + [True] * 29 + [False] * 10)
    found = {pair.measure: pair for pair in compare(one, two).pairs}
    robust = found[ROBUST]
    assert (robust.n, robust.right, robust.gained, robust.lost) == (40, 10, 20, 1)
    assert (robust.first.k, robust.second.k, robust.difference) == (10, 29, 19 / 40)
    assert robust.p == mcnemar(20, 1) and robust.finding == "higher"
    assert robust.interval[0] > 0 and "two is higher than one (+47.5 points [" in robust.words("one", "two")
    assert found[CLEAN].finding == "no difference" and found[CLEAN].interval[0] < 0
    assert {pair.measure: pair.finding for pair in compare(two, one).pairs}[ROBUST] == "lower"
    assert compare(one, two).notes == []


def test_few_samples_are_called_chance(tmp_path):
    one, two = run_of(tmp_path / "one", [True, False]), run_of(tmp_path / "two", [True, True])
    pair = compare(one, two).pairs[1]
    assert pair.finding == "no difference" and "no difference beyond chance" in pair.words("one", "two")


def test_only_shared_samples_count(tmp_path):
    one, two = run_of(tmp_path / "one", [True] * 6), run_of(tmp_path / "two", [False] * 6, first=4)
    comparison = compare(one, two)
    assert [pair.n for pair in comparison.pairs] == [2, 2] and comparison.pairs[1].lost == 2
    assert comparison.notes == ["Compared are the 2 samples that both runs have measured."]
    apart = compare(one, run_of(tmp_path / "three", [True], first=90))
    assert apart.pairs == [] and apart.notes == ["The runs have no measured sample in common."]


@pytest.mark.parametrize(
    ("changed", "measures", "note"),
    [
        ({"data": "d2"}, [], "different images: their data differs"),
        ({"eps": 0.2}, [CLEAN], "Only clean accuracy is compared"),
        ({"attack": "fgsm"}, [CLEAN, ROBUST], "The attacks of the two runs differ"),
    ],
)
def test_what_is_not_the_same_is_said(tmp_path, changed, measures, note):
    one, two = run_of(tmp_path / "one", [True, False]), run_of(tmp_path / "two", [True, False], **changed)
    comparison = compare(one, two)
    assert [pair.measure for pair in comparison.pairs] == measures
    assert len(comparison.notes) == 1 and note in comparison.notes[0]


def test_a_run_without_samples_is_not_compared(tmp_path):
    one, two = run_of(tmp_path / "one", [True]), run_of(tmp_path / "two", [True])
    (two.path / "samples.jsonl").unlink()
    assert compare(one, Dossier.read(two.path)).notes == ("`two` has no samples to compare.",)


def test_certificates_are_compared_at_the_radius_of_the_threat(tmp_path):
    def certified(path, radii):
        path.mkdir()
        Identity.new("certify").write(path)
        row = CertifyRow(
            method="ibp", norm="linf", eps=0.1, certified=0, standing=0, n=2, hashes={"data": "d"}
        )
        samples = [
            CertificateRow(
                id=i,
                file=None,
                label="a",
                predicted="a",
                clean="a",
                radius=radius,
                stage="ibp",
                seconds=0.0,
                status="verified" if radius >= 0.1 else "unknown",
            )  # fmt: skip
            for i, radius in enumerate(radii)
        ]
        (path / "metrics.jsonl").write_text(json.dumps(row.to_json()) + "\n")
        (path / "samples.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in samples))
        (path / "summary.json").write_text('{"eps": 0.1}')
        return Dossier.read(path)

    pairs = compare(certified(tmp_path / "one", [0.05, 0.1]), certified(tmp_path / "two", [0.1, 0.2])).pairs
    found = {pair.measure: (pair.gained, pair.lost) for pair in pairs}
    assert found == {CLEAN: (0, 0), ROBUST: (0, 0), CERTIFIED: (1, 0)}


def test_the_table_names_both_runs():
    pair = paired(ROBUST, {1: True, 2: True, 3: False}, {1: True, 2: False, 3: False})
    table = paired_table(("old", "new"), [pair])
    assert table.columns[1:3] == ["old", "new"]
    assert table.rows[0][:3] == [ROBUST, pair.first, pair.second] and table.rows[0][5:7] == [1, 0]
    assert "| robust accuracy |" in table.markdown() and "-33.3" in table.markdown()

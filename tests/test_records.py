"""Rows survive JSON unchanged, contradict no count, and refuse edits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.errors import DataError
from robustcli.proportions import clopper_pearson
from robustcli.records.alarm import Alarm
from robustcli.records.bench import BenchRow
from robustcli.records.distance import DistanceRow, SampleDistance
from robustcli.records.document import Document
from robustcli.records.eval import EvalRow
from robustcli.records.read import read_rows, train_rows
from robustcli.records.sweep import Change, SweepRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.store.atomic import JsonLines

names = st.text(max_size=8)
finite = st.floats(0, 1e6, allow_nan=False)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), finite, names, st.lists(st.integers(0, 3), max_size=2)
)


@st.composite
def eval_row(draw: st.DrawFn) -> EvalRow:
    sizes = draw(
        st.dictionaries(names, st.integers(0, 40), min_size=1, max_size=4).filter(
            lambda d: sum(d.values()) > 0
        )
    )
    per_class = {name: (draw(st.integers(0, size)), size) for name, size in sizes.items()}
    n, correct = sum(sizes.values()), sum(k for k, _ in per_class.values())
    kind = draw(st.sampled_from(["clean", "attack", "worst"]))
    clean = correct if kind == "clean" else draw(st.integers(correct, n))
    return EvalRow(
        kind=kind,
        norm=draw(st.sampled_from(["linf", "l2", "l1", "l0"])),
        eps=draw(st.floats(0, 1)),
        correct=correct,
        clean_correct=clean,
        n=n,
        attack=draw(names),
        params=draw(st.dictionaries(names, plain, max_size=3)),
        broken=draw(st.none() | st.integers(0, clean)),
        seconds=draw(finite),
        passes_per_sample=draw(finite),
        seed=draw(st.integers(0, 2**62)),
        hashes=draw(st.dictionaries(names, names, max_size=2)),
        per_class=per_class,
    )


def train_row(**changes: Any) -> TrainRow:
    values: dict[str, Any] = {
        "step": 120,
        "epoch": 1.5,
        "lr": 0.05,
        "loss": 1.25,
        "norm": "linf",
        "eps": 8 / 255,
        "n": 200,
        "clean_acc": 0.9,
        "robust_acc": 0.455,
    }
    values |= {
        "parts": {"ce": 1.0, "kl": 0.25},
        "images_per_second": 321.5,
        "waiting_share": 0.02,
        "seconds": 12.5,
        "passes_per_sample": 23.0,
    }
    values |= {
        "attack": "pgd",
        "params": {"steps": 10, "step_size": None},
        "seed": 3,
        "hashes": {"data": "ab", "config": "cd", "code": "ef"},
    }
    return TrainRow(**{**values, **changes})


ROW = EvalRow(
    kind="attack",
    norm="linf",
    eps=0.1,
    correct=60,
    clean_correct=90,
    n=100,
    attack="pgd",
    label="pgd-20",
    params={"steps": 20},
    seed=1,
)


@settings(max_examples=150, deadline=None)
@given(eval_row())
def test_eval_row_round_trip(row: EvalRow) -> None:
    text = json.dumps(row.to_json(), allow_nan=False)
    assert EvalRow.from_json(json.loads(text)) == row


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.data())
def test_train_row_round_trip(n: int, data: st.DataObject) -> None:
    row = train_row(
        n=n,
        clean_acc=data.draw(st.integers(0, n)) / n,
        robust_acc=data.draw(st.none() | st.integers(0, n).map(lambda k: k / n)),
    )
    assert TrainRow.from_json(json.loads(json.dumps(row.to_json(), allow_nan=False))) == row


def test_the_three_rates_and_their_intervals() -> None:
    row = ROW.to_json()
    assert (row["clean_acc"], row["robust_acc"], row["attack_success"]) == (0.9, 0.6, 30 / 90)
    assert row["intervals"] == {
        "clean_acc": list(clopper_pearson(90, 100)),
        "robust_acc": list(clopper_pearson(60, 100)),
        "attack_success": list(clopper_pearson(30, 90)),
    }
    assert set(row) >= {
        "norm",
        "eps",
        "attack",
        "params",
        "n",
        "seconds",
        "passes_per_sample",
        "seed",
        "hashes",
        "kind",
        "schema_version",
    }
    assert ROW.title == "pgd-20"


def test_clean_rows_have_no_robust_accuracy() -> None:
    row = EvalRow(kind="clean", norm="l2", eps=0.5, correct=7, clean_correct=7, n=10)
    assert row.robust is None and row.success is None
    assert row.to_json()["robust_acc"] is None and set(row.intervals()) == {"clean_acc"}
    assert row.title == "none"


def test_no_attack_success_without_a_correct_sample() -> None:
    row = EvalRow(kind="worst", norm="linf", eps=0.1, correct=0, clean_correct=0, n=10)
    assert row.success is None and row.robust is not None and row.to_json()["attack_success"] is None


def test_a_targeted_attack_counts_what_it_broke() -> None:
    """Not on target is no success, though the label is wrong; and a wrong sample may turn right."""
    row = EvalRow(kind="attack", norm="linf", eps=0.1, correct=95, clean_correct=90, n=100, broken=2)
    assert row.success is not None and (row.success.k, row.success.n) == (2, 90)


def test_balanced_accuracy_only_for_imbalanced_classes() -> None:
    common: dict[str, Any] = {"kind": "clean", "norm": "linf", "eps": 0.1}
    even = EvalRow(
        **common, correct=15, clean_correct=15, n=20, per_class={"a": (10, 10), "b": (5, 10), "none": (0, 0)}
    )
    odd = EvalRow(**common, correct=91, clean_correct=91, n=100, per_class={"a": (90, 90), "b": (1, 10)})
    assert even.balanced_acc is None
    assert odd.balanced_acc == pytest.approx((1 + 0.1) / 2) and odd.clean.value == 0.91


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0},
        {"correct": 101},
        {"correct": -1},
        {"clean_correct": 101},
        {"correct": 95},
        {"broken": 91},
        {"kind": "clean"},
        {"kind": "dirty"},
        {"eps": float("nan")},
        {"seconds": float("inf")},
        {"per_class": {"a": (60, 99)}},
        {"per_class": {"a": (59, 100)}},
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(ROW, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": float("nan")},
        {"parts": {"ce": float("inf")}},
        {"clean_acc": 0.9001},
        {"robust_acc": 1.5},
        {"n": 0},
    ],
)
def test_a_training_row_needs_finite_values_and_whole_counts(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        train_row(**changes)


def test_of_sorts_loss_parts_from_fields() -> None:
    flat = {
        "step": 5,
        "epoch": 0.5,
        "lr": 0.1,
        "loss": 2.0,
        "natural": 1.5,
        "kl": 0.5,
        "n": 10,
        "clean_acc": 0.5,
        "robust_acc": None,
    }
    row = TrainRow.of(flat, norm="linf", eps=0.1, seed=7)
    assert (
        row.parts == {"natural": 1.5, "kl": 0.5}
        and row.seed == 7
        and row.clean is not None
        and row.clean.k == 5
        and row.robust is None
    )


def edited(**changes: Any) -> dict[str, Any]:
    return {**ROW.to_json(), **changes}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (edited(robust_acc=0.61), "robust_acc does not follow"),
        (edited(intervals={}), "intervals does not follow"),
        (edited(correct=61), "does not follow"),
        (edited(correct=60.0), "not a whole number"),
        (edited(n=True), "not a whole number"),
        (edited(extra=1), "extra does not follow"),
        ({key: value for key, value in edited().items() if key != "norm"}, "norm"),
        (edited(schema_version=2), "schema version 1"),
        (edited(kind="train"), "not a row of kind clean or attack or threat or worst"),
        (edited(per_class=[1]), "not a row of kind attack"),
        (edited(eps="0.1"), "not a row of kind attack"),
        ([], "not a row of kind clean"),
    ],
)
def test_edited_rows_are_refused(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        EvalRow.from_json(row)
    assert caught.value.code == "E-RECORD"


def test_read_rows_in_order_with_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [train_row(), ROW, train_row(step=240)]
    with JsonLines(path) as lines:
        for row in rows:
            lines.write(row.to_json())
    assert read_rows(path) == rows
    assert [row.step for row in train_rows(path)] == [120, 240]


def test_a_torn_last_line_is_left_out_and_a_torn_middle_is_not(tmp_path: Path) -> None:
    path, line = tmp_path / "metrics.jsonl", json.dumps(ROW.to_json())
    path.write_text(f"{line}\n{line[:40]}")
    assert read_rows(path) == [ROW]
    path.write_text(f"{line}\n{line[:40]}\n{line}\n")
    with pytest.raises(DataError, match=r"not a JSON object.*metrics\.jsonl:2") as caught:
        read_rows(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"kind": "attack", "eps": NaN}\n', b"3\n"]
)
def test_foreign_content_is_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_rows(path)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the records"):
        read_rows(tmp_path / "none.jsonl")


# ---- the other kinds ---------------------------------------------------------------------------------------

ABOUT: dict[str, Any] = {
    "data": "digits",
    "split": "test",
    "norm": "linf",
    "seed": 1,
    "hashes": {"model": "ab"},
}
WORST = dataclasses.replace(ROW, kind="worst", attack="", params={})
PAIR = TransferRow(
    **ABOUT,
    attack="fgsm, pgd-3",
    params=[{"name": "fgsm"}, {"name": "pgd", "steps": 3}],
    eps=0.1,
    samples=60,
    n=40,
    source="a",
    target="b",
    source_reference="run:x/a",
    target_reference="run:x/b",
    k=13,
    gained=2,
    lost=5,
)
MEASURED = BenchRow(
    device={"device": "cpu", "name": None},
    threads=2,
    peak={"fp32": {"tflops": 0.1, "size": 256}},
    batch_sizes=None,
    model="mlp",
    parameters=10,
    data="digits",
    batch_size=16,
    objective="madry",
    adversary="pgd-2 on ce",
    step="minmax",
    gflop_per_forward=1e-6,
    passes_per_image=7,
    steps=[{"work": "attack step", "images_per_second": 5.0}],
    training_loop={"steps": 3},
    cpu=None,
    gpu_over_cpu=None,
    process_memory_mib=None,
)


def sweep_row(since_half: Change | None = None) -> SweepRow:
    return SweepRow(
        total=WORST, key="eps", value=0.1, attacks=[{"name": "pgd", "params": {}}], since_half=since_half
    )


def distance_row(**changes: Any) -> DistanceRow:
    values = {**ABOUT, "model": "mlp", "n": 9, "attack": "fmn", "label": "fmn-20", "params": {"steps": 20}}
    values |= {"clean_correct": 8, "broken": 7, "quartiles": [0.01, 0.2, None]}
    return DistanceRow(**{**values, **changes})


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize(
    "row",
    [
        sweep_row(),
        sweep_row(Change(value=0.05, fell=3, recovered=1)),
        distance_row(),
        PAIR,
        dataclasses.replace(PAIR, n=0, k=0),
        MEASURED,
        Alarm("not-converged", "suspect", "3 fell", "more steps"),
        SampleDistance(id=4, label="three", distance={"fmn": 0.5, "cw": None}),
    ],
    ids=lambda row: type(row).__name__,
)
def test_every_kind_of_row_survives_json(row: Any) -> None:
    assert type(row).from_json(through_json(row.to_json())) == row


def test_a_sweep_row_is_the_row_of_its_verdicts_and_what_varied() -> None:
    row = sweep_row(Change(value=0.05, fell=3, recovered=1)).to_json()
    assert list(row)[-4:] == ["key", "value", "attacks", "since_half"]
    assert row["since_half"] == {"value": 0.05, "fell": 3, "recovered": 1}
    verdicts = {name: value for name, value in row.items() if name not in list(row)[-4:]}
    assert verdicts == {**WORST.to_json(), "kind": "sweep"}


def test_the_rate_of_a_pair_follows_from_its_counts() -> None:
    row = PAIR.to_json()
    assert row["rate"] == 13 / 40 and row["intervals"] == {"rate": list(clopper_pearson(13, 40))}
    nothing = dataclasses.replace(PAIR, n=0, k=0).to_json()
    assert nothing["rate"] is None and nothing["intervals"] == {"rate": [0.0, 1.0]}
    with pytest.raises(ValueError, match="k=41"):
        dataclasses.replace(PAIR, k=41)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (sweep_row(), {"correct": 61}),
        (sweep_row(), {"since_half": 3}),
        (distance_row(), {"broken": 7.0}),
        (distance_row(), {"kind": "sweep"}),
        (PAIR, {"k": 14}),
        (PAIR, {"surprise": 1}),
        (MEASURED, {"schema_version": 2}),
    ],
)
def test_an_edited_row_of_any_kind_is_refused(row: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        type(row).from_json({**row.to_json(), **changes})
    assert caught.value.code == "E-RECORD"


def test_sweeps_and_matrices_are_read_from_their_files(tmp_path: Path) -> None:
    for rows in ([sweep_row(), sweep_row(Change(0.05, 3, 1))], [PAIR]):
        with JsonLines(tmp_path / "rows.jsonl") as lines:
            lines.truncate(0)
            for row in rows:
                lines.write(row.to_json())
        assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_document_is_the_envelope_and_then_the_keys_of_its_verb() -> None:
    document = Document("bench").finish(Path("runs/bench/x-1"), MEASURED.to_json())
    assert list(document)[:6] == ["schema_version", "ok", "verb", "run", "seconds", "kind"]
    assert (document["ok"], document["verb"], document["run"]) == (True, "bench", "runs/bench/x-1")
    assert document["seconds"] >= 0 and BenchRow.from_json(through_json(document)) == MEASURED
    assert Document("check-gpu").finish(None, {"devices": []})["run"] is None

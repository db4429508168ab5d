"""Tables: what people see, what programs get, and nothing lost between."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli.proportions import Rate, clopper_pearson, wilson
from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import Eps, format_eps, format_rate, percent, raw, shown, tall
from robustcli.reporting.record_tables import class_table, eval_table, train_table, write_csv
from robustcli.reporting.tables import Table

COMMON: dict[str, Any] = {
    "norm": "linf",
    "eps": 8 / 255,
    "n": 450,
    "clean_correct": 400,
    "seed": 1,
    "hashes": {"model": "ab"},
}
ROWS = [
    EvalRow(kind="clean", correct=400, per_class={"cat": (200, 225), "dog": (200, 225)}, **COMMON),
    EvalRow(kind="attack", attack="fgsm", correct=260, seconds=0.5, passes_per_sample=2, **COMMON),
    EvalRow(
        kind="attack",
        attack="pgd",
        label="pgd-20",
        correct=200,
        seconds=2.25,
        passes_per_sample=41.5,
        **COMMON,
    ),
    EvalRow(
        kind="worst",
        correct=200,
        seconds=2.75,
        passes_per_sample=43.5,
        per_class={"cat": (150, 225), "dog": (50, 225)},
        **COMMON,
    ),
]
TRAIN = [
    TrainRow(
        step=step,
        epoch=step / 10,
        lr=0.1,
        loss=1.0,
        norm="linf",
        eps=0.1,
        n=100,
        clean_acc=0.9,
        robust_acc=robust,
        attack="pgd-10",
        parts={"kl": 0.5},
    )
    for step, robust in ((10, 0.5), (20, 0.6), (30, 0.55))
]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eps", "norm", "expected"),
    [
        (8 / 255, "linf", "8/255 (0.03137)"),
        (0.1, "linf", "25.5/255 (0.1)"),
        (1.0, "linf", "255/255 (1)"),
        (0.3, "linf", "76.5/255 (0.3)"),
        (0.5, "l2", "0.5"),
        (12.0, "l1", "12"),
        (5.0, "l0", "5 px"),
        (0.0, "linf", "0"),
    ],
)
def test_eps(eps: float, norm: str, expected: str) -> None:
    assert format_eps(eps, norm) == expected


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0, "0.0"),
        (1, "100.0"),
        (0.5, "50.0"),
        (0.99999, ">99.9"),
        (0.0001, "<0.1"),
        (0.99949, "99.9"),
        (0.001, "0.1"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(fraction: float, expected: str) -> None:
    assert percent(fraction) == expected


def test_a_rate_names_its_interval_and_n() -> None:
    low, high = wilson(400, 450)
    assert format_rate(Rate(400, 450)) == f"88.9 % [{100 * low:.1f}, {100 * high:.1f}] of 450"
    assert (
        tall(Rate(400, 450)).splitlines()[0] == "88.9 %" and tall(Rate(400, 450)).splitlines()[2] == "of 450"
    )


def test_shown_and_raw() -> None:
    import numpy as np

    assert [shown(cell) for cell in (None, 0.123456, 3, "a\x1bb", float("nan"), Eps(0.5, "l2"))] == [
        "-",
        "0.1235",
        "3",
        "a\\x1bb",
        "nan",
        "l2 0.5",
    ]
    assert [raw(cell) for cell in (None, 0.1, 3, Rate(1, 3), Eps(0.5, "l2"), np.float64(0.1))] == [
        "",
        "0.1",
        "3",
        repr(1 / 3),
        "0.5",
        "0.1",
    ]
    assert [raw(text) for text in ("=1+1", "+x", "-x", "@x", "x=1", "")] == [
        "'=1+1",
        "'+x",
        "'-x",
        "'@x",
        "x=1",
        "",
    ]


# ---- forms -------------------------------------------------------------------------------------------------


def test_three_rates_apart_with_n_and_interval() -> None:
    table = eval_table(ROWS)
    assert [name for name in table.columns if "acc" in name or "success" in name] == [
        "clean accuracy",
        "robust accuracy",
        "attack success",
    ]
    line = next(line for line in table.markdown().splitlines() if line.startswith("| pgd-20"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "pgd-20",
        "linf 8/255 (0.03137)",
        format_rate(Rate(400, 450)),
        format_rate(Rate(200, 450)),
        format_rate(Rate(200, 400)),
        "41.5",
        "2.25",
    ]
    clean = next(line for line in table.markdown().splitlines() if line.startswith("| none"))
    assert [cell.strip() for cell in clean.strip("|").split("|")][3:5] == ["-", "-"]
    assert "Wilson" in table.note and "left standing" in table.note
    assert "left standing" not in eval_table(ROWS[:2]).note


def test_csv_carries_fractions_and_exact_intervals() -> None:
    text = eval_table(ROWS).csv()
    row = read(text)[2]
    assert row["attack"] == "pgd-20" and (row["norm"], float(row["eps"])) == ("linf", 8 / 255)
    assert float(row["robust_acc"]) == 200 / 450 and row["robust_acc_n"] == "450"
    assert (float(row["robust_acc_low"]), float(row["robust_acc_high"])) == clopper_pearson(200, 450)
    assert float(row["attack_success"]) == 0.5 and row["attack_success_n"] == "400"
    assert read(text)[0]["robust_acc"] == "" and "%" not in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("[click](https://a.example)", r"[click\](https://a.example)"),
        ("![see](x.png)", r"![see\](x.png)"),
        ("[click][it]", r"[click\][it]"),
        ("*cat*", r"\*cat\*"),
        ("__init__", r"\_\_init\_\_"),
        ("big_cat", "big_cat"),
        ("`pgd|_a_`", r"`pgd\|_a_`"),
        ("a`[b](c)", r"a\`[b\](c)"),
        ("``[a](b)` `", r"\`\`[a\](b)\` \`"),
        ("<0.1 [0.0, 0.2] of 3", "<0.1 [0.0, 0.2] of 3"),
    ],
)
def test_a_name_in_markdown_shows_as_it_is(name, written) -> None:
    text = Table("", ["class"], [[name]], note=name).markdown()
    assert f"| {written} " in text and text.endswith(f"\n\n{written}\n")


def test_markdown_is_one_table_whatever_the_names_are() -> None:
    rows = [["a|b", 1.0], ["line\nbreak", None], ["<script>", 2.5], ["back\\slash", 1e-9], ["<0.1", 3]]
    lines = Table("t", ["name", "value"], rows).markdown().splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert lines[0] == "**t**" and len(body) == len(rows) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in body)
    assert len({len(line) for line in body}) == 1
    assert "&lt;script>" in body[4] and "<0.1" in body[6] and body[1].rstrip(" |").endswith(":")


text_cells = st.one_of(
    st.text(max_size=30), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none()
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(text_cells, min_size=2, max_size=2), max_size=4))
def test_any_cells_survive_csv(rows: list[list[Any]]) -> None:
    text = Table("t", ["a", "b"], rows).csv()
    assert text.count("\n") == len(rows) + 1
    found = (
        [[row["a"], row["b"]] for row in read(text)]
        if all(any(raw(c) for c in row) for row in rows)
        else None
    )
    assert found is None or found == [[raw(cell) for cell in row] for row in rows]


@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
def test_a_terminal_table_fits_and_loses_nothing(width: int) -> None:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None)
    models = {"natural": ROWS, "a rather long name of a model": ROWS}
    cells = [[name, *line] for name, rows in models.items() for line in eval_table(rows).rows]
    measured = eval_table(ROWS)
    table = Table(measured.title, ["model", *measured.columns], cells, measured.note)
    console.print(table.rich(width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    squeezed = re.sub(r"\s", "", text)
    for rate, times in ((Rate(400, 450), 8), (Rate(260, 450), 2), (Rate(200, 400), 4)):
        low, high = rate.display
        assert len(re.findall(re.escape(f"{percent(low)},{percent(high)}"), squeezed)) >= times
    assert squeezed.count("…") == 0


def test_a_table_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", ["a", "b"], [["x"]])


# ---- tables of records -------------------------------------------------------------------------------------


def test_balanced_accuracy_appears_when_classes_are_imbalanced() -> None:
    odd = EvalRow(
        kind="clean",
        norm="linf",
        eps=0.1,
        correct=91,
        clean_correct=91,
        n=100,
        per_class={"a": (90, 90), "b": (1, 10)},
    )
    assert read(eval_table([odd]).csv())[0]["balanced_acc"] == "0.55"
    assert "balanced accuracy" not in eval_table(ROWS).columns


def test_class_table() -> None:
    table = class_table(ROWS)
    assert list(table.columns) == ["class", "clean accuracy", "accuracy under all attacks"]
    assert [list(row) for row in table.rows] == [
        ["cat", Rate(200, 225), Rate(150, 225)],
        ["dog", Rate(200, 225), Rate(50, 225)],
    ]
    assert class_table(ROWS[3:]).rows[1][1] == Rate(50, 225)
    assert class_table(ROWS[1:2]).rows == []


def test_train_table_shows_best_and_last() -> None:
    table = train_table(TRAIN, best_step=20)
    assert [row[:2] for row in table.rows] == [["best", 20], ["last", 30]]
    assert table.rows[0][5] == Rate(60, 100)
    assert [row[0] for row in train_table(TRAIN).rows] == ["last"] and train_table([]).rows == []


def test_train_table_shows_what_was_proven_where_it_was_measured() -> None:
    table = train_table([*TRAIN[:-1], replace(TRAIN[-1], verified_acc=0.55)], best_step=20)
    place = table.columns.index("verified accuracy")
    assert [row[place] for row in table.rows] == [None, Rate(55, 100)]
    assert table.columns[place - 1] == "robust accuracy" and len(table.rows[0]) == len(table.columns)
    assert "verified accuracy" not in train_table(TRAIN).columns


def test_write_csv_holds_every_field(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_csv(path, [*ROWS, *TRAIN])
    rows = read(path.read_text())
    assert len(rows) == 7
    assert (
        float(rows[2]["robust_acc"]) == 200 / 450
        and float(rows[2]["robust_acc_low"]) == clopper_pearson(200, 450)[0]
    )
    assert (
        rows[2]["hash_model"] == "ab"
        and rows[0]["per_class"] == '{"cat": [200, 225], "dog": [200, 225]}'
        and rows[2]["label"] == "pgd-20"
    )
    assert rows[4]["kind"] == "train" and rows[4]["parts"] == '{"kl": 0.5}' and rows[4]["robust_acc"] == "0.5"
    write_csv(path, [ROWS[0].to_json()])
    assert len(read(path.read_text())) == 1

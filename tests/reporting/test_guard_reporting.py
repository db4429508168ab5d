"""The three numbers of a guard in words and in a table, from records alone."""

from dataclasses import replace

import pytest

from robustcli.records.guard import VIEWS, GuardCurveRow, GuardRow, GuardSampleRow
from robustcli.reporting.guard_table import guard_sentence, guard_table
from robustcli.reporting.pictures.guard import curves_picture, numbers_picture


def row(bare=4, oblivious=90, adaptive=3, gained=0, lost=1, **more):
    names = {"data": "digits", "split": "test", "norm": "linf", "eps": 0.1, "seed": 0, "model": "run:a"}
    counts = {"n": 100, "clean_right": 92, "rejections": 5, "rejected_right": 4, "bare_right": 98}
    lists = {"hashes": {"model": "a"}, "defences": [{"label": "energy"}], "attacks": ["apgd-50"]}
    standing = {"bare_standing": bare, "oblivious_standing": oblivious, "adaptive_standing": adaptive}
    rest = {
        "members": 1,
        "fpr": 0.05,
        "draws": 1,
        "adaptive_attacks": ["transfer"],
        "at_fpr": [(0.01, 50, 2)],
    }
    return GuardRow(
        **{**names, **counts, **lists, **standing, **rest, "gained": gained, "lost": lost, **more}
    )


def curve(points, wrong=9, auroc=0.8):
    sides = {"fpr": (0.0, 0.5, 1.0), "tpr": (0.0, 0.9, 1.0)}
    return GuardCurveRow(
        score="energy", points=points, clean=100, wrong=wrong, caught=min(7, wrong), auroc=auroc, **sides
    )


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({}, "holds nothing"),
        ({"adaptive": 40, "gained": 40, "lost": 4}, "holds"),
        ({"bare": 40, "adaptive": 10, "gained": 2, "lost": 32}, "harms"),
        ({"adaptive": 7, "gained": 4, "lost": 1}, "holds nothing"),
    ],
)
def test_a_defence_is_called_what_it_is_with_the_bare_number_beside_it(changes, finding):
    found = row(**changes)
    assert found.finding == finding == found.to_json()["finding"]
    assert guard_sentence(found).startswith(
        f"{finding}: adaptive {found.adaptive_standing}.0 % where the bare"
    )


def test_the_sentence_says_what_is_left_of_the_promise():
    words = "the oblivious attack promised +86.0 points, -1.0 remain"
    assert guard_sentence(row()) == f"holds nothing: adaptive 3.0 % where the bare model has 4.0 %; {words}"
    assert "the oblivious number was 3.0 %" in guard_sentence(row(oblivious=3))


def test_every_line_of_the_table_has_the_three_views():
    table = guard_table(row(), [curve("oblivious"), curve("adaptive", wrong=0, auroc=None)])
    assert table.columns == ["", *VIEWS]
    lines = {line[0]: line[1:] for line in table.rows}
    assert [rate.value for rate in lines["robust accuracy"]] == [0.04, 0.9, 0.03]
    assert lines["clean: rejected"][1].value == 0.05 and lines["energy: AUROC"] == [None, 0.8, None]
    assert lines["energy: caught"][2] is None
    assert "5.0 % false alarms" in table.note


def test_a_row_is_read_back_and_contradictions_are_refused():
    for one in (row(votes=7, draws=100, planted=(3, 4), half_standing=9), curve("adaptive")):
        assert type(one).from_json(one.to_json()).to_json() == one.to_json()
    assert row(votes=700, draws=100).numbers()["success_per_draw"]["rate"] == 0.07
    for changes in ({"oblivious_standing": 2}, {"rejections": 9}, {"gained": 5}):
        with pytest.raises(ValueError):
            replace(row(), **changes)
    with pytest.raises(ValueError, match="cannot"):
        GuardSampleRow(id=1, label="a", rejected=False, bare=True, oblivious=False, adaptive=True)


def test_the_pictures_have_the_three_numbers_and_oblivious_beside_adaptive():
    lines = numbers_picture(row()).table.rows
    assert [(view, rate) for view, rate, *_ in lines] == [
        ("bare", 0.04),
        ("oblivious", 0.9),
        ("adaptive", 0.03),
    ]
    drawn = curves_picture(row(), [curve("oblivious"), curve("adaptive", 0, None)])
    assert [line[:2] for line in drawn.table.rows] == [["oblivious", "energy"]] * 3
    assert [line[2:] for line in drawn.table.rows] == [[0.0, 0.0], [0.5, 0.9], [1.0, 1.0]]
    assert "energy, oblivious: 0.80" in drawn.caption
    assert "no point of a wrong class" in curves_picture(row(), [curve("adaptive", 0, None)])

"""The JSON documents against stored ones: a changed key, type or meaning breaks the programs that read them.

A stored value holds to one sample (training and attacks may round differently elsewhere). "<text>",
"<number>", "<interval>", "<alarms>" and the like stand for what differs from run to run. A key that no golden
file knows fails unless it is in `OPTIONAL`.
"""

import copy
import json
from pathlib import Path

import pytest
from jobs_support import TINY

from robustcli.proportions import clopper_pearson
from robustcli.records.read import read_rows
from robustcli.records.sample import SampleRow

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OPTIONAL = {
    "": {"gate", "partial", "sweep", "cross_check", "notes"}
}  # path of the mapping -> keys that are there only when asked for
FRACTIONS = ("clean_acc", "robust_acc", "attack_success", "robust_acc_8bit", "robust_acc_float", "value")
LEVELS = ("ok", "suspect", "invalid")
SAMPLE = {"schema_version": 1, "kind": "sample"}
PINNED = ("search.precision=fp32", "--json")


def differences(stored, got, samples, path=""):
    """Every place where `got` breaks the promise of `stored`; a fraction may be one of `samples` off."""
    if stored == "<text>":
        return [] if isinstance(got, str) and got else [f"{path}: expected text, got {got!r}"]
    if stored == "<number>":
        return [] if type(got) in (int, float) and got >= 0 else [f"{path}: expected a number, got {got!r}"]
    if stored == "<interval>":
        return (
            []
            if isinstance(got, list) and len(got) == 2 and 0 <= got[0] <= got[1] <= 1
            else [f"{path}: expected an interval, got {got!r}"]
        )
    if stored == "<alarms>":
        fit = isinstance(got, list) and all(
            set(alarm) == {"name", "level", "evidence", "remedy"} and alarm["level"] in LEVELS[1:]
            for alarm in got
        )
        return [] if fit else [f"{path}: expected alarms, got {got!r}"]
    if stored == "<class>":
        fit = isinstance(got, dict) and set(got) == {"n", "clean_acc", "robust_acc"}
        return [] if fit else [f"{path}: expected the accuracies of a class, got {got!r}"]
    if stored == "<names>":
        fit = isinstance(got, list) and 1 <= len(got) <= 5 and all(isinstance(name, str) for name in got)
        return [] if fit else [f"{path}: expected names, got {got!r}"]
    if stored == "<images>":
        rows = got if isinstance(got, list) else [None]
        fit = all(isinstance(row, dict) and SampleRow.from_json({**SAMPLE, **row}) for row in rows)
        return [] if fit else [f"{path}: expected images, got {got!r}"]
    if type(stored) is not type(got):
        return [f"{path}: expected {type(stored).__name__} {stored!r}, got {type(got).__name__} {got!r}"]
    if isinstance(stored, dict):
        unknown = set(got) - set(stored) - OPTIONAL.get(path, set())
        at = {key: f"{path}.{key}".lstrip(".") for key in set(stored) | set(got)}
        found = [f"{at[key]}: missing" for key in set(stored) - set(got)] + [
            f"{at[key]}: unknown" for key in unknown
        ]
        return found + [
            item
            for key in set(stored) & set(got)
            for item in differences(stored[key], got[key], samples, at[key])
        ]
    if isinstance(stored, list):
        if len(stored) != len(got):
            return [f"{path}: expected {len(stored)} entries, got {len(got)}"]
        return [
            item
            for k, (a, b) in enumerate(zip(stored, got, strict=True))
            for item in differences(a, b, samples, f"{path}.{k}")
        ]
    if path.rpartition(".")[2] in FRACTIONS:
        return (
            []
            if abs(stored - got) <= 1.2 / samples + 1e-9
            else [f"{path}: expected {stored} within one of {samples}, got {got}"]
        )
    return [] if stored == got else [f"{path}: expected {stored!r}, got {got!r}"]


def example(stored):
    """A document that fits: every stand-in replaced by a value."""
    if isinstance(stored, dict):
        return {key: example(value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [example(value) for value in stored]
    values = {
        "<text>": "x",
        "<number>": 1.5,
        "<interval>": [0.1, 0.2],
        "<alarms>": [],
        "<class>": {"n": 3, "clean_acc": 1.0, "robust_acc": 0.0},
        "<names>": ["0"],
        "<images>": [],
    }
    return values.get(stored, stored)


def golden(verb):
    return json.loads((GOLDEN / f"{verb}.json").read_text(encoding="utf-8"))


def consistent(document):
    """What must hold exactly, whatever the numbers: fractions are counts of n, intervals follow."""
    n, clean, robust = document["n"], document["clean_acc"], document["robust_acc"]
    right, standing = round(clean * n), round(robust * n)
    assert (clean, robust) == (right / n, standing / n)
    assert document["attack_success"] == ((right - standing) / right if right else 0.0)
    assert document["intervals"]["clean_acc"] == pytest.approx(list(clopper_pearson(right, n)))
    assert document["intervals"]["robust_acc"] == pytest.approx(list(clopper_pearson(standing, n)))
    assert document["intervals"]["attack_success"] == pytest.approx(
        list(clopper_pearson(right - standing, right))
    )
    assert document["attacks"][-1]["robust_acc"] == robust
    classes = document["per_class"].values()
    assert sum(entry["n"] for entry in classes) == n
    assert sum(entry["n"] * entry["robust_acc"] for entry in classes if entry["n"]) == pytest.approx(standing)
    rows = read_rows(Path(document["run"]) / "samples.jsonl")
    assert sum(row.correct for row in rows) == right
    assert sum(row.correct and row.broken_by is None for row in rows) == standing
    assert document["reliability"] == max(
        (alarm["level"] for alarm in document["alarms"]), key=LEVELS.index, default="ok"
    )


def test_the_documents_of_train_eval_and_attack(cli):
    trained = cli("train", *TINY, "--out", "model", *PINNED)
    assert trained.code == 0 and differences(golden("train"), trained.document, 16) == []

    gates = ("--fail-under", "clean_acc=0.05", "--fail-under", "robust_acc=1.0")
    measured = cli(
        "eval",
        "--model",
        "run:model",
        "--n",
        "60",
        "--eps",
        "1/255",
        "--attack",
        "fgsm,pgd",
        "--steps",
        "20",
        *gates,
        *PINNED,
    )
    stored = golden("eval")
    right = round(stored["clean_acc"] * 60)
    document = copy.deepcopy(measured.document)
    assert abs(stored.pop("attack_success") - document.pop("attack_success")) <= 1.2 / right
    assert measured.code == 1 and differences(stored, document, 60) == []
    consistent(measured.document)
    assert "gate" not in cli("eval", "--model", "run:model", "--n", "8", "--attack", "fgsm", *PINNED).document

    attacked = cli(
        "attack",
        "--model",
        "run:model",
        "--n",
        "12",
        "--eps",
        "0.2",
        "--steps",
        "3",
        "attack.save=10",
        *PINNED,
    )
    assert attacked.code == 0 and differences(golden("attack"), attacked.document, 10) == []
    consistent(attacked.document)


def test_the_document_of_a_failure(cli):
    failed = cli("eval", "adversary.stpes=3", "ball.eps=8", "--json")
    assert failed.code == 2 and differences(golden("failure"), failed.document, 1) == []


@pytest.mark.parametrize("verb", ["train", "eval", "attack", "failure"])
def test_every_change_of_a_document_is_seen(verb):
    """The comparison itself: each key removed, added or given another type is a difference."""
    stored, fit = golden(verb), example(golden(verb))
    assert differences(stored, fit, 40) == []
    for inner in [None, *(key for key in fit if isinstance(fit[key], dict))]:
        for key in fit if inner is None else fit[inner]:
            for change in ("remove", "type"):
                other = copy.deepcopy(fit)
                at = other if inner is None else other[inner]
                if change == "remove":
                    del at[key]
                else:
                    at[key] = None
                assert differences(stored, other, 40), (inner, key, change)
        other = copy.deepcopy(fit)
        (other if inner is None else other[inner])["surprise"] = 1
        assert differences(stored, other, 40) == [f"{inner or ''}.surprise: unknown".lstrip(".")]


def test_one_sample_more_or_less_is_no_difference_and_two_are():
    assert differences({"clean_acc": 0.5}, {"clean_acc": 0.525}, 40) == [] and differences(
        {"clean_acc": 0.5}, {"clean_acc": 0.55}, 40
    )
    assert (
        differences({"n": 40}, {"n": 41}, 40)
        and differences({"n": 40}, {"n": 40.0}, 40)
        and differences({"ok": True}, {"ok": 1}, 40)
    )
    assert differences(
        "<alarms>", [{"name": "x", "level": "bad", "evidence": "", "remedy": ""}], 40
    ) and differences("<interval>", [0.2, 0.1], 40)

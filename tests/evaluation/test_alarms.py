"""What raises an alarm, what chance explains, and that every alarm is documented."""

import ast
import cProfile
import re
import sys
from pathlib import Path

import pytest
import torch

from robustcli.evaluation.alarms import autograd_calls, check_model_output, check_search, final_checks
from robustcli.evaluation.rules import RULES, too_many
from robustcli.records.alarm import Alarm, reliability

ROOT = Path(__file__).resolve().parents[2]


def names(alarms):
    return [alarm.name for alarm in alarms]


@pytest.mark.parametrize(
    ("count", "of", "honest", "raised"),
    [
        (0, 64, 0, False),
        (1, 64, 0, True),
        (0, 0, 0.01, False),
        (6, 6, 0.5, False),  # 1/64
        (7, 7, 0.5, True),  # 1/128
        (7, 8, 0.5, False),  # 9/256
        (2, 64, 0.005, False),  # 0.042
        (3, 64, 0.005, True),  # 0.004
        (1, 8, 0.01, False),  # 0.077
        (2, 8, 0.01, True),  # 0.003
        (41, 4096, 0.01, False),
        (60, 4096, 0.01, True),
    ],
)
def test_a_count_is_an_alarm_when_chance_does_not_explain_it(count, of, honest, raised):
    assert too_many(count, of, honest) is raised


def test_more_cases_never_silence_a_rule():
    for rule in RULES.values():
        raised = [bool(rule.alarm(count, 64)) for count in range(65)]
        assert raised == sorted(raised) and not raised[0] and raised[64], rule.name
        assert all(alarm.evidence.startswith("64 of 64 ") and alarm.remedy for alarm in rule.alarm(64, 64))


def test_notes_leave_the_reliability_alone():
    note, suspect, invalid = (Alarm("x", level, "e", "r") for level in ("note", "suspect", "invalid"))
    assert [reliability(found) for found in ([], [note], [note, suspect], [suspect, invalid])] == [
        "ok",
        "ok",
        "suspect",
        "invalid",
    ]


def test_outputs():
    logits = torch.tensor([[0.5, 2.0, -1.0], [0.0, 1.0, 0.3]])
    assert check_model_output(logits, logits + 1e-5) == []
    assert names(check_model_output(logits, logits + torch.tensor([[0.0], [1e-3]]))) == ["random-forward"]
    assert names(check_model_output(logits.softmax(1), logits.softmax(1))) == ["softmax-output"]
    assert names(check_model_output(torch.eye(3), torch.eye(3))) == ["softmax-output"]
    half = torch.cat((logits, logits.softmax(1)))
    assert check_model_output(half, half) == []
    logits[1, 1] = float("nan")
    assert [(a.name, a.level, a.evidence[:6]) for a in check_model_output(logits, logits)] == [
        ("non-finite-logits", "invalid", "1 of 2")
    ]
    assert check_model_output(torch.zeros(0, 3), torch.zeros(0, 3)) == []


def test_searches():
    assert check_search(0.04, 0, False) == []
    assert names(check_search(0.06, 3, True)) == ["zero-gradient", "outside-ball", "model-mutated"]


@pytest.mark.parametrize(
    ("stages", "needs", "n", "raised"),
    [
        ({"apgd-ce": 50, "square": 47}, ("gradient", "scores"), 1000, True),
        ({"apgd-ce": 50, "square": 48}, ("gradient", "scores"), 1000, False),  # 0.2 % is allowed
        ({"apgd-ce": 50, "square": 48}, ("gradient", "scores"), 64, True),
        ({"apgd-ce": 50, "square": 49}, ("gradient", "scores"), 64, False),  # one sample is chance
        (
            {"apgd-ce": 50, "noise": 49, "square": 48},
            ("gradient", "decisions", "scores"),
            64,
            True,
        ),  # together two
        ({"square": 47, "apgd-ce": 20}, ("scores", "gradient"), 64, False),
        (
            {"square": 47, "apgd-ce": 40, "replay": 30, "fab": 30},
            ("scores", "gradient", "transfer", "gradient"),
            64,
            True,
        ),
        (
            {"noise": 60, "square": 40},
            ("decisions", "scores"),
            64,
            False,
        ),  # no white-box stage to compare with
        ({}, (), 0, False),
    ],
)
def test_a_black_box_must_not_beat_a_white_box(stages, needs, n, raised):
    found = final_checks(stages, dict(zip(stages, needs, strict=True)), n)
    assert [(a.name, a.level) for a in found] == [("black-box-beats-white-box", "suspect")] * raised


def emitted():
    """The first argument of every Alarm(...) and Rule(...) in the package."""
    found = set()
    for path in (ROOT / "robustcli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("Alarm", "Rule")
                and node.args
            ):
                found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found


def test_every_alarm_is_documented_with_its_level():
    rows = {}
    for line in (ROOT / "docs" / "alarms.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"`[a-z0-9-]+`", cells[0]):
            rows[cells[0].strip("`")] = cells
    assert len(emitted()) > 15
    assert set(rows) == emitted()
    assert all(rows[name][1] == rule.level for name, rule in RULES.items())
    assert all(
        set(re.findall(r"`([a-z]+)`", rows[name][4])) == set(rule.helps) for name, rule in RULES.items()
    )


def test_a_profiler_works_before_and_after_the_look_for_gradients():
    """cProfile names itself where `sys.setprofile` wants a function: putting that back was a TypeError."""
    x = torch.ones(1, requires_grad=True)
    profiler = cProfile.Profile()
    with profiler:
        with autograd_calls() as calls:
            torch.autograd.grad(x.sum(), x)
        too_many(1, 2, 0.5)
    assert calls and any("too_many" in str(entry.code) for entry in profiler.getstats())
    heard: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: heard.append(frame.f_code.co_name))
    try:
        with autograd_calls():
            pass
        too_many(1, 2, 0.5)
    finally:
        sys.setprofile(before)
    assert "too_many" in heard

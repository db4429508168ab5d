"""`--dry-run` read aloud: every number with its unit, once."""

import re

import pytest

from robustcli.assembly.cost import _flop, _time

UNITS = r"(?:[kMGTP]?FLOP|[KMG]iB|bytes|s|min|h|images?|steps?)"
RUNS = (
    "train smoke/digits",
    "train smoke/fake train.steps=null train.minutes=3",
    "bench smoke/fake --steps 10",
    *(f"{verb} smoke/{data}" for verb in ("eval", "attack") for data in ("digits", "fake")),
)


def rows(text):
    return dict(
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    )


@pytest.mark.parametrize("command", RUNS)
def test_no_unit_is_said_twice(cli, command):
    answer = cli(*command.split(), "--dry-run")
    assert answer.code == 0, answer.err
    found = rows(answer.out)
    for label, value in found.items():
        assert not re.search(r"(?i)flop|byte|second|_", label), label
        assert not re.search(rf"\b({UNITS})\b(?:\W+\w+)*?\W+\1\b", value), f"{label}: {value}"
    assert re.fullmatch(r"\d+(\.\d+)? [MG]FLOP an image", found["forward pass"])
    evaluates = command.startswith(("eval", "attack"))
    assert all(
        found[label].startswith("at most ") == evaluates
        for label in {"passes an image", "work in all", "time"} & set(found)
    )
    assert re.fullmatch(r"(at most )?about [\d.]+ (s|min|h)", found["time"]) and re.fullmatch(
        r"about [\d,]+ MiB", found["memory"]
    )
    assert ("precision of the search" in found) == evaluates


def test_numbers_are_shown_in_a_unit_that_suits_them():
    assert [_flop(amount) for amount in (2399e3, 12e9, 1.879e12, 4e15, 900)] == [
        "2.399 MFLOP",
        "12 GFLOP",
        "1.879 TFLOP",
        "4 PFLOP",
        "0.9 kFLOP",
    ]
    assert [_time(seconds) for seconds in (0.0, 0.44, 9.4, 17.4, 119, 180, 9000)] == [
        "0.1 s",
        "0.4 s",
        "9.4 s",
        "17 s",
        "119 s",
        "3.0 min",
        "2.5 h",
    ]


DRAWS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))

def net():
    return Net()
"""


def test_a_model_that_draws_without_saying_so_is_planned_with_its_draws(cli, tmp_path):
    (tmp_path / "net.py").write_text(DRAWS)
    words = f"eval --plugin {tmp_path}/net.py:net --data digits --attack autoattack --n 24 --dry-run"
    answer = cli(*words.split())
    assert answer.code == 0, answer.err
    found = rows(answer.out)
    assert found["draws an answer"].endswith("fab-t 2, square 2, apgd-wide 20; judged by 25")
    one, wide, fab, square = 203, 207, 2701, 5002
    passes = 25 * 6 + 20 * one + 6 * 9 * one + 2 * fab + 2 * square + 20 * wide
    assert found["passes an image"] == f"at most {passes:,}"

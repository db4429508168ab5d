"""A run read back: what its verb wrote, and nothing where it wrote nothing."""

import json

import pytest

from robustcli.errors import DataError, UsageError
from robustcli.records.alarm import Alarm
from robustcli.records.eval import EvalRow
from robustcli.records.sample import SampleRow
from robustcli.records.sweep import SweepRow
from robustcli.reporting.dossier import Dossier
from robustcli.store.identity import Identity

CLEAN = EvalRow(kind="clean", norm="linf", eps=0.1, correct=9, clean_correct=9, n=10)
WORST = EvalRow(kind="worst", norm="linf", eps=0.1, correct=4, clean_correct=9, n=10)
SWEPT = SweepRow(total=WORST, key="eps", value=0.1, attacks=(), since_half=None)
SAMPLE = SampleRow(
    id=3, file=None, label="a", clean="a", confidence=0.5, attacked="b", broken_by="pgd"
)  # fmt: skip
ALARM = Alarm("not-converged", "suspect", "more steps break more", "raise steps")


def lines(*rows):
    return "".join(json.dumps(row.to_json()) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path):
    Identity.new("eval").write(tmp_path)
    status = {"schema_version": 1, "state": "done", "code": 0, "step": None, "last_checkpoint": None}
    (tmp_path / "status.json").write_text(json.dumps({**status, "resumable": False}))
    (tmp_path / "config.resolved.yaml").write_text("name: mine\neval: {n: 10}\n")
    (tmp_path / "env.json").write_text('{"torch": "2.0"}')
    document = {"verb": "eval", "alarms": [ALARM.to_json()], "reliability": "suspect", "notes": ["a note"]}
    (tmp_path / "summary.json").write_text(json.dumps(document))
    (tmp_path / "metrics.jsonl").write_text(lines(CLEAN, WORST))
    (tmp_path / "sweep.jsonl").write_text(lines(SWEPT))
    (tmp_path / "samples.jsonl").write_text(lines(SAMPLE))
    return tmp_path


def test_everything_comes_back(run):
    found = Dossier.read(run)
    assert (found.verb, found.state, found.code, found.measured) == ("eval", "done", 0, True)
    assert found.config["eval"] == {"n": 10} and found.environment == {"torch": "2.0"}
    assert found.of(EvalRow) == [CLEAN, WORST] and [row.to_json() for row in found.of(SweepRow)] == [
        SWEPT.to_json()
    ]
    assert found.eval_row("clean") == CLEAN and found.eval_row("worst") == WORST
    assert found.answers == [SAMPLE] and found.alarms == [ALARM]
    assert found.reliability == "suspect" and found.notes == ["a note"]


def test_a_run_that_was_killed_has_what_it_wrote(run):
    for name in ("summary.json", "status.json", "samples.jsonl", "sweep.jsonl"):
        (run / name).unlink()
    found = Dossier.read(run)
    assert not found.measured and found.verb == "eval" and found.of(EvalRow) == [CLEAN, WORST]
    assert found.samples == [] and found.of(SweepRow) == [] and found.document == {}


def test_runs_inside_are_parts(run):
    inner = run / "robust"
    inner.mkdir()
    Identity.new("train").write(inner)
    assert Dossier.read(run).parts["robust"].verb == "train"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_what_is_no_run(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UsageError, match="no run of robustcli"):
        Dossier.read(tmp_path / "x")


def test_a_folder_of_runs_names_them(tmp_path):
    """As `train --seeds` leaves it."""
    for name in ("seed-0", "seed-1"):
        (tmp_path / name).mkdir()
        Identity.new("train").write(tmp_path / name)
    with pytest.raises(UsageError) as caught:
        Dossier.read(tmp_path)
    assert caught.value.hint == f"name the runs in it: {tmp_path / 'seed-0'} {tmp_path / 'seed-1'}"


@pytest.mark.parametrize("name", ["summary.json", "env.json", "config.resolved.yaml", "metrics.jsonl"])
@pytest.mark.parametrize("text", ["[1]\n", "{broken: [\n", "\x00\n"])
def test_a_file_with_something_else_is_named(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(DataError) as caught:
        Dossier.read(run)
    assert caught.value.code == "E-RECORD" and name in caught.value.where

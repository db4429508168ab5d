"""`robustcli demo guard`: the story runs, and no number stands without its adaptive one."""

import pytest

from robustcli.store.inventory import holds_nothing_else

pytest.importorskip("sqlalchemy", reason="the extra guard is not installed")
from robustcli.guard.store import EvidenceStore  # noqa: E402


@pytest.mark.slow
def test_the_story_runs_from_the_first_alarm_to_the_update(cli, tmp_path):
    answer = cli("demo", "guard", "--smoke", "--json", "--threads", "1")
    assert answer.code == 0, answer.err
    document, run = answer.document, tmp_path / answer.document["run"]
    assert holds_nothing_else(run, "demo"), "store/inventory.py knows all files"
    for numbers in (document["before"], document["after"]):
        assert {"bare", "oblivious", "adaptive", "reliability"} <= set(numbers)
        assert numbers["adaptive"]["robust_acc"] <= numbers["clean_acc"]
    assert sum(document["alarms"].values()) == len(list_of(run)) > 0
    assert (run / "current").exists() is document["promoted"]
    assert (run / "plots" / "scores.png").is_file() and (run / "plots" / "guard.png").is_file()
    again = cli("guard", "status", run / "evidence.db", "--json")
    assert again.code == 0 and again.document["state"] in ("ok", "watch", "act")
    assert cli("guard", "log", run / "evidence.db", "--verify", "-q").code == 0
    assert cli("demo", "guard", "--smoke", "--out", run, "--json").code == 2, "nothing is overwritten unasked"


def list_of(run):
    with EvidenceStore.open(run / "evidence.db") as store:
        return store.evidence(reviewed=True)


@pytest.mark.parametrize("words", [("nonsense",), ("guard", "train/digits")])
def test_another_demo_is_refused(cli, words):
    answer = cli("demo", *words)
    assert answer.code == 2 and words[-1] in answer.err


def test_a_dry_run_writes_nothing(cli, tmp_path):
    assert set(cli("demo", "guard", "--dry-run", "--json").document["plan"]) == {"train", "fit", "update"}
    assert not list(tmp_path.iterdir())

"""`report`, and the page that `eval` and `train` leave by themselves."""

import json
import re
import time

import pytest
from jobs_support import TINY
from reported import ALARM, begun, evaluation

from robustcli.jobs.evidence import freshness
from robustcli.reporting.picture import Picture
from robustcli.reporting.pictures import Drawn
from robustcli.reporting.tables import Table
from robustcli.store.inventory import holds_nothing_else


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Without pictures and without a look at the images, which tests of their own are about."""
    if "whole" not in request.fixturenames:
        monkeypatch.setattr("robustcli.jobs.evidence.report.drawn", lambda run: Drawn([], []))
        monkeypatch.setattr("robustcli.jobs.evidence.report.comparison_of", lambda runs: [])
        monkeypatch.setattr(freshness, "_digest", lambda spec, parts: "da7a")


@pytest.fixture
def whole():
    """With everything."""


@pytest.fixture
def by_itself(monkeypatch):
    monkeypatch.delenv("ROBUSTCLI_NO_REPORT", raising=False)


def test_train_and_eval_leave_a_page_and_report_makes_the_rest(cli, whole, by_itself, tmp_path):
    answer = cli("train", *TINY, "--out", "model")
    assert answer.code == 0 and "report: model/report.html" in answer.err
    measured = cli("eval", "--model", "run:model", "--n", 8, "--steps", 2, "eval.checks=0", "--out", "e")
    assert measured.code == 0 and "report: e/report.html" in measured.err
    assert "validation" in (tmp_path / "model/report.html").read_text()
    page = (tmp_path / "e/report.html").read_text()
    assert "robust accuracy" in page and "run:model" in page and len(page) < 5_000_000
    answer = cli("report", "e", "model", "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["verb"] == "report" and document["stale"] == []
    assert document["report"] == "e/report.html" and [run["run"] for run in document["runs"]] == [
        "e",
        "model",
    ]
    assert (tmp_path / "e/model_card.md").is_file() and "Comparison" in (
        tmp_path / "e/summary.md"
    ).read_text()
    assert holds_nothing_else(tmp_path / "e", "eval") and holds_nothing_else(tmp_path / "model", "train")
    assert "SAME" in (tmp_path / "e/report.html").read_text()
    assert cli("train", *TINY, "--seed", 1, "--out", "model", "--overwrite", "--no-report").code == 0
    document = cli("report", "e", "--json").document
    assert document["runs"][0]["verdict"] == "STALE"
    assert document["stale"] == ["model: `run:model` has other weights than those that were measured"]


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_without_a_page(cli, way, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTCLI_NO_REPORT", "1" if way == "variable" else "0")
    words = ["train", *TINY, "train.steps=2", "--out", "model"]
    assert cli(*words, *(["--no-report"] if way == "flag" else [])).code == 0
    assert (tmp_path / "model/summary.md").is_file() and not (tmp_path / "model/report.html").exists()


def test_a_page_that_fails_loses_no_result(cli, by_itself, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no page today")

    monkeypatch.setattr("robustcli.jobs.evidence.report.html_of", broken)
    answer = cli("train", *TINY, "train.steps=2", "--out", "model", "--json")
    assert answer.code == 0 and answer.document["ok"] and not (tmp_path / "model/report.html").exists()
    assert "no report.html was written: RuntimeError: no page today" in answer.err


def test_what_a_manager_reads(cli, tmp_path):
    evaluation(tmp_path / "run", 200, right=190, standing=90)
    answer = cli("report", "run")
    assert answer.code == 0 and answer.out.endswith("run\n")
    assert "right on 95.0 of 100 images as they are, and still on 45.0 of 100" in answer.err
    page = (tmp_path / "run/report.html").read_text()
    for text in ("AML.T0015", "AML.T0043.000", "Article 15", "ISO/IEC 24029-2", "Not tested", "Limits"):
        assert text in page


def test_a_changed_code_is_stale_in_red(cli, tmp_path):
    evaluation(tmp_path / "run")
    document = cli("report", "run", "--json").document
    assert document["runs"][0]["verdict"] == "STALE"
    assert any(line.startswith("code: ") for line in document["stale"])
    page = (tmp_path / "run/report.html").read_text()
    assert re.search(r'class="verdict bad">\s*<p class="light">.*STALE', page)


def test_the_same_code_is_said_to_be(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(freshness, "code_hash", lambda: "c0de")
    evaluation(tmp_path / "run", config={"data": {"name": "npz:gone.npz"}})
    document = cli("report", "run", "--json").document
    assert document["stale"] == ["config: data.name is npz:gone.npz, and the records say digits"]


def test_records_that_do_not_add_up_are_stale(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(freshness, "code_hash", lambda: "c0de")
    path = evaluation(tmp_path / "run", 20, standing=5, document={"robust_acc": 0.9}).path
    samples = (path / "samples.jsonl").read_text().splitlines(keepends=True)
    (path / "samples.jsonl").write_text("".join(samples[:-1]))
    found = {line.partition(":")[0] for line in cli("report", "run", "--json").document["stale"]}
    assert found == {"records"}
    monkeypatch.setattr(freshness, "_digest", lambda spec, parts: "other")
    assert any(line.startswith("data: ") for line in cli("report", "run", "--json").document["stale"])


@pytest.mark.parametrize("state", [("running", None), ("failed", 70), ("preempted", 143), ("failed", 6)])
def test_a_run_without_a_result_never_looks_passed(cli, tmp_path, state):
    evaluation(tmp_path / "run", state=state[0], code=state[1])
    document = cli("report", "run", "--json").document
    assert document["runs"][0]["verdict"] in ("FAILED", "NO RESULT") and document["runs"][0]["numbers"] == {}
    page = (tmp_path / "run/report.html").read_text()
    assert "Tried here" not in page and "Limits of the claim" not in page and "Article 15" not in page
    assert 'class="verdict good"' not in page and "Everything: the run has no result." in page


def test_an_alarm_is_explained(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(freshness, "checks_of", lambda run: [])
    monkeypatch.setattr("robustcli.jobs.evidence.report.checks_of", lambda run: [])
    evaluation(tmp_path / "run", alarms=[ALARM])
    assert cli("report", "run", "--json").document["runs"][0]["verdict"] == "SUSPECT"
    page = (tmp_path / "run/report.html").read_text()
    assert ALARM.evidence in page and "read it as an upper bound" in page and ALARM.remedy in page


def test_names_from_users_are_text(cli, tmp_path):
    evil = "<script>alert(1)</script>" + "x" * 200
    evaluation(tmp_path / "run", classes=(evil, '"><img src=x onerror=alert(1)>'), model=f"`{evil}`")
    assert cli("report", "run").code == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    text = (tmp_path / "run/summary.md").read_text()
    assert "<script" not in re.sub("`[^`]*`", "", text)


def test_out_is_exact_and_touches_nothing_of_somebody_else(cli, tmp_path):
    evaluation(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert cli("report", "run", "--out", "page").code == 0
    assert cli("report", "run", "--out", "page").code == 0  # a report may be made again
    assert {"report.html", "summary.md", "model_card.md"} <= {
        path.name for path in (tmp_path / "page").iterdir()
    }
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    answer = cli("report", "run", "--out", "mine")
    assert answer.code == 2 and "holds no report" in answer.err
    (tmp_path / "file").touch()
    assert cli("report", "run", "--out", "file").code == 2


def test_several_runs_are_compared_with_the_first(cli, tmp_path):
    evaluation(tmp_path / "old", 100, right=90, standing=30)
    evaluation(tmp_path / "new", 100, right=90, standing=60)
    document = cli("report", "old", "new", "--out", "both", "--json").document
    assert [run["run"] for run in document["runs"]] == ["old", "new"]
    text = (tmp_path / "both/summary.md").read_text()
    assert "robust accuracy: new is higher than old (+30.0 points" in text


@pytest.mark.slow
def test_ten_thousand_samples_take_seconds(cli, whole, tmp_path):
    """Below 10 s on two cores; it was 3 s on one."""
    evaluation(
        tmp_path / "run", 10_000, right=8800, standing=5200, classes=[f"class {i}" for i in range(100)]
    )
    began = time.process_time()
    assert cli("report", "run").code == 0
    assert time.process_time() - began < 10
    assert (tmp_path / "run/report.html").stat().st_size < 5_000_000


def test_pictures_that_have_no_room_are_said(cli, tmp_path, monkeypatch):
    table = Table("", ["x"], [[1]])
    picture = Picture("sweep_eps", "strength", "a title", "what one sees", b"png" * 1000, table)
    monkeypatch.setattr(
        "robustcli.jobs.evidence.report.drawn", lambda run: Drawn([picture], ["too few for ROC."])
    )
    evaluation(tmp_path / "one")
    evaluation(tmp_path / "two")
    assert cli("report", "one", "two").code == 0
    page = (tmp_path / "one/report.html").read_text()
    assert page.count("data:image/png") == 2 and page.count("too few for ROC.") == 2
    assert (tmp_path / "one/plots/sweep_eps.csv").read_text() == "x\n1\n"
    assert not (tmp_path / "two/plots").exists()
    monkeypatch.setattr("robustcli.jobs.evidence.report._PICTURES", 3000)
    assert cli("report", "one", "two").code == 0
    page = (tmp_path / "one/report.html").read_text()
    assert page.count("data:image/png") == 1 and "1 picture more" in page


def test_what_is_no_run_leaves_no_directory(cli, tmp_path):
    for _ in range(2):
        answer = cli("report", "nothing", "--out", "page")
        assert answer.code == 2 and "no run of robustcli" in answer.err
    assert not (tmp_path / "page").exists()


def test_no_run_and_no_words(cli, tmp_path):
    assert cli("report").code == 2
    (tmp_path / "empty").mkdir()
    answer = cli("report", "empty")
    assert answer.code == 2 and "no run of robustcli" in answer.err


def test_a_start_without_anything_has_a_page(cli, tmp_path):
    begun(tmp_path / "run", "train", "running", None)
    assert cli("report", "run").code == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "running"

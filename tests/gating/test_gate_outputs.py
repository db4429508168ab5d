"""What a gate leaves for services: valid by their schemas, at the right line, and never an old verdict."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from gated import SUSPECT, answers, write

from robustcli.config.thresholds import Quantity
from robustcli.gating.evidence import Share, WorstClass
from robustcli.gating.junit import junit
from robustcli.gating.places import below
from robustcli.gating.sarif import sarif
from robustcli.gating.threshold import Threshold
from robustcli.gating.verdict import Outcome, judge
from robustcli.gating.words import badge, gate_markdown, workflow_commands
from robustcli.jobs.evidence.posting import GateFiles, Posting
from robustcli.proportions import Rate
from robustcli.terminal.console import Console

SCHEMAS = Path(__file__).resolve().parents[1] / "schemas"
ODD = "<a> & \"b\" 'c' `d` ü\x1b[31m\n::error::x, 100 %"
ALARMS = (
    SUSPECT,
    replace(SUSPECT, name="clean-noise", level="note"),
    replace(SUSPECT, level="invalid", evidence=ODD),
)


def threshold(mode="evidence", where="ci/gate.yaml:3", metric="robust_acc"):
    return Threshold(Quantity(metric), 0.45, mode, where=where)


def outcomes():
    """An outcome of every kind."""
    met, open_, missed = (Share(Rate(k, 1000)) for k in (600, 455, 300))
    verdicts = [
        judge(threshold(), met),
        judge(threshold(where="ci/gate.yaml:4"), open_),
        judge(threshold("prove", "ci/gate.yaml:5"), open_),
        judge(threshold("point", "command line"), missed),
        judge(
            threshold(metric="worst_class_robust_acc"),
            WorstClass({ODD: Rate(1, 40), "b": Rate(9, 9)}),
            note=ODD,
        ),
    ]
    asked = [verdict.threshold for verdict in verdicts]
    whole = Outcome(
        asked, verdicts, ALARMS, run=f"runs/eval/{ODD}", about=ODD, seconds=1.5, looks=(512, 2000)
    )
    return {
        "all": whole,
        "passed": Outcome(asked[:1], verdicts[:1], run="runs/eval/x-1", about="x"),
        "inconclusive": Outcome(asked[:2], verdicts[:2], run="runs/eval/x-1", about="x"),
        "unproven": Outcome(asked[2:3], verdicts[2:3], run="runs/eval/x-1", about="x"),
        "unhealthy": replace(whole, verdicts=(), error=ODD),
        "crash": Outcome((), error="error[E-INTERNAL]: a bug"),
        "cli": Outcome([asked[3]], [verdicts[3]], run="runs/eval/x-1"),
    }


@pytest.mark.parametrize("kind", list(outcomes()))
def test_junit_is_valid_and_counts(kind):
    etree = pytest.importorskip("lxml.etree")
    text = junit(outcomes()[kind])
    schema = etree.XMLSchema(etree.parse(str(SCHEMAS / "junit.xsd")))
    schema.assertValid(etree.fromstring(text.encode()))
    suite = ET.fromstring(text).find("testsuite")
    found = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert (
        found
        == {
            "all": {"tests": 8, "failures": 3, "errors": 2, "skipped": 1},
            "passed": {"tests": 1, "failures": 0, "errors": 0, "skipped": 0},
            "inconclusive": {"tests": 2, "failures": 0, "errors": 0, "skipped": 0},
            "unproven": {"tests": 1, "failures": 1, "errors": 0, "skipped": 0},
            "unhealthy": {"tests": 8, "failures": 0, "errors": 7, "skipped": 1},
            "crash": {"tests": 1, "failures": 0, "errors": 1, "skipped": 0},
            "cli": {"tests": 1, "failures": 1, "errors": 0, "skipped": 0},
        }[kind]
    )
    assert found["tests"] == len(suite.findall("testcase"))


@pytest.mark.parametrize("kind", list(outcomes()))
def test_sarif_is_valid_and_stands_at_the_line(kind, tmp_path, monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    monkeypatch.chdir(tmp_path)
    document = json.loads(sarif(outcomes()[kind], "1.2.3", tmp_path))
    jsonschema.Draft4Validator(json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text())).validate(
        document
    )
    (run,) = document["runs"]
    assert run["invocations"][0]["executionSuccessful"] == (kind not in ("unhealthy", "crash"))
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {
        each["ruleId"] for each in run["results"]
    }
    at = [each["locations"][0]["physicalLocation"] for each in run["results"]]
    lines = [(place["artifactLocation"]["uri"], place["region"]["startLine"]) for place in at]
    gate, alarms = "ci/gate.yaml", [("ci/gate.yaml", 3)] * 3
    own = "config.resolved.yaml"  # of the run: a threshold of the command line has no line
    expected = {
        "all": [(gate, 4), (gate, 5), (own, 1), (gate, 3), *alarms],
        "passed": [],
        "inconclusive": [(gate, 4)],
        "unproven": [(gate, 5)],
        "unhealthy": alarms,
        "crash": [],
        "cli": [(own, 1)],
    }
    assert len(lines) == len(expected[kind])
    for (uri, line), (end, number) in zip(lines, expected[kind], strict=True):
        assert uri.endswith(end) and line == number
    levels = {
        "all": ["note", "error", "error", "error", "warning", "note", "error"],
        "inconclusive": ["note"],
    }
    if kind in levels:
        assert [each["level"] for each in run["results"]] == levels[kind]


def test_a_file_outside_of_the_sources_has_an_absolute_uri(tmp_path):
    outcome = Outcome((), [judge(threshold(where=f"{tmp_path}/a b/gate.yaml:2"), Share(Rate(1, 100)))])
    place = json.loads(sarif(outcome, "1", tmp_path / "src"))["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"] == {"uri": f"file://{tmp_path}/a%20b/gate.yaml"}
    inside = json.loads(sarif(outcome, "1", tmp_path))["runs"][0]["results"][0]["locations"][0]
    assert inside["physicalLocation"]["artifactLocation"] == {
        "uri": "a%20b/gate.yaml",
        "uriBaseId": "SRCROOT",
    }


def test_commands_of_github_are_one_line_each_and_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = list(workflow_commands(outcomes()["all"], tmp_path))
    assert [line.partition(" ")[0] for line in found] == [
        *("::notice", "::error", "::error", "::error", "::warning", "::warning"),
    ]
    assert found[1].startswith("::error file=ci/gate.yaml,line=5,title=gate%3A robust_acc::INCONCLUSIVE: ")
    assert found[2].startswith("::error title=gate%3A robust_acc::FAIL: robust_acc >= 0.45 (point)")
    assert all("\n" not in line and "\x1b" not in line for line in found) and "100 %25" in found[-1]
    (unjudged,) = [line for line in workflow_commands(outcomes()["crash"], tmp_path)]
    assert unjudged.startswith("::error title=gate%3A robustness gate::nothing was judged: ")


def test_words_for_people():
    texts = {kind: gate_markdown(outcome) for kind, outcome in outcomes().items()}
    assert texts["all"].startswith("## ❌ Robustness gate: FAIL\n") and "<a>" not in texts["all"]
    assert texts["passed"].startswith("## ✅ Robustness gate: PASS\n")
    assert texts["inconclusive"].startswith("## ❔ Robustness gate: INCONCLUSIVE, which passes\n")
    assert texts["unproven"].startswith("## ❌ Robustness gate: INCONCLUSIVE, and it was to be proven\n")
    assert texts["crash"] == "## ⚠️ Robustness gate: ERROR\n\nNothing was judged: error[E-INTERNAL]: a bug\n"
    assert "do not tell on which side" in texts["inconclusive"] and "do not tell" not in texts["passed"]
    assert "Looks: 512 and 2000 samples." in texts["all"] and "PASS" not in texts["unhealthy"]
    found = {kind: json.loads(badge(outcome)) for kind, outcome in outcomes().items()}
    assert found["all"] == {
        "schemaVersion": 1, "label": "robust_acc", "message": "60.0 % (fail)", "color": "red",
    }  # fmt: skip
    assert found["inconclusive"]["color"] == "yellow" and found["unproven"]["color"] == "red"
    assert found["crash"]["message"] == "not judged" and found["crash"]["color"] == "lightgrey"


# ---- by the command ----------------------------------------------------------------------------------------

FILES = ("--junit", "out/j.xml", "--sarif", "out/s.json", "--badge", "out/b.json")


def test_files_summary_and_annotations(gate, monkeypatch):
    write("r", samples=answers(1000, 300))
    Path("summary.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(Path("summary.md").absolute()))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    answer = gate("r", "  robust_acc: {min: 0.45}\n", *FILES, "--json")
    assert answer.code == 1 and answer.document["verdict"] == "FAIL"  # stdout is one document still
    assert Path("summary.md").read_text().startswith("before\n## ❌ Robustness gate: FAIL\n")
    assert "::error file=gate.yaml,line=2,title=gate%3A robust_acc::FAIL: robust_acc >= 0.45" in answer.err
    assert 'failures="1"' in Path("out/j.xml").read_text() and "(fail)" in Path("out/b.json").read_text()
    (result,) = json.loads(Path("out/s.json").read_text())["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 2}


def test_no_old_verdict_stays_behind(cli, gate):
    write("r", samples=answers(1000, 900))
    assert gate("r", "  robust_acc: {min: 0.45}\n", *FILES).code == 0
    for words, said in ((("r", "thresholds.robst=1"), "unknown metric"), (("nowhere",), "no such file")):
        assert cli("gate", *words, *FILES).code == 2
        assert said in Path("out/j.xml").read_text() and 'errors="1"' in Path("out/j.xml").read_text()
        assert "not judged" in Path("out/b.json").read_text()
        assert not json.loads(Path("out/s.json").read_text())["runs"][0]["invocations"][0][
            "executionSuccessful"
        ]


def test_a_gate_that_is_killed_leaves_an_error(tmp_path, monkeypatch):
    """What lies there while it measures, and stays where nothing can clean up."""
    monkeypatch.chdir(tmp_path)
    Posting(GateFiles(junit="j.xml", report="r"), Outcome((threshold(),)), Console()).__enter__()
    assert "the gate did not come to its end" in Path("j.xml").read_text()
    assert Path("r/gate.md").read_text().startswith("## ⚠️ Robustness gate: ERROR\n")


def test_a_file_that_cannot_be_written_ends_it_before_anything_is_measured(cli):
    write("r", samples=answers(1000, 900))
    Path("out").write_text("a file")
    answer = cli("gate", "r", "thresholds.robust_acc.min=0.1", *FILES)
    assert answer.code == 6 and "could not write" in answer.err and "Gate" not in answer.out


def test_a_root_that_is_named_through_a_link_is_the_root(tmp_path):
    (tmp_path / "real" / "ci").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    for root, file in (("link", "real"), ("real", "link"), ("link", "link")):
        assert below(str(tmp_path / file / "ci" / "gate.yaml"), tmp_path / root) == "ci/gate.yaml"
    assert below(str(tmp_path / "gate.yaml"), tmp_path / "link") is None


def test_the_report_of_an_earlier_gate_does_not_stand_beside_a_new_verdict(gate):
    write("good", samples=answers(1000, 900))
    assert gate("good", "  robust_acc: {min: 0.45}\n", "--report", "out").code == 0
    assert Path("out/summary.md").is_file() and Path("out/report.html").is_file()
    assert gate("gone", "  robust_acc: {min: 0.45}\n", "--report", "out").code == 2
    assert "Nothing was judged" in Path("out/gate.md").read_text()
    assert sorted(path.name for path in Path("out").iterdir() if path.is_file()) == ["gate.md"]


def test_a_report_goes_over_nobodys_files(gate):
    write("good", samples=answers(1000, 900))
    Path("docs").mkdir()
    Path("docs/summary.md").write_text("mine")
    Path("j.xml").write_text("an old verdict")
    answer = gate("good", "  robust_acc: {min: 0.45}\n", "--report", "docs", "--junit", "j.xml")
    assert answer.code == 2 and "--report is not empty and holds no report; docs" in answer.err
    assert Path("docs/summary.md").read_text() == "mine" and "<error " in Path("j.xml").read_text()

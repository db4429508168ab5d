"""`robustcli gate RUN`: verdicts from records, exit codes, and runs that must never pass."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gated import SUSPECT, answers, write

from robustcli.records.alarm import Alarm
from robustcli.records.certify import CertifyRow
from robustcli.records.eval import EvalRow
from robustcli.records.sweep import SweepRow

#: Of `--json`, which programs read.
DOCUMENT = {
    *("schema_version", "ok", "verb", "run", "seconds"),
    *("verdict", "thresholds", "looks", "reliability", "alarms", "gate"),
}
ENTRY = ("metric", "mode", "verdict", "passed", "value", "n", "interval", "alpha", "where")


def verdicts(answer):
    return {each["metric"]: each["verdict"] for each in answer.document["thresholds"]}


@pytest.mark.parametrize(
    ("mode", "stands", "word", "code"),
    [
        ("evidence", 300, "FAIL", 1),
        ("evidence", 440, "INCONCLUSIVE", 0),
        ("evidence", 600, "PASS", 0),
        ("prove", 300, "FAIL", 1),
        ("prove", 460, "INCONCLUSIVE", 1),
        ("prove", 600, "PASS", 0),
        ("point", 449, "FAIL", 1),
        ("point", 450, "PASS", 0),
    ],
)
def test_modes_and_exit_codes(gate, mode, stands, word, code):
    write("r", samples=answers(1000, stands))
    answer = gate("r", f"  robust_acc: {{min: 0.45, mode: {mode}}}\n", "--json")
    assert (answer.code, answer.document["verdict"], answer.document["ok"]) == (code, word, True)
    (found,) = answer.document["thresholds"]
    low, high = found["interval"]
    assert found["value"] == stands / 1000 and low < found["value"] < high and found["where"] == "gate.yaml:2"
    assert [each["passed"] for each in answer.document["gate"]] == [code == 0]
    assert set(answer.document) == DOCUMENT and set(found) == {*ENTRY, "min"}
    assert ("gate not met: robust_acc is 0." in answer.err) == (code == 1)


def test_every_metric_of_an_evaluation(gate):
    swept = EvalRow(kind="worst", norm="linf", eps=8 / 255, correct=180, clean_correct=190, n=200)
    write(
        "r",
        samples=answers(200, 160, right=190),
        more=[SweepRow(total=swept, key="eps", value=8 / 255, attacks=(), since_half=None)],
    )
    answer = gate(
        "r",
        "  clean_acc: {min: 0.9}\n  robust_acc: {min: 0.7}\n  robust_acc@linf:0.1: {min: 0.7}\n"
        "  robust_acc@linf:8/255: {min: 0.85}\n  attack_success: {max: 0.25}\n"
        "  worst_class_clean_acc: {min: 0.8}\n  worst_class_robust_acc: {min: 0.8}\n",
        "--json",
    )
    found = {each["metric"]: (each["value"], each["n"]) for each in answer.document["thresholds"]}
    assert found == {
        "clean_acc": (0.95, 200),
        "robust_acc": (0.8, 200),
        "robust_acc@linf:0.1": (0.8, 200),
        "robust_acc@linf:8/255": (0.9, 200),
        "attack_success": (30 / 190, 190),
        "worst_class_clean_acc": (0.9, 100),
        "worst_class_robust_acc": (0.6, 100),
    }
    assert verdicts(answer)["worst_class_robust_acc"] == "FAIL" and answer.code == 1
    assert "class b, the least of 2" in answer.err


@pytest.mark.parametrize("radius", ["linf:4/255", "l2:0.1", "linf:0.0999"])
def test_no_radius_is_interpolated(gate, radius):
    write("r", samples=answers(200, 160))
    answer = gate("r", f"  robust_acc@{radius}: {{min: 0.1}}\n", "--json")
    assert answer.code == 2 and not answer.document["ok"]
    assert "nothing is interpolated; gate.yaml:2; " in answer.err and "it has linf:0.1" in answer.err


def test_a_certificate_is_judged_at_its_radii(gate):
    rows = [
        CertifyRow(method="crown", norm="linf", eps=eps, certified=k, standing=s, n=100, attacks=attacks)
        for eps, k, s, attacks in ((0.0, 100, 99, []), (0.01, 95, 97, ["pgd"]), (0.02, 80, 90, ["pgd"]))
    ]
    write("c", verb="certify", more=rows, document={"n": 100, "norm": "linf", "eps": 0.02})
    text = "  certified_acc@linf:0.01: {min: 0.9, mode: point}\n  clean_acc: {min: 0.9}\n"
    text += "  robust_acc: {min: 0.8}\n"
    answer = gate("c", text, "--json")
    assert [each["value"] for each in answer.document["thresholds"]] == [0.95, 0.99, 0.9] and answer.code == 0
    refused = gate("c", "  certified_acc@linf:0.015: {min: 0.1}\n")
    assert refused.code == 2 and "it has linf:0.01, linf:0.02, and nothing is interpolated" in refused.err


# ---- what never passes -------------------------------------------------------------------------------------

EASY = "  clean_acc: {min: 0.0}\n"  # any number would do


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alarms": [SUSPECT]}, "the evaluation is suspect: not-converged"),
        ({"alarms": [replace(SUSPECT, level="invalid")]}, "the evaluation is invalid"),
        ({"status": {"state": "running", "code": None}}, "the run is not done: running"),
        ({"status": {"state": "failed", "code": 70}}, "the run is not done: failed"),
        ({"status": {"code": 10}}, "exit code 10"),
        ({"document": {"partial": {"shards": 3, "of": 8}}}, "partial 3/8 shards"),
    ],
)
@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_an_unhealthy_evaluation_exits_10(gate, changes, said, strict):
    write("r", samples=answers(100, 90), **changes)
    answer = gate("r", EASY, "--json", "--junit", "j.xml", *strict)
    assert answer.code == 10 and said in answer.err
    assert answer.document["error"]["code"] == "E-UNRELIABLE" and "verdict" not in answer.document
    assert "<error " in Path("j.xml").read_text() and said in Path("j.xml").read_text()


def test_a_note_is_no_doubt(gate):
    write("r", samples=answers(100, 90), alarms=[Alarm("clean-noise", "note", "some", "nothing")])
    assert gate("r", EASY).code == 0


def test_zero_samples_never_pass(gate):
    write("none", samples=())
    assert gate("none", EASY).code == 2
    write("wrong", samples=answers(50, 0, right=0))
    answer = gate("wrong", "  attack_success: {max: 1}\n")  # of the samples that are right: there is none
    assert answer.code == 10 and "no sample is right on the clean image" in answer.err
    assert gate("wrong", "  robust_acc: {min: 0.1}\n").code == 1


def test_a_class_without_samples_never_passes(gate):
    write("one", samples=answers(1, 1))  # of class b; a has none
    answer = gate("one", "  worst_class_robust_acc: {min: 0.0, mode: point}\n")
    assert answer.code == 10 and "no sample of class 'a'" in answer.err


def test_a_run_that_lies_is_refused(gate):
    run = write("r", samples=answers(100, 50))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1]["robust_acc"] = 0.9
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = gate("r", EASY)
    assert answer.code == 3 and "E-RECORD" in answer.err


def edited(run, **changes):
    """Rows with other counts, each of them in itself without a contradiction."""
    rows = [EvalRow.from_json(json.loads(line)) for line in (run / "metrics.jsonl").open()]
    rows = [replace(row, **changes) if row.kind == "worst" else row for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))


def test_rows_that_contradict_samples_or_summary_are_refused(gate):
    edited(write("rows", samples=answers(100, 50), listed=True), correct=90, per_class={})
    edited(write("classes", samples=answers(100, 50), listed=True), per_class={"a": (30, 50), "b": (20, 50)})
    write("document", samples=answers(100, 50), document={"robust_acc": 0.1})
    twice = write("twice", samples=answers(100, 50)) / "metrics.jsonl"
    twice.write_text(2 * twice.read_text())
    for run, said in (
        ("rows", "standing: 50 of 100 samples, and 90 of 100 by the rows"),
        ("classes", "of class a: 50 of 50 samples, and 30 of 50 by the rows"),
        ("document", "summary.json says robust_acc = 0.1, metrics.jsonl 0.5"),
        ("twice", "2 rows of kind clean"),
    ):
        answer = gate(run, EASY)
        assert answer.code == 3 and "E-RECORD" in answer.err and said in answer.err, answer.err


@pytest.mark.parametrize(
    ("document", "code", "said"),
    [
        ({"reliability": "ok"}, 10, "the evaluation is suspect"),  # beside an alarm that says otherwise
        ({"alarms": [{"name": "x", "level": "fine", "evidence": "", "remedy": ""}]}, 3, "level 'fine'"),
        ({"alarms": [{"name": "x"}]}, 3, "an alarm without sense"),
        ({"alarms": 5, "reliability": "ok"}, 3, "the alarms in summary.json"),
        ({"alarms": ["suspect"], "reliability": "ok"}, 3, "the alarms in summary.json"),
        ({"alarms": [], "reliability": "ok", "partial": {}}, 10, "partial"),
        ({"alarms": [], "reliability": "ok", "partial": True}, 10, "partial"),
        ({"alarms": [], "reliability": "ok", "ok": False}, 10, "that of a failure"),
    ],
)
def test_a_document_that_was_changed_never_passes(gate, document, code, said):
    write("r", samples=answers(100, 90), alarms=[SUSPECT], document=document)
    answer = gate("r", EASY, "--junit", "j.xml")
    assert answer.code == code and said in answer.err and "<error " in Path("j.xml").read_text()


def test_without_a_radius_the_run_itself_is_judged_and_no_point_of_its_sweep(gate):
    swept = EvalRow(kind="worst", norm="linf", eps=0.0, correct=100, clean_correct=100, n=100)
    write("r", more=[SweepRow(total=swept, key="eps", value=0.0, attacks=(), since_half=None)])
    assert gate("r", "  robust_acc: {min: 0.1}\n").code == 2


def test_nothing_to_judge_is_no_verdict(cli, gate):
    write("r", samples=answers(100, 90))
    for words, said in (
        (("r",), "no thresholds: nothing would be judged"),
        (("r", "thresholds.robust_acc.min=0.5", "--eps", "0.2"), "--eps would measure"),
        (("r", "thresholds.robust_acc.min=0.5", "seed=3"), "seed changes nothing of a run that is done"),
        (("nowhere", "thresholds.robust_acc.min=0.5"), "no such file"),
        ((".", "thresholds.robust_acc.min=0.5"), "no run of robustcli"),
        (("r", "--thresholds", "none.yaml"), "no such file"),
    ):
        answer = cli("gate", *words)
        assert answer.code == 2 and said in answer.err, words
    assert cli("gate", "r", "thresholds.robust_acc@linf:0.1.min=0.5").code == 0


def test_the_thresholds_of_the_run_itself(cli):
    write("r", samples=answers(1000, 100), config={"thresholds": {"robust_acc": {"min": 0.45}}})
    answer = cli("gate", "r", "--json")
    assert answer.code == 1 and answer.document["thresholds"][0]["where"] == "r/config.resolved.yaml:6"


# ---- against a baseline ------------------------------------------------------------------------------------


def test_a_drop_is_judged_on_the_same_samples(gate):
    write("main", samples=answers(2000, 1200), listed=True)
    write("worse", samples=answers(1000, 480), listed=True)  # the baseline has its 1,000 and 1,000 more
    drop = "  robust_acc_drop: {max: 0.02, baseline: main}\n  clean_acc_drop: {max: 0.02, mode: prove}\n"
    answer = gate("worse", drop, "--baseline", "main", "--json")
    found = {each["metric"]: each for each in answer.document["thresholds"]}
    assert answer.code == 1 and found["robust_acc_drop"]["verdict"] == "FAIL"
    assert (found["robust_acc_drop"]["value"], found["robust_acc_drop"]["n"]) == (0.52, 1000)
    assert found["robust_acc_drop"]["note"] == "520 lost and 0 gained"
    assert found["clean_acc_drop"]["verdict"] == "PASS"  # no sample differs, so that no two points are lost


def test_a_run_is_no_baseline_of_its_own(cli):
    write("runs/eval/x-1", samples=answers(100, 90), listed=True)
    Path("runs/eval/latest").symlink_to("x-1")
    answer = cli("gate", "runs/eval/x-1", "thresholds.clean_acc_drop.max=0", "--baseline", "runs/eval/latest")
    assert answer.code == 2 and "the baseline is the run itself" in answer.err


def test_a_baseline_that_nothing_is_compared_with_is_refused(gate):
    for name in ("main", "r"):
        write(name, samples=answers(100, 90), listed=True)
    answer = gate("r", EASY, "--baseline", "main")
    assert answer.code == 2 and "nothing would be compared with the baseline; main" in answer.err


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("ball: {norm: linf, eps: 0.2}\n", "ball.eps is 0.2, and the run has measured 0.1; gate.yaml:3"),
        ("ball: {norm: l2, eps: 0.1}\n", "ball.norm is l2, and the run has measured linf"),
        ("eval: {split: val}\n", "eval.split is val, and the run has measured test"),
        ("data: {name: mnist}\n", "data.name is mnist, and the run has measured digits"),
        ("ball: {norm: linf, eps: 0.1}\ndata: {name: digits}\n", ""),
    ],
)
def test_a_file_that_asks_for_another_measurement_judges_nothing(gate, said, refused):
    run = write("r", samples=answers(100, 90))
    rows = [
        replace(EvalRow.from_json(json.loads(each)), data="digits") for each in (run / "metrics.jsonl").open()
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    answer = gate("r", f"  robust_acc: {{min: 0.0}}\n{said}")
    assert (answer.code, refused in answer.err) == (2 if refused else 0, True), answer.err
    if said.startswith("ball"):  # the radius is said where it is judged
        assert gate("r", f"  robust_acc@linf:0.1: {{min: 0.0}}\n{said}").code == 0


def test_a_drop_without_a_baseline_is_refused_at_its_line(gate):
    write("r", samples=answers(100, 90), listed=True)
    answer = gate("r", "  robust_acc_drop: {max: 0.02}\n")
    assert answer.code == 2 and "gate.yaml:2: thresholds.robust_acc_drop: a drop is measured" in answer.err


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"config": {"attacks": [{"name": "fgsm"}]}}, 2, "other attacks"),
        ({"samples": answers(50, 40)}, 2, "50 of 100 samples were not measured by the baseline, such as 50"),
        ({"alarms": [SUSPECT]}, 10, "suspect"),
        ({"status": {"state": "running"}}, 10, "not done"),
    ],
)
def test_a_baseline_that_cannot_be_compared(gate, change, code, said):
    write("main", **{"samples": answers(100, 90), "listed": True, **change})
    write("r", samples=answers(100, 90), listed=True)
    answer = gate("r", "  robust_acc_drop: {max: 0.02, baseline: main}\n")
    assert answer.code == code and said in answer.err


def test_attacks_that_wanted_one_class_judge_no_robustness(gate):
    aimed = {"eval": {"target": "least-likely"}}
    write("aimed", samples=answers(100, 90), listed=True, config=aimed)
    write("r", samples=answers(100, 90), listed=True)
    drop = "  robust_acc_drop: {max: 0.9, baseline: aimed}\n"
    for run, threshold in (
        ("aimed", "  robust_acc: {min: 0.1}\n"),
        ("aimed", "  attack_success: {max: 0.9}\n"),
        ("aimed", "  worst_class_robust_acc@linf:0.1: {min: 0.0}\n"),
        ("r", drop),
    ):
        answer = gate(run, threshold)
        assert answer.code == 2 and "attacks of this run wanted least-likely" in answer.err
    assert gate("aimed", "  clean_acc: {min: 0.1}\n").code == 0


def test_other_images_and_other_radii_are_refused(gate):
    for name, field, value, said in (
        ("data", "hashes", {"data": "e" * 64}, "other images (their digest differs)"),
        ("split", "split", "val", "the run is about test, the baseline about val"),
        ("eps", "eps", 0.2, "the run is at linf 0.1, the baseline at linf 0.2"),
    ):
        other = write(name, samples=answers(100, 90), listed=True)
        rows = [EvalRow.from_json(json.loads(line)) for line in (other / "metrics.jsonl").open()]
        lines = [json.dumps(replace(row, **{field: value}).to_json()) + "\n" for row in rows]
        (other / "metrics.jsonl").write_text("".join(lines))
        write(f"r-{name}", samples=answers(100, 90), listed=True)
        answer = gate(f"r-{name}", f"  robust_acc_drop: {{max: 0.02, baseline: {name}}}\n")
        assert answer.code == 2 and said in answer.err, name


@pytest.mark.parametrize("attack", ["transfer:0123456789ab", "mine.py:blur@0123456789ab"])
def test_an_attack_that_only_the_command_line_named_counts(gate, attack):
    for name in ("main", "r"):
        run = write(name, samples=answers(100, 90), listed=True)
    row = EvalRow.from_json(json.loads((run / "metrics.jsonl").read_text().splitlines()[1]))
    more = replace(row, kind="attack", attack=attack, per_class={})
    with (Path("main") / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(more.to_json()) + "\n")
    answer = gate("r", "  robust_acc_drop: {max: 0.02, baseline: main}\n")
    assert answer.code == 2 and "other attacks" in answer.err


def test_samples_that_contradict_the_counts_are_refused(gate):
    run = write("r", samples=answers(100, 90), listed=True)
    write("main", samples=answers(100, 90), listed=True)
    (run / "samples.jsonl").write_text("".join((run / "samples.jsonl").open().readlines()[:-1]))
    answer = gate("r", "  robust_acc_drop: {max: 0.02, baseline: main}\n")
    assert answer.code == 3 and "right: 99 of 99 samples, and 100 of 100 by the rows" in answer.err


def test_a_directory_of_several_runs_says_that_it_has_no_number(cli):
    """That of a `demo` has no configuration; its runs lie inside."""
    run = write("demo", verb="demo")
    (run / "config.resolved.yaml").unlink()
    answer = cli("gate", "demo", "thresholds.robust_acc.min=0.5")
    assert answer.code == 2 and "was not measured by this run (demo)" in answer.err

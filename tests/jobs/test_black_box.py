"""Black boxes on the command line: what is refused, what is recorded, and what a report says."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from robustcli.reporting.dossier import Dossier
from robustcli.reporting.pictures import reliability


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(path)


def test_labels_only_refuses_gradients_before_any_work(cli):
    flags = ("--model", "mlp", "--data", "digits", "--n", "8", "--labels-only")
    for verb, attack in (("eval", "autoattack"), ("attack", "square"), ("eval", "apgd,noise")):
        refused = cli(verb, *flags, "--attack", attack)
        assert refused.code == 2, refused.err
        assert "E-BLACK-BOX" in refused.err and "noise" in refused.err
        assert not os.path.exists("runs")
    answer = cli("eval", *flags, "--attack", "noise:draws=2", "--json").document
    assert answer["model"] == "mlp (labels only)"
    assert "softmax-output" not in str(answer["alarms"])


def test_training_refuses_a_model_of_labels(cli):
    refused = cli("train", "--data", "digits", "--smoke", "model.labels_only=true")
    assert (refused.code, "E-MODEL" in refused.err) == (2, True)


PROGRAM = """command:sh -c 'while read p; do echo $(( $(wc -c < "$p") % 10 )); done'"""


def test_a_program_is_measured_and_its_queries_are_recorded(cli):
    flags = ("--data", "digits", "--n", "40", "--norm", "l2", "--eps", "3", "--json")
    answer = cli("eval", "--model", PROGRAM, *flags, "--attack", "surfree:queries=12").document
    assert answer["model"] == f"{PROGRAM} (labels only)" and answer["attacks"][0]["name"] == "surfree-12"
    assert answer["attacks"][0]["passes_per_sample"] <= 12 + 3
    assert answer["queries"] > 40 and not {a["name"] for a in answer["alarms"]} & {
        "zero-gradient",
        "softmax-output",
    }
    with open(f"{answer['run']}/summary.md") as summary:
        assert "upper bound, and weaker evidence" in summary.read()
    with open(f"{answer['run']}/samples.jsonl") as lines:
        assert {json.loads(line)["confidence"] for line in lines} == {0}, "a label says nothing of a share"
    run = Dossier.read(Path(answer["run"]))
    assert reliability.picture(run) == "Reliability diagram: labels alone do not say how sure the model is."
    assert " %)" not in Path(answer["run"], "summary.md").read_text().partition("weakest images")[2]
    again = cli("eval", f"{answer['run']}/config.resolved.yaml")
    assert again.code == 2 and "a config never names a program" in again.err
    images = cli("attack", "--model", PROGRAM, *flags, "--attack", "surfree:queries=12").document
    assert images["queries"] > 40


SCRIPT = 'while read p; do echo $(( $(wc -c < "$p") % %d )); done'


def test_parts_and_a_resume_of_a_program_count_all_queries_and_know_its_script(cli):
    """Two halves make the whole, which needs no program. Another script of that name is another model."""
    Path("answer.sh").write_text(SCRIPT.replace("%d", "10"))
    words = ("eval", "--model", "command:sh answer.sh", "--data", "digits", "--n", "16", "--norm", "l2")
    words += ("--eps", "3", "--attack", "surfree:queries=12", "eval.shard_size=4", "--no-report", "--json")
    planned = cli(*words, "--dry-run")
    assert planned.code == 0 and planned.document["plan"]["parameters"] == 0, planned.err
    whole = cli(*words, "--out", "whole").document
    lost = sorted(Path("whole/shards").glob("0*.jsonl"))[1]
    lost.unlink()
    again = cli(*words, "--out", "whole", "--resume").document
    assert again["robust_acc"] == whole["robust_acc"]
    assert again["queries"] == whole["queries"], "the other shards count, too"
    parts = [cli(*words, "--shard", f"{i}/2", "--out", f"half{i}").document["queries"] for i in (1, 2)]
    merged = cli("eval", "--merge", "half1,half2", "--out", "both", "--no-report", "--json")
    assert merged.code == 0, merged.err
    assert merged.document["robust_acc"] == whole["robust_acc"]
    assert 16 < merged.document["queries"] < sum(parts), "of the verdicts, without the first looks"
    lost.unlink()
    Path("answer.sh").write_text(SCRIPT.replace("%d", "7"))
    refused = cli(*words, "--out", "whole", "--resume")
    assert refused.code == 2 and "cannot resume another evaluation" in refused.err, refused.err


def test_a_program_needs_no_training_image(cli, tmp_path):
    """It normalises itself: a training image that cannot be read is none of its business."""
    for part in ("train", "test"):
        for name in "ab":
            put(tmp_path / f"d/{part}/{name}/0.png")
    (tmp_path / "d/train/a/0.png").write_bytes(b"no image")
    Path("answer.sh").write_text(SCRIPT.replace("%d", "2"))
    words = ("eval", "--model", "command:sh answer.sh", "--data", "folder:d", "--norm", "l2", "--eps", "1")
    answer = cli(*words, "--attack", "noise", "--no-report", "--json")
    assert answer.code == 0 and "normalisation" not in answer.err, answer.err


def test_a_program_that_crashes_is_one_line_and_leaves_no_run(cli):
    failed = cli("eval", "--model", "command:sh -c 'exit 9'", "--data", "digits", "--attack", "noise")
    assert failed.code == 2 and failed.err.count("error[E-COMMAND]") == 1 and "ended with 9" in failed.err
    assert not os.path.exists("runs")


def test_distance_against_queries_is_a_curve_and_in_the_document(cli):
    flags = ("--data", "digits", "--n", "30", "--norm", "l2", "--eps", "0.01", "--json", "--no-report")
    attacks = ("--attack", "surfree:queries=30,hopskipjump:queries=60", "--sweep", "distance")
    answer = cli("eval", "--model", "mlp", *flags, *attacks, "--labels-only").document
    first, second = (row["after"] for row in answer["sweep"])
    assert [count for count, _ in first] == [10, 20, 30] and second[-1][0] == 60
    medians = [far for _, far in second if far is not None]
    assert medians == sorted(medians, reverse=True)
    assert second[-1][1] == answer["sweep"][1]["quartiles"][1]
    lines = open(f"{answer['run']}/plots/distance_queries.csv").read().splitlines()
    assert lines[0] == "series,queries,median_distance" and len(lines) == 1 + len(first) + len(second)
    assert os.path.getsize(f"{answer['run']}/plots/distance_queries.png") > 1000


MLP = ("--model", "mlp")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("eval", *MLP, "--labels-only", "--attack", "hopskipjump", "--target", "least-likely"),
            "which class is the least",
        ),
        (
            ("eval", *MLP, "--attack", "noise", "--surrogate", PROGRAM),
            "(needs gradient); --surrogate",
        ),
        (("transfer", "--models", f"mlp,{PROGRAM}"), "does not serve mi_fgsm"),
        (("guard", "fit", "--model", PROGRAM, "defences=[reconstruction]"), "is a black box, and defences"),
        (("export", "--model", PROGRAM, "--out", "file"), "is a black box, and only a network"),
        (("export", "--model", "onnx:a.onnx", "--out", "file"), "is a black box, and only a network"),
    ],
)
def test_what_a_black_box_cannot_do_is_one_line_before_any_work(cli, words, told):
    refused = cli(*words, "--data", "digits")
    assert refused.code == 2 and told in refused.err and refused.err.count("error[") == 1, refused.err
    assert not os.path.exists("runs") and not os.path.exists("file")

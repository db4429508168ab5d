"""`robustcli transfer` from the shell's side: document, records, picture, names, bad input."""

import json
import subprocess
import sys

import pytest
from jobs_support import TINY
from PIL import Image

from robustcli.jobs.transfer import short_names
from robustcli.store.inventory import holds_nothing_else
from robustcli.store.status import read_status

KEYS = {
    "schema_version", "ok", "verb", "run", "seconds", "models", "references", "n", "clean_acc",
    "jointly_correct", "matrix", "intervals", "best", "mi", "attacks", "ball", "reliability", "alarms",
}  # fmt: skip


@pytest.fixture
def pair(cli):
    for name, objective in (("one", "madry"), ("two", "natural")):
        assert cli("train", *TINY, f"objective={objective}", "--out", f"models/{name}").code == 0


def test_document_records_and_files(pair, cli, tmp_path):
    answer = cli(
        "transfer", "--models", "run:models/one,run:models/two", "--n", "60", "--steps", "3", "--json"
    )
    document = answer.document
    assert answer.code == 0 and set(document) == KEYS and document["verb"] == "transfer"
    assert document["models"] == ["one", "two"] and document["references"] == [
        "run:models/one",
        "run:models/two",
    ]
    assert (
        document["n"] == 60
        and document["attacks"] == ["mi_fgsm-3+sia", "mi_fgsm-3", "apgd-3"]
        and set(document["clean_acc"]) == {"one", "two"}
    )
    run = tmp_path / document["run"]
    rows = [json.loads(line) for line in (run / "transfer.jsonl").read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == [
        ("one", "one"),
        ("one", "two"),
        ("two", "one"),
        ("two", "two"),
    ]
    for row, rate, interval in zip(
        rows, sum(document["matrix"], []), sum(document["intervals"], []), strict=True
    ):
        assert (
            row["n"] == document["jointly_correct"] > 0
            and row["rate"] == rate == row["k"] / row["n"]
            and row["samples"] == 60
        )
        assert interval == row["intervals"]["rate"] and interval[0] <= rate <= interval[1]
        assert row["by_attack"][row["best"]] == row["k"] == max(row["by_attack"].values()) >= row["mi"]
        assert row["mi"] == row["by_attack"]["mi_fgsm-3"]
        assert {"source", "target", "data", "code", "ids"} == set(row["hashes"]) and row["eps"] == document[
            "ball"
        ]["eps"]
    assert rows[0]["hashes"]["source"] == rows[1]["hashes"]["source"] != rows[3]["hashes"]["source"]
    assert holds_nothing_else(run, "transfer"), "store/inventory.py knows all files"
    assert Image.open(run / "plots" / "transfer.png").size[0] > 300 and read_status(run)["state"] == "done"
    assert json.loads((run / "summary.json").read_text())["matrix"] == document["matrix"]
    summary = (run / "summary.md").read_text()
    assert "shown to two" in summary and "robustcli transfer --models" in summary and "1710.06081" in summary
    assert "MI-FGSM alone" in summary and summary.count("mi_fgsm-3+sia") > 1
    assert [[r["best"] for r in rows[k : k + 2]] for k in (0, 2)] == document["best"]
    assert (run / "results.csv").read_text().count("\n") == 5
    again = cli(
        "transfer", "--models", "run:models/one,run:models/two", run / "config.resolved.yaml", "--json"
    )
    assert again.document["matrix"] == document["matrix"]


def test_the_diagonal_is_what_eval_says(pair, cli):
    """A model and itself: the jointly correct samples are the correct ones, and white-box is `eval`."""
    both = cli(
        "transfer",
        "--models",
        "run:models/one,run:models/one",
        "--attack",
        "pgd",
        "--n",
        "80",
        "--steps",
        "4",
        "--json",
        "search.precision=fp32",
    ).document
    assert both["attacks"] == ["pgd-4"] and both["mi"] == [[None, None]] * 2, "a named attack rules"
    alone = cli(
        "eval",
        "--model",
        "run:models/one",
        "--n",
        "80",
        "--steps",
        "4",
        "--json",
        "search.precision=fp32",
        "eval.checks=0",
    ).document
    assert both["models"] == ["one", "one#2"] and both["jointly_correct"] == round(alone["clean_acc"] * 80)
    assert sum(both["matrix"], []) == pytest.approx([alone["attack_success"]] * 4)


def test_the_table_is_shown_and_a_smoke_run_is_small(pair, cli):
    plain = cli("transfer", "--models", "run:models/one,run:models/two", "--smoke")
    assert (
        plain.code == 0
        and "apgd:steps=50, our strongest" in plain.err
        and "| made on" in plain.out
        and "white-box" in plain.out
        and "(of 32)" in plain.out
    )
    assert plain.out.rstrip().splitlines()[-1].startswith("runs/transfer/")


def test_the_others_together_are_a_line_below(pair, cli):
    three = "run:models/one,run:models/two,run:models/one"
    answer = cli("transfer", "--models", three, "--n", "40", "--steps", "2", "--together", "loss", "--json")
    together = answer.document["together"]
    assert answer.code == 0 and together["join"] == "loss" and len(together["broken"]) == 3
    assert set(together["best"]) <= {"mi_fgsm-2+sia", "mi_fgsm-2", "apgd-2"}
    for argv, word in (("--together", "all"), "logits"), (("--together", "loss"), "three models"):
        few = cli("transfer", "--models", "run:models/one,run:models/two", *argv)
        assert few.code == 2 and word in few.err


def test_attacks_of_a_configuration_rule(pair, cli, tmp_path):
    """Those that a model's run was evaluated with were not named for this."""
    (tmp_path / "c.yaml").write_text("data: {name: fake, size: 8}\nattacks: [fgsm]\n")
    both = ("transfer", "--models", "run:models/one,run:models/two", "--n", "8", "--json")
    assert cli(*both, "c.yaml").document["attacks"] == ["fgsm"]
    assert cli(*both, "attacks=[{name: fgsm}]").document["attacks"] == ["fgsm"]
    assert cli(*both, "--smoke").document["attacks"] == ["mi_fgsm-3+sia", "mi_fgsm-3", "apgd-3"]
    assert cli(*both, "--norm", "l0", "--eps", "3", "--steps", "2").document["attacks"] == ["pgd-2"]


def test_eval_searches_on_several_surrogates_and_says_by_which_attack(pair, cli):
    rest = ("eval", "--model", "run:models/two", "--n", "12", "--attack", "fgsm", "eval.checks=0", "--json")
    usual = cli(*rest, "--surrogate", "run:models/one", "--surrogate", "run:models/two").document
    names = ["mi_fgsm-10+sia", "mi_fgsm-10", "apgd-50"]
    assert [row["name"] for row in usual["attacks"]] == ["fgsm", *(f"transfer by {name}" for name in names)]
    own = cli(*rest, "eval.surrogate={models: [run:models/one], attack: pgd}").document
    assert [row["name"] for row in own["attacks"]] == ["fgsm", "transfer by pgd-10"]
    code = cli(*rest, "eval.surrogate.models=[net.py:mine]")
    assert code.code == 2 and "--surrogate" in code.document["error"]["message"]


def test_dry_run_writes_nothing(pair, cli, tmp_path):
    answer = cli("transfer", "--models", "run:models/one,run:models/two", "--dry-run", "--json")
    assert (
        answer.code == 0
        and set(answer.document["plan"]) == {"one", "two"}
        and not (tmp_path / "runs").exists()
    )


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ((), 2, "two models"),
        (("--models", "small_cnn"), 2, "two models"),
        (("--models", "run:nowhere,run:nothing"), 4, "nowhere"),
        (("--models", "small_cnn,smal_cnn"), 2, "small_cnn"),
        (("--models", "small_cnn,run:nowhere", "data.name=fake", "data.size=8"), 4, "nowhere"),
        (
            ("--models", "small_cnn,small_cnn", "eval.target=1", "data.name=fake", "data.size=8"),
            2,
            "untargeted",
        ),
    ],
)
def test_bad_input_is_one_line_with_its_code(cli, tmp_path, argv, code, words):
    answer = cli("transfer", *argv)
    errors = [line for line in answer.err.splitlines() if line.startswith("error[")]
    assert answer.code == code, answer.err
    assert len(errors) == 1 and words in errors[0] and answer.out == "" and not (tmp_path / "runs").exists()


def test_other_classes_are_refused_and_the_model_is_named(pair, cli, tmp_path):
    answer = cli("transfer", "--models", "small_cnn,run:models/one", "data.name=digits", "data.size=8")
    assert answer.code in (3, 4) and "models/one" in answer.err
    other = cli("transfer", "--models", "run:models/one,run:models/two", "data.name=npz:three.npz")
    assert other.code == 3 and "three.npz" in other.err


def test_names_are_as_short_as_they_can_be():
    assert short_names(["run:runs/train/a-1", "run:runs/train/b-1"]) == ["a-1", "b-1"]
    assert short_names(["run:x/a/best", "run:x/b/best", "small_cnn"]) == ["a/best", "b/best", "small_cnn"]
    assert short_names(["run:a", "run:a", "run:b/a"]) == ["a", "a#2", "b/a"]
    assert short_names(["run:latest/", "torchvision:resnet50@V2"]) == ["latest", "torchvision:resnet50@V2"]


def test_help_shows_two_examples_without_torch():
    code = (
        "import sys; from robustcli.cli.main import run; run(['transfer', '--help']); "
        "print('HEAVY', sorted({'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in answer.stdout and answer.stdout.count("robustcli transfer --models") == 2

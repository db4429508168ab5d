"""`robustcli gate CONFIG`: measures, looks again where it must, and never takes a crash for a verdict."""

from pathlib import Path

import pytest
from commands import run_in
from jobs_support import TINY

from robustcli.gating import looks
from robustcli.jobs.evidence import gate_config

QUICK = ("data.name=fake", "data.size=8", "attacks=[fgsm]", "eval.checks=0", "threads=1", "ball.eps=2/255")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return run_in(folder, ["train", *TINY, "--out", "m"]) / "m"


@pytest.fixture
def measure(cli, model, monkeypatch):
    """Gate the model by a YAML of thresholds; the looks are at 32 and at 128 samples."""
    monkeypatch.setattr(looks, "LOOKS", (32, 128))
    monkeypatch.setattr(gate_config, "LOOKS", (32, 128))

    def call(thresholds, *words):
        Path("gate.yaml").write_text(f"thresholds:\n{thresholds}")
        return cli("gate", "gate.yaml", "--model", f"run:{model}", *QUICK, "--json", *words)

    return call


def runs():
    return sorted(path.name for path in Path("runs/eval").glob("run-*"))


def test_a_second_look_where_the_first_is_inconclusive(measure):
    text = "  clean_acc: {min: 0.0, mode: prove}\n  robust_acc: {min: 0.1}\n  attack_success: {max: 1}\n"
    answer = measure(text)
    found = {each["metric"]: each for each in answer.document["thresholds"]}
    assert answer.document["looks"] == [32, 128] and runs() == ["run-1", "run-2"]
    assert answer.document["run"] == "runs/eval/run-2" and "measuring 128" in answer.err
    assert found["clean_acc"]["n"] == 32 and found["robust_acc"]["n"] == 128  # decided by the first look
    assert {each["alpha"] for each in found.values()} == {0.025}
    assert answer.code == (0 if answer.document["verdict"] != "FAIL" else 1)


def test_one_look_decides_what_it_can(measure):
    sure = measure("  clean_acc: {min: 0.0}\n")
    assert (sure.code, sure.document["verdict"], sure.document["looks"], runs()) == (
        0,
        "PASS",
        [32],
        ["run-1"],
    )
    lost = measure("  clean_acc: {min: 0.99}\n  robust_acc: {min: 0.1}\n")
    assert (lost.code, lost.document["verdict"], lost.document["looks"]) == (1, "FAIL", [32])


def test_a_sample_that_is_asked_for_is_one_look_with_the_whole_error(measure):
    for words in (("--n", "40"), ("eval.first=40", "--out", "here")):
        answer = measure("  robust_acc: {min: 0.1, mode: prove}\n", *words)
        assert answer.document["looks"] == [40] and answer.document["thresholds"][0]["alpha"] == 0.05
    assert answer.document["run"] == "here"
    assert measure("  clean_acc: {min: 0}\n", "--out", "there").document["run"] == "there/look-1"


def test_a_set_that_the_first_look_exhausts_is_one_look(measure, monkeypatch):
    monkeypatch.setattr(gate_config, "LOOKS", (512, 2000))  # the set has 200
    answer = measure("  robust_acc: {min: 0.1}\n")
    assert answer.document["looks"] == [200] and answer.document["thresholds"][0]["alpha"] == 0.05


def test_what_eval_will_not_measure_is_refused_before_it_begins(measure):
    for text, words, said in (
        (
            "  robust_acc@linf:4/255: {min: 0.1}\n",
            (),
            "robust_acc@linf:4/255 will not be measured: the ball is",
        ),
        ("  certified_acc@linf:2/255: {min: 0.1}\n", (), "is not measured by `eval`"),
        ("  robust_acc_drop: {max: 0.1, baseline: runs/none}\n", (), "no run of robustcli"),
        ("  robust_acc: {min: 0.1}\n", ("--target", "1"), "attacks of this run wanted 1"),
        ("  clean_acc: {min: 0.1}\n", ("--set", "eval.fail_under.clean_acc=0.1"), "write it into thresholds"),
    ):
        answer = measure(text, *words)
        assert answer.code == 2 and said in answer.err and not Path("runs").exists(), said


def test_the_sweep_has_other_radii(measure):
    text = "  robust_acc@linf:2/255: {min: 0}\n  robust_acc@linf:4/255: {min: 0}\n"
    answer = measure(text, "--sweep", "eps=4/255", "--n", "8")
    assert answer.code == 0 and [each["n"] for each in answer.document["thresholds"]] == [8, 8]


def test_a_plan_measures_nothing_and_smoke_is_small(measure):
    planned = measure("  robust_acc: {min: 0.1}\n", "--dry-run", "--junit", "j.xml")
    assert planned.code == 0 and not Path("runs").exists() and not Path("j.xml").exists()
    assert measure("  clean_acc: {min: 0}\n", "--smoke").document["looks"] == [32]


def test_latest_is_the_run_before(measure):
    """The baseline is what `latest` names when the gate begins, not what it measures then."""
    drop = "  robust_acc_drop: {max: 0.5, baseline: runs/eval/latest}\n"
    assert measure("  clean_acc: {min: 0}\n", "--n", "40").code == 0
    answer = measure(drop, "--n", "40")
    (found,) = answer.document["thresholds"]
    assert found["baseline"] == "runs/eval/run-1" and found["note"] == "0 lost and 0 gained"


def test_a_baseline_of_the_first_look_ends_what_is_compared_with_it(measure):
    """The samples of a second look have no partner there: the drop stays open, and is no mistake."""
    assert measure("  clean_acc: {min: 0}\n").document["looks"] == [32]  # run-1 is the baseline
    drop = "  robust_acc_drop: {max: 0, baseline: runs/eval/run-1}\n"
    answer = measure(drop)
    assert (answer.code, answer.document["verdict"], answer.document["looks"]) == (0, "INCONCLUSIVE", [32])
    answer = measure(f"{drop}  robust_acc: {{min: 0.1}}\n")
    found = {each["metric"]: each["n"] for each in answer.document["thresholds"]}
    assert answer.document["looks"] == [32, 128] and found == {"robust_acc_drop": 32, "robust_acc": 128}


def test_a_model_that_masks_its_gradients_exits_10(cli):
    body = "x = (x * 3).round().flatten(1)\n        return x @ self.w"
    Path("net.py").write_text(NET.format(body=body))
    Path("gate.yaml").write_text("thresholds:\n  clean_acc: {min: 0}\n")
    words = [word for word in QUICK if not word.startswith("eval.checks")]
    answer = cli(
        "gate", "gate.yaml", "--plugin", "net.py:make", *words, "--n", "64", "--json", "--junit", "j.xml"
    )
    assert answer.code == 10 and "zero-gradient" in answer.err and "verdict" not in answer.document
    assert 'name="zero-gradient"' in Path("j.xml").read_text()


NET = """import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(192, 10, generator=torch.Generator().manual_seed(0)))
    def forward(self, x):
        {body}
def make():
    return Net()
"""
BROKEN = {
    "raises": "raise RuntimeError('mine')",
    "leaves": "import sys; sys.exit(0)",
    "gates": "import typer; raise typer.Exit(1)",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_crash_is_no_verdict(cli, kind):
    """Code of the user's that fails, leaves with 0, or raises what a missed gate raises."""
    Path("net.py").write_text(NET.format(body=BROKEN[kind]))
    Path("gate.yaml").write_text("thresholds:\n  clean_acc: {min: 0}\n")
    answer = cli("gate", "gate.yaml", "--plugin", "net.py:make", *QUICK, "--json", "--junit", "j.xml")
    assert answer.code == 2 and not answer.document["ok"] and "verdict" not in answer.document
    assert 'errors="1"' in Path("j.xml").read_text() and "E-PLUGIN" in Path("j.xml").read_text()
    assert cli("gate", "runs/eval/run-1", "thresholds.clean_acc.min=0").code in (2, 10)

"""`runs compare`: paired on the same samples, else unpaired and said; which is better, or chance."""

from pathlib import Path

import pytest
from written_runs import (
    CONFIG,
    HASHES,
    eval_rows,
    samples,
    write_eval,
    write_run,
    write_train,
)

from robustcli.jobs.evidence.comparing import runs_compare
from robustcli.proportions import mcnemar, paired_interval, unpaired_interval
from robustcli.terminal.console import Console


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)


def compared(*names):
    """The comparisons of runs in the working directory."""
    return runs_compare([Path(name) for name in names], Console(quiet=True))["comparisons"]


def same_samples(tmp_path, first, second, **more):
    """Two evaluations of the same samples; (standing, broken, wrong) of each."""
    for name, (standing, broken, wrong) in (("a", first), ("b", second)):
        n = standing + broken + wrong
        lines = samples(standing, broken, wrong)
        write_eval(
            tmp_path / name, standing + broken, standing, n, samples=lines, **(more if name == "b" else {})
        )


def test_the_better_one_is_named_with_its_p(cli, tmp_path):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10))
    document = cli("runs", "compare", "a", "b", "--json").document
    [entry] = document["comparisons"]
    clean, robust = entry["differences"]
    assert entry["paired"] and (clean["difference"], clean["finding"]) == (0, "no difference")
    assert (robust["difference"], robust["finding"]) == (0.2, "higher")
    assert (robust["only_first"], robust["only_second"]) == (0, 20)
    assert robust["p"] == mcnemar(0, 20) and robust["interval"] == list(paired_interval(20, 0, 100))
    assert "b is better than a: its robust accuracy is higher" in entry["words"][-1]
    shown = cli("runs", "compare", "a", "b")
    assert "robust accuracy: b is higher than a (+20.0 points" in shown.out and shown.code == 0


def test_what_may_be_chance_is_called_so(here, tmp_path):
    same_samples(tmp_path, (40, 50, 10), (42, 48, 10))
    assert "Neither is better" in compared("a", "b")[0]["words"][-1]


def test_a_trade_is_called_so(here, tmp_path):
    same_samples(tmp_path, (40, 60, 0), (60, 20, 20))
    told = "A trade: b has the higher robust accuracy, a the higher clean accuracy"
    assert told in compared("a", "b")[0]["words"][-1]


def test_only_shared_samples_count_and_it_is_said(here, tmp_path):
    write_eval(tmp_path / "a", 90, 40, samples=samples(40, 50, 10))
    write_eval(tmp_path / "b", 90, 40, samples=samples(40, 50, 10, start=90))
    [entry] = compared("a", "b")
    assert entry["paired"] and entry["differences"][0]["n"] == 10
    assert any("10 samples that both" in note for note in entry["notes"])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"hashes": {**HASHES, "data": "e" * 64}}, "different images"),
        ({"split": "val"}, "split differs"),
        ({"data": "mnist", "hashes": {**HASHES, "data": "e" * 64}}, "data differs"),
    ],
)
def test_other_images_are_compared_unpaired_and_it_is_said(here, tmp_path, other, told):
    same_samples(tmp_path, (40, 50, 10), (80, 10, 10), **other)
    [entry] = compared("a", "b")
    robust = entry["differences"][1]
    assert not entry["paired"] and any(told in note for note in entry["notes"])
    assert robust["interval"] == list(unpaired_interval(40, 100, 80, 100)) and robust["finding"] == "higher"
    assert "unpaired: 100 and 100 samples" in entry["words"][1]


@pytest.mark.parametrize("other", [{"eps": 0.2}, {"norm": "l2"}])
def test_robust_accuracy_under_another_ball_is_not_compared(here, tmp_path, other):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10), **other)
    [entry] = compared("a", "b")
    assert [row["measure"] for row in entry["differences"]] == ["clean accuracy"]
    assert any("balls" in note for note in entry["notes"])


def test_another_attack_and_a_doubt_are_told(cli, tmp_path):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10), attack="fgsm", reliability="suspect")
    answer = cli("runs", "compare", "a", "b")
    assert "warning: The attacks of the two runs differ" in answer.err
    assert "warning: b is suspect" in answer.err


@pytest.mark.parametrize(
    "other",
    [
        {"attacks": [{"name": "pgd", "steps": 20, "step_size": 0.001}]},
        {"eval": {"target": "random", "n": 100}},
    ],
)
def test_a_weaker_attack_of_the_same_label_makes_no_model_better(here, tmp_path, other):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10), config={**CONFIG, **other})
    [entry] = compared("a", "b")
    assert any("attacks of the two runs differ" in note for note in entry["notes"])
    assert entry["words"][-1] == "Whether a or b is better is not known: they were not attacked alike."


def test_trainings_are_compared_by_their_best_validation(here, tmp_path):
    write_train(tmp_path / "a", (90, 20), (50, 10), best=1)
    write_train(tmp_path / "b", (90, 60), (95, 30), best=1)
    [entry] = compared("a", "b")
    robust = entry["differences"][1]
    assert (robust["first"], robust["second"], robust["finding"]) == (0.2, 0.6, "higher")
    assert any("no verdict per image" in note for note in entry["notes"]) and not entry["paired"]


def test_three_runs_are_compared_with_the_first(here, tmp_path):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10))
    write_eval(tmp_path / "c", 90, 10, samples=samples(10, 80, 10))
    found = compared("a", "b", "c")
    assert [entry["second"] for entry in found] == ["b", "c"]
    assert [entry["differences"][1]["finding"] for entry in found] == ["higher", "lower"]


def test_latest_is_followed(cli, tmp_path):
    same_samples(tmp_path, (40, 50, 10), (60, 30, 10))
    (tmp_path / "latest").symlink_to("b")
    assert "b is higher than a" in cli("runs", "compare", "a", "latest").out


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: write_train(path, (90, 50)), "runs of different verbs: eval and train"),
        (lambda path: write_run(path, "eval", eval_rows(), state="failed", code=5), "has not ended well"),
        (lambda path: path.mkdir(), "no run of robustcli"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(cli, tmp_path, make, told):
    write_eval(tmp_path / "a")
    make(tmp_path / "b")
    answer = cli("runs", "compare", "a", "b")
    assert answer.code == 2 and told in answer.err


def test_nothing_to_compare_is_a_usage_error(cli, tmp_path):
    for name in "ab":
        write_run(tmp_path / name, "bench", document={}, config=CONFIG)
    answer = cli("runs", "compare", "a", "b")
    assert answer.code == 2 and "no accuracy" in answer.err
    assert cli("runs", "compare", "a").code == 2

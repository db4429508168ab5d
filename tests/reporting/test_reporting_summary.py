"""summary.md: the numbers, the alarms, the hashes and the papers."""

from __future__ import annotations

from typing import Any

from robustcli.records.eval import EvalRow
from robustcli.records.train import TrainRow
from robustcli.reporting.cells import format_rate
from robustcli.reporting.summary import eval_summary, source_of, sources, train_summary

CONFIG: dict[str, Any] = {
    "name": "x`y",
    "seed": 7,
    "data": {"name": "digits"},
    "model": {"name": "small_cnn"},
    "attacks": [{"name": "pgd", "steps": 20}, {"name": "nobody"}],
    "objective": {"name": "madry"},
    "adversary": {"name": "fgsm"},
    "train": {"val_attack": "pgd"},
}
COMMON: dict[str, Any] = {
    "norm": "linf",
    "eps": 8 / 255,
    "n": 450,
    "clean_correct": 400,
    "hashes": {"model": "abc", "config": ""},
}
ROWS = [
    EvalRow(kind="clean", correct=400, per_class={"a|b": (400, 450)}, **COMMON),
    EvalRow(kind="attack", attack="pgd-20", correct=200, **COMMON),
    EvalRow(kind="worst", correct=200, per_class={"a|b": (200, 450)}, **COMMON),
]


def test_source_of_a_docstring() -> None:
    def method() -> None:
        """Formula.

        Source: Somebody et al., 2018,
        arXiv:1706.06083.

        More.
        """

    assert source_of(method) == "Somebody et al., 2018, arXiv:1706.06083."
    assert source_of(lambda: None) == ""


def test_the_papers_of_the_methods_used_are_cited() -> None:
    found = sources(CONFIG, ("attacks", "objective", "adversary", "train.val_attack"))
    assert list(found) == ["pgd", "madry", "fgsm"]
    assert "1706.06083" in found["pgd"] and "1412.6572" in found["fgsm"]
    assert sources({}, ("attacks", "objective")) == {}
    ensemble = sources({"attacks": [{"name": "autoattack", "version": "rapid"}]}, ("attacks",))
    assert "arXiv:2003.01690" in ensemble["autoattack"]
    text = eval_summary(CONFIG, ROWS)
    assert "- `pgd`: Madry et al." in text and "fgsm" not in text and "Clopper and Pearson" in text


def test_an_evaluation_says_three_numbers_apart() -> None:
    text = eval_summary(CONFIG, ROWS)
    worst = ROWS[-1]
    assert worst.robust is not None and worst.success is not None
    first = next(line for line in text.splitlines() if line.startswith("Clean accuracy"))
    for rate in (worst.clean, worst.robust, worst.success):
        assert format_rate(rate) in first
    assert "8/255 (0.03137)" in first and "`x y`" in text.splitlines()[0] and "seed 7" in text
    assert "a\\|b" in text and "model (first 3 digits): `abc`" in text and "config: ``" not in text
    assert "No alarm was raised" in text


def test_alarms_come_with_evidence_and_remedy() -> None:
    alarm = {
        "name": "zero-gradient",
        "level": "suspect",
        "evidence": "7 % of answers were 0",
        "remedy": "use loss: margin",
    }
    text = eval_summary(CONFIG, ROWS, [alarm])
    assert (
        "- **suspect** `zero-gradient`: 7 % of answers were 0; use loss: margin" in text
        and "No alarm" not in text
    )


def test_a_clean_evaluation_and_a_hopeless_model() -> None:
    assert "robust accuracy" in eval_summary(CONFIG, ROWS[:1])
    hopeless = EvalRow(kind="worst", norm="linf", eps=0.1, correct=0, clean_correct=0, n=10)
    assert "no sample was right to begin with" in eval_summary(CONFIG, [hopeless])


def test_a_training_says_that_validation_chose() -> None:
    rows = [
        TrainRow(
            step=s,
            epoch=s / 10,
            lr=0.1,
            loss=1.0,
            norm="linf",
            eps=0.1,
            n=100,
            clean_acc=0.9,
            robust_acc=0.5,
            attack="pgd",
        )
        for s in (10, 20)
    ]
    text = train_summary(CONFIG, {"step": 10}, {"step": 20}, rows)
    assert "The best checkpoint is that of step 10, the last that of step 20." in text
    assert "50.0 % [40.4, 59.6] of 100" in text and "report the test split" in text
    assert "validation chose the checkpoint" in text
    assert "# Training" in train_summary(CONFIG, {}, {}, [])


def test_a_training_without_validation_speaks_of_none() -> None:
    row = TrainRow(step=20, epoch=2.0, lr=0.1, loss=1.0, norm="linf", eps=0.1)
    text = train_summary(CONFIG, {}, {"step": 20}, [row])
    assert "No accuracies: the run had no validation, and the best checkpoint is the last." in text
    assert "Nothing was validated: report the test split" in text
    assert "validation samples" not in text and "chose" not in text and "Wilson interval" not in text

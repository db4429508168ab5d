"""Each guard with a sequence that must raise its alarm and one that must not; resuming keeps its memory."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcli.errors import CheckpointError
from robustcli.training.guarding import Guards
from robustcli.training.guards import (
    MAX_ROLLBACKS,
    AtChance,
    CatastrophicOverfitting,
    EarlyStopping,
    OverfittingWatch,
    spread,
)

ACC = st.floats(0, 1)
COUNT = st.integers(1, 10_000)

#: (FGSM, robust) per validation, as one-step training of a small residual network on CIFAR-10 at 8/255 goes.
HEALTHY = [
    (0.31, 0.29),
    (0.38, 0.35),
    (0.43, 0.39),
    (0.47, 0.42),
    (0.50, 0.44),
    (0.53, 0.46),
    (0.55, 0.47),
    (0.56, 0.47),
    (0.57, 0.46),
]
COLLAPSE = [(0.31, 0.29), (0.38, 0.35), (0.43, 0.39), (0.47, 0.41), (0.72, 0.11), (0.89, 0.01)]
ROBUST_OVERFITTING = [(0.45, 0.42), (0.52, 0.48), (0.58, 0.53), (0.56, 0.50), (0.55, 0.47), (0.54, 0.455)]


# ---- the standard deviation --------------------------------------------------------------------------------


def test_spread_in_closed_form():
    assert spread(0.5, 0.5, 998) == pytest.approx(math.sqrt(0.5 / 1000))
    assert spread(1.0, 1.0, 8) == pytest.approx(math.sqrt(2 * 0.9 * 0.1 / 10))


@given(p=ACC, q=ACC, n=COUNT)
def test_spread_is_symmetric_positive_and_shrinks(p, q, n):
    assert 0 < spread(p, q, n) == pytest.approx(spread(q, p, n)) and spread(p, q, 4 * n) < spread(
        p, q, n
    ) <= math.sqrt(0.5 / (n + 2)) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("p", "q", "n"), [(36.2, 0.5, 100), (0.5, -0.1, 100), (math.nan, 0.5, 100), (0.5, 0.5, 0)]
)
def test_what_is_no_fraction_is_refused(p, q, n):
    with pytest.raises(ValueError, match="fractions"):
        spread(p, q, n)
    with pytest.raises(ValueError, match="fractions"):
        CatastrophicOverfitting("off", n).update(p, q)


# ---- early stopping ----------------------------------------------------------------------------------------


def test_early_stopping_counts_validations_in_a_row():
    guard = EarlyStopping(3)
    assert [guard.update(improved) for improved in (True, False, False, True, False, False, False)] == [
        False
    ] * 6 + [True]
    never = EarlyStopping(None)
    assert not any(never.update(False) for _ in range(100)) and never.waited == 100
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(0)


@given(patience=st.integers(1, 6), improved=st.lists(st.booleans(), max_size=30))
def test_early_stopping_is_the_length_of_the_last_run(patience, improved):
    guard = EarlyStopping(patience)
    for k, better in enumerate(improved, 1):
        tail = improved[max(0, k - patience) : k]
        assert guard.update(better) == (len(tail) == patience and not any(tail))


# ---- robust overfitting ------------------------------------------------------------------------------------


def watched(values, n=1000):
    guard = OverfittingWatch(n)
    return guard, [guard.update(value, epoch) for epoch, value in enumerate(values, 1)]


def test_robust_overfitting_is_said_once_and_summed_up():
    guard, said = watched([0.30, 0.362, 0.350, 0.310, 0.300, 0.310])
    assert said == [
        "",
        "",
        "",
        "robust overfitting: best 36.2 % at epoch 2, last 31.0 %: 5.2 points lost",
        "",
        "",
    ]
    assert guard.text == said[3] and guard.gap == pytest.approx(5.2)


def test_ups_and_downs_within_chance_are_no_overfitting():
    guard, said = watched([0.30, 0.34, 0.362, 0.345, 0.355, 0.340])
    assert not any(said) and guard.text == "" and guard.gap == pytest.approx(2.2)
    assert not any(watched([0.30, 0.362, 0.310], n=200)[1])  # the same 5.2 points on fewer images
    recovered, said = watched([0.362, 0.300, 0.370])
    assert said[1] and recovered.text == "" and recovered.gap == 0 and OverfittingWatch(5).gap == 0


@given(values=st.lists(ACC, min_size=1, max_size=12), n=COUNT)
def test_the_gap_is_best_minus_last(values, n):
    guard, said = watched(values, n)
    best = max(values)
    assert (
        guard.gap == pytest.approx(100 * (best - values[-1]))
        and guard.gap >= 0
        and guard.best_epoch == 1 + values.index(best)
    )
    assert (
        bool(guard.text) == (best - values[-1] > 2 * spread(best, values[-1], n))
        and sum(map(bool, said)) <= 1
    )


# ---- catastrophic overfitting ------------------------------------------------------------------------------


def actions(mode, curve, n=1000):
    guard = CatastrophicOverfitting(mode, n)
    return guard, [guard.update(fgsm, robust) for fgsm, robust in curve]


@pytest.mark.parametrize(
    "curve",
    [HEALTHY, ROBUST_OVERFITTING, [(0.5, 0.45), (0.1, 0.1)], [(0.2, 0.0)] * 4],
    ids=["n-fgsm", "robust", "diverged", "untrained"],
)
@pytest.mark.parametrize("mode", ["warn", "stop", "rollback"])
def test_other_curves_raise_no_alarm(mode, curve):
    guard, done = actions(mode, curve)
    assert set(done) == {"none"} and guard.text == "" and guard.more_steps == 0


def test_a_collapse_raises_the_alarm_at_its_first_validation():
    assert actions("off", COLLAPSE)[1] == ["none"] * 6
    guard, done = actions("warn", COLLAPSE)
    assert done == ["none"] * 4 + ["warn", "none"] and guard.text == ""
    guard, done = actions("stop", COLLAPSE[:5])
    assert done == ["none"] * 4 + ["stop"]
    assert guard.text.startswith(
        "catastrophic overfitting: FGSM accuracy 72.0 %, robust 11.0 % (best 41.0 %); use more attack steps"
    )


def test_a_warning_comes_again_after_a_recovery():
    assert actions("warn", [*COLLAPSE, (0.45, 0.40), (0.9, 0.0)])[1] == ["none"] * 4 + [
        "warn",
        "none",
        "none",
        "warn",
    ]


def test_a_collapse_before_the_first_validation_is_seen():
    guard, done = actions("rollback", [(0.85, 0.0)])
    assert done == ["rollback"] and guard.best_robust is None and "best 0" not in guard.text
    assert guard.update(0.35, 0.33) == "none" and guard.best_robust == 0.33 and guard.more_steps == 1


def test_the_fall_is_counted_from_the_best_that_had_not_collapsed():
    assert actions("stop", [(0.50, 0.45), (0.50, 0.38), (0.55, 0.33)])[1] == ["none", "none", "stop"]
    guard, done = actions("warn", [(0.30, 0.20), (0.95, 0.40)])
    assert done == ["none", "warn"] and guard.best_robust == 0.20


def test_few_images_need_a_larger_fall():
    fall = [(0.50, 0.45), (0.60, 0.28)]
    assert actions("stop", fall, n=1000)[1] == ["none", "stop"] and actions("stop", fall, n=60)[1] == [
        "none",
        "none",
    ]
    assert actions("stop", [(1.0, 1 / 3)], n=3)[1] == ["none"] and actions("stop", [(1.0, 1 / 3)], n=30)[
        1
    ] == ["stop"]
    assert actions("stop", [(0.50, 0.45), (0.60, 0.36)], n=10**6)[1] == [
        "none",
        "none",
    ]  # 9 points are no collapse, however sure


def test_a_gap_that_was_there_at_the_best_is_no_sign():
    assert actions("stop", [(0.80, 0.45), (0.60, 0.30)])[1] == ["none", "none"]


def test_each_rollback_adds_a_step_and_the_fourth_stops():
    guard, _ = actions("rollback", COLLAPSE[:4])
    for k in range(1, MAX_ROLLBACKS + 1):
        assert (
            guard.update(0.72, 0.11) == "rollback"
            and guard.more_steps == k
            and f"rollback {k} of 3" in guard.text
            and guard.text.endswith(f"+ {k}")
        )
    assert (
        guard.update(0.72, 0.11) == "stop" and guard.more_steps == MAX_ROLLBACKS and guard.best_robust == 0.41
    )
    with pytest.raises(ValueError, match="unknown mode 'retry'"):
        CatastrophicOverfitting("retry", 10)


@given(
    curve=st.lists(st.tuples(ACC, ACC), max_size=15),
    n=COUNT,
    mode=st.sampled_from(["off", "warn", "stop", "rollback"]),
)
def test_an_action_is_of_its_mode_and_never_without_a_split(curve, n, mode):
    guard = CatastrophicOverfitting(mode, n)
    for fgsm, robust in curve:
        done, steps = guard.update(fgsm, robust), guard.more_steps
        assert (
            done
            in {
                "off": ("none",),
                "warn": ("none", "warn"),
                "stop": ("none", "stop"),
                "rollback": ("none", "rollback", "stop"),
            }[mode]
        )
        assert bool(guard.text) == (done != "none") and 0 <= steps <= MAX_ROLLBACKS
        assert done == "none" or fgsm - robust > 0.15


# ---- nothing is learnt -------------------------------------------------------------------------------------


def heard(accs, losses=(), n=200, classes=10, chance=0.12):
    guard = AtChance(n, classes)
    losses = [*losses, *[None] * len(accs)][: len(accs)]
    pairs = zip(accs, losses, strict=True)
    return [guard.update(acc, chance, loss, k / len(accs)) for k, (acc, loss) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([2.31, 2.303, 2.30, 2.303], "is about ln 10 = 2.303, that of class frequencies: lower eps"),
        ([7.0, 7.0, 9.0, 8.0], "above ln 10 = 2.303: lower lr"),
        ([1.5, 0.9, 0.5, 0.1], "below ln 10 = 2.303: what is learnt does not hold on validation images"),
        ([], "lower lr or eps, and compare the labels with the images"),
    ],
)
def test_accuracy_at_chance_is_said_once_and_the_loss_says_why(losses, why):
    said = heard([0.10, 0.12, 0.10, 0.11], losses)
    assert said[0] == said[2] == said[3] == "" and why in said[1]
    assert said[1].startswith(
        "nothing is learnt: clean accuracy on validation images is 12.0% and does not rise, "
        "and one answer for all reaches 12.0%"
    )


@pytest.mark.parametrize(
    "accs",
    [
        [0.30, 0.32, 0.31, 0.33],  # far above chance, and the losses above ln K
        [0.10, 0.15, 0.20, 0.26],  # it rises
        [0.10, 0.10, *[0.30] * 28],  # the first tenth of a run
        [0.10, 0.30, 0.10, 0.30],  # never twice in a row
    ],
)
def test_a_learning_network_is_left_in_peace(accs):
    assert not any(heard(accs, [2.9, 2.7, 2.6, 2.5] + [2.4] * len(accs)))


def test_without_validation_images_the_loss_must_not_fall():
    def said(losses):
        return [text for text in heard([None] * len(losses), losses, n=0) if text]

    assert not said([3.2, 2.9, 2.6, 2.4]) and not said([2.30, 2.10, 2.30, 2.05]) and not said([2.0] * 5)
    assert "there are no validation images" in said([2.303, 2.303, 2.302])[0]


def test_one_class_has_no_chance():
    with pytest.raises(ValueError, match="num_classes"):
        AtChance(10, 1)


# ---- resume ------------------------------------------------------------------------------------------------

RUNS = {
    "early": (
        lambda: EarlyStopping(3),
        [(better,) for better in (True, False, False, True, False, False, False)],
    ),
    "watch": (
        lambda: OverfittingWatch(1000),
        [(acc, epoch) for epoch, acc in enumerate((0.3, 0.362, 0.35, 0.31, 0.30, 0.37, 0.2))],
    ),
    "warn": (lambda: CatastrophicOverfitting("warn", 1000), [*COLLAPSE, (0.45, 0.4), (0.9, 0.0)]),
    "rollback": (lambda: CatastrophicOverfitting("rollback", 1000), COLLAPSE + COLLAPSE + COLLAPSE),
    "chance": (
        lambda: AtChance(200, 10),
        [(acc, 0.12, 2.3, k / 6) for k, acc in enumerate((0.1, 0.4, 0.1, 0.1, 0.1, 0.1), 1)],
    ),
}


@pytest.mark.parametrize(("make", "feed"), RUNS.values(), ids=RUNS)
def test_a_resumed_guard_says_the_same_from_any_point(make, feed):
    whole = make()
    expected = [whole.update(*args) for args in feed]
    assert len({str(answer) for answer in expected}) > 1  # the sequence has something to say
    for cut in range(len(feed)):
        before, after = make(), make()
        for args in feed[:cut]:
            before.update(*args)
        stored = json.loads(json.dumps(before.state(), allow_nan=False))
        after.load(stored)
        assert after.state() == before.state() == stored
        assert [after.update(*args) for args in feed[cut:]] == expected[
            cut:
        ] and after.state() == whole.state()


@pytest.mark.parametrize("make", [make for make, _ in RUNS.values()], ids=RUNS)
def test_a_foreign_state_is_refused(make):
    state = make().state()
    for wrong in ({}, {**state, "extra": 1}, dict(list(state.items())[1:])):
        with pytest.raises(CheckpointError, match=type(make()).__name__):
            make().load(wrong)


def test_a_first_validation_that_is_collapsed_has_nothing_to_go_back_to():
    guards = Guards(200, 10)
    row = {"epoch": 1.0, "n": 200, "fgsm_acc": 0.95, "robust_acc": 0.05, "adversarial": 0.2}
    first = guards.judge(row, True, 0.1)
    assert first.rollback and "no better weights to go back to" in first.alarms[0]
    again = guards.judge({**row, "epoch": 2.0}, False, 0.2)
    assert again.rollback and "the best weights again" in again.alarms[-1] and guards.more_steps == 2

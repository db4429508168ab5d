"""Sweeps: what a text means, cumulative radii, plateaus of steps, alarms, and the verb."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs_support import TINY
from PIL import Image
from torch import nn

from robustcli.assembly.ranges import Sweep, parse_sweep
from robustcli.assembly.setting import prepare
from robustcli.config.load import load_config
from robustcli.config.overlay import parse_assignment
from robustcli.errors import UsageError
from robustcli.jobs.sweep import check_sweep, grey_radius, sweep_alarms
from robustcli.jobs.sweep_rows import sweep_rows
from robustcli.records.eval import EvalRow
from robustcli.records.sweep import Change, SweepRow
from robustcli.terminal.console import Console

BASE = (
    "data.name=fake",
    "data.size=8",
    "threads=1",
    "eval.n=60",
    "search.precision=fp32",
    "search.fold_bn=false",
    "search.channels_last=false",
)


def setting_of(*settings):
    return prepare(
        load_config(None, [parse_assignment(text, "test") for text in (*BASE, *settings)], environ={}).config,
        Console(quiet=True),
    )


class Means(nn.Module):
    """Class k has the logit <w_k, x>: piecewise linear, so attacks are exact and quick.

    `masked`: the same answers, no gradients.
    """

    def __init__(self, masked=False):
        super().__init__()
        self.head = nn.Linear(192, 10, bias=False)
        self.masked = masked
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(10, 192, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        logits = self.head(x.flatten(1) - 0.5)
        return nn.functional.one_hot(logits.argmax(1), 10).float() + 0 * logits if self.masked else logits


def labelled(setting, model):
    """The data of a setting with the model's own answers as labels: clean accuracy is 1."""
    split = setting.data.test
    x, _, _ = next(iter(split.stream([torch.arange(len(split))], torch.device("cpu"))))
    with torch.no_grad():
        split.labels.copy_(model(x).argmax(1))
    return setting


def rows_of(text, *settings, model=None):
    model = model or Means()
    setting = labelled(setting_of(*settings), model)
    sweep = parse_sweep(text)
    return setting, sweep, list(sweep_rows(setting, model, sweep))


# ---- what a text means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("distance", []),
        ("eps=0..16/255", [2 * k / 255 for k in range(9)]),
        ("eps=0..1:3", [0, 0.5, 1]),
        ("eps=4/255,0, 2/255", [0, 2 / 255, 4 / 255]),
        ("steps=1..200", [1, 2, 5, 10, 20, 50, 100, 200]),
        ("steps=3..30", [3, 5, 10, 20, 30]),
        ("restarts=1..10", [1, 2, 5, 10]),
        ("steps=1..16:5", [1, 2, 4, 8, 16]),
        ("steps=7", [7]),
        ("restarts=3,1,3", [1, 3]),
    ],
)
def test_values(text, values):
    sweep = parse_sweep(text)
    assert sweep.key == text.partition("=")[0] and sweep.values == pytest.approx(values)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_range_of_counts_holds_both_ends_and_ascends(low, more):
    values = parse_sweep(f"steps={low}..{low + more}").values
    assert (
        values[0] == low
        and values[-1] == low + more
        and all(a < b <= 2.5 * a + 1 for a, b in zip(values, values[1:], strict=False))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eps", "KEY=VALUES"),
        ("alpha=1..2", "one of eps"),
        ("eps=", "number"),
        ("eps=-0.1", ">= 0"),
        ("eps=0..0.1:1", "2 to 200"),
        ("eps=0.2..0.1", "A < B"),
        ("eps=0..x", "number"),
        ("eps=1/0", "zero"),
        ("steps=0..10", ">= 1"),
        ("steps=0", ">= 1"),
        ("steps=1.5,2", "whole number"),
        ("steps=1..10:2000", "2 to 200"),
        ("restarts=a", "whole number"),
    ],
)
def test_a_wrong_sweep_is_one_clear_line(text, words):
    with pytest.raises(UsageError) as error:
        parse_sweep(text)
    assert (
        words in error.value.what
        and error.value.where == "eval.sweep"
        and error.value.exit_code == 2
        and "\n" not in error.value.line()
    )


def test_what_cannot_be_swept_is_refused_before_any_work():
    linf, l2 = setting_of("attacks=[fgsm]"), setting_of("ball.norm=l2", "ball.eps=1")
    check_sweep(parse_sweep("eps=0..3"), l2)
    check_sweep(parse_sweep("eps=0..1"), linf)
    l0 = setting_of("ball.norm=l0", "ball.eps=1")
    check_sweep(parse_sweep("eps=0..8:9"), l0)
    assert grey_radius(l0) == l0.data.shape[1] * l0.data.shape[2]
    for sweep, setting, words in (
        ("eps=0..1", l0, "eps=0.125: under l0 it is how many pixels may change"),
        ("eps=1,5000", l0, "eps=5000 under l0, and images of"),
        ("eps=0,8", linf, "did you mean 8/255"),
        ("steps=1,2", linf, "takes steps"),
        ("distance", l2, "minimal-norm"),
    ):
        with pytest.raises(UsageError, match=words):
            check_sweep(parse_sweep(sweep), setting)
    with pytest.raises(UsageError, match="untargeted"):
        check_sweep(parse_sweep("distance"), setting_of("attacks=[fmn]", "eval.target=1"))


# ---- what is measured --------------------------------------------------------------------------------------


def test_radii_are_cumulative_and_only_survivors_are_attacked():
    _, _, rows = rows_of("eps=0,0.01,0.02,0.04,0.5", "attacks.0.steps=5")
    correct = [row.total.correct for row in rows]
    assert (
        rows[0].total.correct == rows[0].total.clean_correct == rows[0].total.n == 60
        and rows[0].total.passes_per_sample == 0
    )
    assert correct == sorted(correct, reverse=True) and 0 < correct[1] < 60 and correct[-1] == 0
    assert rows[-1].total.passes_per_sample <= 3 + 15 * correct[-2] / 60, (
        "samples that fell at a smaller radius were attacked again"
    )
    assert [row.total.eps for row in rows] == [row.value for row in rows] == [0, 0.01, 0.02, 0.04, 0.5]
    assert (
        all(row.since_half.recovered == 0 for row in rows[2:])
        and rows[2].since_half.fell == correct[1] - correct[2]
    )
    low, high = rows[1].total.intervals()["robust_acc"]
    assert low < rows[1].total.robust.value < high


def test_a_point_found_at_a_smaller_radius_stays_valid():
    """An attack that only works at one radius: accuracy must not come back at the next."""
    from robustcli import registry

    found = registry.attacks.get("fgsm").fn

    def once(oracle, x, ball):
        return found(oracle, x, ball) if ball.eps < 0.03 else oracle.result(x.clone())

    once.__kwdefaults__ = {}
    from robustcli.jobs import sweep_rows as jobs

    setting = labelled(setting_of("attacks=[fgsm]"), Means())
    original = jobs.eval_plan
    jobs.eval_plan = lambda *a, **k: (
        (plan := original(*a, **k))
        and jobs.replace(plan, attacks=[jobs.replace(c, fn=once) for c in plan.attacks])
    )
    try:
        rows = list(sweep_rows(setting, Means(), parse_sweep("eps=0.02,0.05")))
    finally:
        jobs.eval_plan = original
    assert rows[0].total.correct == rows[1].total.correct < 60


def test_steps_run_anew_at_every_value_and_more_of_them_find_more():
    setting, sweep, rows = rows_of(
        "steps=1..50", "attacks=[{name: pgd, step_size: 0.002, start: zero}]", "ball.eps=0.05"
    )
    correct = [row.total.correct for row in rows]
    assert correct[0] > correct[-1] and all(row.total.eps == 0.05 for row in rows)
    assert [row.attacks[0]["params"]["steps"] for row in rows] == [1, 2, 5, 10, 20, 50]
    assert (
        rows[-1].since_half.value == 20
        and rows[-1].since_half.fell - rows[-1].since_half.recovered == correct[-2] - correct[-1]
    )
    (alarm,) = sweep_alarms(sweep, rows[:4], grey_radius(setting))
    assert (alarm.name, alarm.level) == ("not-converged", "suspect") and "5 to 10 steps" in alarm.evidence
    assert (
        sweep_alarms(sweep, rows, grey_radius(setting))
        == sweep_alarms(sweep, rows[:1], grey_radius(setting))
        == []
    )


def test_attacks_without_the_parameter_are_left_out_and_two_of_a_name_are_told_apart():
    _, _, rows = rows_of(
        "restarts=1,2", "attacks=[fgsm, {name: pgd, steps: 2}, {name: pgd, steps: 2, loss: margin}]"
    )
    assert rows[0].total.label == "pgd, pgd#2" and [
        call["params"]["restarts"] for call in rows[1].attacks
    ] == [2, 2]
    with pytest.raises(UsageError, match="takes steps"):
        rows_of("steps=1,2", "attacks=[fgsm]")


def test_a_configured_step_size_grows_with_the_radius():
    _, _, rows = rows_of("eps=0.05,0.2", "attacks=[{name: pgd, steps: 2, step_size: 0.02}]", "ball.eps=0.1")
    assert [row.attacks[0]["params"]["step_size"] for row in rows] == pytest.approx([0.01, 0.04])


def test_a_sweep_agrees_with_the_evaluation_at_its_own_radius():
    from robustcli.assembly.attacks import eval_plan
    from robustcli.assembly.samples import choose
    from robustcli.evaluation.robust import RobustEvaluation

    setting, _, rows = rows_of("steps=6", "ball.eps=0.03", "attacks.0.steps=6")
    plan = eval_plan(setting, setting.config.attacks)
    positions = choose(setting.data.test, n=60, first=None, seed=0)
    assert rows[0].total.correct == int(
        RobustEvaluation(Means(), plan).run(setting.data.test, positions, torch.device("cpu")).survivors.sum()
    )


# ---- alarms ------------------------------------------------------------------------------------------------


def test_a_masked_model_stands_where_every_image_can_be_grey_and_an_honest_one_does_not():
    setting, sweep, rows = rows_of(
        "eps=0.1,0.5", "attacks=[{name: pgd, steps: 20, start: zero}]", model=Means(masked=True)
    )
    assert rows[-1].total.correct == 60, "the model masks nothing"
    (alarm,) = sweep_alarms(sweep, rows, grey_radius(setting))
    assert (alarm.name, alarm.level) == ("large-eps-survivors", "suspect") and "0.5" in alarm.evidence
    assert sweep_alarms(Sweep("eps", (0.1,)), rows[:1], grey_radius(setting)) == [], (
        "0.1 is not large: a robust model may stand there"
    )
    setting, sweep, rows = rows_of("eps=0.1,0.5", "attacks=[{name: pgd, steps: 20, start: zero}]")
    assert sweep_alarms(sweep, rows, grey_radius(setting)) == []


def test_the_radius_that_makes_any_image_grey():
    assert grey_radius(setting_of()) == 0.5
    assert grey_radius(setting_of("ball.norm=l2", "ball.eps=1")) == pytest.approx(0.5 * 192**0.5)
    assert grey_radius(setting_of("ball.norm=l1", "ball.eps=1")) == pytest.approx(96)


@pytest.mark.parametrize(
    ("fell", "recovered", "fires"),
    [(0, 0, False), (5, 0, False), (6, 0, True), (10, 9, False), (30, 10, True), (0, 30, False)],
)
def test_convergence_is_judged_against_chance(fell, recovered, fires):
    total = EvalRow(kind="worst", norm="linf", eps=0.1, correct=30, clean_correct=60, n=60)
    row = SweepRow(
        total=total,
        key="steps",
        value=40,
        attacks=[],
        since_half=Change(value=20, fell=fell, recovered=recovered),
    )
    assert bool(sweep_alarms(Sweep("steps", (20, 40)), [row], 0.5)) is fires


# ---- distances ---------------------------------------------------------------------------------------------


def test_distances_are_those_to_the_boundary(tmp_path):
    """Affine logits: the nearest error of class y is min_k (z_y - z_k) / ||w_y - w_k||_2.

    Wrong samples have distance 0.
    """
    from robustcli.jobs.distances import run_distances
    from robustcli.store.rundir import open_run

    model = Means()
    setting = labelled(setting_of("ball.norm=l2", "ball.eps=0.01", "attacks=[deepfool, fmn, pgd]"), model)
    wrong = setting.data.test.labels[::5].clone()
    setting.data.test.labels[::5] = (wrong + 1) % 10
    with open_run("eval", "x", out=str(tmp_path / "run")) as run:
        rows = run_distances(setting, model, Console(quiet=True, json=True), lambda: None, run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "distances.jsonl").read_text().splitlines()]
    x, y, _ = next(
        iter(setting.data.test.stream([torch.tensor([line["id"] for line in lines])], torch.device("cpu")))
    )
    with torch.no_grad():
        z, w = model(x), model.head.weight
    gap = z.gather(1, y[:, None]) - z
    nearest = (
        (gap / (w[y][:, None] - w[None]).norm(dim=2).clamp_min(1e-9))
        .scatter(1, y[:, None], float("inf"))
        .amin(1)
        .clamp_min(0)
    )
    assert [row.attack for row in rows] == ["deepfool", "fmn"]
    for row in rows:
        got = torch.tensor([line["distance"][row.label] for line in lines])
        assert int((got == 0).sum()) == int((z.argmax(1) != y).sum()) > 5 and row.clean_correct == int(
            (z.argmax(1) == y).sum()
        )
        assert (got >= nearest - 1e-5).all() and (got <= 1.2 * nearest + 1e-3).all(), (
            "a point beyond the radius counts: distances have none"
        )
        assert (
            row.broken == row.n == 60
            and row.quartiles == sorted(row.quartiles)
            and setting.ball.eps < row.quartiles[2]
        )
    assert Image.open(tmp_path / "run" / "plots" / "distances.png").size[0] > 300


# ---- the verb ----------------------------------------------------------------------------------------------


def test_eval_with_a_sweep_adds_rows_a_table_and_a_picture(cli, tmp_path):
    assert cli("train", *TINY, "--out", "model").code == 0
    argv = (
        "eval",
        "--model",
        "run:model",
        "--n",
        "40",
        "--steps",
        "2",
        "--sweep",
        "eps=0..16/255:3",
        "eval.checks=0",
    )
    document = cli(*argv, "--json").document
    assert [row["value"] for row in document["sweep"]] == pytest.approx([0, 8 / 255, 16 / 255])
    assert document["sweep"][0]["correct"] == round(document["clean_acc"] * 40)
    run = tmp_path / document["run"]
    assert [json.loads(line)["correct"] for line in (run / "sweep.jsonl").read_text().splitlines()] == [
        row["correct"] for row in document["sweep"]
    ]
    assert Image.open(run / "plots" / "sweep_eps.png").size[0] > 300
    plain = cli(*argv)
    assert plain.code == 0 and "sweep: fake" in plain.out and "16/255" in plain.out
    wrong = cli("eval", "--model", "run:model", "--sweep", "eps=8", "--json")
    assert wrong.code == 2 and "did you mean 8/255" in wrong.document["error"]["message"]
